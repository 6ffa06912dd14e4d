"""Recordings in, the same recordings with tracks out."""

import numpy as np
import pytest

from cotracker_ros import track_video
from cotracker_ros.engines import Engine
from cotracker_ros.engines.metadata import Metadata
from cotracker_ros.streaming import StreamingTracker

pytest.importorskip('rosbags')
pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header, String

from cotracker_ros.ros.messages import array_to_image, cloud_to_tracks


class Standing(Engine):
    """Points stay where they were put."""

    name, device, precision = 'standing', 'none', 'f32'

    def __init__(self, slots):
        super().__init__(Metadata(1, 'm', '', 48, 64, 8, 1, 'fp32', '', '', ''), 1, slots, 0)
        self.reset()

    def _step(self, inputs):
        self.xy = np.where(inputs['query'][..., None], inputs['query_xy'], self.xy)
        live = inputs['live'].astype(np.float32)
        return {'xy': self.xy * live[..., None], 'visibility': live, 'confidence': live}

    def reset(self):
        self.xy = np.zeros((1, self.slots, 2), np.float32)


@pytest.fixture(autouse=True)
def standing(monkeypatch):
    tracker = lambda model, count, *_: StreamingTracker(Standing(count))  # noqa: E731
    monkeypatch.setattr(track_video, 'StreamingTracker', tracker)


def write_bag(path, plugin=StoragePlugin.MCAP, cameras=('/camera/image_raw',), stamps=range(5)):
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=9, storage_plugin=plugin) as writer:
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
            np.stack([rows['x'], rows['y']], 1), track_video.grid(3, (96, 128)), atol=1e-4
        )
    with AnyReader([output]) as reader:
        assert {c.msgtype for c in reader.connections} == {
            'sensor_msgs/msg/Image', 'std_msgs/msg/String', 'sensor_msgs/msg/PointCloud2',
        }  # fmt: skip


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
