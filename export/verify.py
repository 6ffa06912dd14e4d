r"""Compare every engine on this computer with torch, on the same rendered stream.

    python export/verify.py cotracker_ros/weights/realtime.onnx \
        --checkpoint cotracker_ros/weights/realtime.safetensors

Prints the largest and mean difference of each engine: distance of positions in model pixels,
visibility and confidence in [0, 1]. A TensorRT engine is found beside the .onnx file as .engine.
Exit status 1 if an engine is past the tolerance of its precision (engines/compare.py) or gives
anything but numbers, or none could be run.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.engines import ENGINES, Engine, EngineError, compare, load, read_metadata


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
    from cotracker_ros.engines.torch_engine import TorchEngine, step_metadata
    from cotracker_ros.model import load_checkpoint
    from cotracker_ros.model.registry import build_step

    meta = read_metadata(model)
    network = load_checkpoint(checkpoint, meta.image_size)
    step = build_step(network, meta.iterations)
    described = Metadata(**step_metadata(network, step))
    if described.weights_sha256 != meta.weights_sha256:
        raise EngineError(f'{model} was not exported from the weights in {checkpoint}')
    return TorchEngine(step, described, 'cpu', cameras, slots, 0)


def verify(model: Path, checkpoint: Path, cameras: int, slots: int, frames: int) -> tuple:
    """Rows of the table, and the names of the engines past the tolerance or none run."""
    want = compare.record(reference(checkpoint, model, cameras, slots), frames)
    rows, failed, ran = [], [], 0
    for name, path in candidates(model):
        try:
            engine = load(path, name, cameras, slots)
        except EngineError as error:
            rows.append(f'{name:22} not here: {str(error).splitlines()[0][:90]}')
            continue
        ran += 1
        head, form = f'{name:22} {engine.precision:6}', engine.precision
        # A reduced graph is compared with float32: its own precision is judged, not the runtime's.
        try:
            found = compare.difference(compare.record(engine, frames), want, name)
            head += ''.join(
                f'{found.largest[n]:11.2e}{found.mean[n]:11.2e}' for n in found.largest
            )
            compare.require(found, form, engine.name, name)
            rows.append(f'{head}  ok')
        except EngineError as error:
            rows.append(f'{head}  {error}')
            failed.append(name)
        engine.close()
    return rows, failed if ran else ['no engine']


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('model', type=Path)
    parser.add_argument('--checkpoint', type=Path, required=True, help='what it was exported from')
    parser.add_argument('--points', type=int, default=64)
    parser.add_argument('--cameras', type=int, default=1)
    parser.add_argument('--frames', type=int, default=compare.FRAMES)
    args = parser.parse_args(arguments)
    try:
        rows, failed = verify(args.model, args.checkpoint, args.cameras, args.points, args.frames)
    except (EngineError, ValueError, OSError) as error:
        print(f'verify failed: {error}', file=sys.stderr)
        return 1
    print(
        f'{args.model.name} against torch, {args.frames} frames, {args.points} points, '
        'largest and mean difference'
    )
    print(f'{"engine":22} {"":6}{"xy (px)":>22}{"visibility":>22}{"confidence":>22}')
    print('\n'.join(rows))
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
