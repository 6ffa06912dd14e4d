"""The encoder alone, by dense contrastive matching between the frames of a clip.

For every point visible in two frames, its feature in the first must single out its place among all
places of the second, at every stride: cross entropy over the whole map, the target shared by the
four nearest cells. Cheap, and the untrained matcher already follows points with the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from train.data.batch import Clips
from train.losses import matching_loss
from train.objectives.base import Objective, learn
from train.objectives.realtime import encode

if TYPE_CHECKING:
    from train.config import TrainConfig


@dataclass(frozen=True)
class ContrastiveRecipe:
    """What is particular to the encoder's training."""

    temperature: float = 0.07  # of every stride at first; it is learned
    sharpest: float = 40.0  # limit of its inverse
    batch_norm: bool = True  # whether the statistics of batch norm follow the clips
    trunk_rate: float = 1.0  # learning rate of pretrained layers against the rest's


class ContrastiveObjective(Objective):
    """Trains `model.encoder`, whatever feature network that is; the rest is left as it began."""

    def __init__(self, model: nn.Module, config: TrainConfig):
        super().__init__(model, config)
        recipe = config.contrastive
        model.requires_grad_(False)
        learn(model.encoder.train(recipe.batch_norm))
        model.encoder.to(memory_format=torch.channels_last)
        self.strides: tuple[int, ...] = model.config.strides
        sharpness = math.log(1 / recipe.temperature)
        self.scale = nn.Parameter(torch.full((len(self.strides),), sharpness))

    def groups(self) -> list[dict[str, Any]]:
        """The pretrained trunk, where the encoder says it has one, and the rest."""
        c = self.config
        trunk = [p for part in getattr(self.model.encoder, 'trunk', ()) for p in part.parameters()]
        known = set(trunk)
        rest = [p for p in self.model.encoder.parameters() if p not in known]
        groups = [{'params': [*rest, self.scale], 'peak': c.lr}]
        learning = [p for p in trunk if p.requires_grad]
        if learning:
            groups.append({'params': learning, 'peak': c.lr * c.contrastive.trunk_rate})
        return groups

    def forward(self, clips: Clips, step: int, first: int) -> dict[str, Tensor]:
        """The loss, and by stride the share of points placed within 1.5 cells."""
        features = encode(self.model.encoder, clips.video, self.model.config.image_scale)
        scale = self.scale.exp().clamp_max(self.config.contrastive.sharpest)
        loss, hits = matching_loss(
            features, clips.tracks, clips.visible, clips.query_frame, self.strides, scale
        )
        placed = zip(self.strides, hits, strict=True)
        return {'total': loss, **{f'placed at stride {s}': hit for s, hit in placed}}

    def published(self, model: nn.Module) -> nn.Module:
        """The encoder."""
        return model.encoder
