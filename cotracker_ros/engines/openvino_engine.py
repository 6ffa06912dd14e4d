"""OpenVINO on the CPU, in f32 or, asked for by name, in bf16."""

import numpy as np

from cotracker_ros.engines import base
from cotracker_ros.engines.metadata import EngineError, Metadata


def has_bf16() -> bool:
    """Whether this CPU computes in bf16 (AMX or AVX-512 BF16)."""
    import openvino as ov
    return 'BF16' in ov.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


class OpenVinoEngine(base.Engine):
    """Keeps the state in two sets of tensors, read and written in turn; shapes are static."""

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
        outputs = {n: o for o in model.outputs for n in o.names if n in base.OUTPUTS
                   or n.startswith(base.NEXT)}
        names = base.check_interface(path, inputs, outputs)
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
        types = {n: inputs[base.STATE + n].element_type.to_dtype() for n in names}
        self._buffers = [{n: np.zeros(shapes[base.STATE + n], types[n]) for n in names}
                         for _ in range(2)]
        self._tensors = [{n: ov.Tensor(v, shared_memory=True) for n, v in b.items()}
                         for b in self._buffers]
        self._turn = 0

    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = self._request
        state, following = self._tensors[self._turn], self._tensors[1 - self._turn]
        try:
            for name, value in inputs.items():
                request.set_tensor(name, self._ov.Tensor(value, shared_memory=True))
            for name in state:
                request.set_tensor(base.STATE + name, state[name])
                request.set_tensor(base.NEXT + name, following[name])
            request.infer()
        except Exception as error:
            raise EngineError(f'openvino failed in a step: {_line(error)}') from error
        self._turn = 1 - self._turn
        return {name: np.array(request.get_tensor(name).data) for name in base.OUTPUTS}

    def reset(self) -> None:
        """Forget all frames and points."""
        for buffer in self._buffers[self._turn].values():
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


def _shape(node, cameras: int, slots: int) -> list[int]:
    """OpenVINO drops the names of dimensions, but every step has cameras before points."""
    sizes = iter((cameras, slots))
    return [int(d.get_length()) if d.is_static else next(sizes) for d in node.partial_shape]


def _line(error: Exception) -> str:
    """The last line of OpenVINO's many, where the cause stands."""
    return [t for t in str(error).splitlines() if t.strip()][-1].strip()
