"""A subscriber of /tracks: prints how many points are seen and which of them moved most.

python examples/print_tracks.py --ros-args -r tracks:=/tracks
"""

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2

TRACK = np.dtype([
    ('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('id', '<u4'),
    ('visibility', '<f4'), ('confidence', '<f4'), ('flags', '<u4'), ('age', '<u4'),
])  # fmt: skip
VISIBLE = 1


class Printer(Node):
    """Follows every id from message to message."""

    def __init__(self) -> None:
        super().__init__('print_tracks')
        self._last: dict[int, np.ndarray] = {}
        self.create_subscription(PointCloud2, 'tracks', self._on_tracks, 10)

    def _on_tracks(self, msg: PointCloud2) -> None:
        rows = np.frombuffer(msg.data, TRACK)
        seen = rows[(rows['flags'] & VISIBLE) != 0]
        now = {int(r['id']): np.array([r['x'], r['y']]) for r in seen}
        moved = {i: float(np.hypot(*(now[i] - self._last[i]))) for i in now if i in self._last}
        self._last = now
        text = f'{len(seen)} of {len(rows)} points seen'
        if moved:
            fastest = max(moved, key=moved.__getitem__)
            text += f'; point {fastest} moved {moved[fastest]:.1f} px'
        print(text, flush=True)


def main() -> None:
    """Run until interrupted."""
    rclpy.init()
    node = Printer()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
