import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

EXAMPLE = Path(__file__).parents[1] / 'examples' / 'print_tracks.py'


def test_python_subscriber(start_tracker, tmp_path):
    tracker = start_tracker(initial_grid=2)
    out = tmp_path / 'out.txt'
    namespace = tracker.node.get_namespace()
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(tracker.context.get_domain_id())}
    command = [sys.executable, EXAMPLE, '--ros-args', '-r', f'__ns:={namespace}']
    with out.open('w') as file:
        example = subprocess.Popen(command, stdout=file, env=environment)
    try:
        tracker.until(lambda: tracker.track() is not None and ' of 4 points' in out.read_text())
    finally:
        example.send_signal(signal.SIGINT)
        example.wait(20)
