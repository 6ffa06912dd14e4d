"""What a step of training asks of a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

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

    def finish(self, model: nn.Module, batches: Iterable[Clips]) -> None:
        """Fit, on fresh batches, what of the averaged model is not learned by steps."""

    def published(self, model: nn.Module) -> nn.Module:
        """Return what of the averaged model is published."""
        return model
