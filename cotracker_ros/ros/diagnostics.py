"""Counters of a stream and the message they become once a second."""

import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from cotracker_ros.ros.resources import resource_file

SEGMENT = 512 * 1024  # bytes: the default shared-memory segment of Fast DDS
MOST_PROBLEMS = 4
KEPT_DURATIONS = 512  # ages and step times kept for the percentiles


@dataclass
class Statistics:
    """What happened on one stream since it was opened; written by two threads, read by a third."""

    received: int = 0  # images
    lost: int = 0  # images that were published but never arrived
    replaced: int = 0  # images that a newer one replaced before the model was free
    tracked: int = 0  # images whose tracks were published
    held: int = 0  # of them, those not shown to the model, with the last tracks as invisible
    late: int = 0  # images with a stamp a little before the newest
    bad: int = 0  # images that cannot be used
    failed: int = 0  # steps in which the runtime failed
    refused: int = 0  # queries that could not be met
    retired: int = 0  # points given up by retire_after
    jumps: int = 0  # times that stamps went back
    live: int = 0  # points in the last message
    visible: int = 0
    waiting: int = 0  # points that have not started
    image_bytes: int = 0  # of the last image
    problems: list[str] = field(default_factory=list)  # since the last report, the first few
    last_image: float | None = None  # monotonic seconds
    ages: deque = field(default_factory=lambda: deque(maxlen=KEPT_DURATIONS))  # seconds
    steps: deque = field(default_factory=lambda: deque(maxlen=KEPT_DURATIONS))  # seconds
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, **increments: int) -> None:
        """Add to counters."""
        with self.lock:
            for name, increment in increments.items():
                setattr(self, name, getattr(self, name) + increment)

    def note(self, problem: str, **increments: int) -> None:
        """Add to counters and keep what went wrong for the next report."""
        self.count(**increments)
        with self.lock:
            if problem not in self.problems and len(self.problems) < MOST_PROBLEMS:
                self.problems.append(problem)


class Reporter:
    """Turns the Statistics of a stream into a DiagnosticStatus, with rates since the last one."""

    def __init__(self, name: str, hardware: str, facts: dict[str, str]) -> None:
        self._name, self._hardware, self._facts = name, hardware, facts
        self._before: tuple[float, int, int, int, int, int] | None = None

    def report(
        self, statistics: Statistics, now: float, age_budget: float, image_timeout: float
    ) -> DiagnosticStatus:
        """Return the status at `now` (monotonic seconds)."""
        with statistics.lock:
            s = statistics
            counts = (s.received, s.lost, s.tracked, s.bad, s.failed)
            ages, steps = np.array(s.ages), np.array(s.steps)
            silence = None if s.last_image is None else now - s.last_image
            problems, s.problems = s.problems, []
        before = self._before or (now, *counts)
        self._before = (now, *counts)
        elapsed = max(now - before[0], 1e-3)
        received, lost, tracked, bad, failed = (
            new - old for new, old in zip(counts, before[1:], strict=True)
        )
        status = DiagnosticStatus(name=self._name, hardware_id=self._hardware)
        status.level, status.message = _judge(
            silence, received, lost, bad, failed, s.image_bytes, ages, problems, age_budget,
            image_timeout,
        )  # fmt: skip
        numbers = {
            'images per second': f'{received / elapsed:.1f}',
            'tracks per second': f'{tracked / elapsed:.1f}',
            'points': str(s.live),
            'visible points': str(s.visible),
            'points waiting for an image': str(s.waiting),
            **_percentiles('age', ages),
            **_percentiles('step', steps),
            'images received': str(s.received),
            'images tracked': str(s.tracked),
            'images replaced by newer ones': str(s.replaced),
            'images lost by DDS': str(s.lost),
            'images blank or frozen': str(s.held),
            'images late': str(s.late),
            'images unusable': str(s.bad),
            'steps failed': str(s.failed),
            'queries refused': str(s.refused),
            'points retired': str(s.retired),
            'jumps back in time': str(s.jumps),
            **self._facts,
        }
        status.values = [KeyValue(key=key, value=value) for key, value in numbers.items()]
        return status


def _percentiles(name: str, seconds: np.ndarray) -> dict[str, str]:
    """Percentiles of durations as texts in milliseconds."""
    if not seconds.size:
        return {}
    values = np.percentile(seconds, (50, 95, 99)) * 1e3
    return {f'{name} p{p} [ms]': f'{v:.1f}' for p, v in zip((50, 95, 99), values, strict=True)}


def _profile() -> str:
    """Return the file that gives a camera driver more shared memory; its name, if it is lost."""
    name = 'config/fastdds_shm.xml'
    try:
        return str(resource_file(name))
    except FileNotFoundError:  # a hint must not end the node
        return name


def _judge(
    silence, received, lost, bad, failed, image_bytes, ages, problems, age_budget, image_timeout
) -> tuple[bytes, str]:
    """Level and text of a status: all that is wrong, and the worst level of it."""
    found = []
    if silence is None:
        found.append((DiagnosticStatus.STALE, 'no image yet'))
    elif silence > image_timeout:
        found.append((DiagnosticStatus.ERROR, f'no image for {silence:.1f} s'))
    if failed:
        found.append((DiagnosticStatus.ERROR, f'{failed} images could not be tracked'))
    if bad:
        level = DiagnosticStatus.ERROR if bad >= received else DiagnosticStatus.WARN
        found.append((level, f'{bad} unusable images'))
    found += [(DiagnosticStatus.WARN, problem) for problem in problems]
    if lost > 0.1 * (received + lost):
        text = f'{lost} of {received + lost} images lost by DDS'
        if image_bytes > SEGMENT:
            text += (
                f': {image_bytes} bytes do not fit the shared memory of Fast DDS; start the camera'
                f' driver with FASTRTPS_DEFAULT_PROFILES_FILE={_profile()} (Kilted and later:'
                ' FASTDDS_DEFAULT_PROFILES_FILE), or use image_transport: compressed'
            )
        found.append((DiagnosticStatus.WARN, text))
    if ages.size and np.percentile(ages, 95) > age_budget:
        text = f'over 5 % of the tracks are older than {age_budget * 1e3:.0f} ms'
        found.append((DiagnosticStatus.WARN, text))
    if not found:
        return DiagnosticStatus.OK, 'tracking'
    return max(level for level, _ in found), '; '.join(text for _, text in found)
