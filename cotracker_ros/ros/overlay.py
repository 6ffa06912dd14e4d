"""The overlay picture and markers, drawn only while someone subscribes."""

import threading
import time
import traceback
from collections import deque

import cv2
import numpy as np
from geometry_msgs.msg import Point
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import ImageMarker

from cotracker_ros.ros.mailbox import Mailbox
from cotracker_ros.ros.messages import array_to_image, set_data
from cotracker_ros.ros.publishing import send
from cotracker_ros.streaming import VISIBLE, Tracks, table
from cotracker_ros.visualise import draw_tracks_and_poses, id_colours

TAIL = 16  # frames


class OverlayPublisher:
    """Draws in a thread of its own: a slow viewer costs pictures, never tracks."""

    def __init__(self, node, private: str) -> None:
        self._node = node
        qos = QoSProfile(depth=1)
        self._overlay = node.create_publisher(Image, f'{private}overlay', qos)
        self._jpeg = node.create_publisher(CompressedImage, f'{private}overlay/compressed', qos)
        self._markers = node.create_publisher(ImageMarker, f'{private}markers', qos)
        self._history: deque[Tracks] = deque(maxlen=TAIL + 1)
        self._due = 0.0  # monotonic seconds of the next picture
        self._mailbox = Mailbox()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def show(self, header: Header, frame: np.ndarray, tracks: Tracks, rate: float) -> None:
        """Remember the tracks of a frame (H, W, 3) RGB, and draw them if someone looks, at most
        `rate` times a second.
        """
        self._history.append(tracks)
        now = time.monotonic()
        if now >= self._due and any(
            p.get_subscription_count() for p in (self._overlay, self._jpeg, self._markers)
        ):
            self._due = now + 1 / rate
            self._mailbox.put('picture', (header, frame, list(self._history)))

    def close(self, seconds: float | None = None) -> None:
        """End the thread and withdraw the topics."""
        self._mailbox.close()
        self._thread.join(seconds)
        for publisher in (self._overlay, self._jpeg, self._markers):
            self._node.destroy_publisher(publisher)

    def _work(self) -> None:
        while (item := self._mailbox.take()) is not None:
            try:
                self._paint(*item[1])
            except Exception:  # a viewer's trouble must not end the tracking
                if self._node.context.ok():
                    self._node.get_logger().error(
                        traceback.format_exc(), throttle_duration_sec=5.0
                    )

    def _paint(self, header: Header, frame: np.ndarray, history: list[Tracks]) -> None:
        if self._markers.get_subscription_count():
            send(self._markers, markers(history[-1], header))
        if not (self._overlay.get_subscription_count() or self._jpeg.get_subscription_count()):
            return
        newest = history[-1]
        past = table([vars(tracks) for tracks in history], newest.ids, ('xy', 'flags'))
        visible = (past['flags'] & VISIBLE) != 0
        keypoint, instance = newest.body
        body = np.where(instance > 0, keypoint, -1), instance
        picture = draw_tracks_and_poses(frame, past['xy'], visible, newest.ids, body, TAIL)
        if self._overlay.get_subscription_count():
            send(self._overlay, array_to_image(picture, header))
        if self._jpeg.get_subscription_count():
            bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            msg = CompressedImage(header=header, format='rgb8; jpeg compressed bgr8')
            set_data(msg, cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])
            send(self._jpeg, msg)


def markers(tracks: Tracks, header: Header) -> ImageMarker:
    """Return a point of its colour for each visible track, for the image panel of Foxglove."""
    seen = np.flatnonzero(tracks.visible)
    colours = id_colours(tracks.ids[seen]) / 255.0
    return ImageMarker(
        header=header,
        ns='tracks',
        type=ImageMarker.POINTS,
        action=ImageMarker.ADD,
        scale=6.0,
        points=[Point(x=float(x), y=float(y)) for x, y in tracks.xy[seen]],
        outline_colors=[ColorRGBA(r=r, g=g, b=b, a=1.0) for r, g, b in colours.tolist()],
    )
