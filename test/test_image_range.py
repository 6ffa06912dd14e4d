"""Values of more than 8 bits to 8 bits."""

import numpy as np
import pytest

from cotracker_ros.streaming.image_range import FIRST_IMAGES, ImageRange, parse, to_8_bit

RNG = np.random.default_rng(3)
SCENE = RNG.random((120, 160, 1))


def seen(image_range: ImageRange, values: np.ndarray, times: int = 1) -> np.ndarray:
    """The 8-bit picture of the last of some images."""
    for _ in range(times):
        limits = image_range.limits(values)
        image_range.learn()
    return to_8_bit(values, limits)


@pytest.mark.parametrize('text, limits', [
    ('auto', None), ('bits:8', (0, 255)), ('bits:10', (0, 1023)), ('bits:12', (0, 4095)),
    ('bits:14', (0, 16383)), ('bits:16', (0, 65535)), ('100,900', (100, 900)),
    ('-1.5, 2e3', (-1.5, 2000)),
])  # fmt: skip
def test_ranges_are_read(text, limits):
    assert parse(text) == limits


@pytest.mark.parametrize('text', [
    '', 'Auto', 'bits', 'bits:', 'bits:7', 'bits:33', 'bits:x', '5', '5,5', '9,1', '1,2,3', 'a,b',
    'nan,3', '0,inf',
])  # fmt: skip
def test_other_ranges_are_refused(text):
    with pytest.raises(
        ValueError, match='image_range must be auto, bits:8 to bits:32, or min,max'
    ):
        ImageRange(text)


@pytest.mark.parametrize('bits', [10, 12, 14, 16])
def test_a_number_of_bits_takes_the_highest_8_of_them(bits):
    values = RNG.integers(0, 2**bits, (40, 50, 1), np.uint16)
    limits = ImageRange(f'bits:{bits}').limits(values)
    np.testing.assert_array_equal(to_8_bit(values, limits), values >> (bits - 8))


@pytest.mark.parametrize('dtype', ['<u2', '>u2', '<i2', '>i2', '<i4', '<f4', '>f8'])
def test_limits_become_0_and_255_and_what_is_beyond_is_clipped(dtype):
    values = np.array([[[-50], [0], [100], [500], [900], [5000]]]).clip(
        0 if 'u' in dtype else None
    )
    expected = [0, 0, 0, 127, 255, 255]
    got = to_8_bit(values.astype(dtype), (100, 900))[0, :, 0]
    assert np.abs(got.astype(int) - expected).max() <= 1 and got.dtype == np.uint8


def test_nothing_finite_is_black_or_white():
    values = np.array([[[np.nan], [np.inf], [-np.inf], [0.5]]], np.float32)
    assert to_8_bit(values)[0, :, 0].tolist() == [0, 255, 0, 128]
    assert ImageRange().limits(np.full((4, 4, 1), np.nan, np.float32)) is not None


def test_8_bits_are_left_alone():
    image_range = ImageRange('bits:12')
    assert image_range.limits(np.zeros((4, 4, 3), np.uint8)) is None


@pytest.mark.parametrize('bits', [10, 12, 14, 16])
@pytest.mark.parametrize('dtype', ['<u2', '>u2'])
def test_auto_shows_a_scene_of_any_number_of_bits(bits, dtype):
    """Full contrast, and no order of values lost but by the 8 bits."""
    values = (SCENE * (2**bits - 1)).astype(dtype)
    picture = seen(ImageRange(), values)
    assert np.ptp(picture) > 150
    order = np.argsort(values.ravel(), kind='stable')
    assert (np.diff(picture.ravel()[order].astype(int)) >= 0).all()


@pytest.mark.parametrize('low, high', [(29_000, 30_500), (-400, 900)])
def test_auto_shows_a_scene_far_from_zero(low, high):
    """A thermal camera that sends hundredths of a kelvin, and one with signed values."""
    values = (low + SCENE * (high - low)).astype(np.int32 if low < 0 else np.uint16)
    assert np.ptp(seen(ImageRange(), values)) > 150


def test_auto_does_not_flicker_once_the_first_images_are_seen():
    image_range = ImageRange()
    values = (SCENE * 3000).astype(np.uint16)
    before = seen(image_range, values, FIRST_IMAGES)
    lamp = values.copy()
    lamp[:50, :60] = 60_000
    after = seen(image_range, lamp)
    np.testing.assert_array_equal(after[60:], before[60:])
    np.testing.assert_array_equal(
        seen(image_range, values // 8), to_8_bit(values // 8, image_range.limits(values))
    )
    np.testing.assert_array_equal(seen(image_range, values), before)


@pytest.mark.parametrize('change', [-4_000, 4_000])
def test_auto_leaves_room_for_light_that_changes(change):
    """A fifth of the scene's span darker or brighter, nothing is clipped at either end."""
    image_range = ImageRange()
    values = (10_000 + SCENE * 20_000).astype(np.uint16)
    seen(image_range, values, FIRST_IMAGES)
    picture = seen(image_range, (values.astype(int) + change).astype(np.uint16))
    assert picture.min() > 0 and picture.max() < 255


def test_auto_takes_light_that_is_switched_on():
    image_range = ImageRange()
    seen(image_range, (SCENE * 1000).astype(np.uint16), FIRST_IMAGES + 5)
    bright = (SCENE * 60_000).astype(np.uint16)
    picture = seen(image_range, bright)
    assert np.ptp(picture) > 150 and (picture == 255).mean() < 0.05


def test_noise_of_a_dark_image_does_not_fill_the_picture():
    dark = RNG.integers(60, 68, (120, 160, 1)).astype(np.uint16)
    picture = to_8_bit(dark, ImageRange().limits(dark))
    assert picture.std() < 2
    image_range = ImageRange()
    image_range.limits(dark)  # blank: not learned
    values = (SCENE * 4000).astype(np.uint16)
    np.testing.assert_array_equal(seen(image_range, values), seen(ImageRange(), values))


def test_hot_pixels_do_not_set_the_range():
    values = (SCENE * 1000).astype(np.uint16)
    plain = ImageRange().limits(values)
    values[::37, ::41] = 65_535
    assert ImageRange().limits(values)[1] < 2 * plain[1]
