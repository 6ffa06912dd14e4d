"""Runtimes for an exported step: `load` gives an `Engine`, whatever the runtime."""

import importlib.util
from pathlib import Path

from cotracker_ros.engines.base import Engine, default_threads
from cotracker_ros.engines.metadata import EngineError, Metadata, read_metadata

__all__ = [
    'ENGINES',
    'Engine',
    'EngineError',
    'Metadata',
    'default_threads',
    'load',
    'read_metadata',
]

# What the parameter `engine` may say beside 'auto'; the first is the default of its runtime.
ENGINES = (
    'onnxruntime',
    'onnxruntime:cuda',
    'onnxruntime:tensorrt',
    'openvino',
    'openvino:bf16',
    'tensorrt',
    'torch',
    'torch:cuda',
    'torch:cuda-graph',
)
MAX_SLOTS = 16384  # more is a mistake of the caller: attention alone would take minutes a frame

_WEIGHTS = Path(__file__).parent.parent / 'weights'
_SUFFIXES = {
    'onnxruntime': ('.onnx',),
    'openvino': ('.onnx',),
    'tensorrt': ('.engine', '.plan'),
    'torch': ('.safetensors', '.pth'),
}


def load(
    path: str | Path, engine: str = 'auto', cameras: int = 1, slots: int = 64, threads: int = 0
) -> Engine:
    """Load a model file into a runtime.

    `path` is a file, or the name of a shipped model such as 'realtime'. `engine` is one of
    ENGINES, or 'auto', see `choose`; `str` of the engine says which that was and why. `threads` 0
    means `default_threads()`.
    Raises EngineError with one clear message for everything that can be wrong with these.
    """
    if engine != 'auto' and engine not in ENGINES:
        raise EngineError(f'unknown engine {engine!r}; there are auto, {", ".join(ENGINES)}')
    if not 1 <= slots <= MAX_SLOTS:
        raise EngineError(f'max_points must be from 1 to {MAX_SLOTS}, not {slots}')
    if cameras < 1:
        raise EngineError(f'cameras must be at least 1, not {cameras}')
    if threads < 0:
        raise EngineError(f'threads must be 0 (automatic) or more, not {threads}')
    path = find_model(path, engine)
    reason = ''
    if engine == 'auto':
        engine, reason = choose(path)
    runtime, _, variant = engine.partition(':')
    if path.suffix not in _SUFFIXES[runtime]:
        raise EngineError(
            f'{path}: the engine {runtime} runs {" or ".join(_SUFFIXES[runtime])} files'
        )
    loaded = _construct(runtime, variant, path, cameras, slots, threads)
    loaded.chosen_because = reason
    loaded.warm_up()
    return loaded


def choose(path: Path) -> tuple[str, str]:
    """The engine that 'auto' stands for, and why: the first of this order.

    1. An .engine or .plan file: tensorrt. A checkpoint: torch.
    2. An .onnx file: openvino where it is installed, which takes half to two thirds of the
       time that onnxruntime takes for the shipped model. It is openvino:bf16 for a float32 file
       on a CPU that has bf16: the same accuracy in two thirds of openvino's time.
    3. Else onnxruntime on the CPU, which every installation has.

    A GPU is used only where it is asked for, and what was chosen is never changed because it does
    not work: then `load` fails and says so.
    """
    if path.suffix != '.onnx':
        runtime = next(e for e, suffixes in _SUFFIXES.items() if path.suffix in suffixes)
        return runtime, f'auto: {runtime} runs {path.suffix} files'
    if importlib.util.find_spec('openvino') is None:
        return 'onnxruntime', 'auto: openvino would be faster, but it is not installed'
    from cotracker_ros.engines.openvino_engine import has_bf16

    meta = read_metadata(path)
    # Format 1 had no rings, by which the engine tells the encoder from the rest.
    if meta.precision == 'fp32' and meta.format > 1 and has_bf16():
        return 'openvino:bf16', 'auto: the fastest on a CPU that has bf16'
    return 'openvino', 'auto: the fastest on a CPU'


def _construct(
    runtime: str, variant: str, path: Path, cameras: int, slots: int, threads: int
) -> Engine:
    """One import for each runtime, so that none is needed for another."""
    if runtime == 'onnxruntime':
        from cotracker_ros.engines.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(
            path, read_metadata(path), variant or 'cpu', cameras, slots, threads
        )
    if runtime == 'openvino':
        from cotracker_ros.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(path, read_metadata(path), variant or 'f32', cameras, slots, threads)
    if runtime == 'tensorrt':
        from cotracker_ros.engines.tensorrt_engine import load_engine

        return load_engine(path, cameras, slots)
    from cotracker_ros.engines.torch_engine import load_checkpoint_engine

    return load_checkpoint_engine(path, variant or 'cpu', cameras, slots, threads)


def find_model(name: str | Path, engine: str = 'auto') -> Path:
    """The file of a model given by path or, without a suffix, by the name of a shipped one.

    Raises EngineError where there is none, or none that this engine runs.
    """
    path = Path(name)
    suffixes = sum(_SUFFIXES.values(), ())
    if path.suffix in suffixes or path.exists():
        if not path.is_file():
            raise EngineError(f'{path}: no such model file')
        if path.suffix not in suffixes:
            raise EngineError(f'{path}: a model file ends in one of {", ".join(suffixes)}')
        return path
    runtime = 'onnxruntime' if engine == 'auto' else engine.partition(':')[0]
    for suffix in _SUFFIXES[runtime]:
        if (_WEIGHTS / f'{path.name}{suffix}').is_file():
            return _WEIGHTS / f'{path.name}{suffix}'
    shipped = sorted(p.stem for s in _SUFFIXES[runtime] for p in _WEIGHTS.glob(f'*{s}'))
    cure = '; build one with cotracker-build-trt' if runtime == 'tensorrt' else ''
    raise EngineError(
        f'no model {str(name)!r}: neither a file nor a shipped model for {runtime} '
        f'({", ".join(shipped) or "none"}){cure}'
    )
