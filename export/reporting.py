"""What every page of measurements needs: tables, straight lines through curves, the machine."""

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, numbers to the right of the first column."""
    body = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return ['| ' + ' | '.join(row) + ' |' for row in body]


def linear_fit(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """Return slope and constant of the line with the least relative error: small counts matter as
    much as large ones. Needs y > 0.
    """
    slope, constant = np.polyfit(x, y, 1, w=1 / np.asarray(y, float))
    return float(slope), float(constant)


def cpu_facts() -> dict[str, str]:
    """Return what the system says of its first processor; empty where it does not tell."""
    try:
        text = Path('/proc/cpuinfo').read_text()
    except OSError:
        return {}
    parts = (line.partition(':') for line in text.partition('\n\n')[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in parts}


def peak_memory() -> float:
    """Return the most memory that this process has held, MiB.

    Not `resource.getrusage`: there a process begins with the peak of the one that started it.
    """
    facts = Path('/proc/self/status').read_text().splitlines()
    (peak,) = (line.split()[1] for line in facts if line.startswith('VmHWM:'))
    return int(peak) / 1024


def processor() -> str:
    """Return the processor's name."""
    return cpu_facts().get('model name') or platform.processor() or platform.machine()
