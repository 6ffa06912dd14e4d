"""Measure any checkpoint or ONNX file, and the classical trackers beside it, on a data set.

    python train/evaluate.py --dataset badja --data ../shared/davis --checkpoint realtime.onnx

Streaming gives the runtime one frame at a time, each query when its frame comes, and no future
frames; whole-video gives the model the clip at once. The table goes to the terminal and, with the
scores of every clip, into a JSON file.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.visualise import contact_sheet, draw_errors, draw_tracks, titled, write_video
from train import metrics
from train.data import readers
from train.data.clip import Clip, DataError
from train.selection import PARTS, selection
from train.trackers import (
    BASELINES,
    Tracker,
    both_ways,
    streaming,
    takes_keypoints,
    whole_video,
)


def score(clip: Clip, xy: np.ndarray, visible: np.ndarray, strided: bool) -> dict[str, float]:
    """Return the measures that belong to a clip.

    BADJA's where it has mask areas, whether points stay on the object where it has masks,
    those of poses where it has people, else TAP-Vid's, survival and what becomes of points while
    and after they are hidden.
    """
    if clip.area is not None:
        return metrics.badja(xy, clip.tracks, clip.visible, clip.area)
    query_t = clip.queries[:, 0].astype(int)
    if clip.side is not None:
        return metrics.on_object(query_t, xy, visible, clip.side)
    truth = (query_t, clip.tracks, clip.visible)
    if clip.pose is not None:
        p = clip.pose
        return metrics.pose(*truth, xy, p.head, p.box, p.area, p.keypoint)
    known = np.ones_like(clip.visible) if clip.known is None else clip.known
    scores = metrics.tapvid(*truth, xy, visible, clip.size, strided)
    scores['survival'] = metrics.survival(query_t, clip.tracks, known, xy, clip.size)
    hidden = known & ~clip.visible
    if hidden.any():
        scores['position_accuracy_hidden'] = metrics.occluded_accuracy(
            query_t, clip.tracks, hidden, xy, clip.size
        )
    found = metrics.redetection(*truth, xy, visible, clip.size)
    return scores | {f'redetection_{name}': value for name, value in found.items()}


def evaluate(
    trackers: Mapping[str, Tracker],
    clips: Iterable[Clip],
    strided: bool = False,
    videos: Path | None = None,
) -> dict[str, dict]:
    """Run trackers over clips; returns {tracker: {'mean': scores, 'clips': {name: scores}, ...}}.

    `seconds` is a tracker's own time, `frames` how many it was given. Networks are told
    which keypoints the queries of poses are. Clips may come from a
    generator: one is in memory at a time. videos: a folder for a video of each clip that shows
    all trackers side by side. Raises DataError from the reader, and ValueError where a tracker's
    result has another shape than the clip.
    """
    rows = {name: {'mean': {}, 'clips': {}, 'seconds': 0.0, 'frames': 0} for name in trackers}
    for clip in tqdm(clips, unit='clip', leave=False, disable=None):
        tracked = {}
        for name, tracker in trackers.items():
            run, row = both_ways(tracker) if strided else tracker, rows[name]
            named = clip.pose is not None and takes_keypoints(run)
            told = {'keypoints': clip.pose.keypoint} if named else {}
            began = time.perf_counter()
            xy, visible = run(clip.video, clip.queries, **told)
            row['seconds'] += time.perf_counter() - began
            row['frames'] += len(clip.video)
            row['clips'][clip.name] = score(clip, xy, visible, strided)
            tracked[name] = xy, visible
        if videos is not None:
            videos.mkdir(parents=True, exist_ok=True)
            times = range(len(clip.video))
            sheets = (contact_sheet(comparison(clip, tracked, t), 2) for t in times)
            name = re.sub(r'[^\w.-]+', '_', clip.name)
            write_video(videos / f'{name}.mp4', sheets, 15)
    for row in rows.values():
        if not row['clips']:
            raise DataError('the data set holds no clip with a point to track')
        row['mean'] = metrics.mean_scores(row['clips'].values())
    return rows


def select(tracker: Tracker, data: Path, seeds: list[int]) -> dict:
    """Measure a tracker by train/selection.py: a row as of `evaluate`, without clips."""
    began, given = time.perf_counter(), 0

    def counted(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal given
        given += len(video)
        return tracker(video, queries)

    mean = selection(counted, data, seeds)
    seconds = time.perf_counter() - began
    return {'mean': mean, 'clips': {}, 'seconds': seconds, 'frames': given}


def comparison(clip: Clip, tracked: Mapping[str, tuple], t: int) -> list[np.ndarray]:
    """Return pictures of frame t: of each tracker its tracks, then its errors.

    tracked: positions and visibility of each tracker. Errors are shown of the points that are
    truly visible, in frame t or the annotated frame before it; before its query a point is not
    shown.
    """
    start, shown = clip.queries[:, 0].astype(int), []
    ids, times = np.arange(len(start)), np.arange(t + 1)[:, None]
    seen = clip.visible[: t + 1] & (start < times)
    last = int(np.flatnonzero(seen.any(1))[-1]) if seen.any() else t
    points = seen[last]
    for name, (xy, visible) in tracked.items():
        past = np.where((times < start)[..., None], np.nan, xy[: t + 1])
        tracks = draw_tracks(clip.video[t], past, visible[: t + 1], ids)
        errors = draw_errors(clip.video[last], xy[last, points], clip.tracks[last, points])
        shown += [titled(tracks, name), titled(errors, f'{name}, error in frame {last}')]
    return shown


def badja_scores(
    track_fn: Callable[[np.ndarray, np.ndarray], np.ndarray], data: str | Path = '../shared/davis'
) -> dict[str, float]:
    """Return BADJA's measures of a bare function, for training runs.

    track_fn takes a video (T, H, W, 3) uint8 at 320 x 512 and the queries (N, 2) px of frame 0,
    and returns xy (T, N, 2) px. The result holds badja_segment and badja_3px, the means over
    clips, and NAME/badja_segment and so on for each clip. The clips are read once per process.
    """
    clips = {
        clip.name: metrics.badja(
            np.asarray(track_fn(clip.video, clip.queries[:, 1:])),
            clip.tracks,
            clip.visible,
            np.asarray(clip.area),
        )
        for clip in _badja_clips(str(data))
    }
    each = {f'{name}/{key}': v for name, scores in clips.items() for key, v in scores.items()}
    return metrics.mean_scores(clips.values()) | each


@lru_cache(maxsize=1)
def _badja_clips(root: str) -> tuple[Clip, ...]:
    return tuple(readers.badja(root))


def _only_first(read: Callable[[Path], Iterable[Clip]]) -> Callable[..., Iterable[Clip]]:
    def reader(root: Path, strided: bool) -> Iterable[Clip]:
        if strided:
            raise DataError('this data set has its own queries; strided ones are for TAP-Vid')
        return read(root)

    return reader


READERS: dict[str, Callable[[Path, bool], Iterable[Clip]]] = {
    'badja': _only_first(readers.badja),
    'davis_masks': _only_first(readers.davis_masks),
    'procedural': _only_first(readers.held_out),
    'dynamic_replica': _only_first(readers.dynamic_replica),
    'posetrack': _only_first(readers.posetrack),
    'people': _only_first(readers.people),
    'kubric': readers.kubric,
    'tapvid_davis': readers.tapvid,
    'tapvid_kinetics': readers.tapvid,
    'tapvid_rgb_stacking': readers.tapvid,
    'tapvid_robotap': readers.tapvid,
}
COLUMNS = {
    'selection': 'selection',
    'least': 'least draw',
    'largest': 'largest draw',
    **{part: part for part in PARTS},
    'badja_segment': 'segment',
    'badja_3px': '3 px',
    'on_object': 'on object',
    'held': 'held',
    'on_background': 'on background',
    'pck_0.05': 'PCK@0.05',
    'pck_0.1': 'PCK@0.1',
    'pck_0.2': 'PCK@0.2',
    'pckh': 'PCKh',
    'oks': 'OKS',
    'temporal_consistency': 'consistent',
    'smoothness': 'smooth',
    'jitter': 'jitter',
    'average_jaccard': 'AJ',
    'position_accuracy': 'delta',
    'position_accuracy_hidden': 'hidden',
    'occlusion_accuracy': 'OA',
    'survival': 'survival',
    'redetection_recovered': 'recovered',
    'redetection_reported': 'reported',
}


def table(rows: dict[str, dict]) -> str:
    """Return results of `evaluate`, by tracker, as an aligned table in percent."""
    names = [name for name in COLUMNS if any(name in row['mean'] for row in rows.values())]
    lines = [['', *(COLUMNS[name] for name in names), 'frames/s']]
    for label, row in rows.items():
        speed = row['frames'] / max(row['seconds'], 1e-9)
        lines.append(
            [label, *(f'{row["mean"].get(name, np.nan):.1f}' for name in names), f'{speed:.1f}']
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return '\n'.join(
        '  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, with one message where something is wrong."""
    parser = argparse.ArgumentParser(description='Measure trackers on a data set.')
    parser.add_argument('--dataset', required=True, choices=sorted([*READERS, 'selection']))
    parser.add_argument(
        '--data',
        type=Path,
        required=True,
        help='its folder or file; procedural, people: a file, rendered if it is not there',
    )
    parser.add_argument(
        '--checkpoint',
        action='append',
        default=[],
        help='.onnx, .safetensors, .pth or a shipped name; may be repeated; none: baselines alone',
    )
    parser.add_argument(
        '--no-baselines', action='store_true', help='measure the checkpoints alone'
    )
    parser.add_argument('--mode', choices=('streaming', 'whole-video'), default='streaming')
    group = parser.add_argument_group('streaming')
    group.add_argument('--engine', default='auto', help='the runtime [auto: by the file]')
    group.add_argument('--threads', type=int, default=0, help='of the runtime; 0: automatic')
    group = parser.add_argument_group('whole-video')
    group.add_argument('--iterations', type=int, help="of refinement [the model's own]")
    group.add_argument(
        '--support-grid',
        type=int,
        help='side of a grid of support points [5; CoTracker 1: 6; the real-time model: 0]',
    )
    group.add_argument(
        '--local-grid',
        type=int,
        default=0,
        help='side of a grid around each target, tracked alone; CoTracker3: 8, 1: 6 [0]',
    )
    group.add_argument('--alone', action='store_true', help='track one target at a time')
    group.add_argument(
        '--first-estimate',
        action='store_true',
        help='take frames from the first window that holds them',
    )
    group.add_argument('--device', default='cpu', help='where torch computes')
    parser.add_argument('--queries', choices=('first', 'strided'), default='first')
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0], help='of what selection renders [0]'
    )
    parser.add_argument('--limit', type=int, help='number of clips, for a quick look')
    parser.add_argument(
        '--videos', type=Path, help='folder for a video of each clip, trackers side by side'
    )
    parser.add_argument('--output', type=Path, help='JSON file [runs/evaluate_DATASET.json]')
    args = parser.parse_args(arguments)
    output = args.output or Path('runs') / f'evaluate_{args.dataset}.json'
    try:
        rows = run(args)
        output.parent.mkdir(parents=True, exist_ok=True)
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        output.write_text(json.dumps({'settings': settings, 'results': rows}, indent=1) + '\n')
    except (ValueError, OSError, RuntimeError) as error:
        print(f'evaluate: {error}', file=sys.stderr)
        return 1
    print(table(rows))
    print(f'saved {output}')
    return 0


def run(args: argparse.Namespace) -> dict[str, dict]:
    """Evaluate the checkpoints and the baselines that the command line names."""
    trackers = {}
    for checkpoint in args.checkpoint:
        if args.mode == 'streaming':
            tracker = streaming(checkpoint, args.engine, args.threads)
        else:
            tracker = whole_video(
                checkpoint, args.iterations, args.support_grid, args.local_grid,
                args.first_estimate, args.device, args.alone,
            )  # fmt: skip
        trackers[Path(checkpoint).name] = tracker
    trackers |= {} if args.no_baselines else BASELINES
    if not trackers:
        raise ValueError('nothing to measure: no checkpoint, and no baselines')
    if args.dataset == 'selection':
        return {name: select(tracker, args.data, args.seeds) for name, tracker in trackers.items()}
    strided = args.queries == 'strided'
    clips = islice(READERS[args.dataset](args.data, strided), args.limit)
    return evaluate(trackers, clips, strided, args.videos)


if __name__ == '__main__':
    raise SystemExit(main())
