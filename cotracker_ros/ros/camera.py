"""A camera node: publishes a device, a file or a folder of pictures as sensor_msgs/Image.

For trying the tracker where no camera driver is installed; usb_cam and others do more (exposure,
calibration, compressed images).
"""

import os
import sys
import time
from pathlib import Path

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from cotracker_ros.demo.video import VideoError, open_video
from cotracker_ros.ros.messages import array_to_image
from cotracker_ros.ros.parameters import check_names
from cotracker_ros.ros.publishing import send
from cotracker_ros.ros.resources import resource_file
from cotracker_ros.ros.startup import run

RETRY_SECONDS = 1.0  # until a device that is gone is opened again
PARAMETERS = {
    'source': ('', 'Device, video file or folder of pictures; empty: a rendered clip'),
    'rate': (0.0, 'Frames per second of a file or folder; 0: its own. A device has its own'),
    'loop': (True, 'Begin again at the end of a file or folder'),
    'frame_id': ('camera', 'frame_id of the images'),
}


class CameraNode(Node):
    """Publishes `image`, stamped as soon as a frame has been read."""

    def __init__(self) -> None:
        super().__init__('camera')
        for name, (default, text) in PARAMETERS.items():
            self.declare_parameter(name, default, ParameterDescriptor(description=text))
        check_names(self, PARAMETERS)
        self._publisher = self.create_publisher(Image, 'image', QoSProfile(depth=5))

    def run(self) -> None:
        """Publish until the context ends or the source does; raises VideoError for a bad file."""
        source, loop, rate = (self.get_parameter(n).value for n in ('source', 'loop', 'rate'))
        device = source.startswith('/dev/') or Path(source).is_char_device()
        while self.context.ok():
            try:
                self._publish(open_video(source or None, rate or None), device)
            except VideoError as error:
                if not device:
                    raise
                self.get_logger().error(f'{error}; trying again', throttle_duration_sec=5.0)
            if device:
                time.sleep(RETRY_SECONDS)
            elif not loop:
                return

    def _publish(self, video, device: bool) -> None:
        """Publish the frames of a video, each when it is due; those of a device as they come."""
        frame_id = self.get_parameter('frame_id').value
        due = time.monotonic()
        before = -1 / video.fps
        for frame in video.frames:
            if not device:
                # A frame that is late moves those after it: a burst would look like fast motion.
                due = max(due + video.times[-1] - before, time.monotonic())
                before = video.times[-1]
                time.sleep(max(0.0, due - time.monotonic()))
            rclpy.spin_once(self, timeout_sec=0)
            header = Header(frame_id=frame_id, stamp=self.get_clock().now().to_msg())
            send(self._publisher, array_to_image(frame, header))


def main(args: list[str] | None = None) -> int:
    """Run the node; returns the exit status."""
    profiles = str(resource_file('config/fastdds_shm.xml'))  # for large images
    for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        os.environ.setdefault(name, profiles)
    return run('camera', lambda: CameraNode().run(), args, (VideoError,))


if __name__ == '__main__':
    sys.exit(main())
