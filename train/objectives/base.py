"""What a step of training asks of a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from train.data.batch import Clips

if TYPE_CHECKING:
    from train.config import TrainConfig


class Objective(nn.Module):
    """A network with its losses, as one module, so that DistributedDataParallel sees every use of
    the weights.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        super().__init__()
        self.model, self.config = model, config
        frozen = visibility_rows(model) if config.freeze_visibility else []
        self.frozen = [(p, rows, p.detach()[rows].clone()) for p, rows in frozen]

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameters that learn, each with its learning rate at the peak."""
        c = self.config
        rest = [p for n, p in self.model.named_parameters() if not n.startswith('encoder.')]
        return [
            {'params': rest, 'peak': c.lr},
            {'params': list(self.model.encoder.parameters()), 'peak': c.lr * c.encoder_rate},
        ]

    def forward(self, clips: Clips, step: int, first: int) -> dict[str, Tensor]:
        """Return the losses of a batch, `total` among them, and measures of the result. The clips
        are first, first + 1, ... of the run.
        """
        raise NotImplementedError

    @torch.no_grad()
    def hold(self) -> None:
        """After a step, put back what is frozen: it shares tensors with what learns."""
        for parameter, rows, began in self.frozen:
            parameter[rows] = began.to(parameter)

    def finish(self, model: nn.Module, batches: Iterable[Clips]) -> None:
        """Fit, on fresh batches, what of the averaged model is not learned by steps."""

    def published(self, model: nn.Module) -> nn.Module:
        """Return what of the averaged model is published."""
        return model


def visibility_rows(model: nn.Module) -> list[tuple[nn.Parameter, slice]]:
    """Return the weights that turn a token into visibility and confidence: parameters, and the
    rows of each.
    """
    if hasattr(model, 'refiner'):
        head, rows = model.refiner.head[-1], slice(-2, None)
    elif hasattr(model.update, 'visibility'):  # CoTracker 1 and 2 have a layer of its own
        head, rows = model.update.visibility, slice(None)
    else:
        head, rows = model.transformer.head, slice(-model.update.logits, None)
    return [(head.weight, rows), (head.bias, rows)]


def learn(encoder: nn.Module) -> None:
    """Let a feature network learn: of a pretrained trunk what it names itself, `learned_trunk`,
    else all of it; and everything that is not of the trunk.
    """
    trunk = {p for part in getattr(encoder, 'trunk', ()) for p in part.parameters()}
    learned = set(getattr(encoder, 'learned_trunk', trunk))
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter not in trunk or parameter in learned)
