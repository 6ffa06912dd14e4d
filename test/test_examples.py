"""The examples: as processes, or as the modules they are."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, TEXTURE

pytest.importorskip('rclpy', reason='needs ROS 2')

EXAMPLES = Path(__file__).parents[1] / 'examples'


def load(name: str):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def started(request):
    """Start an example beside a tracker; ends it."""
    children = []

    def start(tracker, name, out=None, **parameters):
        command = [sys.executable, EXAMPLES / f'{name}.py']
        command += ['--ros-args', '-r', f'__ns:={tracker.node.get_namespace()}']
        for key, value in parameters.items():
            command += ['-p', f'{key}:={value}']
        environment = {**os.environ, 'ROS_DOMAIN_ID': str(tracker.domain)}
        children.append(subprocess.Popen(command, stdout=out, env=environment))
        return children[-1]

    yield start
    for child in children:
        child.send_signal(signal.SIGINT)
        child.wait(PATIENCE)


def test_python_subscriber(start_tracker, started, tmp_path):
    tracker = start_tracker(initial_grid=2)
    out = tmp_path / 'out.txt'
    with out.open('w') as file:
        started(tracker, 'print_tracks', out=file)
    tracker.until(lambda: tracker.track() is not None and ' of 4 points' in out.read_text())


# follow_point


def row(example, x=320.0, y=100.0, flags=1, confidence=0.9, point_id=1):
    rows = np.zeros(1, example.TRACK)
    rows[0] = (x, y, 0, point_id, 1, confidence, flags, 5)
    return rows


def test_velocities_lead_to_the_point():
    example = load('follow_point')
    p = example.PARAMETERS
    forward, turn = example.command(row(example, x=319.5), p)
    assert turn == 0 and 0 < forward <= p['drive_speed']
    assert example.command(row(example, x=0), p)[1] > 0  # left of the middle: turn left
    assert example.command(row(example, x=639), p)[1] < 0
    assert example.command(row(example, x=319.5, y=479), p) == (0, 0)  # arrived
    for unsure in (
        row(example, flags=0), row(example, confidence=0.1), row(example)[:0],
    ):  # fmt: skip
        assert example.command(unsure, p) == (0, 0)
    both = np.concatenate([row(example, x=0, point_id=2), row(example, x=639, point_id=9)])
    assert example.command(both, p)[1] < 0  # the newest


def test_a_robot_follows_and_stops(start_tracker, started):
    from geometry_msgs.msg import Point, Twist

    tracker = start_tracker(initial_grid=0)
    commands = []
    tracker.node.create_subscription(Twist, 'cmd_vel', commands.append, 10)
    child = started(
        tracker, 'follow_point', width=320, height=240, least_confidence=0.0, timeout=3.0
    )
    tracker.publisher(Point, 'image_mouse_left').publish(Point(x=40.0, y=100.0))

    def turning():
        tracker.track()
        return any(c.angular.z > 0.3 and c.linear.x > 0 for c in commands)

    tracker.until(turning)
    commands.clear()
    tracker.until(lambda: commands and commands[-1].angular.z == 0)  # no more tracks
    assert commands[-1].linear.x == 0
    child.send_signal(signal.SIGINT)
    assert child.wait(PATIENCE) == 0


# track_detections


@pytest.fixture
def bridge_example(monkeypatch):
    """The example with vision_msgs, or its stand-in."""
    if importlib.util.find_spec('vision_msgs') is None:
        import stand_in_vision_msgs

        for name, module in stand_in_vision_msgs.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    return load('track_detections')


def tracks(example, ids, xy, visible=True):
    rows = np.zeros(len(ids), example.TRACK)
    rows['id'], (rows['x'], rows['y']) = ids, np.transpose(xy)
    rows['flags'] = np.where(visible, 1, 0)
    return rows


def test_a_box_moves_and_grows_with_its_points(bridge_example):
    groups = bridge_example.Groups(4)
    box = np.array([100.0, 80, 40, 20])
    group = groups.detect('car', box, (640, 480))
    assert (
        len(group.queries) == 16
        and groups.detect('car', np.add(box, [3, 0, 0, 0]), (640, 480)) is None
    )
    other = groups.detect('dog', np.array([300.0, 80, 40, 20]), (640, 480))
    # The dog's points come first, and a stranger's point between.
    ids = np.concatenate([np.arange(7, 23), [23], np.arange(24, 40)])
    places = np.concatenate([other.queries, [[5, 5]], group.queries])
    results, lost = groups.update(tracks(bridge_example, ids, places))
    assert not lost and {r[0].number: list(r[0].ids) for r in results} == {
        1: list(range(24, 40)),
        2: list(range(7, 23)),
    }
    # The car comes nearer: twice as large, 10 px to the right; three of its points are wrong.
    moved = places.copy()
    moved[17:] = (group.queries - box[:2]) * 2 + box[:2] + [10, 0]
    moved[[17, 20, 30]] = [600, 400]
    results, _ = groups.update(tracks(bridge_example, ids, moved))
    _, found, _, points = next(r for r in results if r[0] is group)
    assert np.allclose(found, [110, 80, 80, 40], atol=1e-3) and points == 16
    results, _ = groups.update(tracks(bridge_example, ids, np.add(moved, [4, -2])))
    assert all(np.allclose(r[2], [4, -2], atol=1e-3) for r in results)
    # Hidden for long: lost, and the next detection begins anew.
    for _ in range(bridge_example.LOST_FRAMES + 1):
        _, lost = groups.update(tracks(bridge_example, ids, moved, visible=False))
    assert {g.number for g in lost} == {1, 2} and not groups.groups
    assert groups.detect('car', box, (640, 480)).number == 3


def test_a_box_at_the_border_asks_for_points_inside_alone(bridge_example):
    groups = bridge_example.Groups(4)
    group = groups.detect('car', np.array([0.0, 470, 100, 60]), (640, 480))
    assert len(group.queries) == 6 and (group.queries >= 0).all()
    assert groups.detect('far', np.array([900.0, 100, 50, 50]), (640, 480)) is None


def test_points_that_were_refused_are_asked_for_again(bridge_example):
    groups = bridge_example.Groups(2)
    box = np.array([100.0, 80, 40, 20])
    groups.detect('car', box, (640, 480))
    for _ in range(bridge_example.LOST_FRAMES + 1):
        _, lost = groups.update(tracks(bridge_example, [], np.zeros((0, 2))))
    assert len(lost) == 1 and groups.detect('car', box, (640, 480)) is not None


def test_detections_become_boxes_of_every_frame(bridge_example, start_tracker, monkeypatch):
    """With a real tracker; only the two topics of vision_msgs are handed over by hand."""
    from rclpy.node import Node

    Array = sys.modules['vision_msgs.msg'].Detection2DArray
    sent, create = [], {n: getattr(Node, n) for n in ('create_publisher', 'create_subscription')}

    class Publisher:
        def publish(self, msg):
            assert isinstance(msg, Array)
            sent.append(msg)

    def publisher(self, kind, *args, **kwargs):
        return (
            Publisher()
            if kind is Array
            else create['create_publisher'](self, kind, *args, **kwargs)
        )

    def subscription(self, kind, *args, **kwargs):
        return (
            None if kind is Array else create['create_subscription'](self, kind, *args, **kwargs)
        )

    monkeypatch.setattr(Node, 'create_publisher', publisher)
    monkeypatch.setattr(Node, 'create_subscription', subscription)
    tracker = start_tracker(initial_grid=2)
    original = Node.__init__
    namespace, context = tracker.node.get_namespace(), tracker.context
    monkeypatch.setattr(
        Node,
        '__init__',
        lambda self, name: original(self, name, namespace=namespace, context=context),
    )
    bridge = bridge_example.Bridge()
    monkeypatch.setattr(Node, '__init__', original)
    tracker.executor.add_node(bridge)
    try:
        detection = sys.modules['vision_msgs.msg'].Detection2D()
        detection.bbox.center.position.x, detection.bbox.center.position.y = 120.0, 100.0
        detection.bbox.size_x, detection.bbox.size_y = 60.0, 40.0
        tracker.until(lambda: bridge.count_subscribers('tracker/queries') == 1)
        first = tracker.image(moving(0))
        tracker.send(first)
        tracker.until(lambda: any(t.header == first.header for t in tracker.tracks))
        bridge.on_detections(Array(header=first.header, detections=[detection]))
        shift = 0

        def follows():
            nonlocal shift
            shift += 2
            tracker.track(moving(shift))
            return sent and sent[-1].detections and shift >= 20

        tracker.until(follows)
        tracker.until(lambda: sent[-1].header == tracker.tracks[-1].header)
        (made,) = sent[-1].detections
        assert made.id == '1'
        assert abs(made.bbox.center.position.x - (120 - shift)) < 6  # the picture moves left
        assert abs(made.bbox.center.position.y - 100) < 6 and abs(made.bbox.size_x - 60) < 15
    finally:
        tracker.executor.remove_node(bridge)
        bridge.destroy_node()


def moving(shift: int) -> np.ndarray:
    """A picture (240, 320, 3) that moves `shift` pixels to the left."""
    return np.ascontiguousarray(TEXTURE[60:300, 100 + shift : 420 + shift])
