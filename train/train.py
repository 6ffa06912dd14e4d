"""Train the real-time tracker on procedural video: one YAML file per run, exact resume.

python train/train.py --config config/train_realtime.yaml --output runs/realtime

The encoder comes from the contrastive stage and stays as it is; the refiner learns on its
features. A batch is used twice: first the tracker runs through the clips frame by frame without
gradient, as it will on a robot, and what every frame's search started from is kept; then all
frames are refined again in parallel from there, with gradient. So the model learns from its own
errors at the cost of one pass.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from cotracker_ros.model.realtime import (
    Estimate,
    Masks,
    Motion,
    RealtimeConfig,
    RealtimeTracker,
    build_realtime,
)
from train.losses import LossConfig, tracking_loss
from train.procedural import Clips, SceneConfig
from train.stream import ClipStream, StreamConfig, loader


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run; the groups are those of the files named."""

    encoder: str = ''  # weights of the contrastive stage
    start: str = ''  # published weights to go on from instead
    steps: int = 4000
    seed: int = 1
    lr: float = 5e-4
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.998
    iterations: int = 3
    # chance per frame and point that the search starts near the truth; 1 during warm-up
    lead: float = 0.15
    drift: tuple[float, float] = (0.3, 8.0)  # px, how far off such a start is, log-uniform
    workers: int = 1  # processes that render
    save: int = 200  # steps between checkpoints
    calibration: int = 24  # batches at the end on which the probabilities are set right
    scene: SceneConfig = SceneConfig(frames=20)  # noqa: RUF009 (frozen)
    stream: StreamConfig = StreamConfig()  # noqa: RUF009 (frozen)
    loss: LossConfig = LossConfig()  # noqa: RUF009 (frozen)
    model: RealtimeConfig = RealtimeConfig()  # noqa: RUF009 (frozen)


def read_config(values: Mapping[str, Any], kind: type = TrainConfig, where: str = '') -> Any:
    """A config from nested mappings. Raises ValueError naming a key that doesn't exist."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ValueError(f'unknown key {where}{key}; there are: {", ".join(fields)}')
    known = {}
    for key, value in values.items():
        default = getattr(kind(), key)
        if dataclasses.is_dataclass(default):
            value = read_config(value, type(default), f'{where}{key}.')
        known[key] = (
            tuple(value)
            if isinstance(value, list)
            else type(default)(value)
            if isinstance(default, (int, float))
            else value
        )
    return kind(**known)


class Recorded(NamedTuple):
    """What every frame's search started from: Motion and recent templates (G, F, N, levels, C),
    age (G, F, N).
    """

    motion: Motion
    template: Tensor
    recent: Tensor
    age: Tensor


@torch.no_grad()
def encode(model: RealtimeTracker, clips: Clips) -> list[Tensor]:
    """Features of all frames, per level (G, F, C, h, w)."""
    device = clips.video.device.type
    image = (
        clips.video.flatten(0, 1)
        .movedim(-1, 1)
        .float()
        .contiguous(memory_format=torch.channels_last)
    )
    with torch.autocast(device, torch.bfloat16):
        features = model.encoder(image)
    return [f.contiguous().unflatten(0, clips.video.shape[:2]) for f in features]


@torch.no_grad()
def roll_out(
    model: RealtimeTracker,
    features: list[Tensor],
    clips: Clips,
    config: TrainConfig,
    lead: float,
    rng: torch.Generator,
) -> Recorded:
    """Run through the clips as on a stream; with chance `lead` a point's search starts near the
    truth instead.
    """
    count, frames, points = clips.visible.shape
    device = clips.video.device
    window, iterations = model.config.window, config.iterations
    past = [
        torch.zeros(count, points, window - 1, model.refiner.cache_width, device=device)
        for _ in range(iterations)
    ]
    xy = velocity = torch.zeros(count, points, 2, device=device)
    visibility = confidence = torch.zeros(count, points, device=device)
    template = recent = torch.zeros(
        count, points, len(features), model.config.features, device=device
    )
    rows = []
    low, high = config.drift
    for t in range(frames):
        now, begun = clips.query_frame == t, clips.query_frame <= t
        here, before = clips.tracks[:, t], clips.tracks[:, max(t - 1, 0)]
        current = [f[:, t] for f in features]
        # Near the truth: off by an error that is small for most points, with a velocity that is
        # off likewise.
        off = low * (high / low) ** torch.rand(count, points, 1, generator=rng, device=device)
        error = off * torch.randn(count, points, 2, generator=rng, device=device)
        led = (torch.rand(count, points, generator=rng, device=device) < lead) & begun & ~now
        slow = 0.5 * off * torch.randn(count, points, 2, generator=rng, device=device)
        earlier = clips.tracks[:, max(t - 2, 0)]
        xy = torch.where(led[..., None], before + error, xy)
        velocity = torch.where(led[..., None], before - earlier + slow, velocity)
        first = model.describe(current, here)
        xy, velocity = torch.where(now[..., None], here, xy), velocity * ~now[..., None]
        template = torch.where(now[..., None, None], first, template)
        recent = torch.where(now[..., None, None], first, recent)
        visibility, confidence = (
            torch.where(now, 1.0, visibility),
            torch.where(now, 1.0, confidence),
        )
        age = t - clips.query_frame
        motion = Motion(*(x[:, None] for x in (xy, velocity, visibility, confidence)))
        rows.append((*motion, template[:, None], recent[:, None], age[:, None]))

        maps = model.correlate(current, torch.stack([template, recent], 2)[:, None])
        masks = Masks.build(age[:, None], begun[:, None], window)
        estimates, past = model.refiner(maps, motion, masks, past, iterations)
        result, seen, sure = (x[:, 0] for x in estimates[-1])
        result = torch.where(now[..., None], here, result)
        visibility, confidence = (
            torch.where(now, 1.0, seen.sigmoid()),
            torch.where(now, 1.0, sure.sigmoid()),
        )
        velocity = (result - xy) * ~now[..., None]
        recent = model.remember(recent, model.describe(current, result), visibility, confidence)
        xy = result
    columns = [torch.cat(x, 1) for x in zip(*rows, strict=True)]
    return Recorded(Motion(*columns[:4]), *columns[4:])


def refine_all(
    model: RealtimeTracker, features: list[Tensor], record: Recorded, iterations: int
) -> list[Estimate]:
    """Refine all frames in parallel from the recorded starts: every iteration's estimate, (G,
    F, N, ...).
    """
    count, _, points = record.age.shape
    with torch.no_grad():
        maps = model.correlate(
            [f.flatten(0, 1) for f in features], torch.stack([record.template, record.recent], 3)
        )
    masks = Masks.build(record.age, record.age >= 0, model.config.window)
    empty = torch.zeros(
        count, points, model.config.window - 1, model.refiner.cache_width, device=record.age.device
    )
    return model.refiner(maps, record.motion, masks, [empty] * iterations, iterations)[0]


def clip_loss(
    model: RealtimeTracker,
    features: list[Tensor],
    clips: Clips,
    record: Recorded,
    config: TrainConfig,
) -> dict[str, Tensor]:
    """The losses of all frames and, beside them, two measures of the result."""
    estimates = refine_all(model, features, record, config.iterations)
    counted = record.age > 0
    losses = tracking_loss(
        estimates, clips.tracks, clips.visible, counted, record.motion.xy, config.loss
    )
    with torch.no_grad():
        miss = (estimates[-1].xy - clips.tracks).norm(dim=-1)
        seen = counted & clips.visible
        losses['within 3 px'] = (miss[seen] < 3).float().mean()
        losses['visibility right'] = (
            ((estimates[-1].visibility > 0) == clips.visible)[counted].float().mean()
        )
    return losses


def intercept(logits: Tensor, target: Tensor) -> Tensor:
    """The constant that, added to the logits, makes their mean probability the share of
    `target`.
    """
    low, high = logits.new_tensor(-20.0), logits.new_tensor(20.0)
    for _ in range(40):  # bisection: the mean grows with the constant
        middle = (low + high) / 2
        below = (logits + middle).sigmoid().mean() < target.float().mean()
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


class Run:
    """Weights, averaged weights, optimiser and step of a run."""

    def __init__(self, config: TrainConfig, folder: Path, device: str):
        self.config, self.folder, self.device = config, folder, device
        torch.manual_seed(config.seed)
        self.model = build_realtime(image_size=(320, 512), config=config.model).to(device)
        self.model.encoder.eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.model.refiner.parameters(), config.lr, weight_decay=config.weight_decay
        )
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model.refiner, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
        )
        self.step = 0
        path = folder / 'checkpoint.pt'
        if path.exists():
            self.restore(torch.load(path, map_location=device, weights_only=True))
        elif config.start:
            self.model.load_state_dict(load_file(config.start, device))
            self.average.module.load_state_dict(self.model.refiner.state_dict())
        elif config.encoder:
            self.model.encoder.load_state_dict(
                torch.load(config.encoder, map_location=device, weights_only=True)['encoder']
            )

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint; ValueError if it is of another run or model."""
        if saved['model_config'] != dataclasses.asdict(self.config.model):
            raise ValueError(
                f'{self.folder} holds a run of another model: {saved["model_config"]}; '
                'choose another folder'
            )
        self.model.load_state_dict(saved['model'])
        self.average.load_state_dict(saved['average'])
        self.optimiser.load_state_dict(saved['optimiser'])
        self.step = saved['step']

    def save(self) -> None:
        """Write beside, then rename: a killed run never leaves half a checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            'model': self.model.state_dict(),
            'average': self.average.state_dict(),
            'optimiser': self.optimiser.state_dict(),
            'step': self.step,
            'model_config': dataclasses.asdict(self.config.model),
        }
        torch.save(state, self.folder / 'checkpoint.part')
        (self.folder / 'checkpoint.part').rename(self.folder / 'checkpoint.pt')

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Clips]) -> None:
        """Make the probabilities that the tracker shows those of the data.

        The balanced losses teach visibility and confidence as if both answers were equally
        frequent. Here a constant is added to each, on the way out only, so that on fresh clips,
        tracked as on a stream, the mean probability is the share of true answers: the maximum
        likelihood of a constant.
        """
        tracker = copy.deepcopy(self.model)
        tracker.refiner = self.average.module
        rng = torch.Generator(self.device)
        answers: list[list[Tensor]] = [[], [], [], []]
        for clips in batches:
            features = encode(tracker, clips)
            record = roll_out(tracker, features, clips, self.config, 0.0, rng)
            last = refine_all(tracker, features, record, self.config.iterations)[-1]
            counted, seen = record.age > 0, (record.age > 0) & clips.visible
            near = (last.xy - clips.tracks).norm(dim=-1) < self.config.loss.confident
            found = (
                last.visibility[counted],
                clips.visible[counted],
                last.confidence[seen],
                near[seen],
            )
            for column, value in zip(answers, found, strict=True):
                column.append(value)
        visibility, visible, confidence, near = (torch.cat(x) for x in answers)
        self.model.calibration[0] = intercept(visibility, visible)
        self.model.calibration[1] = intercept(confidence, near)

    def publish(self) -> Path:
        """Write the averaged weights with their provenance, as they ship."""
        path = self.folder / 'realtime.safetensors'
        refiner = {
            f'refiner.{name}': value for name, value in self.average.module.state_dict().items()
        }
        weights = {**self.model.state_dict(), **refiner}
        save_file(
            {name: value.cpu().contiguous() for name, value in weights.items()},
            path,
            metadata={
                'model': 'realtime',
                'licence': 'Apache-2.0',
                'provenance': f'procedural video only; {self.step} steps, seed {self.config.seed}',
                'config': json.dumps(dataclasses.asdict(self.config)),
            },
        )
        return path

    def rate(self) -> float:
        """Learning rate: linear warm-up, then half a cosine to 2 %."""
        c = self.config
        progress = max(0.0, (self.step - c.warmup) / max(1, c.steps - c.warmup))
        return (
            c.lr
            * min(1.0, (self.step + 1) / c.warmup)
            * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * progress)))
        )

    def train(self, time_limit: float) -> None:
        """Train up to the last step or for `time_limit` seconds, whichever is first."""
        c, begun = self.config, time.monotonic()
        stream = ClipStream(
            c.scene, c.stream, c.seed, self.step, device=self.device if c.workers == 0 else 'cpu'
        )
        batches = loader(stream, c.workers)
        writer = SummaryWriter(str(self.folder))
        bar = tqdm(total=c.steps, initial=self.step, mininterval=5)
        shown: dict[str, float] = {}
        while self.step < c.steps and time.monotonic() - begun < time_limit:
            losses = self.update(next(batches).to(self.device))
            self.step += 1
            bar.update()
            for name, value in losses.items():
                shown[name] = shown.get(name, value) * 0.97 + 0.03 * value
            if self.step % 20 == 0:
                bar.set_postfix_str('  '.join(f'{k} {v:.3f}' for k, v in shown.items()))
                for name, value in shown.items():
                    writer.add_scalar(name, value, self.step)
            if self.step % c.save == 0:
                self.save()
        self.save()
        bar.close()
        if self.step == c.steps:
            fresh = (next(batches).to(self.device) for _ in range(c.calibration))
            self.calibrate(tqdm(fresh, 'calibrating', c.calibration))
        print(f'wrote {self.publish()}')

    def update(self, clips: Clips) -> dict[str, float]:
        """One step on a batch; its losses and measures."""
        c = self.config
        rng = torch.Generator(self.device).manual_seed(c.seed * 1_000_003 + self.step)
        for group in self.optimiser.param_groups:
            group['lr'] = self.rate()
        features = encode(self.model, clips)
        record = roll_out(
            self.model, features, clips, c, 1.0 if self.step < c.warmup else c.lead, rng
        )
        losses = clip_loss(self.model, features, clips, record, c)
        self.optimiser.zero_grad(set_to_none=True)
        losses['total'].backward()
        nn.utils.clip_grad_norm_(self.model.refiner.parameters(), c.clip)
        self.optimiser.step()
        self.average.update_parameters(self.model.refiner)
        return {name: value.item() for name, value in losses.items()}


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
    config = read_config(yaml.safe_load(args.config.read_text()) or {})
    Run(config, args.output, args.device).train(args.time_limit)


if __name__ == '__main__':
    main()
