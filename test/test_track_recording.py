"""Recordings in, the same recordings with tracks out."""

import sys

import numpy as np
import pytest
from stand_in_engine import Standing

from cotracker_ros import track_video
from cotracker_ros.points import grid
from cotracker_ros.streaming import StreamingTracker

pytest.importorskip('rosbags')
pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header, String

from cotracker_ros.ros.messages import array_to_image, cloud_to_tracks
from cotracker_ros.track_recording import is_recording


@pytest.fixture(autouse=True)
def standing(monkeypatch):
    tracker = lambda model, count, *_: StreamingTracker(Standing(count))  # noqa: E731
    monkeypatch.setattr(track_video, 'StreamingTracker', tracker)


def write_bag(
    path,
    plugin=StoragePlugin.MCAP,
    cameras=('/camera/image_raw',),
    stamps=range(5),
    compression=CompressionMode.NONE,
):
    store = get_typestore(Stores.ROS2_JAZZY)
    bag = Writer(path, version=9, storage_plugin=plugin)
    bag.set_compression(compression, CompressionFormat.ZSTD)
    with bag as writer:
        kind = 'sensor_msgs/msg/Image'
        images = [writer.add_connection(name, kind, typestore=store) for name in cameras]
        chat = writer.add_connection('/chat', 'std_msgs/msg/String', typestore=store)
        for i, t in enumerate(stamps):
            header = Header(stamp=Time(sec=100 + t, nanosec=7), frame_id='eye')
            image = array_to_image(np.full((96, 128, 3), 20 * t, np.uint8), header)
            for connection in images:
                writer.write(connection, i * 1000, bytes(serialize_message(image)))
            writer.write(chat, i * 1000 + 1, bytes(serialize_message(String(data=str(t)))))
    return path


def contents(path):
    with AnyReader([path]) as reader:
        return [(c.topic, time, bytes(raw)) for c, time, raw in reader.messages()]


@pytest.mark.parametrize('plugin', StoragePlugin)
def test_everything_is_copied_and_every_image_has_its_tracks(tmp_path, plugin, capsys):
    source, output = write_bag(tmp_path / 'bag', plugin), tmp_path / 'bag_tracks'
    assert track_video.main([str(source), '--grid', '3']) == 0
    assert '5 images, 9 points' in capsys.readouterr().out
    before, after = contents(source), contents(output)
    assert [m for m in after if m[0] != '/tracks'] == before
    clouds = [(t, deserialize_message(raw, PointCloud2)) for n, t, raw in after if n == '/tracks']
    assert [t for t, _ in clouds] == [0, 1000, 2000, 3000, 4000]
    for i, (_, cloud) in enumerate(clouds):
        stamp = cloud.header.stamp
        assert (stamp.sec, stamp.nanosec, cloud.header.frame_id) == (100 + i, 7, 'eye')
        rows = cloud_to_tracks(cloud)
        np.testing.assert_allclose(
            np.stack([rows['x'], rows['y']], 1), grid(3, (96, 128)), atol=1e-4
        )
    with AnyReader([output]) as reader:
        assert {c.msgtype for c in reader.connections} == {
            'sensor_msgs/msg/Image', 'std_msgs/msg/String', 'sensor_msgs/msg/PointCloud2',
        }  # fmt: skip


def test_without_rosbags_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    source = write_bag(tmp_path / 'bag')
    monkeypatch.setitem(sys.modules, 'rosbags.rosbag2', None)
    assert track_video.main([str(source), '--grid', '2']) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('cotracker-track: ') and 'pip install rosbags' in line


def test_a_single_mcap_file(tmp_path):
    file = write_bag(tmp_path / 'bag') / 'bag.mcap'
    output = tmp_path / 'out'
    assert track_video.main([str(file), '--grid', '2', '--output', str(output)]) == 0
    assert sum(topic == '/tracks' for topic, *_ in contents(output)) == 5


def test_compressed_images_and_a_clock_that_jumps_back(tmp_path):
    import cv2

    store, source = get_typestore(Stores.ROS2_JAZZY), tmp_path / 'bag'
    data = cv2.imencode('.png', np.zeros((96, 128, 3), np.uint8))[1].tobytes()
    with Writer(source, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        name = 'sensor_msgs/msg/CompressedImage'
        camera = writer.add_connection('/camera/compressed', name, typestore=store)
        for i, sec in enumerate((50, 51, 52, 10, 11)):
            header = Header(stamp=Time(sec=sec))
            image = CompressedImage(header=header, format='png', data=data)
            writer.write(camera, i, bytes(serialize_message(image)))
    assert track_video.main([str(source), '--grid', '2']) == 0
    clouds = [
        deserialize_message(raw, PointCloud2)
        for topic, _, raw in contents(tmp_path / 'bag_tracks')
        if topic == '/tracks'
    ]
    assert [cloud.width for cloud in clouds] == [4, 4, 4, 0, 4]


@pytest.mark.parametrize(
    ('cameras', 'arguments', 'message'),
    [
        (('/a', '/b'), [], 'which camera? Topics with images: /a, /b'),
        (('/a', '/b'), ['--topic', '/c'], 'no images on /c'),
        ((), [], 'Topics with images: none'),
        (('/a',), ['--image-range', 'wide'], 'image_range must be auto'),
        (('/a',), ['--points', 'x.csv'], 'are for videos'),
        (('/a',), ['--backward'], 'are for videos'),
        (('/a',), ['--output', '{bag}', '--grid', '2'], 'there already'),
    ],
)
def test_one_clear_message_and_no_output(tmp_path, capsys, cameras, arguments, message):
    source = write_bag(tmp_path / 'bag', cameras=cameras)
    arguments = [argument.format(bag=source) for argument in arguments]
    assert track_video.main([str(source), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


def test_broken_recordings(tmp_path, capsys):
    (tmp_path / 'x.mcap').write_bytes(b'nothing')
    assert track_video.main([str(tmp_path / 'x.mcap')]) == 1
    assert 'x.mcap' in capsys.readouterr().err
    assert track_video.main([str(tmp_path / 'none.mcap')]) == 1
    assert 'none.mcap' in capsys.readouterr().err


def track(source, output, *arguments) -> int:
    return track_video.main([str(source), '--grid', '2', '--output', str(output), *arguments])


def tracks_in(path) -> int:
    return sum(topic == '/tracks' for topic, *_ in contents(path))


@pytest.mark.parametrize('plugin', StoragePlugin)
@pytest.mark.parametrize('mode', list(CompressionMode))
def test_storage_and_compression_stay(tmp_path, plugin, mode):
    if mode == CompressionMode.STORAGE and plugin == StoragePlugin.SQLITE3:
        pytest.skip('SQLite has none of its own')
    source = write_bag(tmp_path / 'bag', plugin, compression=mode)
    output = tmp_path / 'out'
    assert track(source, output) == 0
    names = {path.name.replace('bag', 'out') for path in source.iterdir()}
    assert {path.name for path in output.iterdir()} == names
    for line in ('compression_mode', 'compression_format', 'storage_identifier'):
        found = [
            [row for row in (folder / 'metadata.yaml').read_text().splitlines() if line in row]
            for folder in (source, output)
        ]
        assert found[0] == found[1]
    assert [m for m in contents(output) if m[0] != '/tracks'] == contents(source)
    assert tracks_in(output) == 5
    chunks = [row for row in (output / 'out.mcap').read_bytes().split(b'zstd')] if (
        mode == CompressionMode.STORAGE) else []  # fmt: skip
    assert mode != CompressionMode.STORAGE or len(chunks) > 1


@pytest.mark.parametrize('plugin', StoragePlugin)
@pytest.mark.parametrize('mode', [CompressionMode.NONE, CompressionMode.FILE])
def test_metadata_need_not_be_there(tmp_path, plugin, mode):
    source = write_bag(tmp_path / 'bag', plugin, compression=mode)
    before = contents(source)
    (source / 'metadata.yaml').unlink()
    (source / '._bag.mcap').write_bytes(b'of a Macintosh')
    assert is_recording(source)
    assert track(source, tmp_path / 'out') == 0
    assert [m for m in contents(tmp_path / 'out') if m[0] != '/tracks'] == before


@pytest.mark.parametrize('edit', [
    ('reliability: reliable', 'reliability: best_effort'),  # of nothing here: see the next line
    ('offered_qos_profiles: []', 'offered_qos_profiles: [{history: 3, depth: 0, reliability: 2, '
     'durability: 2, deadline: {sec: 1, nsec: 2}, lifespan: {sec: 1, nsec: 2}, liveliness: 1, '
     'liveliness_lease_duration: {sec: 1, nsec: 2}, avoid_ros_namespace_conventions: false}]'),
    ('message_count: 5', 'message_count: 0'),
    ('name: /camera/image_raw', 'name: /another'),
    ('type: sensor_msgs/msg/Image', 'type: std_msgs/msg/String'),
    ('version: 9', 'version: 77'),
    ('rosbag2_bagfile_information', 'nothing: [['),
])  # fmt: skip
def test_metadata_that_differs_from_the_files_loses_nothing(tmp_path, edit):
    """QoS is how rosbags finds a topic of metadata.yaml in its files; all else is only said."""
    source = write_bag(tmp_path / 'bag')
    before = contents(source)
    metadata = source / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace(*edit))
    assert track(source, tmp_path / 'out') == 0
    assert [m for m in contents(tmp_path / 'out') if m[0] != '/tracks'] == before
    assert tracks_in(tmp_path / 'out') == 5


def test_a_file_that_is_listed_and_not_there_is_an_error(tmp_path, capsys):
    source = write_bag(tmp_path / 'bag')
    (source / 'bag.mcap').rename(source / 'renamed.mcap')
    assert track(source, tmp_path / 'out') == 1
    assert 'files are missing: bag.mcap' in capsys.readouterr().err
    (source / 'renamed.mcap').unlink()
    assert track(source, tmp_path / 'out') == 1


def test_messages_that_cannot_be_read_are_an_error_that_names_the_topic(
    tmp_path, capsys, monkeypatch
):
    from rosbags.rosbag2 import Reader

    source, read = write_bag(tmp_path / 'bag'), Reader.messages

    def all_but_one(self, *args, **kwargs):
        messages = list(read(self, *args, **kwargs))
        return iter([*messages[:3], *messages[4:]])  # the second /chat

    monkeypatch.setattr(Reader, 'messages', all_but_one)
    assert track(source, tmp_path / 'out') == 1
    assert '/chat has 5 messages by the index of its files, but 4' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('cameras', [('/a',), ('/a', '/b')])
def test_a_camera_without_images_is_an_error(tmp_path, capsys, cameras):
    source = write_bag(tmp_path / 'bag', cameras=cameras, stamps=())
    assert track(source, tmp_path / 'out') == 1
    assert 'no images on /a' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_an_unknown_type_without_a_definition_is_left_out_in_one_line(tmp_path, capsys):
    """As SQLite recordings before Iron are: they hold no definitions at all."""
    import sqlite3

    source = write_bag(tmp_path / 'bag', StoragePlugin.SQLITE3)
    with sqlite3.connect(source / 'bag.db3') as database:
        database.execute('DELETE FROM message_definitions')
        database.execute("UPDATE topics SET type = 'our_msgs/msg/Odd' WHERE name = '/chat'")
    database.close()
    assert track(source, tmp_path / 'out') == 0
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    assert 'left out, as nothing defines their types: /chat (our_msgs/msg/Odd, 5 messages)' in err
    assert {topic for topic, *_ in contents(tmp_path / 'out')} == {'/camera/image_raw', '/tracks'}
    assert tracks_in(tmp_path / 'out') == 5


@pytest.mark.parametrize('plugin', StoragePlugin)
def test_a_type_of_ones_own_is_copied_with_its_definition(tmp_path, plugin, capsys):
    source = tmp_path / 'bag'
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(source, version=9, storage_plugin=plugin) as writer:
        camera = writer.add_connection('/a', 'sensor_msgs/msg/Image', typestore=store)
        own = writer.add_connection(
            '/own', 'our_msgs/msg/Odd', msgdef='int32 number\nour_msgs/Gone there\n',
            rihs01='RIHS01_' + 64 * '1',
        )  # fmt: skip
        image = array_to_image(np.zeros((96, 128, 3), np.uint8), Header(stamp=Time(sec=1)))
        writer.write(camera, 1, bytes(serialize_message(image)))
        writer.write(own, 2, b'\0\1\0\0\5\0\0\0')
    assert track(source, tmp_path / 'out') == 0
    assert not capsys.readouterr().err
    with Reader(tmp_path / 'out') as reader:
        copy = next(c for c in reader.connections if c.topic == '/own')
        assert copy.msgtype == 'our_msgs/msg/Odd' and copy.msgcount == 1
        assert copy.msgdef.data.startswith('int32 number\nour_msgs/Gone there')


def test_parts_of_a_recording_come_in_the_order_of_numbers(tmp_path):
    """Without metadata.yaml; part 10 is not before part 9."""
    source = tmp_path / 'bag'
    source.mkdir()
    for part in (8, 9, 10):
        whole = write_bag(tmp_path / f'p{part}', stamps=(part,))
        (whole / f'p{part}.mcap').rename(source / f'bag_{part}.mcap')
    assert track(source, tmp_path / 'out') == 0
    clouds = [deserialize_message(raw, PointCloud2) for n, _, raw in contents(tmp_path / 'out')
              if n == '/tracks']  # fmt: skip
    assert sorted(cloud.header.stamp.sec for cloud in clouds) == [108, 109, 110]
    assert all(cloud.width == 4 for cloud in clouds)  # none came late, or after a jump


@pytest.mark.parametrize('name', ['a b', "bob's", 'what?', 'a#b', '100%', 'a:b', 'ü'])
@pytest.mark.parametrize('plugin', StoragePlugin)
def test_any_name(tmp_path, name, plugin):
    source = write_bag(tmp_path / 'plain', plugin)
    suffix = '.mcap' if plugin == StoragePlugin.MCAP else '.db3'
    file = (source / f'plain{suffix}').rename(tmp_path / f'{name}{suffix}')
    assert track(file, tmp_path / f'{name} out') == 0


def test_a_journal_that_was_not_closed_is_read(tmp_path):
    """A recorder that lost its power leaves messages in the -wal file."""
    import shutil
    import sqlite3

    source = write_bag(tmp_path / 'bag', StoragePlugin.SQLITE3)
    database = sqlite3.connect(source / 'bag.db3')
    database.execute('PRAGMA journal_mode=WAL')
    database.execute('PRAGMA wal_autocheckpoint=0')
    database.execute(
        'INSERT INTO messages (topic_id, timestamp, data) '
        'SELECT topic_id, timestamp + 9000, data FROM messages WHERE topic_id = 1'
    )
    database.commit()
    crashed = tmp_path / 'crashed'
    shutil.copytree(source, crashed)
    database.close()
    assert track(crashed, tmp_path / 'out') == 0
    assert sum(topic == '/camera/image_raw' for topic, *_ in contents(tmp_path / 'out')) == 10


def test_images_that_are_none_are_told_and_the_others_tracked(tmp_path, capsys):
    store, source = get_typestore(Stores.ROS2_JAZZY), tmp_path / 'bag'
    with Writer(source, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        camera = writer.add_connection('/a', 'sensor_msgs/msg/Image', typestore=store)
        for i in range(4):
            image = array_to_image(
                np.zeros((96, 128, 3), np.uint8), Header(stamp=Time(nanosec=i * 10**8))
            )
            if i in (0, 2):
                image.height = 1000
            writer.write(camera, i, bytes(serialize_message(image)))
    assert track(source, tmp_path / 'out') == 0
    assert '2 images are not usable, such as image 1: image data has' in capsys.readouterr().err
    assert tracks_in(tmp_path / 'out') == 2


def test_a_camera_without_stamps_is_tracked_by_the_time_of_recording(tmp_path):
    store, source = get_typestore(Stores.ROS2_JAZZY), tmp_path / 'bag'
    with Writer(source, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        camera = writer.add_connection('/a', 'sensor_msgs/msg/Image', typestore=store)
        for i in range(4):
            image = array_to_image(np.zeros((96, 128, 3), np.uint8), Header())
            writer.write(camera, i * 10**8, bytes(serialize_message(image)))
    assert track(source, tmp_path / 'out') == 0
    clouds = [deserialize_message(raw, PointCloud2) for n, _, raw in contents(tmp_path / 'out')
              if n == '/tracks']  # fmt: skip
    assert [cloud.header.stamp for cloud in clouds] == [Time()] * 4
    assert [cloud_to_tracks(cloud)['age'].tolist()[0] for cloud in clouds] == [0, 1, 2, 3]


def test_a_recording_of_ros_1_says_what_to_do(tmp_path, capsys):
    (tmp_path / 'old.bag').write_bytes(b'#ROSBAG V2.0\n')
    assert track(tmp_path / 'old.bag', tmp_path / 'out') == 1
    assert 'rosbags-convert' in capsys.readouterr().err


def test_images_beside_a_metadata_file_of_another_kind_are_no_recording(tmp_path):
    (tmp_path / 'metadata.yaml').write_text('camera: left\n')
    assert not is_recording(tmp_path)
