"""The ROS side of the live view: images with their tracks in, queries and service calls out."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from cotracker_ros.live.frames import Frame
from cotracker_ros.ros.messages import QUERY, cloud_to_tracks, rows_to_cloud, stamp_seconds
from cotracker_ros.ros.subscription import MatchedSubscription

WAITING_BYTES = 2**26  # of images that wait for their tracks
SILENCE = 1.0  # seconds without tracks after which images are shown without them
RATE_SECONDS = 2.0  # over which the rate is taken
STALE_SECONDS = 3.0  # without diagnostics; the tracker sends them once a second
LONGEST_AGE = 60.0  # seconds; above, the stamps are of another clock, as those of an old bag
_LEVELS = {
    DiagnosticStatus.OK: 'ok',
    DiagnosticStatus.WARN: 'warning',
    DiagnosticStatus.ERROR: 'error',
    DiagnosticStatus.STALE: 'stale',
}


class NotAvailable(RuntimeError):
    """The tracker does not listen; the text says on what."""


class LiveNode(Node):
    """Pairs each tracks message with its image and gives both to `on_frame`.

    Its callbacks run in the thread of its executor; the other methods may be called from any.
    It subscribes to the image only while `watched`, so an unwatched page costs the camera nothing.
    """

    def __init__(
        self,
        on_frame: Callable[[Frame], None],
        tracker: str = 'tracker',
        camera: str = '',
        compressed: bool = False,
    ) -> None:
        """`tracker`: name of the tracker node; `camera`: one of its `cameras`, '' for the only."""
        super().__init__('live')
        self.watched = False
        self.paused = False
        prefix = f'{camera}/' if camera else ''
        private = f'{tracker}/{prefix}'
        self._on_frame, self._number = on_frame, 0
        self._waiting: OrderedDict[tuple[int, int], Image | CompressedImage] = OrderedDict()
        self._waiting_bytes = 0
        self._arrivals: deque[float] = deque(maxlen=1000)  # monotonic seconds of tracks messages
        self._status, self._status_at = DiagnosticStatus(), -np.inf
        self._status_name = f'{self.resolve_topic_name(tracker)}: {camera or "tracking"}'
        topic = self.resolve_topic_name(f'{prefix}image')
        self._images = MatchedSubscription(
            self,
            CompressedImage if compressed else Image,
            f'{topic}/compressed' if compressed else topic,
            self._on_image,
        )
        self._subscribed = False
        self.create_subscription(
            PointCloud2, f'{prefix}tracks', self._on_tracks, QoSProfile(depth=5)
        )
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self._queries = self.create_publisher(PointCloud2, f'{private}queries', 10)
        # Not `_clients` or `_services`: rclpy's Node keeps its own under these names.
        self._tracker_services = {
            'clear': self.create_client(Trigger, f'{tracker}/clear'),
            'resample': self.create_client(Trigger, f'{tracker}/resample'),
            'enable': self.create_client(SetBool, f'{tracker}/enable'),
        }
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self.create_timer(0.25, self._follow_viewers, clock=steady)

    # Requests, from any thread

    def add_point(self, xy: tuple[float, float], stamp: tuple[int, int]) -> None:
        """Ask for a point (px of the camera image), seen in the image of `stamp` (s, ns)."""
        self._query((*xy, 0), stamp)

    def remove_point(self, point_id: int) -> None:
        """Ask to stop tracking a point."""
        self._query((np.nan, np.nan, point_id), (0, 0))

    def call(self, service: str, on: bool | None = None):
        """Call `clear`, `resample` or `enable` (with `on`); returns rclpy's future.

        Raises NotAvailable.
        """
        client = self._tracker_services[service]
        if not client.service_is_ready():
            raise NotAvailable(f'no tracker offers {client.srv_name}')
        if on is None:
            return client.call_async(Trigger.Request())
        future = client.call_async(SetBool.Request(data=on))
        future.add_done_callback(
            lambda _: setattr(self, 'paused', not on)
        )  # until diagnostics say
        return future

    def report(self) -> dict:
        """Return rate and state of the tracker, for JSON."""
        now = time.monotonic()
        recent = sum(now - t < RATE_SECONDS for t in list(self._arrivals))
        status = self._status
        level, message = _LEVELS.get(status.level, 'error'), status.message
        if now - self._status_at > STALE_SECONDS:
            level, message = 'stale', f'no diagnostics of "{self._status_name}"'
        return {
            'rate': recent / RATE_SECONDS,
            'level': level,
            'message': message,
            'values': {v.key: v.value for v in status.values},
            'paused': self.paused,
        }

    def _query(self, row: tuple, stamp: tuple[int, int]) -> None:
        if not self._queries.get_subscription_count():
            raise NotAvailable(f'no tracker listens on {self._queries.topic_name}')
        header = Header()
        header.stamp.sec, header.stamp.nanosec = stamp
        rows = np.array([(*row, -1, 0)], QUERY)
        self._queries.publish(rows_to_cloud(rows, header, is_dense=False))

    # Callbacks of the executor

    def _follow_viewers(self) -> None:
        """Subscribe to the image while someone watches, as its publishers offer it."""
        if self.watched and not self._subscribed:
            self._images.open()
        elif self._subscribed and not self.watched:
            self._images.close()
            self._waiting.clear()
            self._waiting_bytes = 0
        self._subscribed = self.watched
        self._images.match()

    def _on_image(self, msg: Image | CompressedImage, lost: int, published: float) -> None:
        if self._silent():
            self._emit(msg, None, None)
        key = (msg.header.stamp.sec, msg.header.stamp.nanosec)
        self._waiting_bytes += len(msg.data) - self._size(self._waiting.pop(key, None))
        self._waiting[key] = msg
        while self._waiting_bytes > WAITING_BYTES and len(self._waiting) > 1:
            self._waiting_bytes -= self._size(self._waiting.popitem(last=False)[1])

    @staticmethod
    def _size(msg) -> int:
        return 0 if msg is None else len(msg.data)

    def _silent(self) -> bool:
        """Whether tracks have stayed away for longer than a slow model takes."""
        if not self._arrivals:
            return True
        usual = self._arrivals[-1] - self._arrivals[-2] if len(self._arrivals) > 1 else 0.0
        return time.monotonic() - self._arrivals[-1] > max(SILENCE, 3 * min(usual, 10.0))

    def _on_tracks(self, msg: PointCloud2) -> None:
        now = time.monotonic()
        self._arrivals.append(now)
        key = (msg.header.stamp.sec, msg.header.stamp.nanosec)
        if key not in self._waiting:
            return
        image = self._waiting[key]
        while key in self._waiting:  # and those before, which the tracker has left out
            self._waiting_bytes -= self._size(self._waiting.popitem(last=False)[1])
        age = self.get_clock().now().nanoseconds * 1e-9 - stamp_seconds(msg.header)
        self._emit(image, cloud_to_tracks(msg), age if 0 <= age < LONGEST_AGE else None)

    def _emit(self, image, tracks: np.ndarray | None, age: float | None) -> None:
        self._number += 1
        self._on_frame(Frame(self._number, image, tracks, age))

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name == self._status_name:
                self._status, self._status_at = status, time.monotonic()
                self.paused = KeyValue(key='enabled', value='false') in status.values
