"""Where hidden points go: with the points beside them that moved as they did.

Points of one surface share its motion (common fate; Brox and Malik, Object segmentation by long
term analysis of point trajectories, ECCV 2010, section 3: affinity by the difference of motion and
by distance). For every two points the state keeps how much their displacements have differed while
both were seen. The displacement of a hidden point is then read from the affine motion of those
that it moved with, fitted to what they did in this frame. Nothing here is learned.

B cameras, M points. Places and displacements are model pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNKNOWN = 1.0  # px², mean difference between points that were not yet seen together


@dataclass(frozen=True)
class GroupingConfig:
    """Whom a point goes with."""

    reach: float = 80.0  # px, standard deviation of the weight by distance
    alike: float = 0.7  # px per frame, the same by the difference of displacements
    far: float = 100.0  # px of distance at which displacements may differ by the root of 2 more
    pace: float = 0.2  # share of the newest difference in the mean
    most: float = 25.0  # px², largest difference of a frame
    slope: float = 20.0  # px, spread of companions from which on their motion is more than a shift
    enough: float = 0.3  # sum of weights that says where a point goes


def squared_differences(x: Tensor) -> Tensor:
    """Of every two points x (B, M, 2): (B, M, M)."""
    # Axis by axis: runtimes take several times as long for a sum over pairs of numbers.
    x, y = x.unbind(-1)
    return (x[:, :, None] - x[:, None]).square() + (y[:, :, None] - y[:, None]).square()


def shared_motion(
    xy: Tensor, displacement: Tensor, seen: Tensor, apart: Tensor, config: GroupingConfig
) -> tuple[Tensor, Tensor]:
    """How the companions of every point moved in this frame, at its place.

    xy (B, M, 2), where points were; displacement (B, M, 2) of this frame, read where seen (B, M)
    bool; apart (B, M, M) px², mean squared difference of displacements. Gives displacements
    (B, M, 2), and whether companions enough say so, (B, M) bool.
    """
    away = squared_differences(xy / config.reach)  # scaled first: half precision ends at 65504
    weight = torch.exp(-0.5 * (away + apart / config.alike**2))
    itself = torch.eye(xy.shape[1], dtype=torch.bool, device=xy.device)
    weight = torch.where(seen[:, None] & ~itself, weight, 0.0)
    total = weight.sum(-1, keepdim=True)
    share = weight / total.clamp(min=1e-6)
    # Weighted least squares of an affine motion, its slopes held back by `slope`. Moments of all
    # points by one product; in units of `reach` and from the middle of the points.
    middle = xy.mean(1, keepdim=True)
    place = (xy - middle) / config.reach
    x, y = place.split(1, -1)
    moved = torch.where(seen[..., None], displacement, 0.0)
    columns = torch.cat([place, x * place, y * y, moved, x * moved, y * moved], -1)
    mean, square, shift, along_x, along_y = (share @ columns).split([2, 3, 2, 2, 2], -1)
    (mx, my), (xx, xy_, yy) = mean.split(1, -1), square.split(1, -1)
    ridge = (config.slope / config.reach) ** 2
    xx, xy_, yy = xx - mx * mx + ridge, xy_ - mx * my, yy - my * my + ridge
    along_x, along_y = along_x - mx * shift, along_y - my * shift
    dx, dy = (place - mean).split(1, -1)
    turn = (dx * yy - dy * xy_) * along_x + (dy * xx - dx * xy_) * along_y
    return shift + turn / (xx * yy - xy_ * xy_), total[..., 0] > config.enough


def drift_apart(
    apart: Tensor, xy: Tensor, displacement: Tensor, seen: Tensor, config: GroupingConfig
) -> Tensor:
    """`apart` (B, M, M) px² after a frame, arguments as `shared_motion`: renewed between points
    that are both seen. What turns or comes nearer moves its far points differently, so distance
    excuses a part.
    """
    excuse = 1 + squared_differences(xy / config.far)
    now = (squared_differences(displacement) / excuse).clamp(max=config.most)
    together = seen[:, :, None] & seen[:, None]
    return torch.where(together, apart + config.pace * (now - apart), apart)
