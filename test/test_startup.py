"""How the node's process begins and ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

from conftest import PATIENCE

from cotracker_ros.ros import startup


@pytest.mark.parametrize('numbers', [(signal.SIGINT,), (signal.SIGINT, signal.SIGTERM)])
def test_more_signals_than_one_end_the_node_as_one_does(start_tracker, numbers):
    tracker = start_tracker()
    deadline, sent = time.monotonic() + PATIENCE, 0
    while tracker.process.poll() is None and time.monotonic() < deadline:
        tracker.process.send_signal(numbers[sent % len(numbers)])
        sent += 1
        time.sleep(0.003)
    assert sent > 1
    assert tracker.process.wait(1) == 0
    assert 'Traceback' not in tracker.output() and 'race' not in tracker.output()


@pytest.fixture
def handlers():
    """Puts the handlers of signals back that were there before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures('handlers')
def test_a_signal_that_comes_while_the_work_ends_is_no_error(monkeypatch):
    ignore = startup.ignore_interrupts

    def too_late():
        monkeypatch.setattr(startup, 'ignore_interrupts', ignore)
        signal.raise_signal(signal.SIGTERM)
        ignore()

    monkeypatch.setattr(startup, 'ignore_interrupts', too_late)
    assert startup.until_interrupted(lambda: 7) is None
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures('handlers')
def test_an_interrupt_that_a_call_drops_for_an_error_of_its_own_is_no_error(monkeypatch):
    """As pybind11 does, in the middle of converting a message, while ROS still runs."""
    monkeypatch.setattr(startup.rclpy, 'ok', lambda: True)

    def convert(number=None):
        with contextlib.suppress(KeyboardInterrupt):
            if number:
                signal.raise_signal(number)
        raise RuntimeError('Unable to convert call argument')

    def configure():
        with contextlib.suppress(RuntimeError):
            convert(signal.SIGINT)
        return 'failed'

    assert startup.until_interrupted(lambda: convert(signal.SIGINT)) is None
    assert startup.until_interrupted(lambda: convert(signal.SIGTERM)) is None
    assert startup.until_interrupted(configure) is None
    with pytest.raises(RuntimeError, match='Unable to convert'):
        startup.until_interrupted(convert)


@pytest.mark.parametrize(
    'extra, message',
    [
        (('--params-file', '/nowhere.yaml'), '/nowhere.yaml'),
        (('-p', 'max_points:=['), 'max_points:=['),
        (('--log-level', 'loud'), '--log-level loud'),
    ],
)
def test_arguments_that_ros_refuses_give_one_line(extra, message):
    command = [sys.executable, '-m', 'cotracker_ros', '--ros-args', *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    *rcl, line = done.stderr.strip().splitlines()
    assert len(rcl) <= 1  # it logs that it failed, too
    assert line.startswith("tracker: Couldn't parse ") and message in line and '.c:' not in line


@pytest.mark.parametrize(
    'module, program', [
        ('ros.camera', 'camera'), ('ros.people', 'people'), ('ros.echo', 'cotracker-echo'),
        ('live', 'cotracker-live'),
    ],
)  # fmt: skip
def test_every_program_says_in_one_line_what_ros_refuses(module, program):
    command = [sys.executable, '-m', f'cotracker_ros.{module}', '--ros-args', '-p', 'x:=[']
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2, done.stderr
    *rcl, line = done.stderr.strip().splitlines()
    assert len(rcl) <= 1 and line.startswith(f"{program}: Couldn't parse ") and 'x:=[' in line


def test_a_parameter_of_another_type_gives_one_line():
    command = [sys.executable, '-m', 'cotracker_ros.ros.camera', '--ros-args', '-p', 'loop:=7']
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.startswith('camera: ') and 'loop' in done.stderr


@pytest.mark.parametrize(
    'module, arguments, message',
    [
        ('ros.camera', ['-p', 'rate:=5'], r"'rate' to '5' .*; a number is written .* 5\.0$"),
        ('ros.camera', ['-p', 'sourc:=x'], "there is no parameter 'sourc'; did you mean 'source'"),
        ('ros.people', ['-p', 'patienc:=1.0'], "'patienc'; did you mean 'patience'"),
        ('ros.people', ['-p', 'camera:=a b'], "Invalid topic name: .* 'tracker/a b/queries'$"),
        ('ros.echo', ['a b'], "Invalid topic name: .*: 'a b'$"),
        ('live', ['--tracker', 'a b'], "'a b' is no name of a tracker or camera"),
    ],
)  # fmt: skip
def test_wrong_names_and_numbers_give_one_line(module, arguments, message):
    marker = ['--ros-args'] if arguments[0] == '-p' else []
    command = [sys.executable, '-m', f'cotracker_ros.{module}', *marker, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert re.search(message, done.stderr.strip().splitlines()[-1]), done.stderr


WITHOUT_HOME = """
import os, sys
for name in ('HOME', 'ROS_HOME', 'ROS_LOG_DIR'):
    os.environ.pop(name, None)
os.environ.update({environment})
from cotracker_ros.ros.node import main
sys.exit(main())
"""


@pytest.mark.parametrize('home', [{}, {'HOME': '/dev/null'}])
def test_without_a_home_logs_go_to_the_temporary_folder(start_tracker, tmp_path, home):
    program = WITHOUT_HOME.format(environment={**home, 'TMPDIR': str(tmp_path)})
    tracker = start_tracker(('-c', program))
    folder = tmp_path / f'cotracker_ros-{os.getuid()}' / 'log'
    assert any(folder.iterdir())
    (line,) = [line for line in tracker.output().splitlines() if 'logs go to' in line]
    assert line.startswith(f'logs go to {folder}: ')


def test_log_folders_that_can_be_written_stay(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('HOME', '/dev/null')
    monkeypatch.delenv('ROS_LOG_DIR', raising=False)
    monkeypatch.setenv('ROS_HOME', str(tmp_path))
    startup.provide_log_folder()
    assert 'ROS_LOG_DIR' not in os.environ and capsys.readouterr().err == ''
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'x'))
    startup.provide_log_folder()
    assert os.environ['ROS_LOG_DIR'] == str(tmp_path / 'x')
    monkeypatch.setenv('ROS_LOG_DIR', '/dev/null/log')
    startup.provide_log_folder()
    assert Path(os.environ['ROS_LOG_DIR']).is_dir()
    assert capsys.readouterr().err.endswith(': /dev/null/log cannot be written\n')
