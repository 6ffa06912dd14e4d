"""The one interface of every runtime: a step whose state stays inside the engine."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from cotracker_ros.engines import spec
from cotracker_ros.engines.metadata import EngineError, Metadata

ROUNDING = 1e-3  # of a probability, in half precision


def default_threads() -> int:
    """Cores to compute on: all that this process may use, less one for ROS where more than two."""
    own = getattr(os, 'sched_getaffinity', None)  # Linux only
    cores = len(own(0)) if own else os.cpu_count() or 1
    return cores - 1 if cores > 2 else cores


class Engine(ABC):
    """A loaded model that tracks up to `slots` points on each of `cameras` cameras.

    `name` is the runtime, `device` where it computes ('cpu', 'cuda:0'), `precision` in what
    ('f32', 'bf16', or the graph's), `threads` on how many CPU threads (0: not its choice).
    """

    name: str
    device: str
    precision: str
    chosen_because = ''  # why `load` took this one, where that was left to it

    def __init__(self, metadata: Metadata, cameras: int, slots: int, threads: int) -> None:
        self.metadata = metadata
        self.cameras = cameras
        self.slots = slots
        self.threads = threads
        self._carried: tuple[str, ...] = spec.REQUIRED  # inputs that the model takes

    def shape_of(self, tensor: spec.Tensor) -> tuple[int, ...]:
        """Shape of an input or output in this engine."""
        return tensor.shape(self.cameras, self.slots, self.metadata.picture_size)

    def step(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one frame (the inputs of spec.INPUTS) and keep the state for the next.

        Inputs that have a default need not be given, and are ignored where the model does not
        take them. Returns `xy` (cameras, slots, 2) in model pixels, `visibility` and `confidence`
        (cameras, slots) in [0, 1], float32, 0 for slots that are not live; the arrays are the
        caller's. Raises ValueError for wrong inputs and EngineError where the runtime fails.
        """
        unknown = set(inputs) - set(spec.INPUT)
        if unknown:
            raise ValueError(f'no step takes {", ".join(sorted(unknown))}')
        given = {}
        for name, tensor in spec.INPUT.items():
            shape, value = self.shape_of(tensor), inputs.get(name)
            if value is None and tensor.otherwise is None:
                raise ValueError(f'the input {name} is missing')
            if value is None:
                value = np.full(shape, tensor.otherwise, tensor.dtype)
            if value.shape != shape or value.dtype != tensor.dtype:
                raise ValueError(
                    f'{name} must be {tensor.dtype} of shape {shape}, '
                    f'not {value.dtype} of shape {value.shape}'
                )
            if name in self._carried:
                given[name] = np.ascontiguousarray(value)
        return self._step(given)

    def warm_up(self) -> None:
        """Run one blank step, so that the first frame is as fast as the others, then reset.

        Raises EngineError for a model that already gives what cannot be.
        """
        blank = {
            name: np.full(self.shape_of(tensor), tensor.otherwise or 0, tensor.dtype)
            for name, tensor in spec.INPUT.items()
        }
        blank['query'][:] = blank['live'][:] = True
        outputs = self.step(blank)
        self.reset()
        for name in spec.OUTPUT_NAMES:
            low, high = (-math.inf, math.inf) if name == 'xy' else (-ROUNDING, 1 + ROUNDING)
            if not ((outputs[name] > low) & (outputs[name] < high)).all():
                raise EngineError(
                    f'{self}: it gives values of {name} that are not '
                    f'{"finite" if name == "xy" else "from 0 to 1"}; '
                    'this model or engine is broken'
                )

    @abstractmethod
    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`step` on checked, contiguous inputs."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all frames and points: the state becomes zeros."""

    def close(self) -> None:  # noqa: B027 - most engines have nothing to release
        """Release the device; the engine cannot be used afterwards."""

    def __str__(self) -> str:
        threads = f', {self.threads} threads' if self.threads else ''
        because = f' ({self.chosen_because})' if self.chosen_because else ''
        return (
            f'{self.metadata.model} on {self.name}, {self.device}, {self.precision}{threads}, '
            f'{self.cameras} x {self.slots} points{because}'
        )


class StateBuffer(NamedTuple):
    """Where a state tensor is read and written in one phase, by the runtime's own kind of buffer.

    Of a ring, both are one buffer, of which the step writes the row `row`; else `row` is None.
    """

    name: str
    state: Any
    following: Any
    row: int | None


class GraphEngine(Engine):
    """An engine of a graph that takes `state.<name>` and gives `next.<name>`.

    Keeps two sets of state buffers, of which each step reads one and writes the other, and one
    buffer of each ring, into which each step writes the next row. After `binding_period` steps the
    same buffers and rows are in use again, so what a runtime binds can be prepared once for each
    phase of that period.
    """

    def _hold_state(self, found: spec.Interface, allocate: Callable[[str], Any]) -> None:
        """Make the buffers: `allocate` gives a new one, zeroed, for a state tensor by name."""
        self._carried = tuple(t.name for t in found.inputs)
        self._rings = found.rings
        first = {name: allocate(name) for name in found.rings}
        second = {n: first[n] if ring else allocate(n) for n, ring in found.rings.items()}
        self._buffers = (first, second)
        self.binding_period = binding_period(found.rings.values())
        self._phase = 0

    def _state(self, phase: int) -> Iterator[StateBuffer]:
        """All state tensors in a phase."""
        state, following = self._buffers[phase % 2], self._buffers[1 - phase % 2]
        for name, ring in self._rings.items():
            row = phase % ring if ring else None
            yield StateBuffer(name, state[name], following[name], row)

    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._run(self._phase, inputs)
        self._phase = (self._phase + 1) % self.binding_period
        return outputs

    def reset(self) -> None:
        """Forget all frames and points: what the first phase reads becomes zeros."""
        self._phase = 0
        for name, buffer in self._buffers[0].items():
            self._clear(name, buffer)

    @abstractmethod
    def _run(self, phase: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on these inputs and the state of this phase."""

    @abstractmethod
    def _clear(self, name: str, buffer: Any) -> None:
        """Fill a state buffer with zeros."""


def binding_period(lengths: Iterable[int]) -> int:
    """Steps after which buffers and rows repeat, for rings of these lengths (0: no ring): the
    least common multiple of the lengths and of 2, for the two sets of buffers.
    """
    return math.lcm(2, *(length for length in lengths if length))
