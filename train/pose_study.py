"""Small ablations of pose tracking, and the page that `make pose` writes.

    python train/pose_study.py --config config/pose_study.yaml --output docs/results/pose

Each variant goes on from the same weights for the same few steps: the consistency losses one by
one, mixtures of rendered people and other clips, and the keypoint embedding. They are then
measured on held-out rendered people and on the held-out set of points of any kind. What is done
already is kept, so a study that was stopped goes on by the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

if not __package__:  # run as a script: the folder above holds the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2

from cotracker_ros import geometry
from cotracker_ros.predictor import fit_video
from cotracker_ros.skeleton import KEYPOINTS
from cotracker_ros.visualise import contact_sheet, draw_pose, titled
from export.reporting import markdown
from train import metrics
from train.config import read_config
from train.data import readers
from train.data.batch import Clips
from train.data.clip import Clip, DataError
from train.data.mixture import Mixture, Source
from train.data.sources import Numbered
from train.evaluate import COLUMNS, score
from train.train import Run

START = 'start, not trained'
PEOPLE, HALF = {'people': 1}, {'people': 0.5, 'procedural': 0.5}
# name: (group, mixture, embedding, changes of the shared settings)
VARIANTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    START: ('', '', 'absent', {'steps': 0}),
    'people alone': ('mixture', '100/0', 'absent', {'sources': PEOPLE}),
    '+ continuity': ('loss', '100/0', 'absent', {'sources': PEOPLE, 'loss': {'continuity': 1.0}}),
    '+ joint relation': (
        'loss', '100/0', 'absent', {'sources': PEOPLE, 'loss': {'joint_relation': 1.0}},
    ),
    '+ occlusion-aware': (
        'loss', '100/0', 'absent', {'sources': PEOPLE, 'loss': {'occlusion_aware': 1.0}},
    ),
    'half and half': ('mixture', '50/50', 'absent', {'sources': HALF}),
    'embedding on pose clips': (
        'embedding', '50/50', 'present on pose clips only',
        {'sources': HALF, 'shape': {'keypoints': len(KEYPOINTS)}},
    ),
    'embedding on all clips': (
        'embedding', '50/50', 'present on all clips',
        {'sources': HALF, 'shape': {'keypoints': len(KEYPOINTS)}, 'embedding': 'all'},
    ),
    'three quarters people': (
        'mixture', '75/25', 'absent', {'sources': {'people': 0.75, 'procedural': 0.25}},
    ),
    'a quarter people': (
        'mixture', '25/75', 'absent', {'sources': {'people': 0.25, 'procedural': 0.75}},
    ),
    'no people': ('mixture', '0/100', 'absent', {'sources': {'procedural': 1}}),
}  # fmt: skip
MEASURED = {
    'people': ('pck_0.05', 'pck_0.1', 'pck_0.2', 'oks', 'smoothness', 'jitter'),
    'points of any kind': ('average_jaccard', 'position_accuracy', 'occlusion_accuracy'),
}
CLIPS, FRAMES = 3, 16  # of each held-out set
PUBLISHED = (
    # model, PCK 0.2 on the sets AR and Yoga, as BlazePose's authors print them
    ('OpenPose (body only)', 87.8, 83.4),
    ('BlazePose Full', 84.1, 84.5),
    ('BlazePose Lite', 79.6, 77.6),
)


class Kept:
    """A source whose batches are made once, for all runs that share them."""

    made: dict[tuple[str, int], Clips] = {}  # noqa: RUF012 (shared on purpose)

    def __init__(self, source: Source):
        self.source, self.name = source, source.name

    def batch(self, index: int) -> Clips:
        """Batch `index` of the run."""
        key = self.name, index
        if key not in self.made:
            self.made[key] = self.source.batch(index)
        return replace(self.made[key])


def shared(mixture: Mixture) -> None:
    """Let the sources of a mixture keep their batches."""
    for n, source in enumerate(mixture.sources):
        if isinstance(source, Numbered):
            source.source = Kept(source.source)
        else:
            mixture.sources[n] = Kept(source)


def train(config, folder: Path) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """Train a variant; returns the averaged network and its losses, step by step."""
    run = Run(config, folder, 'cpu')
    shared(run.source)  # type: ignore[arg-type]
    curve = []
    for clips in islice(run.batches(run.source), config.steps):
        losses = run.update(clips)
        run.step += 1
        curve.append({'source': clips.source, **losses})
    return run.average.module.eval(), curve


def track(model, clip: Clip, keypoints: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the tracks (T, N, 2) px of a clip and whether they are visible, (T, N)."""
    facts, size = model.facts, clip.video.shape[1:3]
    move = geometry.POINTS[facts.resize]
    images = fit_video(torch.from_numpy(clip.video).permute(0, 3, 1, 2).float(), facts)
    asked = np.column_stack(
        [clip.queries[:, 0], move(clip.queries[:, 1:], size, facts.image_size)]
    )
    numbers = {} if keypoints is None else {'keypoints': torch.from_numpy(keypoints)}
    with torch.no_grad():
        found = model.track(images, torch.from_numpy(asked.astype(np.float32)), **numbers)
    seen = facts.visible_whole(found.visibility, found.confidence)
    return move(found.xy.numpy(), facts.image_size, size), seen.numpy()


def measure(model, sets: Mapping[str, list[Clip]], embedding: str) -> dict[str, dict[str, float]]:
    """Return the mean scores of a network on each held-out set, in percent."""
    result = {}
    for name, clips in sets.items():
        scores = []
        for clip in clips:
            numbers = None
            if embedding != 'absent':
                place = np.arange(len(clip.queries)) % len(KEYPOINTS)
                plain = place if embedding == 'present on all clips' else np.full_like(place, -1)
                numbers = plain if clip.pose is None else clip.pose.keypoint.astype(np.int64)
            scores.append(score(clip, *track(model, clip, numbers), False))
        mean = metrics.mean_scores(scores)
        result[name] = {key: value for key, value in mean.items() if '/' not in key}
    return result


def pictures(model, clips: list[Clip]) -> np.ndarray:
    """Return a sheet of clips of people: the truth above, what was tracked below."""
    rows: list[list[np.ndarray]] = [[], []]
    for clip in clips[:3]:
        assert clip.pose is not None
        body = clip.pose.keypoint, clip.pose.instance
        xy, seen = track(model, clip, None)
        late = clip.queries[:, 0] > FRAMES - 1
        for row, places, visible in zip(
            rows, (clip.tracks, xy), (clip.visible, seen), strict=True
        ):
            at = np.where(late[:, None], np.nan, places[-1])
            row.append(draw_pose(clip.video[-1], at, visible[-1], *body))
    named = [titled(frame, text) for row, text in zip(rows, ('true', 'tracked'), strict=True)
             for frame in row]  # fmt: skip
    return contact_sheet(named, len(rows[0]))


def held_out(folder: Path) -> dict[str, list[Clip]]:
    """Return the held-out clips, rendered into `folder` if they are not there."""
    readings: dict[str, Iterator[Clip]] = {
        'people': readers.people(folder / 'people.npz', CLIPS, FRAMES),
        'points of any kind': readers.held_out(folder / 'points.npz', CLIPS, FRAMES, 48),
    }
    return {name: list(reading) for name, reading in readings.items()}


def draw(rows: Mapping[str, dict], path: Path) -> None:
    """Draw the losses of the runs, and what they came to."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout='constrained')
    for name, row in rows.items():
        people = [(n, x['track']) for n, x in enumerate(row['curve']) if x['source'] == 'people']
        if people:
            steps, losses = zip(*people, strict=True)
            smooth = [np.mean(losses[max(0, n - 5) : n + 1]) for n in range(len(losses))]
            axes[0].plot(steps, smooth, lw=1.3, label=name)
    axes[0].set(title='Loss of positions on people, mean of six', xlabel='step', ylabel='px')
    if axes[0].lines:
        axes[0].legend(fontsize=6, frameon=False)
    places = np.arange(len(rows))
    for axis, (data, key) in zip(
        axes[1:], (('people', 'pck_0.1'), ('points of any kind', 'average_jaccard')), strict=True
    ):
        values = [row['scores'][data][key] for row in rows.values()]
        axis.barh(places, values, color=['0.6', *['tab:blue'] * (len(rows) - 1)])
        axis.set_yticks(places, list(rows), fontsize=7)
        axis.invert_yaxis()
        axis.set_xlim(max(0, min(values) - 5), min(100, max(values) + 3))
        axis.set_title(f'{data}: {COLUMNS[key]}, %', fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def page(content: Mapping[str, Any]) -> str:
    """Return the page over the results of a study."""
    rows, about = content['rows'], content['about']
    columns = [(data, key) for data, keys in MEASURED.items() for key in keys]
    head = ['', 'people/others', 'embedding', *(f'{d}: {COLUMNS[k]}' for d, k in columns)]
    table = []
    for name, row in rows.items():
        _, mixture, embedding, _ = VARIANTS[name]
        values = (row['scores'][data].get(key, np.nan) for data, key in columns)
        table.append([name, mixture, embedding, *(f'{value:.1f}' for value in values)])
    absent = [name for name in VARIANTS if name not in rows]
    published = [[name, f'{ar}', f'{yoga}'] for name, ar, yoga in PUBLISHED]
    return '\n'.join([
        '# Pose tracking: mixtures, losses, embedding', '',
        'Written by `train/pose_study.py` (`make pose`); do not edit. Each row goes on from the '
        f'shipped weights for {about["steps"]} steps of one clip, with one seed, at '
        f'{about["size"][0]} x {about["size"][1]}; percent on {about["clips"]} held-out clips of '
        f'{about["frames"]} frames of each kind, for jitter less is better '
        '([measures](../../pose.md)).', '',
        *markdown(head, table), '',
        '**How much of this is chance.** ' + about['chance'], '',
        *([f'Not run: {", ".join(absent)}.', ''] if absent else []),
        '![Losses and accuracy](curves.png)', '',
        '![Held-out people in their last frame: truth above, tracked below](pictures.jpg)', '',
        '**Published**, not measured here, and another task: detectors of poses in single '
        'pictures, where ours is given where each keypoint is once and follows it.', '',
        *markdown(['PCK 0.2 (arXiv 2006.10204)', 'AR', 'Yoga'], published), '',
        f'Measured on {about["date"]}: `{about["command"]}`, {about["seconds"]:.0f} s of the '
        'processor.', '',
    ])  # fmt: skip


def chance(rows: Mapping[str, dict]) -> str:
    """Say how far apart rows lie, against how far apart the clips do."""
    if len(rows) < 3:
        return 'Too few rows to tell.'
    values = [row['scores']['people']['pck_0.1'] for name, row in rows.items() if name != START]
    return (
        f'PCK 0.1 of the trained rows lies between {min(values):.1f} and {max(values):.1f}. One '
        f'seed, {CLIPS} clips and so few steps cannot rank them: differences of a point or '
        'two are what another seed would change. The study shows that everything runs and what '
        'it costs, not which loss or mixture is best.'
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description='Ablations of pose tracking, and their page.')
    parser.add_argument('--config', type=Path, default=Path('config/pose_study.yaml'))
    parser.add_argument('--runs', type=Path, default=Path('runs/pose'), help='[runs/pose]')
    parser.add_argument('--only', nargs='+', choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument('--output', type=Path, default=Path('docs/results/pose'))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        values = yaml.safe_load(args.config.read_text()) or {}
        sets = held_out(args.runs)
        path = args.output / 'pose.json'
        args.output.mkdir(parents=True, exist_ok=True)
        content = json.loads(path.read_text()) if path.is_file() else {'rows': {}, 'about': {}}
        if content['about'].get('settings') != values:
            content = {'rows': {}, 'about': {'settings': values, 'seconds': 0.0}}
        for name in args.only:
            if name in content['rows']:
                print(f'{name}: there already, from the same settings')
                continue
            began = time.process_time()
            _, _, embedding, changes = VARIANTS[name]
            config = read_config({**values, **changes})
            model, curve = train(config, args.runs / 'no checkpoint')
            content['rows'][name] = {'scores': measure(model, sets, embedding), 'curve': curve}
            rows, about = (
                {n: content['rows'][n] for n in VARIANTS if n in content['rows']},
                content['about'],
            )
            about['seconds'] += time.process_time() - began
            about |= {
                'command': 'make pose', 'date': time.strftime('%Y-%m-%d'), 'chance': chance(rows),
                'steps': values['steps'], 'size': values['size'], 'clips': CLIPS, 'frames': FRAMES,
            }  # fmt: skip
            content['rows'] = rows
            path.write_text(json.dumps(content, indent=1) + '\n')
            if name == START:
                sheet = pictures(model, sets['people'])[..., ::-1]
                cv2.imwrite(str(args.output / 'pictures.jpg'), sheet)
            draw(rows, args.output / 'curves.png')
            (args.output / 'README.md').write_text(page(content))
            print(f'{name}: {content["rows"][name]["scores"]}', flush=True)
    except (ValueError, OSError, DataError, yaml.YAMLError) as error:
        print(f'pose_study: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
