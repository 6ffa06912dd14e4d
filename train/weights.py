"""Weights by one recipe: the stages of a folder, in the order of their names.

    python train/weights.py config/weights --output runs/weights

A stage is one YAML: a run of train/train.py, or the mean of weights,

    average: {runs/weights/2_tracker/realtime.safetensors: 0.75, FILE: 0.25}

Stage NAME.yaml leaves its weights in OUTPUT/NAME, where later stages find them by their path. What
is done is not done again: a stage that was stopped goes on, one whose settings or inputs have
changed since is refused, so that weights are never of two recipes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cotracker_ros.model.config import Origin
from cotracker_ros.signals import end_at_sigterm
from train.config import IMAGENET, TrainConfig, read_config
from train.programs import run_to_end

TRAIN = Path(__file__).with_name('train.py')
INPUTS = ('start', 'encoder_weights')  # settings that name weights


def average(parts: Mapping[str, float], output: Path) -> None:
    """Write the weighted mean of .safetensors files of one network, under the licences of all.
    Shares are relative. Raises ValueError for files that do not belong together.
    """
    if not parts or min(parts.values()) < 0 or not sum(parts.values()):
        raise ValueError(f'average needs files with positive shares, not {dict(parts)}')
    total, mean, metadata, origin = sum(parts.values()), {}, {}, None
    for path, share in parts.items():
        state = load_file(path)
        with safe_open(path, 'pt') as file:
            noted = file.metadata() or {}
        network = {key: noted.get(key) for key in ('model', 'shape')}
        shapes = {name: x.shape for name, x in state.items()}
        if mean and (network != metadata or shapes != {name: x.shape for name, x in mean.items()}):
            raise ValueError(f'{path} is of another network than {next(iter(parts))}')
        for name, x in state.items():
            part = x.double() * (share / total) if x.is_floating_point() else x
            # Counters of batches are those of the first file.
            mean[name] = part if name not in mean else mean[name] + part * x.is_floating_point()
        metadata = network
        provenance = f'{share / total:.0%} of ({noted.get("provenance", Path(path).name)})'
        licence = noted.get('licence', 'unknown')
        if origin is None:
            origin = Origin(licence, provenance)
        else:
            joined = origin.trained_on(licence, provenance)
            origin = Origin(joined.licence, f'{origin.provenance} and {provenance}')
    kinds = {name: x.dtype for name, x in load_file(next(iter(parts))).items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: x.to(kinds[name]) for name, x in mean.items()},
        output,
        metadata={
            **{key: value for key, value in metadata.items() if value},
            'licence': origin.licence,
            'provenance': f'mean of {origin.provenance}',
        },
    )


class Stage:
    """One YAML of the recipe, and what it has left in its folder."""

    def __init__(self, path: Path, output: Path):
        """Raises ValueError for settings that cannot be used."""
        self.path, self.folder = path, output / path.stem
        self.values: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
        self.parts: dict[str, float] | None = self.values.get('average')
        if self.parts is None:
            config: TrainConfig = read_config(self.values)
            self.steps = config.steps
            named = (getattr(config, key) for key in INPUTS)
            self.inputs = [name for name in named if name and name != IMAGENET]
        elif self.values.keys() != {'average'}:
            raise ValueError(f'{path}: beside average there is nothing else to set')
        else:
            self.inputs = list(self.parts)

    @property
    def record(self) -> Path:
        """What the stage was made from, written when it is done."""
        return self.folder / 'stage.json'

    @property
    def made_from(self) -> dict[str, Any]:
        """Settings, and hashes of the weights it begins with."""
        hashes = {}
        for name in self.inputs:
            if not Path(name).is_file():
                raise ValueError(f'{self.path}: no weights at {name}')
            hashes[name] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        return {'settings': self.values, 'inputs': hashes}

    def done(self) -> bool:
        """Whether its weights are there. Raises ValueError where they are of other settings or
        other inputs.
        """
        if not self.record.is_file():
            return False
        if json.loads(self.record.read_text()) != self.made_from:
            raise ValueError(
                f'{self.path} or what it begins with has changed since {self.folder} was made: '
                'delete that folder, and those of the stages after it, to make it again'
            )
        return True

    @property
    def weights(self) -> Path:
        """The file that the stage leaves."""
        found = sorted(self.folder.glob('*.safetensors'))
        if len(found) != 1:
            raise ValueError(f'{self.folder} holds {len(found)} files of weights instead of one')
        return found[0]

    def run(self, processes: int, time_limit: float | None) -> bool:
        """Make its weights; False where the time was over before they were finished."""
        made_from = self.made_from
        if self.parts is not None:
            average(self.parts, self.folder / Path(next(iter(self.parts))).name)
        else:
            launch = [sys.executable]
            if processes > 1:
                launch += ['-m', 'torch.distributed.run', f'--nproc-per-node={processes}']
            words = [str(TRAIN), '--config', str(self.path), '--output', str(self.folder)]
            if time_limit is not None:
                words += ['--time-limit', str(time_limit)]
            status = run_to_end([*launch, *words])
            if status:
                raise RuntimeError(f'{self.path}: training ended with status {status}')
            saved = torch.load(
                self.folder / 'checkpoint.pt', map_location='cpu', weights_only=True, mmap=True
            )
            if saved['step'] < self.steps:
                return False
        self.record.write_text(json.dumps(made_from, indent=1) + '\n')
        return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 where all stages are done, 3 where time was
    over before.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('stages', type=Path, help='folder of YAML files')
    parser.add_argument('--output', type=Path, default=Path('runs/weights'), help='[runs/weights]')
    parser.add_argument('--processes', type=int, default=1, help='of each training, by torchrun')
    parser.add_argument('--time-limit', type=float, help='seconds, of all stages together')
    parser.add_argument('--publish', type=Path, help="where the last stage's weights are copied")
    args = parser.parse_args(arguments)
    end = None if args.time_limit is None else time.monotonic() + args.time_limit
    try:
        files = sorted(args.stages.glob('*.yaml'))
        if not files:
            raise ValueError(f'{args.stages}: no *.yaml in it')
        stages = [Stage(path, args.output) for path in files]
        for stage in stages:
            if stage.done():
                print(f'{stage.path.stem}: done before')
                continue
            left = None if end is None else max(0.0, end - time.monotonic())
            if not stage.run(args.processes, left):
                print(f'{stage.path.stem}: stopped; the same command goes on')
                return 3
            print(f'{stage.path.stem}: {stage.weights}')
        if args.publish is not None:
            args.publish.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stages[-1].weights, args.publish)
            print(f'published {args.publish}')
    except (OSError, ValueError, RuntimeError, yaml.YAMLError) as error:
        print(f'weights: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('weights: stopped; the same command goes on', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    end_at_sigterm()
    raise SystemExit(main())
