"""Our camera node, as a process."""

import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import PATIENCE, texture

pytest.importorskip('rclpy', reason='needs ROS 2')


def command(tracker, **parameters) -> subprocess.Popen:
    arguments = ['-r', f'__ns:={tracker.node.get_namespace()}']
    for name, value in parameters.items():
        arguments += ['-p', f'{name}:={value}']
    return subprocess.Popen(
        [sys.executable, '-m', 'cotracker_ros.ros.camera', '--ros-args', *arguments],
        env={**os.environ, 'ROS_DOMAIN_ID': str(tracker.domain)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_folder_is_published_again_and_again(start_tracker, tmp_path):
    from sensor_msgs.msg import Image

    from cotracker_ros.ros.messages import image_to_array

    for number in range(2):
        cv2.imwrite(str(tmp_path / f'{number}.png'), texture(8 * number)[..., ::-1])
    tracker = start_tracker(initial_grid=2, ready=False)
    images = []
    tracker.node.create_subscription(Image, 'image', images.append, 10)
    camera = command(tracker, source=tmp_path, rate='20.0', frame_id='eye')
    try:
        tracker.until(lambda: len(images) > 4 and tracker.tracks)
        assert images[0].header.frame_id == 'eye'
        assert all(
            any(np.array_equal(image_to_array(msg), texture(s)) for s in (0, 8)) for msg in images
        )
        assert len({image_to_array(msg).tobytes() for msg in images}) == 2
        assert tracker.tracks[-1].width == 4
    finally:
        camera.send_signal(signal.SIGINT)
        _, errors = camera.communicate(timeout=PATIENCE)
    assert camera.returncode == 0, errors


def test_a_file_that_is_missing_ends_it_with_one_line(start_tracker):
    tracker = start_tracker(ready=False)
    camera = command(tracker, source='missing.mp4')
    _, errors = camera.communicate(timeout=PATIENCE)
    assert camera.returncode == 1
    assert errors.strip() == 'camera: missing.mp4: no such file, folder or device'


def test_a_device_that_is_missing_is_waited_for(start_tracker):
    tracker = start_tracker(ready=False)
    camera = command(tracker, source='/dev/video-that-is-missing')
    try:
        assert 'trying again' in camera.stderr.readline()
        assert camera.poll() is None
    finally:
        camera.send_signal(signal.SIGINT)
        camera.communicate(timeout=PATIENCE)
    assert camera.returncode == 0
