"""One camera: its image in, its tracks out, and the points that are tracked on it."""

import math
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, PointStamped
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from cotracker_ros.engines import EngineError
from cotracker_ros.ros.diagnostics import Reporter, Statistics
from cotracker_ros.ros.image_health import Repetition, is_blank
from cotracker_ros.ros.mailbox import Mailbox
from cotracker_ros.ros.messages import (
    MessageError,
    Picture,
    cloud_to_queries,
    depth_to_metres,
    image_to_mask,
    stamp_seconds,
    tracks_to_cloud,
    unpack,
    unpack_compressed,
)
from cotracker_ros.ros.moments import Moments
from cotracker_ros.ros.overlay import OverlayPublisher
from cotracker_ros.ros.point_manager import PointManager
from cotracker_ros.ros.publishing import send
from cotracker_ros.ros.subscription import BEST_EFFORT, RELIABLE, MatchedSubscription
from cotracker_ros.ros.tracks_3d import Pairs, is_rectified, positions, rays
from cotracker_ros.streaming import NEW, QUERY_FRAME, VISIBLE, LateFrame, StreamingTracker, Tracks
from cotracker_ros.streaming.image_range import ImageRange

_THROTTLE = 5.0  # seconds between equal log lines
FAR_AHEAD = 1.0  # seconds that a point may wait for an image without a word


class CameraTracker:
    """Topics, tracker and statistics of one camera of the node.

    The executor calls the callbacks, the worker calls `process`; the tracker may be used by both.
    """

    def __init__(self, node, tracker: StreamingTracker, camera: str = '') -> None:
        prefix = f'{camera}/' if camera else ''
        self._node, self._tracker, self._prefix = node, tracker, prefix
        self._log = node.get_logger()
        self.statistics = Statistics()
        self.points = PointManager(tracker, self._refuse)
        tracker.on_drop = self._drop
        self._publisher = node.create_publisher(
            PointCloud2, f'{prefix}tracks', QoSProfile(depth=5, reliability=RELIABLE)
        )
        p = node.parameters
        self._compressed = p.image_transport == 'compressed'
        topic = node.resolve_topic_name(f'{prefix}image')
        self._images = MatchedSubscription(
            node,
            CompressedImage if self._compressed else Image,
            f'{topic}/compressed' if self._compressed else topic,
            self._on_image,
        )
        self.image_topic = self._images.topic
        self._depths = MatchedSubscription(
            node, Image, node.resolve_topic_name(f'{prefix}depth'), self._on_depth
        )
        self._matched = [self._images, self._depths] if p.depth else [self._images]
        self._pairs = Pairs() if p.depth else None
        self._range = ImageRange(p.image_range)
        self._repetition = Repetition()
        self._moments, self._depth_moments = Moments(), Moments()
        self._last: Tracks | None = None
        self._kind, self._moment = '', None  # of the last image
        self._camera_info: CameraInfo | None = None
        self._tracks_3d = node.create_publisher(PointCloud2, f'~/{prefix}tracks_3d', 5)
        self._overlay = OverlayPublisher(node, f'~/{prefix}')
        engine = tracker.engine
        facts = {
            'model': engine.metadata.model,
            'weights': engine.metadata.weights_sha256[:12],
            'engine': f'{engine.name} {engine.device} {engine.precision}',
        }
        name = f'{node.get_fully_qualified_name()}: {camera or "tracking"}'
        self._reporter = Reporter(name, str(engine), facts)
        self._others = []

    @property
    def slots(self) -> int:
        """Number of points that fit."""
        return self._tracker.max_points

    def open(self, mailbox: Mailbox) -> None:
        """Subscribe; images go to the mailbox under this object as their key."""
        self._mailbox = mailbox
        for matched in self._matched:
            matched.open()
        node, private = self._node, f'~/{self._prefix}'
        mouse = node.resolve_topic_name(f'{self._prefix}image') + '_mouse_left'  # rqt_image_view
        self._others = [
            node.create_subscription(PointCloud2, f'{private}queries', self._on_queries, 10),
            node.create_subscription(PointStamped, f'{private}add_point', self._on_point, 10),
            node.create_subscription(Point, mouse, self._on_click, 10),
            node.create_subscription(Image, f'{private}mask', self._on_mask, 1),
            node.create_subscription(
                CameraInfo,
                f'{self._prefix}camera_info',
                self._on_camera_info,
                QoSProfile(depth=1, reliability=BEST_EFFORT),
            ),
        ]

    def close(self) -> None:
        """Unsubscribe; points stay."""
        for matched in self._matched:
            matched.close()
        for subscription in self._others:
            self._node.destroy_subscription(subscription)
        self._others = []

    def match_publishers(self) -> None:
        """Follow publishers that have come or gone."""
        for matched in self._matched:
            matched.match()

    def destroy(self) -> None:
        """Give everything back, the model too."""
        self.withdraw()
        self._tracker.close()

    def withdraw(self) -> None:
        """Give back all topics."""
        self.close()
        self._overlay.close()
        self._node.destroy_publisher(self._publisher)
        self._node.destroy_publisher(self._tracks_3d)

    def report(self) -> DiagnosticStatus:
        """Return the diagnostic status, with rates since the last one."""
        p = self._node.parameters
        waiting, ahead = self._tracker.waiting, self._tracker.ahead
        if ahead > FAR_AHEAD:
            self.statistics.note(
                f'{len(waiting)} points wait for an image: they are stamped up to {ahead:.1f} s '
                'after the newest one'
            )
        self.statistics.waiting = len(waiting)
        status = self._reporter.report(
            self.statistics, time.monotonic(), p.age_budget, p.image_timeout
        )
        status.values.append(KeyValue(key='enabled', value=str(self._node.enabled).lower()))
        return status

    # Callbacks of the executor

    def _on_image(self, msg, lost: int, published: float) -> None:
        s = self.statistics
        s.last_image = time.monotonic()
        s.image_bytes = len(msg.data)
        s.count(received=1, lost=lost)
        if self._node.enabled and self._mailbox.put(self, (msg, s.last_image, published)):
            s.count(replaced=1)

    def _on_queries(self, msg: PointCloud2) -> None:
        try:
            queries = cloud_to_queries(msg)
            self.points.follow(queries._replace(stamp=self._query_moment(msg.header)))
        except MessageError as error:
            self._refuse(str(error))

    def _on_point(self, msg: PointStamped) -> None:
        self.points.add([(msg.point.x, msg.point.y)], self._query_moment(msg.header))

    def _query_moment(self, header) -> float | None:
        """Return the moment of the image in which points were seen; None: the next one."""
        clock = self._node.get_clock().now().nanoseconds * 1e-9
        return self._moments.of_query(stamp_seconds(header), time.monotonic(), clock)

    def _on_click(self, msg: Point) -> None:
        self.points.add([(msg.x, msg.y)], None)

    def _on_mask(self, msg: Image) -> None:
        try:
            mask = image_to_mask(msg)
            self.points.set_mask(mask)
            if not mask.any():
                self.statistics.note('the mask is 0 everywhere: no initial points lie on it')
        except MessageError as error:
            self._refuse(f'mask: {error}')

    def _on_depth(self, msg: Image, lost: int, published: float) -> None:
        stamp = stamp_seconds(msg.header)
        self._depth_moments.of(stamp, time.monotonic())
        if self._tracks_3d.get_subscription_count():
            stamp = None if self._depth_moments.by_arrival else stamp
            found = self._pairs.match('depth', stamp, msg, published, lost)
            if found is not None:
                tracks, header, size = found
                self._publish_positions(tracks, header, size, msg)

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._camera_info = msg

    def _refuse(self, reason: str) -> None:
        self.statistics.note(f'query refused: {reason}', refused=1)
        self._log.warning(f'query refused: {reason}', throttle_duration_sec=_THROTTLE)

    def _drop(self, reason: str) -> None:
        """Tell of points that were taken but can never start."""
        self.statistics.note(reason, refused=1)
        self._log.warning(reason, throttle_duration_sec=_THROTTLE)

    # The worker

    def process(self, item: tuple) -> None:
        """Track one image and publish the result; never raises for what is in the image.

        item: the message, the seconds of its arrival on the monotonic clock, and those of its
        publication on the publisher's.
        """
        msg, arrival, published = item
        s = self.statistics
        stamp = stamp_seconds(msg.header)
        p = self._node.parameters
        self._tracker.late_within = p.late_within
        self._tracker.query_timeout = p.query_timeout or math.inf
        try:
            picture = unpack_compressed(msg) if self._compressed else unpack(msg)
            self._note_changes(msg.format if self._compressed else msg.encoding, picture, p)
            frame = picture.rgb(self._range.limits(picture.values))
            moment = self._moment_of(stamp, arrival, p)
            untrackable = self._why_untrackable(picture, frame, p)
            if untrackable:
                s.note(untrackable, held=1)
                tracks = self._hold_last(moment)
            else:
                self._range.learn()
                tracks = self._track(frame, moment, p)
        except LateFrame as error:
            s.note(str(error), late=1)
            return
        except MessageError as error:
            s.note(str(error), bad=1)
            self._log.warning(f'image not used: {error}', throttle_duration_sec=_THROTTLE)
            return
        except (EngineError, ValueError) as error:
            s.note(str(error), failed=1)
            self._log.error(f'image not tracked: {error}', throttle_duration_sec=_THROTTLE)
            return
        self._last = tracks
        if not send(self._publisher, tracks_to_cloud(tracks, msg.header)):
            s.note('the middleware refused the tracks of an image', failed=1)
            return
        age = self._age(stamp, arrival)
        if age is not None:
            s.ages.append(age)
        s.live, s.visible = len(tracks), int(tracks.visible.sum())
        s.count(tracked=1)
        self._overlay.show(msg.header, frame, tracks, p.overlay_rate)
        if self._tracks_3d.get_subscription_count():
            self._show_3d(tracks, msg.header, frame.shape[:2], published)

    def _note_changes(self, encoding: str, picture: Picture, p) -> None:
        """Tell of what tracking goes on through, but its user may not expect."""
        height, width = picture.values.shape[:2]
        kind, before = f'{encoding} {width} x {height}', self._kind
        if p.image_range != self._range.text or kind != before:
            self._range = ImageRange(p.image_range)
        self._kind = kind
        if before and kind != before:
            self.statistics.note(f'images changed from {before} to {kind}')

    def _moment_of(self, stamp: float, arrival: float, p) -> float:
        """Return the moment of an image, and tell of stamps that are none or leap."""
        moment, before = self._moments.of(stamp, arrival), self._moment
        self._moment = moment
        if self._moments.by_arrival:
            what = f'stand still at {stamp:.3f} s' if stamp else 'are 0'
            self.statistics.note(f'the stamps of the images {what}: their arrival counts')
        elif before is not None and moment - before > p.image_timeout:
            self.statistics.note(f'stamps jumped forward by {moment - before:.1f} s')
        return moment

    def _age(self, stamp: float, arrival: float) -> float | None:
        """Return the seconds since an image was taken; None where the clock does not tell."""
        if self._moments.by_arrival:
            return time.monotonic() - arrival
        now = self._node.get_clock().now().nanoseconds
        return now * 1e-9 - stamp if now else None  # 0: simulated time that has not begun

    def _why_untrackable(self, picture: Picture, frame: np.ndarray, p) -> str:
        """Return why the model must not see an image, or ''; tell of one that is repeated."""
        repeats = self._repetition.update(picture.rows)
        if is_blank(frame):
            if self._range.automatic or picture.values.dtype.itemsize == 1:
                return 'the image is blank'
            limits = ImageRange().limits(picture.values)
            if is_blank(picture.rgb(limits)):
                return 'the image is blank'
            low, high = float(picture.values.min()), float(picture.values.max())
            return (
                f'the image is blank in the image_range {p.image_range}: its values lie between '
                f'{low:g} and {high:g}'
            )
        if not p.frozen_after or repeats < p.frozen_after:
            return ''
        text = f'the image is frozen: the last {repeats + 1} are the same'
        if p.hold_frozen:
            return text
        self.statistics.note(text)
        return ''

    def _track(self, frame: np.ndarray, moment: float, p) -> Tracks:
        """Step the model; after a jump back in time, start anew with the initial points."""
        s = self.statistics
        self.points.before(frame, p)
        start = time.perf_counter()
        tracks = self._tracker.track(frame, moment)
        s.steps.append(time.perf_counter() - start)
        if self._tracker.jumps > s.jumps:
            s.note('stamps jumped back: all points are new', jumps=1)
            self._log.warning(f'stamps jumped back to {moment:.3f} s: all points are new')
            self.points.restart(frame, moment, p)
        s.count(retired=self.points.after(frame, tracks, p))
        return tracks

    def _hold_last(self, moment: float) -> Tracks:
        """Return the last tracks as invisible: the model must not see an image of nothing."""
        last = self._last
        if last is None:
            none = np.zeros(0, np.uint32)
            return Tracks(moment, none, np.zeros((0, 2), np.float32), none, none, none, none)
        kept = np.isin(last.ids, self._tracker.ids)
        zero = np.zeros(kept.sum(), np.float32)
        flags = last.flags[kept] & ~np.uint32(VISIBLE | NEW | QUERY_FRAME)
        return Tracks(moment, last.ids[kept], last.xy[kept], zero, zero, last.age[kept], flags)

    def _show_3d(self, tracks: Tracks, header, size: tuple[int, int], published: float) -> None:
        """Publish rays at once; or, with depth, positions as soon as the depth image is here."""
        if self._pairs is None:
            self._publish_3d(tracks, header, lambda *how: rays(tracks.xy, *how), size)
            return
        stamp = None if self._moments.by_arrival else stamp_seconds(header)
        depth = self._pairs.match('tracks', stamp, (tracks, header, size), published)
        if depth is not None:
            self._publish_positions(tracks, header, size, depth)
        elif self._pairs.starved:
            self.statistics.note(f'tracks_3d: no image on {self._depths.topic} has their stamps')

    def _publish_positions(self, tracks: Tracks, header, size, depth: Image) -> None:
        def place(info: CameraInfo, size: tuple[int, int], rectified: bool) -> np.ndarray:
            return positions(tracks, size, info, depth_to_metres(depth), rectified)

        self._publish_3d(tracks, header, place, size)

    def _publish_3d(self, tracks: Tracks, header, place, size: tuple[int, int]) -> None:
        """Publish the tracks where `place(camera_info, size, rectified)` puts them."""
        try:
            if self._camera_info is None:
                topic = self._node.resolve_topic_name(f'{self._prefix}camera_info')
                raise MessageError(f'needs camera_info, and none has come on {topic}')
            rectified = is_rectified(self.image_topic, self._node.parameters.rectified)
            cloud = tracks_to_cloud(tracks, header, place(self._camera_info, size, rectified))
            if not send(self._tracks_3d, cloud):
                raise MessageError('the middleware refused it')
        except MessageError as error:
            self.statistics.note(f'tracks_3d: {error}')
