"""The embedding of a body's keypoints: only named points are told, and files say whether it is."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from golden_rule import published_state, randomise, video  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from cotracker_ros.engines import spec  # noqa: E402
from cotracker_ros.geometry import rescale  # noqa: E402
from cotracker_ros.model import build_model, load_checkpoint  # noqa: E402
from cotracker_ros.model.checkpoint import checkpoint_metadata, mixture_of  # noqa: E402
from cotracker_ros.model.registry import build_step  # noqa: E402
from cotracker_ros.predictor import CoTrackerOnlinePredictor, CoTrackerPredictor  # noqa: E402

SIZE, SMALL = (64, 96), {'window': 4, 'depth': 1, 'width': 48, 'heads': 2, 'virtual': 4}
QUERIES = torch.tensor([[0, 20.0, 30], [0, 50, 40], [1, 70, 20]])


def clip_of(frames):
    """A clip (T, 3, H, W)."""
    return torch.from_numpy(video(frames, *SIZE)).permute(0, 3, 1, 2).float()


@pytest.fixture
def model():
    """A small CoTracker 2 with an embedding of 17 keypoints."""
    return randomise(build_model('cotracker2', SIZE, keypoints=17, **SMALL)).eval()


@pytest.fixture
def plain(model):
    """The same network without the embedding."""
    other = build_model('cotracker2', SIZE, **SMALL)
    state = model.state_dict()
    del state['keypoints.table']
    other.load_state_dict(state)
    return other.eval()


def test_the_table_is_drawn_small_and_absent_without_keypoints():
    model = build_model('cotracker2', keypoints=17)
    assert model.keypoints.table.shape == (17, 1, 456)
    assert model.keypoints.table.std().item() == pytest.approx(0.1, rel=0.03)
    assert 'keypoints.table' not in build_model('cotracker2').state_dict()
    with pytest.raises(ValueError, match='keypoints is -1'):
        build_model('cotracker2', keypoints=-1)


def test_only_points_that_are_named_are_told_and_others_see_them_change(model, plain):
    clip = clip_of(6)
    without = plain.track(clip, QUERIES, 2)
    for keypoints in (None, torch.tensor([-1, -1, -1])):
        tracks = model.track(clip, QUERIES, 2, keypoints)
        torch.testing.assert_close(tracks.xy, without.xy, rtol=0, atol=0)
    nose, wrist = (model.track(clip, QUERIES, 2, torch.tensor([n, -1, -1])) for n in (0, 9))
    assert not torch.allclose(nose.xy[:, 0], without.xy[:, 0], atol=1e-3)
    assert not torch.allclose(nose.xy[:, 0], wrist.xy[:, 0], atol=1e-3)
    # Clips of a batch have their own numbers, and gradients reach the rows that are used alone.
    both = model(clip[None].expand(2, -1, -1, -1, -1), QUERIES.expand(2, -1, -1), 2,
                 torch.tensor([[0, -1, -1], [9, -1, -1]]))  # fmt: skip
    torch.testing.assert_close(both.xy[0], nose.xy, rtol=0, atol=1e-3)
    torch.testing.assert_close(both.xy[1], wrist.xy, rtol=0, atol=1e-3)
    both.xy.square().sum().backward()
    used = model.keypoints.table.grad.abs().sum((1, 2)) > 0
    assert used.nonzero().flatten().tolist() == [0, 9]


def test_keypoints_that_a_network_cannot_take_are_refused(model, plain):
    clip, ask = clip_of(4), QUERIES[:2]
    with pytest.raises(ValueError, match='this network has no keypoint embedding'):
        plain.track(clip, ask, 1, torch.tensor([0, 1]))
    with pytest.raises(
        ValueError, match='17 is no keypoint of this network: they go from 0 to 16'
    ):
        model.track(clip, ask, 1, torch.tensor([0, 17]))
    with pytest.raises(ValueError, match='keypoints must be 2 whole numbers'):
        model.track(clip, ask, 1, torch.tensor([0]))


def test_checkpoints_with_an_embedding_are_told_by_its_key(tmp_path):
    state = published_state('cotracker2')
    torch.save(state, tmp_path / 'cotracker2.pth')
    assert load_checkpoint(tmp_path / 'cotracker2.pth', SIZE).keypoints is None
    table = torch.randn(17, 1, 456)
    path = tmp_path / 'kubrics50_posetrack50_present.pth'
    torch.save({**state, 'kp_emb': table}, path)
    model = load_checkpoint(path, SIZE)
    assert model.config.keypoints == 17 and torch.equal(model.keypoints.table, table)
    assert model.facts.origin.licence == 'CC-BY-NC-4.0'
    assert 'trained on 50 % kubrics, 50 % posetrack' in model.facts.origin.provenance

    ours = tmp_path / 'ours.safetensors'
    save_file(model.state_dict(), ours, checkpoint_metadata(model))
    again = load_checkpoint(ours, SIZE)
    assert again.config == model.config and torch.equal(again.keypoints.table, table)
    # A file whose metadata know no embedding, and one of another width.
    save_file(model.state_dict(), ours, checkpoint_metadata(build_model('cotracker2', SIZE)))
    with pytest.raises(ValueError, match=r'do not fit; unexpected: keypoints\.table'):
        load_checkpoint(ours, SIZE)
    torch.save({**state, 'kp_emb': table[..., :100]}, path)
    with pytest.raises(ValueError, match=r'of another shape: keypoints\.table'):
        load_checkpoint(path, SIZE)


def test_names_of_files_say_what_they_were_trained_on():
    told = 'trained on 75 % kubrics, 25 % posetrack, keypoint embedding absent'
    assert mixture_of('kubrics75_posetrack25_absent.pth') == told
    assert mixture_of('kubrics100_posetrack0_present_pose_only.pth').endswith('present pose only')
    for name in ('cotracker2.pth', 'scaled_online.pth', 'kubrics75_posetrack50_present.pth',
                 'cotracker_stride_4_wind_8.pth', 'present.pth'):  # fmt: skip
        assert mixture_of(name) == ''


def test_the_predictor_tells_the_network(model, plain):
    clip = clip_of(6)[None]
    predictor = CoTrackerPredictor(None, v2=True).eval()
    predictor.model, numbers = model, torch.tensor([3, -1, 5])
    ask = QUERIES[None]
    told, untold = predictor(clip, ask, keypoints=numbers)[0], predictor(clip, ask)[0]
    assert not torch.allclose(told, untold, atol=1e-2)
    assert torch.equal(predictor(clip, ask, keypoints=numbers.tolist())[0], told)
    back = predictor(clip, ask, backward_tracking=True, keypoints=numbers)[0]
    torch.testing.assert_close(back[:, 1:], told[:, 1:], rtol=0, atol=1e-3)
    # 17 queries of one frame are not taken for a pose.
    many = torch.cat([torch.zeros(17, 1), 20 + 30 * torch.rand(17, 2)], 1)[None]
    unsaid = predictor(clip, many)[0]
    predictor.model = plain
    torch.testing.assert_close(predictor(clip, many)[0], unsaid, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match='no keypoint embedding'):
        predictor(clip, ask, keypoints=numbers)
    with pytest.raises(ValueError, match='keypoints are of queries'):
        predictor(clip, grid_size=2, keypoints=numbers)


def test_the_predictor_of_chunks_tells_the_network(model, plain):
    clip, numbers = clip_of(6)[None], torch.tensor([3, -1, 5])
    whole, chunks = CoTrackerPredictor(None, v2=True), CoTrackerOnlinePredictor(None, v2=True)
    whole.model = chunks.model = model

    def run(**told):
        chunks(clip, is_first_step=True, queries=QUERIES[None], add_support_grid=True, **told)
        return [chunks(clip[:, k : k + 4])[0] for k in (0, 2)][-1]

    told = run(keypoints=numbers)
    assert not torch.allclose(told, run(), atol=1e-2)
    want = whole(clip, QUERIES[None], keypoints=numbers)[0]
    # Before its query, and in it, the predictor of whole videos puts a point at its query.
    torch.testing.assert_close(told[:, 2:], want[:, 2:], rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match='keypoints are of queries'):
        chunks(clip, is_first_step=True, keypoints=numbers)
    with pytest.raises(ValueError, match='17 is no keypoint of this network'):
        run(keypoints=torch.tensor([17, 0, 0]))
    chunks.model = plain
    with pytest.raises(ValueError, match='no keypoint embedding'):
        run(keypoints=numbers)


def test_the_step_takes_keypoints_where_the_network_has_them(model, plain):
    step, other = build_step(model, 1), build_step(plain, 1)
    assert 'keypoint' in step.takes and other.takes == spec.REQUIRED
    frames = torch.from_numpy(video(5, *SIZE))

    def run(step, numbers):
        state, xy = step.initial_state(1, 4), []
        for t, frame in enumerate(frames):
            inputs = {
                'image': frame[None], 'query': torch.tensor([[t == 0, t == 0, False, False]]),
                'query_xy': 20 + 10 * torch.arange(8.0).view(1, 4, 2),
                'query_age': torch.zeros(1, 4, dtype=torch.int32),
                'live': torch.tensor([[True, True, False, False]]),
                'keypoint': torch.tensor([numbers], dtype=torch.int32),
            }  # fmt: skip
            with torch.no_grad():
                outputs, state = step({n: inputs[n] for n in step.takes}, state)
            xy.append(outputs['xy'])
        return torch.cat(xy)

    untold = run(other, [-1] * 4)
    torch.testing.assert_close(run(step, [-1] * 4), untold, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match='an embedding of 5 keypoints, but streams name 17'):
        build_step(build_model('cotracker2', SIZE, keypoints=5, **SMALL))
    told = run(step, [3, -1, -1, -1])
    assert not torch.allclose(told[1:, 0], untold[1:, 0], atol=1e-3)
    torch.testing.assert_close(run(step, [3, -1, 8, 16]), told, rtol=0, atol=1e-5)  # not live


def test_the_real_time_model_is_told_in_the_same_way(tmp_path):
    torch.manual_seed(2)
    size, few = (96, 128), {'encoder': 'pyramid', 'width': 32, 'heads': 2, 'virtual': 4}
    model = build_model('realtime', size, keypoints=17, **few).eval()
    assert model.keypoints.table.shape == (17, 1, 32)
    plain = build_model('realtime', size, **few).eval()
    assert plain.keypoints is None and 'keypoint' not in build_step(plain).takes
    state = model.state_dict()
    plain.load_state_dict({n: v for n, v in state.items() if n != 'refiner.keypoints.table'})
    clip = torch.from_numpy(video(5)[:, :96, :128]).permute(0, 3, 1, 2).float()
    ask = torch.tensor([[0, 40.0, 50], [0, 90, 30]])
    without = plain.track(clip, ask)
    same = model.track(clip, ask, keypoints=torch.tensor([-1, -1]))
    torch.testing.assert_close(same.xy, without.xy, rtol=0, atol=0)
    told = model.track(clip, ask, keypoints=torch.tensor([9, -1]))
    assert not torch.equal(told.visibility[1:, 0], without.visibility[1:, 0])
    with pytest.raises(ValueError, match='no keypoint embedding'):
        plain.track(clip, ask, keypoints=torch.tensor([9, -1]))
    path = tmp_path / 'body.safetensors'
    save_file(state, path, checkpoint_metadata(model))
    assert load_checkpoint(path, size).config.keypoints == 17


def test_an_exported_model_takes_keypoints_on_a_stream(exported, small_checkpoint):
    from cotracker_ros.streaming import StreamingTracker

    model = load_checkpoint(small_checkpoint, SIZE)
    clip, ask = clip_of(5), np.array([[40.0, 50], [60, 30]])
    queries = torch.from_numpy(np.column_stack([np.zeros(2), ask])).float()
    # The pictures that the network makes of the clip itself, so that nothing is resized twice.
    size = model.facts.picture_size
    pictures = torch.nn.functional.interpolate(clip, size, mode='bilinear').round().byte()
    tracker = StreamingTracker(exported, 3, engine='onnxruntime', threads=1)  # in float32

    def run(numbers):
        tracker.reset()
        tracker.add_points(rescale(ask, SIZE, size), keypoints=numbers)
        frames = enumerate(pictures.permute(0, 2, 3, 1).contiguous().numpy())
        found = [rescale(tracker.track(frame, t / 30).xy, size, SIZE) for t, frame in frames]
        given = None if numbers is None else torch.from_numpy(numbers)
        with torch.no_grad():
            want = model.track(clip, queries, iterations=1, keypoints=given).xy.numpy()
        np.testing.assert_allclose(np.stack(found), want, rtol=0, atol=1e-3)
        return want

    untold, wrist, ankle = run(None), run(np.array([9, -1])), run(np.array([15, -1]))
    for one, other in ((wrist, untold), (ankle, untold), (wrist, ankle)):
        assert np.abs(one - other)[1:, 0].max() > 0.03
    run(np.array([-1, -1]))
