"""What is written beside a TensorRT engine, and the refusal of an engine that is stale.

An engine runs only with the library, on the GPU and in the sizes it was built for, and TensorRT
says little when one of them differs. `cotracker-build-trt` writes `<engine>.json`; loading
compares it. The sidecar also holds how far the engine was from ONNX Runtime: one that was never
compared, or was too far, is refused.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cotracker_ros.engines import compare
from cotracker_ros.engines.metadata import EngineError, Metadata, parse_metadata
from cotracker_ros.engines.spec import OUTPUT_NAMES


@dataclass(frozen=True)
class Sidecar:
    """Under what an engine was built."""

    metadata: Metadata
    library: str  # 'tensorrt' or 'tensorrt_rtx'
    version: str  # of the library
    gpu: str  # as Cuda.gpu
    cameras: tuple[int, int, int]  # least, best and most
    points: tuple[int, int, int]
    onnx_sha256: str
    engine_sha256: str
    precision: str  # that it computes in, see compare.TOLERANCE
    difference: compare.Difference | None  # from ONNX Runtime; None: not compared yet

    def write(self, engine: Path) -> None:
        """Save beside `engine`."""
        path_of(engine).write_text(json.dumps(asdict(self), indent=1) + '\n')


def path_of(engine: Path) -> Path:
    """Where an engine's sidecar is."""
    return engine.with_name(engine.name + '.json')


def read(engine: Path) -> Sidecar:
    """The sidecar of an engine file, or EngineError where it is missing or another's."""
    path = path_of(engine)
    if not engine.is_file():
        raise EngineError(f'{engine}: no such engine file')
    if not path.is_file():
        raise EngineError(
            f'{engine}: its {path.name} is missing, so it is not known what it was '
            'built for; build it with cotracker-build-trt'
        )
    try:
        values = json.loads(path.read_text())
        text = json.dumps(values.pop('metadata'))
        sizes = {n: tuple(int(v) for v in values.pop(n)) for n in ('cameras', 'points')}
        found = Sidecar(
            metadata=parse_metadata(text, path),
            **sizes,
            difference=_difference(values.pop('difference')),
            **values,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EngineError(
            f'{path}: not a sidecar of this cotracker-build-trt; build the engine again'
        ) from None
    if sha256(engine) != found.engine_sha256:
        raise EngineError(
            f'{engine}: not the file that its {path.name} was written for '
            '(truncated, or copied without it); copy both or build again'
        )
    return found


def _difference(values: dict | None) -> compare.Difference | None:
    """A Difference from JSON, with a number for each output."""
    if values is None:
        return None
    largest, mean = (
        {n: float(values[kind][n]) for n in OUTPUT_NAMES} for kind in ('largest', 'mean')
    )
    return compare.Difference(largest, mean)


def check_compared(engine: Path, found: Sidecar) -> None:
    """Refuse an engine that was not compared with ONNX Runtime, or differs past the tolerance."""
    if found.difference is None:
        raise EngineError(
            f'{engine}: never compared with ONNX Runtime (--build-only); compare it '
            'on this computer with cotracker-build-trt --compare-only'
        )
    compare.require(found.difference, found.precision, 'tensorrt', str(engine))


def check(engine: Path, found: Sidecar, version: str, gpu: str, cameras: int, slots: int) -> None:
    """Refuse an engine of another library version, GPU or size, saying what to do."""
    again = 'build it again on this computer with cotracker-build-trt'
    if found.version != version:
        raise EngineError(
            f'{engine}: built by {found.library} {found.version}, but {version} is '
            f'installed; {again}'
        )
    if found.gpu != gpu:
        raise EngineError(f'{engine}: built for {found.gpu}, but this is {gpu}; {again}')
    for name, wanted, (least, _, most) in (
        ('max_points', slots, found.points),
        ('cameras', cameras, found.cameras),
    ):
        if not least <= wanted <= most:
            raise EngineError(
                f'{engine}: built for {name} from {least} to {most}, not {wanted}; '
                'build it with other sizes or change the parameter'
            )


def sha256(path: Path) -> str:
    """Hash of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
