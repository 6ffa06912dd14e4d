"""The processes of the demo: children whose output is read, on a ROS network of their own."""

import os
import queue
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

from cotracker_ros.ros.resources import resource_file


class DemoError(RuntimeError):
    """Something that stopped the demo, in words for its user."""


class Process:
    """A child whose lines of output are read as they come."""

    def __init__(self, name: str, command: list, environment: dict, errors: Path) -> None:
        self.name, self.errors = name, errors
        with errors.open('wb') as log:
            self._child = subprocess.Popen(
                [sys.executable, '-m', *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._child.stdout or ():
            self.lines.put(line.rstrip())

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.pid

    def check(self) -> None:
        """Raise DemoError if the process has ended."""
        status = self._child.poll()
        if status is not None:
            log = self.errors.read_text(errors='replace').strip().splitlines()[-12:]
            raise DemoError('\n'.join([f'the {self.name} ended with status {status}:', *log]))

    def close_input(self) -> None:
        """Tell the process to finish."""
        if self._child.stdin is not None:
            self._child.stdin.close()

    def stop(self, seconds: float = 30.0) -> int:
        """Interrupt the process, end it if it does not listen; returns its status."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()

    def wait(self, seconds: float) -> None:
        """Wait for the process to end by itself; DemoError where it takes longer."""
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DemoError(f'the {self.name} did not finish in {seconds:.0f} s') from None


def environments() -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of all, on a network of their own, and of the camera."""
    environment = dict(os.environ)
    environment['ROS_DOMAIN_ID'] = str(random.SystemRandom().randint(1, 101))
    if environment.get('ROS_DISTRO') == 'humble':
        environment['ROS_LOCALHOST_ONLY'] = '1'
    else:
        environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    profile = str(resource_file('config/fastdds_shm.xml'))
    camera = {
        **environment,
        'FASTRTPS_DEFAULT_PROFILES_FILE': profile,  # Fast DDS 2
        'FASTDDS_DEFAULT_PROFILES_FILE': profile,  # Fast DDS 3
    }
    return environment, camera
