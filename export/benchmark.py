r"""Measure how fast and how large every engine on this computer is; write docs/benchmarks.md.

    python export/benchmark.py cotracker_ros/weights/realtime.onnx cotracker3.onnx

Each engine, precision and number of points runs in a process of its own, so that its peak memory
is its own, one after the other. As the speed of a computer varies with what else it does, a fixed
product of matrices is timed before every run: the share of that peak is comparable, milliseconds
are as much as the load average beside them allows.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cotracker_ros.engines import EngineError, default_threads, load, read_metadata
from cotracker_ros.engines.onnxruntime_engine import TYPES
from export.stream import scripted_stream
from export.verify import candidates

POINTS = (16, 64, 256, 1024)
SECONDS = 5.0  # of measuring for each row, after the warm-up
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
        sizes = {'cameras': cameras, 'points': points}
        session.run(None, {i.name: np.zeros([sizes.get(d, d) for d in i.shape], TYPES[i.type])
                           for i in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    total = 0.0
    for event in events:
        if not event['name'].endswith('_kernel_time'):
            continue
        about = event['args']
        inputs, outputs = ([next(iter(v.values())) for v in about[f'{side}_type_shape']]
                           for side in ('input', 'output'))
        if about['op_name'] in ('Conv', 'FusedConv'):
            total += 2 * np.prod(outputs[0]) * np.prod(inputs[1][1:])
        elif about['op_name'] in ('MatMul', 'FusedMatMul', 'Gemm', 'FusedGemm'):
            total += 2 * np.prod(outputs[0]) * inputs[0][-1]
    return float(total) / 1e9


def peak_gflops(threads: int) -> float:
    """float32 speed of a product of matrices in ONNX Runtime now: what a step could reach."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper
    n = 1024
    graph = helper.make_graph(
        [helper.make_node('MatMul', ['a', 'w'], ['y'])], 'peak',
        [helper.make_tensor_value_info('a', TensorProto.FLOAT, [n, n])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [n, n])],
        [onnx.numpy_helper.from_array(np.ones((n, n), np.float32), 'w')])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(made.SerializeToString(), options,
                                   providers=['CPUExecutionProvider'])
    given = {'a': np.ones((n, n), np.float32)}
    times = []
    for _ in range(30):
        start = time.perf_counter()
        session.run(None, given)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / float(np.median(times)) / 1e9


def measure(path: Path, name: str, points: int) -> dict:
    """One row: times of a step in ms, memory in MB. Raises EngineError."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = load(path, name, 1, points)
    meta = engine.metadata
    frames = list(scripted_stream(8, meta.image_size, meta.window, 1, points))
    steady = [f | {'query': f['query'] & False, 'live': f['live'] | True} for f in frames]
    engine.step(frames[0] | {'query': frames[0]['query'] | True, 'live': steady[0]['live'],
                             'query_age': frames[0]['query_age'] * 0})
    times, stop, cpu = [], time.perf_counter() + SECONDS, time.process_time()
    while len(times) < 5 or (time.perf_counter() < stop and len(times) < 2000):
        start = time.perf_counter()
        engine.step(steady[len(times) % len(steady)])
        times.append(1e3 * (time.perf_counter() - start))
    cpu = 1e3 * (time.process_time() - cpu) / len(times)
    row = {q: float(np.quantile(times, p)) for q, p in (('p50', 0.5), ('p95', 0.95),
                                                        ('p99', 0.99))}
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row |= {'least': min(times), 'cpu': cpu, 'steps': len(times),
            'memory': (after - before) / 1024, 'threads': engine.threads,
            'precision': engine.precision, 'device': engine.device}
    engine.close()
    return row


def rows_of(model: Path, counts: list[int]) -> list[dict]:
    """Measure all engines and points for one file, each in a new process."""
    rows, gone = [], set()
    for points in counts:
        work = gflop(model, points)
        for name, path in candidates(model):
            if name in gone:
                continue
            row_of = [sys.executable, __file__, '--row', str(path), name, str(points)]
            done = subprocess.run(row_of, capture_output=True, text=True)
            if done.returncode:
                print(f'{model.name} {name} {points}: {done.stderr.strip().splitlines()[-1:]}')
                gone.add(name)
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            row |= {'model': model.stem, 'engine': name, 'points': points, 'gflop': work}
            print(f'{model.stem} {name} {points}: p50 {row["p50"]:.1f} ms', flush=True)
            rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ['| model | engine | points | p50 ms | p95 | p99 | least | CPU ms | frames/s | '
             'memory MB | GFLOP | of fp32 peak | load |', '|' + '---|' * 13]
    for r in rows:
        share = r['gflop'] / r['p50'] * 1e3 / r['peak']
        lines.append(
            f'| {r["model"]} | {r["engine"]} | {r["points"]} | {r["p50"]:.1f} | {r["p95"]:.1f} | '
            f'{r["p99"]:.1f} | {r["least"]:.1f} | {r["cpu"]:.1f} | {1e3 / r["p50"]:.1f} | '
            f'{r["memory"]:.0f} | {r["gflop"]:.1f} | {share:.0%} | {r["load"]:.1f} |')
    return '\n'.join(lines)


def plot(rows: list[dict], output: Path) -> None:
    """Time of a step against points, one line for each model and engine."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for key in dict.fromkeys((r['model'], r['engine']) for r in rows):
        mine = [r for r in rows if (r['model'], r['engine']) == key]
        axes.plot([r['points'] for r in mine], [r['p50'] for r in mine], 'o-',
                  label=f'{key[0]}, {key[1]}')
    axes.set(xscale='log', yscale='log', xlabel='points', ylabel='p50 of a step (ms)')
    counts = sorted({r['points'] for r in rows})
    axes.set_xticks(counts, [str(p) for p in counts])
    axes.axhline(1e3 / 30, color='grey', linewidth=0.8, linestyle='--')
    axes.text(counts[0], 1e3 / 30 * 1.05, '30 frames/s', color='grey', fontsize=8)
    axes.grid(True, which='both', alpha=0.2)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=120)


def machine() -> str:
    """Processor and cores, in words."""
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        text = info.read_text()
        name = next((li.split(':')[1].strip() for li in text.splitlines()
                     if li.startswith('model name')), name)
        flags = [f for f in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if f' {f}' in text]
        name += f' ({", ".join(flags)})' if flags else ''
    return f'{name}, {default_threads()} threads used, Python {platform.python_version()}'


def write(rows: list[dict], path: Path) -> None:
    """Replace our section of the page, which others write to as well."""
    section = '\n'.join([
        BEGIN, '## A step of each engine', '', f'{machine()}.', '',
        'All points live, none added during the measurement; a fresh process for each row. GFLOP '
        'counts convolutions and products. "Of fp32 peak": against a 1024 x 1024 product of '
        'matrices in ONNX Runtime, timed just before; bf16 may exceed 100 %. "Load" is the load '
        'average then: where it is above the number of threads, other programs were running; then '
        '"least" and "CPU" (processor time of all threads a step) say more than p50.', '',
        table(rows), '',
        '![time of a step against points](benchmarks.png)', '', END])
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
    parser.add_argument('models', type=Path, nargs='*', help='.onnx files')
    parser.add_argument('--output', type=Path, default=DOCS / 'benchmarks.md')
    parser.add_argument('--points', type=int, nargs='+', default=list(POINTS))
    parser.add_argument('--row', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.row:
        peak, load_average = peak_gflops(default_threads()), os.getloadavg()[0]
        row = measure(Path(args.row[0]), args.row[1], int(args.row[2]))
        print(json.dumps(row | {'peak': peak, 'load': load_average}))
        return 0
    rows = []
    for model in args.models:
        try:
            read_metadata(model)
        except EngineError as error:
            print(error, file=sys.stderr)
            return 1
        rows += rows_of(model, args.points)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write(rows, args.output)
    plot(rows, args.output.with_suffix('.png'))
    print(f'wrote {args.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
