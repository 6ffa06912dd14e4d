"""Whether two engines compute the same: the one comparison of export, verify and build.

Both run one rendered stream, each on its own state. First every number must be finite; then the
differences of live points are held against one table. The distance of positions is Euclidean, in
model pixels; visibility and confidence are in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cotracker_ros.engines.base import Engine
from cotracker_ros.engines.metadata import EngineError
from cotracker_ros.engines.scripted_stream import scripted_stream
from cotracker_ros.engines.spec import OUTPUT_NAMES

FRAMES = 30

# Allowed difference over the stream, by the precision that the engine computes in. In float32 the
# largest one counts. Reduced precision moves features by 1e-3 of their length and more, which the
# feedback of a stream amplifies: what it costs is a question of tracking, to be measured on video
# (train/evaluate.py), so only the mean is held, which a wrong engine misses all the same.
FULL = 'f32'
# Warps of patches, and whether a patch is taken at all, feed back from frame to frame too: the
# shipped model reached 0.034 px at one point of one frame.
_EXACT = {'xy': 0.05, 'visibility': 1e-3, 'confidence': 1e-3}
_REDUCED = {'xy': 0.5, 'visibility': 0.05, 'confidence': 0.05}
TOLERANCE = {
    FULL: _EXACT,
    'tf32': _REDUCED,
    'mixed': _REDUCED,
    'fp16': _REDUCED,
    'bf16': _REDUCED,
    'int8': _REDUCED,  # of the encoder, see export/quantize.py
}
# ONNX Runtime on the CPU holds the table itself. Others sum in another order: over 30 frames
# OpenVINO reached 0.013 px in float32.
SLACK = 5
WITHOUT_SLACK = ('onnxruntime', 'torch')


@dataclass(frozen=True)
class Difference:
    """How far an engine is from another over a stream: largest and mean difference by output."""

    largest: dict[str, float]
    mean: dict[str, float]

    def judged(self, precision: str) -> tuple[str, dict[str, float]]:
        """The measure that counts for a precision: its name and its values."""
        return ('largest', self.largest) if precision == FULL else ('mean', self.mean)


def record(engine: Engine, frames: int = FRAMES) -> list[dict[str, np.ndarray]]:
    """Outputs of an engine over the rendered stream, and which points are `live`, by frame."""
    meta = engine.metadata
    stream = scripted_stream(frames, meta, engine.cameras, engine.slots)
    return [engine.step(inputs) | {'live': inputs['live']} for inputs in stream]


def require_finite(outputs: dict[str, np.ndarray], whose: str) -> None:
    """Raise EngineError unless all outputs of a step are finite, in unused slots as well."""
    for name in OUTPUT_NAMES:
        bad = ~np.isfinite(outputs[name])
        if bad.any():
            raise EngineError(
                f'{whose} gives {bad.sum()} of {bad.size} values of {name} that are not finite'
            )


def difference(
    got: Sequence[dict[str, np.ndarray]], want: Sequence[dict[str, np.ndarray]], whose: str
) -> Difference:
    """Compare the records `got` of an engine, named `whose` in errors, and `want` of a reference.

    Raises EngineError where either holds a value that is not finite, or no point was live.
    """
    apart: dict[str, list[np.ndarray]] = {name: [] for name in OUTPUT_NAMES}
    for t, (mine, other) in enumerate(zip(got, want, strict=True)):
        require_finite(mine, f'{whose}, in frame {t},')
        require_finite(other, f'the reference of {whose}, in frame {t},')
        for name, values in apart.items():
            delta = (mine[name] - other[name])[other['live']]
            values.append(np.linalg.norm(delta, axis=-1) if name == 'xy' else np.abs(delta))
    if not sum(map(len, apart['xy'])):
        raise EngineError(f'{whose} was compared over no live point, which says nothing')
    joined = {name: np.concatenate(values) for name, values in apart.items()}
    return Difference(
        {name: float(values.max()) for name, values in joined.items()},
        {name: float(values.mean()) for name, values in joined.items()},
    )


def allowed(precision: str, runtime: str) -> dict[str, float]:
    """Largest difference allowed, by output, for an engine of this runtime and precision: `xy` in
    model pixels, the others of probabilities. Raises EngineError for an unknown precision.
    """
    if precision not in TOLERANCE:
        raise EngineError(
            f'no tolerance for the precision {precision!r}; there are {", ".join(TOLERANCE)}'
        )
    slack = 1 if runtime in WITHOUT_SLACK else SLACK
    return {name: slack * limit for name, limit in TOLERANCE[precision].items()}


def require(found: Difference, precision: str, runtime: str, whose: str) -> None:
    """Raise EngineError, in one line, where `found` is past the tolerance or no number."""
    limits, (measure, values) = allowed(precision, runtime), found.judged(precision)
    past = [
        f'{name} {values[name]:.2e} (allowed {limits[name]:.2e})'
        for name in OUTPUT_NAMES
        if not values[name] <= limits[name]
    ]
    if past:
        raise EngineError(
            f'{whose} is past the tolerance; {measure} difference: ' + ', '.join(past)
        )


def table(found: Difference, precision: str, runtime: str) -> str:
    """Differences and what is allowed, a row for each output."""
    limits, (measure, _) = allowed(precision, runtime), found.judged(precision)
    rows = [
        f'{name:12}{found.largest[name]:12.2e}{found.mean[name]:12.2e}{limits[name]:12.2e}'
        for name in OUTPUT_NAMES
    ]
    return '\n'.join([f'{"":12}{"largest":>12}{"mean":>12}{"allowed":>12} ({measure})', *rows])
