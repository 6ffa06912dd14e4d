"""The predictors against the networks themselves, with hand-built queries and thresholds."""

import gc

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('safetensors')

from golden_rule import SMALL, published_state, randomise, video  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from cotracker_ros import predictor as module  # noqa: E402
from cotracker_ros.model import build_model  # noqa: E402
from cotracker_ros.points import support_grid  # noqa: E402
from cotracker_ros.predictor import (  # noqa: E402
    CoTrackerOnlinePredictor,
    CoTrackerPredictor,
)

SIZE = (64, 96)
VIDEO = torch.from_numpy(video(13, 48, 72)).permute(0, 3, 1, 2)[None].float()
SCALE = torch.tensor([95 / 71, 63 / 47])
QUERIES = torch.tensor([[[0, 20.0, 30], [5, 60.5, 10.25], [12, 3, 40]]])
CLOSE = {'rtol': 0, 'atol': 1e-3}  # px; float32


@pytest.fixture(autouse=True)
def few_iterations(monkeypatch):
    monkeypatch.setattr(module, 'ITERATIONS', 2)


def small(kind, name):
    predictor = kind(None)
    predictor.model = randomise(build_model(name, SIZE, **SMALL, window=8))
    return predictor.eval()


@pytest.fixture(scope='module')
def offline():
    return small(CoTrackerPredictor, 'cotracker3_offline')


def frames_of(video):
    return F.interpolate(video[0], SIZE, mode='bilinear', align_corners=True)


def support_queries():
    y, x = torch.linspace(1.5, 62.5, 6), torch.linspace(1.5, 94.5, 6)
    return torch.tensor([[0, b, a] for a in y for b in x])


def grid_of(side):
    return torch.from_numpy(support_grid(side, SIZE)).float()


def expect(model, video, queries):
    """Tracks in video pixels and visibility, of queries (N, 3) in model pixels."""
    tracks = model.track(frames_of(video), queries, 2)
    return tracks.xy / SCALE, tracks.visibility


def test_queries_are_tracked_with_a_support_grid(offline):
    tracks, visible = offline(VIDEO, queries=QUERIES)
    queries = torch.cat([QUERIES[0, :, :1], QUERIES[0, :, 1:] * SCALE], 1)
    xy, visibility = expect(offline.model, VIDEO, torch.cat([queries, support_queries()]))
    assert tracks.shape == (1, 13, 3, 2) and visible.shape == (1, 13, 3)
    assert visible.dtype == torch.bool
    others = torch.ones(13, 3, dtype=torch.bool)
    for n, (t, x, y) in enumerate(QUERIES[0].tolist()):
        assert tracks[0, int(t), n].tolist() == pytest.approx([x, y], abs=1e-4)
        assert visible[0, int(t), n]
        others[int(t), n] = False
    torch.testing.assert_close(tracks[0][others], xy[:, :3][others], **CLOSE)
    assert torch.equal(visible[0][others], (visibility > 0.9)[:, :3][others])


def test_backward_tracking_fills_the_frames_before_a_query(offline):
    forward, _ = offline(VIDEO, queries=QUERIES)
    mirrored = torch.cat([12 - QUERIES[..., :1], QUERIES[..., 1:]], -1)
    support = torch.cat([torch.full((36, 1), 12.0), support_queries()[:, 1:]], 1)
    queries = torch.cat([torch.cat([mirrored[0, :, :1], mirrored[0, :, 1:] * SCALE], 1), support])
    backward = expect(offline.model, VIDEO.flip(1), queries)[0].flip(0)
    both, visible = offline(VIDEO, queries=QUERIES, backward_tracking=True)
    for n, t in enumerate((0, 5, 12)):
        torch.testing.assert_close(both[0, t:, n], forward[0, t:, n], **CLOSE)
        torch.testing.assert_close(both[0, :t, n], backward[:t, n], **CLOSE)
    assert visible.shape == (1, 13, 3)


def test_a_plain_grid_has_no_support(offline):
    tracks, _ = offline(VIDEO, grid_size=3, grid_query_frame=4)
    queries = torch.cat([torch.full((9, 1), 4.0), grid_of(3)], 1)
    xy, _ = expect(offline.model, VIDEO, queries)
    torch.testing.assert_close(tracks[0, 5:], xy[5:], **CLOSE)
    torch.testing.assert_close(tracks[0, 4], grid_of(3) / SCALE, **CLOSE)


def test_a_mask_keeps_the_grid_points_it_covers(offline):
    mask = torch.zeros(1, 1, 48, 72)
    mask[..., :24, :40] = 1
    tracks, _ = offline(VIDEO, grid_size=4, segm_mask=mask)
    grid = grid_of(4)
    kept = grid[(grid[:, 0] < 40 / 72 * 96) & (grid[:, 1] < 32)]
    assert len(kept) == 4
    queries = torch.cat([torch.cat([torch.zeros(4, 1), kept], 1), support_queries()])
    xy, _ = expect(offline.model, VIDEO, queries)
    torch.testing.assert_close(tracks[0, 1:], xy[1:, :4], **CLOSE)
    with pytest.raises(ValueError, match='covers no point'):
        offline(VIDEO, grid_size=4, segm_mask=0 * mask)
    with pytest.raises(ValueError, match=r'segm_mask has shape \(48, 72\)'):
        offline(VIDEO, grid_size=4, segm_mask=mask[0, 0])


def test_without_points_every_pixel_is_tracked(offline, monkeypatch):
    monkeypatch.setattr(module, 'DENSE_GRID', 24)  # 72 // 24: a grid of step 3, nine times
    video = VIDEO[:, :4]
    tracks, visible = offline(video, grid_query_frame=1)
    assert tracks.shape == (1, 4, 48 * 72, 2) and visible.shape == (1, 4, 48 * 72)
    pixels = {tuple(p) for p in tracks[0, 1].round().int().tolist()}
    assert pixels == {(x, y) for x in range(72) for y in range(48)}
    grid = [(x, y) for y in range(0, 48, 3) for x in range(0, 72, 3)]
    second = torch.tensor([[1, (x + 1) * SCALE[0], y * SCALE[1]] for x, y in grid])
    xy, _ = expect(offline.model, video, second)
    torch.testing.assert_close(tracks[0, 3, 384:768], xy[3], **CLOSE)


def test_clips_of_a_batch_are_tracked_each_for_itself(offline):
    clips = torch.cat([VIDEO, VIDEO.flip(1)])
    queries = torch.cat([QUERIES, QUERIES.flip(1)])
    both, visible = offline(clips, queries=queries)
    for i in range(2):
        alone = offline(clips[i : i + 1], queries=queries[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone[0], **CLOSE)
        assert torch.equal(visible[i : i + 1], alone[1])


@pytest.mark.parametrize('support', [False, True])
@pytest.mark.parametrize('name', ['cotracker2', 'cotracker3_online'])
def test_chunks_give_what_the_whole_video_gives(name, support):
    online = small(CoTrackerOnlinePredictor, name)
    step = online.step
    assert step == 4
    for _ in range(2):  # the second video starts afresh
        first = online(VIDEO[:, :8], is_first_step=True, queries=QUERIES, add_support_grid=support)
        assert first == (None, None)
        for start in range(0, 13 - step, step):
            chunk = VIDEO[:, start : start + 2 * step]
            tracks, visible = online(video_chunk=chunk)
            assert tracks.shape == (1, min(start + 8, 13), 3, 2)
    queries = torch.cat([QUERIES[0, :, :1], QUERIES[0, :, 1:] * SCALE], 1)
    queries = torch.cat([queries, support_queries()]) if support else queries
    whole = online.model.track(frames_of(VIDEO), queries, 2)
    torch.testing.assert_close(tracks[0], (whole.xy / SCALE)[:, :3], **CLOSE)
    visibility = (whole.visibility * whole.confidence)[:, :3]
    clear = (visibility - 0.6).abs() > 1e-4
    assert torch.equal(visible[0][clear], (visibility > 0.6)[clear])


def live_features(channels):
    """Bytes of all feature tensors alive, those reached through views of them included."""
    storages = (
        o.untyped_storage()
        for o in gc.get_objects()
        if type(o) is torch.Tensor and o.ndim > 2 and o.shape[-1] == channels
    )
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@pytest.mark.parametrize('name', ['cotracker1', 'cotracker2', 'cotracker3_online'])
def test_a_long_video_holds_no_more_features_than_a_short_one(name, monkeypatch):
    monkeypatch.setattr(module, 'ITERATIONS', 1)
    # 20: a size that nothing else has
    changes = {**SMALL, 'window': 8, 'channels': 20, 'depth': 1}
    if name == 'cotracker1':
        del changes['virtual']
    network = randomise(build_model(name, SIZE, **changes))
    predictor = CoTrackerPredictor(None)
    predictor.model = network
    held, encode = [], network.encode

    def watched(frames):
        held.append(live_features(20))
        return encode(frames)

    network.encode = watched
    most = []
    for frames in (13, 37):
        held.clear()
        predictor(VIDEO[:, torch.arange(frames) % 13], queries=QUERIES)
        most.append(max(held))
    assert len(held) >= 8 and most[0] > 0
    assert most[1] <= most[0]


def test_the_real_time_model_goes_from_frame_to_frame(tmp_path):
    from safetensors.torch import save_file

    from cotracker_ros.streaming.image import resize

    torch.manual_seed(0)
    model = build_model('realtime', SIZE).eval()
    torch.nn.init.normal_(model.refiner.head[1].weight, std=0.1)  # fresh heads hardly move
    path = tmp_path / 'random.safetensors'
    save_file(model.state_dict(), path)
    predictor = CoTrackerPredictor(path)
    assert predictor.model.facts.causal and predictor.interp_shape == (256, 416)
    predictor.model = model  # smaller frames
    video = VIDEO[:, :4].round()
    queries = torch.tensor([[[0, 20.0, 30], [2, 60.5, 10.25]]])
    tracks, visible = predictor(video, queries=queries)
    size = model.facts.picture_size
    frames = [resize(f, size) for f in video[0].to(torch.uint8).permute(0, 2, 3, 1).numpy()]
    frames = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
    asked = torch.cat([queries[0, :, :1], (queries[0, :, 1:] + 0.5) * 4 / 3 - 0.5], 1)
    alone = model.track(frames, asked)  # no support points beside them
    after = torch.arange(4)[:, None] > queries[0, :, 0]
    expected = (alone.xy + 0.5) * 3 / 4 - 0.5
    torch.testing.assert_close(tracks[0][after], expected[after], **CLOSE)
    seen = alone.visibility > 0.5
    assert visible[0][after].tolist() == seen[after].tolist()
    both, _ = predictor(video, queries=queries, backward_tracking=True)
    mirrored = torch.cat([3 - queries[..., :1], queries[..., 1:]], -1)
    back, _ = predictor(video.flip(1), queries=mirrored)
    torch.testing.assert_close(both[0, :2, 1], back[0].flip(0)[:2, 1], **CLOSE)
    assert (both[0, :2, 1] - queries[0, 1, 1:]).abs().max() > 0.01
    torch.testing.assert_close(both[0, 2:], tracks[0, 2:], **CLOSE)
    with pytest.raises(ValueError, match='takes frames and not chunks'):
        CoTrackerOnlinePredictor(path)


def test_online_grids_start_where_they_are_asked_to():
    online = small(CoTrackerOnlinePredictor, 'cotracker3_online')
    online(VIDEO[:, :8], is_first_step=True, grid_size=2, grid_query_frame=3)
    tracks, _ = online(VIDEO[:, :8])
    queries = torch.cat([torch.full((4, 1), 3.0), grid_of(2)], 1)
    xy, _ = expect(online.model, VIDEO[:, :8], queries)
    torch.testing.assert_close(tracks[0], xy, **CLOSE)


def test_impossible_requests_are_refused(offline):
    nan = QUERIES * torch.tensor([1, float('nan'), 1])
    for arguments, message in (
        ({'video': VIDEO[0]}, r'video has shape \(13, 3, 48, 72\)'),
        ({'video': VIDEO.permute(0, 1, 3, 4, 2)}, 'expected .clips, frames, 3'),
        ({'video': VIDEO[:, :0]}, 'video has shape'),
        ({'video': VIDEO[:, :6], 'queries': QUERIES}, 'frames 0 to 12 of a video of 6 frames'),
        ({'video': VIDEO, 'queries': QUERIES[0]}, r'\(3, 3\), expected \(1, points > 0, 3\)'),
        ({'video': VIDEO, 'queries': QUERIES[:, :0]}, r'expected \(1, points > 0, 3\)'),
        ({'video': VIDEO, 'queries': nan}, 'finite'),
        ({'video': VIDEO, 'grid_size': -1}, 'grid_size is -1'),
        ({'video': VIDEO, 'grid_size': 2, 'grid_query_frame': 13}, 'is 13, it must be 0 to 12'),
    ):
        with pytest.raises(ValueError, match=message):
            offline(**arguments)
    online = small(CoTrackerOnlinePredictor, 'cotracker3_online')
    with pytest.raises(ValueError, match='is_first_step'):
        online(VIDEO[:, :8])
    with pytest.raises(ValueError, match='no points'):
        online(VIDEO, is_first_step=True, grid_size=0)
    online(VIDEO, is_first_step=True)
    with pytest.raises(ValueError, match='13 frames: it needs 1 to 8'):
        online(VIDEO)
    online(VIDEO[:, :8])
    with pytest.raises(ValueError, match='4 frames: it needs 5 to 8'):
        online(VIDEO[:, 8:12])
    online(VIDEO[:, 4:11])
    with pytest.raises(ValueError, match='ends a video'):
        online(VIDEO[:, 7:13])


def test_checkpoints_must_hold_what_is_asked_for(tmp_path):
    path = tmp_path / 'scaled_online.pth'
    torch.save(published_state('cotracker3_online'), path)
    online = CoTrackerOnlinePredictor(checkpoint=str(path))
    assert online.step == 8 and online.interp_shape == (384, 512)
    assert CoTrackerPredictor(checkpoint=path, offline=False, window_len=16).to('cpu').model
    with pytest.raises(ValueError, match=r'holds cotracker3_online; offline=True, v2=False is'):
        CoTrackerPredictor(checkpoint=path)
    with pytest.raises(ValueError, match='window_len=16, not 60'):
        CoTrackerPredictor(checkpoint=path, offline=False)
    with pytest.raises(ValueError, match='offline network cannot'):
        CoTrackerOnlinePredictor(None, offline=True)
    with pytest.raises(FileNotFoundError, match='scaled_offline'):
        CoTrackerPredictor()
