"""StreamingTracker over the stand-in step: identities, starts, and everything out of order."""

import itertools
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import stand_in_step

from cotracker_ros import engines
from cotracker_ros.streaming import (
    MAX_INSTANCE,
    NEW,
    OUTSIDE,
    QUERY_FRAME,
    VISIBLE,
    LateFrame,
    StreamingTracker,
    table,
)

SIZE = (64, 96)  # of the camera: twice the stand-in's model image, so 1 model pixel is 2 here
WHITE = np.full((*SIZE, 3), 255, np.uint8)


@pytest.fixture
def tracker(tmp_path):
    path = stand_in_step.write(tmp_path / 'm.onnx')
    with_threads = StreamingTracker(path, max_points=6, threads=1)
    yield with_threads
    with_threads.close()


def test_neither_torch_nor_ros_is_imported():
    code = (
        'import sys, cotracker_ros.streaming, cotracker_ros.engines\n'
        'cotracker_ros.streaming.StreamingTracker\n'
        'bad = {"torch", "rclpy", "onnx", "openvino"} & set(sys.modules)\n'
        'sys.exit(f"imported {bad}" if bad else 0)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_point_starts_where_it_was_put_and_moves_in_camera_pixels(tracker):
    ids = tracker.add_points([[10.0, 20.0], [30.5, 40.25]])
    assert ids.dtype == np.uint32 and ids.tolist() == [1, 2]
    first = tracker.track(WHITE, 0.0)
    np.testing.assert_allclose(first.xy, [[10, 20], [30.5, 40.25]], atol=1e-5)
    assert first.flags.tolist() == [VISIBLE | NEW | QUERY_FRAME] * 2
    assert first.age.tolist() == [0, 0] and first.xy.dtype == np.float32
    second = tracker.track(WHITE, 0.1)
    np.testing.assert_allclose(second.xy, [[12, 20], [32.5, 40.25]], atol=1e-5)
    assert second.flags.tolist() == [VISIBLE] * 2 and second.age.tolist() == [1, 1]
    assert second.stamp == 0.1 and second.visible.all()


def test_visible_needs_visibility_times_confidence(tracker):
    tracker.add_points([[10, 20]])
    tracker.track(WHITE, 0.0)
    assert tracker.track(np.full((*SIZE, 3), 160, np.uint8), 0.1).visible.all()
    dark = tracker.track(np.full((*SIZE, 3), 140, np.uint8), 0.2)
    assert not dark.visible.any() and dark.visibility.tolist() == [1]


@pytest.mark.parametrize(
    'stamp, age',
    [
        (0.9, 0),  # a frame that comes later: waits for it
        (0.85, 0),  # between the last one and the next: starts in the next
        (0.8, 1),
        (0.7, 2),
        (0.6, 3),  # frames given
        (0.65, 2),  # between two frames given: the first not before it
        (None, 0),
    ],
)
def test_a_stamp_says_in_which_frame_a_point_starts(tracker, stamp, age):
    for k in range(9):
        tracker.track(WHITE, k / 10)
    (new,) = tracker.add_points([[10, 20]], stamp)
    tracks = tracker.track(WHITE, 0.9)
    assert tracks.ids.tolist() == [new] and tracks.age.tolist() == [age]
    np.testing.assert_allclose(tracks.xy, [[10 + 2 * age, 20]], atol=1e-4)
    assert tracks.flags[0] == VISIBLE | NEW | (QUERY_FRAME if age == 0 else 0)


def test_a_point_of_a_future_frame_waits(tracker):
    tracker.track(WHITE, 0.0)
    (new,) = tracker.add_points([[10, 20]], 0.25)
    assert not len(tracker.track(WHITE, 0.1)) and not len(tracker.track(WHITE, 0.2))
    assert tracker.waiting.tolist() == tracker.ids.tolist() == [new]
    assert tracker.track(WHITE, 0.3).flags.tolist() == [VISIBLE | NEW | QUERY_FRAME]
    assert not len(tracker.waiting)


def test_a_point_older_than_the_window_is_refused(tracker):
    for k in range(9):
        tracker.track(WHITE, k / 10)
    with pytest.raises(ValueError, match=r'seen at 0.500000 s, before .* \(from 0.600000 s\)'):
        tracker.add_points([[10, 20]], 0.5)
    assert not len(tracker.ids)


def test_ids_are_never_used_again(tracker):
    seen = set()
    for k in range(20):
        ids = tracker.add_points(np.full((3, 2), 5.0)).tolist()
        assert not seen & set(ids)
        seen |= set(ids)
        assert tracker.track(WHITE, k / 10).ids.tolist() == ids
        if k == 10:
            tracker.reset()
            assert not len(tracker.ids)
        else:
            assert tracker.remove_points([*ids, 999]).tolist() == ids
    assert not len(tracker.track(WHITE, 3.0))


def test_a_point_removed_and_its_slot_taken_again_between_two_frames(tracker):
    old = tracker.add_points(np.full((6, 2), 5.0))
    tracker.track(WHITE, 0.0)
    tracker.remove_points(old[2:4])
    (new,) = tracker.add_points([[50, 50]])
    tracks = tracker.track(WHITE, 0.1)
    assert tracks.ids.tolist() == [1, 2, 5, 6, new]
    np.testing.assert_allclose(tracks.xy, [[7, 5]] * 4 + [[50, 50]], atol=1e-4)


@pytest.mark.parametrize(
    'xy, message',
    [
        ([[1.0, np.nan]], 'point 0 is not finite'),
        ([[1e300, 0]], 'outside the image'),
        ([[1.0, 1.0], [np.inf, 2.0]], 'point 1 is not finite'),
        ([[1.0, 1.0], [95.6, 2.0]], '1 of 2 points are outside the image of 96 x 64 pixels'),
        ([[-0.6, 1.0]], 'outside the image'),
        ([1.0, 2.0], r'shape \(N, 2\)'),
        ([[1.0, 2.0, 3.0]], r'shape \(N, 2\)'),
        (np.ones((6, 2)), '6 points to add, but 1 of max_points = 6 are in use: 5 are free'),
    ],
)
def test_bad_points_are_refused_together(tracker, xy, message):
    kept = tracker.add_points([[3, 3]])
    tracker.track(WHITE, 0.0)
    with pytest.raises(ValueError, match=message):
        tracker.add_points(xy)
    assert tracker.ids.tolist() == tracker.track(WHITE, 0.1).ids.tolist() == kept.tolist()


def test_zero_points_are_no_error(tracker):
    assert tracker.add_points(np.zeros((0, 2))).shape == (0,)
    tracks = tracker.track(WHITE, 0.0)
    assert len(tracks) == 0 and tracks.xy.shape == (0, 2)


def test_a_point_outside_the_first_frame_is_dropped_with_a_warning(tracker, caplog):
    ids = tracker.add_points([[10, 20], [400, 20]])
    assert tracker.track(WHITE, 0.0).ids.tolist() == [ids[0]]
    assert 'outside the image of 96 x 64' in caplog.text


@pytest.mark.parametrize(
    'frame, stamp, message',
    [
        (WHITE.astype(np.float32), 1.0, 'uint8 array, not float32'),
        (None, 1.0, 'uint8 array'),
        (WHITE[..., 0], 1.0, r'shape \(H, W, 3\), not \(64, 96\)'),
        (WHITE[:0], 1.0, r'not \(0, 96, 3\)'),
        (np.zeros((4, 4, 4), np.uint8), 1.0, r'not \(4, 4, 4\)'),
        (WHITE, np.nan, 'stamp of a frame must be finite'),
    ],
)
def test_a_bad_frame_loses_no_track(tracker, frame, stamp, message):
    ids = tracker.add_points([[3, 3]])
    tracker.track(WHITE, 0.0)
    with pytest.raises(ValueError, match=message):
        tracker.track(frame, stamp)
    tracks = tracker.track(WHITE, 0.1)
    assert tracks.ids.tolist() == ids.tolist() and tracks.age.tolist() == [1]


def test_a_jump_back_drops_all_points_and_a_late_frame_none(tracker):
    old = tracker.add_points([[3, 3]])
    for k in range(3):
        tracker.track(WHITE, 10 + k / 10)
    with pytest.raises(LateFrame, match=r'10\.150000 s came after that of 10\.200000'):
        tracker.track(WHITE, 10.15)
    assert tracker.track(WHITE, 10.3).ids.tolist() == old.tolist()
    assert len(tracker.track(WHITE, 9.0)) == 0 and tracker.jumps == 1
    new = tracker.add_points([[3, 3]], 9.0)
    assert new[0] > old[0]
    assert tracker.track(WHITE, 9.1).age.tolist() == [1]


@pytest.mark.parametrize('stamps, late_within, late, jumps', [
    ((5, 6, 4), 3.0, [4], 0),  # two places late
    ((5, 5.04, 5.08, 4.96, 5.02, 5.12), 1.0, [4.96, 5.02], 0),
    ((5, 5.9, 5, 5.1, 5.95), 1.0, [5, 5.1], 0),
    ((5, 6, 5, 6.1), 1.0, [], 1),  # exactly one second: a jump
    ((5, 5.3, 5, 5.1, 5.2, 5.3), 1.0, [5, 5.1], 1),  # three in a row: the clock was set back
    ((5, 5.3, 5, 5.4, 5.1, 5.5, 5.2), 1.0, [5, 5.1, 5.2], 0),  # not in a row
    ((5, 5.04, 5.02), 0.0, [], 1),
])  # fmt: skip
def test_a_frame_is_late_by_less_than_a_second_and_not_three_in_a_row(
    tracker, stamps, late_within, late, jumps
):
    tracker.late_within = late_within
    ids = tracker.add_points([[3, 3]])
    found = []
    for stamp in stamps:
        try:
            tracks = tracker.track(WHITE, stamp)
        except LateFrame:
            found.append(stamp)
    assert found == late and tracker.jumps == jumps
    assert tracks.ids.tolist() == ([] if jumps else ids.tolist())


@pytest.mark.parametrize('first', [True, False])
def test_points_that_no_frame_comes_for_are_given_up(tracker, first):
    """Stamps of the wall clock beside those of an old recording."""
    dropped = []
    tracker.query_timeout, tracker.on_drop = 1.0, dropped.append
    if not first:
        tracker.track(WHITE, 10.0)
    tracker.add_points([[3, 3], [5, 5]], stamp=1000.0)
    near = tracker.add_points([[7, 7]], stamp=10.6)
    for stamp in (10.1, 10.7, 11.0):
        tracks = tracker.track(WHITE, stamp)
        assert tracker.ahead == pytest.approx(1000 - stamp) and len(tracker.waiting) >= 2
    assert tracks.ids.tolist() == near.tolist()
    tracker.track(WHITE, 11.2)
    assert tracker.ids.tolist() == near.tolist()
    assert tracker.ahead == 0 and not len(tracker.waiting)
    assert len(dropped) == 1 and dropped[0].startswith('gave up 2 points')


def test_a_gap_and_a_repeated_stamp_change_nothing(tracker):
    ids = tracker.add_points([[3, 3]])
    for stamp in (0.0, 0.0, 100.0):
        tracks = tracker.track(WHITE, stamp)
    assert tracks.ids.tolist() == ids.tolist() and tracks.age.tolist() == [2]


def test_a_camera_without_stamps(tracker):
    """All stamps are 0: a point starts in the newest frame."""
    for _ in range(6):
        tracker.track(WHITE, 0.0)
        tracker.add_points([[10, 20]], 0.0)
    assert tracker.track(WHITE, 0.0).age.tolist() == [5, 4, 3, 2, 1, 0]


def test_another_camera_resolution_rescales_the_tracks(tracker):
    tracker.add_points([[9.5, 19.5]])
    tracker.track(WHITE, 0.0)
    tracker.add_points([[19.5, 19.5]], 0.0)  # seen in the frame of the old size
    half = tracker.track(WHITE[::2, ::2], 0.1)
    np.testing.assert_allclose(half.xy, [[5.5, 9.5], [10.5, 9.5]], atol=1e-4)
    with pytest.raises(ValueError, match='outside the image of 48 x 32'):
        tracker.add_points([[60, 10]])


def test_leaving_the_image_is_flagged_and_not_visible(tracker):
    tracker.add_points([[94, 20]])
    tracker.track(WHITE, 0.0)
    assert tracker.track(WHITE, 0.1).flags.tolist() == [OUTSIDE]


class Failing(engines.Engine):
    """A stand-in for an engine whose device fails once, or gives NaN."""

    name, device, precision = 'failing', 'none', 'f32'

    def __init__(self, inner, how):
        super().__init__(inner.metadata, 1, inner.slots, 0)
        self.inner, self.how = inner, how

    def _step(self, inputs):
        how, self.how = self.how, None
        if how == 'raise':
            raise engines.EngineError('the device is gone')
        outputs = self.inner.step(inputs)
        if how == 'nan':
            outputs['xy'] = outputs['xy'] * np.nan
        return outputs

    def reset(self):
        self.inner.reset()


def test_a_failed_step_is_as_if_the_frame_never_came(tracker):
    tracker.add_points([[3, 3]])
    tracker.track(WHITE, 0.0)
    tracker.add_points([[9, 9]], 0.0)
    tracker.engine = Failing(tracker.engine, 'raise')
    with pytest.raises(engines.EngineError, match='device is gone'):
        tracker.track(WHITE, 0.1)
    tracks = tracker.track(WHITE, 0.2)
    assert tracks.age.tolist() == [1, 1]
    np.testing.assert_allclose(tracks.xy, [[5, 3], [11, 9]], atol=1e-4)


def test_positions_that_are_not_finite_end_all_tracks(tracker):
    tracker.add_points([[3, 3]])
    tracker.track(WHITE, 0.0)
    tracker.engine = Failing(tracker.engine, 'nan')
    with pytest.raises(engines.EngineError, match='not finite: dropped all 1 points'):
        tracker.track(WHITE, 0.1)
    assert not len(tracker.ids) and not len(tracker.track(WHITE, 0.2))


def test_points_may_be_removed_while_the_model_runs(tracker):
    ids = tracker.add_points([[3, 3], [9, 9]])

    class During(Failing):
        def _step(self, inputs):
            tracker.remove_points(ids[:1])
            tracker.add_points([[50, 50]])
            return self.inner.step(inputs)

    tracker.engine = During(tracker.engine, None)
    assert tracker.track(WHITE, 0.0).ids.tolist() == [2]


def resident():
    """Resident memory of this process in kB."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def soak(tracker, frames):
    """Points come and go at random: ids unique, every row exact; returns the growth in kB."""
    rng = np.random.default_rng(0)
    expected, last_id, memory = {}, 0, []
    for k in range(frames):
        gone = [i for i in expected if rng.random() < 0.2]
        assert tracker.remove_points(gone).tolist() == sorted(gone)
        expected = {i: v for i, v in expected.items() if i not in gone}
        count = int(rng.integers(0, tracker.max_points - len(expected) + 1))
        xy = rng.uniform(0, 60, (count, 2)).astype(np.float32)
        ids = tracker.add_points(xy).tolist()
        assert ids == list(range(last_id + 1, last_id + 1 + count))
        last_id += count
        expected |= {i: (k, *p) for i, p in zip(ids, xy, strict=True)}
        tracks = tracker.track(WHITE, k / 30)
        assert tracks.ids.tolist() == sorted(expected)
        want = [(x + 2 * (k - k0), y) for k0, x, y in map(expected.get, sorted(expected))]
        np.testing.assert_allclose(tracks.xy, np.reshape(want, (-1, 2)), atol=1e-2)
        if (k + 1) % (frames // 4) == 0:
            memory.append(resident())
    return least_growth(memory)


def least_growth(memory):
    """The growth in kB of the quarter that grew least, but for the first: a leak grows in all of
    them, the allocator and what other tests left in this process in one or the other.
    """
    return min(later - earlier for earlier, later in itertools.pairwise(memory))


def test_soak(tracker):
    assert soak(tracker, 3000) < 300


def soak_network(tracker, frames):
    """Points come and go at random before changing pictures, also blank and noise: ids unique,
    all results and the state finite; returns the growth of memory in kB.
    """
    rng = np.random.default_rng(0)
    height, width = tracker.engine.metadata.image_size
    pictures = rng.integers(0, 256, (20, height, width, 3), np.uint8)
    pictures[10:] = pictures[10:] // 16 * 16  # smooth areas
    pictures[17], pictures[18] = 0, 255
    expected, last_id, memory = set(), 0, []
    for k in range(frames):
        gone = [i for i in expected if rng.random() < 0.05]
        tracker.remove_points(gone)
        expected -= set(gone)
        count = int(rng.integers(0, tracker.max_points - len(expected) + 1)) // 2
        xy = rng.uniform(0, (width - 1, height - 1), (count, 2)).astype(np.float32)
        past = max(k - int(rng.integers(0, 8)), 0) if k else None  # some seen in an older frame
        ids = tracker.add_points(xy, None if past is None else past / 30).tolist()
        assert ids == list(range(last_id + 1, last_id + 1 + count))
        last_id += count
        expected |= set(ids)
        tracks = tracker.track(np.roll(pictures[k // 8 % 20], k, 1), k / 30)
        assert set(tracks.ids.tolist()) == expected
        for values in (tracks.xy, tracks.visibility, tracks.confidence):
            assert np.isfinite(values).all()
        if (k + 1) % (frames // 4) == 0:
            memory.append(resident())
        if k % 1000 == 999:
            for buffers in tracker.engine._buffers:
                assert all(np.isfinite(v.numpy()).all() for v in buffers.values())
    return least_growth(memory)


def frames_of_a_soak(request):
    """How many; skips where not asked for."""
    if 'soak' not in request.config.option.markexpr:
        pytest.skip('takes minutes: make soak')
    return int(os.environ.get('SOAK', '100000'))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_long_soak(tracker, request):
    frames = frames_of_a_soak(request)
    growth = soak(tracker, frames)
    print(f'{frames} frames of the stand-in: {growth:+} kB in the quarter that grew least')
    assert growth < 1000


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_long_soak_of_the_shipped_network(tmp_path, request):
    frames = frames_of_a_soak(request)
    pytest.importorskip('torch')
    from export import export_onnx

    path = tmp_path / 'small.onnx'
    weights = engines._WEIGHTS / 'realtime.safetensors'
    assert (
        export_onnx.main(
            [
                '--checkpoint',
                str(weights),
                '--output',
                str(path),
                '--points',
                '8',
                '--resolution',
                '64x96',
            ]
        )
        == 0
    )  # a small image: fast frames
    tracker = StreamingTracker(path, max_points=12, threads=1)
    growth = soak_network(tracker, frames)
    print(f'{frames} frames of the network: {growth:+} kB in the quarter that grew least')
    assert growth < 4000
    tracker.close()


def test_the_shipped_model(tmp_path):
    """It runs in the tracker; points come and go; all it says is finite and within its range."""
    if not (engines._WEIGHTS / 'realtime.onnx').is_file():
        pytest.skip('no weights in this tree')
    tracker = StreamingTracker('realtime', max_points=8, threads=1)
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (40, 50, 3), np.uint8), np.ones((12, 12, 1), np.uint8))
    ids = tracker.add_points(rng.uniform(50, 200, (5, 2)))
    for k in range(12):
        frame = np.ascontiguousarray(picture[k : k + 240, 2 * k : 2 * k + 320])
        if k == 6:
            tracker.remove_points(ids[:2])
            late = tracker.add_points([[100, 100]], stamp=0.1)
        tracks = tracker.track(frame, k / 30)
        assert np.isfinite(tracks.xy).all()
        for values in (tracks.visibility, tracks.confidence):
            assert ((values >= 0) & (values <= 1)).all()
    assert tracks.ids.tolist() == [*ids[2:], *late] and tracks.age.tolist() == [11, 11, 11, 8]
    tracker.close()


def test_keypoints_reach_a_model_that_knows_them(tmp_path):
    tracker = StreamingTracker(stand_in_step.write(tmp_path / 'k.onnx', keypoints=True), 4)
    tracker.add_points([[10, 10], [20, 10]], keypoints=np.array([3, -1]))
    tracker.track(np.zeros((32, 48, 3), np.uint8), 0.0)
    tracks = tracker.track(np.zeros((32, 48, 3), np.uint8), 0.1)
    np.testing.assert_allclose(tracks.xy, [[11, 14], [21, 10]], atol=1e-5)
    tracker.remove_points(tracks.ids)
    tracker.add_points([[10, 10], [20, 10]])  # in the same slots
    tracker.track(np.zeros((32, 48, 3), np.uint8), 0.2)
    tracks = tracker.track(np.zeros((32, 48, 3), np.uint8), 0.3)
    np.testing.assert_allclose(tracks.xy, [[11, 10], [21, 10]], atol=1e-5)
    for wrong, text in (
        ([1, 2], 'be 1 whole'),
        ([-2], 'from -1 to 16'),
        ([17], 'not 17 to 17'),
        ([0.5], 'be 1 whole'),
    ):
        with pytest.raises(ValueError, match=f'keypoints .*{text}'):
            tracker.add_points([[5, 5]], keypoints=np.array(wrong))


def test_tracks_say_which_keypoint_of_whom_a_point_is(tmp_path):
    tracker = StreamingTracker(stand_in_step.write(tmp_path / 'm.onnx'), 4)
    body = np.array([0, 16, -1]), np.array([MAX_INSTANCE, 7, 0])
    ids = tracker.add_points([[10, 10], [20, 10], [30, 10]], None, (), *body)
    frame = np.zeros((32, 48, 3), np.uint8)
    for stamp in (0.0, 0.1):
        tracks = tracker.track(frame, stamp)
        assert [part.tolist() for part in tracks.body] == [part.tolist() for part in body]
        assert tracks.flags[2] < 256  # of a plain point as ever
    tracker.move_points(ids[:1], [[12, 12]])  # keeps both
    assert [part[0] for part in tracker.track(frame, 0.2).body] == [0, MAX_INSTANCE]
    tracker.remove_points(ids)
    tracker.add_points([[10, 10]])  # in the same slot
    assert [part.tolist() for part in tracker.track(frame, 0.3).body] == [[-1], [0]]
    for wrong, text in (([1, 2], 'be 1 whole'), ([-1], 'from 0 to 65535'), ([65536], 'to 65535')):
        with pytest.raises(ValueError, match=f'instances .*{text}'):
            tracker.add_points([[5, 5]], instances=np.array(wrong))


def test_a_model_of_two_scales_gets_a_larger_picture_and_tracks_in_its_own_pixels(tmp_path):
    """The camera image is reduced to the picture, not to the model's image."""
    frame = np.zeros((128, 192, 3), np.uint8)
    frame[::2] = 255  # at 64 x 96 grey; a nearest reduction would be black or white
    shown = []
    for scale in (1, 2):
        path = stand_in_step.write(tmp_path / f'{scale}.onnx', image_scale=scale)
        tracker = StreamingTracker(path, 1)
        inner = tracker.engine.step
        tracker.engine.step = lambda given, inner=inner: (
            shown.append(given['image']),
            inner(given),
        )[1]
        tracker.add_points([[41.5, 81.5]])
        tracker.track(frame, 0.0)
        tracks = tracker.track(frame, 0.1)
        # One model pixel is four camera pixels, whatever the picture's scale.
        np.testing.assert_allclose(tracks.xy, [[45.5, 81.5]], atol=1e-4)
        assert tracker.image_size == (32, 48)
    assert [image.shape for image in shown[1::2]] == [(1, 32, 48, 3), (1, 64, 96, 3)]


def test_a_table_of_tracks_has_a_column_for_each_id():
    rows = [
        {'ids': np.uint32([2, 1]), 'xy': np.float32([[5, 6], [7, 8]]), 'flags': np.uint32([1, 3])},
        {'ids': np.uint32([2, 4]), 'xy': np.float32([[9, 9], [3, 2]]), 'flags': np.uint32([0, 1])},
    ]
    made = table(rows, np.uint32([1, 2, 3]), ('xy', 'flags'))
    none = [np.nan, np.nan]
    np.testing.assert_array_equal(made['xy'], [[[7, 8], [5, 6], none], [none, [9, 9], none]])
    assert made['flags'].tolist() == [[3, 1, 0], [0, 0, 0]]
    assert table([], np.uint32([1]), ('xy',))['xy'].shape == (0, 1, 2)
