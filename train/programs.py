"""Running another program: what ends this one ends that one too."""

from __future__ import annotations

import subprocess


def run_to_end(words: list[str]) -> int:
    """Run another program and return its exit status. An interrupt of this one, or SIGTERM after
    `end_at_sigterm` (cotracker_ros/signals.py), ends that one too: two that write the same files
    must not run.
    """
    child = subprocess.Popen(words)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
