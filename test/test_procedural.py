"""The procedural video: tracks, visibility and pixels agree; the stream is a function of its
seed.
"""

import pytest

torch = pytest.importorskip('torch')

from train.procedural import ProceduralVideo, SceneConfig, sample  # noqa: E402
from train.stream import ClipStream, StreamConfig  # noqa: E402

SCENE = SceneConfig(size=(96, 128), frames=6, photometric=0.0)


@pytest.fixture(scope='module')
def clips():
    """Four clips without photometric change."""
    return ProceduralVideo(SCENE, seed=3, bank=8).clips(4, 200)


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
    image = video.render(layers, sprites, torch.zeros(2, 3, 64, 64))[:, :, 0]
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


def test_a_stream_resumes_exactly():
    config = StreamConfig(clips=1, points=8)
    first, second = (
        iter(ClipStream(SCENE, config, seed=2)),
        iter(ClipStream(SCENE, config, seed=2, start=1)),
    )
    next(first)
    for one, two in zip(vars(next(first)).values(), vars(next(second)).values(), strict=True):
        assert torch.equal(one, two)


def test_sampling_outside_is_transparent():
    image = torch.ones(1, 1, 8, 8)
    u = torch.tensor([[[[[0.0, 0.0], [3.0, 0.0]]]]])
    assert sample(image, u).flatten().tolist() == [1.0, 0.0]
