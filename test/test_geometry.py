"""Each way of moving points against the resize it belongs to, measured on the pixels."""

import cv2
import numpy as np
import pytest

from cotracker_ros import geometry
from cotracker_ros.streaming.image import resize

XY = np.array([[100.25, 40.5], [201.0, 130.75], [30.0, 150.0]], np.float32)


def blobs(size, xy):
    """One image (H, W) float32 for each point, a smooth spot around it."""
    y, x = np.mgrid[: size[0], : size[1]]
    return [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 128).astype(np.float32) for a, b in xy]


def centre(image):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(image * x).sum(), (image * y).sum()]) / image.sum()


@pytest.mark.parametrize('size', [(200, 300), (90, 130), (75, 75), (240, 320)])
def test_the_runtime_resize_moves_points_as_rescale(size):
    source = (200, 300)
    for xy, image in zip(XY, blobs(source, XY), strict=True):
        small = resize(np.repeat(np.uint8(np.round(255 * image))[..., None], 3, 2), size)
        assert small.shape == (*size, 3) and small.flags.c_contiguous
        np.testing.assert_allclose(
            centre(small[..., 1].astype(float)), geometry.rescale(xy, source, size), atol=0.03
        )


def test_rescale_aligned_is_interpolate_with_aligned_corners():
    torch = pytest.importorskip('torch')
    source, size = (200, 300), (90, 130)
    for xy, image in zip(XY, blobs(source, XY), strict=True):
        small = torch.nn.functional.interpolate(
            torch.from_numpy(image)[None, None], size, mode='bilinear', align_corners=True
        )[0, 0].numpy()
        np.testing.assert_allclose(
            centre(small), geometry.rescale_aligned(xy, source, size), atol=0.02
        )


@pytest.mark.parametrize(
    'move', [geometry.rescale, geometry.rescale_aligned, geometry.rescale_plain]
)
def test_torch_and_numpy_agree_and_there_is_a_way_back(move):
    torch = pytest.importorskip('torch')
    there = move(XY, (200, 300), (384, 512))
    assert there.dtype == np.float32
    np.testing.assert_allclose(
        move(torch.from_numpy(XY), (200, 300), (384, 512)).numpy(), there, rtol=1e-6
    )
    np.testing.assert_allclose(move(there, (384, 512), (200, 300)), XY, rtol=1e-5)


def test_whole_numbers_are_not_truncated():
    np.testing.assert_allclose(geometry.rescale(np.array([1, 1]), (3, 3), (6, 9)), [4, 2.5])


def test_inside_includes_the_outer_edges_of_the_border_pixels():
    xy = np.array([[-0.5, -0.5], [9.5, 4.5], [9.6, 0], [0, 4.6], [-0.6, 0]])
    assert geometry.inside(xy, (5, 10)).tolist() == [True, True, False, False, False]


def test_frames_of_other_layouts_are_read_right():
    frame = np.random.default_rng(0).integers(0, 255, (100, 120, 4), np.uint8)
    rgb = np.ascontiguousarray(frame[..., :3])
    want = cv2.resize(rgb, (64, 60), interpolation=cv2.INTER_LINEAR)
    for view in (frame[..., :3], rgb, rgb[..., ::-1].copy()[..., ::-1]):
        np.testing.assert_array_equal(resize(view, (60, 64)), want)
    np.testing.assert_array_equal(resize(rgb[..., ::-1], (60, 64)), want[..., ::-1])
