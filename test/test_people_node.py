"""People followed over real DDS: a scripted detector, the node, and a real tracker."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, TEXTURE

pytest.importorskip('rclpy', reason='needs ROS 2')
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from cotracker_ros.follow import Pose
from cotracker_ros.ros import people
from cotracker_ros.ros.messages import (
    MessageError,
    cloud_to_people,
    cloud_to_tracks,
    image_to_array,
    rows_to_cloud,
)
from cotracker_ros.streaming import body_of
from cotracker_ros.visualise import LEFT_COLOUR, RIGHT_COLOUR

POSE = np.dtype(
    [('x', '<f4'), ('y', '<f4'), ('keypoint', '<i4'), ('instance', '<u4'), ('score', '<f4')]
)


def pose_rows(xy, instance=0, score=1.0) -> np.ndarray:
    """A person's 17 keypoints as a detector sends them."""
    rows = np.zeros(17, POSE)
    (rows['x'], rows['y']), rows['keypoint'] = np.transpose(xy), np.arange(17)
    rows['instance'], rows['score'] = instance, score
    return rows


def body(x, y) -> np.ndarray:
    """17 places (17, 2) in a person of 60 x 120 px."""
    return np.stack([x + np.arange(17) * 29 % 60, y + np.linspace(0, 120, 17)], 1)


def picture(shift: int) -> np.ndarray:
    """(240, 320, 3), moved `shift` px to the left."""
    return np.ascontiguousarray(TEXTURE[60:300, 100 + shift : 420 + shift])


def test_rows_become_people():
    rows = np.concatenate([pose_rows(body(0, 0), 40), pose_rows(body(9, 0), 7, 0.25)[5:]])
    rows = np.random.default_rng(0).permutation(rows)
    found = cloud_to_people(rows_to_cloud(rows, Header()))
    assert found.shape == (2, 17, 3)
    np.testing.assert_allclose(found[1, :, :2], body(0, 0), atol=1e-5)  # in the order of numbers
    assert np.isnan(found[0, :5, :2]).all() and (found[0, :5, 2] == 0).all()
    np.testing.assert_allclose(found[0, 5:, 2], 0.25)
    without = np.zeros(1, [('x', '<f8'), ('y', '<f8'), ('keypoint', 'u1'), ('instance', '<i2')])
    assert cloud_to_people(rows_to_cloud(without, Header()))[0, 0].tolist() == [0, 0, 1]
    assert cloud_to_people(rows_to_cloud(rows[:0], Header())).shape == (0, 17, 3)
    rows['keypoint'][3] = 99
    with pytest.raises(MessageError, match='field keypoint: 99 is no keypoint'):
        cloud_to_people(rows_to_cloud(rows, Header()))
    with pytest.raises(MessageError, match='a keypoint of one instance comes twice'):
        cloud_to_people(rows_to_cloud(np.concatenate([rows[:1], rows[:1]]), Header()))
    with pytest.raises(MessageError, match='lacks keypoint and instance'):
        cloud_to_people(rows_to_cloud(rows[['x', 'y']].copy(), Header()))


def test_a_person_is_the_box_of_what_is_seen():
    xy, visible = body(100, 50), np.zeros(17, bool)
    visible[[5, 16]] = True
    one, none = people.boxes(
        [Pose(4, xy, visible, found=2.0), Pose(5, xy, np.zeros(17, bool), found=2.5)], 3.0
    )
    low, high = xy[[5, 16]].min(0), xy[[5, 16]].max(0)
    np.testing.assert_allclose([one['x'], one['y']], (low + high) / 2, rtol=1e-6)
    np.testing.assert_allclose([one['width'], one['height']], high - low, rtol=1e-6)
    assert (one['instance'], one['visible'], one['unseen']) == (4, 2, 1.0)
    assert np.isnan(none['x']) and (none['visible'], none['unseen']) == (0, 0.5)


class Robot:
    """A tracker, the node beside it, and a detector that finds what it is told to."""

    def __init__(self, tracker, log, shift=0, **parameters):
        self.tracker, self.heard, self.shift, self.log = tracker, [], shift, log
        command = [sys.executable, '-m', 'cotracker_ros.ros.people', '--ros-args']
        command += ['-r', f'__ns:={tracker.node.get_namespace()}']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={value}']
        environment = {**os.environ, 'ROS_DOMAIN_ID': str(tracker.domain)}
        with log.open('wb') as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        tracker.node.create_subscription(PointCloud2, 'people', self.heard.append, 100)
        poses = tracker.publisher(PointCloud2, 'poses')
        self.publish = lambda rows, header: poses.publish(rows_to_cloud(rows, header))
        # Everybody hears everybody before the first detection.
        tracker.until(lambda: tracker.node.count_publishers('tracker/queries') == 1)
        tracker.until(lambda: tracker.track(picture(shift)) is not None and self.heard)
        self.frame()

    def frame(self) -> np.ndarray:
        """One image, moved 2 px to the left; waits until the node has answered it."""
        self.shift += 2
        tracks = self.tracker.track(picture(self.shift))
        header = self.tracker.tracks[-1].header
        self.tracker.until(lambda: any(msg.header == header for msg in self.heard))
        return tracks

    def detect(self, *found) -> None:
        """Find people in the newest image."""
        self.publish(np.concatenate(found), self.tracker.tracks[-1].header)

    def people(self) -> dict:
        """Rows of the newest `people` by instance."""
        rows = np.frombuffer(self.heard[-1].data, people.PERSON)
        return {int(row['instance']): row for row in rows}

    def points(self) -> dict:
        """Ids by (instance, keypoint) in the newest tracks."""
        rows = cloud_to_tracks(self.tracker.tracks[-1])
        keypoint, instance = body_of(rows['flags'])
        return {(i, k): n for i, k, n in zip(instance, keypoint, rows['id'], strict=True)}

    def until(self, condition) -> None:
        self.tracker.until(lambda: (self.frame(), condition())[1])

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@pytest.fixture
def robot(start_tracker, tmp_path):
    made = []

    def make(tracker, **parameters):
        made.append(Robot(tracker, tmp_path / f'people_{len(made)}.log', **parameters))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_people_are_followed_between_detections_corrected_and_given_up(start_tracker, robot):
    tracker = start_tracker(initial_grid=2, max_points=40)
    robot_ = robot(tracker, patience=5.0, tolerance=0.05)
    first, second = body(220, 20), body(120, 80)
    start = robot_.shift
    robot_.detect(pose_rows(first, 3), pose_rows(second, 9)[:-1])  # an ankle is not found
    robot_.until(lambda: len(robot_.people()) == 2)
    ids = robot_.points()
    assert len({i for i, _ in ids if i}) == 2 and len([i for i, _ in ids if i]) == 33
    # The tracker carries them: both have moved with the picture.
    for _ in range(4):
        robot_.frame()
    assert robot_.points() == ids
    # On the overlay they are skeletons.
    pictures = []
    tracker.node.create_subscription(Image, 'tracker/overlay', pictures.append, 1)
    robot_.until(lambda: len(pictures) > 0)
    colours = image_to_array(pictures[-1]).reshape(-1, 3)
    for colour in (LEFT_COLOUR, RIGHT_COLOUR):
        assert (colours == colour).all(1).sum() > 100
    moved = robot_.shift - start
    by_x = sorted(robot_.people().values(), key=lambda row: row['x'])
    assert [row['visible'] >= 12 for row in by_x] == [True, True]
    for row, xy in zip(by_x, (second, first), strict=True):
        middle = (xy.min(0) + xy.max(0)) / 2 - [moved, 0]
        assert abs(row['x'] - middle[0]) < 12 and abs(row['y'] - middle[1]) < 12
    left, right = (int(row['instance']) for row in by_x)
    # A detection in another order: a wrist was astray, an ankle is new, all ids stay.
    now = [xy - [robot_.shift - start, 0] for xy in (first, second)]
    now[1][9] += [30, 0]
    then = robot_.shift
    robot_.detect(pose_rows(now[1], 0), pose_rows(now[0], 1))
    robot_.until(lambda: (left, 16) in robot_.points())
    points = robot_.points()
    assert {key: points[key] for key in ids} == ids and len(points) == len(ids) + 1
    rows = {row['id']: row for row in cloud_to_tracks(tracker.tracks[-1])}
    at = now[1][9] - [robot_.shift - then, 0]
    assert abs(rows[ids[left, 9]]['x'] - at[0]) < 6
    # A detection of an image that the model has forgotten is carried into the newest.
    header, then = tracker.tracks[-1].header, robot_.shift
    now = [xy - [then - start, 0] for xy in (first, second)]
    now[1][10] += [30, 0]
    for _ in range(12):
        robot_.frame()
    robot_.publish(np.concatenate([pose_rows(now[0]), pose_rows(now[1], 1)]), header)

    def corrected():
        rows = {row['id']: row for row in cloud_to_tracks(tracker.tracks[-1])}
        return abs(rows[ids[left, 10]]['x'] - now[1][10][0] + robot_.shift - then) < 6

    robot_.until(corrected)
    assert robot_.points() == points
    # The right one is not found again: given up with all its points, but not before its time.
    robot_.detect(pose_rows(second - [robot_.shift - start, 0]))
    robot_.frame()
    assert set(robot_.people()) == {left, right}
    tracker.stamp += 6 * 10**9
    robot_.frame()
    assert robot_.people()[right]['unseen'] > 5
    robot_.detect(pose_rows(second - [robot_.shift - start, 0]))
    robot_.until(lambda: set(robot_.people()) == {left})
    assert {i for i, _ in robot_.points() if i} == {left}
    assert len(cloud_to_tracks(tracker.tracks[-1])) == 4 + 17
    assert robot_.end() == 0 and 'Traceback' not in robot_.log.read_text()


def test_one_who_does_not_fit_or_is_outside_does_not_keep_others_out(start_tracker, robot):
    tracker = start_tracker(initial_grid=0, max_points=20)
    robot_ = robot(tracker)
    outside, start = body(280, 20), robot_.shift  # partly
    robot_.detect(pose_rows(outside, 0), pose_rows(body(100, 80), 1))
    robot_.until(lambda: len(robot_.people()) == 1)
    assert 'outside the image of 320 x 240' in tracker.output()
    # A node that is started anew goes on with whom it finds in the tracks.
    (known,) = robot_.people()
    assert robot_.end() == 0
    again = robot(tracker, shift=robot_.shift)
    again.until(lambda: list(again.people()) == [known])
    again.detect(pose_rows(body(100, 80) - [again.shift - start, 0]))
    again.frame()
    assert list(again.people()) == [known]
    bad = pose_rows(body(100, 80))
    bad['keypoint'] = 17
    again.detect(bad)
    again.until(lambda: '17 is no keypoint' in again.log.read_text())


def test_any_detector_becomes_a_node(start_tracker, tmp_path):
    detector = tmp_path / 'detector.py'
    people_ = np.concatenate([body(100, 50), np.full((17, 1), 0.75)], 1)
    people_[0, 0] = -5.0  # outside of the image
    detector.write_text(
        'import struct, sys\n'
        'frames = sys.stdin.buffer\n'
        'while len(head := frames.read(8)) == 8:\n'
        '    height, width = struct.unpack("<II", head)\n'
        '    assert (height, width) == (240, 320)\n'
        '    frames.read(height * width * 3)\n'
        f'    print({json.dumps([people_.tolist()])!r}, flush=True)\n'
    )
    program = str(Path(__file__).parents[1] / 'examples' / 'detect_people.py')
    command = f'{sys.executable} {detector}'
    node = start_tracker((program,), ready=False, detector=command, rate=50.0)
    poses = []
    node.node.create_subscription(PointCloud2, 'poses', poses.append, 10)
    camera = node.publisher(Image, 'image')
    node.until(lambda: camera.publish(node.image()) or poses)
    assert poses[0].header.frame_id.startswith('optical_')
    found = cloud_to_people(poses[0])
    np.testing.assert_allclose(found[0, 1:], people_[1:], rtol=1e-6)
    assert found[0, 0, 2] == 0
    assert node.end(signal.SIGINT) == 0
    nothing = start_tracker((program,), ready=False, detector='no_such_program')
    assert nothing.process.wait(PATIENCE) == 1 and 'no_such_program' in nothing.output()
    assert 'Traceback' not in node.output() + nothing.output()
