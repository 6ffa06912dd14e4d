"""ONNX Runtime: CPU, CUDA or its TensorRT provider."""

import numpy as np

from cotracker_ros.engines import base
from cotracker_ros.engines.metadata import EngineError, Metadata

PROVIDERS = {
    'cpu': 'CPUExecutionProvider',
    'cuda': 'CUDAExecutionProvider',
    'tensorrt': 'TensorrtExecutionProvider',
}
TYPES = {
    'tensor(float)': np.float32, 'tensor(float16)': np.float16, 'tensor(bool)': np.bool_,
    'tensor(int32)': np.int32, 'tensor(int64)': np.int64, 'tensor(uint8)': np.uint8,
}


class OnnxRuntimeEngine(base.Engine):
    """Keeps the state in two sets of buffers on the device, read and written in turn, and its
    rings in one.
    """

    name = 'onnxruntime'

    def __init__(self, path, metadata: Metadata, variant: str, cameras: int, slots: int,
                 threads: int) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise EngineError('the engine onnxruntime is not installed: '
                              'pip install onnxruntime') from None
        super().__init__(metadata, cameras, slots, threads or base.default_threads())
        provider = PROVIDERS[variant]
        if provider not in ort.get_available_providers():
            raise EngineError(f'this onnxruntime has no {provider} (it has '
                              f'{", ".join(ort.get_available_providers())}); '
                              'pip install onnxruntime-gpu, or use engine onnxruntime')
        self.device = 'cpu' if variant == 'cpu' else 'cuda:0'
        self.precision = metadata.precision.replace('fp32', 'f32')
        self._ort = ort
        self._session = _session(ort, path, provider, self.threads)
        inputs = {i.name: i for i in self._session.get_inputs()}
        outputs = {o.name: o for o in self._session.get_outputs()}
        names = base.check_interface(path, inputs, outputs)
        self._memory = 'cpu' if variant == 'cpu' else 'cuda'
        self._zeros = {
            n: np.zeros(base.resolve_shape(base.STATE + n, inputs[base.STATE + n].shape,
                                           cameras, slots), TYPES[inputs[base.STATE + n].type])
            for n in names}
        self._rings = {n: base.ring_length(path, n, inputs[base.STATE + n].shape,
                                           outputs[base.NEXT + n].shape) for n in names}
        # A copy for each: on the CPU an OrtValue is a view of the array it is made from.
        self._buffers = [{n: self._on_device(z) for n, z in self._zeros.items()}]
        self._buffers.append({n: self._buffers[0][n] if self._rings[n] else self._on_device(z)
                              for n, z in self._zeros.items()})
        self._bindings = [self._bind(t) for t in range(base.turns(self._rings.values()))]
        self._turn = 0

    def _on_device(self, array: np.ndarray):
        return self._ort.OrtValue.ortvalue_from_numpy(array.copy(), self._memory)

    def _bind(self, turn: int):
        """A binding that reads one set of buffers and writes the other, and one row of rings."""
        binding = self._session.io_binding()
        state, following = self._buffers[turn % 2], self._buffers[1 - turn % 2]
        for name in base.OUTPUTS:  # first: get_outputs keeps the order of binding
            binding.bind_output(name, 'cpu')
        for name, zeros in self._zeros.items():
            binding.bind_ortvalue_input(base.STATE + name, state[name])
            if length := self._rings[name]:
                row = zeros[:1]
                address = following[name].data_ptr() + turn % length * row.nbytes
                binding.bind_output(base.NEXT + name, self._memory, 0, row.dtype.type, row.shape,
                                    address)
            else:
                binding.bind_ortvalue_output(base.NEXT + name, following[name])
        return binding

    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        binding = self._bindings[self._turn]
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises its own types for every failure
            raise EngineError(f'onnxruntime failed in a step: {error}') from error
        self._turn = (self._turn + 1) % len(self._bindings)
        values = binding.get_outputs()[:len(base.OUTPUTS)]
        return {name: np.array(v.numpy()) for name, v in zip(base.OUTPUTS, values, strict=True)}

    def reset(self) -> None:
        """Forget all frames and points."""
        self._turn = 0
        for name, zeros in self._zeros.items():
            self._buffers[0][name].update_inplace(zeros)


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
        raise EngineError(f'onnxruntime could not start its {provider} (are the CUDA libraries '
                          'and a device there?); use engine onnxruntime')
    return session
