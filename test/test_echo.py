"""`cotracker-echo`, over real DDS."""

import signal

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from cotracker_ros.ros.echo import table
from cotracker_ros.ros.messages import MessageError, tracks_to_cloud
from cotracker_ros.streaming import NEW, OUTSIDE, QUERY_FRAME, VISIBLE, Tracks

OTHER = PointCloud2(width=1, height=1, point_step=4, data=bytes(4))  # not of tracks
ECHO = ('-m', 'cotracker_ros.ros.echo')


def message() -> PointCloud2:
    tracks = Tracks(
        stamp=12.5,
        ids=np.array([7, 4_000_000_000], np.uint32),
        xy=np.array([[12.345, -3.0], [639.5, 479.0]], np.float32),
        visibility=np.array([0.98, 0.1], np.float32),
        confidence=np.array([0.5, 0.25], np.float32),
        age=np.array([0, 1234], np.uint32),
        flags=np.array([VISIBLE | NEW | QUERY_FRAME, OUTSIDE], np.uint32),
    )
    header = Header(frame_id='optical')
    header.stamp.sec, header.stamp.nanosec = 12, 500_000_000
    return tracks_to_cloud(tracks, header)


def test_a_message_is_a_table():
    head, names, first, second = table(message()).splitlines()
    assert head == '12.500000000 optical: 2 points, 1 visible'
    assert names.split() == ['id', 'x', 'y', 'visibility', 'confidence', 'age', 'flags']
    # Row by row what went in, in the order of the heading.
    assert first.split() == ['7', '12.35', '-3.00', '0.98', '0.50', '0', 'visible', 'new', 'query']
    assert second.split() == ['4000000000', '639.50', '479.00', '0.10', '0.25', '1234', 'outside']
    assert table(message(), visible_only=True).splitlines() == [head, names, first]
    with pytest.raises(MessageError):
        table(OTHER)
    # Bits 8 to 15: 1 + the number of a keypoint; 16 to 31: whose.
    body = message()
    flags = np.frombuffer(body.data, '<u4').copy().reshape(2, 8)
    flags[:, 6] |= np.array([(9 + 1) << 8 | 300 << 16, (16 + 1) << 8], np.uint32)
    body.data = flags.tobytes()
    _, _, first, second = table(body).splitlines()
    assert first.split()[6:] == ['visible', 'new', 'query', 'left_wrist', 'of', '300']
    assert second.split()[6:] == ['outside', 'right_ankle']


def test_messages_are_printed(start_tracker):
    echo = start_tracker(ECHO, ready=False)
    publisher = echo.publisher(PointCloud2, 'tracks')
    echo.until(lambda: publisher.publish(message()) or 'outside' in echo.output())
    assert echo.end(signal.SIGINT) == 0 and 'Traceback' not in echo.output()


def test_once_ends_after_a_message_and_says_what_is_no_track(start_tracker):
    echo = start_tracker((*ECHO, 'points', '--once'), ready=False)
    publisher = echo.publisher(PointCloud2, 'points')
    while echo.process.poll() is None:
        publisher.publish(OTHER)
        echo.executor.spin_once(timeout_sec=0.05)
    assert echo.process.returncode == 1
    assert echo.output().startswith('cotracker-echo: ')
