"""What pseudo-labels give (CoTracker3, tables 3 to 10): teachers one by one and all, rounds of
self-training, and the number of videos, each over several seeds.

    python train/label_study.py VIDEOS... --output runs/study --dataset selection --data ../shared

For every row and seed: label, fine-tune the real-time model, measure. A seed draws queries,
teachers and training clips, and what `selection` renders; each score is compared with that of the
weights before, measured with the same seed. What is there already is not done again, so a study
that was stopped goes on by the same command. study.json and study.md (the table) hold the rows
that are done; study.png is drawn at the end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import yaml

from cotracker_ros.signals import end_at_sigterm
from export.reporting import markdown
from train.data.storage import Folder
from train.data.videos import find_videos
from train.programs import run_to_end

TRAIN = Path(__file__).parent
BEFORE = 'before'

Scores = dict[str, float]
Rows = dict[str, dict[int, Scores]]  # by title and seed


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('videos', nargs='+')
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--dataset', required=True, help='as of train/evaluate.py')
    parser.add_argument('--data', required=True)
    parser.add_argument('--config', type=Path, default=Path('config/finetune_realtime.yaml'))
    parser.add_argument('--teachers', nargs='+', default=['realtime', 'dis-flow', 'lucas-kanade'])
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3])
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--steps', type=int, help="of every fine-tuning [the config's]")
    parser.add_argument(
        '--labelling', default='--size 512', help='words for pseudo_label.py [--size 512]'
    )
    args = parser.parse_args()
    study = Study(args)
    rows: Rows = {}
    for seed in args.seeds:
        for title, scores in study.rows(seed):
            rows.setdefault(title, {})[seed] = scores
            study.report(rows)
    print(table(rows))
    draw(rows, len(study.videos), args.output / 'study.png')


class Study:
    """Runs the three commands, each once."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.videos = [video.url for video in find_videos(args.videos)[0]]
        self.settings = yaml.safe_load(args.config.read_text())
        self.network = self.settings.get('network', 'realtime')

    def rows(self, seed: int) -> Iterator[tuple[str, Scores]]:
        """The rows of a seed as they are done; one that cannot be fine-tuned is reported and left
        out.
        """
        teachers, start = self.args.teachers, Path(self.settings['start'])
        yield BEFORE, self.measure(start, self.args.output / BEFORE, seed)
        everything, weights = None, start
        for number in range(1, self.args.rounds + 1):
            used = teachers if number == 1 else [*teachers, str(weights)]
            title = f'all, round {number}'
            labels = self.label(title, seed, used)
            tuned = self.finetune(title, seed, labels, weights)
            if tuned is None:
                break
            everything, weights = everything or labels, tuned
            yield title, self.measure(tuned, self.folder(title, seed), seed)
        for name in teachers:
            title = f'{name} alone'
            yield from self.row(title, seed, self.label(title, seed, [name]))
        title = 'all, together'
        yield from self.row(title, seed, self.label(title, seed, teachers, '--together'))
        order = np.random.default_rng(seed).permutation(len(self.videos))
        count = 1
        while everything and count < len(self.videos):
            title = f'all, {count} video' + 's' * (count > 1)
            chosen = {self.videos[i] for i in order[:count]}
            labels = self.folder(title, seed) / 'labels'
            take(everything, chosen, labels)
            yield from self.row(title, seed, labels)
            count *= 2

    def folder(self, title: str, seed: int) -> Path:
        """Where the files of a row are."""
        return self.args.output / f'seed {seed}' / title

    def label(self, title: str, seed: int, teachers: list[str], *more: str) -> Path:
        """Label all videos; the folder of the labels."""
        labels = self.folder(title, seed) / 'labels'
        words = [*self.videos, '--output', labels, '--seed', seed, *more]
        words += shlex.split(self.args.labelling)
        if not call('pseudo_label.py', *words, '--teachers', *teachers, fine=(0, 2)):
            raise SystemExit(f'label_study: {title}, seed {seed}: cannot be labelled')
        return labels

    def finetune(self, title: str, seed: int, labels: Path, start: Path) -> Path | None:
        """Fine-tune from weights on; the new ones, or None where that cannot be done, as with
        too few labels.
        """
        folder = self.folder(title, seed)
        settings = {**self.settings, 'start': str(start), 'labels': str(labels), 'seed': seed}
        settings |= {'steps': self.args.steps} if self.args.steps else {}
        config, run = folder / 'config.yaml', folder / 'run'
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(settings))
        weights = run / f'{self.network}.safetensors'
        if not weights.exists() and not call('train.py', '--config', config, '--output', run):
            print(f'label_study: {title}, seed {seed}: cannot be fine-tuned', file=sys.stderr)
            return None
        return weights

    def row(self, title: str, seed: int, labels: Path) -> Iterator[tuple[str, Scores]]:
        """Fine-tune the weights before, and measure."""
        tuned = self.finetune(title, seed, labels, Path(self.settings['start']))
        if tuned is not None:
            yield title, self.measure(tuned, self.folder(title, seed), seed)

    def measure(self, weights: Path, folder: Path, seed: int) -> Scores:
        """The mean scores of a checkpoint, frame by frame."""
        path = folder / f'scores {seed}.json'
        if not path.exists():
            words = ['--dataset', self.args.dataset, '--data', self.args.data, '--seeds', seed]
            words += ['--mode', 'whole-video', '--no-baselines', '--checkpoint', weights]
            if not call('evaluate.py', *words, '--output', path):
                raise SystemExit(f'label_study: {weights} cannot be measured')
        return json.loads(path.read_text())['results'][weights.name]['mean']

    def report(self, rows: Rows) -> None:
        """Write what there is so far."""
        (self.args.output / 'study.json').write_text(json.dumps(rows, indent=1) + '\n')
        (self.args.output / 'study.md').write_text(table(rows) + '\n')


def take(labels: Path, videos: set[str], target: Path) -> None:
    """Link the labelled clips of some videos into a folder of their own: a teacher's labels of a
    clip do not depend on the other videos.
    """
    lines = (labels / 'manifest.jsonl').read_text().splitlines()
    chosen = {clip['id'] for clip in map(json.loads, lines) if clip['video'] in videos}
    for name in Folder(str(labels)).names('clips', '.npz'):
        link = target / name
        if link.stem in chosen and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(labels / name)


def call(script: str, *words: object, fine: tuple[int, ...] = (0,)) -> bool:
    """Run a command of this folder; whether its exit status is one of the fine ones."""
    return run_to_end([sys.executable, str(TRAIN / script), *map(str, words)]) in fine


def gains(rows: Rows, title: str, measure: str) -> tuple[float, float, int]:
    """How much better than before a row is: mean over seeds, the mean's standard error (NaN of
    a single seed), and how many seeds.
    """
    seeds = [seed for seed in rows[title] if seed in rows[BEFORE]]
    gain = [rows[title][seed][measure] - rows[BEFORE][seed][measure] for seed in seeds]
    spread = float(np.std(gain, ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float('nan')
    return float(np.mean(gain)), spread, len(gain)


def table(rows: Rows) -> str:
    """Scores before, then what each row gains, with standard errors over seeds."""
    measures = list(next(iter(rows[BEFORE].values())))
    first = [np.mean([s[m] for s in rows[BEFORE].values()]) for m in measures]
    body = [[BEFORE, *(f'{x:.1f}' for x in first), str(len(rows[BEFORE]))]]
    for title in rows:
        if title != BEFORE:
            found = [gains(rows, title, m) for m in measures]
            cells = [f'{x:+.1f}' + (f' ± {e:.1f}' if e == e else '') for x, e, _ in found]
            body.append([title, *cells, str(found[0][2])])
    return '\n'.join(markdown(['', *measures, 'seeds'], body))


def draw(rows: Rows, videos: int, path: Path) -> None:
    """Draw the gains of the headline measure: against the number of videos, and of every row."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    scores = next(iter(rows[BEFORE].values()))
    measure = 'selection' if 'selection' in scores else next(iter(scores))
    found = {title: gains(rows, title, measure)[:2] for title in rows if title != BEFORE}
    counts = {'all, round 1': videos}
    counts |= {t: int(t.split()[1]) for t in found if t.endswith(('video', 'videos'))}
    curve = sorted((counts[title], *found[title]) for title in counts if title in found)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout='constrained')
    left.axhline(0, color='0.6', linewidth=1)
    if curve:
        x, gain, spread = zip(*curve, strict=True)
        left.errorbar(x, gain, np.nan_to_num(spread), fmt='o-', capsize=3)
        left.set_xscale('log', base=2)
        left.xaxis.set_major_formatter('{x:g}')
    left.set(xlabel='videos', ylabel=f'{measure}: gain, points')
    others = [title for title in found if title == 'all, round 1' or title not in counts]
    right.axvline(0, color='0.6', linewidth=1)
    if others:
        gain, spread = zip(*(found[title] for title in others), strict=True)
        right.errorbar(gain, range(len(others)), xerr=np.nan_to_num(spread), fmt='o', capsize=3)
    right.set_yticks(range(len(others)), others)
    right.invert_yaxis()
    right.set_xlabel('gain, points; bars: standard error over seeds')
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == '__main__':
    end_at_sigterm()
    main()
