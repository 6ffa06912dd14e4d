"""How a phone's video is turned, from its file: OpenCV tells it or not, by its version."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_CONTAINERS = (b'moov', b'trak', b'mdia')


def rotation(path: Path) -> int | None:
    """Return by how many degrees clockwise (0, 90, 180, 270) frames are shown turned.

    Reads the matrix of the first video track of an MP4 or QuickTime file (ISO/IEC 14496-12,
    8.3.2); None for files of another kind.
    """
    try:
        with path.open('rb') as file:
            if file.read(12)[4:8] not in (b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip'):
                return None
            matrix = None
            for kind, content in _boxes(file, 0, path.stat().st_size):
                if kind == b'tkhd':
                    start = 40 if content[0] == 0 else 52
                    matrix = struct.unpack('>9i', content[start : start + 36])
                elif kind == b'hdlr' and content[8:12] == b'vide' and matrix is not None:
                    degrees = math.degrees(math.atan2(matrix[1], matrix[0]))
                    return round(degrees / 90) % 4 * 90
    except (OSError, struct.error, IndexError, ValueError):
        pass  # what is broken is for the decoder to tell
    return None


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, content) of the boxes that say something of tracks, in their order."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack('>I4s', file.read(8))
        body = start + 8
        if size == 1:
            (size,) = struct.unpack('>Q', file.read(8))
            body += 8
        stop = end if size == 0 else start + size
        if stop <= start or stop > end:
            return
        if kind in _CONTAINERS:
            yield from _boxes(file, body, stop)
        elif kind in (b'tkhd', b'hdlr'):
            file.seek(body)
            yield kind, file.read(min(stop - body, 256))
        start = stop
