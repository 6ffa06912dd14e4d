import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the package of the node')

from cotracker_ros.ros.image_health import Repetition, is_blank

RNG = np.random.default_rng(4)


@pytest.mark.parametrize('colour', [0, 17, 255, (200, 30, 90)])
def test_one_colour_is_blank_with_noise_too(colour):
    frame = np.full((240, 320, 3), colour, np.uint8)
    assert is_blank(frame)
    noise = np.round(RNG.normal(0, 1.2, frame.shape)).astype(int)
    noisy = np.clip(frame + noise, 0, 255).astype(np.uint8)
    noisy[77, 99] = 255  # a hot pixel
    assert is_blank(noisy) and is_blank(noisy[..., ::-1])


@pytest.mark.parametrize('size', [5, 8, 48])
@pytest.mark.parametrize('place', [(1, 1), (101, 203)])  # between the pixels of a coarse look
def test_a_small_object_before_an_empty_ground_is_not_blank(size, place):
    frame = np.full((480, 640, 3), 120, np.uint8)
    frame[place[0] : place[0] + size, place[1] : place[1] + size] = 160
    assert not is_blank(frame)


def test_images_repeat_only_in_every_byte():
    repetition = Repetition()
    rows = RNG.integers(0, 256, (48, 64), np.uint8)
    assert [repetition.update(rows.copy()) for _ in range(4)] == [0, 1, 2, 3]
    other = rows.copy()
    other[13, 27] ^= 1  # not one of every 8th
    assert repetition.update(other) == 0
    assert repetition.update(other[:40]) == 0
