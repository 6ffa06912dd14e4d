"""Losses of the trackers (CoTracker3, section 3.3; the weights are ours where said), and those
that hold the keypoints of a body together (docs/pose.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cotracker_ros.model.sampling import last_cell
from cotracker_ros.skeleton import KEYPOINTS, LIMBS


class Prediction(Protocol):
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
    search_radius: float = 96.0  # px; points whose search starts further off are left out
    confident: float = 12.0  # px; confidence's target is to be within
    near: float = 1.5  # px; the confidence that is shown is the probability to be within
    visibility: float = 2.0
    confidence: float = 1.0
    # Of keypoints of bodies, see docs/pose.md; 0 leaves them out.
    continuity: float = 0.0
    joint_relation: float = 0.0
    occlusion_aware: float = 0.0


def tracking_loss(
    estimates: Sequence[Prediction],
    tracks: Tensor,
    visible: Tensor,
    counted: Tensor,
    start: Tensor,
    config: LossConfig,
    keypoint: Tensor | None = None,
    instance: Tensor | None = None,
    visibility_known: Tensor | None = None,
) -> dict[str, Tensor]:
    """Position, visibility and confidence losses, averaged over the counted points of each clip,
    then over clips; those that hold bodies together, where their weights are not 0; and two
    measures of the last estimate.

    estimates: per iteration, xy (G, F, N, 2) px and logits (G, F, N), those of confidence None for
    networks without; tracks (G, F, N, 2) px; visible, counted (G, F, N) bool; start (G, F, N, 2)
    px, where the search began; keypoint, instance (G, N), as in `Clips`, for losses of bodies;
    visibility_known (G, F, N) bool, where visibility counts, by default where points do.
    """
    visibility_known = counted if visibility_known is None else visibility_known
    weight = torch.where(visible, 1.0, config.occluded) * counted
    weight = weight * ((start - tracks).norm(dim=-1) < config.search_radius)
    zero = tracks.new_zeros(())
    losses = {'track': zero, 'visibility': zero, 'confidence': zero}
    for k, estimate in enumerate(estimates):
        scale = config.gamma ** (len(estimates) - 1 - k)
        miss = F.huber_loss(estimate.xy, tracks, reduction='none', delta=config.huber).sum(-1)
        losses['track'] = losses['track'] + scale * clip_mean(miss, weight)
        unseen = balanced_bce(estimate.visibility, visible, visibility_known)
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
    if keypoint is not None and instance is not None:
        held = consistency_losses(
            estimates, tracks, visible, counted, config, keypoint, instance, visibility_known
        )
        for name, value in held.items():
            losses[name] = value
            losses['total'] = losses['total'] + getattr(config, name) * value
    with torch.no_grad():
        near = (estimates[-1].xy - tracks).norm(dim=-1) < 3
        right = (estimates[-1].visibility > 0) == visible
        losses['within 3 px'] = clip_mean(near, counted & visible)
        losses['visibility right'] = clip_mean(right, visibility_known)
    return losses


def consistency_losses(
    estimates: Sequence[Prediction],
    tracks: Tensor,
    visible: Tensor,
    counted: Tensor,
    config: LossConfig,
    keypoint: Tensor,
    instance: Tensor,
    visibility_known: Tensor,
) -> dict[str, Tensor]:
    """The losses of bodies that the config gives a weight, summed over iterations; shapes as in
    `tracking_loss`.
    """
    keypoint = torch.where(instance >= 0, keypoint, -1)  # numbers of nobody are no keypoints
    body = keypoint, instance
    named = counted & (keypoint >= 0)[:, None]
    terms = {
        'continuity': lambda e: continuity(e.xy, tracks, named),
        'joint_relation': lambda e: joint_relation(e.xy, tracks, counted, *body),
        'occlusion_aware': lambda e: occlusion_aware(
            e.visibility, visible, visibility_known, *body
        ),
    }
    losses = {}
    for name, term in terms.items():
        if getattr(config, name):
            last = len(estimates) - 1
            weighted = [config.gamma ** (last - k) * term(e) for k, e in enumerate(estimates)]
            losses[name] = torch.stack(weighted).sum()
    return losses


def continuity(xy: Tensor, tracks: Tensor, counted: Tensor) -> Tensor:
    """How much more tracks (G, F, N, 2) px bend from frame to frame than the true ones do, px a
    frame squared, where three frames in a row are counted (G, F, N).
    """
    bend, true_bend = (x.diff(n=2, dim=1).norm(dim=-1) for x in (xy, tracks))
    weight = (counted[:, :-2] & counted[:, 1:-1] & counted[:, 2:]).to(xy.dtype)
    return clip_mean((bend - true_bend).clamp_min(0), weight)


def joint_relation(
    xy: Tensor, tracks: Tensor, counted: Tensor, keypoint: Tensor, instance: Tensor
) -> Tensor:
    """How far limbs are from their true lengths and directions, px, in frames where both ends
    are counted (G, F, N): the difference in length, and true length x (1 - cosine).
    """
    clip, one, other = limb_pairs(keypoint, instance)
    limb, true = (x[clip, :, one] - x[clip, :, other] for x in (xy, tracks))  # (P, F, 2)
    length, true_length = limb.norm(dim=-1), true.norm(dim=-1)
    stretch = F.huber_loss(length, true_length, reduction='none')
    turn = true_length * (1 - F.cosine_similarity(limb, true, dim=-1))
    # A limb seen end on has no direction.
    turn = turn * (true_length > 1)
    weight = (counted[clip, :, one] & counted[clip, :, other]).to(xy.dtype)
    total, share = (
        x.new_zeros(len(xy)).index_add(0, clip, x.sum(1))
        for x in ((stretch + turn) * weight, weight)
    )
    return (total / share.clamp_min(1)).mean()


def occlusion_aware(
    logits: Tensor, visible: Tensor, counted: Tensor, keypoint: Tensor, instance: Tensor
) -> Tensor:
    """Cross entropy of the visibility of keypoints, logits (G, F, N), weighted by how hard they
    are: 1, and how often the keypoint is hidden in this batch, and the share of its limbs whose
    other end is hidden in the frame. Other points count nothing.
    """
    loss = F.binary_cross_entropy_with_logits(logits, visible.to(logits.dtype), reduction='none')
    named = (keypoint >= 0)[:, None] & counted
    hidden = (~visible & named).to(logits.dtype)
    number = keypoint.clamp_min(0)
    often, seen = (
        logits.new_zeros(len(KEYPOINTS)).index_add(0, number.flatten(), x.sum(1).flatten())
        for x in (hidden, named.to(logits.dtype))
    )
    often = (often / seen.clamp_min(1))[number]  # (G, N)
    joined = torch.zeros(*keypoint.shape, keypoint.shape[1], device=logits.device)
    clip, one, other = limb_pairs(keypoint, instance)
    joined[clip, one, other] = joined[clip, other, one] = 1.0
    joined = joined.to(logits.dtype)
    limbs, limbs_hidden = (
        torch.einsum('gfm,gmn->gfn', x, joined) for x in (named.to(logits.dtype), hidden)
    )
    weight = (1 + often[:, None] + limbs_hidden / limbs.clamp_min(1)) * named
    return clip_mean(loss, weight)


def limb_pairs(keypoint: Tensor, instance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clip, one end and other end (P,) of all limbs whose ends are among the points."""
    table = torch.zeros(len(KEYPOINTS), len(KEYPOINTS), dtype=torch.bool, device=keypoint.device)
    table[tuple(torch.tensor(LIMBS, device=keypoint.device).T)] = True
    named = keypoint >= 0
    number = keypoint.clamp_min(0)
    pair = table[number[:, :, None], number[:, None]] & named[:, :, None] & named[:, None]
    clip, one, other = torch.nonzero(
        pair & (instance[:, :, None] == instance[:, None]), as_tuple=True
    )
    return clip, one, other


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


def sample_cells(features: Tensor, xy: Tensor) -> Tensor:
    """Read maps (B, C, h, w) at xy (B, N, 2) in cells, the border continued: (B, N, C)."""
    grid = (xy / last_cell(features.shape[-2:], features) * 2 - 1)[:, :, None]
    sampled = F.grid_sample(features, grid, padding_mode='border', align_corners=True)
    return sampled[..., 0].transpose(1, 2)


def matching_loss(
    features: list[Tensor],
    tracks: Tensor,
    visible: Tensor,
    query_frame: Tensor,
    strides: tuple[int, ...],
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each point's place in every frame but its query's, and the share placed
    within 1.5 cells.

    features: per level (B * T, C, h, w); tracks (B, T, N, 2) px; visible (B, T, N) bool;
    query_frame (B, N), where a point's template is taken; scale (levels,): inverse temperature.
    """
    batch, frames, points = visible.shape
    pick = torch.arange(batch)[:, None], query_frame
    start = tracks.transpose(1, 2)[pick[0], torch.arange(points), pick[1]]
    weight = visible.float().scatter(1, query_frame[:, None], 0)
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
        # Bilinear weights add up to 1: what is read of the scores is read of their softmax's log.
        at = sample_cells(logits.reshape(-1, 1, height, width), (tracks / stride).view(-1, 1, 2))
        log_p = at.view(batch, frames, points) - logits.logsumexp(-1)
        losses.append(-clip_mean(log_p, weight))
        best = logits.detach().argmax(-1)
        miss = torch.stack([best % width, best // width], -1) - tracks / stride
        hits.append(clip_mean(miss.norm(dim=-1) < 1.5, weight))
    return torch.stack(losses).sum(), torch.stack(hits)
