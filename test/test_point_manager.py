"""Points asked for by the executor while the worker places them, without a node."""

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg', reason='needs the ROS messages')
pytest.importorskip('onnx', reason='writes the stand-in model')

import stand_in_step

from cotracker_ros.ros.messages import Queries
from cotracker_ros.ros.point_manager import PointManager
from cotracker_ros.streaming import StreamingTracker

FRAME = np.zeros((64, 96, 3), np.uint8)
PARAMETERS = SimpleNamespace(initial_grid=0, initial_corners=0, retire_after=0, target_points=0)


@pytest.fixture
def manager(tmp_path):
    tracker = StreamingTracker(stand_in_step.write(tmp_path / 'm.onnx'), max_points=8, threads=1)
    refused = []
    manager = PointManager(tracker, refused.append)
    manager.tracker, manager.refused = tracker, refused
    yield manager
    tracker.close()


def step(manager, number: int, p=PARAMETERS) -> None:
    """What the worker does with an image."""
    manager.before(FRAME, p)
    tracks = manager.tracker.track(FRAME, float(number))
    manager.after(FRAME, tracks, p)


def meet_in(monkeypatch, tracker, name: str) -> None:
    """Hold each caller of a method until another is in it too, or cannot come."""
    meeting, method = threading.Barrier(2), getattr(tracker, name)

    def held(*args, **kwargs):
        result = method(*args, **kwargs)
        with contextlib.suppress(threading.BrokenBarrierError):  # the lock keeps the other away
            meeting.wait(0.3)
        return result

    monkeypatch.setattr(tracker, name, held)


def run_together(*calls) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_query_points_set_while_they_are_placed_leave_no_orphan(manager, monkeypatch):
    """Executor and worker are in the same method at once, where nothing keeps them apart."""
    manager.set_query_points((10.0, 20.0, 30.0, 40.0))
    with monkeypatch.context() as patch:
        meet_in(patch, manager.tracker, 'add_points')
        run_together(
            lambda: manager.before(FRAME, PARAMETERS),
            lambda: manager.set_query_points((50.0, 50.0)),
        )
    step(manager, 0)
    assert len(manager.tracker.ids) == 1
    manager.set_query_points(())
    assert not len(manager.tracker.ids) and not manager.refused


def test_two_changes_of_query_points_at_once_leave_those_of_one(manager, monkeypatch):
    step(manager, 0)
    meet_in(monkeypatch, manager.tracker, 'add_points')
    run_together(
        lambda: manager.set_query_points((10.0, 20.0)),
        lambda: manager.set_query_points((30.0, 40.0, 50.0, 60.0)),
    )
    assert len(manager.tracker.ids) in (1, 2)
    manager.set_query_points(())
    assert not len(manager.tracker.ids)


def test_a_reset_during_a_step_places_each_initial_point_once(manager, monkeypatch):
    p = SimpleNamespace(**{**vars(PARAMETERS), 'initial_grid': 2, 'target_points': 8})
    step(manager, 0, p)
    manager.before(FRAME, p)
    tracks = manager.tracker.track(FRAME, 1.0)
    assert manager.reset() == 4
    manager.after(FRAME + np.arange(96, dtype=np.uint8)[:, None], tracks, p)
    assert not len(manager.tracker.ids)  # the refill of the old frame would take their slots
    step(manager, 2, p)
    assert len(manager.tracker.ids) == 4 and not manager.refused


def test_query_points_may_be_exchanged_in_a_full_table(manager):
    eight = tuple(np.linspace(1, 60, 16).tolist())
    manager.set_query_points(eight)
    step(manager, 0)
    old = manager.tracker.ids
    manager.check_query_points(eight[::-1])
    manager.set_query_points(eight[::-1])
    assert len(manager.tracker.ids) == 8 and not np.isin(manager.tracker.ids, old).any()
    manager.add([(5.0, 5.0)], None)
    assert 'are in use' in manager.refused[0]


@pytest.mark.parametrize('numbers, reason', [
    ((500.0, 1.0), 'outside the image of 96 x 64'),
    (tuple([5.0] * 18), '9 points to add, but 0 of max_points = 8'),
])  # fmt: skip
def test_what_is_refused_changes_nothing(manager, numbers, reason):
    manager.set_query_points((10.0, 20.0))
    step(manager, 0)
    ids = manager.tracker.ids.tolist()
    with pytest.raises(ValueError, match=reason):
        manager.check_query_points(numbers)
    assert manager.tracker.ids.tolist() == ids


def test_a_point_that_is_moved_keeps_its_id_and_one_that_is_gone_gets_a_new_one(manager):
    manager.add([[10.0, 10.0], [20.0, 20.0]], None)
    step(manager, 0)
    nothing = np.zeros(0, np.uint32)

    def queries(move, to, stamp=None):
        none = np.zeros((0, 2), np.float32)
        to = np.array(to, np.float32)
        body = np.arange(len(move), dtype=np.int32), np.full(len(move), 5)
        return Queries(none, nothing, stamp, np.array(move, np.uint32), to, *body)

    manager.follow(queries([2, 9], [[50, 40], [70, 30]]))
    manager.before(FRAME, PARAMETERS)
    tracks = manager.tracker.track(FRAME, 1.0)
    assert tracks.ids.tolist() == [1, 2, 3]
    np.testing.assert_allclose(tracks.xy[1:], [[50, 40], [70, 30]], atol=1e-3)
    assert tracks.age.tolist()[1:] == [0, 0]
    # The one that was held stays the plain point that it was.
    assert [part.tolist() for part in tracks.body] == [[-1, -1, 1], [0, 0, 5]]
    manager.follow(queries([1], [[500, 40]]))
    assert len(manager.refused) == 1 and 'outside the image' in manager.refused[0]
    assert manager.tracker.track(FRAME, 2.0).ids.tolist() == [1, 2, 3]
