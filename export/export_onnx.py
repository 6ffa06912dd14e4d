r"""Export the step of a model as one ONNX file, and prove it equal to the model.

    python export/export_onnx.py --checkpoint cotracker_ros/weights/realtime.safetensors \
        --output realtime.onnx

Opset 18; the numbers of cameras and of points are symbolic, so that one file serves any
max_points; weights are inside. After the export the graph is checked, and ONNX Runtime and torch
run the same stream of 30 rendered frames, points added and removed on the way; the largest
differences are printed, and past the tolerance nothing is left at `--output`.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.engines import EngineError, Metadata, compare, load, spec
from cotracker_ros.engines.metadata import KEY
from cotracker_ros.engines.torch_engine import TorchEngine, step_metadata
from cotracker_ros.model import build_model, load_checkpoint
from cotracker_ros.model.registry import build_step, shape_of
from cotracker_ros.model.step import Step
from export import graph, precision, quantize
from export.graph import OPSET, ExportError

PRECISIONS = ('fp32', 'mixed', 'fp16', 'int8')


class FlatStep(nn.Module):
    """The step on its inputs, then its state, as one list: what export wants."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.state = list(step.initial_state(1, 1))

    def forward(self, *tensors):
        """All outputs, then the next state."""
        taken = len(self.step.takes)
        inputs = dict(zip(self.step.takes, tensors[:taken], strict=True))
        state = dict(zip(self.state, tensors[taken:], strict=True))
        outputs, following = self.step.advance(inputs, state)
        return (*(outputs[n] for n in spec.OUTPUT_NAMES), *(following[n] for n in self.state))


def export(step: Step, meta: dict, output: Path) -> onnx.ModelProto:
    """Write the step, with `meta` as its metadata, to `output`; returns the checked graph.

    Raises ExportError where the graph holds what a runtime cannot run.
    """
    flat = FlatStep(step.eval()).eval()
    open_dims = {
        n: torch.export.Dim(n, min=1, max=m) for n, m in ((spec.CAMERAS, 64), (spec.POINTS, 16384))
    }
    shapes = [
        {i: open_dims[d] for i, d in enumerate(spec.INPUT[n].dims) if d in open_dims}
        for n in step.takes
    ]
    shapes += [_symbolic(step, n, *open_dims.values()) for n in flat.state]
    model = to_graph(
        flat,
        _example(step, 2, 3),
        input_names=[*step.takes, *(spec.STATE + n for n in flat.state)],
        output_names=[*spec.OUTPUT_NAMES, *(spec.NEXT + n for n in flat.state)],
        dynamic_shapes={'tensors': tuple(shapes)},
    )
    _check_symbolic(model)
    if meta['precision'] != 'fp32':
        model = precision.convert(model, meta['precision'])
    model.producer_name = KEY
    model.ir_version = 8  # the oldest that holds opset 18: older runtimes read it too
    onnx.helper.set_model_props(model, {KEY: json.dumps(meta)})
    onnx.checker.check_model(model, full_check=True)
    remarks = graph.lint(model)
    onnx.save(model, output)
    print(
        f'{output}: opset {OPSET}, {output.stat().st_size / 1e6:.1f} MB, '
        f'{graph.operators(model)}' + (f'; remarks: {", ".join(remarks)}' if remarks else '')
    )
    return model


def to_graph(module: nn.Module, arguments: tuple, **names) -> onnx.ModelProto:
    """Export a module and clean up what the exporter leaves."""
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    with warnings.catch_warnings(), _no_collection():
        warnings.simplefilter('ignore')  # of the exporter, about itself
        model = torch.onnx.export(
            module, arguments, dynamo=True, opset_version=OPSET, verbose=False, **names
        ).model_proto
    graph.strip(model)
    graph.cast_first(model)
    graph.simplify(model)
    return model


@contextlib.contextmanager
def _no_collection():
    """Without garbage collection, which goes through the exporter's millions of objects again and
    again: an eighth of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _check_symbolic(model: onnx.ModelProto) -> None:
    """Refuse a graph in which the exporter took a size of the example for a constant."""
    for value in model.graph.input:
        names = [d.dim_param for d in value.type.tensor_type.shape.dim if d.dim_param]
        tensor = spec.INPUT.get(value.name)
        if tensor and names != [d for d in tensor.dims if d in (spec.CAMERAS, spec.POINTS)]:
            raise ExportError(
                f'{value.name} came out with a fixed size: its dimensions are '
                f'{names}; the step must not use len() of a tensor'
            )


def _example(step: Step, cameras: int, slots: int) -> tuple:
    """Inputs of these sizes, which trace a graph for all sizes."""
    height, width = step.image_size
    picture_size = (step.image_scale * height, step.image_scale * width)
    given = []
    for tensor in (spec.INPUT[n] for n in step.takes):
        value = 1 if tensor.dtype == bool else tensor.otherwise or 0
        given.append(
            torch.from_numpy(
                np.full(tensor.shape(cameras, slots, picture_size), value, tensor.dtype)
            )
        )
    return (*given, *step.initial_state(cameras, slots).values())


def _symbolic(step: Step, name: str, cameras, points) -> dict:
    """Which dimensions of a state tensor grow with cameras or with points."""
    one, more_cameras, more_points = (
        step.initial_state(*size)[name].shape for size in ((1, 1), (2, 1), (1, 2))
    )
    return {
        i: cameras if more_cameras[i] > n else points
        for i, n in enumerate(one)
        if more_cameras[i] > n or more_points[i] > n
    }


def check_parity(step: Step, path: Path, meta: dict, slots: int, frames: int) -> str:
    """Run ONNX Runtime and torch over one stream and return the table of their differences.

    Raises EngineError past the tolerance of this precision.
    """
    want = compare.record(TorchEngine(step, Metadata(**meta), 'cpu', 1, slots, 0), frames)
    engine = load(path, 'onnxruntime', 1, slots)
    found = compare.difference(compare.record(engine, frames), want, path.name)
    compare.require(found, engine.precision, engine.name, path.name)
    engine.close()
    return compare.table(found, engine.precision, engine.name)


def read_model(args: argparse.Namespace) -> nn.Module:
    """The network of the command line."""
    if args.checkpoint:
        model = load_checkpoint(args.checkpoint, args.resolution)
    else:
        torch.manual_seed(0)
        model = build_model(args.model, args.resolution)
    if args.window and args.window != model.facts.window:
        changes = {**shape_of(model), 'window': args.window}
        other = build_model(model.facts.name, args.resolution, **changes)
        other.load_state_dict(model.state_dict(), strict=True)
        other.origin = model.origin
        model = other
    return model.eval()


def resolution(text: str) -> tuple[int, int]:
    """'320x512' as (H, W)."""
    height, _, width = text.partition('x')
    try:
        return int(height), int(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH') from None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--checkpoint', type=Path, help='.safetensors or .pth, ours or published')
    source.add_argument('--model', help='a network by name with random weights, as a stand-in')
    parser.add_argument('--output', type=Path, required=True, help='the .onnx file to write')
    parser.add_argument(
        '--iterations',
        type=int,
        help='refinements per frame [as the model was made for]',
    )
    parser.add_argument('--window', type=int, help='frames (default: of the checkpoint)')
    parser.add_argument('--resolution', type=resolution, help='HxW of the model, e.g. 384x512')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32')
    parser.add_argument('--points', type=int, default=64, help='slots in the parity run')
    parser.add_argument('--frames', type=int, default=compare.FRAMES, help='of the parity run')
    parser.add_argument('--provenance', help='one sentence on the weights, for the metadata')
    quantize.add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Export, check and compare; returns the exit status."""
    args = parse(arguments)
    try:
        model = read_model(args)
        step = build_step(model, args.iterations).eval()
        form = 'fp32' if args.precision == 'int8' else args.precision  # int8 is made of fp32
        meta = step_metadata(model, step, form, args.provenance)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, and moved there once proven: a half-written file is never loaded.
        with tempfile.TemporaryDirectory(dir=args.output.parent) as folder:
            made = Path(folder) / args.output.name
            export(step, meta, made)
            print(check_parity(step, made, meta, args.points, args.frames))
            if args.precision == 'int8':
                full, made = made, made.with_name(f'int8_{made.name}')
                measure = quantize.measure_of(args)
                result = quantize.quantize_and_judge(full, made, args.calibration, measure)
                print(f'{check_parity(step, made, meta, args.points, args.frames)}\n{result}')
            os.replace(made, args.output)
    except (EngineError, ExportError, ValueError, OSError) as error:
        print(f'export failed: {error}', file=sys.stderr)
        return 1
    print(f'wrote {args.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
