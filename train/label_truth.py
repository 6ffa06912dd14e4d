"""How right pseudo-labels are: scenes of photographs, whose tracks are known, are labelled.

    python train/label_truth.py ../shared/photographs --clips 8

For each teacher, and for all together, with the filters of `pseudo_label.py` one after the other:
how much of what can be seen is labelled, and how much of that is right, within 3 px of a point
that is truly visible. Points that move less than 5 px are left out, and so are frames before a
query and the query's own. Shares in percent, with their standard errors over the clips.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from cotracker_ros.engines import EngineError
from export.reporting import markdown
from train.data.synthetic.photo_scenes import PhotoClip, PhotoSceneConfig, PhotoScenes
from train.data.synthetic.textures import read_photographs
from train.teachers import LabelConfig, Labels, Teacher, consensus, load_teacher, track_queries
from train.trackers import Tracker

MOVES, NEAR = 5.0, 3.0  # px
NO_FILTER, ROUND_TRIP, CORRELATED = 'no filter', 'round trip', 'round trip, correlation'

Shares = tuple[float, float]  # recall: labelled of visible; precision: right of labelled; percent


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, label and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('photographs', help='a folder of them')
    parser.add_argument('--clips', type=int, default=8)
    parser.add_argument('--frames', type=int, default=24)
    parser.add_argument('--points', type=int, default=192)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--teachers', nargs='+', default=['realtime', 'dis-flow', 'lucas-kanade'])
    args = parser.parse_args(arguments)
    limits = LabelConfig()
    try:
        scenes = PhotoScenes(
            PhotoSceneConfig(frames=args.frames),
            read_photographs(args.photographs),
            seed=args.seed,
        )
        threshold = limits.visibility_threshold
        teachers = [load_teacher(name, threshold, threads=1) for name in args.teachers]
    except (EngineError, ValueError, OSError) as error:
        parser.error(str(error))
    rows: dict[tuple[str, str], list[Shares]] = {}
    for index in tqdm(range(args.clips), unit='clip', disable=None):
        clip = scenes.clip(index, args.points)
        for row, labels in labels_of(clip, teachers, limits).items():
            rows.setdefault(row, []).append(shares(clip, labels))
    print(table(rows))


def labels_of(
    clip: PhotoClip, teachers: Sequence[Teacher], limits: LabelConfig
) -> dict[tuple[str, str], Labels]:
    """The labels of a clip by each teacher, and by more than half of them, by name and filters."""
    start = clip.query_frame, np.arange(len(clip.query_frame))
    queries = np.column_stack([clip.query_frame, clip.tracks[start]]).astype(np.float32)
    teachers = [dataclasses.replace(t, track=cached(t.track)) for t in teachers]
    filters = {
        NO_FILTER: (0.0, 0.0),
        ROUND_TRIP: (limits.round_trip, 0.0),
        CORRELATED: (limits.round_trip, limits.min_correlation),
    }
    rows = {}
    for name, limit in filters.items():
        each = [track_queries(teacher, clip.video, queries, *limit) for teacher in teachers]
        rows |= {(t.name, name): labels for t, labels in zip(teachers, each, strict=True)}
        if len(each) > 1:
            rows['all, together', name] = consensus(each, limits.agree)
    return rows


def cached(track: Tracker) -> Tracker:
    """The same tracker, which tracks the same queries once."""
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def track_once(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = video[0].tobytes() + queries.tobytes()
        if key not in known:
            known[key] = track(video, queries)
        return known[key]

    return track_once


def shares(clip: PhotoClip, labels: Labels) -> Shares:
    """How much of what can be seen of moving points is labelled, and how much of that is right;
    NaN where there is none.
    """
    moving = np.linalg.norm(np.ptp(clip.tracks, axis=0), axis=-1) > MOVES
    counted = (np.arange(len(clip.tracks))[:, None] > clip.query_frame) & moving
    labelled = labels.visible & (labels.weight > 0) & counted
    near = np.linalg.norm(labels.tracks - clip.tracks, axis=-1) < NEAR
    right, visible = labelled & near & clip.visible, clip.visible & counted
    return percent(labelled.sum(), visible.sum()), percent(right.sum(), labelled.sum())


def percent(part: int, whole: int) -> float:
    """A share, NaN of nothing."""
    return 100 * float(part) / float(whole) if whole else float('nan')


def table(rows: dict[tuple[str, str], list[Shares]]) -> str:
    """Means over the clips."""
    body = []
    for (teacher, filters), values in rows.items():
        cells = []
        for column in zip(*values, strict=True):
            found = np.array(column)[np.isfinite(column)]
            error = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
            spread = f' ± {error:.1f}' if error == error else ''
            cells.append(f'{np.mean(found):.1f}{spread}' if len(found) else 'none')
        body.append([teacher, filters, *cells, str(len(values))])
    head = ['teacher', 'filters', 'labelled of what is visible', 'right of these', 'clips']
    return '\n'.join(markdown(head, sorted(body)))


if __name__ == '__main__':
    main()
