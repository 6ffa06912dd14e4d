"""Losses of the trackers (CoTracker3, section 3.3; the weights are ours where said)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cotracker_ros.model.realtime import Estimate


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
    estimates: list[Estimate],
    tracks: Tensor,
    visible: Tensor,
    counted: Tensor,
    start: Tensor,
    config: LossConfig,
) -> dict[str, Tensor]:
    """Position, visibility and confidence losses, averaged over counted points.

    estimates: per iteration, xy (G, F, N, 2) px; tracks (G, F, N, 2) px; visible, counted (G, F,
    N) bool; start (G, F, N, 2) px, where the search began.
    """
    weight = torch.where(visible, 1.0, config.occluded) * counted
    weight = weight * ((start - tracks).norm(dim=-1) < config.reach)
    total = weight.sum().clamp_min(1)
    losses = {
        'track': tracks.new_zeros(()),
        'visibility': tracks.new_zeros(()),
        'confidence': tracks.new_zeros(()),
    }
    for k, estimate in enumerate(estimates):
        scale = config.gamma ** (len(estimates) - 1 - k)
        miss = F.huber_loss(estimate.xy, tracks, reduction='none', delta=config.huber).sum(-1)
        losses['track'] += scale * (weight * miss).sum() / total
        losses['visibility'] += scale * balanced_bce(estimate.visibility, visible, counted)
        near = (estimate.xy.detach() - tracks).norm(dim=-1) < config.confident
        losses['confidence'] += scale * balanced_bce(estimate.confidence, near, counted & visible)
    losses['total'] = (
        losses['track']
        + config.visibility * losses['visibility']
        + config.confidence * losses['confidence']
    )
    return losses


def balanced_bce(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Binary cross entropy over counted entries, half of its weight on each class, at most
    fourfold.
    """
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction='none')
    yes, no = (target & counted).sum(), (~target & counted).sum()
    share = (yes / (yes + no).clamp_min(1)).clamp(0.125, 0.875)
    weight = torch.where(target, 0.5 / share, 0.5 / (1 - share)) * counted
    return (weight * loss).sum() / counted.sum().clamp_min(1)
