"""Recordings (rosbag2: MCAP or SQLite) in, the same recording with a topic of tracks out.

Needs the package `rosbags` and the ROS messages. The tracks are those that the node would have
published had it kept up with every image.
"""

import re
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cotracker_ros.files import natural_order
from cotracker_ros.points import grid
from cotracker_ros.streaming import LateFrame, StreamingTracker
from cotracker_ros.streaming.image_range import ImageRange

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
CLOUD = 'sensor_msgs/msg/PointCloud2'
SUFFIXES = ('.mcap', '.db3')
_ZSTD = '.zstd'
_MAGIC = b'\x28\xb5\x2f\xfd'  # of a compressed message; CDR begins with a zero
_NO_HASH = 'RIHS01_' + 64 * '0'


def is_recording(path: str | Path) -> bool:
    """Return whether this is a recording: one of its files, or a folder with such files.

    metadata.yaml need not be there; alone it counts where it is rosbag2's.
    """
    path = Path(path)
    if path.is_dir():
        metadata = path / 'metadata.yaml'
        return bool(_storages(path)) or (
            metadata.is_file()
            and 'rosbag2_bagfile_information' in metadata.read_text('utf-8', 'replace')
        )
    return path.suffix == '.bag' or _is_storage(path)


def _is_storage(path: Path) -> bool:
    return path.name.removesuffix(_ZSTD).endswith(SUFFIXES) and not path.name.startswith('.')


def _storages(folder: Path) -> list[Path]:
    """Return the files of a recording, in their order."""
    files = [path for path in folder.iterdir() if _is_storage(path) and path.is_file()]
    plain = {path.name for path in files}
    return sorted(
        (path for path in files if path.name.removesuffix(_ZSTD) == path.name
         or path.name.removesuffix(_ZSTD) not in plain),
        key=natural_order,
    )  # fmt: skip


def _warn(text: str) -> None:
    print(f'cotracker-track: {text}', file=sys.stderr)


def track_recording(
    source: str | Path,
    output: str | Path,
    tracker: StreamingTracker,
    side: int,
    topic: str | None = None,
    tracks_topic: str = '/tracks',
    image_range: str = 'auto',
    warn: Callable[[str], None] = _warn,
) -> Iterator[tuple[int, int]]:
    """Copy a recording into the new folder `output`, with the tracks of its camera added.

    topic: of the camera; None where there is only one. side: of the grid of points that starts in
    the first image, and again where stamps jump back. image_range: see the node's parameter.

    The recording is what its files hold; metadata.yaml is not read. Every message is copied as it
    is, counted by topic and compared with the files' own counts. Topics whose type neither the
    files nor ROS 2 Humble define are left out, in a line to `warn`. Storage and compression stay;
    tracks carry their image's header and follow it. Yields (images done, images in all) after
    each image. Raises ValueError for what cannot be read or written, after which no output is
    left, and ImportError naming what is missing.
    """
    from rosbags.rosbag2 import ReaderError, Writer, WriterError
    from rosbags.rosbag2.enums import CompressionFormat, CompressionMode, StoragePlugin
    from rosbags.typesys import Stores, get_typestore

    source, output = Path(source), Path(output)
    if output.exists():
        raise ValueError(f'{output}: there already; a recording is not overwritten')
    store = get_typestore(Stores.ROS2_HUMBLE)
    try:
        with ExitStack() as stack:
            readers = _open(source, stack)
            connections = [c for reader in readers for c in reader.connections]
            camera = _camera(source, connections, topic)
            total = sum(c.msgcount for c in connections if _is_of(c, camera))
            follow = _Follower(source, camera, tracker, side, image_range)
            first = readers[0].path
            plugin = StoragePlugin.MCAP if first.suffix == '.mcap' else StoragePlugin.SQLITE3
            # Version 8: the layout that every distribution since Humble reads.
            writer = Writer(output, version=8, storage_plugin=plugin)
            mode = CompressionMode[_compression(source, readers)]
            writer.set_compression(mode, CompressionFormat.ZSTD)
            with writer:
                copies = _copies(source, writer, connections, store, warn)
                tracks = writer.add_connection(tracks_topic, CLOUD, typestore=store)
                copied: Counter[str] = Counter()
                for old, time, raw in _messages(readers):
                    if _key(old) in copies:
                        writer.write(copies[_key(old)], time, raw)
                    copied[old.topic] += 1
                    if not _is_of(old, camera):
                        continue
                    cloud = follow(raw, time * 1e-9)
                    if cloud is not None:
                        writer.write(tracks, time, cloud)
                    yield follow.images, total
                _check_counts(source, connections, copied)
                follow.finish(warn)
    except BaseException as error:
        shutil.rmtree(output, ignore_errors=True)
        if isinstance(error, (ReaderError, WriterError, sqlite3.Error)):
            raise ValueError(f'{source}: {error}') from error
        raise


def recorded_images(source: str | Path, topic: str | None = None) -> Iterator[np.ndarray]:
    """Yield the images (H, W, 3) uint8 RGB of a recording's camera, in the order of recording.

    topic: of the camera; None where there is only one. Raises ValueError for what cannot be
    read, and ImportError naming what is missing.
    """
    source, image_range = Path(source), ImageRange()
    with ExitStack() as stack:
        readers = _open(source, stack)
        camera = _camera(source, [c for reader in readers for c in reader.connections], topic)
        raws = (raw for old, _, raw in _messages(readers) if _is_of(old, camera))
        for number, raw in enumerate(raws, 1):
            try:
                picture = _unpacked(raw, camera.msgtype)[1]
            except Exception as error:  # MessageError, or a runtime's own where bytes are missing
                raise ValueError(f'{source}: {camera.topic}: image {number}: {error}') from error
            frame = picture.rgb(image_range.limits(picture.values))
            image_range.learn()
            yield frame


def _unpacked(raw: bytes, kind: str) -> tuple:
    """Return the message and the Picture of a serialised image."""
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import CompressedImage, Image

    from cotracker_ros.ros import messages

    msg = deserialize_message(bytes(raw), Image if kind == IMAGE else CompressedImage)
    return msg, messages.unpack(msg) if kind == IMAGE else messages.unpack_compressed(msg)


def _open(source: Path, stack: ExitStack) -> list:
    """Open every file of a recording, in the order of their beginnings."""
    from rosbags.rosbag2 import Reader

    if source.suffix == '.bag':
        raise ValueError(f'{source}: of ROS 1; rosbags-convert makes a ROS 2 recording of it')
    files = _storages(source) if source.is_dir() else [source]
    if source.is_dir():
        missing = _listed(source) - {path.name for path in source.iterdir()}
        if missing or not files:
            raise ValueError(f'{source}: files are missing: {", ".join(sorted(missing)) or "all"}')
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    readers = []
    for number, file in enumerate(files):
        reader = Reader(_staged(file, folder, number))
        try:
            reader.open()
        except Exception as error:  # rosbags lets those of its parsers and libraries pass
            raise ValueError(f'{file}: {error or type(error).__name__}') from error
        stack.callback(reader.close)
        readers.append(reader)
    return sorted(readers, key=lambda reader: reader.start_time)


def _listed(folder: Path) -> set[str]:
    """Return the names of the files that metadata.yaml lists; it may be absent or damaged."""
    metadata = folder / 'metadata.yaml'
    if not metadata.is_file():
        return set()
    listed = re.search(
        r'^\s*relative_file_paths:\s*\n((?:\s*- .*\n?)*)',
        metadata.read_text('utf-8', 'replace'),
        re.MULTILINE,
    )
    lines = listed[1].splitlines() if listed else []
    return {Path(line.strip()[2:].strip(' \'"')).name for line in lines if line.strip()}


def _staged(file: Path, folder: Path, number: int) -> Path:
    """Return a file as rosbags can read it, under a plain name.

    SQLite takes ?, # and % in a path for its own; messages that still lie in the journal of a
    database that was not closed would be passed over.
    """
    if not file.is_file():
        raise ValueError(f'{file}: no such file')
    name = file.name.removesuffix(_ZSTD)
    staged = folder / f'{number}{Path(name).suffix}'
    if file.name.endswith(_ZSTD):
        with _zstd().open(file, 'rb') as packed, staged.open('wb') as plain:
            shutil.copyfileobj(packed, plain)
        return staged
    journal = file.with_name(f'{file.name}-wal')
    if journal.is_file() and journal.stat().st_size:
        shutil.copyfile(file, staged)
        shutil.copyfile(journal, staged.with_name(f'{staged.name}-wal'))
        with sqlite3.connect(staged) as database:
            database.execute('PRAGMA journal_mode=DELETE')
        database.close()
        return staged
    staged.symlink_to(file.resolve())
    return staged


def _compression(source: Path, readers: list) -> str:
    """Return the name of rosbags' mode for how a recording was compressed."""
    files = _storages(source) if source.is_dir() else [source]
    if any(file.name.endswith(_ZSTD) for file in files):
        return 'FILE'
    if any(_packed(reader) for reader in readers):
        return 'MESSAGE'
    chunks = [c for reader in readers for c in getattr(reader.storage, 'chunks', ())]
    return 'STORAGE' if any(chunk.compression for chunk in chunks) else 'NONE'


def _packed(reader) -> bool:
    """Return whether the first message of a file is compressed by itself."""
    first = next(iter(reader.messages()), None)
    return first is not None and bytes(first[2][:4]) == _MAGIC


def _decompressed(raw: bytes) -> bytes:
    return _zstd().decompress(raw) if bytes(raw[:4]) == _MAGIC else raw


def _zstd():
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        from backports import zstd  # comes with rosbags
    return zstd


def _messages(readers: list) -> Iterator[tuple[Any, int, bytes]]:
    """Yield the messages of all files, one file after the other, decompressed."""
    for reader in readers:
        for connection, time, raw in reader.messages():
            yield connection, time, _decompressed(raw)


def _key(connection) -> tuple[str, str, str]:
    """Return what a topic is known by in all files; `ext` is its QoS."""
    return connection.topic, connection.msgtype, repr(connection.ext)


def _is_of(connection, camera) -> bool:
    return (connection.topic, connection.msgtype) == (camera.topic, camera.msgtype)


def _copies(source: Path, writer, connections: list, store, warn: Callable) -> dict:
    """Announce the topics in the new recording, with definition and QoS; tell what is left out."""
    from rosbags.interfaces import MessageDefinitionFormat
    from rosbags.typesys import TypesysError

    copies, left_out = {}, {}
    known = {c.msgtype: c for c in connections if c.msgdef.format != MessageDefinitionFormat.NONE}
    for old in connections:
        if _key(old) in copies or (old.topic, old.msgtype) in left_out:
            continue
        definition = known.get(old.msgtype)
        if definition is not None:
            digest = old.digest or definition.digest or _hash(definition)
            types: dict[str, Any] = {'msgdef': definition.msgdef.data, 'rihs01': digest}
        else:
            types = {'typestore': store}
        try:
            copies[_key(old)] = writer.add_connection(
                old.topic,
                old.msgtype,
                **types,
                serialization_format=old.ext.serialization_format,
                offered_qos_profiles=old.ext.offered_qos_profiles,
            )
        except (TypesysError, KeyError):
            left_out[old.topic, old.msgtype] = sum(
                c.msgcount for c in connections if (c.topic, c.msgtype) == (old.topic, old.msgtype)
            )
    if left_out:
        names = (f'{topic} ({kind}, {n} messages)' for (topic, kind), n in left_out.items())
        warn(f'{source}: left out, as nothing defines their types: {", ".join(names)}')
    return copies


def _hash(connection) -> str:
    """Return the hash of a type that is defined by its recording."""
    from rosbags.interfaces import MessageDefinitionFormat
    from rosbags.typesys import (
        Stores,
        TypesysError,
        get_types_from_idl,
        get_types_from_msg,
        get_typestore,
    )

    store, text = get_typestore(Stores.EMPTY), connection.msgdef.data
    try:
        if connection.msgdef.format == MessageDefinitionFormat.MSG:
            store.register(get_types_from_msg(text, connection.msgtype))
        else:
            store.register(get_types_from_idl(text))
        return store.hash_rihs01(connection.msgtype)
    except (TypesysError, KeyError, ValueError):
        return _NO_HASH  # the definition is copied all the same


def _check_counts(source: Path, connections: list, copied: Counter) -> None:
    """Raise ValueError where a topic lost messages on the way."""
    counts: Counter[str] = Counter()
    for connection in connections:
        counts[connection.topic] += connection.msgcount
    for topic, count in sorted(counts.items()):
        if copied[topic] != count:
            raise ValueError(
                f'{source}: {topic} has {count} messages by the index of its files, but '
                f'{copied[topic]} could be read'
            )


class _Follower:
    """Serialised images in, serialised tracks out."""

    def __init__(
        self, source: Path, camera, tracker: StreamingTracker, side: int, image_range: str
    ) -> None:
        from cotracker_ros.ros.moments import Moments

        self._where = f'{source}: {camera.topic}'
        self._kind = camera.msgtype
        self._tracker, self._side, self._jumps = tracker, side, tracker.jumps
        self._range, self._moments = ImageRange(image_range), Moments()
        self._bad: list[str] = []
        self.images = self.tracked = self.late = 0

    def __call__(self, raw: bytes, arrival: float) -> bytes | None:
        """Track into one more image, recorded at `arrival` (s); None for one not tracked."""
        from rclpy.serialization import serialize_message

        from cotracker_ros.ros import messages

        self.images += 1
        try:
            msg, picture = _unpacked(raw, self._kind)
        except Exception as error:  # MessageError, or a runtime's own where bytes are missing
            self._bad.append(f'image {self.images}: {error}')
            return None
        frame = picture.rgb(self._range.limits(picture.values))
        self._range.learn()
        moment = self._moments.of(messages.stamp_seconds(msg.header), arrival)
        if not self.tracked:
            self._tracker.add_points(grid(self._side, frame.shape[:2]))
        try:
            tracks = self._tracker.track(frame, moment)
        except LateFrame:
            self.late += 1
            return None
        self.tracked += 1
        if self._tracker.jumps != self._jumps:  # which dropped all points
            self._tracker.add_points(grid(self._side, frame.shape[:2]), tracks.stamp)
            self._jumps = self._tracker.jumps
        return bytes(serialize_message(messages.tracks_to_cloud(tracks, msg.header)))

    def finish(self, warn: Callable[[str], None]) -> None:
        """Tell of images without tracks; raises ValueError where there are no others."""
        if not self.tracked:
            raise ValueError(f'{self._where}: {self._bad[0] if self._bad else "no images"}')
        if self._bad:
            warn(f'{self._where}: {len(self._bad)} images are not usable, such as {self._bad[0]}')
        if self.late:
            warn(f'{self._where}: {self.late} images came late, out of order, and are not tracked')


def _camera(source: Path, connections: list, topic: str | None):
    """Return the connection of the camera to track."""
    cameras = {c.topic: c for c in connections if c.msgtype in (IMAGE, COMPRESSED)}
    empty = [
        name for name in cameras if not sum(c.msgcount for c in connections if c.topic == name)
    ]
    if topic in empty or (topic is None and cameras and len(empty) == len(cameras)):
        raise ValueError(f'{source}: no images on {topic or ", ".join(sorted(cameras))}')
    cameras = {name: camera for name, camera in cameras.items() if name not in empty}
    if topic is None and len(cameras) == 1:
        return next(iter(cameras.values()))
    if topic in cameras:
        return cameras[topic]
    there = ', '.join(sorted(cameras)) or 'none'
    what = 'which camera?' if topic is None else f'no images on {topic}.'
    raise ValueError(f'{source}: {what} Topics with images: {there} (--topic)')
