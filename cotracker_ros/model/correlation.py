"""What a point looks like, compared with the image around where it is thought to be."""

from __future__ import annotations

from torch import Tensor, nn

from cotracker_ros.model.transformer import Mlp


class DotCorrelation(nn.Module):
    """CoTracker 1 and 2: a track's feature vector against each patch position."""

    def __init__(self, levels: int, positions: int) -> None:
        super().__init__()
        self.size = levels * positions

    def forward(self, patches: Tensor, feature: Tensor) -> Tensor:
        """Compare patches (B, N, S, L, P, C) with features (B, N, S, C): (B, N, S, L * P)."""
        scores = patches @ feature[..., None, :, None]
        return scores.flatten(-3) * feature.shape[-1] ** -0.5


class VolumeCorrelation(nn.Module):
    """CoTracker 3: all positions of the template patch against all of the patch, embedded."""

    def __init__(self, levels: int, positions: int, hidden: int = 384, out: int = 256) -> None:
        super().__init__()
        self.size = levels * out
        self.mlp = Mlp(positions * positions, hidden, out, approximate='none')

    def forward(self, patches: Tensor, template: Tensor) -> Tensor:
        """Compare patches (B, N, S, L, P, C), templates (B, N, L, P, C): (B, N, S, L * out)."""
        volumes = patches @ template[:, :, None].transpose(-1, -2)
        return self.mlp(volumes.flatten(-2)).flatten(-2)
