"""A picture with its tracks, and the bytes in which a browser receives it."""

import json
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from cotracker_ros.ros.messages import TRACK, unpack
from cotracker_ros.streaming.image_range import ImageRange
from cotracker_ros.visualise import id_colours

MAX_WIDTH = 1280  # px; wider pictures are reduced, as a page shows no more of them
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Frame:
    """An image message and the rows of its tracks message."""

    number: int  # counts up from 1
    picture: Image | CompressedImage
    tracks: np.ndarray | None  # (N,) of dtype TRACK; None: the tracker is silent
    age: float | None  # seconds from the image's stamp to the arrival of its tracks


def pack(frame: Frame) -> bytes:
    """Return the message for the browser; raises MessageError for an image that cannot be used.

    Little endian: the length of the header (uint32); the header, JSON padded with spaces to a
    multiple of 4 bytes; N rows as on /tracks; N colours 0x00RRGGBB (uint32); the JPEG (or, of a
    compressed topic, the picture as the camera sent it).
    """
    rows = np.zeros(0, TRACK) if frame.tracks is None else frame.tracks
    rgb = id_colours(rows['id']).astype('<u4')
    colours = rgb[:, 0] << 16 | rgb[:, 1] << 8 | rgb[:, 2]
    size, jpeg = _picture(frame.picture)
    stamp = frame.picture.header.stamp
    header = {
        'number': frame.number,
        'stamp': [stamp.sec, stamp.nanosec],
        'size': size,  # of the pixels of the tracks; null: that of the picture
        'points': len(rows),
        'tracked': frame.tracks is not None,
        'age': frame.age,
    }
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 4)
    return b''.join([struct.pack('<I', len(text)), text, rows.tobytes(), colours.tobytes(), jpeg])


def _picture(msg: Image | CompressedImage) -> tuple[list[int] | None, bytes]:
    """Return the size (W, H) of the camera image and its JPEG, perhaps smaller."""
    if isinstance(msg, CompressedImage):
        return None, bytes(msg.data)
    picture = unpack(msg)
    rgb = picture.rgb(ImageRange().limits(picture.values))  # 12 bits in 16 would be black
    if msg.width > MAX_WIDTH:
        size = (MAX_WIDTH, round(msg.height * MAX_WIDTH / msg.width) or 1)
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return [msg.width, msg.height], jpeg.tobytes()
