"""Losses of the trackers (CoTracker3, section 3.3; the weights are ours where said)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cotracker_ros.model.realtime import sample_cells
from train.data.batch import Clips


class Estimate(Protocol):
    """One refinement's result, laid out (G, F, N): clips, frames, points."""

    @property
    def xy(self) -> Tensor: ...
    @property
    def visibility(self) -> Tensor: ...
    @property
    def confidence(self) -> Tensor | None: ...


@dataclass(frozen=True)
class LossConfig:
    """Weights and scales of the loss."""

    gamma: float = 0.8  # weight of an iteration against the next one
    occluded: float = 0.2  # weight of a point's position where it is not visible
    huber: float = 1.0  # px; ours: at 6, as published, the last pixel is learned slowly
    reach: float = 96.0  # px; a point that starts further off than any window sees teaches nothing
    confident: float = 12.0  # px; confidence's target is to be within
    visibility: float = 2.0
    confidence: float = 1.0


def tracking_loss(
    estimates: Sequence[Estimate],
    tracks: Tensor,
    visible: Tensor,
    counted: Tensor,
    start: Tensor,
    config: LossConfig,
) -> dict[str, Tensor]:
    """Position, visibility and confidence losses, averaged over the counted points of each clip,
    then over clips; and two measures of the last estimate.

    estimates: per iteration, xy (G, F, N, 2) px and logits (G, F, N), those of confidence None for
    networks without; tracks (G, F, N, 2) px; visible, counted (G, F, N) bool; start (G, F, N, 2)
    px, where the search began.
    """
    weight = torch.where(visible, 1.0, config.occluded) * counted
    weight = weight * ((start - tracks).norm(dim=-1) < config.reach)
    zero = tracks.new_zeros(())
    losses = {'track': zero, 'visibility': zero, 'confidence': zero}
    for k, estimate in enumerate(estimates):
        scale = config.gamma ** (len(estimates) - 1 - k)
        miss = F.huber_loss(estimate.xy, tracks, reduction='none', delta=config.huber).sum(-1)
        losses['track'] = losses['track'] + scale * clip_mean(miss, weight)
        unseen = balanced_bce(estimate.visibility, visible, counted)
        losses['visibility'] = losses['visibility'] + scale * unseen
        if estimate.confidence is not None:
            near = (estimate.xy.detach() - tracks).norm(dim=-1) < config.confident
            unsure = balanced_bce(estimate.confidence, near, counted & visible)
            losses['confidence'] = losses['confidence'] + scale * unsure
    losses['total'] = (
        losses['track']
        + config.visibility * losses['visibility']
        + config.confidence * losses['confidence']
    )
    with torch.no_grad():
        near = (estimates[-1].xy - tracks).norm(dim=-1) < 3
        right = (estimates[-1].visibility > 0) == visible
        losses['within 3 px'] = clip_mean(near, counted & visible)
        losses['visibility right'] = clip_mean(right, counted)
    return losses


def clip_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean over clips of the weighted mean of values (G, F, N): a batch over several
    processes, averaged, is the joined batch.
    """
    return ((values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1)).mean()


def balanced_bce(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Binary cross entropy over the counted entries (G, F, N) of each clip, half of its weight on
    each class, at most fourfold.
    """
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction='none')
    yes, no = ((answer & counted).sum((1, 2), keepdim=True) for answer in (target, ~target))
    share = (yes / (yes + no).clamp_min(1)).clamp(0.125, 0.875)
    return clip_mean(torch.where(target, 0.5 / share, 0.5 / (1 - share)) * loss, counted)


def place_weights(xy: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four cells around feature coordinates xy (..., 2) and their bilinear weights, (...,
    4) each.
    """
    limit = torch.tensor([width - 1, height - 1], device=xy.device)
    xy = torch.minimum(xy.clamp_min(0), limit.to(xy.dtype))
    low = torch.minimum(xy.floor(), (limit - 1).to(xy.dtype))
    part = xy - low
    low = low.long()
    index, weight = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            index.append((low[..., 1] + dy) * width + low[..., 0] + dx)
            weight.append(
                (part[..., 0] if dx else 1 - part[..., 0])
                * (part[..., 1] if dy else 1 - part[..., 1])
            )
    return torch.stack(index, -1), torch.stack(weight, -1)


def matching_loss(
    features: list[Tensor], clips: Clips, strides: tuple[int, ...], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each point's place in every other frame, and the share placed within 1.5
    cells.

    features: per level (B * T, C, h, w); scale (levels,): inverse temperature.
    """
    batch, frames, points = clips.visible.shape
    pick = torch.arange(batch)[:, None], clips.query_frame
    start = clips.tracks.transpose(1, 2)[pick[0], torch.arange(points), pick[1]]
    weight = clips.visible.float()
    weight = weight.scatter(1, clips.query_frame[:, None], 0)  # not the query frame itself
    losses, hits = [], []
    for level, stride in enumerate(strides):
        height, width = features[level].shape[-2:]
        maps = features[level].view(batch, frames, -1, height, width)
        template = torch.stack(
            [sample_cells(maps[:, t], start / stride) for t in range(frames)], 2
        )
        template = template[pick[0], torch.arange(points), pick[1]]
        template = F.normalize(template, dim=-1)
        logits = torch.einsum('bnc,btcp->btnp', template, maps.flatten(3)) * scale[level]
        index, share = place_weights(clips.tracks / stride, height, width)
        log_p = logits.gather(-1, index) - logits.logsumexp(-1, keepdim=True)
        losses.append(-clip_mean((share * log_p).sum(-1), weight))
        best = logits.detach().argmax(-1)
        miss = torch.stack([best % width, best // width], -1) - clips.tracks / stride
        hits.append(clip_mean(miss.norm(dim=-1) < 1.5, weight))
    return torch.stack(losses).sum(), torch.stack(hits)
