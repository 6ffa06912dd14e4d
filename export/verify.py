r"""Compare every engine on this computer with torch, on the same rendered stream.

    python export/verify.py cotracker_ros/weights/realtime.onnx \
        --checkpoint cotracker_ros/weights/realtime.safetensors

Prints the largest and mean error of each engine: positions in model pixels, visibility and
confidence in [0, 1]. A TensorRT engine is found beside the .onnx file as .engine. Exit status 1 if
an engine of full precision is past the tolerance of the export, or none could be run.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cotracker_ros.engines import ENGINES, Engine, EngineError, load, read_metadata
from export.stream import scripted_stream

FRAMES = 30
# ONNX Runtime holds the tolerance of the export. Others sum in another order, which the feedback
# of a stream amplifies: over 30 frames OpenVINO reached 0.013 px.
SLACK = {'onnxruntime': 1}
OTHERS = 5


def candidates(model: Path) -> Iterator[tuple[str, Path]]:
    """Names of the engines that could run this .onnx file, and the file each of them takes."""
    for name in ENGINES:
        if name.startswith('torch'):
            continue
        path = model.with_suffix('.engine') if name == 'tensorrt' else model
        if path.is_file():
            yield name, path


def reference(checkpoint: Path, model: Path, cameras: int, slots: int) -> Engine:
    """The torch engine with the weights and iterations of the file; EngineError if others."""
    from cotracker_ros.engines.metadata import Metadata
    from cotracker_ros.engines.torch_engine import TorchEngine, describe
    from cotracker_ros.model import load_checkpoint
    from cotracker_ros.model.step import build_step
    meta = read_metadata(model)
    network = load_checkpoint(checkpoint, meta.image_size)
    step = build_step(network, meta.iterations)
    described = Metadata(**describe(network, step))
    if described.weights_sha256 != meta.weights_sha256:
        raise EngineError(f'{model} was not exported from the weights in {checkpoint}')
    return TorchEngine(step, described, 'cpu', cameras, slots, 0)


def record(engine: Engine, frames: int) -> list[dict[str, np.ndarray]]:
    """Outputs of an engine over the stream."""
    meta = engine.metadata
    stream = scripted_stream(frames, meta.image_size, meta.window, engine.cameras, engine.slots)
    return [engine.step(inputs) | {'live': inputs['live']} for inputs in stream]


def errors(got: list[dict], want: list[dict]) -> dict[str, np.ndarray]:
    """Differences of every live point in every frame, flat, by output; of xy the distance."""
    flat: dict[str, list] = {'xy': [], 'visibility': [], 'confidence': []}
    for a, b in zip(got, want, strict=True):
        for name, values in flat.items():
            difference = (a[name] - b[name])[b['live']]
            values.append(np.linalg.norm(difference, axis=-1) if name == 'xy'
                          else np.abs(difference))
    return {name: np.concatenate(values) for name, values in flat.items()}


def verify(model: Path, checkpoint: Path, cameras: int, slots: int, frames: int) -> tuple:
    """Rows of the table, and the names of the engines past the tolerance or none run."""
    from export.export_onnx import TOLERANCE
    want = record(reference(checkpoint, model, cameras, slots), frames)
    form = read_metadata(model).precision
    rows, failed, ran = [], [], 0
    for name, path in candidates(model):
        try:
            engine = load(path, name, cameras, slots)
        except EngineError as error:
            rows.append(f'{name:22} not here: {str(error).splitlines()[0][:90]}')
            continue
        found = errors(record(engine, frames), want)
        ran += 1
        cells = ''.join(f'{e.max():11.2e}{e.mean():11.2e}' for e in found.values())
        full = engine.precision == 'f32'
        slack = SLACK.get(name, OTHERS)
        past = full and any(e.max() > slack * TOLERANCE[form][n] for n, e in found.items())
        failed += [name] * past
        rows.append(f'{name:22} {engine.precision:6}{cells}  '
                    + ('PAST THE TOLERANCE' if past else 'ok' if full else 'reduced'))
        engine.close()
    return rows, failed if ran else ['no engine']


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('model', type=Path)
    parser.add_argument('--checkpoint', type=Path, required=True, help='what it was exported from')
    parser.add_argument('--points', type=int, default=64)
    parser.add_argument('--cameras', type=int, default=1)
    parser.add_argument('--frames', type=int, default=FRAMES)
    args = parser.parse_args(arguments)
    try:
        rows, failed = verify(args.model, args.checkpoint, args.cameras, args.points, args.frames)
    except (EngineError, ValueError, OSError) as error:
        print(f'verify failed: {error}', file=sys.stderr)
        return 1
    print(f'{args.model.name} against torch, {args.frames} frames, {args.points} points, '
          'largest and mean difference')
    print(f'{"engine":22} {"":6}{"xy (px)":>22}{"visibility":>22}{"confidence":>22}')
    print('\n'.join(rows))
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
