r"""Compute the encoder of an exported model in int8, if that costs no accuracy.

    python export/quantize.py realtime.onnx --output realtime_int8.onnx --calibration my_pictures

Written in the standard's own operators (QuantizeLinear, DequantizeLinear), so that ONNX Runtime
and OpenVINO run the same file. Only convolutions of the encoder are quantised: weights for each
channel and to 7 bits, since sums of pairs of products of 8 bits saturate on AVX2; activations to 8
bits without sign, by the range that nearly all of them have on calibration pictures: few are far
outside, and a range with these leaves few steps for the rest. Coordinates, correlation and
attention stay in float32. A file that scores more than a point below the float32 one is refused.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice, takewhile
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime import quantization

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.engines import EngineError, Metadata, read_metadata, spec
from cotracker_ros.engines.metadata import KEY
from cotracker_ros.engines.onnxruntime_engine import TYPES
from cotracker_ros.streaming.image import resize
from export import graph
from export.graph import ExportError

PICTURES = 32  # to calibrate with
OF_A_VIDEO = 8  # frames at most, evenly spaced over its first ten seconds
SEED = 4_200_001  # of rendered calibration pictures: of no training run, nor of a held-out set
# Percentile at which the range of activations ends, above, and as far from 0 below, by how well
# features are kept (docs/engines.md, int8).
WITHIN = 99.99
ALLOWED = 1.0  # points of the measure that a quantised file may lose
CLIPS = 6  # of the held-out set that the measure is taken on
Measure = Callable[[Path], float]  # an .onnx file to its score, in percent


def quantize(source: Path, output: Path, pictures: Iterable[np.ndarray]) -> None:
    """Write the float32 file `source` with its encoder in int8 to `output`.

    `pictures` (H, W, 3) uint8 RGB have the size that the model takes. Raises ExportError for a
    file of another precision or without an encoder, or where there are no pictures.
    """
    metadata = read_metadata(source)
    if metadata.precision != 'fp32':
        raise ExportError(f'{source} is in {metadata.precision}; quantise the file in fp32')
    names = encoder_convolutions(onnx.load(source))
    if not names:
        raise ExportError(f'{source} has no convolution of an encoder')
    reader = _Reader(source, pictures)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises passes that the export has made
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its histograms
            quantization.quantize_static(
                source,
                output,
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=['Conv'],
                nodes_to_quantize=names,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.Percentile,
                extra_options={'CalibPercentile': WITHIN},
            )
    finally:
        logging.getLogger().setLevel(level)
    if not reader.read:
        raise ExportError('there are no pictures to calibrate with')
    model = onnx.load(output)
    graph.sort(model)  # ONNX Runtime sorts it without looking into branches
    graph.strip(model)
    model.producer_name = KEY
    model.ir_version = 8
    meta = asdict(replace(metadata, precision='int8'))
    onnx.helper.set_model_props(model, {KEY: json.dumps(meta)})
    onnx.checker.check_model(model, full_check=True)
    graph.lint(model)
    onnx.save(model, output)


def encoder_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions with weights of the encoder."""
    return [n.name for n in model.graph.node if n.op_type == 'Conv' and '.encoder.' in n.input[1]]


class _Reader(quantization.CalibrationDataReader):
    """Feeds pictures to a step without points, of which the encoder knows nothing."""

    def __init__(self, model: Path, pictures: Iterable[np.ndarray]) -> None:
        session = ort.InferenceSession(str(model), providers=['CPUExecutionProvider'])
        self.blank = {
            i.name: np.zeros(spec.resolve(i.name, i.shape, 1, 1), TYPES[i.type])
            for i in session.get_inputs()
        }
        self.pictures, self.read = iter(pictures), 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Inputs of the next picture, None after the last."""
        picture = next(self.pictures, None)
        if picture is None:
            return None
        self.read += 1
        return {**self.blank, 'image': picture[None]}


def calibration_pictures(folder: Path | None, metadata: Metadata) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) uint8 of the size that a model takes: all pictures of a folder and some
    frames of each of its videos, or rendered scenes where no folder is given.

    Raises ExportError for a folder without any.
    """
    if folder is None:
        yield from _rendered(metadata)
        return
    if not folder.is_dir():
        raise ExportError(f'{folder}: no folder of pictures or videos')
    found = 0
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != '.'):
        for frame in _frames_of(path):
            found += 1
            yield resize(frame[..., ::-1], metadata.picture_size, metadata.resize)
    if not found:
        raise ExportError(f'{folder}: no picture or video in it can be read')


def _frames_of(path: Path) -> list[np.ndarray]:
    """Of a picture itself, of a video a few frames, of anything else none: (H, W, 3) BGR."""
    picture = cv2.imread(str(path))
    if picture is not None:
        return [picture]
    capture = cv2.VideoCapture(str(path))
    reads = (capture.read() for _ in range(300))
    frames = [frame for _, frame in takewhile(lambda read: read[0], reads)]
    capture.release()
    return frames[:: max(1, len(frames) // OF_A_VIDEO)][:OF_A_VIDEO]


def _rendered(metadata: Metadata) -> Iterator[np.ndarray]:
    from train.data.synthetic.procedural import ProceduralVideo, SceneConfig

    scene = SceneConfig(size=metadata.picture_size, frames=4, bodies=0.5)
    source = ProceduralVideo(scene, SEED, bank=16)
    for _ in range(PICTURES // scene.frames):
        yield from source.clips(1, 4).video[0].numpy()


def held_out_jaccard(file: Path, clips: int = CLIPS) -> Measure:
    """A measure: average Jaccard on the rendered held-out set, see train/evaluate.py; the set is
    rendered into `file` if it is not there.
    """
    from train.data import readers
    from train.evaluate import evaluate
    from train.trackers import streaming

    def measure(model: Path) -> float:
        rows = evaluate({'it': streaming(model)}, islice(readers.held_out(file), clips))
        return rows['it']['mean']['average_jaccard']

    return measure


def selection_score(data: Path) -> Measure:
    """A measure: the number of train/selection.py, on its data, in the mean of two draws: on one
    it moves by chance by as much as is allowed.
    """
    from train.selection import selection
    from train.trackers import streaming

    def measure(model: Path) -> float:
        tracker = streaming(model)
        return selection(tracker, data, (0, 1))['selection']

    return measure


def measure_of(args: argparse.Namespace) -> Measure:
    """The measure that the command line asks for."""
    return selection_score(args.data) if args.data else held_out_jaccard(args.held_out)


def gate(measure: Measure, full: Path, quantized: Path, allowed: float = ALLOWED) -> str:
    """Say how both files score; raises ExportError where the quantised one lost too much."""
    before, after = measure(full), measure(quantized)
    result = (
        f'accuracy: float32 {before:.1f}, int8 {after:.1f} (at most {allowed:.1f} less allowed)'
    )
    if not after >= before - allowed:
        raise ExportError(f'the quantised file is refused; {result}')
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of calibration and gate, for this command line and that of the export."""
    group = parser.add_argument_group('int8')
    group.add_argument(
        '--calibration', type=Path, help='folder of pictures or videos [rendered scenes]'
    )
    group.add_argument(
        '--held-out',
        type=Path,
        default=Path('runs/held_out.npz'),
        help='the set that accuracy is measured on; rendered if not there [%(default)s]',
    )
    group.add_argument(
        '--data',
        type=Path,
        help='folder of what train/selection.py measures on, to measure by that instead',
    )


def quantize_and_judge(source: Path, output: Path, calibration: Path | None, measure: Measure):
    """Quantise and judge; what `gate` says. A refused file is left where it is."""
    quantize(source, output, calibration_pictures(calibration, read_metadata(source)))
    return gate(measure, source, output)


def main(arguments: list[str] | None = None) -> int:
    """Quantise a file; returns the exit status. A refused file is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('model', type=Path, help='an .onnx file of export_onnx.py, in fp32')
    parser.add_argument('--output', type=Path, required=True, help='the .onnx file to write')
    add_options(parser)
    args = parser.parse_args(arguments)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.output.parent) as folder:
            made = Path(folder) / args.output.name
            measure = measure_of(args)
            print(quantize_and_judge(args.model, made, args.calibration, measure))
            os.replace(made, args.output)
    except (EngineError, ExportError, ValueError, OSError) as error:
        print(f'quantize failed: {error}', file=sys.stderr)
        return 1
    print(f'wrote {args.output}: {args.output.stat().st_size / 1e6:.1f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
