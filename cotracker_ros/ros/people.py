"""A node that follows people: a slow detector's keypoints in, queries to the tracker out.

Between two detections the tracker follows every keypoint; `cotracker_ros.follow.People` decides
what a detection changes.
"""

import sys

import numpy as np
import rclpy
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from cotracker_ros.follow import Changes, People, Pose
from cotracker_ros.ros.messages import (
    QUERY,
    MessageError,
    cloud_to_people,
    cloud_to_tracks,
    rows_to_cloud,
    stamp_seconds,
)
from cotracker_ros.ros.parameters import check_names
from cotracker_ros.ros.publishing import send
from cotracker_ros.ros.startup import run
from cotracker_ros.ros.subscription import MatchedSubscription
from cotracker_ros.streaming import Tracks

# A row of `people`: the box around a person's visible keypoints, px.
PERSON = np.dtype(
    [
        ('x', '<f4'),  # of its centre
        ('y', '<f4'),
        ('width', '<f4'),
        ('height', '<f4'),
        ('instance', '<u4'),
        ('visible', '<u4'),  # number of keypoints; without any the box is NaN
        ('unseen', '<f4'),  # seconds since the detector found this person
    ]
)
_THROTTLE = 5.0  # seconds between equal log lines
NAMES = {
    'tracker': ('tracker', 'Name of the tracker node'),
    'camera': ('', 'One of its cameras; empty: the only one'),
}
NUMBERS = {
    # default, least, most
    'min_score': (0.5, 0.0, 1.0, 'Least score of a keypoint that is used'),
    'patience': (1.0, 0.0, 3600.0, 'Seconds after which a person is removed who is not detected'),
    'tolerance': (
        0.03, 0.0, 10.0,
        'How far a point may be off before it is moved, relative to the size of the person',
    ),
}  # fmt: skip


class PeopleNode(Node):
    """Follows people by the tracks of a tracker node and the keypoints of a detector."""

    def __init__(self) -> None:
        super().__init__('people')
        names, numbers = {}, {}
        for name, (default, text) in NAMES.items():
            described = ParameterDescriptor(description=text, read_only=True)
            names[name] = self.declare_parameter(name, default, described).value
        for name, (default, least, most, text) in NUMBERS.items():
            limits = [FloatingPointRange(from_value=least, to_value=most)]
            described = ParameterDescriptor(
                description=text, read_only=True, floating_point_range=limits
            )
            numbers[name] = self.declare_parameter(name, default, described).value
        check_names(self, (*NAMES, *NUMBERS))
        self._people = People(**numbers)
        self._newest = Header()  # of the newest tracks
        prefix = f'{names["camera"]}/' if names['camera'] else ''
        self._queries = self.create_publisher(
            PointCloud2, f'{names["tracker"]}/{prefix}queries', 10
        )
        self._publisher = self.create_publisher(PointCloud2, f'{prefix}people', 5)
        self.create_subscription(PointCloud2, f'{prefix}tracks', self._on_tracks, 10)
        topic = self.resolve_topic_name(f'{prefix}poses')
        self._poses = MatchedSubscription(self, PointCloud2, topic, self._on_poses)
        self._poses.open()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self.create_timer(0.5, self._poses.match, clock=steady)

    def _on_tracks(self, msg: PointCloud2) -> None:
        self._newest, stamp = msg.header, stamp_seconds(msg.header)
        rows = cloud_to_tracks(msg)
        xy = np.stack([rows['x'], rows['y']], 1)
        others = (rows[name] for name in ('visibility', 'confidence', 'age', 'flags'))
        poses = self._people.see(Tracks(stamp, rows['id'], xy, *others))
        send(self._publisher, rows_to_cloud(boxes(poses, stamp), msg.header, is_dense=False))

    def _on_poses(self, msg: PointCloud2, *_) -> None:
        try:
            people, stamp = cloud_to_people(msg), stamp_seconds(msg.header)
        except MessageError as error:
            self.get_logger().warning(f'poses not used: {error}', throttle_duration_sec=_THROTTLE)
            return
        if not self._queries.get_subscription_count():
            self.get_logger().warning(
                f'no tracker listens on {self._queries.topic_name}',
                throttle_duration_sec=_THROTTLE,
            )
            return
        changes = self._people.correct(people, stamp or stamp_seconds(self._newest))
        carried = stamp and changes.stamp > stamp  # from the detector's image into the newest
        header, rows = self._newest if carried else msg.header, queries(changes)
        # A message for each person: the tracker refuses one as a whole, for a point outside the
        # image or where no slots are free.
        for instance in np.unique(rows['instance']):
            own = rows[rows['instance'] == instance]
            send(self._queries, rows_to_cloud(own, header, is_dense=False))


def boxes(poses: list[Pose], stamp: float) -> np.ndarray:
    """Return the rows of `people` for the frame of `stamp`: (N,) of dtype PERSON."""
    rows = np.zeros(len(poses), PERSON)
    for row, pose in zip(rows, poses, strict=True):
        seen = pose.xy[pose.visible]
        box = [np.nan] * 4
        if len(seen):
            low, high = seen.min(0), seen.max(0)
            box = [*(low + high) / 2, *(high - low)]
        row['x'], row['y'], row['width'], row['height'] = box
        row['instance'], row['visible'] = pose.instance, len(seen)
        row['unseen'] = stamp - pose.found
    return rows


def queries(changes: Changes) -> np.ndarray:
    """Return the rows of ~/queries for these changes: (N,) of dtype QUERY."""
    new, moved, gone = len(changes.add), len(changes.move), len(changes.remove)
    rows = np.zeros(new + moved + gone, QUERY)
    rows['keypoint'] = -1
    rows['id'] = np.concatenate([np.zeros(new), changes.move, changes.remove])
    places = np.concatenate([changes.add, changes.to, np.full((gone, 2), np.nan)])
    rows['x'], rows['y'] = places.T
    rows['keypoint'][: new + moved] = changes.keypoint
    rows['instance'][: new + moved] = changes.instance
    return rows


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status."""
    return run('people', lambda: rclpy.spin(PeopleNode()), args)


if __name__ == '__main__':
    sys.exit(main())
