"""Print the messages of /tracks as tables; `ros2 topic echo` shows their bytes."""

import argparse
import sys

import numpy as np
import rclpy
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2

from cotracker_ros.ros.messages import TRACK, MessageError, cloud_to_tracks
from cotracker_ros.ros.startup import own_arguments, run
from cotracker_ros.ros.subscription import BEST_EFFORT
from cotracker_ros.skeleton import KEYPOINTS
from cotracker_ros.streaming import NEW, OUTSIDE, QUERY_FRAME, VISIBLE, body_of

_HEADING = '      id         x         y  visibility  confidence     age  flags'
_WORDS = {VISIBLE: 'visible', NEW: 'new', OUTSIDE: 'outside', QUERY_FRAME: 'query'}


def table(msg: PointCloud2, visible_only: bool = False) -> str:
    """Return a message as text: a line on its frame, a heading and a line for each point.

    Raises MessageError for a cloud that is none of tracks.
    """
    if msg.point_step != TRACK.itemsize or [f.name for f in msg.fields] != list(TRACK.names or ()):
        names = ', '.join(field.name for field in msg.fields)
        raise MessageError(f'this is no cloud of tracks: its fields are {names or "none"}')
    rows = cloud_to_tracks(msg)
    seen = (rows['flags'] & VISIBLE) != 0
    stamp = f'{msg.header.stamp.sec}.{msg.header.stamp.nanosec:09}'
    lines = [f'{stamp} {msg.header.frame_id}: {len(rows)} points, {seen.sum()} visible', _HEADING]
    for row, keypoint, instance in zip(rows, *body_of(rows['flags']), strict=True):
        if visible_only and not row['flags'] & VISIBLE:
            continue
        words = ' '.join(word for bit, word in _WORDS.items() if row['flags'] & np.uint32(bit))
        words += f' {KEYPOINTS[keypoint]}' if 0 <= keypoint < len(KEYPOINTS) else ''
        words += f' of {instance}' if instance else ''
        lines.append(
            f'{row["id"]:8d} {row["x"]:9.2f} {row["y"]:9.2f}  {row["visibility"]:10.2f}  '
            f'{row["confidence"]:10.2f}  {row["age"]:6d}  {words}'.rstrip()
        )
    return '\n'.join(lines)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the options; those after --ros-args are ROS's."""
    parser = argparse.ArgumentParser(prog='cotracker-echo', description=__doc__)
    parser.add_argument('topic', nargs='?', default='tracks', help='of the tracks [tracks]')
    parser.add_argument('--once', action='store_true', help='end after one message')
    parser.add_argument('--visible', action='store_true', help='only points that are visible')
    return parser.parse_args(arguments)


def main(args: list[str] | None = None) -> int:
    """Print until SIGINT or SIGTERM; returns the exit status."""
    arguments = sys.argv if args is None else ['cotracker-echo', *args]
    options = parsed(own_arguments(arguments))
    return run('cotracker-echo', lambda: echo(options), arguments, (MessageError,))


def echo(options: argparse.Namespace) -> None:
    """Print the messages of a topic. Raises MessageError for one that holds no tracks."""
    node, messages = rclpy.create_node('cotracker_echo'), []
    qos = QoSProfile(depth=5, reliability=BEST_EFFORT)  # hears every publisher
    node.create_subscription(PointCloud2, options.topic, messages.append, qos)
    try:
        while not (options.once and messages):
            messages.clear()
            rclpy.spin_once(node)
            for msg in messages:
                print(table(msg, options.visible), flush=True)
    except BrokenPipeError:  # of `| head`
        sys.stdout = None


if __name__ == '__main__':
    sys.exit(main())
