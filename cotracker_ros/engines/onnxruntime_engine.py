"""ONNX Runtime: CPU, CUDA or its TensorRT provider."""

import numpy as np

from cotracker_ros.engines import base, spec
from cotracker_ros.engines.metadata import EngineError, Metadata

PROVIDERS = {
    'cpu': 'CPUExecutionProvider',
    'cuda': 'CUDAExecutionProvider',
    'tensorrt': 'TensorrtExecutionProvider',
}
TYPES = {
    'tensor(float)': np.float32,
    'tensor(float16)': np.float16,
    'tensor(bool)': np.bool_,
    'tensor(int32)': np.int32,
    'tensor(int64)': np.int64,
    'tensor(uint8)': np.uint8,
}


class OnnxRuntimeEngine(base.GraphEngine):
    """Keeps the state in buffers on the device, bound once for every phase."""

    name = 'onnxruntime'

    def __init__(
        self, path, metadata: Metadata, variant: str, cameras: int, slots: int, threads: int
    ) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise EngineError(
                'the engine onnxruntime is not installed: pip install onnxruntime'
            ) from None
        super().__init__(metadata, cameras, slots, threads or base.default_threads())
        provider = PROVIDERS[variant]
        if provider not in ort.get_available_providers():
            raise EngineError(
                f'this onnxruntime has no {provider} (it has '
                f'{", ".join(ort.get_available_providers())}); '
                'pip install onnxruntime-gpu, or use engine onnxruntime'
            )
        self.device = 'cpu' if variant == 'cpu' else 'cuda:0'
        self.precision = metadata.precision.replace('fp32', 'f32')
        self._ort = ort
        self._session = _session(ort, path, provider, self.threads)
        found = spec.interface(path, graph_of(self._session), metadata, cameras, slots)
        self._memory = 'cpu' if variant == 'cpu' else 'cuda'
        self._zeros = {n: np.zeros(found.shapes[n], found.types[n]) for n in found.shapes}
        # A copy for each: on the CPU an OrtValue is a view of the array it is made from.
        self._hold_state(
            found, lambda n: ort.OrtValue.ortvalue_from_numpy(self._zeros[n].copy(), self._memory)
        )
        self._bindings = [self._bind(t) for t in range(self.binding_period)]

    def _bind(self, phase: int):
        """A binding that reads one set of buffers and writes the other, and one row of rings."""
        binding = self._session.io_binding()
        for name in spec.OUTPUT_NAMES:  # first: get_outputs keeps the order of binding
            binding.bind_output(name, 'cpu')
        for name, state, following, row in self._state(phase):
            binding.bind_ortvalue_input(spec.STATE + name, state)
            if row is None:
                binding.bind_ortvalue_output(spec.NEXT + name, following)
                continue
            kind = self._zeros[name][:1]
            binding.bind_output(
                spec.NEXT + name,
                self._memory,
                0,
                kind.dtype.type,
                kind.shape,
                following.data_ptr() + row * kind.nbytes,
            )
        return binding

    def _run(self, phase: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        binding = self._bindings[phase]
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises its own types for every failure
            raise EngineError(f'onnxruntime failed in a step: {error}') from error
        values = binding.get_outputs()[: len(spec.OUTPUT_NAMES)]
        return {
            name: np.array(v.numpy()) for name, v in zip(spec.OUTPUT_NAMES, values, strict=True)
        }

    def _clear(self, name: str, buffer) -> None:
        buffer.update_inplace(self._zeros[name])


def graph_of(session) -> spec.Graph:
    """Inputs and outputs of a session, for spec.interface."""
    return spec.Graph(
        *(
            {v.name: (v.shape, np.dtype(TYPES.get(v.type, object))) for v in values}
            for values in (session.get_inputs(), session.get_outputs())
        )
    )


def _session(ort, path, provider: str, threads: int):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from ROS and from each other: on two busy
    # cores a step took 65 ms of CPU time with them and 38 without, and twice as long.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # as above
        raise EngineError(f'{path}: onnxruntime cannot load it: {error}') from error
    if session.get_providers()[0] != provider:
        # onnxruntime would go on, many times slower, on the CPU.
        raise EngineError(
            f'onnxruntime could not start its {provider} (are the CUDA libraries '
            'and a device there?); use engine onnxruntime'
        )
    return session
