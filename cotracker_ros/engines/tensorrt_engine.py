"""TensorRT 10.3 to 11 and TensorRT-RTX, on an engine that cotracker-build-trt built here."""

import importlib
import logging
from pathlib import Path

import numpy as np

from cotracker_ros.engines import base, sidecar, spec
from cotracker_ros.engines import cuda as cuda_calls
from cotracker_ros.engines.metadata import EngineError

_log = logging.getLogger(__name__)


def load_engine(path: Path, cameras: int, slots: int) -> 'TensorRtEngine':
    """Check the sidecar, then start the library it names; raises EngineError as `start`, and for
    an engine that was never compared.
    """
    found = sidecar.read(path)
    sidecar.check_compared(path, found)
    return start(path, found, cameras, slots)


def start(path: Path, found: sidecar.Sidecar, cameras: int, slots: int) -> 'TensorRtEngine':
    """Start the engine at `path`, compared or not.

    Raises EngineError where it was built for another library version, GPU or size than these, or
    where TensorRT or cuda-python is missing.
    """
    try:
        library = importlib.import_module(found.library)
    except ImportError as error:
        raise EngineError(
            f'the engine tensorrt cannot import {found.library} ({error}): it comes with JetPack, '
            f'elsewhere pip install {found.library.replace("_", "-")}'
        ) from None
    cuda = cuda_calls.Cuda(cuda_calls.runtime())
    sidecar.check(path, found, library.__version__, cuda.gpu(), cameras, slots)
    return TensorRtEngine(path, found, library, cuda, cameras, slots)


class TensorRtEngine(base.GraphEngine):
    """State buffers on the device, and a CUDA graph for each phase.

    `library` is the module of TensorRT and `cuda` a Cuda: tests hand in stand-ins for both.
    """

    name = 'tensorrt'
    device = 'cuda:0'

    def __init__(
        self,
        path: Path,
        found: sidecar.Sidecar,
        library,
        cuda: cuda_calls.Cuda,
        cameras: int,
        slots: int,
    ) -> None:
        super().__init__(found.metadata, cameras, slots, 0)
        self.precision = found.precision
        self._cuda = cuda
        self._runtime = library.Runtime(library.Logger(library.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f'{path}: {found.library} {found.version} refuses it (see its log '
                'above); build it again on this computer'
            )
        self._context = self._engine.create_execution_context()
        graph = self._graph(library)
        self._fix_sizes(path, graph)
        interface = spec.interface(path, graph, found.metadata, cameras, slots)
        size = {
            n: int(np.prod(interface.shapes[n])) * interface.types[n].itemsize
            for n in interface.shapes
        }
        self._size, self._row_size = (
            size,
            {n: size[n] // (r or 1) for n, r in interface.rings.items()},
        )
        self._hold_state(interface, lambda n: cuda.allocate(size[n]))
        small = (*interface.inputs, *spec.OUTPUTS)
        self._host = {t.name: cuda.pinned(self.shape_of(t), t.dtype) for t in small}
        self._device = {n: cuda.allocate(array.nbytes) for n, array in self._host.items()}
        for name, address in self._device.items():
            self._context.set_tensor_address(name, address)
        self._graphs: list = [None] * self.binding_period

    def _graph(self, library) -> spec.Graph:
        """Inputs and outputs of the engine, -1 for open dimensions."""
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        sides: tuple[dict, dict] = {}, {}
        for name in names:
            given = self._engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
            sides[0 if given else 1][name] = (
                tuple(self._engine.get_tensor_shape(name)),
                np.dtype(library.nptype(self._engine.get_tensor_dtype(name))),
            )
        return spec.Graph(*sides)

    def _fix_sizes(self, path, graph: spec.Graph) -> None:
        """Fix the sizes of all inputs in the context."""
        for name, (dims, _) in graph.inputs.items():
            shape = spec.resolve(name, dims, self.cameras, self.slots)
            if not self._context.set_input_shape(name, shape):
                raise EngineError(f'{path}: refuses the shape {shape} of {name}')

    def _enqueue(self, phase: int) -> None:
        """Put one step on the stream: inputs up, the network, outputs down."""
        for name in self._carried:
            self._cuda.upload(self._device[name], self._host[name])
        for name, state, following, row in self._state(phase):
            self._context.set_tensor_address(spec.STATE + name, state)
            self._context.set_tensor_address(
                spec.NEXT + name, following + (row or 0) * self._row_size[name]
            )
        if not self._context.execute_async_v3(int(self._cuda.stream)):
            raise EngineError('tensorrt failed in a step (see its log)')
        for name in spec.OUTPUT_NAMES:
            self._cuda.download(self._host[name], self._device[name])

    def _run(self, phase: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, value in inputs.items():
            np.copyto(self._host[name], value)
        if self._graphs[phase] is not None:
            self._cuda.launch(self._graphs[phase])
        else:
            self._enqueue(phase)
        self._cuda.synchronize()
        return {n: self._host[n].copy() for n in spec.OUTPUT_NAMES}

    def warm_up(self) -> None:
        """Run twice, which lets TensorRT allocate, then record every phase as a CUDA graph."""
        super().warm_up()
        super().warm_up()
        try:
            self._graphs = [
                self._cuda.record(lambda t=t: self._enqueue(t)) for t in range(len(self._graphs))
            ]
        except EngineError as error:  # some layers cannot be captured
            _log.warning('no CUDA graph, each step is launched call by call: %s', error)
        self.reset()

    def reset(self) -> None:
        """Forget all frames and points."""
        super().reset()
        self._cuda.synchronize()

    def _clear(self, name: str, buffer: int) -> None:
        self._cuda.zero(buffer, self._size[name])

    def close(self) -> None:
        """Free the device's memory."""
        self._graphs = [None] * len(self._graphs)
        self._context = self._engine = None
        self._cuda.close()
