"""Ablations of pose tracking, and the page that `make pose` writes.

    python train/pose_study.py --config config/pose_study.yaml --output docs/results/pose

Each row goes on from the same weights for the same few steps: the consistency losses one by one,
mixtures of rendered people and other clips, and the keypoint embedding; all rows with one seed,
then all with the next. They are measured, on the way and at the end, on held-out rendered people
and on the held-out set of points of any kind. A row that is done is kept, and the page is written
anew after each, so a study that was stopped goes on by the same command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

if not __package__:  # run as a script: the folder above holds the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
from tqdm import tqdm

from cotracker_ros import geometry
from cotracker_ros.predictor import fit_video
from cotracker_ros.skeleton import KEYPOINTS
from cotracker_ros.visualise import contact_sheet, draw_pose, titled
from export.reporting import markdown
from train import metrics
from train.config import TrainConfig, read_config
from train.data import readers
from train.data.batch import Clips
from train.data.clip import Clip, DataError
from train.data.mixture import Mixture, Source
from train.data.sources import Numbered
from train.evaluate import COLUMNS, score
from train.train import Run

Scores = dict[str, dict[str, float]]  # by data set and measure, in percent


class Variant(NamedTuple):
    """A row of the study."""

    mixture: str  # percent of clips of people / others
    embedding: str
    against: str  # the row that differs from it in one thing
    changes: dict[str, Any]  # of the settings that all rows share


START = 'start, not trained'
ABSENT, POSE, ALL = 'absent', 'pose', 'all'
EMBEDDED = {'shape': {'keypoints': len(KEYPOINTS)}}
HALF = {'people': 0.5, 'procedural': 0.5}


def people_with(**loss: float) -> Variant:
    """People alone, with a consistency loss of a weight."""
    return Variant('100/0', ABSENT, 'people alone', {'sources': {'people': 1}, 'loss': loss})


VARIANTS = {
    'people alone': Variant('100/0', ABSENT, 'no people', {'sources': {'people': 1}}),
    '+ continuity': people_with(continuity=1.0),
    '+ joint relation': people_with(joint_relation=1.0),
    '+ occlusion-aware': people_with(occlusion_aware=1.0),
    'half and half': Variant('50/50', ABSENT, 'no people', {'sources': HALF}),
    'embedding on pose clips': Variant(
        '50/50', POSE, 'half and half', {'sources': HALF, **EMBEDDED}
    ),
    'embedding on all clips': Variant(
        '50/50', ALL, 'half and half', {'sources': HALF, 'embedding': 'all', **EMBEDDED}
    ),
    'three quarters people': Variant(
        '75/25', ABSENT, 'no people', {'sources': {'people': 0.75, 'procedural': 0.25}}
    ),
    'a quarter people': Variant(
        '25/75', ABSENT, 'no people', {'sources': {'people': 0.25, 'procedural': 0.75}}
    ),
    'no people': Variant('0/100', ABSENT, START, {'sources': {'procedural': 1}}),
}
PEOPLE, ANY = 'people', 'points of any kind'
MEASURED = {  # by data set
    PEOPLE: (
        'pck_0.05', 'pck_0.1', 'pck_0.2', 'oks', 'smoothness', 'jitter', 'occlusion_accuracy',
    ),
    ANY: ('average_jaccard', 'position_accuracy', 'occlusion_accuracy'),
}  # fmt: skip
MEANING = {
    PEOPLE: 'PCK@0.1: share of keypoints within 0.1 of the longer side of the box of the person; '
    'OKS: object keypoint similarity with the constants of COCO; smooth: share of steps that bend '
    'no more than the truth; jitter: trembling, in percent of the box, less is better; OA: share '
    'of frames whose visibility is right ([measures](../../pose.md#measures)).',
    ANY: 'AJ: average Jaccard; delta: share of positions within 1 to 16 px, of 256 x 256; OA: '
    'share of frames whose visibility is right ([evaluation](../../evaluation.md)).',
}
HEADLINE = ((PEOPLE, 'pck_0.1'), (ANY, 'average_jaccard'))
CLIPS, FRAMES, POINTS = {PEOPLE: 6, ANY: 3}, 16, 48  # of the held-out sets
PUBLISHED = (
    # model, PCK 0.2 on the sets AR and Yoga, as BlazePose's authors print them
    ('OpenPose (body only)', 87.8, 83.4),
    ('BlazePose Full', 84.1, 84.5),
    ('BlazePose Lite', 79.6, 77.6),
)
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 95 % of a mean of so many seeds, two-sided


class Kept:
    """A source whose batches are made once, for all runs of a seed."""

    def __init__(self, source: Source, made: dict[tuple[str, int], Clips]):
        self.source, self.name, self.made = source, source.name, made

    def batch(self, index: int) -> Clips:
        """Batch `index` of the run."""
        key = self.name, index
        if key not in self.made:
            self.made[key] = self.source.batch(index)
        return replace(self.made[key])


def keep(mixture: Mixture, made: dict[tuple[str, int], Clips]) -> None:
    """Let the sources of a mixture keep their batches in `made`."""
    for n, source in enumerate(mixture.sources):
        if isinstance(source, Numbered):
            source.source = Kept(source.source, made)
        else:
            mixture.sources[n] = Kept(source, made)


def train(
    config: TrainConfig,
    folder: Path,
    made: dict[tuple[str, int], Clips],
    measured: Callable[[torch.nn.Module], Scores],
) -> Iterator[tuple[int, dict[str, Any], Scores | None]]:
    """Train a variant; yields after every step its number, its source and loss of positions, and,
    every `evaluate` steps and at the end, the scores of the averaged network.
    """
    run = Run(config, folder, 'cpu')
    assert isinstance(run.source, Mixture)
    keep(run.source, made)
    for clips in islice(run.batches(run.source), config.steps):
        losses = run.update(clips)
        run.step += 1
        due = run.step % config.evaluate == 0 or run.step == config.steps
        found = measured(run.average.module.eval()) if due else None
        yield run.step, {'source': clips.source, 'track': round(losses['track'], 4)}, found


def track(model, clip: Clip, keypoints: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the tracks (T, N, 2) px of a clip and whether they are visible, (T, N)."""
    facts, size = model.facts, clip.video.shape[1:3]
    move = geometry.POINTS[facts.resize]
    images = fit_video(torch.from_numpy(clip.video).permute(0, 3, 1, 2).float(), facts)
    queries = np.column_stack(
        [clip.queries[:, 0], move(clip.queries[:, 1:], size, facts.image_size)]
    )
    numbers = {} if keypoints is None else {'keypoints': torch.from_numpy(keypoints)}
    with torch.no_grad():
        found = model.track(images, torch.from_numpy(queries.astype(np.float32)), **numbers)
    seen = facts.visible_whole(found.visibility, found.confidence)
    return move(found.xy.numpy(), facts.image_size, size), seen.numpy()


def measure(model, sets: Mapping[str, list[Clip]], embedding: str) -> Scores:
    """Return the mean scores of a network on each held-out set."""
    result = {}
    for name, clips in sets.items():
        scores = []
        for clip in clips:
            numbers = None
            if embedding != ABSENT:
                place = np.arange(len(clip.queries)) % len(KEYPOINTS)
                plain = place if embedding == ALL else np.full_like(place, -1)
                numbers = plain if clip.pose is None else clip.pose.keypoint.astype(np.int64)
            xy, seen = track(model, clip, numbers)
            judged = clip.queries[:, 0].astype(int), clip.tracks, clip.visible, xy, seen, clip.size
            scores.append(metrics.tapvid(*judged) | score(clip, xy, seen, False))
        kept = (*MEASURED[name], *(f'pck_0.1/{keypoint}' for keypoint in KEYPOINTS))
        mean = metrics.mean_scores(scores)
        result[name] = {key: round(mean[key], 3) for key in kept if key in mean}
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
        PEOPLE: readers.people(folder / 'people.npz', CLIPS[PEOPLE], FRAMES),
        ANY: readers.held_out(folder / 'points.npz', CLIPS[ANY], FRAMES, POINTS),
    }
    return {name: list(reading) for name, reading in readings.items()}


class Results:
    """What a study found: the scores of the start, and by row and seed the scores by step and the
    losses. `seconds` is time of the processor.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        """Go on with those in a file, if they are of the same settings and weights."""
        weights = hashlib.sha256(Path(settings['start']).read_bytes()).hexdigest()
        settings = {**settings, 'weights': weights[:12]}
        self.path, self.settings, self.seconds = path, settings, 0.0
        self.start: Scores = {}
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        saved = json.loads(path.read_text()) if path.is_file() else {}
        if saved.get('settings') == settings:
            self.start, self.rows, self.seconds = saved['start'], saved['rows'], saved['seconds']

    def save(self) -> None:
        """Write beside, then rename: a study that is stopped leaves no half of a file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = ('settings', 'start', 'rows', 'seconds')
        half = self.path.with_suffix('.part')
        half.write_text(json.dumps({name: getattr(self, name) for name in parts}) + '\n')
        half.rename(self.path)

    def trained(self) -> list[str]:
        """The rows there are, in the order of the table."""
        return [name for name in VARIANTS if self.rows.get(name)]

    def values(self, name: str, data: str, key: str, step: int | None = None) -> dict[str, float]:
        """By seed, a measure of a row after a step, by default its last."""
        if name == START:
            seeds = {seed for row in self.rows.values() for seed in row}
            return dict.fromkeys(sorted(seeds), self.start[data][key])
        found = {}
        for seed, row in self.rows.get(name, {}).items():
            last = str(step) if step is not None else max(row['scores'], key=int)
            found[seed] = row['scores'][last][data][key]
        return found

    def mean(self, name: str, data: str, key: str) -> float:
        """A measure of a row, the mean over its seeds."""
        if name == START:
            return self.start[data].get(key, np.nan)
        return float(np.mean(list(self.values(name, data, key).values())))

    def gain(self, name: str, data: str, key: str) -> np.ndarray:
        """What a row has more than the one it is compared with, by seed."""
        one, other = (self.values(n, data, key) for n in (name, VARIANTS[name].against))
        return np.array([one[seed] - other[seed] for seed in one if seed in other])


def significant(gain: np.ndarray) -> bool:
    """Whether differences by seed have a mean that another choice of seeds would hardly reverse:
    Student's t test of 95 %.
    """
    if len(gain) not in STUDENT:
        return False
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return bool(abs(gain.mean()) > STUDENT[len(gain)] * error)


def draw(results: Results, path: Path) -> None:
    """Draw the losses of the rows and what they came to, step by step, means over seeds."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout='constrained')
    for n, name in enumerate(results.trained()):
        rows = list(results.rows[name].values())
        style = {'label': name, 'color': f'C{n % 10}', 'lw': 1.3}
        curve = [
            (step, np.mean([row['curve'][step]['track'] for row in rows]))
            for step in range(min(len(row['curve']) for row in rows))
            if rows[0]['curve'][step]['source'] == 'people'
        ]
        if curve:
            steps, losses = zip(*curve, strict=True)
            smooth = [np.mean(losses[max(0, k - 7) : k + 1]) for k in range(len(losses))]
            axes[0].plot(steps, smooth, **style)
        for axis, (data, key) in zip(axes[1:], HEADLINE, strict=True):
            steps = sorted(map(int, rows[0]['scores']))
            found = [list(results.values(name, data, key, step).values()) for step in steps]
            values = [results.start[data][key], *map(np.mean, found)]
            spread = [0.0, *map(np.std, found)]
            axis.errorbar([0, *steps], values, spread, marker='o', ms=3, capsize=2, **style)
    axes[0].set(title='Loss of positions on people, mean of eight', xlabel='step', ylabel='px')
    for axis, (data, key) in zip(axes[1:], HEADLINE, strict=True):
        axis.set(title=f'Held-out {data}: {COLUMNS[key]}', xlabel='step', ylabel='%')
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def titles(data: str) -> list[str]:
    """Return the titles of the columns of a data set's tables, narrow enough for a page."""
    return [COLUMNS[key].replace('@', ' @') for key in MEASURED[data]]


def scores_table(results: Results, data: str) -> list[str]:
    """Lines of the table of a data set: the start, then means over the seeds of a row."""
    lines = [[START, '', '', *(f'{results.start[data][key]:.1f}' for key in MEASURED[data])]]
    for name in results.trained():
        means = (f'{results.mean(name, data, key):.1f}' for key in MEASURED[data])
        lines.append([name, VARIANTS[name].mixture, VARIANTS[name].embedding, *means])
    return markdown(['', 'people / others', 'embedding', *titles(data)], lines)


def gains_table(results: Results, data: str) -> list[str]:
    """Lines of the table of differences on a data set, each with its standard error over seeds."""
    lines = []
    for name in results.trained():
        cells = []
        for key in MEASURED[data]:
            gain = results.gain(name, data, key)
            if not len(gain):
                cells.append('')
                continue
            text = f'{gain.mean():+.1f}'
            if len(gain) > 1:
                text += f' ± {gain.std(ddof=1) / np.sqrt(len(gain)):.1f}'
            cells.append(f'**{text}**' if significant(gain) else text)
        lines.append([name, VARIANTS[name].against, *cells])
    return markdown(['', 'against', *titles(data)], lines)


def keypoints_table(results: Results) -> list[str]:
    """Lines of the table of PCK@0.1 by keypoint, the mean of left and right."""
    kinds = list(dict.fromkeys(name.rpartition('_')[2] for name in KEYPOINTS))
    lines = []
    for row in (START, *results.trained()):
        values = [
            [results.mean(row, PEOPLE, f'pck_0.1/{name}')
             for name in KEYPOINTS if name.endswith(kind)]
            for kind in kinds
        ]  # fmt: skip
        lines.append([row, *(f'{np.nanmean(sides):.1f}' for sides in values)])
    return markdown(['', *kinds], lines)


def chance(results: Results) -> str:
    """Say how many differences are larger than seeds explain, and how many would be by chance."""
    gains = [
        results.gain(name, data, key)
        for name in results.trained() for data, keys in MEASURED.items() for key in keys
    ]  # fmt: skip
    tested = [gain for gain in gains if len(gain) in STUDENT]
    if not tested:
        return 'One seed: nothing here tells a difference from chance.'
    found = sum(map(significant, tested))
    return (
        f'Bold: larger than other seeds would explain (t test of 95 %, paired by seed): {found} '
        f'of {len(tested)} differences, where chance alone would make about '
        f'{0.05 * len(tested):.0f} bold. A seed draws the training clips, the order and the '
        f'embedding; the held-out clips ({CLIPS[PEOPLE]} of people, {CLIPS[ANY]} of points of any '
        'kind) are the same for all, so the error over clips, which is larger, is not in ±. '
        'Nothing here ranks what a full training would give.'
    )


def page(results: Results, date: str) -> str:
    """Return the page over the results of a study."""
    settings = results.settings
    size = ' x '.join(map(str, settings['size']))
    counts = sorted({len(results.rows[name]) for name in results.trained()})
    seeds = ' or '.join(map(str, counts)) + (' seed' if counts[-1:] == [1] else ' seeds')
    absent = [name for name in VARIANTS if not results.rows.get(name)]
    published = [[name, f'{ar}', f'{yoga}'] for name, ar, yoga in PUBLISHED]
    return '\n'.join([
        '# Pose tracking: mixtures, losses, embedding', '',
        'Written by `train/pose_study.py` (`make pose`); do not edit. Each row goes on from the '
        f'shipped weights ({settings["weights"]}) for {settings["steps"]} steps of one clip of '
        f'{settings["scene"]["frames"]} frames at {size}; its scores are means over {seeds}. '
        'The first row is the shipped weights at this size, as they are. '
        'People/others: percent of the training clips that show rendered people, and of '
        'procedural clips with points of any kind. Embedding: whose points have numbers of '
        'keypoints, of which the network has an embedding: those of clips of people (pose), '
        'those of all clips (all), or nobody, and the network has none (absent).', '',
        f'## Held-out people: {CLIPS[PEOPLE]} clips of {FRAMES} frames', '',
        *scores_table(results, PEOPLE), '', MEANING[PEOPLE], '',
        f'## Held-out points of any kind: {CLIPS[ANY]} clips of {FRAMES} frames', '',
        *scores_table(results, ANY), '', MEANING[ANY], '',
        '## What each change does', '',
        'A row against the one that differs from it in one thing: mean difference over seeds ± '
        'its standard error, in points of percent. Rows of losses and embeddings saw the same '
        'clips in the same order as the row that they are compared with.', '',
        'Held-out people:', '', *gains_table(results, PEOPLE), '',
        'Held-out points of any kind:', '', *gains_table(results, ANY), '',
        '**How much of this is chance.** ' + chance(results), '',
        *([f'Not run: {", ".join(absent)}.', ''] if absent else []),
        '![Losses and accuracy by step](curves.png)', '',
        'Bars: standard deviation over seeds.', '',
        '## By keypoint: PCK@0.1 on held-out people', '', 'Left and right together.', '',
        *keypoints_table(results), '',
        '## Pictures', '',
        '![Held-out people in their last frame: truth above, tracked below](pictures.jpg)', '',
        'Held-out people in the last frame of their clips: the truth above, what the start '
        'tracked below; left orange, right blue, hidden keypoints hollow.', '',
        '## Published figures', '',
        '**Published**, not measured here, and another task: detectors of poses in single '
        'pictures, where ours is given where each keypoint is once and follows it.', '',
        *markdown(['PCK@0.2 (arXiv 2006.10204), %', 'AR data set', 'Yoga data set'], published),
        '',
        f'Measured on {date}: `make pose`, {results.seconds:.0f} s of one processor.', '',
    ])  # fmt: skip


def study(results: Results, sets: Mapping[str, list[Clip]], seeds: list[int], folder: Path):
    """Do what is missing, row by row; yields the results after each row."""
    values = {key: value for key, value in results.settings.items() if key != 'weights'}
    if not results.start:
        model = Run(read_config({**values, 'steps': 0}), folder, 'cpu').model.eval()
        results.start = measure(model, sets, ABSENT)
        sheet = pictures(model, sets[PEOPLE])[..., ::-1]
        cv2.imwrite(str(results.path.with_name('pictures.jpg')), sheet)
    steps = values['steps']
    bar = tqdm(total=len(seeds) * len(VARIANTS) * steps, unit='step', mininterval=5)
    with bar:
        for seed in seeds:
            made: dict[tuple[str, int], Clips] = {}
            for name, variant in VARIANTS.items():
                bar.set_description(f'seed {seed}, {name}')
                row = results.rows.setdefault(name, {})
                if str(seed) in row:
                    bar.update(steps)
                    continue
                began, scores, curve = time.process_time(), {}, []
                config = read_config({**values, **variant.changes, 'seed': seed})
                embedding = variant.embedding
                for step, losses, found in train(
                    config, folder, made, lambda model, e=embedding: measure(model, sets, e)
                ):
                    curve.append(losses)
                    if found is not None:
                        scores[str(step)] = found
                    bar.update()
                row[str(seed)] = {'scores': scores, 'curve': curve}
                results.seconds += time.process_time() - began
                yield results


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description='Ablations of pose tracking, and their page.')
    parser.add_argument('--config', type=Path, default=Path('config/pose_study.yaml'))
    parser.add_argument(
        '--runs', type=Path, default=Path('runs/pose'), help='of held-out clips [runs/pose]'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[5, 6, 7])
    parser.add_argument('--output', type=Path, default=Path('docs/results/pose'))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        settings = yaml.safe_load(args.config.read_text()) or {}
        args.output.mkdir(parents=True, exist_ok=True)
        results = Results(args.output / 'pose.json', settings)
        for _ in study(results, held_out(args.runs), args.seeds, args.runs / 'no checkpoint'):
            results.save()
            draw(results, args.output / 'curves.png')
            (args.output / 'README.md').write_text(page(results, time.strftime('%Y-%m-%d')))
    except (ValueError, OSError, DataError, yaml.YAMLError) as error:
        print(f'pose_study: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
