"""OpenVINO on the CPU, in f32 or, asked for by name, in bf16."""

import numpy as np

from cotracker_ros.engines import base
from cotracker_ros.engines.metadata import EngineError, Metadata


def has_bf16() -> bool:
    """Whether this CPU computes in bf16 (AMX or AVX-512 BF16)."""
    import openvino as ov
    return 'BF16' in ov.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


class OpenVinoEngine(base.Engine):
    """Keeps the state in two sets of tensors, read and written in turn, and its rings in one;
    shapes are static.
    """

    name = 'openvino'
    device = 'cpu'

    def __init__(self, path, metadata: Metadata, precision: str, cameras: int, slots: int,
                 threads: int) -> None:
        try:
            import openvino as ov
        except ImportError:
            raise EngineError('the engine openvino is not installed: '
                              'pip install openvino') from None
        super().__init__(metadata, cameras, slots, threads or base.default_threads())
        if precision == 'bf16' and not has_bf16():
            raise EngineError('this CPU has no bf16; use engine openvino')
        self.precision = precision
        try:
            model = ov.Core().read_model(str(path))
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise EngineError(f'{path}: openvino cannot load it: {_line(error)}') from error
        inputs = {i.any_name: i for i in model.inputs}
        names = base.check_interface(path, inputs, _outputs(model))
        try:
            shapes = {n: _shape(i, cameras, slots) for n, i in inputs.items()}
            model.reshape(shapes)
            model = _hold_half_as_float(ov, model)
            inputs = {i.any_name: i for i in model.inputs}
            compiled = ov.Core().compile_model(model, 'CPU', {
                # Its own default on a CPU with bf16 is bf16, another model as it were.
                'INFERENCE_PRECISION_HINT': precision,
                'INFERENCE_NUM_THREADS': self.threads,
                'PERFORMANCE_HINT': 'LATENCY',
            })
        except Exception as error:
            raise EngineError(f'{path}: openvino cannot compile it: {_line(error)}') from error
        self._ov = ov
        self._request = compiled.create_infer_request()
        following = {n: _fixed(o) for n, o in _outputs(model).items()}
        self._rings = {n: base.ring_length(path, n, shapes[base.STATE + n],
                                           following[base.NEXT + n]) for n in names}
        types = {n: inputs[base.STATE + n].element_type.to_dtype() for n in names}
        self._buffers = [{n: np.zeros(shapes[base.STATE + n], types[n]) for n in names}]
        self._buffers.append({n: v if self._rings[n] else v.copy()
                              for n, v in self._buffers[0].items()})
        self._tensors = [self._bind(t) for t in range(base.turns(self._rings.values()))]
        self._turn = 0

    def _bind(self, turn: int) -> dict:
        """Tensors by name for one turn: one set of buffers in, the other out; one row of rings."""
        tensors = {}
        for name, length in self._rings.items():
            state, following = (self._buffers[k][name] for k in (turn % 2, 1 - turn % 2))
            if length:
                following = following[turn % length:turn % length + 1]
            tensors[base.STATE + name] = self._ov.Tensor(state, shared_memory=True)
            tensors[base.NEXT + name] = self._ov.Tensor(following, shared_memory=True)
        return tensors

    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = self._request
        try:
            for name, value in inputs.items():
                request.set_tensor(name, self._ov.Tensor(value, shared_memory=True))
            for name, tensor in self._tensors[self._turn].items():
                request.set_tensor(name, tensor)
            request.infer()
        except Exception as error:
            raise EngineError(f'openvino failed in a step: {_line(error)}') from error
        self._turn = (self._turn + 1) % len(self._tensors)
        return {name: np.array(request.get_tensor(name).data) for name in base.OUTPUTS}

    def reset(self) -> None:
        """Forget all frames and points."""
        self._turn = 0
        for buffer in self._buffers[0].values():
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


def _outputs(model) -> dict:
    """Outputs by their names in the file; OpenVINO adds others of its own."""
    return {n: o for o in model.outputs for n in o.names
            if n in base.OUTPUTS or n.startswith(base.NEXT)}


def _fixed(node) -> list[int]:
    return [int(d.get_length()) for d in node.partial_shape]


def _shape(node, cameras: int, slots: int) -> list[int]:
    """OpenVINO drops the names of dimensions, but every step has cameras before points."""
    sizes = iter((cameras, slots))
    return [int(d.get_length()) if d.is_static else next(sizes) for d in node.partial_shape]


def _line(error: Exception) -> str:
    """The last line of OpenVINO's many, where the cause stands."""
    return [t for t in str(error).splitlines() if t.strip()][-1].strip()
