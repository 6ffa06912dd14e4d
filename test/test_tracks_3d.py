"""Tracks in space, without a node."""

import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg', reason='needs the ROS messages')

import cv2
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from cotracker_ros.ros.messages import MessageError
from cotracker_ros.ros.tracks_3d import SAME_MOMENT, Pairs, is_rectified, positions, rays
from cotracker_ros.streaming import VISIBLE, Tracks

SIZE = (48, 64)
K = np.array([[60.0, 0, 31], [0, 62, 22], [0, 0, 1]])


def camera(model: str = 'plumb_bob', d: tuple = ()) -> CameraInfo:
    return CameraInfo(k=K.ravel().tolist(), d=list(d), distortion_model=model)


def tracks(xy, visible=True) -> Tracks:
    xy = np.array(xy, np.float32).reshape(-1, 2)
    numbers = np.arange(len(xy), dtype=np.uint32)
    ones = np.ones(len(xy), np.float32)
    flags = np.full(len(xy), VISIBLE) * np.array(visible)
    return Tracks(1.0, numbers, xy, ones, ones, numbers, flags.astype(np.uint32))


@pytest.mark.parametrize('model, d', [
    ('plumb_bob', ()), ('', ()), ('plumb_bob', (-0.2, 0.05, 0.001, -0.002, 0.0)),
    ('rational_polynomial', (0.1, -0.05, 0.001, 0.002, 0.01, 0.05, -0.02, 0.003)),
    ('equidistant', (0.05, -0.01, 0.002, 0.0)),
])  # fmt: skip
def test_rays_go_back_to_their_pixels(model, d):
    points = np.array([[0.1, -0.2, 1], [0.3, 0.25, 1], [-0.4, 0.1, 1]])
    zero = np.zeros(3)
    if model == 'equidistant':
        pixels = cv2.fisheye.projectPoints(points[:, None], zero, zero, K, np.array(d))[0]
    else:
        pixels = cv2.projectPoints(points, zero, zero, K, np.array(d))[0]
    np.testing.assert_allclose(rays(pixels[:, 0], camera(model, d)), points, atol=1e-6)
    assert rays(np.zeros((0, 2)), camera(model, d)).shape == (0, 3)


@pytest.mark.parametrize('info, text', [
    (CameraInfo(), 'no calibration'),
    (camera('own', (1.0,)), "distortion model 'own' with 1 values"),
    (camera('plumb_bob', (1.0,)), 'with 1 values'),
])  # fmt: skip
def test_rays_need_a_calibration_that_is_known(info, text):
    with pytest.raises(MessageError, match=text):
        rays(np.ones((1, 2)), info)


# Values worked out by hand (or with the pinhole formula alone), not by OpenCV.
def calibration(**fields) -> CameraInfo:
    k = [500.0, 0, 320, 0, 500, 240, 0, 0, 1]
    return CameraInfo(width=640, height=480, k=k, distortion_model='plumb_bob', **fields)


@pytest.mark.parametrize('fields, pixel, size, expected', [
    ({}, (320, 240), (480, 640), (0, 0)),
    ({'binning_x': 1, 'binning_y': 1}, (420, 190), (480, 640), (0.2, -0.1)),
    # K is of the full image: (599.5 - 320) / 500, (399.5 - 240) / 500
    ({'binning_x': 2, 'binning_y': 2}, (299.75, 199.75), (240, 320), (0.559, 0.319)),
    ({'binning_x': 4, 'binning_y': 2}, (80, 120), (240, 160), (0, 0)),
    ({'roi': (160, 120, 320, 240)}, (160, 120), (240, 320), (0, 0)),
    ({'roi': (160, 120, 320, 240)}, (210, 20), (240, 320), (0.1, -0.2)),
    ({'roi': (160, 120, 320, 240), 'binning_x': 2, 'binning_y': 2}, (80, 60), (120, 160), (0, 0)),
])  # fmt: skip
@pytest.mark.parametrize('rectified', [False, True])
def test_pixels_of_a_part_or_of_a_binned_image(fields, pixel, size, expected, rectified):
    fields = dict(fields)
    if 'roi' in fields:
        x, y, width, height = fields.pop('roi')
        fields['roi'] = RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height)
    p = [500.0, 0, 320, 0, 0, 500, 240, 0, 0, 0, 1, 0]
    found = rays(np.array([pixel]), calibration(p=p, **fields), size, rectified)
    np.testing.assert_allclose(found, [[*expected, 1]], atol=1e-6)


def test_a_rectified_image_is_of_p_and_not_of_k_and_d():
    p = [450.0, 0, 300, -45, 0, 420, 240, 0, 0, 0, 1, 0]
    info = calibration(d=[-0.3, 0.1, 0.01, 0.01, 0.0], p=p)
    found = rays(np.array([(600, 400)]), info, (480, 640), rectified=True)
    np.testing.assert_allclose(found, [[300 / 450, 160 / 420, 1]], atol=1e-6)  # 0.667, 0.381
    assert abs(rays(np.array([(600, 400)]), info)[0, 0] - 0.667) > 0.03


@pytest.mark.parametrize('angle', [0.02, -0.3])
def test_raw_and_rectified_images_give_the_same_directions(angle):
    """A point in front of the camera, seen in both; R turns it into the rectified plane."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    info = calibration(r=turn.ravel().tolist(), p=[450.0, 0, 310, -45, 0, 440, 250, 0, 0, 0, 1, 0])
    point = np.array([0.3, -0.2, 1.0])
    turned = turn @ point
    rect = 450 * turned[0] / turned[2] + 310, 440 * turned[1] / turned[2] + 250
    raw = 500 * point[0] + 320, 500 * point[1] + 240
    np.testing.assert_allclose(rays(np.array([raw]), info), [point], atol=1e-6)
    np.testing.assert_allclose(rays(np.array([rect]), info, None, True), [point], atol=1e-6)


# x' = 0.4, y' = -0.3 on the plane z = 1, so r^2 = 0.25; the rest from the models' formulas.
@pytest.mark.parametrize('model, d, x, y', [
    ('', [], 0.4, -0.3),
    ('none', [], 0.4, -0.3),
    ('anything', [0.0] * 5, 0.4, -0.3),
    ('plumb_bob', [-0.2, 0, 0, 0], 0.4 * 0.95, -0.3 * 0.95),
    # 1 - 0.2 / 4 + 0.08 / 16 + 0.64 / 64 = 0.965; tangential: p1 2xy + p2 (r2 + 2x2), and so on
    ('plumb_bob', [-0.2, 0.08, 0.01, -0.02, 0.64],
     0.4 * 0.965 + 0.02 * 0.4 * -0.3 - 0.02 * (0.25 + 0.32),
     -0.3 * 0.965 + 0.01 * (0.25 + 0.18) - 0.04 * 0.4 * -0.3),
    # (1 + 0.2 / 4) / (1 - 0.4 / 4) = 1.05 / 0.9
    ('rational_polynomial', [0.2, 0, 0, 0, 0, -0.4, 0, 0], 0.4 * 1.05 / 0.9, -0.3 * 1.05 / 0.9),
    # thin prism: + s1 r2 + s2 r4, + s3 r2 + s4 r4
    ('rational_polynomial', [0.0] * 8 + [0.04, 0.16, -0.08, 0],
     0.4 + 0.01 + 0.01, -0.3 - 0.02),
    # theta = atan(0.5) = 0.4636476; theta (1 + 0.1 theta^2) / 0.5 = 0.9472283
    ('equidistant', [0.1, 0, 0, 0], 0.4 * 0.9472283, -0.3 * 0.9472283),
])  # fmt: skip
def test_each_distortion_model_against_its_formula(model, d, x, y):
    info = calibration()
    info.distortion_model, info.d = model, d
    found = rays(np.array([(500 * x + 320, 500 * y + 240)]), info)
    np.testing.assert_allclose(found, [[0.4, -0.3, 1]], atol=2e-6)


def test_what_a_lens_cannot_have_seen_is_nan():
    info = calibration(d=[-0.5, 0.0, 0.0, 0.0, 0.0])  # folds back at r^2 = 2 / 3
    found = rays(np.array([(320, 240), (320 + 500 * 0.9, 240)]), info)
    assert np.isfinite(found[0]).all() and np.isnan(found[1, 0])


@pytest.mark.parametrize('size, fields', [
    ((240, 320), {}), ((480, 640), {'binning_x': 2, 'binning_y': 2}), ((640, 480), {}),
    ((480, 640), {'roi': RegionOfInterest(x_offset=10, width=320, height=240)}),
])  # fmt: skip
def test_an_image_of_another_size_is_refused(size, fields):
    with pytest.raises(MessageError, match=f'but they have {size[1]} x {size[0]}'):
        rays(np.ones((1, 2)), calibration(**fields), size)


def test_a_rectified_image_needs_p():
    with pytest.raises(MessageError, match='no calibration: P = '):
        rays(np.ones((1, 2)), calibration(), None, True)
    p = [5.0, 0, 3, 0, 0, 5, 2, 0, 0, 0, 1, 0]
    info = calibration(p=p, r=[2.0, 0, 0, 0, 1, 0, 0, 0, 1])
    with pytest.raises(MessageError, match='no rotation: R = '):
        rays(np.ones((1, 2)), info, None, True)


@pytest.mark.parametrize('topic, choice, expected', [
    ('/camera/image_raw', 'auto', False), ('/camera/image_rect', 'auto', True),
    ('/camera/image_rect_color/compressed', 'auto', True),
    ('/camera/image_raw', 'true', True), ('/camera/image_rect', 'false', False),
])  # fmt: skip
def test_rectified_images_are_known_by_their_topic(topic, choice, expected):
    assert is_rectified(topic, choice) == expected


@pytest.mark.parametrize('reduction', [1, 2])
def test_positions_lie_where_the_scene_is(reduction):
    """A slanted plane z = 2 + x / 4, known in closed form."""
    height, width = SIZE[0] // reduction, SIZE[1] // reduction
    column = (np.arange(width) + 0.5) * reduction - 0.5
    slope = (column - K[0, 2]) / K[0, 0] / 4
    depth = np.tile(2 / (1 - slope), (height, 1)).astype(np.float32)
    xyz = positions(tracks([(5, 7), (40, 30), (63, 47)]), SIZE, camera(), depth)
    tolerance = 0.01 * reduction  # the nearest pixel's depth
    np.testing.assert_allclose(xyz[:, 2], 2 + xyz[:, 0] / 4, atol=tolerance)
    seen = xyz @ K.T
    np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], [(5, 7), (40, 30), (63, 47)], rtol=1e-5)


def test_positions_are_unknown_where_depth_is_or_the_point_is_hidden():
    depth = np.full(SIZE, 3, np.float32)
    depth[10, 20] = np.nan
    xy = [(20, 10), (21, 10), (30, 30), (5000, -70)]
    xyz = positions(tracks(xy, [True, True, False, False]), SIZE, camera(), depth)
    assert np.isnan(xyz).all(1).tolist() == [True, False, True, True]


def test_pairs_meet_whichever_comes_first():
    pairs = Pairs(memory=3)
    assert pairs.match('tracks', 1.0, 'tracks 1') is None
    assert pairs.match('depth', 1.0, 'depth 1') == 'tracks 1'
    assert pairs.match('depth', 1.0, 'depth 1 again') is None  # each tracks once
    for number in (2, 3, 4):  # the oldest is forgotten
        assert pairs.match('depth', number, f'depth {number}') is None
    assert pairs.match('tracks', 1.0, 'tracks 1 again') is None
    assert pairs.match('tracks', 3.0 + SAME_MOMENT / 2, 'tracks 3') == 'depth 3'
    assert pairs.match('tracks', 4.0 - 2 * SAME_MOMENT, 'tracks of no depth') is None
    assert not pairs.starved
    assert pairs.match('tracks', 9.0, 'one more') is None
    assert pairs.starved


def test_pairs_without_stamps_meet_by_publication():
    """Depth 30 times a second, a little after its image; tracks take 50 ms more."""
    pairs = Pairs()
    met = []
    for number in range(6):
        pairs.match('depth', None, number, 10 + number / 30 + 0.004)
        if number >= 2:  # tracks of an image come two images later
            met.append(pairs.match('tracks', None, number - 2, 10 + (number - 2) / 30))
    assert met == [0, 1, 2, 3]
    assert pairs.match('tracks', None, 'of no depth', 20.0) is None


@pytest.mark.parametrize('apart', [0.02, -0.012])
def test_a_lost_depth_image_is_replaced_by_none(apart):
    """Published 20 ms after their images they lie nearest to the next ones: too far from both."""
    pairs = Pairs()
    for number in range(4):
        pairs.match('depth', None, number, 10 + number / 30)
    assert pairs.match('depth', None, 6, 10 + 6 / 30) is None  # a gap of three
    assert pairs.match('tracks', None, 'of a lost one', 10 + 5 / 30) is None
    assert pairs.match('tracks', None, 'of another lost one', 10 + 4 / 30) is None
    expected = 6 if abs(apart) < 1 / 60 else None
    assert pairs.match('tracks', None, 'of the last', 10 + 6 / 30 + apart) == expected


def test_a_node_that_gets_every_third_depth_image_takes_none_for_another():
    pairs = Pairs()
    for number in (0, 3, 6):
        assert pairs.match('depth', None, number, 10 + number / 30, lost=min(number, 2)) is None
    assert pairs.match('tracks', None, 'of a lost one', 10 + 5 / 30) is None
    assert pairs.match('tracks', None, 'of the last', 10 + 6 / 30) == 6


def test_pairs_meet_by_publication_where_one_of_them_has_no_stamp():
    pairs = Pairs()
    assert pairs.match('tracks', 5.0, 'tracks 5', 100.0) is None
    assert pairs.match('depth', None, 'depth 5', 100.002) == 'tracks 5'
