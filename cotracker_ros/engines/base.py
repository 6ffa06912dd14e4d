"""The one interface of every runtime: a step whose state stays inside the engine."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from cotracker_ros.engines.metadata import EngineError, Metadata

OUTPUTS = ('xy', 'visibility', 'confidence')
ROUNDING = 1e-3  # of a probability, in half precision
STATE, NEXT = 'state.', 'next.'  # names of the state's tensors on the way in and out of a graph
DYNAMIC = {'cameras': 0, 'points': 1}  # named dimensions, and where load's sizes stand for them


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

    def __init__(self, metadata: Metadata, cameras: int, slots: int, threads: int) -> None:
        self.metadata = metadata
        self.cameras = cameras
        self.slots = slots
        self.threads = threads
        height, width = metadata.image_size
        self._inputs = {
            'image': ((cameras, height, width, 3), np.dtype(np.uint8)),
            'query_xy': ((cameras, slots, 2), np.dtype(np.float32)),
            'query': ((cameras, slots), np.dtype(bool)),
            'query_age': ((cameras, slots), np.dtype(np.int32)),
            'live': ((cameras, slots), np.dtype(bool)),
        }

    def step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one frame (the inputs of design section 2) and keep the state for the next.

        Returns `xy` (cameras, slots, 2) in model pixels, `visibility` and `confidence`
        (cameras, slots) in [0, 1], float32, 0 for slots that are not live; the arrays are the
        caller's. Raises ValueError for wrong inputs and EngineError where the runtime fails.
        """
        for name, (shape, dtype) in self._inputs.items():
            value = inputs[name]
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(f'{name} must be {dtype} of shape {shape}, '
                                 f'not {value.dtype} of shape {value.shape}')
        return self._step({name: np.ascontiguousarray(inputs[name]) for name in self._inputs})

    def warm_up(self) -> None:
        """Run one blank step, so that the first frame is as fast as the others, then reset.

        Raises EngineError for a model that already gives what cannot be.
        """
        blank = {name: np.zeros(*what) for name, what in self._inputs.items()}
        blank['query'][:] = blank['live'][:] = True
        outputs = self.step(blank)
        self.reset()
        for name in OUTPUTS:
            low, high = (-math.inf, math.inf) if name == 'xy' else (-ROUNDING, 1 + ROUNDING)
            if not ((outputs[name] > low) & (outputs[name] < high)).all():
                raise EngineError(f'{self}: it gives values of {name} that are not '
                                  f'{"finite" if name == "xy" else "from 0 to 1"}; '
                                  'this model or engine is broken')

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
        return (f'{self.metadata.model} on {self.name}, {self.device}, {self.precision}{threads}, '
                f'{self.cameras} x {self.slots} points')


def ring_length(path, name: str, state: Sequence, following: Sequence) -> int:
    """Rows of the ring that a state tensor is, 0 where it is none, from its dimensions in and out.

    A step gives one row where it takes several: the engine writes the row of step t, counted from
    the reset, straight into place t modulo their number, and nothing else of the ring is copied.
    The graph counts along; it reads no row of a frame that is about to be overwritten.
    """
    if len(state) != len(following):
        raise EngineError(f'{path}: state.{name} and next.{name} have not the same rank')
    if not state or state[0] == following[0]:
        return 0
    if following[0] != 1 or not isinstance(state[0], int):
        raise EngineError(f'{path}: next.{name} gives {following[0]} rows of {state[0]}')
    return state[0]


def turns(lengths: Iterable[int]) -> int:
    """Steps after which two buffers in turn, and rings of these lengths, come round together."""
    return math.lcm(2, *(length for length in lengths if length))


def resolve_shape(name: str, dims: list, cameras: int, slots: int) -> tuple[int, ...]:
    """Shape of a graph input whose named dimensions are filled in."""
    try:
        return tuple(d if isinstance(d, int) else (cameras, slots)[DYNAMIC[d]] for d in dims)
    except KeyError:
        raise EngineError(f'the input {name} has a dimension of {dims} that is none of '
                          f'{", ".join(DYNAMIC)}') from None


def check_interface(path, inputs: Collection[str], outputs: Collection[str]) -> list[str]:
    """Names of the state tensors of a graph with these inputs and outputs, without prefix."""
    state = [name.removeprefix(STATE) for name in inputs if name.startswith(STATE)]
    wanted = {'image', 'query_xy', 'query', 'query_age', 'live', *(STATE + n for n in state)}
    given = {*OUTPUTS, *(NEXT + n for n in state)}
    if set(inputs) != wanted or set(outputs) != given or not state:
        raise EngineError(f'{path}: its inputs {sorted(inputs)} and outputs {sorted(outputs)} are '
                          'not those of a tracker step')
    return state
