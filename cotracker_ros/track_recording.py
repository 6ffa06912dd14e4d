"""Recordings (rosbag2: MCAP or SQLite) in, the same recording with a topic of tracks out.

Needs the package `rosbags` and the ROS messages. The tracks are those that the node would have
published had it kept up with every image.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cotracker_ros.streaming import LateFrame, StreamingTracker

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
CLOUD = 'sensor_msgs/msg/PointCloud2'


def is_recording(path: str | Path) -> bool:
    """Return whether this is a rosbag2 folder or one of its files."""
    path = Path(path)
    return path.suffix in ('.mcap', '.db3') or (path / 'metadata.yaml').is_file()


def track_recording(
    source: str | Path,
    output: str | Path,
    tracker: StreamingTracker,
    side: int,
    topic: str | None = None,
    tracks_topic: str = '/tracks',
) -> Iterator[tuple[int, int]]:
    """Copy a recording into the new folder `output`, with the tracks of its camera added.

    topic: of the camera; None where there is only one. side: of the grid of points that starts in
    the first image, and again where stamps jump back. Every message is copied as it is; tracks
    carry their image's header and follow it. Yields (images done, images in all) after each image.
    Raises ValueError for what cannot be read or written, after which no output is left, and
    ImportError naming what is missing.
    """
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
    from rosbags.typesys import Stores, get_typestore

    source, output = Path(source), Path(output)
    if output.exists():
        raise ValueError(f'{output}: there already; a recording is not overwritten')
    store = get_typestore(Stores.ROS2_HUMBLE)
    mcap = source.suffix == '.mcap' or (source.is_dir() and any(source.glob('*.mcap')))
    plugin = StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3
    try:
        with AnyReader([source], default_typestore=store) as reader:
            camera = _camera(source, reader.connections, topic)
            follow = _Follower(source, camera, tracker, side)
            # Version 8: the layout that every distribution since Humble reads.
            with Writer(output, version=8, storage_plugin=plugin) as writer:
                copies = {old.id: _copy(writer, old, reader) for old in reader.connections}
                tracks = writer.add_connection(tracks_topic, CLOUD, typestore=store)
                for old, time, raw in reader.messages():
                    writer.write(copies[old.id], time, raw)
                    if old.id != camera.id:
                        continue
                    cloud = follow(raw)
                    if cloud is not None:
                        writer.write(tracks, time, cloud)
                    yield follow.images, camera.msgcount
    except BaseException as error:
        shutil.rmtree(output, ignore_errors=True)
        if isinstance(error, (AnyReaderError, WriterError)):
            raise ValueError(f'{source}: {error}') from error
        raise


def recorded_images(source: str | Path, topic: str | None = None) -> Iterator[np.ndarray]:
    """Yield the images (H, W, 3) uint8 RGB of a recording's camera, in the order of recording.

    topic: of the camera; None where there is only one. Raises ValueError for what cannot be
    read, and ImportError naming what is missing.
    """
    from rclpy.serialization import deserialize_message
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.typesys import Stores, get_typestore
    from sensor_msgs.msg import CompressedImage, Image

    from cotracker_ros.ros import messages

    source = Path(source)
    try:
        store = get_typestore(Stores.ROS2_HUMBLE)
        with AnyReader([source], default_typestore=store) as reader:
            camera = _camera(source, reader.connections, topic)
            plain = camera.msgtype == IMAGE
            convert = messages.image_to_array if plain else messages.compressed_to_array
            for number, (_, _, raw) in enumerate(reader.messages([camera]), 1):
                try:
                    yield convert(
                        deserialize_message(bytes(raw), Image if plain else CompressedImage)
                    )
                except messages.MessageError as error:
                    where = f'{source}: {camera.topic}'
                    raise ValueError(f'{where}: image {number}: {error}') from error
    except AnyReaderError as error:
        raise ValueError(f'{source}: {error}') from error


class _Follower:
    """Serialised images in, serialised tracks out."""

    def __init__(self, source: Path, camera, tracker: StreamingTracker, side: int) -> None:
        self._where = f'{source}: {camera.topic}'
        self._plain = camera.msgtype == IMAGE
        self._tracker, self._side, self._jumps = tracker, side, tracker.jumps
        self.images = 0

    def __call__(self, raw: bytes) -> bytes | None:
        """Track into one more image; None for one that came too late to be tracked."""
        from rclpy.serialization import deserialize_message, serialize_message
        from sensor_msgs.msg import CompressedImage, Image

        from cotracker_ros.ros import messages
        from cotracker_ros.track_video import grid

        msg = deserialize_message(bytes(raw), Image if self._plain else CompressedImage)
        self.images += 1
        convert = messages.image_to_array if self._plain else messages.compressed_to_array
        try:
            frame = convert(msg)
        except messages.MessageError as error:
            raise ValueError(f'{self._where}: image {self.images}: {error}') from error
        if self.images == 1:
            self._tracker.add_points(grid(self._side, frame.shape[:2]))
        try:
            tracks = self._tracker.track(frame, messages.stamp_seconds(msg.header))
        except LateFrame:
            return None
        if self._tracker.jumps != self._jumps:  # which dropped all points
            self._tracker.add_points(grid(self._side, frame.shape[:2]), tracks.stamp)
            self._jumps = self._tracker.jumps
        return bytes(serialize_message(messages.tracks_to_cloud(tracks, msg.header)))


def _copy(writer, old, reader):
    """Announce a topic of the old recording in the new one, with its definition and QoS."""
    known = {'msgdef': old.msgdef.data, 'rihs01': old.digest}
    return writer.add_connection(
        old.topic,
        old.msgtype,
        **(known if old.digest else {'typestore': reader.typestore}),
        serialization_format=old.ext.serialization_format,
        offered_qos_profiles=old.ext.offered_qos_profiles,
    )


def _camera(source: Path, connections: list, topic: str | None):
    """Return the connection of the camera to track."""
    cameras = {c.topic: c for c in connections if c.msgtype in (IMAGE, COMPRESSED)}
    if topic is None and len(cameras) == 1:
        return next(iter(cameras.values()))
    if topic in cameras:
        return cameras[topic]
    there = ', '.join(sorted(cameras)) or 'none'
    what = 'which camera?' if topic is None else f'no images on {topic}.'
    raise ValueError(f'{source}: {what} Topics with images: {there} (--topic)')
