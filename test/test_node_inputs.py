"""What cameras and simulators really deliver, over real DDS."""

import itertools
import time
from array import array

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

from conftest import texture
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point, PointStamped
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from cotracker_ros.ros.messages import cloud_to_tracks
from cotracker_ros.streaming import VISIBLE


def wide(tracker, picture: np.ndarray, encoding: str, dtype: str = '<u2') -> Image:
    """Return the next image with the grey values of a picture, in another type."""
    values = np.ascontiguousarray(picture).astype(dtype)
    return Image(
        header=tracker.header(), height=values.shape[0], width=values.shape[1], encoding=encoding,
        step=values.shape[1] * values.itemsize, data=array('B', values.tobytes()),
    )  # fmt: skip


def answer(tracker, msg) -> np.ndarray:
    """Return the tracks of one image, which is sent."""
    before = len(tracker.tracks)
    tracker.send(msg)
    tracker.until(lambda: len(tracker.tracks) > before)
    return cloud_to_tracks(tracker.tracks[-1])


def test_a_picture_that_stands_still_is_tracked(start_tracker):
    """A simulator has no noise: the scene is still, not the camera frozen."""
    tracker = start_tracker(initial_grid=2, frozen_after=2)
    for _ in range(6):
        rows = tracker.track(texture())
        assert len(rows) == 4 and (rows['flags'] & VISIBLE).all()
    clicks = tracker.publisher(Point, 'image_mouse_left')
    clicks.publish(Point(x=50.0, y=60.0))
    tracker.until(lambda: len(tracker.track(texture())) == 5)
    assert (tracker.track(texture())['flags'] & VISIBLE).all()

    def told(status, values):
        return tracker.track(texture()) is not None and 'frozen' in status.message

    assert tracker.diagnostic(told).level == DiagnosticStatus.WARN
    assert tracker.set('hold_frozen', True).successful
    tracker.until(lambda: not (tracker.track(texture())['flags'] & VISIBLE).any())


def test_a_small_thing_that_moves_before_an_empty_ground_is_seen(start_tracker):
    """Between the pixels of a coarse look, nothing changes."""
    tracker = start_tracker(initial_grid=0, frozen_after=1, hold_frozen='true')
    for shift in range(8):
        picture = np.full((240, 320, 3), 90, np.uint8)
        picture[101:106, 101 + shift : 106 + shift] = 200
        tracker.track(picture)
    values = {v.key: v.value for v in tracker.diagnostic(lambda s, v: True).values}
    assert values['images blank or frozen'] == '0'


def test_12_bits_in_16_are_tracked_as_8_are(start_tracker):
    tracker = start_tracker(initial_grid=2)
    for encoding in ('bayer_rggb16', 'mono16'):
        for number in range(4):
            grey = texture(number)[..., 1].astype(int)
            rows = answer(tracker, wide(tracker, grey << 4, encoding))
            assert len(rows) == 4 and (rows['flags'] & VISIBLE).all()
    status = tracker.diagnostic(lambda s, v: v['images blank or frozen'] == '0')
    assert 'blank' not in status.message
    assert tracker.set('image_range', 'bits:32').successful
    answer(tracker, wide(tracker, grey << 4, encoding))
    tracker.diagnostic(
        lambda s, v: (
            answer(tracker, wide(tracker, grey << 4, encoding)) is not None
            and 'blank in the image_range bits:32: its values lie between' in s.message
        )
    )
    assert not tracker.set('image_range', 'bits:99').successful


def test_a_mask_of_labels_holds_the_initial_points(start_tracker):
    tracker = start_tracker(initial_grid=4)
    labels = np.zeros((240, 320), np.int64)
    labels[60:120, 200:280] = 3
    for encoding, dtype in (('16UC1', '<u2'), ('32SC1', '<i4')):
        tracker.send(wide(tracker, labels, encoding, dtype), 'tracker/mask')
        tracker.until(lambda: tracker.call(Trigger, '~/resample') and inside(tracker.track()))
        labels = np.roll(labels, 40, 0)
    tracker.send(wide(tracker, 0 * labels, '16UC1'), 'tracker/mask')
    tracker.diagnostic(lambda s, v: 'the mask is 0 everywhere' in s.message)
    tracker.until(lambda: tracker.call(Trigger, '~/resample') and not len(tracker.track()))


def inside(rows) -> bool:
    """Whether all sixteen points lie in the labelled columns."""
    return len(rows) == 16 and bool((rows['x'] > 199).all() and (rows['x'] < 280).all())


def stampless(tracker, picture=None) -> Image:
    msg = tracker.image(picture)
    msg.header = Header(frame_id=msg.header.frame_id)
    return msg


def test_a_camera_without_stamps(start_tracker):
    """Points are refilled as time passes, and the header stays as it is."""
    tracker = start_tracker(initial_grid=0, target_points=20)
    tracker.until(lambda: len(answer(tracker, stampless(tracker))) == 20)
    assert tracker.call(Trigger, '~/clear').success
    tracker.until(lambda: len(answer(tracker, stampless(tracker))) == 20)
    assert tracker.tracks[-1].header.stamp == Header().stamp
    tracker.diagnostic(
        lambda s, v: (
            answer(tracker, stampless(tracker)) is not None
            and 'the stamps of the images are 0: their arrival counts' in s.message
        )
    )


# A node that is busy between an image and the depth image that was published with it.
BUSY = """
import time
from cotracker_ros.ros.camera_tracker import CameraTracker
taken = CameraTracker._on_image
def busy(self, *arguments):
    taken(self, *arguments)
    time.sleep(0.3)
CameraTracker._on_image = busy
import cotracker_ros.ros.node as node
raise SystemExit(node.main())
"""


def test_depth_without_stamps_is_of_the_same_image(start_tracker):
    tracker = start_tracker(('-c', BUSY), initial_grid=2, depth=True)
    calibration = tracker.publisher(CameraInfo, 'camera_info')
    info = CameraInfo(width=320, height=240, k=[300.0, 0, 160, 0, 300, 120, 0, 0, 1])
    images, depths = (tracker.publisher(Image, topic) for topic in ('image', 'depth'))
    spaces, began = [], time.monotonic()
    tracker.node.create_subscription(PointCloud2, 'tracker/tracks_3d', spaces.append, 10)

    def both(number: int):
        # At a steady rate, as a camera's: images without stamps are told apart by it.
        tracker.until(lambda: time.monotonic() > began + number / 2)
        image = stampless(tracker)
        image.header.frame_id = str(number)
        depth = wide(tracker, np.full((240, 320), 1000 * number), '16UC1')
        depth.header = Header()
        calibration.publish(info)
        images.publish(image)
        depths.publish(depth)
        tracker.until(lambda: any(t.header == image.header for t in tracker.tracks))
        return len(spaces) >= 4

    numbers = itertools.count(1)
    tracker.until(lambda: both(next(numbers)))
    for cloud in spaces:
        depth = np.nanmedian(cloud_to_tracks(cloud)['z'])
        assert depth == pytest.approx(int(cloud.header.frame_id))


def test_points_stamped_by_another_clock_are_told_and_given_up(start_tracker):
    """A click under the wall clock while an old recording plays."""
    tracker = start_tracker(initial_grid=0, max_points=8, query_timeout=0.5)
    tracker.track()
    publisher = tracker.publisher(PointStamped, 'tracker/add_point')
    header = Header()
    header.stamp.sec = int(time.time()) + 10**6
    for number in range(5):
        publisher.publish(PointStamped(header=header, point=Point(x=20.0 * number, y=50.0)))
    tracker.diagnostic(
        lambda s, v: (
            v['points waiting for an image'] == '5'
            and '5 points wait for an image: they are stamped up to' in s.message
        )
    )
    tracker.until(lambda: tracker.track() is not None and tracker.said('gave up 5 points'))
    tracker.diagnostic(lambda s, v: v['points waiting for an image'] == '0')


def test_an_image_two_places_late_loses_no_point(start_tracker):
    tracker = start_tracker(initial_grid=2)
    ids = tracker.track()['id'].tolist()
    late = tracker.image()
    for _ in range(3):
        tracker.track()
    tracker.send(late)
    tracker.diagnostic(lambda s, v: v['images late'] == '1' and v['jumps back in time'] == '0')
    assert tracker.track()['id'].tolist() == ids
