"""Tracks in space, without a node."""

import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg', reason='needs the ROS messages')

import cv2
from sensor_msgs.msg import CameraInfo

from cotracker_ros.ros.messages import MessageError
from cotracker_ros.ros.space import SAME_MOMENT, Pairs, positions, rays
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
    np.testing.assert_allclose(rays(pixels[:, 0], camera(model, d)), points, atol=2e-3)
    assert rays(np.zeros((0, 2)), camera(model, d)).shape == (0, 3)


@pytest.mark.parametrize('info, text', [
    (CameraInfo(), 'no calibration'),
    (camera('own', (1.0,)), "distortion model 'own' with 1 values"),
    (camera('plumb_bob', (1.0,)), 'with 1 values'),
])  # fmt: skip
def test_rays_need_a_calibration_that_is_known(info, text):
    with pytest.raises(MessageError, match=text):
        rays(np.ones((1, 2)), info)


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
