"""What pseudo-labels give (CoTracker3, tables 3 to 10): teachers one by one and all, rounds of
self-training, and the number of videos, each over several seeds.

    python train/label_study.py VIDEOS... --output runs/study --dataset davis_masks --data DAVIS

For every setting: label, fine-tune the real-time model, measure. What is there already is not done
again. The table goes to the terminal and into study.json: the mean over seeds and its spread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import yaml

from train.data.videos import find_videos

TRAIN = Path(__file__).parent


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
    parser.add_argument('--frames', type=int, default=96, help='of a labelled clip')
    parser.add_argument('--ray', help='for labelling')
    args = parser.parse_args()
    study = Study(args)
    rows = {'before': {0: study.measure(study.start)}}
    for seed in args.seeds:
        for name in args.teachers:
            rows.setdefault(f'{name} alone', {})[seed] = study.round([name], seed)[0]
        weights, teachers = study.start, list(args.teachers)
        for number in range(1, args.rounds + 1):
            title = f'all, round {number}'
            scores, weights = study.round(teachers, seed, start=weights)
            rows.setdefault(title, {})[seed] = scores
            teachers = [*args.teachers, weights]
        scores, _ = study.round(args.teachers, seed, together=True)
        rows.setdefault('all, together', {})[seed] = scores
        count = 1
        while count < len(study.videos):
            scores, _ = study.round(args.teachers, seed, videos=count)
            rows.setdefault(f'all, {count} videos', {})[seed] = scores
            count *= 2
    (args.output / 'study.json').write_text(json.dumps(rows, indent=1) + '\n')
    print(table(rows))


class Study:
    """Runs the three commands, each once."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.videos = [video.url for video in find_videos(args.videos)[0]]
        self.settings = yaml.safe_load(args.config.read_text())
        self.start = self.settings['start']

    def round(
        self,
        teachers: list[str],
        seed: int,
        start: str = '',
        videos: int = 0,
        together: bool = False,
    ) -> tuple[dict[str, float], str]:
        """Label, fine-tune and measure; the scores, and the weights."""
        start = start or self.start
        chosen = self.videos
        if videos:
            order = np.random.default_rng(seed).permutation(len(self.videos))
            chosen = [self.videos[i] for i in order[:videos]]
        stems = [Path(name).parent.name if Path(name).suffix else name for name in teachers]
        name = '+'.join(stems) + f'-{videos or "all"}' + '-together' * together + f'-seed{seed}'
        folder = self.args.output / name
        labels, run = folder / 'labels', folder / 'run'
        words = [*chosen, '--output', labels, '--seed', seed, '--frames', self.args.frames]
        words += ['--together'] * together
        words += ['--ray', self.args.ray] if self.args.ray else []
        call('pseudo_label.py', *words, '--teachers', *teachers)
        settings = {**self.settings, 'start': start, 'labels': str(labels), 'seed': seed}
        settings |= {'steps': self.args.steps} if self.args.steps else {}
        (folder / 'config.yaml').write_text(yaml.safe_dump(settings))
        weights = run / 'realtime.safetensors'
        if not weights.exists():
            call('train.py', '--config', folder / 'config.yaml', '--output', run)
        return self.measure(str(weights)), str(weights)

    def measure(self, weights: str) -> dict[str, float]:
        """The mean scores of a checkpoint, frame by frame."""
        path = self.args.output / 'scores' / f'{Path(weights).parent.parent.name}.json'
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            words = ['--dataset', self.args.dataset, '--data', self.args.data, '--output', path]
            call('evaluate.py', *words, '--mode', 'whole-video', '--checkpoint', weights)
        return json.loads(path.read_text())['results'][Path(weights).name]['mean']


def call(script: str, *words: object) -> None:
    """Run a command of this folder; SystemExit where it cannot be done."""
    done = subprocess.run([sys.executable, str(TRAIN / script), *map(str, words)])
    if done.returncode and (script, done.returncode) != ('pseudo_label.py', 2):
        raise SystemExit(done.returncode)


def table(rows: dict[str, dict[int, dict[str, float]]]) -> str:
    """Means over seeds, with their standard deviation where there are several."""
    names = list(rows['before'][0])
    lines = [f'{"":24}' + ''.join(f'{name:>24}' for name in names)]
    for title, seeds in rows.items():
        cells = []
        for name in names:
            values = [scores[name] for scores in seeds.values()]
            spread = f' +- {np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
            cells.append(f'{np.mean(values):.1f}{spread}')
        lines.append(f'{title:24}' + ''.join(f'{cell:>24}' for cell in cells))
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
