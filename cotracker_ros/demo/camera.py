"""A camera: publishes a video as sensor_msgs/Image at its rate, stamped when it is sent.

Prints a line `ready` or `error TEXT`, then `sent N STAMP` for each frame, and `done`; ends with
its input.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from cotracker_ros.demo.video import Video, VideoError, open_video
from cotracker_ros.ros.messages import array_to_image
from cotracker_ros.ros.startup import init

MEMORY = 2**28  # bytes of frames made ready before the start


def say(*words: object) -> None:
    """Print a line to the process that started this one."""
    print(*words, flush=True)


def ahead(frames: Iterator, count: int | None) -> list:
    """Draw or decode frames before the first is due, so that the rate holds; not of a camera."""
    taken, size = [], 0
    while size < MEMORY and (count is not None or not taken):
        frame = next(frames, None)
        if frame is None:
            break
        taken.append(frame)
        size += frame.nbytes
    return taken


def publish(
    node: Node, video: Video, rate: float, seconds: float | None, subscribers: int, repeat: bool
) -> None:
    """Send all frames, each at its time; a frame that is late is sent at once.

    rate: frames a second on the average; what lies between two frames keeps its share.
    """
    publisher = node.create_publisher(Image, 'image', QoSProfile(depth=5))
    frames = iter(video.frames)
    waiting = ahead(frames, video.count)
    say('ready')
    while publisher.get_subscription_count() < subscribers:
        rclpy.spin_once(node, timeout_sec=0.05)
    # A middleware needs a moment from knowing a subscriber to reaching it.
    publisher.wait_for_all_acked()
    rclpy.spin_once(node, timeout_sec=0.3)
    start = time.monotonic()
    sent = 0
    while seconds is None or sent < seconds * rate:
        if repeat:
            frame = waiting[sent % len(waiting)]
        else:
            frame = waiting[sent] if sent < len(waiting) else next(frames, None)
        if frame is None:
            break
        due = sent / rate if repeat else video.times[sent] * video.fps / rate
        delay = start + due - time.monotonic()
        if delay > 0:
            time.sleep(delay)
        header = Header(frame_id='camera', stamp=node.get_clock().now().to_msg())
        publisher.publish(array_to_image(frame, header))
        sent += 1
        say('sent', sent, header.stamp.sec * 10**9 + header.stamp.nanosec)
    say('done')
    sys.stdin.read()  # stay until the recorder has everything: the middleware resends lost images


def main() -> int:
    """Run the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--video')
    parser.add_argument('--rate', type=float)
    parser.add_argument('--seconds', type=float)
    parser.add_argument('--subscribers', type=int, default=2, help='to wait for')
    parser.add_argument('--repeat', action='store_true', help='send the first frames for ever')
    arguments = parser.parse_args()
    init([])
    node = Node('demo_camera')
    try:
        a = arguments
        video = open_video(a.video)
        rate = a.rate or video.fps
        publish(node, video, rate, a.seconds, a.subscribers, a.repeat)
    except VideoError as error:
        say('error', error)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
