"""A recorder: subscribes to image and tracks, and draws what it got when its input ends.

Prints `tracks N STAMP` for each message, and at the end one line of JSON.
"""

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, PointCloud2

from cotracker_ros.demo.camera import say
from cotracker_ros.ros.messages import cloud_to_tracks, image_to_array
from cotracker_ros.ros.startup import init
from cotracker_ros.ros.subscription import HAS_MESSAGE_INFO
from cotracker_ros.streaming import VISIBLE, table
from cotracker_ros.visualise import contact_sheet, draw_tracks, write_video

WIDEST = 960  # pixels of the overlay
RAW = 2**29  # bytes of images kept as they came; JPEG would take time from the tracker
TAIL = 20  # frames
SHEET, SHEET_WIDTH = 12, 480  # pictures of the contact sheet, and their pixels


def nanoseconds(header) -> int:
    """Return a header's stamp."""
    return header.stamp.sec * 10**9 + header.stamp.nanosec


class Recorder(Node):
    """Keeps images and tracks by their stamps; later images as JPEG, as minutes must fit."""

    def __init__(self) -> None:
        super().__init__('demo_recorder')
        self.pictures: dict[int, np.ndarray] = {}  # (H, W, 3) RGB, or (N,) JPEG
        self.raw = 0  # bytes
        self.tracks: dict[int, np.ndarray] = {}
        self.published: dict[int, float] = {}  # seconds, when the tracks were
        self.size = (0, 0)
        self.create_subscription(Image, 'image', self._on_image, QoSProfile(depth=20))
        on_tracks = self._on_tracks if HAS_MESSAGE_INFO else lambda msg: self._on_tracks(msg, {})
        self.create_subscription(PointCloud2, 'tracks', on_tracks, QoSProfile(depth=50))

    def _on_image(self, msg: Image) -> None:
        picture = image_to_array(msg)
        self.size = picture.shape[:2]
        self.raw += picture.nbytes
        if self.raw > RAW:
            picture = cv2.cvtColor(_shrink(picture, WIDEST), cv2.COLOR_RGB2BGR)
            picture = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].ravel()
        self.pictures[nanoseconds(msg.header)] = picture

    def _on_tracks(self, msg: PointCloud2, info: dict) -> None:
        stamp = nanoseconds(msg.header)
        sent = info.get('source_timestamp') or time.time_ns()
        self.published[stamp] = sent * 1e-9
        self.tracks[stamp] = cloud_to_tracks(msg).copy()
        say('tracks', len(self.tracks), stamp)

    def table(self) -> dict[str, np.ndarray]:
        """Return all tracks as arrays: stamps (T,) ns, ids (N,), xy (T, N, 2) px,
        flags (T, N), and when they were published, (T,) s.
        """
        stamps = np.array(sorted(self.tracks), np.int64)
        rows = [
            {'ids': row['id'], 'xy': np.stack([row['x'], row['y']], 1), 'flags': row['flags']}
            for row in (self.tracks[t] for t in stamps)
        ]
        ids = np.unique(np.concatenate([np.zeros(0, np.uint32), *(row['ids'] for row in rows)]))
        published = np.array([self.published[t] for t in stamps.tolist()])
        arrays = table(rows, ids, ('xy', 'flags'))
        return {'stamps': stamps, 'ids': ids, **arrays, 'published': published}

    def draw(self, table: dict[str, np.ndarray], folder: Path, fps: float, speed: float) -> str:
        """Write overlay.mp4 and overlay.png of the frames that were tracked; returns the codec.

        table: as `table` returns it. fps: of all images; where only some were tracked, motion
        keeps its speed. speed: how much faster than it was played the video is shown.
        """
        shown = [t for t, stamp in enumerate(table['stamps'].tolist()) if stamp in self.pictures]
        if not shown:
            return ''
        scale = min(1.0, WIDEST / self.size[1])
        xy = (table['xy'] + 0.5) * scale - 0.5
        visible = (table['flags'] & VISIBLE) != 0

        def frame(t: int) -> np.ndarray:
            picture = self.pictures[int(table['stamps'][t])]
            if picture.ndim == 1:
                picture = cv2.cvtColor(cv2.imdecode(picture, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            picture = _shrink(picture, WIDEST)
            first = max(0, t - TAIL)
            past = slice(first, t + 1)
            return draw_tracks(picture, xy[past], visible[past], table['ids'], tail=TAIL)

        fps *= len(shown) / len(self.pictures)
        times = ((table['stamps'][shown] - table['stamps'][shown[0]]) * 1e-9 / speed).tolist()
        codec = write_video(folder / 'overlay.mp4', (frame(t) for t in shown), fps, times)
        chosen = np.unique(np.linspace(0, len(shown) - 1, SHEET).round().astype(int))
        small = [_shrink(frame(shown[i]), SHEET_WIDTH) for i in chosen]
        sheet = contact_sheet(small, columns=4)
        cv2.imwrite(str(folder / 'overlay.png'), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        return codec


def _shrink(picture: np.ndarray, width: int) -> np.ndarray:
    height = round(width * picture.shape[0] / picture.shape[1])
    if width >= picture.shape[1] or not height:
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def summary(recorder: Recorder, table: dict[str, np.ndarray]) -> dict:
    """Return the figures of the run."""
    count = len(table['stamps'])
    if not count:
        return {'images': len(recorder.pictures), 'tracks': 0}
    age = (table['published'] - table['stamps'] * 1e-9) * 1e3
    span = np.ptp(table['published'])
    return {
        'images': len(recorder.pictures),
        'tracks': count,
        'rate': (count - 1) / span if span else 0.0,
        'age_p50': float(np.percentile(age, 50)),
        'age_p95': float(np.percentile(age, 95)),
        'visible': float(((table['flags'] & VISIBLE) != 0).sum(1).mean()),
        'points': float(np.isfinite(table['xy'][..., 0]).sum(1).mean()),
    }


def main() -> int:
    """Run the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--fps', type=float, required=True)
    parser.add_argument('--speed', type=float, default=1.0)
    arguments = parser.parse_args()
    init([])
    recorder = Recorder()
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)

    def wait_for_end() -> None:
        sys.stdin.read()
        executor.shutdown(timeout_sec=0)  # ends spin

    threading.Thread(target=wait_for_end, daemon=True).start()
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    finally:
        recorder.destroy_node()
        rclpy.try_shutdown()
    table = recorder.table()
    # numpy's annotations take any of the names for allow_pickle.
    np.savez_compressed(arguments.output / 'tracks.npz', **table)  # pyright: ignore[reportArgumentType]
    figures = summary(recorder, table)
    try:
        figures['codec'] = recorder.draw(table, arguments.output, arguments.fps, arguments.speed)
    except (OSError, ValueError, cv2.error) as error:  # the tracks are there all the same
        figures['no overlay'] = str(error)
    say(json.dumps(figures))
    return 0


if __name__ == '__main__':
    sys.exit(main())
