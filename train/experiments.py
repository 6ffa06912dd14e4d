"""The papers' tables and figures, measured here: `python train/experiments.py --badja DIR`.

Each experiment writes one JSON file and draws its PNG, and the page README.md is written from all
JSON files there are (train/report.py), so that experiments can be run one at a time and on
different machines. An experiment whose file is there, made from the same data, models and
settings, is not run again: delete the file to measure anew. Without `--checkpoint` the shipped
model is measured; the published ones need their files.
"""

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.visualise import contact_sheet
from export.reporting import linear_fit, peak_memory, processor
from train import report
from train.data import readers
from train.data.clip import Clip, DataError, beginning, there_and_back, with_occluder
from train.evaluate import comparison, evaluate
from train.metrics import redetection
from train.trackers import BASELINES, Tracker, streaming, whole_video

SHIPPED = Path(__file__).resolve().parents[1] / 'cotracker_ros' / 'weights'
GRIDS = (0, 2, 5, 7, 9)  # points per side
ITERATIONS = (1, 2, 3, 4, 6)
WINDOWS = (2, 4)  # frames, where the real-time model's memory is cut
OCCLUSIONS, OCCLUDER_COMES, JUDGED = (15, 30, 45, 60), 8, 8  # frames
POINTS = (10, 30, 100, 300, 1000, 3000, 10000)
WARM_FRAMES, TIMED_FRAMES = 2, 6


def read_clips(args: argparse.Namespace, most: int | None) -> dict[str, list[Clip]]:
    """Return the clips of every data set that the command line names, at most so many of each."""
    sources = {
        'BADJA': (readers.badja, args.badja),
        'procedural': (readers.held_out, args.held_out),
        'TAP-Vid': (readers.tapvid, args.tapvid),
    }
    named = {name: (read, path) for name, (read, path) in sources.items() if path is not None}
    if not named:
        raise DataError('name a data set: --badja, --held-out or --tapvid')
    return {name: list(islice(read(path), most)) for name, (read, path) in named.items()}


def measure(tracker: Tracker, sets: dict[str, list[Clip]]) -> dict[str, dict[str, float]]:
    """Return the mean scores of one tracker, and ms per frame, on each data set."""
    scores = {}
    for name, clips in sets.items():
        row = evaluate({'tracker': tracker}, clips)['tracker']
        scores[name] = row['mean'] | {'ms_per_frame': 1000 * row['seconds'] / row['frames']}
    return scores


def table(args: argparse.Namespace) -> dict:
    """All clips: every exported model in the streaming runtime, and the classical trackers."""
    sets = read_clips(args, None)
    trackers = {f'{path.name}, streaming': streaming(path) for path in args.streaming} | BASELINES
    return {name: measure(tracker, sets) for name, tracker in _bar('table', trackers.items())}


def support(args: argparse.Namespace) -> dict:
    """Accuracy against the number of support points, a grid beside all targets."""
    sets = read_clips(args, args.clips)
    settings = [(path, side) for path in args.checkpoint for side in GRIDS]
    results = {}
    for path, side in _bar('support', settings):
        row = {'x': side**2, **measure(whole_video(path, grid=side), sets)}
        results.setdefault(path.name, []).append(row)
    return results


def latency(args: argparse.Namespace) -> dict:
    """Accuracy against refinement iterations, the time they take, and how late a result is.

    A sliding network of window S: per frame (0 frames late, the streaming step), first estimate
    (S / 2 - 1 at most) and final estimate (S - 1 at most). The real-time model is never late.
    """
    from cotracker_ros.model import load_checkpoint

    settings = []
    for path in args.checkpoint:
        facts = load_checkpoint(path).facts
        late = {'per frame': 0}
        if facts.sliding:
            late |= {'first estimate': facts.window // 2 - 1, 'final': facts.window - 1}
        settings += [(path, m, frames, n) for m, frames in late.items() for n in ITERATIONS]
    sets, results = read_clips(args, args.clips), {}
    for path, mode, frames, count in _bar('latency', settings):
        sliding = sum(other == path for other, *_ in settings) > len(ITERATIONS)
        if mode == 'per frame' and sliding:
            tracker = streaming(_exported(path, count))
        else:
            tracker = whole_video(path, count, first_estimate=mode == 'first estimate')
        row = {'x': count, 'frames_late': frames, 'mode': mode, **measure(tracker, sets)}
        results.setdefault(path.name, []).append(row)
    return results


def window(args: argparse.Namespace) -> dict:
    """Accuracy against the window that a model looks at, each at the stride of its features.

    A published checkpoint has one window; of the real-time model, whose points attend to their
    own last frames, the memory is cut, without training it again.
    """
    from cotracker_ros.model import load_checkpoint

    sets, results = read_clips(args, args.clips), {}
    for path in args.checkpoint:
        model = load_checkpoint(path)
        real_time = model.facts.causal
        stride = model.config.strides[0] if real_time else model.config.stride
        sizes = [size for size in WINDOWS if real_time and size < model.config.window]
        rows = results.setdefault(f'{path.name}, stride {stride}', [])
        for size in _bar('window', [*sizes, model.config.window]):
            rows.append({'x': size, **measure(whole_video(_with_memory(model, size)), sets)})
    return results


def occlusion(args: argparse.Namespace) -> dict:
    """Points found again after an occlusion of 0.5 to 2 s, at 30 frames a second.

    An occluder stands before the procedural clips, played forwards and back so that 2 s fit.
    Recovered: within 8 px of 256 in half of the next 8 frames; reported: and said to be visible.
    """
    if args.held_out is None:
        raise DataError('occlusions are made on the procedural set: --held-out')
    trackers = {path.name: streaming(path) for path in args.streaming} | BASELINES
    clips = list(readers.held_out(args.held_out))
    found: dict[tuple[str, int], list] = {}
    for clip, frames in _bar('occlusion', [(c, n) for c in clips for n in OCCLUSIONS]):
        behind = with_occluder(there_and_back(clip), OCCLUDER_COMES, frames)
        behind = beginning(behind, OCCLUDER_COMES + frames + JUDGED, OCCLUDER_COMES)
        if behind is None:
            continue
        truth = behind.queries[:, 0].astype(int), behind.tracks, behind.visible
        for name, tracker in trackers.items():
            scores = redetection(
                *truth, *tracker(behind.video, behind.queries), behind.size,
                shortest=frames, longest=frames, frames=JUDGED,
            )  # fmt: skip
            found.setdefault((name, frames), []).append(scores)
    results: dict[str, list] = {name: [] for name in trackers}
    for (name, frames), rows in found.items():
        episodes = sum(row['episodes'] for row in rows)
        shares = {
            f'redetection_{key}': sum(r['episodes'] * r[key] for r in rows if r['episodes'])
            / max(episodes, 1)
            for key in ('recovered', 'reported')
        }
        results[name].append({'x': frames / 30, 'episodes': episodes, 'occlusions': shares})
    return results


def scaling(args: argparse.Namespace) -> dict:
    """Time of a frame and memory against the number of points, in the streaming runtime."""
    results = {}
    context = multiprocessing.get_context('spawn')  # a process each: peak memory never goes down
    for path in args.streaming:
        results[path.name] = curve = []
        for count in _bar('scaling', POINTS):
            with context.Pool(1) as pool:
                ms, mib = pool.apply(_time_points, (str(path), count))
            curve.append({'x': count, 'ms': ms, 'mib': mib})
        x, ms, mib = (np.array([row[key] for row in curve]) for key in ('x', 'ms', 'mib'))
        (slope, start), (growth, base) = linear_fit(x, ms), linear_fit(x, mib)
        fit = {'ms': start, 'us_per_point': 1000 * slope}
        results[f'{path.name}, fit'] = fit | {'mib': base, 'kib_per_point': 1024 * growth}
    return results


def pictures(args: argparse.Namespace) -> dict:
    """What the tracks look like on the procedural set, beside those of DIS flow."""
    if args.held_out is None:
        raise DataError('the pictures are of the procedural set: --held-out')
    trackers = {path.name: streaming(path) for path in args.streaming[:1]}
    trackers['dis-flow'] = BASELINES['dis-flow']
    clips, shown = list(islice(readers.held_out(args.held_out), 6))[-2:], []
    for clip, name in _bar('pictures', [(clip, name) for clip in clips for name in trackers]):
        tracked = {name: trackers[name](clip.video, clip.queries)}
        early, late = (comparison(clip, tracked, n * len(clip.video) // 3) for n in (1, 2))
        shown += [early[0], *late]
    _write_png(args.output / 'pictures.png', contact_sheet(shown, 3), width=1200)
    return {}


EXPERIMENTS: dict[str, Callable[[argparse.Namespace], dict]] = {
    'table': table,
    'scaling': scaling,
    'latency': latency,
    'window': window,
    'support': support,
    'occlusion': occlusion,
    'pictures': pictures,
}


def _bar(name: str, settings: Iterable) -> Iterable:
    return tqdm(list(settings), desc=name, unit='setting', disable=None)


def _with_memory(model, size: int):
    """Return the real-time model with attention to the last `size` frames only."""
    if size == model.config.window:
        return model
    cut = type(model)(replace(model.config, window=size), model.image_size).eval()
    state = model.state_dict()
    short = {name: value[:, :size] for name, value in state.items() if name.endswith('lag_bias')}
    cut.load_state_dict(state | short)
    return cut


def _write_png(path: Path, image: np.ndarray, width: int) -> None:
    import cv2

    size = width, round(image.shape[0] * width / image.shape[1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if not cv2.imwrite(str(path), np.ascontiguousarray(small[..., ::-1])):
        raise OSError(f'{path}: cannot be written')


def _exported(path: Path, count: int) -> Path:
    """Export a checkpoint as a streaming step with so many iterations; returns the .onnx."""
    import subprocess

    target = Path('build') / 'experiments' / f'{path.stem}_{count}.onnx'
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
    return 1000 * float(np.median(times[WARM_FRAMES:])), peak_memory()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, with one message where something is wrong."""
    parser = argparse.ArgumentParser(description="The papers' tables and figures.")
    parser.add_argument('--only', nargs='+', choices=tuple(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument(
        '--checkpoint', type=Path, nargs='+', default=[SHIPPED / 'realtime.safetensors'],
        help='.safetensors or .pth: latency, window, support [the shipped model]',
    )  # fmt: skip
    parser.add_argument(
        '--streaming', type=Path, nargs='+', default=[SHIPPED / 'realtime.onnx'],
        help='.onnx: table, scaling, occlusion, pictures [the shipped model]',
    )  # fmt: skip
    parser.add_argument('--badja', type=Path, help='folder of BADJA and DAVIS')
    parser.add_argument('--held-out', type=Path, help='file; rendered if it is not there')
    parser.add_argument('--tapvid', type=Path, help='TAP-Vid pickle or folder of them')
    parser.add_argument(
        '--clips', type=int, default=4,
        help='of each data set for latency, window and support; 0: all [4]',
    )  # fmt: skip
    parser.add_argument('--output', type=Path, default=Path('docs/results'), help='[docs/results]')
    args = parser.parse_args(arguments)
    args.clips = args.clips or None
    command = ['python train/experiments.py', *(sys.argv[1:] if arguments is None else arguments)]
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        if args.held_out is not None:
            next(iter(readers.held_out(args.held_out)))  # rendered before it is looked at
        made_from = _inputs(args)
        for name in args.only:
            path = args.output / f'{name}.json'
            settings = made_from[name]
            if _made_from(path) == settings:
                print(f'{path}: there already, from the same data, models and settings')
            else:
                began = time.perf_counter()
                results = EXPERIMENTS[name](args)
                about = {
                    'command': ' '.join(map(str, command)),
                    'date': time.strftime('%Y-%m-%d'),
                    'machine': f'{processor()}, {multiprocessing.cpu_count()} cores',
                    'seconds': round(time.perf_counter() - began),
                    'inputs': settings,
                }
                _write_json(path, {'about': about, 'results': results})
                print(f'{path}: {about["seconds"]} s')
            report.draw(name, json.loads(path.read_text())['results'], args.output)
            (args.output / 'README.md').write_text(report.page(args.output, EXPERIMENTS))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f'experiments: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('experiments: stopped; the experiments that are done are kept', file=sys.stderr)
        return 130
    return 0


def _inputs(args: argparse.Namespace) -> dict[str, dict]:
    """Return for each experiment what its results depend on: contents of files, and settings."""
    data = {
        name: _fingerprint(path)
        for name in ('badja', 'held_out', 'tapvid')
        if (path := getattr(args, name)) is not None
    }
    exported = {path.name: _fingerprint(path) for path in args.streaming}
    trained = {path.name: _fingerprint(path) for path in args.checkpoint}
    few = {'data': data, 'clips': args.clips, 'models': trained}
    return {
        'table': {'data': data, 'models': exported},
        'scaling': {'models': exported, 'points': list(POINTS)},
        'latency': few | {'iterations': list(ITERATIONS)},
        'window': few | {'windows': list(WINDOWS)},
        'support': few | {'grids': list(GRIDS)},
        'occlusion': {'data': data, 'models': exported, 'frames': list(OCCLUSIONS)},
        'pictures': {'data': data, 'models': exported},
    }


def _fingerprint(path: Path) -> str:
    """Return a hash of a file's content, or of the names and sizes of a folder's files."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    files = sorted(file for file in path.rglob('*') if file.is_file())
    text = '\n'.join(f'{file.relative_to(path)} {file.stat().st_size}' for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _made_from(path: Path) -> dict | None:
    """Return the inputs of the results in a file; None where there are none."""
    try:
        return json.loads(path.read_text())['about']['inputs']
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_json(path: Path, content: dict) -> None:
    half = path.with_name(path.name + '.part')
    half.write_text(json.dumps(content, indent=1) + '\n')
    half.replace(path)  # an interrupted write leaves no half file behind


if __name__ == '__main__':
    raise SystemExit(main())
