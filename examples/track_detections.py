"""Follow what a detector finds: boxes become points, and points become boxes for every frame.

python examples/track_detections.py --ros-args -r detections:=/yolo/detections

In: detections (vision_msgs/Detection2DArray, with the stamp of their image) and tracks. Out:
tracker/queries; groups (Detection2DArray: the boxes of every frame, under ids that stay) and
motions (PointCloud2: x, y, dx, dy in pixels, id, points; the median motion since the last frame).
"""

from dataclasses import dataclass, field

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2, PointField
from vision_msgs.msg import Detection2D, Detection2DArray

TRACK = np.dtype([
    ('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('id', '<u4'),
    ('visibility', '<f4'), ('confidence', '<f4'), ('flags', '<u4'), ('age', '<u4'),
])  # fmt: skip
QUERY = np.dtype([('x', '<f4'), ('y', '<f4'), ('id', '<u4')])
MOTION = np.dtype([
    ('x', '<f4'), ('y', '<f4'), ('dx', '<f4'), ('dy', '<f4'), ('id', '<u4'), ('points', '<u4'),
])  # fmt: skip
VISIBLE = 1
MARGIN = 0.15  # of a box, on each side: detectors draw boxes around objects, not onto them
LOST = 0.25  # share of its points seen below which a group counts as lost ...
LOST_FRAMES = 15  # ... after so many frames


@dataclass
class Group:
    """Points that were put on one detection."""

    number: int
    detection: object  # the Detection2D that began it
    box: np.ndarray  # (4,) px: centre x, y, width, height, when it began
    queries: np.ndarray  # (N, 2) px
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))  # none yet: asked for
    waiting: int = 0  # tracks messages since it asked for points
    lost: int = 0  # messages in which too few points were seen


class Groups:
    """Which track belongs to which detection; numpy alone."""

    def __init__(self, side: int) -> None:
        """`side`: points per side of the grid in a box."""
        self.side, self.groups, self._next = side, [], 1
        self._rows = np.zeros(0, TRACK)  # of the newest message

    def detect(self, detection, box: np.ndarray, size: tuple[int, int]) -> Group | None:
        """Return a new group that asks for points, or None if this object has one already.

        box: centre x, y, width, height. size: of the image, W, H; points outside would be refused.
        """
        if any(self._covers(box, group) for group in self.groups):
            return None
        steps = np.linspace(MARGIN, 1 - MARGIN, self.side) - 0.5
        y, x = np.meshgrid(steps * box[3] + box[1], steps * box[2] + box[0], indexing='ij')
        queries = np.stack([x.ravel(), y.ravel()], 1)
        queries = queries[((queries >= 0) & (queries <= np.array(size) - 1)).all(1)]
        if len(queries) < 2:
            return None
        group = Group(self._next, detection, np.array(box, float), queries)
        self._next += 1
        self.groups.append(group)
        return group

    def _covers(self, box: np.ndarray, group: Group) -> bool:
        """Whether at least half of the points of a group that are seen lie in a box."""
        if group.ids.size:
            rows = self._rows[np.isin(self._rows['id'], group.ids)]
            seen = rows[(rows['flags'] & VISIBLE) != 0]
            places = np.stack([seen['x'], seen['y']], 1)
        else:
            places = group.queries
        inside = (np.abs(places - box[:2]) <= box[2:] / 2).all(1)
        return len(places) > 0 and inside.mean() >= 0.5

    def update(self, rows: np.ndarray) -> tuple[list[tuple], list[Group]]:
        """Take a tracks message; return (group, box, motion, points) of each, and the lost groups.

        motion: (2,) px since the last message, the median over points seen in both.
        """
        before, self._rows = self._rows, rows
        self._claim(np.setdiff1d(rows['id'], before['id']))
        results, lost = [], []
        for group in self.groups:
            if not group.ids.size:
                group.waiting += 1
                if group.waiting > LOST_FRAMES:  # refused: no free slots, or too old
                    lost.append(group)
                continue
            mine = np.isin(rows['id'], group.ids) & ((rows['flags'] & VISIBLE) != 0)
            seen = rows[mine]
            group.lost = group.lost + 1 if len(seen) < LOST * len(group.ids) else 0
            if group.lost > LOST_FRAMES or not np.isin(group.ids, rows['id']).any():
                lost.append(group)
            elif len(seen) >= 2:
                results.append((group, box_of(group, seen), motion_of(before, seen), len(seen)))
        self.groups = [group for group in self.groups if group not in lost]
        return results, lost

    def _claim(self, new: np.ndarray) -> None:
        """Give new points to the group that asked for them.

        The tracker takes all points of a request or none and numbers them in order; others may
        have asked as well, so of several runs of ids the one nearest to the request is its own.
        """
        for group in self.groups:
            count = len(group.queries)
            if group.ids.size or len(new) < count:
                continue
            runs = [r for r in np.lib.stride_tricks.sliding_window_view(new, count)
                    if r[-1] - r[0] == count - 1]  # fmt: skip
            if not runs:
                continue
            distances = [np.median(self._distances(run, group.queries)) for run in runs]
            best = int(np.argmin(distances))
            if distances[best] < group.box[2:].max() / 2:
                group.ids = runs[best].copy()
                new = np.setdiff1d(new, group.ids)

    def _distances(self, ids: np.ndarray, queries: np.ndarray) -> np.ndarray:
        rows = self._rows[
            np.searchsorted(self._rows['id'], ids, sorter=np.argsort(self._rows['id']))
        ]
        return np.hypot(rows['x'] - queries[:, 0], rows['y'] - queries[:, 1])


def box_of(group: Group, seen: np.ndarray) -> np.ndarray:
    """Return the box (centre x, y, width, height) that moved and grew as the points seen did."""
    start = group.queries[np.searchsorted(group.ids, seen['id'])]
    now = np.stack([seen['x'], seen['y']], 1).astype(float)
    # Between pairs of points, whose median bears that a quarter of the points is wrong.
    one, other = np.triu_indices(len(seen), 1)
    before = np.linalg.norm(start[one] - start[other], axis=1)
    after = np.linalg.norm(now[one] - now[other], axis=1)
    scale = float(np.median(after / before)) if len(seen) >= 4 else 1.0
    centre = np.median(now - scale * (start - group.box[:2]), 0)
    return np.concatenate([centre, scale * group.box[2:]])


def motion_of(before: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the median motion (2,) px of points that were seen before and are now."""
    was = before[(before['flags'] & VISIBLE) != 0]
    _, then, now = np.intersect1d(was['id'], seen['id'], return_indices=True)
    if not then.size:
        return np.zeros(2)
    return np.array([np.median(seen[a][now] - was[a][then]) for a in 'xy'], float)


def cloud(rows: np.ndarray, header) -> PointCloud2:
    """Return a structured array of 4-byte values as a cloud."""
    kinds = {'f': PointField.FLOAT32, 'u': PointField.UINT32}
    fields = [
        PointField(name=n, offset=4 * i, datatype=kinds[rows.dtype[n].kind], count=1)
        for i, n in enumerate(rows.dtype.names or ())
    ]
    return PointCloud2(
        header=header, height=1, width=len(rows), fields=fields, is_dense=True,
        point_step=rows.itemsize, row_step=rows.nbytes, data=rows.tobytes(),
    )  # fmt: skip


class Bridge(Node):
    """Detections to queries, tracks to groups."""

    def __init__(self) -> None:
        super().__init__('track_detections')
        side = self.declare_parameter('side', 4).value
        size = (
            self.declare_parameter(name, n).value for name, n in (('width', 640), ('height', 480))
        )
        self._size, self._groups = tuple(size), Groups(side)
        self._queries = self.create_publisher(PointCloud2, 'tracker/queries', 10)
        self._boxes = self.create_publisher(Detection2DArray, 'groups', 5)
        self._motions = self.create_publisher(PointCloud2, 'motions', 5)
        self.create_subscription(Detection2DArray, 'detections', self.on_detections, 5)
        self.create_subscription(PointCloud2, 'tracks', self.on_tracks, 10)

    def on_detections(self, msg) -> None:
        """Ask for points on each box that has none, in the frame of its stamp."""
        for detection in msg.detections:
            b = detection.bbox
            box = np.array([b.center.position.x, b.center.position.y, b.size_x, b.size_y])
            group = self._groups.detect(detection, box, self._size)
            if group is not None:  # a message for each: a refusal concerns one object alone
                rows = np.zeros(len(group.queries), QUERY)
                rows['x'], rows['y'] = group.queries.T
                self._queries.publish(cloud(rows, msg.header))

    def on_tracks(self, msg: PointCloud2) -> None:
        """Publish the boxes and motions of this frame."""
        results, lost = self._groups.update(np.frombuffer(msg.data, TRACK))
        for group in lost:
            self.get_logger().info(f'group {group.number} is lost')
            rows = np.zeros(len(group.ids), QUERY)
            rows['x'] = rows['y'] = np.nan  # which removes
            rows['id'] = group.ids
            if rows.size:
                self._queries.publish(cloud(rows, msg.header))
        boxes, motions = Detection2DArray(header=msg.header), np.zeros(len(results), MOTION)
        for n, (group, box, motion, points) in enumerate(results):
            made = Detection2D(header=msg.header, id=str(group.number))
            made.results = group.detection.results
            made.bbox.center.position.x, made.bbox.center.position.y = map(float, box[:2])
            made.bbox.size_x, made.bbox.size_y = map(float, box[2:])
            boxes.detections.append(made)
            motions[n] = (*box[:2], *motion, group.number, points)
        self._boxes.publish(boxes)
        self._motions.publish(cloud(motions, msg.header))


def main() -> None:
    """Run until interrupted."""
    rclpy.init()
    node = Bridge()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
