"""People between detections: matched, moved, added and given up; ids stay."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('onnx', reason='writes the stand-in model')

import stand_in_step

from cotracker_ros.follow import Follower, People, match
from cotracker_ros.streaming import StreamingTracker

FRAME = np.zeros((64, 96, 3), np.uint8)


@pytest.fixture
def follower(tmp_path):
    """A follower whose points go 2 px to the right a frame, with room for two people."""
    tracker = StreamingTracker(stand_in_step.write(tmp_path / 'm.onnx'), max_points=34, threads=1)
    yield Follower(tracker, People(patience=1.0))
    tracker.close()


def person(x, y, score=1.0):
    """A person of 20 x 40 px: (17, 3)."""
    xy = np.stack([np.linspace(0, 20, 17), np.linspace(0, 40, 17)], 1)
    return np.column_stack([xy + np.array([x, y]), np.full(17, score)])


def test_an_answer_moves_what_went_astray_and_ids_stay(follower):
    first = person(10, 10)
    first[16, 2] = 0.2  # not sure
    follower.correct(np.stack([first]), 0.0)
    (pose,) = follower.track(FRAME, 0.0)
    assert pose.instance == 1 and np.isnan(pose.xy[16]).all()
    np.testing.assert_allclose(pose.xy[:16], first[:16, :2], atol=1e-2)
    ids = follower.tracker.ids
    assert len(ids) == 16
    # A pixel off is the detector's trembling; a wrist 8 px off is corrected, an ankle new.
    then = person(10, 10)
    then[3, :2] += (0, 1)
    then[9, :2] += (8, 0)
    follower.correct(np.stack([then]), 0.0)
    (pose,) = follower.track(FRAME, 0.1)
    assert pose.instance == 1 and set(ids) < set(follower.tracker.ids)
    assert len(follower.tracker.ids) == 17
    np.testing.assert_allclose(pose.xy[3], first[3, :2] + [2, 0], atol=1e-2)
    np.testing.assert_allclose(pose.xy[[9, 16]], then[[9, 16], :2] + [2, 0], atol=1e-2)


def test_a_late_answer_is_carried_into_the_newest_frame(follower):
    first = person(10, 10)
    first[16, 2] = 0.2  # not sure
    follower.correct(np.stack([first]), 0.0)
    for t in range(20):
        follower.track(FRAME, t / 10)
    ids = follower.tracker.ids
    # What was found 18 frames ago, longer than any window: a wrist 8 px off, an ankle new.
    late = person(10 + 2 * 1, 10)
    late[9, :2] += (8, 0)
    follower.correct(np.stack([late]), 0.1)
    (pose,) = follower.track(FRAME, 2.0)
    assert set(ids) < set(follower.tracker.ids) and len(follower.tracker.ids) == 17
    expected = person(10 + 2 * 20, 10)[:, :2]
    expected[9] += (8, 0)
    np.testing.assert_allclose(pose.xy, expected, atol=2e-2)


def test_an_answer_of_a_forgotten_frame_moves_nobody(follower):
    follower.correct(np.stack([person(10, 10)]), 5.0)
    follower.track(FRAME, 5.0)
    with pytest.raises(ValueError, match='before the frames that the model remembers'):
        follower.correct(np.stack([person(16, 10)]), 4.0)
    (pose,) = follower.track(FRAME, 5.1)
    np.testing.assert_allclose(pose.xy, person(12, 10)[:, :2], atol=1e-2)


def test_people_come_are_told_apart_and_leave(follower):
    follower.correct(np.stack([person(5, 10), person(60, 10)]), 0.0)
    assert [p.instance for p in follower.track(FRAME, 0.0)] == [1, 2]
    # In another order, one a little further.
    follower.correct(np.stack([person(60, 10), person(9, 10)]), 0.8)
    poses = {p.instance: p for p in follower.track(FRAME, 0.8)}
    assert poses[1].xy[0, 0] == pytest.approx(9, abs=0.1)
    assert poses[2].xy[0, 0] == pytest.approx(62, abs=0.1)  # not moved
    follower.correct(np.stack([person(9, 10)]), 1.6)
    assert [p.instance for p in follower.track(FRAME, 1.6)] == [1, 2]  # not yet given up
    follower.correct(np.stack([person(9, 10), person(60, 10, score=0.1)]), 2.0)
    assert [p.instance for p in follower.track(FRAME, 2.0)] == [1]
    assert len(follower.tracker.ids) == 17
    follower.correct(np.stack([person(9, 10), person(60, 10)]), 2.2)
    assert [p.instance for p in follower.track(FRAME, 2.2)] == [1, 3]


def test_answers_that_are_none_are_refused_and_leave_everybody(follower):
    follower.correct(np.stack([person(5, 10), person(60, 10)]), 0.0)
    follower.track(FRAME, 0.0)
    with pytest.raises(ValueError, match=r'people are \(P, 17, 3\), not \(17, 3\)'):
        follower.correct(person(5, 10), 0.0)
    with pytest.raises(ValueError, match='17 points to add, but 34 of max_points'):
        follower.correct(np.stack([person(5, 10), person(60, 10), person(33, 15)]), 0.0)
    assert [p.instance for p in follower.track(FRAME, 0.1)] == [1, 2]
    follower.correct([], 0.1)
    assert len(follower.track(FRAME, 0.2)) == 2


def test_the_nearest_are_matched_first():
    at = {n: person(x, 10)[:, :2] for n, x in ((7, 10), (8, 18))}
    found = np.stack([person(16, 10)[:, :2], person(19, 10)[:, :2], person(200, 10)[:, :2]])
    assert match(found, at) == [7, 8, None]
    swapped = np.stack([person(17, 10)[:, :2], person(11, 10)[:, :2]])
    assert match(swapped, at) == [8, 7]  # not the first that is near enough
    hidden = found.copy()
    hidden[0, 1:] = np.nan
    assert match(hidden, at) == [7, 8, None]


def test_the_example_runs_with_any_detector(tmp_path):
    root = Path(__file__).parents[1]
    detector = tmp_path / 'detector.py'
    people = person(20, 10).tolist()
    detector.write_text(
        'import struct, sys\n'
        'frames = sys.stdin.buffer\n'
        'while len(head := frames.read(8)) == 8:\n'
        '    height, width = struct.unpack("<II", head)\n'
        '    assert len(frames.read(height * width * 3)) == height * width * 3\n'
        f'    print({json.dumps([people])!r}, flush=True)\n'
    )
    frames = tmp_path / 'frames'
    frames.mkdir()
    import cv2

    noise = np.random.default_rng(1).integers(0, 255, (64, 96, 3), np.uint8)
    for t in range(5):
        cv2.imwrite(str(frames / f'{t}.png'), noise)
    output, script = tmp_path / 'people.mp4', root / 'examples' / 'follow_people.py'

    def run(command):
        return subprocess.run(
            [sys.executable, script, frames, '--detector', command, '--output', output],
            capture_output=True, text=True, cwd=root,
        )  # fmt: skip

    done = run(f'{sys.executable} {detector}')
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 1000
    failed = run(f'{sys.executable} -c pass')
    assert failed.returncode == 1 and 'the detector ended with status 0' in failed.stderr
