"""The few calls of the CUDA runtime that the TensorRT engine needs, each with its error raised."""

import ctypes
from typing import Any

import numpy as np

from cotracker_ros.engines.metadata import EngineError


def runtime():
    """The module of cuda-python that binds the CUDA runtime; EngineError where there is none."""
    try:
        from cuda.bindings import runtime as module  # 12.6 and later

        return module
    except ImportError:
        pass
    try:
        from cuda import cudart as module

        return module
    except ImportError:
        raise EngineError(
            'the engine tensorrt needs cuda-python: pip install cuda-python'
        ) from None


class Cuda:
    """Memory and one stream of the current device."""

    def __init__(self, module) -> None:
        self._cuda = module
        self._allocated: list[int] = []
        self._pinned: list[int] = []
        self.stream = self('cudaStreamCreate')

    def __call__(self, name: str, *arguments) -> Any:
        """Call a function of the CUDA runtime; returns its values without the status."""
        status, *values = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            text = getattr(status, 'name', status)
            raise EngineError(f'{name} failed: {text}')
        return values[0] if len(values) == 1 else values

    def gpu(self) -> str:
        """Name and compute capability of device 0, as a sidecar records them."""
        properties = self('cudaGetDeviceProperties', 0)
        name = properties.name
        name = name.decode() if isinstance(name, bytes) else name
        return f'{name} (sm_{properties.major}{properties.minor})'

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the device, zeroed."""
        address = int(self('cudaMalloc', size))
        self._allocated.append(address)
        self.zero(address, size)
        return address

    def pinned(self, shape: tuple[int, ...], dtype) -> np.ndarray:
        """A host array that the device copies from and to without a detour."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self('cudaHostAlloc', size, 0))
        self._pinned.append(address)
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(memoryview(memory), dtype).reshape(shape)

    def zero(self, address: int, size: int) -> None:
        """Clear device memory, in the order of the stream."""
        self('cudaMemsetAsync', address, 0, size, self.stream)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a pinned array to the device, in the order of the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self('cudaMemcpyAsync', address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the device into a pinned array, in the order of the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self('cudaMemcpyAsync', array.ctypes.data, address, array.nbytes, kind, self.stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self('cudaStreamSynchronize', self.stream)

    def record(self, work):
        """Record what `work` puts on the stream as a graph that `launch` repeats."""
        self(
            'cudaStreamBeginCapture',
            self.stream,
            self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            work()
        finally:
            graph = self('cudaStreamEndCapture', self.stream)
        return self('cudaGraphInstantiate', graph, 0)

    def launch(self, graph) -> None:
        """Put a recorded graph on the stream."""
        self('cudaGraphLaunch', graph, self.stream)

    def close(self) -> None:
        """Free all memory and the stream."""
        self.synchronize()
        for name, addresses in (('cudaFree', self._allocated), ('cudaFreeHost', self._pinned)):
            while addresses:
                self(name, addresses.pop())
        self('cudaStreamDestroy', self.stream)
