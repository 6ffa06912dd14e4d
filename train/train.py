"""Train any network of the family: one YAML file per run, exact resume, one process or many.

    python train/train.py --config config/train_realtime.yaml --output runs/realtime
    torchrun --nproc-per-node 8 train/train.py --config ... --output ...

With several processes each takes its own clips, and the gradients are averaged.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cotracker_ros import skeleton
from cotracker_ros.model import build_model, load_checkpoint
from cotracker_ros.model.checkpoint import (
    checkpoint_metadata,
    misfit,
    origin_of,
    read_metadata,
    read_state,
)
from cotracker_ros.model.config import Origin
from cotracker_ros.model.registry import shape_of
from cotracker_ros.visualise import contact_sheet, draw_tracks
from train.config import IMAGENET, TrainConfig, read_config
from train.data.batch import Clips
from train.data.clip import DataError
from train.data.loader import Batches, loader
from train.data.mixture import Source
from train.data.sources import mixture
from train.metrics import mean_scores, tapvid
from train.objectives import OBJECTIVES, Objective

KEYPOINTS = 'keypoints.table'  # end of the name of the embedding in a state dict
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class Run:
    """Weights, averaged weights, optimiser and step of a run."""

    def __init__(self, config: TrainConfig, folder: Path, device: str):
        """Raises ValueError for settings, files or folders that cannot be used, before any
        compute is spent.
        """
        self.config, self.folder, self.device = config, folder, device
        self.rank, self.ranks = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        torch.manual_seed(config.seed)
        # Where workers make the batches, they render on the CPU.
        self.render_on = 'cpu' if config.workers else device
        self.model = self.network()
        count = getattr(self.model.config, 'keypoints', 0)
        if 0 < count < len(skeleton.KEYPOINTS):
            raise ValueError(
                f'an embedding of {count} keypoints, but a body has {len(skeleton.KEYPOINTS)}'
            )
        self.source = self.data(config.seed)
        self.objective = self.build_objective().to(device)
        self.stepped: nn.Module = self.objective
        self.optimiser = torch.optim.AdamW(
            self.objective.groups(), config.lr, weight_decay=config.weight_decay
        )
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
        )
        self.step = 0
        path = folder / 'checkpoint.pt'
        if path.exists():
            self.restore(torch.load(path, map_location=device, weights_only=True))
        if self.ranks > 1:
            self.stepped = nn.parallel.DistributedDataParallel(self.objective)

    def network(self) -> nn.Module:
        """The network with the weights that the run begins with."""
        c, shape = self.config, dict(self.config.shape)
        if c.encoder:
            shape['encoder'] = c.encoder
        height, width = c.size or c.scene.size
        size = height, width
        try:
            begun = load_checkpoint(c.start, size) if c.start else None
            if begun is not None and begun.facts.name == c.network:
                shape = shape_of(begun) | shape  # goes on in the shape that it has
            model = build_model(c.network, size, **shape)
            if begun is not None:
                if fill(model, weights_for(model, begun)) and not self.rank:
                    told = 'knows no keypoints: their embedding begins fresh'
                    print(f'train: {c.start} {told}', file=sys.stderr)
                model.origin = begun.origin
            if c.encoder_weights:
                origin = begin_encoder(model.encoder, c.encoder_weights)
                provenance = f'encoder: {origin.provenance}'
                model.origin = model.origin.trained_on(origin.licence, provenance)
        except TypeError as error:
            raise ValueError(f'shape {shape} is not of {c.network}: {error}') from error
        except (OSError, KeyError, RuntimeError) as error:
            files, reason = c.encoder_weights or c.start, str(error).partition('\n')[0]
            raise ValueError(f'cannot begin with {files}: {reason}') from error
        return model

    def data(self, seed: int) -> Source:
        """What the run learns from, drawn from a seed, as the network wants its pictures."""
        facts = self.model.facts
        return mixture(self.config, seed, self.render_on, facts.image_size, facts.image_scale)

    def build_objective(self) -> Objective:
        """The objective of the run, on its network."""
        c = self.config
        name = c.objective or ('realtime' if self.model.facts.causal else 'windowed')
        if name not in OBJECTIVES:
            raise ValueError(f'no objective {name}; there are {", ".join(OBJECTIVES)}')
        return OBJECTIVES[name](self.model, c)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        c = self.config
        return {'network': c.network, 'encoder': c.encoder, 'objective': c.objective, **c.shape}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint; ValueError if it is of another model."""
        if saved['identity'] != self.identity:
            raise ValueError(
                f'{self.folder} holds a run of another model: {saved["identity"]}; '
                'choose another folder'
            )
        # The shape of the weights that a run began with is not in what it says of itself.
        if found := misfit(saved['model'], self.model.state_dict()):
            raise ValueError(f'{self.folder} holds a run of another model; {found}')
        model = {f'model.{name}': x for name, x in saved['model'].items()}
        self.objective.load_state_dict(model | saved['objective'])
        self.average.load_state_dict(saved['average'])
        self.optimiser.load_state_dict(saved['optimiser'])
        self.step = saved['step']
        self.model.origin = Origin(*saved['origin'])

    def save(self) -> None:
        """Write beside, then rename: a killed run never leaves half a checkpoint."""
        if self.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self.objective.state_dict()
        saved = {
            'model': self.model.state_dict(),
            'objective': {k: x for k, x in state.items() if not k.startswith('model.')},
            'average': self.average.state_dict(),
            'optimiser': self.optimiser.state_dict(),
            'step': self.step,
            'identity': self.identity,
            'origin': dataclasses.astuple(self.model.origin),
        }
        torch.save(saved, self.folder / 'checkpoint.part')
        (self.folder / 'checkpoint.part').rename(self.folder / 'checkpoint.pt')

    def publish(self) -> Path:
        """Write the averaged weights, as they ship, under the licences of what they began with
        and of the data, with their provenance.
        """
        c, weights = self.config, self.objective.published(self.average.module)
        whole = weights is self.average.module
        path = self.folder / f'{c.network if whole else "encoder"}.safetensors'
        provenance = f'{self.source.name}; {self.step} steps, seed {c.seed}'
        origin = self.model.origin.trained_on(c.licence, provenance)
        metadata = checkpoint_metadata(self.model, origin)
        if not whole:
            metadata['model'] = f'encoder of {metadata["model"]}'
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: x.cpu().contiguous() for name, x in weights.state_dict().items()},
            path,
            metadata={
                **metadata,
                'config': json.dumps(dataclasses.asdict(c)),
            },
        )
        return path

    def rate(self) -> float:
        """Learning rate against its peak: linear warm-up, then half a cosine to 2 %."""
        c = self.config
        progress = max(0.0, (self.step - c.warmup) / max(1, c.steps - c.warmup))
        rise = min(1.0, (self.step + 1) / max(1, c.warmup))
        return rise * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * progress)))

    def batches(self, source: Source, step: int = 0) -> Iterator[Clips]:
        """The batches of this process from a step on, on its device."""
        batches = Batches(source, step, self.rank, self.ranks)
        return (clips.to(self.device) for clips in loader(batches, self.config.workers))

    def out_of_time(self, end: float) -> bool:
        """Whether any process has no time left: all must stop at the same step."""
        over = torch.tensor(float(time.monotonic() >= end), device=self.device)
        if self.ranks > 1:
            dist.all_reduce(over)
        return over.item() > 0

    def fit(self, time_limit: float) -> None:
        """Train up to the last step or for `time_limit` seconds, whichever is first. Raises
        DataError for data that cannot be read.
        """
        c, end = self.config, time.monotonic() + time_limit
        batches = self.batches(self.source, self.step)
        writer = SummaryWriter(str(self.folder)) if self.rank == 0 else None
        bar = tqdm(total=c.steps, initial=self.step, mininterval=5, disable=self.rank > 0)
        shown: dict[str, float] = {}
        while self.step < c.steps and not self.out_of_time(end):
            clips = next(batches)
            losses = self.update(clips)
            self.step += 1
            bar.update()
            for measure, value in losses.items():
                name = f'{clips.source}/{measure}'
                shown[name] = shown.get(name, value) * 0.97 + 0.03 * value
            if self.step % 20 == 0 and writer:
                bar.set_postfix_str('  '.join(f'{k} {v:.3f}' for k, v in shown.items()))
                for name, value in shown.items():
                    writer.add_scalar(name, value, self.step)
            if self.step % c.save == 0:
                self.save()
            if writer and c.evaluate and self.step % c.evaluate == 0:
                self.evaluate(writer)
        self.save()
        bar.close()
        if self.rank == 0:
            if self.step == c.steps:
                self.objective.finish(self.average.module, batches)
            print(f'wrote {self.publish()}')

    def update(self, clips: Clips) -> dict[str, float]:
        """One step on a batch; its losses and measures."""
        c = self.config
        for group in self.optimiser.param_groups:
            group['lr'] = group['peak'] * self.rate()
        first = (self.step * self.ranks + self.rank) * len(clips.video)
        losses = self.stepped(clips, self.step, first)
        self.optimiser.zero_grad(set_to_none=True)
        losses['total'].backward()
        for group in self.optimiser.param_groups:
            nn.utils.clip_grad_norm_(group['params'], c.clip)
        self.optimiser.step()
        self.objective.hold()
        self.average.update_parameters(self.model)
        return {name: value.item() for name, value in losses.items()}

    @torch.no_grad()
    def evaluate(self, writer: SummaryWriter) -> dict[str, float]:
        """Track clips that training never sees, from their first frames; scores and pictures go
        to TensorBoard.
        """
        model, scores, sheets = self.average.module, [], []
        training = model.training
        model.eval()
        unseen = self.data(self.config.seed + 1_000)
        batches = self.batches(unseen)
        names = ('video', 'tracks', 'visible', 'known', 'query_frame', 'keypoint')
        clips = (
            [getattr(clips, name)[b] for name in names]
            for clips in batches
            for b in range(len(clips.video))
        )
        for video, tracks, visible, known, t, keypoint in islice(clips, self.config.evaluated):
            # Points of which nothing is known fill up a batch: nobody sees them anywhere.
            asked = visible[t, torch.arange(len(t), device=t.device)].nonzero()[:, 0]
            t, keypoint = t[asked], keypoint[asked]
            tracks, visible, known = tracks[:, asked], visible[:, asked], known[:, asked]
            queries = torch.cat(
                [t[:, None].float(), tracks[t, torch.arange(len(t), device=t.device)]], 1
            )
            numbers = {} if model.keypoints is None else {'keypoints': keypoint}
            found = model.track(video.movedim(-1, 1).float(), queries, **numbers)
            seen = model.facts.visible_whole(found.visibility, found.confidence) & known
            seen = seen.cpu().numpy()
            xy, frames = found.xy.cpu().numpy(), video.cpu().numpy()
            truth, visible = tracks.cpu().numpy(), visible.cpu().numpy()
            size = frames.shape[1:3]
            scores.append(tapvid(t.cpu().numpy(), truth, visible, xy, seen, size))
            for at in (len(frames) // 2, len(frames) - 1):
                past = slice(0, at + 1)
                sheets.append(draw_tracks(frames[at], xy[past], seen[past], np.arange(len(t))))
        mean = mean_scores(scores)
        for name, value in mean.items():
            writer.add_scalar(f'unseen clips/{name}', value, self.step)
        writer.add_image('unseen clips', contact_sheet(sheets, 2), self.step, dataformats='HWC')
        model.train(training)
        return mean


def weights_for(model: nn.Module, begun: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network for another, whose encoder keeps its own if it is of another
    kind.
    """
    given, own = begun.state_dict(), model.state_dict()
    if shape_of(begun).get('encoder') == shape_of(model).get('encoder'):
        return given
    own = {name: x for name, x in own.items() if name.startswith('encoder.')}
    return own | {name: x for name, x in given.items() if not name.startswith('encoder.')}


def fill(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    """Give a network the weights of another of its shape; an embedding of keypoints that the other
    had not begins fresh. Returns whether it does. Raises RuntimeError for others, or where the
    network has no embedding.
    """
    fresh = {name: x for name, x in model.state_dict().items() if name.endswith(KEYPOINTS)}
    lost = [name for name in state if name.endswith(KEYPOINTS) and name not in fresh]
    if lost:
        count = len(state[lost[0]])
        raise RuntimeError(f'it has an embedding of {count} keypoints, the shape has none')
    _load(model, fresh | state)
    return bool(fresh.keys() - state.keys())


def _load(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    if found := misfit(state, module.state_dict()):
        raise RuntimeError(f'its keys do not fit; {found}')
    module.load_state_dict(state)


def begin_encoder(encoder: nn.Module, weights: str) -> Origin:
    """Fill a feature network from the file of a contrastive stage, or with `imagenet`; returns
    the origin of the weights. Raises ValueError, OSError or RuntimeError where that cannot be.
    """
    if weights == IMAGENET:
        if not hasattr(encoder, 'begin_with_imagenet'):
            raise ValueError(f'{type(encoder).__name__} has no weights of ImageNet')
        return encoder.begin_with_imagenet()
    path = Path(weights)
    _load(encoder, read_state(path))
    return origin_of(path, read_metadata(path))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what comes next, also in processes forked from here.

    PyTorch takes and frees tens of MB in every operation on a CPU. By default each is mapped and
    given back, and every page of it faults anew: two fifths of a training's time where faults are
    dear, as in a virtual machine.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # another C library has none
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', type=Path, required=True)
    parser.add_argument(
        '--output',
        type=Path,
        required=True,
        help='folder of the run; an earlier run in it is resumed',
    )
    parser.add_argument(
        '--time-limit',
        type=float,
        default=math.inf,
        help='seconds, then a checkpoint and a good end',
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    device = args.device
    # A sharp soft arg-max leaves gradients too small for normal floats, and a CPU computes with
    # those a hundred times slower.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    if 'RANK' in os.environ:  # started by torchrun
        if device == 'cuda':
            device = f'cuda:{os.environ["LOCAL_RANK"]}'
            torch.cuda.set_device(device)
        dist.init_process_group('nccl' if device.startswith('cuda') else 'gloo')
    try:
        config = read_config(yaml.safe_load(args.config.read_text()) or {})
        run = Run(config, args.output, device)
    except (OSError, ValueError, DataError, yaml.YAMLError) as error:
        parser.error(str(error))
    try:
        run.fit(args.time_limit)
    except DataError as error:
        sys.exit(f'train: step {run.step}: {error}')
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == '__main__':
    main()
