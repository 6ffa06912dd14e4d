"""Let a robot follow a point: turn until it is in the middle of the picture, drive towards it.

python examples/follow_point.py --ros-args -r cmd_vel:=/robot/cmd_vel -p width:=640 -p height:=480

The newest point is followed (click one in the live view). Whatever is not sure means stop: a point
that is hidden, a low confidence, no tracks for `timeout` seconds, the end of this program.
"""

import signal
import time

import numpy as np
import rclpy
from geometry_msgs.msg import Twist
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2

TRACK = np.dtype([
    ('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('id', '<u4'),
    ('visibility', '<f4'), ('confidence', '<f4'), ('flags', '<u4'), ('age', '<u4'),
])  # fmt: skip
VISIBLE = 1
PARAMETERS = {
    'width': 640,  # px of the camera image
    'height': 480,
    'turn_gain': 1.0,  # rad/s for a point at the border of the picture
    'drive_speed': 0.15,  # m/s at most
    'stop_row': 0.8,  # height in the picture, 0 top to 1 bottom, at which the robot has arrived
    'least_confidence': 0.5,
    'timeout': 0.5,  # s
}


def command(rows: np.ndarray, p: dict) -> tuple[float, float]:
    """Return forward speed (m/s) and turn (rad/s, left is positive) for the rows of /tracks."""
    if not len(rows):
        return 0.0, 0.0
    point = rows[np.argmax(rows['id'])]
    if not point['flags'] & VISIBLE or point['confidence'] < p['least_confidence']:
        return 0.0, 0.0
    aside = 2 * (float(point['x']) + 0.5) / p['width'] - 1  # -1 left to 1 right
    height = (float(point['y']) + 0.5) / p['height']
    ahead = max(0.0, 1 - height / p['stop_row']) * max(0.0, 1 - abs(aside))
    return p['drive_speed'] * min(1.0, 2 * ahead), -p['turn_gain'] * aside


class Follower(Node):
    """Turns tracks into velocities."""

    def __init__(self) -> None:
        super().__init__('follow_point')
        for name, default in PARAMETERS.items():
            self.declare_parameter(name, default)
        self._velocities = self.create_publisher(Twist, 'cmd_vel', 1)
        self._last = time.monotonic()
        self.create_subscription(PointCloud2, 'tracks', self._on_tracks, 1)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self.create_timer(0.1, self._watch, clock=steady)

    def drive(self, forward: float, turn: float) -> None:
        """Send a velocity."""
        msg = Twist()
        msg.linear.x, msg.angular.z = forward, turn
        self._velocities.publish(msg)

    def _on_tracks(self, msg: PointCloud2) -> None:
        self._last = time.monotonic()
        p = {name: self.get_parameter(name).value for name in PARAMETERS}
        self.drive(*command(np.frombuffer(msg.data, TRACK), p))

    def _watch(self) -> None:
        """Stop where tracks stay away: without them no callback would."""
        if time.monotonic() - self._last > self.get_parameter('timeout').value:
            self.drive(0.0, 0.0)


def main() -> None:
    """Run until interrupted; the last message is a stop."""
    # rclpy's own handler ends the middleware at once, and the stop could not be sent.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.append(True))
    ending: list[bool] = []
    try:
        node = Follower()
    except ParameterException as error:  # a whole number where one with a decimal point is due
        raise SystemExit(f'follow_point: {error}') from error
    try:
        while not ending:
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        node.drive(0.0, 0.0)
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
