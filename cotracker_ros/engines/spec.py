"""What goes into a step and what comes out of it: names, shapes, types, in one place.

The export, every engine, the checks of a loaded graph, the scripted stream and the stand-ins of
the tests take them from here. In the frame of its query (`query` set, `query_age` 0) a slot gives
its query_xy with visibility and confidence 1: the step sees to it, and nobody after it.

To add an input, add it to INPUTS with a value for callers and models that know nothing of it, and
its name to `takes` of the model.Step that reads it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np

from cotracker_ros.engines.metadata import EngineError, Metadata

CAMERAS, POINTS = 'cameras', 'points'  # the dimensions left open in a graph, in this order
STATE, NEXT = 'state.', 'next.'  # before the names of the state's tensors, on the way in and out


@dataclass(frozen=True)
class Tensor:
    """An input or output of a step. Dimensions 'height' and 'width' are those of the picture."""

    name: str
    dims: tuple[str | int, ...]
    dtype: np.dtype
    otherwise: int | None = None  # its value where none is given; a graph need not carry it then

    def shape(
        self, cameras: int, points: int, picture_size: tuple[int, int] = (0, 0)
    ) -> tuple[int, ...]:
        """Its shape for these sizes; `picture_size` is (H, W), of use to the image alone."""
        sizes = {CAMERAS: cameras, POINTS: points}
        sizes |= dict(zip(('height', 'width'), picture_size, strict=True))
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.dims)


def _tensor(name: str, dims: str, dtype: type, otherwise: int | None = None) -> Tensor:
    parts = tuple(int(d) if d.isdecimal() else d for d in dims.split())
    return Tensor(name, parts, np.dtype(dtype), otherwise)


INPUTS = (
    _tensor('image', 'cameras height width 3', np.uint8),  # RGB, the frame as a picture
    _tensor('query_xy', 'cameras points 2', np.float32),  # model pixels, read where `query` is set
    _tensor('query', 'cameras points', np.bool_),  # (re)start these slots now
    _tensor('query_age', 'cameras points', np.int32),  # frames since the query was seen, 0 to S-1
    _tensor('live', 'cameras points', np.bool_),  # slots in use
    _tensor('keypoint', 'cameras points', np.int32, -1),  # number of a body's keypoint, -1: none
)
OUTPUTS = (
    _tensor('xy', 'cameras points 2', np.float32),  # model pixels
    _tensor('visibility', 'cameras points', np.float32),  # 0 to 1
    _tensor('confidence', 'cameras points', np.float32),  # 0 to 1: that xy is right
)
INPUT = {t.name: t for t in INPUTS}
OUTPUT_NAMES = tuple(t.name for t in OUTPUTS)
REQUIRED = tuple(t.name for t in INPUTS if t.otherwise is None)  # every step takes these


class Graph(NamedTuple):
    """Dimensions and types of a graph's inputs and outputs by name; an open dimension is its name,
    or -1 or None where the runtime drops the names.
    """

    inputs: Mapping[str, tuple[Sequence, np.dtype]]
    outputs: Mapping[str, tuple[Sequence, np.dtype]]


@dataclass(frozen=True)
class Interface:
    """What a graph takes of INPUTS, and its state: shapes and types by name, and rings, see
    `ring_length`.
    """

    inputs: tuple[Tensor, ...]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, np.dtype]
    rings: dict[str, int]


def interface(path, graph: Graph, metadata: Metadata, cameras: int, points: int) -> Interface:
    """Check that a graph is a step for these sizes, and give its interface.

    Raises EngineError naming what is missing, unknown or of another shape or type.
    """
    state = [n.removeprefix(STATE) for n in graph.inputs if n.startswith(STATE)]
    carried = [t for t in INPUTS if t.name in graph.inputs or t.otherwise is None]
    wanted = {*(t.name for t in carried), *(STATE + n for n in state)}
    given = {*OUTPUT_NAMES, *(NEXT + n for n in state)}
    if set(graph.inputs) != wanted or set(graph.outputs) != given or not state:
        raise EngineError(
            f'{path}: its inputs {sorted(graph.inputs)} and outputs {sorted(graph.outputs)} are '
            'not those of a tracker step'
        )
    for side, tensors in ((graph.inputs, carried), (graph.outputs, OUTPUTS)):
        for tensor in tensors:
            dims, dtype = side[tensor.name]
            shape = tensor.shape(cameras, points, metadata.picture_size)
            found = resolve(tensor.name, dims, cameras, points)
            if found != shape or dtype != tensor.dtype:
                raise EngineError(
                    f'{path}: {tensor.name} is {dtype} of shape {found}, not {tensor.dtype} of '
                    f'shape {shape}'
                )
    shapes, types, rings = {}, {}, {}
    for name in state:
        (dims, types[name]), (following, dtype) = (
            graph.inputs[STATE + name],
            graph.outputs[NEXT + name],
        )
        if dtype != types[name]:
            raise EngineError(f'{path}: state.{name} is {types[name]}, but next.{name} is {dtype}')
        shapes[name] = resolve(STATE + name, dims, cameras, points)
        following = resolve(NEXT + name, following, cameras, points)
        rings[name] = ring_length(path, name, shapes[name], following)
    return Interface(tuple(carried), shapes, types, rings)


def resolve(name: str, dims: Iterable, cameras: int, points: int) -> tuple[int, ...]:
    """A shape whose open dimensions are filled in; without names the first are the cameras, the
    others points.

    Raises EngineError for a dimension of another name.
    """
    named = {CAMERAS: cameras, POINTS: points}
    unnamed: Iterator[int] = chain([cameras], repeat(points))
    shape = []
    for d in dims:
        if isinstance(d, str) and d not in named:
            raise EngineError(
                f'the tensor {name} has a dimension {d!r}, which is none of {", ".join(named)}'
            )
        shape.append(named[d] if isinstance(d, str) else next(unnamed) if d in (-1, None) else d)
    return tuple(int(d) for d in shape)


def ring_length(path, name: str, state: Sequence[int], following: Sequence[int]) -> int:
    """Rows of the ring that a state tensor is, 0 where it is none, from its shapes in and out.

    A step gives one row where it takes several: the engine writes the row of step t, counted from
    the reset, straight into place t modulo their number, and nothing else of the ring is copied.
    The graph counts along; it reads no row of a frame that is about to be overwritten.
    Raises EngineError where the shapes are neither the same nor those of a ring and a row of it.
    """
    if len(state) != len(following):
        raise EngineError(f'{path}: state.{name} and next.{name} have not the same rank')
    if not state or tuple(state) == tuple(following):
        return 0
    if following[0] != 1 or tuple(state[1:]) != tuple(following[1:]):
        raise EngineError(
            f'{path}: next.{name} of shape {tuple(following)} is neither a state of shape '
            f'{tuple(state)} nor one row of it'
        )
    return state[0]
