"""A pose detector of any kind as a node: images in, poses out, a few times a second.

    python examples/detect_people.py --ros-args -r image:=/camera/image_raw \
        -p detector:='detector/bin/python examples/blazepose.py' -p rate:=2.0

The detector is a process of its own, which speaks as examples/blazepose.py does. Out: `poses`
(PointCloud2 under the header of its image: x, y in pixels, keypoint, COCO's number, instance, the
same for the keypoints of one person, and score), also where nobody was found.
"""

import time

import numpy as np
import rclpy
from follow_people import Detector
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2

from cotracker_ros.ros.messages import MessageError, image_to_array, rows_to_cloud
from cotracker_ros.ros.startup import run

POSE = np.dtype([
    ('x', '<f4'), ('y', '<f4'), ('keypoint', '<i4'), ('instance', '<u4'), ('score', '<f4'),
])  # fmt: skip


class PeopleDetector(Node):
    """Asks the detector for the newest image, at most `rate` times a second."""

    def __init__(self) -> None:
        super().__init__('detect_people')
        command = self.declare_parameter('detector', '').value
        rate = self.declare_parameter('rate', 2.0).value
        if not (command and rate > 0):
            raise ValueError('needs -p detector:=COMMAND, and a rate above 0')
        self._period, self._due = 1 / rate, 0.0
        self._detector = Detector(command)
        self._poses = self.create_publisher(PointCloud2, 'poses', 5)
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Image, 'image', self._on_image, newest)

    def _on_image(self, msg: Image) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._period
        try:
            frame = np.ascontiguousarray(image_to_array(msg))
        except MessageError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return
        self._poses.publish(rows_to_cloud(rows_of(self._detector.find(frame)), msg.header))

    def close(self) -> None:
        """End the detector."""
        self._detector.close()


def rows_of(people: np.ndarray) -> np.ndarray:
    """Return the rows of `poses` for people (P, 17, 3): x, y, score."""
    rows = np.zeros(people.shape[:2], POSE)
    rows['x'], rows['y'], rows['score'] = np.moveaxis(people, 2, 0)
    rows['keypoint'], rows['instance'] = np.arange(17), np.arange(len(people))[:, None]
    return rows.reshape(-1)


def spin() -> None:
    """Answer images until interrupted."""
    node = PeopleDetector()
    try:
        rclpy.spin(node)
    finally:
        node.close()


def main() -> int:
    """Run the node; returns the exit status, with one line where the detector does not run."""
    return run('detect_people', spin, failures=(OSError, ValueError))


if __name__ == '__main__':
    raise SystemExit(main())
