"""Which cells of a patch count, learned by where aligning with them brings points.

Patches are aligned, as on a stream, from near the true places of their points in other frames, and
how far off they come to be is learned from through the Gauss-Newton steps. So nothing has to be
known about surfaces: cells that show another one take the point along.

Points of one scene say much the same. So the samples of many clips are collected first, and every
step learns from some of many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cotracker_ros.model.subpixel import PatchAligner, Pictures
from train.data.batch import Clips

CROP = 80  # px of the model, side of what is kept of a frame around a point
EPOCHS, BATCH = 4, 256
RATE, WARMUP, DECAY = 1e-3, 50, 1e-3  # of the optimiser: at its peak, steps, weight decay
# Searches start off the truth by so many px along each axis in the median, log-normal, and by so
# much in every number of the warp.
OFF, SPREAD, WARP_OFF = 1.2, 0.7, 0.03
SCALE = 0.5  # px of error from which on it counts by its logarithm


class Samples(NamedTuple):
    """Patches of queries (S, R, 3, cells), what is around the points in another frame (S, n, n),
    grey, both uint8, where in that they are, (S, 2) px of the model, and how deformed, (S, 2, 2).
    """

    patches: Tensor
    crops: Tensor
    xy: Tensor
    warp: Tensor


def fit_cells(aligner: PatchAligner, batches: Iterable[Clips], seed: int) -> None:
    """Fit `aligner.weights` on clips."""
    samples = Samples(
        *map(torch.cat, zip(*(collect(aligner, clips) for clips in batches), strict=True))
    )
    around = aligner.of_size((CROP, CROP))
    rng = torch.Generator(samples.xy.device).manual_seed(seed)
    learning = aligner.weights.requires_grad_(True)
    optimiser = torch.optim.AdamW(learning.parameters(), RATE, weight_decay=DECAY)
    steps = EPOCHS * math.ceil(len(samples.xy) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda k: min(1, (k + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * k / steps)),
    )
    bar = tqdm(total=steps, desc='cells')
    for _ in range(EPOCHS):
        order = torch.randperm(len(samples.xy), generator=rng, device=samples.xy.device)
        for chosen in order.split(BATCH):
            off = errors(around, Samples(*(x[chosen] for x in samples)), rng)
            optimiser.zero_grad()
            (off / SCALE).log1p().mean().backward()
            optimiser.step()
            schedule.step()
            bar.update()
    bar.close()
    learning.requires_grad_(False)


@torch.no_grad()
def collect(aligner: PatchAligner, clips: Clips) -> Samples:
    """Samples of all points in all frames but their first in which they are seen."""
    patches, scale, kept = torch.zeros(()), aligner.image_scale, []
    for t in clips.query_frame.unique().tolist():
        picture = aligner.pictures(clips.video[:, t]).colour
        now = (clips.query_frame == t)[..., None, None, None]
        patches = torch.where(now, aligner.cut(picture, clips.tracks[:, t]), patches)
    side = CROP * scale
    window = torch.arange(side, device=clips.video.device)
    for t in range(clips.video.shape[1]):
        clip, point = torch.nonzero(
            clips.visible[:, t] & clips.known[:, t] & (clips.query_frame != t), as_tuple=True
        )
        xy = clips.tracks[clip, t, point]
        # Whole cells of all resolutions.
        corner = (xy * scale / 2 - side / 4).round().long() * 2
        colour = clips.video[:, t].permute(0, 3, 1, 2).to(aligner.grey)
        grey = F.pad(aligner.brightness(colour), (side,) * 4, mode='replicate')[:, 0]
        x, y = (corner + side)[..., None].add(window).unbind(1)
        crops = grey[clip[:, None, None], y[:, :, None], x[:, None]]
        kept.append(
            Samples(
                patches[clip, point].round().byte(),
                crops.round().byte(),
                xy - corner / scale,
                clips.warp[clip, t, point],
            )
        )
    return Samples(*map(torch.cat, zip(*kept, strict=True)))


def errors(around: PatchAligner, samples: Samples, rng: torch.Generator) -> Tensor:
    """How far off the patches come to be, (S,) px, with gradient; by an aligner of crops."""
    templates = around.prepare(samples.patches[:, None].to(around.grey))
    crops = samples.crops[:, None].to(around.grey)
    pictures = Pictures(crops, around.resolutions(crops))
    xy = samples.xy[:, None]

    def noise(*shape: int) -> Tensor:
        return torch.randn(len(xy), 1, *shape, generator=rng, device=xy.device)

    warp = samples.warp[:, None] + WARP_OFF * noise(2, 2)
    start = xy + OFF * (SPREAD * noise(1)).exp() * noise(2)
    found = around.align(pictures, templates, start[:, :, None], warp)
    return (found.xy[:, :, 0] - xy)[:, 0].norm(dim=-1)
