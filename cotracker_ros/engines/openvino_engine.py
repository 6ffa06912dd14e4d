"""OpenVINO on the CPU, in f32, or with the encoder in bf16.

Features bear bf16: they are compared with each other. Positions do not: 8 bits of a place in a
picture of 512 px are a pixel. So with bf16 the graph is compiled as two, the encoder and the rest.
"""

import contextlib
import ctypes
import functools
import sys

import numpy as np

from cotracker_ros.engines import base, spec
from cotracker_ros.engines.metadata import EngineError, Metadata

FEATURES = 'features.'  # before the name of a ring, of what the encoder hands to the rest


def has_bf16() -> bool:
    """Whether OpenVINO is here and this CPU computes in bf16 (AMX or AVX-512 BF16)."""
    try:
        core = _core()
    except ImportError:
        return False
    return 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


@functools.cache
def _core():
    """The one Core of this process, never destroyed; its thread handles signals where it did.

    Loading the CPU plugin gives its thread a stack for signals, on which Python handles them, and
    unloading unmaps it: with a Core for each engine, dropped in another thread or of two not in
    reverse order, a thread was left with a stack that is not there. And where the CPU has AMX that
    stack, of 20 kB, is too small for two signals at once. Either kills the process (seen with
    OpenVINO 2026.4).
    """
    import openvino as ov

    with _signal_stack_kept():
        core = ov.Core()
        core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')  # loads the plugin
    return core


class _SignalStack(ctypes.Structure):
    """stack_t of Linux, see sigaltstack(2)."""

    _fields_ = (
        ('start', ctypes.c_void_p),
        ('flags', ctypes.c_int),
        ('size', ctypes.c_size_t),
    )


@contextlib.contextmanager
def _signal_stack_kept():
    """Give this thread the stack for signals back that it had, or none as most have."""
    if not sys.platform.startswith('linux'):
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


class OpenVinoEngine(base.GraphEngine):
    """Keeps the state in arrays that OpenVINO reads and writes in place; shapes are static."""

    name = 'openvino'
    device = 'cpu'

    def __init__(
        self, path, metadata: Metadata, precision: str, cameras: int, slots: int, threads: int
    ) -> None:
        try:
            import openvino as ov
        except ImportError:
            raise EngineError(
                'the engine openvino is not installed: pip install openvino'
            ) from None
        super().__init__(metadata, cameras, slots, threads or base.default_threads())
        if precision == 'bf16' and not has_bf16():
            raise EngineError('this CPU has no bf16; use engine openvino')
        graphs = metadata.precision.replace('fp32', 'f32')
        self.precision = precision if precision == 'bf16' else graphs
        try:
            model = _core().read_model(str(path))
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise EngineError(f'{path}: openvino cannot load it: {_line(error)}') from error
        found = spec.interface(path, _graph(model), metadata, cameras, slots)
        features = [name for name, length in found.rings.items() if length]
        if precision == 'bf16' and not features:
            raise EngineError(f'{path}: keeps no features of frames; use engine openvino')
        try:
            model.reshape(
                {
                    i.any_name: list(spec.resolve(i.any_name, _dims(i), cameras, slots))
                    for i in model.inputs
                }
            )
            model = _hold_half_as_float(ov, model)
            parts = _split(ov, model, features) if precision == 'bf16' else [model]
            self._requests = [
                _core()
                .compile_model(
                    part,
                    'CPU',
                    {
                        # Its own default on a CPU with bf16 is bf16, another model as it were.
                        'INFERENCE_PRECISION_HINT': 'f32' if part is parts[-1] else 'bf16',
                        'INFERENCE_NUM_THREADS': self.threads,
                        'PERFORMANCE_HINT': 'LATENCY',
                    },
                )
                .create_infer_request()
                for part in parts
            ]
        except Exception as error:
            raise EngineError(f'{path}: openvino cannot compile it: {_line(error)}') from error
        self._ov = ov
        if precision == 'bf16':
            encoder, rest = self._requests
            for name, port in zip(features, encoder.model_outputs, strict=True):
                rest.set_tensor(FEATURES + name, encoder.get_tensor(port))
        types = {i.any_name: i.element_type.to_dtype() for i in model.inputs}
        self._hold_state(found, lambda n: np.zeros(found.shapes[n], types[spec.STATE + n]))
        self._tensors = [self._bind(t) for t in range(self.binding_period)]

    def _bind(self, phase: int) -> dict:
        """Tensors by name for a phase: one set of buffers in, the other out; one row of rings."""
        tensors = {}
        for name, state, following, row in self._state(phase):
            written = following if row is None else following[row : row + 1]
            tensors[spec.STATE + name] = self._ov.Tensor(state, shared_memory=True)
            tensors[spec.NEXT + name] = self._ov.Tensor(written, shared_memory=True)
        return tensors

    def _run(self, phase: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        *encoder, request = self._requests
        try:
            for name, value in inputs.items():
                request.set_tensor(name, self._ov.Tensor(value, shared_memory=True))
            for name, tensor in self._tensors[phase].items():
                request.set_tensor(name, tensor)
            for first in encoder:
                first.set_tensor('image', request.get_tensor('image'))
                first.infer()
            request.infer()
        except Exception as error:
            raise EngineError(f'openvino failed in a step: {_line(error)}') from error
        return {name: np.array(request.get_tensor(name).data) for name in spec.OUTPUT_NAMES}

    def _clear(self, name: str, buffer: np.ndarray) -> None:
        buffer[:] = 0


def _hold_half_as_float(ov, model):
    """Let the state that a graph keeps in float16 be float32 outside it.

    A CPU without float16 computes in float32 and would convert the whole of it, in and out, in
    every step: for past feature maps that took a tenth of the time.
    """
    steps = ov.preprocess.PrePostProcessor(model)
    for port in model.inputs:
        if port.element_type == ov.Type.f16:
            steps.input(port.any_name).tensor().set_element_type(ov.Type.f32)
    for port in model.outputs:
        if port.element_type == ov.Type.f16:
            steps.output(port.any_name).tensor().set_element_type(ov.Type.f32)
    return steps.build()


def _split(ov, model, rings: list[str]) -> list:
    """The graph as two models: from the image to what `rings` keep of a frame, the features; and
    the rest, which takes them as inputs of their names with FEATURES before it. Raises
    RuntimeError where what is kept is not of the image alone.
    """
    image = model.input('image').get_node()
    results, features = [], []
    for name in rings:
        node = model.output(spec.NEXT + name).get_node().input_value(0).get_node()
        while node.get_type_name() in ('Convert', 'Unsqueeze'):
            node = node.input_value(0).get_node()
        port = node.output(0)
        feature = ov.opset13.parameter(port.get_partial_shape(), port.get_element_type())
        feature.output(0).set_names({FEATURES + name})
        for user in port.get_target_inputs():
            user.replace_source_output(feature.output(0))
        results.append(ov.opset13.result(port))
        features.append(feature)
    encoder = ov.Model(results, [image], 'encoder')
    rest = ov.Model(model.get_results(), [*model.get_parameters(), *features], 'rest')
    return [encoder, rest]


def _graph(model) -> spec.Graph:
    """Inputs and outputs by their names in the file; OpenVINO adds other outputs of its own."""
    outputs = {
        n: o
        for o in model.outputs
        for n in o.names
        if n in spec.OUTPUT_NAMES or n.startswith(spec.NEXT)
    }
    inputs = {i.any_name: i for i in model.inputs}
    return spec.Graph(
        *(
            {n: (_dims(p), np.dtype(p.element_type.to_dtype())) for n, p in ports.items()}
            for ports in (inputs, outputs)
        )
    )


def _dims(port) -> list[int]:
    """Dimensions, -1 where one is open: OpenVINO drops their names."""
    return [int(d.get_length()) if d.is_static else -1 for d in port.partial_shape]


def _line(error: Exception) -> str:
    """The last line of OpenVINO's many, where the cause stands."""
    return [t for t in str(error).splitlines() if t.strip()][-1].strip()
