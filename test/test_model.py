"""The networks agree with the published ones, and with independent forms of their parts."""

from typing import ClassVar

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from golden_rule import DATA, FAMILY, SMALL, published_state, randomise, video  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from cotracker_ros.model import build_model, cotracker  # noqa: E402
from cotracker_ros.model.checkpoint import model_state  # noqa: E402
from cotracker_ros.model.cotracker import VideoTracks, WindowState, interleave  # noqa: E402
from cotracker_ros.model.embeddings import position_table, sincos, time_table  # noqa: E402
from cotracker_ros.model.sampling import PyramidLayout, reader  # noqa: E402
from cotracker_ros.model.transformer import AttentionBlock, CrossBlock  # noqa: E402

CLOSE = {'rtol': 0, 'atol': 1e-6}
TOLERANCE = {'xy': 1e-6, 'visibility': 1e-7, 'confidence': 1e-7}  # px, probabilities; float64


def small(name, image_size=(64, 96), **changes):
    """A network of the family small enough to run often, float64."""
    changes = {**SMALL, **changes}
    if name == 'cotracker1':
        changes['virtual'] = 0
    return randomise(build_model(name, image_size, **changes)).double()


@pytest.fixture(scope='module')
def golden():
    with np.load(DATA / 'golden.npz') as data:
        return dict(data)


class Remembering(nn.Module):
    """An encoder that encodes each frame once; the golden encoders are all the same one."""

    features: ClassVar = {}

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, frames):
        for frame in frames:
            key = frame.numpy().tobytes()
            if key not in self.features:
                self.features[key] = self.encoder(frame[None])
        return torch.cat([self.features[frame.numpy().tobytes()] for frame in frames])


def golden_network(name):
    model = build_model(name, (96, 128)).double()
    state = model_state(published_state(name))
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    model.encoder = Remembering(model.encoder)
    return model.eval().requires_grad_(False), torch.from_numpy(video()).permute(0, 3, 1, 2)


def assert_golden(tracks, golden, name, suffix):
    expected = {'xy': golden[f'{name}/tracks_{suffix}']}
    expected['visibility'] = golden[f'{name}/visibility_{suffix}']
    # CoTracker 1 and 2 predict no confidence
    none = np.ones_like(expected['visibility'])
    expected['confidence'] = golden.get(f'{name}/confidence_{suffix}', none)
    for field, values in expected.items():
        actual = getattr(tracks, field).numpy()
        np.testing.assert_allclose(actual, values, rtol=0, atol=TOLERANCE[field], err_msg=field)


@pytest.mark.parametrize('name', FAMILY)
def test_features_are_the_published(name, golden):
    model, frames = golden_network(name)
    features = model.encoder(2 * (frames[:1].double() / 255) - 1)[0]
    np.testing.assert_allclose(features[::16], golden['fmap_frame0'], rtol=0, atol=1e-10)


# Four of the networks that slide are run by the test after this one.
@pytest.mark.parametrize(
    'name, iterations',
    [*((name, 1) for name in FAMILY), ('cotracker1', 4), ('cotracker3_offline', 4)],
)
def test_tracks_are_the_published(name, iterations, golden):
    model, frames = golden_network(name)
    queries = torch.from_numpy(golden['queries']).double()
    tracks = model.track(frames, queries, iterations)
    assert_golden(tracks, golden, name, f'iters{iterations}')


@pytest.mark.parametrize('name', ['cotracker2', 'cotracker3_online'])
def test_calls_of_the_online_schedule_are_the_published(name, golden):
    model, frames = golden_network(name)
    window, half = model.config.window, model.config.window // 2
    stream = WindowState(torch.from_numpy(golden['queries'])[None].double())
    pieces = [frames[:window], *frames[window:].split(half)]
    so_far = None
    for call, piece in enumerate(pieces):
        start = stream.start
        estimates, stream = model.advance(stream, piece[None], 4)
        tracks = model.read_out(estimates[-1])
        shown = (tracks.visibility[0], tracks.confidence[0])
        new = torch.cat([tracks.xy[0], torch.stack(shown, -1)], dim=-1)
        so_far = new if so_far is None else torch.cat([so_far[:start], new])
        prefix = f'{name}/online_step{call}'
        np.testing.assert_allclose(so_far[..., :2], golden[f'{prefix}_tracks'], 0, 1e-6)
        np.testing.assert_allclose(so_far[..., 2], golden[f'{prefix}_visibility'], 0, 1e-7)
    assert f'{name}/online_step{len(pieces)}_tracks' not in golden
    xy, visibility, confidence = so_far.split([2, 1, 1], -1)
    whole = VideoTracks(xy, visibility[..., 0], confidence[..., 0])
    assert_golden(whole, golden, name, 'iters4')


CLIP = torch.from_numpy(video(13, 64, 96)).permute(0, 3, 1, 2)
QUERIES = torch.tensor([[0, 20.0, 30], [5, 60.5, 10.25], [3, 90, 60], [0, 5, 50], [11, 44, 32]])


@pytest.mark.parametrize('name', FAMILY)
def test_a_batch_gives_each_clip_what_it_gets_alone(name):
    model = small(name, window=8).requires_grad_(False)
    clips = torch.stack([CLIP, CLIP.flip(0)])
    queries = torch.stack([QUERIES, QUERIES.flip(0) + torch.tensor([1.0, -2, 2])]).double()
    both = model(clips, queries, 2)
    for clip, query, i in zip(clips, queries, range(2), strict=True):
        alone = model.track(clip, query, 2)
        for field in ('xy', 'visibility', 'confidence'):
            torch.testing.assert_close(getattr(both, field)[i], getattr(alone, field), **CLOSE)


@pytest.mark.parametrize('name', FAMILY)
def test_gradients_reach_every_weight(name):
    model = small(name, window=8)
    tracks = model(CLIP[None], QUERIES[None].double(), 2)
    (tracks.xy.sum() + tracks.visibility.sum() + tracks.confidence.sum()).backward()
    still = [key for key, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    # A constant added to all keys changes no softmax.
    assert all(key.endswith('.kv.bias') for key in still), still


def test_a_clip_shorter_than_a_window_is_one_window():
    model = small('cotracker3_online').requires_grad_(False)
    short, queries = CLIP[:5], QUERIES[[0, 2, 3]].double()
    tracks = model.track(short, queries, 2)
    padded = torch.cat([short, short[-1:].expand(11, -1, -1, -1)])
    assert tracks.xy.shape == (5, 3, 2)
    torch.testing.assert_close(tracks.xy, model.track(padded, queries, 2).xy[:5])


def test_future_points_do_not_touch_a_window_that_masks_them():
    model = small('cotracker2', window=8).requires_grad_(False)
    early = model.track(CLIP, QUERIES[:1].double(), 2)
    both = model.track(CLIP, QUERIES[[0, 4]].double(), 2)
    torch.testing.assert_close(both.xy[:4, 0], early.xy[:4, 0])
    assert not torch.allclose(both.xy[8:, 0], early.xy[8:, 0])


@pytest.mark.parametrize(
    'video_shape, queries, message',
    [
        ((13, 3, 60, 96), QUERIES, r'\(13, 3, 60, 96\), expected \(frames, 3, 64, 96\)'),
        ((13, 64, 96, 3), QUERIES, r'video has shape'),
        ((8, 3, 64, 96), QUERIES, r'frames 0 to 11 of a video of 8 frames \(0 to 7\)'),
        ((13, 3, 64, 96), QUERIES - 1, r'frames -1 to 10'),
        ((13, 3, 64, 96), QUERIES[:0], r'\(0, 3\), expected \(points > 0, 3\)'),
        ((13, 3, 64, 96), QUERIES[:, :2], r'queries have shape \(5, 2\)'),
        ((13, 3, 64, 96), QUERIES * float('nan'), r'finite'),
        ((0, 3, 64, 96), QUERIES, r'0 frames'),
    ],
)
def test_what_cannot_be_tracked_is_refused(video_shape, queries, message):
    model = small('cotracker3_online')
    with pytest.raises(ValueError, match=message):
        model.track(torch.zeros(video_shape), queries)


def test_a_window_needs_frames_that_fit_and_an_iteration():
    model = small('cotracker3_online', window=8)
    with pytest.raises(ValueError, match='at least 1'):
        model.track(CLIP, QUERIES, iterations=0)
    with pytest.raises(ValueError, match='13 frames and 2 iterations; at most 8'):
        model.advance(WindowState(QUERIES[None]), CLIP[None], 2)


@pytest.mark.parametrize('name', FAMILY)
def test_comparing_few_points_at_a_time_changes_nothing(name, monkeypatch):
    model = small(name, window=8)
    together = model.track(CLIP, QUERIES, 2)
    monkeypatch.setattr(cotracker, 'COMPARED_TOGETHER', 16)
    torch.testing.assert_close(model.track(CLIP, QUERIES, 2).xy, together.xy, **CLOSE)


def test_unknown_models_and_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"'cotracker4'.*cotracker3_offline, realtime"):
        build_model('cotracker4')
    with pytest.raises(ValueError, match=r'\(384, 510\).*multiples of 4'):
        build_model('cotracker3_online', (384, 510))
    with pytest.raises(ValueError, match=r'window 7'):
        build_model('cotracker2', window=7)
    with pytest.raises(ValueError, match=r'2 levels and 128 channels make a token of 358;'):
        build_model('cotracker2', levels=2)


@pytest.mark.parametrize('padding', ['border', 'zeros'])
def test_patches_are_those_of_grid_sample_in_space_and_time(padding):
    """Against the 5-D grid_sample, which takes the frame as a third coordinate."""
    torch.manual_seed(0)
    frames, height, width, levels = 3, 12, 20, 2
    maps = torch.randn(frames, 5, height, width, dtype=torch.float64)
    layout = PyramidLayout((height, width), levels, zero_border=padding == 'zeros')
    xy = torch.rand(40, 2, dtype=torch.float64) * torch.tensor([width + 12.0, height + 12]) - 6
    xy[:4] = torch.tensor([[0.0, 0], [width - 1, height - 1], [3, 4], [-30, 90]])
    frame = torch.arange(40) % frames
    patches = layout.patches(reader(layout.flatten(maps), frame), xy, 3)
    assert patches.shape == (40, levels, 49, 5)
    for level in range(levels):
        pooled = F.avg_pool2d(maps, 2**level)
        h, w = pooled.shape[2:]
        a = torch.arange(7.0) - 3
        offsets = torch.stack(torch.meshgrid(a, a, indexing='ij'), -1).reshape(49, 2)
        at = xy[:, None] / 2**level + offsets
        scale = torch.tensor([2 / (w - 1), 2 / (h - 1)], dtype=torch.float64)
        time = (frame * (2 / (frames - 1)) - 1)[:, None, None].expand(-1, 49, 1)
        grid = torch.cat([at * scale - 1, time], -1)[None, :, :, None]
        volume = pooled.transpose(0, 1)[None]
        expected = F.grid_sample(volume, grid, padding_mode=padding, align_corners=True)
        expected = expected[0, :, :, :, 0].permute(1, 2, 0)
        torch.testing.assert_close(patches[:, level], expected)


def test_the_position_table_is_the_bilinear_two_dimensional_one():
    height, width, size = 6, 9, 24
    x = sincos(torch.arange(width, dtype=torch.float64), size // 2).expand(height, -1, -1)
    y = sincos(torch.arange(height, dtype=torch.float64), size // 2)[:, None].expand(-1, width, -1)
    table = torch.cat([x, y], -1).permute(2, 0, 1)[None]
    xy = torch.rand(30, 2, dtype=torch.float64) * 12 - 1
    grid = (2 * xy / torch.tensor([width - 1, height - 1]) - 1)[None, :, None]
    expected = F.grid_sample(table, grid, padding_mode='border', align_corners=True)[0, :, :, 0].T
    torch.testing.assert_close(position_table(xy, (height, width), size), expected)


def test_a_time_table_is_stretched_over_longer_clips():
    table = time_table(60, 60, 12)
    assert table[0].tolist() == [0] * 6 + [1] * 6
    assert table[7, 0] == np.sin(7) and table[7, 6] == np.cos(7)
    longer = time_table(120, 60, 12)
    torch.testing.assert_close(longer[20], 0.75 * table[10] + 0.25 * table[9])


def test_correlation_with_the_template_itself_is_its_gram_matrix():
    model = small('cotracker3_online').requires_grad_(False)
    rows = model.encode(CLIP[:1])
    read = reader(rows, torch.zeros(1, 1, dtype=torch.long))
    xy = torch.tensor([[[11.3, 7.8]]], dtype=torch.float64)
    template = model.patches(read, xy)
    got = model.update.correlation(template[:, :, None], template)[0, 0, 0]
    for level, values in enumerate(got.chunk(4)):
        points = template[0, 0, level]
        gram = torch.tensor([[float(p @ q) for q in points] for p in points], dtype=rows.dtype)
        torch.testing.assert_close(values, model.update.correlation.mlp(gram.flatten()))
    # Features are of unit length: at a pixel's centre a position correlates with itself to 1.
    centre = model.patches(read, xy.round())[0, 0, 0]
    torch.testing.assert_close((centre * centre).sum(-1), torch.ones(49, dtype=rows.dtype))


def test_pairs_of_the_first_weights_interleave_across_points():
    mask = torch.tensor([[[1, 2], [3, 4], [5, 6]]])
    logit = 10 * mask
    queried = torch.tensor([[4.0, 0.0, 9.0]])
    joined = torch.tensor([[True, True, False]])
    # in the order of queries: point 1, point 0; point 2 is absent
    flat = [3, 4, 1, 2, 30, 40, 10, 20]
    pairs = interleave(mask, logit, queried, joined)[0]
    assert pairs[1].tolist() == [flat[0:2], flat[2:4]]
    assert pairs[0].tolist() == [flat[4:6], flat[6:8]]


def test_masked_context_is_as_if_absent_and_a_blind_row_is_uniform():
    torch.manual_seed(0)
    x, context = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    block = CrossBlock(16, 4)
    shown = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(block(x, context, shown[None, None]), block(x, context[:, shown]))
    values = block.attention.kv(block.norm_context(context))[..., 16:].mean(1, keepdim=True)
    blind = block.attention(x, block.norm_context(context), torch.zeros(1, 1, 5, dtype=torch.bool))
    torch.testing.assert_close(blind, block.attention.out(values).expand(-1, 3, -1))
    block = AttentionBlock(16, 2)
    torch.testing.assert_close(block(x, torch.ones(1, 3, 3, dtype=torch.bool)), block(x))
