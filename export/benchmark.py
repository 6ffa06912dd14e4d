r"""Measure how fast and how large every engine on this computer is; write docs/benchmarks.md.

    python export/benchmark.py cotracker_ros/weights/realtime.onnx cotracker3.onnx

Each engine, precision and number of points runs in a process of its own, so that its peak memory
is its own, one after the other. As the speed of computers differs, and of one varies with what
else it does, every time is also given in units of a fixed reference measured beside it: the
published CoTracker 3 encoder alone, one frame of 384 x 512 in torch, in the engine's precision.
A checkpoint in place of an .onnx file is measured in torch.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.engines import (
    ENGINES,
    EngineError,
    default_threads,
    load,
    read_metadata,
    spec,
)
from cotracker_ros.engines.onnxruntime_engine import TYPES
from cotracker_ros.engines.scripted_stream import scripted_stream
from export.reporting import cpu_facts, linear_fit, markdown, peak_memory, processor
from export.verify import candidates

POINTS = (16, 64, 256, 1024)
SECONDS = 8.0  # of measuring for each row, after the warm-up
GPU_COUNTS = (64, 256, 1024)  # for which the page has rows even where no GPU was at hand
BEGIN, END = '<!-- engines: written by export/benchmark.py -->', '<!-- /engines -->'
DOCS = Path(__file__).resolve().parents[1] / 'docs'


def gflop(model: Path, points: int, cameras: int = 1) -> float:
    """10^9 multiplications and additions of the convolutions and products of one step.

    Counted from the shapes of a run, since ONNX's own shape inference gives up on the way.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # plain layouts
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f'{folder}/profile'
        session = ort.InferenceSession(str(model), options, providers=['CPUExecutionProvider'])
        session.run(
            None,
            {
                i.name: np.zeros(spec.resolve(i.name, i.shape, cameras, points), TYPES[i.type])
                for i in session.get_inputs()
            },
        )
        events = json.loads(Path(session.end_profiling()).read_text())
    total = 0.0
    for event in events:
        if not event['name'].endswith('_kernel_time'):
            continue
        about = event['args']
        inputs, outputs = (
            [next(iter(v.values())) for v in about[f'{side}_type_shape']]
            for side in ('input', 'output')
        )
        if about['op_name'] in ('Conv', 'FusedConv'):
            total += 2 * np.prod(outputs[0]) * np.prod(inputs[1][1:])
        elif about['op_name'] in ('MatMul', 'FusedMatMul', 'Gemm', 'FusedGemm'):
            total += 2 * np.prod(outputs[0]) * inputs[0][-1]
    return float(total) / 1e9


def reference_ms(form: str, threads: int) -> float:
    """Median time of the published-size encoder alone in torch, 'f32' or 'bf16', for one frame."""
    import torch

    from cotracker_ros.model.encoder import Encoder

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind = {'f32': torch.float32, 'bf16': torch.bfloat16}[form]
    encoder = Encoder(channels=128, stride=4).eval().to(kind)
    frame = torch.rand(1, 3, 384, 512).to(kind)
    times = []
    with torch.inference_mode():
        for _ in range(7):
            start = time.perf_counter()
            encoder(frame)
            times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[1:]))


def references(threads: int) -> dict[str, float]:
    """`reference_ms` in float32, and in bfloat16 where this CPU computes in it."""
    forms = ['f32', 'bf16'] if {'avx512_bf16', 'amx_bf16'} & cpu_flags() else ['f32']
    return {form: reference_ms(form, threads) for form in forms}


def peak_gflops(threads: int) -> float:
    """float32 speed of a product of matrices in ONNX Runtime now: what a step could reach."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    n = 1024
    graph = helper.make_graph(
        [helper.make_node('MatMul', ['a', 'w'], ['y'])],
        'peak',
        [helper.make_tensor_value_info('a', TensorProto.FLOAT, [n, n])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [n, n])],
        [onnx.numpy_helper.from_array(np.ones((n, n), np.float32), 'w')],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        made.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    given = {'a': np.ones((n, n), np.float32)}
    times = []
    for _ in range(30):
        start = time.perf_counter()
        session.run(None, given)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / float(np.median(times)) / 1e9


def measure(path: Path, name: str, points: int) -> dict:
    """One row: times of a step in ms, memory in MB. Raises EngineError."""
    before = peak_memory()
    engine = load(path, name, 1, points)
    meta = engine.metadata
    frames = list(scripted_stream(8, meta, 1, points))
    steady = [f | {'query': f['query'] & False, 'live': f['live'] | True} for f in frames]
    engine.step(
        frames[0]
        | {
            'query': frames[0]['query'] | True,
            'live': steady[0]['live'],
            'query_age': frames[0]['query_age'] * 0,
        }
    )
    times, stop, cpu = [], time.perf_counter() + SECONDS, time.process_time()
    while len(times) < 5 or (time.perf_counter() < stop and len(times) < 2000):
        start = time.perf_counter()
        engine.step(steady[len(times) % len(steady)])
        times.append(1e3 * (time.perf_counter() - start))
    cpu = 1e3 * (time.process_time() - cpu) / len(times)
    row = {
        q: float(np.quantile(times, p)) for q, p in (('p50', 0.5), ('p95', 0.95), ('p99', 0.99))
    }
    row |= {
        'least': min(times),
        'cpu': cpu,
        'steps': len(times),
        'memory': peak_memory() - before,
        'threads': engine.threads,
        'precision': engine.precision,
        'device': engine.device,
    }
    engine.close()
    return row


def engines_for(model: Path) -> list[tuple[str, Path]]:
    """Names of the engines that could run a file, and the file each of them takes."""
    if model.suffix == '.onnx':
        return list(candidates(model))
    return [(name, model) for name in ENGINES if name.startswith('torch')]


def rows_of(model: Path, counts: list[int]) -> list[dict]:
    """Measure all engines and points for one file, each in a new process; the reference beside
    every number of points.
    """
    rows, gone = [], set()
    for points in counts:
        work = gflop(model, points) if model.suffix == '.onnx' else None
        unit = _in_new_process('--reference')
        for name, path in engines_for(model):
            if name in gone:
                continue
            try:
                row = _in_new_process('--row', str(path), name, str(points))
            except EngineError as error:
                print(f'{model.name} {name} {points}: {error}')
                gone.add(name)
                continue
            of = unit['bf16' if row['precision'] == 'bf16' else 'f32']
            row |= {
                'model': model.stem,
                'engine': name,
                'points': points,
                'gflop': work,
                'reference': of,
            }
            print(
                f'{model.stem} {name} {points}: p50 {row["p50"]:.1f} ms, '
                f'{row["p50"] / of:.2f} of the reference ({of:.1f} ms)',
                flush=True,
            )
            rows.append(row)
    return rows


def _in_new_process(*arguments: str) -> dict:
    """What this file prints as its last line, called with these arguments; EngineError if none."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['it ended without a word'])[-1]
        raise EngineError(last.rpartition('EngineError: ')[2])
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict]) -> str:
    """The rows as Markdown. A quantile that too few steps were measured for is left out."""
    head = (
        'model', 'engine', 'points', 'p50 ms', 'p95', 'p99', 'least', 'x reference', 'frames/s',
        'CPU ms', 'memory MB', 'GFLOP', 'of fp32 peak', 'steps', 'load',
    )  # fmt: skip
    cells = []
    for r in rows:
        p95, p99 = (
            f'{r[q]:.1f}' if r['steps'] >= least else ''
            for q, least in (('p95', 20), ('p99', 100))
        )
        work = share = ''
        if r['gflop'] is not None:
            work, share = f'{r["gflop"]:.1f}', f'{r["gflop"] / r["p50"] * 1e3 / r["peak"]:.0%}'
        cells.append([
            r['model'], r['engine'], f'{r["points"]}', f'{r["p50"]:.1f}', p95, p99,
            f'{r["least"]:.1f}', f'{r["p50"] / r["reference"]:.3f}', f'{1e3 / r["p50"]:.1f}',
            f'{r["cpu"]:.1f}', f'{r["memory"]:.0f}', work, share, f'{r["steps"]}',
            f'{r["load"]:.1f}',
        ])  # fmt: skip
    return '\n'.join(markdown(head, cells))


def fastest(rows: list[dict]) -> list[str]:
    """For each number of points and model the engine that took least, in words."""
    lines = []
    for points in sorted({r['points'] for r in rows}):
        mine = sorted((r for r in rows if r['points'] == points), key=lambda r: r['p50'])
        best = {r['model']: (r['engine'], r['p50']) for r in reversed(mine)}
        for model, (engine, milliseconds) in sorted(best.items()):
            lines.append(f'{model}, {points} points: engine {engine}, {milliseconds:.1f} ms')
    return lines


def growth(rows: list[dict]) -> list[dict]:
    """How the cost grows with the points, for each model and engine of at least three counts.

    `fixed` ms and `slope` ms a point of a straight line through p50, and the `exponent` of the
    steepest rise from one count to the next, p50 ~ points^exponent: linear growth is 1.
    """
    found = []
    for key in dict.fromkeys((r['model'], r['engine']) for r in rows):
        mine = sorted((r['points'], r['p50']) for r in rows if (r['model'], r['engine']) == key)
        if len(mine) < 3:
            continue
        points, times = np.array(mine).T
        slope, fixed = linear_fit(points, times)
        rise = np.diff(np.log(times)) / np.diff(np.log(points))
        found.append(
            {
                'model': key[0],
                'engine': key[1],
                'fixed': fixed,
                'slope': slope,
                'exponent': float(rise.max()),
            }
        )
    return found


def growth_table(rows: list[dict]) -> str:
    """`growth` as Markdown, with the verdict."""
    head = ('model', 'engine', 'fixed ms', 'ms a point', 'steepest exponent', 'at most linear')
    cells = [
        [
            g['model'], g['engine'], f'{g["fixed"]:.1f}', f'{g["slope"]:.4f}',
            f'{g["exponent"]:.2f}', 'yes' if g['exponent'] <= 1 else '**no**',
        ]
        for g in growth(rows)
    ]  # fmt: skip
    return '\n'.join(markdown(head, cells))


def gpu_table(rows: list[dict]) -> str:
    """The rows measured on a GPU; where there are none, empty ones that say so."""
    mine = [r for r in rows if r['device'].startswith('cuda')]
    if mine:
        return table(mine)
    head = ('model', 'engine', 'precision', 'points', 'p50 ms', 'frames/s')
    cells = [
        ['cotracker3_online', name, form, f'{points}', '', '']
        for name in ('torch:cuda-graph', 'onnxruntime:cuda')
        for form in ('fp32', 'half')
        for points in GPU_COUNTS
    ]
    text = 'No GPU was at hand; what a run of this script there fills in:'
    return '\n'.join([text, '', *markdown(head, cells)])


def plot(rows: list[dict], output: Path) -> None:
    """Time of a step against points, one line for each model and engine."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for key in dict.fromkeys((r['model'], r['engine']) for r in rows):
        mine = [r for r in rows if (r['model'], r['engine']) == key]
        axes.plot(
            [r['points'] for r in mine],
            [r['p50'] for r in mine],
            'o-',
            label=f'{key[0]}, {key[1]}',
        )
    axes.set(xscale='log', yscale='log', xlabel='points', ylabel='p50 of a step (ms)')
    counts = sorted({r['points'] for r in rows})
    axes.set_xticks(counts, [str(p) for p in counts])
    axes.tick_params(which='minor', axis='x', labelbottom=False)
    axes.axhline(1e3 / 30, color='grey', linewidth=0.8, linestyle='--')
    axes.text(counts[0], 1e3 / 30 * 1.05, '30 frames/s', color='grey', fontsize=8)
    axes.grid(True, which='both', alpha=0.2)
    axes.legend(fontsize=8, loc='upper left', bbox_to_anchor=(1, 1))  # beside the lines
    figure.tight_layout()
    figure.savefig(output, dpi=120)


def cpu_flags() -> set[str]:
    """What the processor says it can do; empty where the system does not tell."""
    return set(cpu_facts().get('flags', '').split())


def machine() -> str:
    """Processor and cores, in words."""
    known = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')
    flags = ', '.join(f if f in cpu_flags() else f'no {f}' for f in known)
    return (
        f'{processor()} ({flags}), {default_threads()} threads used, '
        f'Python {platform.python_version()}'
    )


def write(rows: list[dict], path: Path) -> None:
    """Replace our section of the page, which others write to as well."""
    units = {
        name: [r['reference'] for r in rows if (r['precision'] == 'bf16') == (name == 'bf16')]
        for name in ('fp32', 'bf16')
    }
    times = ', '.join(
        f'{np.median(u):.1f} ms in {n} ({min(u):.1f} to {max(u):.1f})'
        for n, u in units.items()
        if u
    )
    peak = float(np.median([r['peak'] for r in rows]))
    section = '\n'.join(
        [
            BEGIN,
            '## A step of each engine',
            '',
            f'{machine()}.',
            '',
            'All points live, none added during the measurement; a fresh process for each row; '
            f'{SECONDS:.0f} s a row, at least 5 steps; quantiles only where steps are enough. '
            f'The reference, the published CoTracker 3 encoder alone (384 x 512, torch): {times}; '
            'it was measured again beside every number of points, the ratio is to that one. GFLOP '
            'counts convolutions and products. "Of fp32 peak": against a 1024 x 1024 product of '
            f'matrices in ONNX Runtime, timed just before each row (median {peak:.0f} GFLOP/s); '
            'bf16 may exceed 100 %. "Load" is the load average then: where it is above the number '
            'of threads, other programs were running; then "least" and "CPU" (processor time of '
            'all threads a step) say more than p50.',
            '',
            table([r for r in rows if r['device'] == 'cpu']),
            '',
            '### Fastest here',
            '',
            *(f'- {line}' for line in fastest([r for r in rows if r['device'] == 'cpu'])),
            '',
            '### Cost against points',
            '',
            growth_table(rows),
            '',
            '![time of a step against points](benchmarks.png)',
            '',
            '### On a GPU',
            '',
            gpu_table(rows),
            '',
            END,
        ]
    )
    text = path.read_text() if path.exists() else '# Benchmarks\n'
    if BEGIN in text:
        head, rest = text.split(BEGIN)
        text = head + section + rest.split(END)[1]
    else:
        text = f'{text.rstrip()}\n\n{section}\n'
    path.write_text(text)


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('models', type=Path, nargs='*', help='.onnx files, or checkpoints')
    parser.add_argument('--output', type=Path, default=DOCS / 'benchmarks.md')
    parser.add_argument('--points', type=int, nargs='+', default=list(POINTS))
    parser.add_argument('--row', nargs=3, help=argparse.SUPPRESS)
    parser.add_argument('--reference', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.row:
        peak, load_average = peak_gflops(default_threads()), os.getloadavg()[0]
        row = measure(Path(args.row[0]), args.row[1], int(args.row[2]))
        print(json.dumps(row | {'peak': peak, 'load': load_average}))
        return 0
    if args.reference:
        print(json.dumps(references(default_threads())))
        return 0
    try:
        for model in args.models:
            if model.suffix == '.onnx':
                read_metadata(model)
            elif not model.is_file():
                raise EngineError(f'{model}: no such model file')
        rows = [row for model in args.models for row in rows_of(model, args.points)]
        if not rows:
            raise EngineError('nothing was measured: name .onnx files that an engine here runs')
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write(rows, args.output)
    plot(rows, args.output.with_suffix('.png'))
    print('fastest on this machine:', *fastest(rows), f'wrote {args.output}', sep='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
