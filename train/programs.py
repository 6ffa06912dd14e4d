"""Programs that run other programs: what ends one ends the other."""

from __future__ import annotations

import signal
import subprocess


def run_to_end(words: list[str]) -> int:
    """Run another program and return its exit status. What ends this one, an interrupt or, after
    `end_at_sigterm`, SIGTERM, ends that one too: two that write the same files must not run.
    """
    child = subprocess.Popen(words)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise


def end_at_sigterm() -> None:
    """Let SIGTERM end this program as an interrupt does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
