"""The papers' tables and figures, measured here: `python train/paper.py --output docs/results`.

Each experiment draws one PNG and writes one JSON file, and the page README.md is written from all
JSON files there are, so that experiments can be run one at a time and on different machines.
Without `--checkpoint` the shipped model is measured.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.visualise import contact_sheet, draw_errors, draw_tracks
from train import datasets
from train.baselines import BASELINES, Tracker
from train.datasets import Clip, DataError, with_occluder
from train.evaluate import COLUMNS, evaluate, streaming, whole_video
from train.metrics import redetection

SHIPPED = Path(__file__).resolve().parents[1] / 'cotracker_ros' / 'weights'
GRIDS = (0, 2, 3, 5, 7, 9)
ITERATIONS = (1, 2, 3, 4, 6)
OCCLUSIONS, OCCLUDER_COMES = (5, 10, 20, 30, 40), 8  # frames
POINTS = (10, 30, 100, 300, 1000, 3000, 10000)
WARM_FRAMES, TIMED_FRAMES = 2, 6
# Query-first, in percent. Sources beside them; hardware and input sizes differ between rows.
PUBLISHED = (
    # model, AJ, delta, OA on TAP-Vid DAVIS, BADJA within 0.2 sqrt(area), source
    ('CoTracker3 online, 15k real videos', 63.8, 76.3, 90.2, None, 'arXiv 2410.11831'),
    ('CoTracker3 offline, 15k real videos', 64.4, 76.9, 91.2, None, 'arXiv 2410.11831'),
    ('CoTracker2', 61.8, 76.1, 88.3, None, 'arXiv 2410.11831'),
    ('LiteTracker, per frame', 62.0, 74.6, 88.4, None, 'arXiv 2504.09904'),
    ('TAPIR', 56.2, 70.0, 86.5, None, 'arXiv 2410.11831'),
    ('PIPs, mean of camel and cows', None, None, None, 89.7, 'arXiv 2204.04153'),
)  # fmt: skip


def read_clips(args: argparse.Namespace) -> dict[str, list[Clip]]:
    """Return the clips of every data set that the command line names."""
    sources = {
        'BADJA': (datasets.badja, args.badja),
        'procedural held-out': (datasets.held_out, args.held_out),
        'TAP-Vid': (datasets.tapvid, args.tapvid),
    }
    named = {name: (read, path) for name, (read, path) in sources.items() if path is not None}
    if not named:
        raise DataError('name a data set: --badja, --held-out or --tapvid')
    return {name: list(islice(read(path), args.limit)) for name, (read, path) in named.items()}


def measure(tracker: Tracker, sets: dict[str, list[Clip]]) -> dict[str, dict[str, float]]:
    """Return the mean scores of one tracker, and ms per frame, on each data set."""
    scores = {}
    for name, clips in sets.items():
        row = evaluate({'tracker': tracker}, clips)['tracker']
        scores[name] = row['mean'] | {'ms_per_frame': 1000 * row['seconds'] / row['frames']}
    return scores


def main_table(args: argparse.Namespace) -> dict:
    """Every checkpoint in the streaming runtime, and the classical trackers."""
    sets = read_clips(args)
    trackers = {f'{path.name}, streaming': streaming(path) for path in args.streaming}
    return {name: measure(tracker, sets) for name, tracker in (trackers | BASELINES).items()}


def support(args: argparse.Namespace) -> dict:
    """Accuracy against the number of support points, a grid beside all targets."""
    return _sweep(args, GRIDS, lambda path, side: whole_video(path, grid=side), lambda s: s * s)


def iterations(args: argparse.Namespace) -> dict:
    """Accuracy against refinement iterations per frame or window."""
    return _sweep(args, ITERATIONS, lambda path, count: whole_video(path, iterations=count))


def latency(args: argparse.Namespace) -> dict:
    """Accuracy against how many frames late a result is, and against iterations.

    A sliding network of window S: per frame (0 frames late, the streaming step), as first told
    (S / 2 - 1 at most) and final (S - 1 at most). The real-time model is never late.
    """
    from cotracker_ros.model import load_checkpoint

    sets, results = read_clips(args), {}
    for path in args.checkpoint:
        config = load_checkpoint(path).config
        results[path.name] = curve = []
        late = {'per frame': 0}
        if getattr(config, 'sliding', False):
            late |= {'as first told': config.window // 2 - 1, 'final': config.window - 1}
        for mode, frames in late.items():
            for count in ITERATIONS:
                if mode != 'per frame':
                    tracker = whole_video(path, count, as_first_told=mode == 'as first told')
                elif getattr(config, 'sliding', False):
                    tracker = streaming(_exported(path, count))
                else:
                    tracker = whole_video(path, count)
                row = {'x': count, 'frames_late': frames, 'mode': mode}
                curve.append(row | measure(tracker, sets))
    return results


def occlusion(args: argparse.Namespace) -> dict:
    """Points found again after an occlusion, against its length: a post before the procedural set.

    Recovered: within 8 px of 256 in half of the next 8 frames; reported: and said to be visible.
    """
    if args.held_out is None:
        raise DataError('occlusions are made on the procedural set: --held-out')
    clips = list(islice(datasets.held_out(args.held_out), args.limit))
    trackers = {path.name: streaming(path) for path in args.streaming} | BASELINES
    results: dict[str, list] = {name: [] for name in trackers}
    for frames in OCCLUSIONS:
        scores: dict[str, list] = {name: [] for name in trackers}
        for clip in clips:
            behind = with_occluder(clip, OCCLUDER_COMES, frames)
            truth = behind.queries[:, 0].astype(int), behind.tracks, behind.visible
            for name, tracker in trackers.items():
                found = redetection(
                    *truth, *tracker(behind.video, behind.queries), behind.size,
                    shortest=frames, longest=frames,
                )  # fmt: skip
                scores[name].append((found, found['episodes']))
        for name, rows in scores.items():
            counted = [(found, n) for found, n in rows if n]
            total = sum(n for _, n in counted)
            mean = {
                key: sum(n * found[key] for found, n in counted) / max(total, 1)
                for key in ('recovered', 'reported')
            }
            told = {f'redetection_{key}': value for key, value in mean.items()}
            results[name].append({'x': frames, 'episodes': total, 'occlusions': told})
    return results


def scaling(args: argparse.Namespace) -> dict:
    """Time of a frame and memory against the number of points, in the streaming runtime."""
    results = {}
    context = multiprocessing.get_context('spawn')  # a process each: peak memory never goes down
    for path in args.streaming:
        results[path.name] = curve = []
        for count in POINTS:
            with context.Pool(1) as pool:
                ms, mib = pool.apply(_time_points, (str(path), count))
            curve.append({'x': count, 'ms': ms, 'mib': mib})
            print(f'{count} points: {ms:.1f} ms a frame, {mib:.0f} MiB', file=sys.stderr)
            if ms > 20_000:
                break
        x, y = (np.array([row[key] for row in curve]) for key in ('x', 'ms'))
        slope, start = np.polyfit(x, y, 1, w=1 / y)  # relative errors: small counts matter as much
        results[f'{path.name}, fit'] = {'ms': start, 'us_per_point': 1000 * slope}
    return results


def pictures(args: argparse.Namespace) -> dict:
    """What the tracks look like on the procedural set, beside those of DIS flow."""
    if args.held_out is None:
        raise DataError('the pictures are of the procedural set: --held-out')
    trackers = {path.name: streaming(path) for path in args.streaming[:1]}
    trackers['dis-flow'] = BASELINES['dis-flow']
    shown, rows = [], []
    for clip in islice(datasets.held_out(args.held_out), 4, 6):
        for name, tracker in trackers.items():
            xy, visible = tracker(clip.video, clip.queries)
            for t in (len(xy) // 3, 2 * len(xy) // 3):
                ids = np.arange(xy.shape[1])
                shown.append(draw_tracks(clip.video[t], xy[: t + 1], visible[: t + 1], ids))
            seen = clip.visible[t] & (clip.queries[:, 0] < t)
            shown.append(draw_errors(clip.video[t], xy[t, seen], clip.tracks[t, seen]))
            rows.append(f'{clip.name}, {name}')
    _write_png(args.output / 'pictures.png', contact_sheet(shown, 3), width=1024)
    return {'rows': rows}


def _write_png(path: Path, image: np.ndarray, width: int) -> None:
    import cv2

    size = width, round(image.shape[0] * width / image.shape[1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if not cv2.imwrite(str(path), np.ascontiguousarray(small[..., ::-1])):
        raise OSError(f'{path}: cannot be written')


def _sweep(
    args: argparse.Namespace,
    values: Iterable[int],
    tracker: Callable[[Path, int], Tracker],
    axis: Callable[[int], int] = int,
) -> dict:
    sets = read_clips(args)
    return {
        path.name: [{'x': axis(v), **measure(tracker(path, v), sets)} for v in values]
        for path in args.checkpoint
    }


def _exported(path: Path, count: int) -> Path:
    """Export a checkpoint as a streaming step with so many iterations; returns the .onnx."""
    import subprocess

    target = Path('build') / 'paper' / f'{path.stem}_{count}.onnx'
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_file() or target.stat().st_mtime < path.stat().st_mtime:
        script = Path(__file__).resolve().parents[1] / 'export' / 'export_onnx.py'
        words = ['--checkpoint', path, '--iterations', count, '--output', target]
        done = subprocess.run(
            [sys.executable, script, *map(str, words)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f'{path}: no streaming step ({done.stderr.strip()[-300:]})')
    return target


def _time_points(path: str, count: int) -> tuple[float, float]:
    """Return the median ms of a frame with so many points and this process's peak MiB."""
    from cotracker_ros.streaming import StreamingTracker

    tracker = StreamingTracker(path, count)
    height, width = tracker.image_size
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (height, width, 3), np.uint8)
    tracker.add_points(rng.uniform(0, (width - 1, height - 1), (count, 2)))
    times = []
    for t in range(WARM_FRAMES + TIMED_FRAMES):
        began = time.perf_counter()
        tracker.track(frame, float(t))
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return 1000 * float(np.median(times[WARM_FRAMES:])), peak


EXPERIMENTS = {
    'table': main_table,
    'support': support,
    'iterations': iterations,
    'latency': latency,
    'occlusion': occlusion,
    'scaling': scaling,
    'pictures': pictures,
}
AXES = {
    'support': ('support points', 'linear'),
    'iterations': ('iterations', 'linear'),
    'latency': ('iterations', 'linear'),
    'occlusion': ('frames occluded', 'linear'),
    'scaling': ('points', 'log'),
}
HEADLINE = ('badja_segment', 'badja_3px', 'average_jaccard', 'occlusion_accuracy')
REDETECTION = ('redetection_recovered', 'redetection_reported')


def draw(name: str, results: dict, path: Path) -> None:
    """Draw the curves of one experiment, a panel for each measure of each data set."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for label, rows in results.items():
        if not isinstance(rows, list):
            continue
        for row in rows:
            line = f'{label}, {row["mode"]}' if 'mode' in row else label
            for measured, value in _flat(row):
                points = panels.setdefault(measured, {}).setdefault(line, [])
                points.append((row['x'], value))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False, layout='constrained'
    )
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker='o', label=label)
        axis.set(title=title, xlabel=AXES[name][0], xscale=AXES[name][1], yscale=AXES[name][1])
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _flat(row: dict) -> Iterable[tuple[str, float]]:
    if 'ms' in row:
        yield 'ms per frame', row['ms']
        yield 'peak memory, MiB', row['mib']
    for data, scores in row.items():
        if isinstance(scores, dict):
            for key in REDETECTION if data == 'occlusions' else HEADLINE:
                if np.isfinite(scores.get(key, np.nan)):
                    yield f'{data}: {COLUMNS[key]}', scores[key]


TITLES = {
    'support': 'Support points',
    'iterations': 'Iterations',
    'latency': 'Latency',
    'occlusion': 'Occlusions',
    'scaling': 'Time and memory',
    'pictures': 'Pictures',
}


def page(folder: Path) -> str:
    """Return the page over all results in a folder."""
    lines = [
        '# Results',
        '',
        'Written by `python train/paper.py`; do not edit. Figures are percent unless said. '
        'BADJA is measured at 320 x 512; the procedural set is rendered with photographs that '
        'training never sees. Each point has one query; the streaming runtime has no future '
        'frames.',
        '',
    ]
    for name in EXPERIMENTS:
        path = folder / f'{name}.json'
        if not path.is_file():
            continue
        content = json.loads(path.read_text())
        results, about = content['results'], content['about']
        if name == 'table':
            lines += ['## Accuracy', '', *_accuracy(results), '', *_published(), '']
        else:
            told = EXPERIMENTS[name].__doc__.splitlines()[0]
            lines += [f'## {TITLES[name]}', '', told, '', f'![{TITLES[name]}]({name}.png)', '']
        if name == 'scaling':
            lines += _fits(results)
        if name == 'pictures':
            rows = '; '.join(results['rows'])
            lines += [
                f'Rows: {rows}. Tails by point, hollow where said hidden. Last column: a disc '
                'at the track, a ring at the true place, from green (right) to red.',
                '',
            ]
        lines += [f'Measured on {about["machine"]}, {about["date"]}: `{about["command"]}`', '']
    return '\n'.join(lines)


def _accuracy(results: dict) -> list[str]:
    sets = list(next(iter(results.values())))
    columns = [
        (data, key)
        for data in sets
        for key in COLUMNS
        if any(np.isfinite(row[data].get(key, np.nan)) for row in results.values())
    ]
    head = ['', *(f'{data}: {COLUMNS[key]}' for data, key in columns), 'ms per frame']
    rows = []
    for label, row in results.items():
        cells = [f'{row[data][key]:.1f}' for data, key in columns]
        speed = np.mean([scores['ms_per_frame'] for scores in row.values()])
        rows.append([label, *cells, f'{speed:.1f}'])
    return _markdown(head, rows)


def _published() -> list[str]:
    head = ['Published, not measured here', 'DAVIS AJ', 'delta', 'OA', 'BADJA: segment', 'source']
    rows = [['' if cell is None else str(cell) for cell in row] for row in PUBLISHED]
    return _markdown(head, rows)


def _fits(results: dict) -> list[str]:
    fits = {label: fit for label, fit in results.items() if label.endswith(', fit')}
    rows = [
        [label.removesuffix(', fit'), f'{fit["ms"]:.1f}', f'{fit["us_per_point"]:.1f}']
        for label, fit in fits.items()
    ]
    return [*_markdown(['linear fit', 'ms without points', 'us per point'], rows), '']


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    body = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return ['| ' + ' | '.join(row) + ' |' for row in body]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, with one message where something is wrong."""
    parser = argparse.ArgumentParser(description="The papers' tables and figures.")
    parser.add_argument('--only', nargs='+', choices=tuple(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument(
        '--checkpoint', type=Path, nargs='+', default=[SHIPPED / 'realtime.safetensors'],
        help='.safetensors or .pth: support, iterations, latency [the shipped model]',
    )
    parser.add_argument(
        '--streaming', type=Path, nargs='+', default=[SHIPPED / 'realtime.onnx'],
        help='.onnx: table, scaling, pictures [the shipped model]',
    )
    parser.add_argument('--badja', type=Path, help='folder of BADJA and DAVIS')
    parser.add_argument('--held-out', type=Path, help='file; rendered if it is not there')
    parser.add_argument('--tapvid', type=Path, help='TAP-Vid pickle or folder of them')
    parser.add_argument('--limit', type=int, help='clips of each data set')
    parser.add_argument('--output', type=Path, default=Path('docs/results'), help='[docs/results]')
    args = parser.parse_args(arguments)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for name in args.only:
            results = EXPERIMENTS[name](args)
            about = {
                'command': ' '.join(['python train/paper.py', *_relative(arguments)]),
                'date': time.strftime('%Y-%m-%d'),
                'machine': f'{_processor()}, {multiprocessing.cpu_count()} cores',
            }
            text = json.dumps({'about': about, 'results': results}, indent=1)
            (args.output / f'{name}.json').write_text(text + '\n')
            if name in AXES:
                draw(name, results, args.output / f'{name}.png')
            (args.output / 'README.md').write_text(page(args.output))
            print(f'{name}: {args.output / name}.json')
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f'paper: {error}', file=sys.stderr)
        return 1
    return 0


def _relative(arguments: list[str] | None) -> list[str]:
    return [str(word) for word in (sys.argv[1:] if arguments is None else arguments)]


def _processor() -> str:
    """Return the processor's name."""
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == '__main__':
    raise SystemExit(main())
