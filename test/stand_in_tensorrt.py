"""Stand-ins for the vendor's side of the TensorRT engine: a CUDA runtime on host memory and a
TensorRT
whose 'engine' is an ONNX file run by ONNX Runtime on the addresses it is given."""

import ctypes
import enum
import types

import numpy as np
import onnxruntime as ort

VERSION = '10.13.3.9'
GPU = 'Stand-in (sm_87)'
_TYPES = {
    'tensor(float)': np.float32,
    'tensor(bool)': np.bool_,
    'tensor(int32)': np.int32,
    'tensor(uint8)': np.uint8,
    'tensor(int64)': np.int64,
    'tensor(float16)': np.float16,
}


class CudaRuntime:
    """The functions of cuda.bindings.runtime that are called; every return is a status first."""

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, can_capture=True):
        self.memory, self.recording, self.can_capture, self.launched = {}, None, can_capture, 0

    def _do(self, work):
        if self.recording is None:
            work()
        else:
            self.recording.append(work)
        return (0,)

    def cudaStreamCreate(self):
        return 0, 7

    def cudaStreamDestroy(self, stream):
        return (0,)

    def cudaStreamSynchronize(self, stream):
        return (0,)

    def cudaGetDeviceProperties(self, device):
        return 0, types.SimpleNamespace(name=b'Stand-in', major=8, minor=7)

    def cudaMalloc(self, size):
        block = (ctypes.c_uint8 * max(size, 1))()
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaHostAlloc(self, size, flags):
        return self.cudaMalloc(size)

    def cudaFree(self, address):
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemsetAsync(self, address, value, size, stream):
        return self._do(lambda: ctypes.memset(address, value, size))

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        return self._do(lambda: ctypes.memmove(target, source, size))

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        graph, self.recording = self.recording, None
        return (0, graph) if self.can_capture else (900, None)

    def cudaGraphInstantiate(self, graph, flags):
        return 0, graph

    def cudaGraphLaunch(self, graph, stream):
        self.launched += 1
        for work in graph:
            work()
        return (0,)


class Logger:
    WARNING = 2

    def __init__(self, level):
        pass


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Runtime:
    cuda = None  # the CudaRuntime in use

    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        try:
            return Engine(ort.InferenceSession(data, providers=['CPUExecutionProvider']))
        except Exception:
            return None


class Engine:
    def __init__(self, session):
        self.session = session
        self.inputs = {i.name: i for i in session.get_inputs()}
        self.all = self.inputs | {o.name: o for o in session.get_outputs()}
        self.num_io_tensors = len(self.all)

    def get_tensor_name(self, index):
        return list(self.all)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return [d if isinstance(d, int) else -1 for d in self.all[name].shape]

    def get_tensor_dtype(self, name):
        return self.all[name].type

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.sizes, self.addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        declared = self.engine.all[name].shape
        self.sizes |= {d: s for d, s in zip(declared, shape, strict=True) if isinstance(d, str)}
        return True

    def get_tensor_shape(self, name):
        return [self.sizes.get(d, d) for d in self.engine.all[name].shape]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        addresses = dict(self.addresses)
        Runtime.cuda._do(lambda: self._run(addresses))
        return True

    def _array(self, name, addresses):
        shape, kind = self.get_tensor_shape(name), np.dtype(nptype(self.engine.all[name].type))
        size = int(np.prod(shape) * kind.itemsize)
        memory = (ctypes.c_uint8 * size).from_address(addresses[name])
        return np.frombuffer(memory, kind).reshape(shape)

    def _run(self, addresses):
        given = {n: self._array(n, addresses) for n in self.engine.inputs}
        outputs = [n for n in self.engine.all if n not in given]
        for name, value in zip(outputs, self.engine.session.run(outputs, given), strict=True):
            np.copyto(self._array(name, addresses), value)


def nptype(kind):
    return _TYPES[kind]


__version__ = VERSION


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 1


class LayerType(enum.Enum):
    GRID_SAMPLE = 1
    OTHER = 2


class InterpolationMode(enum.Enum):
    LINEAR = 1
    NEAREST = 2


class Network:
    def __init__(self):
        self.layers, self.session, self.data = [], None, None

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.session.get_inputs()))

    def get_layer(self, index):
        return self.layers[index]

    def get_input(self, index):
        i = self.session.get_inputs()[index]
        return types.SimpleNamespace(
            name=i.name, shape=[d if isinstance(d, int) else -1 for d in i.shape]
        )


class OnnxParser:
    errors = ()  # what the next parse fails with

    def __init__(self, network, logger):
        self.network = network

    num_errors = property(lambda self: len(self.errors))

    def get_error(self, index):
        return self.errors[index]

    def parse(self, model):
        if self.errors:
            return False
        self.network.data = bytes(model)
        self.network.session = ort.InferenceSession(
            self.network.data, providers=['CPUExecutionProvider']
        )
        self.network.layers = [
            types.SimpleNamespace(type=LayerType.OTHER, name='other'),
            types.SimpleNamespace(
                type=LayerType.GRID_SAMPLE, name='sample', interpolation_mode=Builder.sampling
            ),
        ]
        return True


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return memoryview(self.data + b'+')


class Config:
    def __init__(self):
        self.cleared, self.profile, self.cache = set(), None, None

    def clear_flag(self, flag):
        self.cleared.add(flag)

    def add_optimization_profile(self, profile):
        self.profile = profile
        return Builder.profile_index

    def create_timing_cache(self, data):
        return TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache

    def get_timing_cache(self):
        return self.cache


class Profile(dict):
    def set_shape(self, name, *shapes):
        self[name] = shapes


class Builder:
    sampling, profile_index, gives_plan = InterpolationMode.LINEAR, 0, True  # what goes wrong
    config = None  # the last one made

    def __init__(self, logger):
        pass

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self):
        Builder.config = Config()
        return Builder.config

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        return memoryview(network.data) if self.gives_plan else None
