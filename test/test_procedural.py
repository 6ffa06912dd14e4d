"""The procedural video: tracks, visibility and pixels agree; the stream is a function of its
seed.
"""

import dataclasses

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from train.data.batch import BatchConfig  # noqa: E402
from train.data.sources import ProceduralSource  # noqa: E402
from train.data.synthetic.procedural import ProceduralVideo, SceneConfig, edges, sample  # noqa: E402
from train.data.synthetic.textures import read_photographs  # noqa: E402

SCENE = SceneConfig(size=(96, 128), frames=6, photometric=0.0)


BODIES = dataclasses.replace(SCENE, bodies=1.0, objects=(3, 6), bend=0.0)


@pytest.fixture(scope='module', params=[SCENE, BODIES], ids=['objects', 'bodies'])
def clips(request):
    """Four clips without photometric change."""
    return ProceduralVideo(request.param, seed=3, bank=8).clips(4, 200)


def colours(clips, tracks):
    """Bilinear colours of the video at tracks: (B, T, N, 3) in 0..255."""
    size = torch.tensor([clips.video.shape[3] - 1, clips.video.shape[2] - 1])
    out = sample_frames(
        clips.video.movedim(-1, 2).flatten(0, 1).float(), (tracks / size * 2 - 1).flatten(0, 1)
    )
    return out.view(*tracks.shape[:3], 3)


def sample_frames(frames, grid):
    """Frames (F, 3, H, W) at grid (F, N, 2) in [-1, 1]: (F, N, 3)."""
    sampled = torch.nn.functional.grid_sample(frames, grid[:, :, None], align_corners=True)
    return sampled[..., 0].transpose(1, 2)


def at_query(clips, values):
    """Values (B, T, N, C) in each point's query frame: (B, N, C)."""
    index = clips.query_frame[:, None, :, None].expand(-1, -1, -1, values.shape[-1])
    return values.gather(1, index)[:, 0]


def test_a_visible_point_keeps_its_colour(clips):
    seen = colours(clips, clips.tracks)
    change = (seen - at_query(clips, seen)[:, None]).abs().mean(-1)
    visible, hidden = change[clips.visible], change[~clips.visible & inside(clips)]
    # Resampling a texture at another scale moves a colour a little; another surface moves it a
    # lot.
    assert visible.median() < 3
    assert visible.quantile(0.9) < 16
    assert hidden.median() > 2 * visible.quantile(0.9)


def inside(clips):
    """Points inside the image."""
    height, width = clips.video.shape[2:4]
    return ((clips.tracks >= 0) & (clips.tracks <= torch.tensor([width - 1, height - 1]))).all(-1)


def test_tracks_start_visible_and_nothing_outside_is(clips):
    assert at_query(clips, clips.visible[..., None]).all()
    assert not (clips.visible & ~inside(clips)).any()
    assert (~clips.visible & inside(clips)).any()


def test_to_image_inverts_to_layer():
    video = ProceduralVideo(SCENE, seed=5, bank=2)
    times = torch.arange(4.0).expand(3, -1)
    layers = video.layers(3, times)
    u = video.uniform(3, 50, 2, low=-0.9, high=0.9)
    layer = torch.randint(
        0, SCENE.objects[1] + 1, (3, 50), generator=torch.Generator().manual_seed(1)
    )
    xy = layers.to_image(u, layer)
    for k in range(SCENE.objects[1] + 1):
        back = layers.to_layer(xy, k).transpose(1, 2)[layer == k]
        assert torch.allclose(back, u[layer == k][:, None].expand_as(back), atol=2e-3)


def test_a_sprite_is_drawn_where_its_tracks_are():
    # One white dot on a black sprite: its centre of mass in every frame is the track of its place.
    video = ProceduralVideo(
        SceneConfig(size=(96, 128), frames=5, objects=(1, 1), radius=(0.3, 0.3)), seed=8, bank=2
    )
    layers = video.layers(2, torch.arange(5.0).expand(2, -1))
    side = 160
    axis = torch.linspace(-1, 1, side)
    dot = torch.exp(-((axis[None] - 0.2) ** 2 + (axis[:, None] + 0.1) ** 2) / (2 * 0.06**2))
    sprites = torch.stack([dot, dot, dot, torch.ones_like(dot)])[None, None].expand(
        2, 1, -1, -1, -1
    )
    image = video.render(layers, [None, None], sprites, torch.zeros(2, 3, 64, 64))[:, :, 0]
    track = layers.to_image(
        torch.tensor([[[0.2, -0.1]]]).expand(2, 1, 2), torch.ones(2, 1, dtype=torch.long)
    )[:, :, 0]
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing='ij')
    mass = image.sum((-1, -2))
    centre = (
        torch.stack([(image * x).sum((-1, -2)), (image * y).sum((-1, -2))], -1) / mass[..., None]
    )
    whole = (
        (mass > 0.5 * mass.amax())
        & (track > 12).all(-1)
        & (track < torch.tensor([116, 84])).all(-1)
    )
    assert whole.any()
    assert (centre - track)[whole].norm(dim=-1).max() < 0.5


def test_a_frame_is_its_layers_one_over_the_other():
    video = ProceduralVideo(SCENE, seed=9, bank=4)
    layers = video.layers(2, torch.arange(11.0).expand(2, -1))
    sprites = video.sprites([None, None])
    sprites[:, 3, 3] = 0  # a sprite that is not there
    ground = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing='ij')
    pixel = torch.stack([x, y], -1).expand(2, 11, 96, 128, 2)
    image = sample(ground, layers.to_layer(pixel, 0), padding='reflection')
    for k in range(sprites.shape[1]):
        rgba = sample(sprites[:, k], layers.to_layer(pixel, k + 1))
        image = image + rgba[:, :, 3:] * (rgba[:, :, :3] - image)
    assert torch.allclose(video.render(layers, [None, None], sprites, ground), image, atol=1e-4)


def test_a_batch_depends_on_nothing_but_the_seed_and_its_number():
    config = BatchConfig(clips=1, points=8, bank=4)
    first, second = (ProceduralSource(SCENE, config, seed=2) for _ in range(2))
    first.batch(0)
    one, two, other = first.batch(1), second.batch(1), second.batch(0)
    assert torch.equal(one.video, two.video) and torch.equal(one.tracks, two.tracks)
    assert torch.equal(one.visible, two.visible) and not torch.equal(one.video, other.video)


def test_sampling_outside_is_transparent():
    image = torch.ones(1, 1, 8, 8)
    u = torch.tensor([[[[[0.0, 0.0], [3.0, 0.0]]]]])
    assert sample(image, u).flatten().tolist() == [1.0, 0.0]


def test_nothing_is_visible_in_a_broken_frame_and_no_query_is_in_one():
    scene = dataclasses.replace(SCENE, frames=8, corruption=1.0)
    clips = ProceduralVideo(scene, seed=4, bank=4).clips(12, 30)
    frames = clips.video.float()
    flat = frames.amax((2, 3, 4)) - frames.amin((2, 3, 4)) < 3  # black or white
    frozen = torch.zeros_like(flat)
    frozen[:, 1:] = (frames[:, 1:] - frames[:, :-1]).abs().amax((2, 3, 4)) == 0
    broken = flat | frozen
    assert flat.any(1).sum() >= 2
    assert (frozen & ~flat).any()
    assert not flat[:, 0].any()
    assert not clips.visible[broken].any()
    assert clips.visible.any(2)[:, 0].all()
    asked = clips.visible.gather(1, clips.query_frame[:, None])
    assert asked.all()


def test_a_post_hides_what_is_behind_it_and_nothing_else():
    scene = dataclasses.replace(SCENE, frames=12, photometric=0.0)
    plain = ProceduralVideo(scene, seed=5, bank=4).clips(4, 40)
    video = ProceduralVideo(dataclasses.replace(scene, occluders=1.0), seed=5, bank=4)
    clips = video.clips(4, 40)
    # Where the picture is another than without the occluder, in every row of some columns.
    changed = (clips.video != plain.video).any(-1).float().mean(2) > 0.5  # (B, T, W)
    assert not changed[:, 0].any() and changed.any(2).any(1).all()
    column = clips.tracks[..., 0].round().long()
    inside = (column >= 0) & (column < changed.shape[2])
    behind = changed.gather(2, column.clamp(0, changed.shape[2] - 1)) & inside
    assert behind.any() and not (clips.visible & behind).any()
    back = behind[:, :-1] & clips.visible[:, 1:]
    assert back.any()  # some come back from behind it
    assert clips.visible.gather(1, clips.query_frame[:, None]).all()


def test_compression_changes_pixels_and_not_tracks():
    plain = ProceduralVideo(SCENE, seed=6, bank=4).clips(2, 10)
    packed = ProceduralVideo(dataclasses.replace(SCENE, jpeg=1.0), seed=6, bank=4).clips(2, 10)
    change = (plain.video.float() - packed.video.float()).abs().mean()
    assert 0 < change < 12
    assert torch.equal(plain.tracks, packed.tracks)


def test_points_prefer_edges():
    video = torch.zeros(1, 2, 3, 20, 30)
    video[..., 15:] = 1.0  # an edge between columns 14 and 15
    xy = torch.tensor([[[14.0, 10.0], [3.0, 10.0], [29.0, 19.0]]])
    there = edges(video, xy, torch.ones(1, 3, dtype=torch.long))
    assert there[0, 0] > 0.9
    assert there[0, 1:].tolist() == [0, 0]


def test_photographs_are_read_and_anything_else_is_told(tmp_path):
    with pytest.raises(ValueError, match=r'no \.jpg or \.png'):
        read_photographs(tmp_path)
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[..., 2] = 200  # red, as OpenCV writes it
    cv2.imwrite(str(tmp_path / 'one.png'), picture)
    (photograph,) = read_photographs(tmp_path)
    assert photograph[3, 4].tolist() == [200, 0, 0]
    (tmp_path / 'two.jpg').write_bytes(b'not a picture')
    with pytest.raises(ValueError, match=r'two\.jpg'):
        read_photographs(tmp_path)
    assert read_photographs('') == []
