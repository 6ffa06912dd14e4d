r"""Build a TensorRT engine of an exported model, on the computer that will run it.

    python export/build_trt.py realtime.onnx --output realtime.engine

Serves TensorRT 10.3 (JetPack 6) to 11, and TensorRT-RTX with --rtx. Networks are strongly typed:
the precision is the file's. After the build the engine and ONNX Runtime run the same stream. An
engine that is past the tolerance, or gives anything but numbers, is not kept, and the exit status
is 1; else the differences go into the sidecar <engine>.json, without which none is loaded.
--build-only leaves the comparison out, for a build without a GPU (TensorRT-RTX with
--compute-capability); such an engine is not loaded until --compare-only has proven it on its GPU.
"""

import argparse
import importlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from cotracker_ros.engines import (
    EngineError,
    compare,
    cuda,
    load,
    read_metadata,
    sidecar,
    spec,
    tensorrt_engine,
)
from cotracker_ros.engines.branches import always_taken


@dataclass(frozen=True)
class Options:
    """How to build; sizes are least, best and most."""

    cameras: tuple[int, int, int] = (1, 1, 1)
    points: tuple[int, int, int] = (1, 64, 256)
    tf32: bool = False  # TensorFloat-32 in products of float32: faster, 10 bits of mantissa
    compute_capability: str | None = None  # of another GPU than this one, 'SM89'; TensorRT-RTX
    timing_cache: Path | None = None  # measurements kept between builds; not TensorRT-RTX


def build(library, model: Path, options: Options) -> bytes:
    """The serialized engine of an ONNX file, by `library`, the module of TensorRT or TensorRT-RTX.

    Raises EngineError with every error of the parser, where a GridSample was not understood as
    linear, or where the builder gives nothing.
    """
    logger = library.Logger(library.Logger.WARNING)
    builder = library.Builder(logger)
    # Required for typed precision on 10, ignored by 11; EXPLICIT_BATCH is gone in 11.
    typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = library.OnnxParser(network, logger)
    if not parser.parse(without_conditions(model)):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineError(
            f'{model}: the parser of {library.__name__} {library.__version__} '
            'refuses it:\n' + '\n'.join(errors)
        )
    check_sampling(library, network)
    config = builder.create_builder_config()
    _configure(library, builder, network, config, options)
    cache = _timing_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f'{model}: {library.__name__} {library.__version__} could not build it '
            '(its log above says why)'
        )
    if cache is not None:
        options.timing_cache.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
    return bytes(memoryview(plan))


def without_conditions(model: Path) -> bytes:
    """The file, without conditions; weights are inside."""
    try:
        import onnx
    except ImportError:
        raise EngineError('building an engine needs onnx: pip install onnx') from None
    return always_taken(onnx.load(model)).SerializeToString()


def check_sampling(library, network) -> None:
    """Refuse a network whose GridSample was read as nearest, as opset 20 and above can be."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type != library.LayerType.GRID_SAMPLE:
            continue
        if hasattr(library, 'IGridSampleLayer'):  # the generic layer hides the mode
            layer.__class__ = library.IGridSampleLayer
        if layer.interpolation_mode != library.InterpolationMode.LINEAR:
            raise EngineError(
                f'{layer.name}: read as {layer.interpolation_mode}, not as linear; '
                'the file must be of opset 16 to 19'
            )


def _configure(library, builder, network, config, options: Options) -> None:
    """Sizes and flags; names that a version does not have are asked for by name."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shapes = [_sized(tensor.shape, options, k) for k in range(3)]
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f'the sizes {options.cameras} cameras, {options.points} points are refused'
        )
    flags = library.BuilderFlag
    if not options.tf32 and hasattr(flags, 'TF32'):
        config.clear_flag(flags.TF32)
    if options.compute_capability:
        known = getattr(library, 'ComputeCapability', None)
        if not hasattr(known, options.compute_capability):
            raise EngineError(
                f'{library.__name__} cannot build for {options.compute_capability} '
                'from another computer'
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(known, options.compute_capability), 0)


def _sized(shape, options: Options, k: int) -> tuple[int, ...]:
    """A shape whose dynamic dimensions (cameras before points) take their least, best or most."""
    return spec.resolve('', shape, options.cameras[k], options.points[k])


def _timing_cache(config, path: Path | None):
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b'')
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def precision_of(form: str, options: Options) -> str:
    """What an engine of a file of this precision computes in, as compare.TOLERANCE names it."""
    full = 'tf32' if options.tf32 else compare.FULL
    return full if form == 'fp32' else form


def compared(engine: Path, found: sidecar.Sidecar, model: Path) -> sidecar.Sidecar:
    """The sidecar of an engine with its difference from ONNX Runtime on `model`.

    Raises EngineError where it is past the tolerance or not of this model.
    """
    if sidecar.sha256(model) != found.onnx_sha256:
        raise EngineError(f'{engine} was not built from {model}')
    cameras, points = found.cameras[1], found.points[1]
    built = tensorrt_engine.start(engine, found, cameras, points)
    try:
        built.warm_up()
        got = compare.record(built)
    finally:
        built.close()
    reference = load(model, 'onnxruntime', cameras, points)
    apart = compare.difference(got, compare.record(reference), engine.name)
    compare.require(apart, found.precision, 'tensorrt', engine.name)
    return replace(found, difference=apart)


def make(library, model: Path, output: Path, options: Options, build_only: bool) -> str:
    """Build, compare and write the sidecar; returns what to tell.

    Nothing is left at `output` of an engine that cannot be built or is refused.
    """
    metadata = read_metadata(model)
    plan = build(library, model, options)
    part = output.with_name(output.name + '.part')
    try:
        part.write_bytes(plan)
        gpu = options.compute_capability or cuda.Cuda(cuda.runtime()).gpu()
        found = sidecar.Sidecar(
            metadata,
            library.__name__,
            library.__version__,
            gpu,
            options.cameras,
            options.points,
            sidecar.sha256(model),
            sidecar.sha256(part),
            precision_of(metadata.precision, options),
            None,
        )
        found = found if build_only else compared(part, found, model)
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)
    found.write(output)
    return f'wrote {output}: {len(plan) / 1e6:.1f} MB for {gpu}\n{_difference_text(found)}'


def compare_only(model: Path, output: Path) -> str:
    """Compare an engine built elsewhere, on the GPU it was built for; returns what to tell.

    The sidecar is written only for one that is as it should be.
    """
    found = compared(output, sidecar.read(output), model)
    found.write(output)
    return _difference_text(found)


def _difference_text(found: sidecar.Sidecar) -> str:
    if found.difference is None:
        return (
            'not compared with ONNX Runtime: it is not loaded before --compare-only has '
            'proven it on its GPU'
        )
    return 'difference from ONNX Runtime:\n' + compare.table(
        found.difference, found.precision, 'tensorrt'
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser('cotracker-build-trt', description=__doc__.partition('\n')[0])
    parser.add_argument('model', type=Path, help='an .onnx file of export_onnx.py')
    parser.add_argument('--output', type=Path, required=True, help='the .engine file to write')
    sizes = {'type': int, 'nargs': 3, 'metavar': ('MIN', 'BEST', 'MAX')}
    for name, default, what in (
        ('--points', Options.points, 'values of max_points to serve'),
        ('--cameras', Options.cameras, 'cameras in one step to serve; the node takes one'),
    ):
        given = ' '.join(map(str, default))
        parser.add_argument(name, **sizes, default=default, help=f'{what} [{given}]')
    parser.add_argument(
        '--tf32',
        action='store_true',
        help='compute products of float32 in TF32: faster, less exact',
    )
    parser.add_argument(
        '--timing-cache', type=Path, help='file of measurements, kept for the next build'
    )
    parser.add_argument('--rtx', action='store_true', help='TensorRT-RTX in place of TensorRT')
    parser.add_argument('--compute-capability', help='of another GPU, such as SM89 (with --rtx)')
    only = parser.add_mutually_exclusive_group()
    only.add_argument('--build-only', action='store_true', help='no comparison; needs no GPU')
    only.add_argument(
        '--compare-only',
        action='store_true',
        help='no build: compare the engine at --output, built elsewhere',
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Build and compare; returns the exit status."""
    args = parse(arguments)
    name = 'tensorrt_rtx' if args.rtx else 'tensorrt'
    try:
        if args.compare_only:
            print(compare_only(args.model, args.output))
            return 0
        try:
            library = importlib.import_module(name)
        except ImportError as error:
            raise EngineError(
                f'cannot import {name} ({error}): it comes with JetPack, elsewhere '
                f'pip install {name.replace("_", "-")}'
            ) from None
        options = Options(
            tuple(args.cameras),
            tuple(args.points),
            args.tf32,
            args.compute_capability,
            args.timing_cache,
        )
        for sizes in (options.cameras, options.points):
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                raise EngineError(f'sizes must rise from at least 1, not {sizes}')
        print(make(library, args.model, args.output, options, args.build_only))
    except (EngineError, OSError) as error:
        print(f'build failed: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
