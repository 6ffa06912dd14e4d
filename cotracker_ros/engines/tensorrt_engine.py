"""TensorRT 10.3 to 11 and TensorRT-RTX, on an engine that export/build_trt.py built here."""

import importlib
import logging
from pathlib import Path

import numpy as np

from cotracker_ros.engines import base, sidecar
from cotracker_ros.engines import cuda as cuda_calls
from cotracker_ros.engines.metadata import EngineError

_log = logging.getLogger(__name__)


def load_engine(path: Path, cameras: int, slots: int) -> 'TensorRtEngine':
    """Check the sidecar, then start the library it names."""
    found = sidecar.read(path)
    sidecar.check_compared(path, found)
    return start(path, found, cameras, slots)


def start(path: Path, found: sidecar.Sidecar, cameras: int, slots: int) -> 'TensorRtEngine':
    """Start the engine at `path`, compared or not, if it was built for what is here."""
    try:
        library = importlib.import_module(found.library)
    except ImportError as error:
        raise EngineError(f'the engine tensorrt cannot import {found.library}: {error}') from None
    cuda = cuda_calls.Cuda(cuda_calls.runtime())
    sidecar.check(path, found, library.__version__, cuda.gpu(), cameras, slots)
    return TensorRtEngine(path, found, library, cuda, cameras, slots)


class TensorRtEngine(base.Engine):
    """Two sets of state buffers on the device, read and written in turn, and one of rings; a CUDA
    graph for each turn.

    `library` is the module of TensorRT and `cuda` a Cuda: tests hand in stand-ins for both.
    """

    name = 'tensorrt'
    device = 'cuda:0'

    def __init__(self, path: Path, found: sidecar.Sidecar, library, cuda: cuda_calls.Cuda,
                 cameras: int, slots: int) -> None:
        super().__init__(found.metadata, cameras, slots, 0)
        self.precision = found.precision
        self._cuda = cuda
        self._runtime = library.Runtime(library.Logger(library.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f'{path}: {found.library} {found.version} refuses it (see its log '
                              'above); build it again on this computer')
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names
                  if self._engine.get_tensor_mode(n) == library.TensorIOMode.INPUT]
        self._names = base.check_interface(path, inputs, [n for n in names if n not in inputs])
        self._shapes, self._types = self._fill_in_sizes(library, path, names, inputs)
        self._rings = {n: base.ring_length(path, n, self._shapes[base.STATE + n],
                                           self._shapes[base.NEXT + n]) for n in self._names}
        self._buffers = [{n: cuda.allocate(self._size(base.STATE + n)) for n in self._names}]
        self._buffers.append({n: self._buffers[0][n] if self._rings[n]
                              else cuda.allocate(self._size(base.STATE + n))
                              for n in self._names})
        small = [*self._inputs, *base.OUTPUTS]
        self._host = {n: cuda.pinned(self._shapes[n], self._types[n]) for n in small}
        self._device = {n: cuda.allocate(self._size(n)) for n in small}
        for name, address in self._device.items():
            self._context.set_tensor_address(name, address)
        self._graphs: list = [None] * base.turns(self._rings.values())
        self._turn = 0

    def _fill_in_sizes(self, library, path, names: list[str], inputs: list[str]):
        """Fix the sizes of all inputs in the context; returns shapes and numpy types by name."""
        for name in inputs:
            # Every step has cameras before points: -1 stands for these, in this order.
            sizes = iter((self.cameras, self.slots))
            shape = [next(sizes) if d == -1 else d for d in self._engine.get_tensor_shape(name)]
            if not self._context.set_input_shape(name, shape):
                raise EngineError(f'{path}: refuses the shape {shape} of {name}')
        shapes = {n: tuple(self._context.get_tensor_shape(n)) for n in names}
        types = {n: np.dtype(library.nptype(self._engine.get_tensor_dtype(n))) for n in names}
        return shapes, types

    def _size(self, name: str) -> int:
        return int(np.prod(self._shapes[name])) * self._types[name].itemsize

    def _enqueue(self, turn: int) -> None:
        """Put one step on the stream: inputs up, the network, outputs down."""
        for name in self._inputs:
            self._cuda.upload(self._device[name], self._host[name])
        for name, length in self._rings.items():
            state, following = (self._buffers[k][name] for k in (turn % 2, 1 - turn % 2))
            if length:
                following += turn % length * self._size(base.NEXT + name)
            self._context.set_tensor_address(base.STATE + name, state)
            self._context.set_tensor_address(base.NEXT + name, following)
        if not self._context.execute_async_v3(int(self._cuda.stream)):
            raise EngineError('tensorrt failed in a step (see its log)')
        for name in base.OUTPUTS:
            self._cuda.download(self._host[name], self._device[name])

    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, value in inputs.items():
            np.copyto(self._host[name], value)
        if self._graphs[self._turn] is not None:
            self._cuda.launch(self._graphs[self._turn])
        else:
            self._enqueue(self._turn)
        self._cuda.synchronize()
        self._turn = (self._turn + 1) % len(self._graphs)
        return {n: self._host[n].astype(np.float32) for n in base.OUTPUTS}

    def warm_up(self) -> None:
        """Run twice, which lets TensorRT allocate, then record every turn as a CUDA graph."""
        super().warm_up()
        super().warm_up()
        try:
            self._graphs = [self._cuda.record(lambda t=t: self._enqueue(t))
                            for t in range(len(self._graphs))]
        except EngineError as error:  # some layers cannot be captured
            _log.warning('no CUDA graph, each step is launched call by call: %s', error)
        self.reset()

    def reset(self) -> None:
        """Forget all frames and points."""
        self._turn = 0
        for name, address in self._buffers[0].items():
            self._cuda.zero(address, self._size(base.STATE + name))
        self._cuda.synchronize()

    def close(self) -> None:
        """Free the device's memory."""
        self._graphs = [None] * len(self._graphs)
        self._context = self._engine = None
        self._cuda.close()
