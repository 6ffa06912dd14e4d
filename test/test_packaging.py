"""A wheel built from this tree, away from it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip('setuptools')

ROOT = Path(__file__).parents[1]
SOURCES = ['cotracker_ros', 'config', 'launch', 'programs', 'resource']
SOURCES += ['setup.py', 'setup.cfg', 'pyproject.toml', 'package.xml', 'README.md', 'LICENSE']


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the tree, so that no build folder appears in it."""
    tree, out = tmp_path_factory.mktemp('tree'), tmp_path_factory.mktemp('wheel')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns('__pycache__', '*.egg-info')
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, tree / name)
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', out, tree)
    return next(out.glob('*.whl'))


def pip(*arguments: object) -> None:
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_holds_what_the_node_needs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    share = f'{wheel.name.split("-")[0]}-0.1.0.data/data/share/'
    for name in (
        'cotracker_ros/weights/realtime.onnx',
        'cotracker_ros/weights/realtime_int8.onnx',
        'cotracker_ros/demo/photographs/coffee.jpg',
        'cotracker_ros/live/page/index.html',
        f'{share}ament_index/resource_index/packages/cotracker_ros',
        f'{share}cotracker_ros/package.xml',
        f'{share}cotracker_ros/launch/tracker.launch.py',
        f'{share}cotracker_ros/config/tracker.yaml',
        f'{share}cotracker_ros/config/fastdds_shm.xml',
    ):
        assert name in names
    tops = {name.split('/')[0] for name in names}
    assert tops == {'cotracker_ros', share.split('/')[0], 'cotracker_ros-0.1.0.dist-info'}


PROGRAM = """
import sys
sys.modules['torch'] = None  # importing it would fail
import numpy as np
from cotracker_ros.streaming import StreamingTracker
assert 'rclpy' not in sys.modules
import cotracker_ros
assert cotracker_ros.__file__.startswith(sys.argv[1]), cotracker_ros.__file__
tracker = StreamingTracker(max_points=4)
tracker.add_points(np.array([[30, 40]]))
print(tracker.track(np.zeros((240, 320, 3), np.uint8), 0.0).xy.round(3).tolist())
from cotracker_ros.ros.resources import resource_file
print(resource_file('config/fastdds_shm.xml').is_file())
"""


def test_programs_are_on_the_path_and_where_ros2_run_looks(wheel, tmp_path):
    pip('install', '--no-deps', '--ignore-installed', '--prefix', tmp_path, wheel)
    names = set(os.listdir(ROOT / 'programs'))
    assert names >= {'tracker_node', 'cotracker-track', 'cotracker-demo', 'cotracker-build-trt'}
    lib = tmp_path / 'lib/cotracker_ros'
    assert set(os.listdir(lib)) == set(os.listdir(tmp_path / 'bin')) == names
    assert all(os.access(lib / name, os.X_OK) for name in names)
    (site,) = tmp_path.glob('lib/python*/site-packages')
    environment = {**os.environ, 'PYTHONPATH': str(site)}
    environment['PATH'] = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    for program in (lib / 'cotracker-track', tmp_path / 'bin/cotracker-build-trt'):
        command = [str(program), '--help']
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and f'usage: {program.name} ' in done.stdout, done.stderr
    # A virtual environment's own Python goes before that of the path.
    python = tmp_path / 'bin/python3'
    python.write_text('#!/bin/sh\necho own Python\n')
    python.chmod(0o755)
    done = subprocess.run([lib / 'tracker_node'], capture_output=True, text=True)
    assert done.stdout == 'own Python\n'


def test_wheel_runs_in_an_empty_folder_without_torch(wheel, tmp_path):
    site, empty = tmp_path / 'site', tmp_path / 'empty'
    empty.mkdir()
    pip('install', '--no-deps', '--target', site, wheel)
    environment = {**os.environ, 'PYTHONPATH': str(site)}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(site)],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[:2] == ['[[30.0, 40.0]]', 'True']
    assert not list(empty.iterdir())
