"""Sub-pixel alignment of small grey patches: where exactly a point is, once the tracker has said
roughly where.

Inverse compositional Gauss-Newton (Baker and Matthews, Lucas-Kanade 20 years on, IJCV 2004,
section 3.2), coarse to fine over pictures of three resolutions. The patch may be brighter or
darker and of another contrast than its template: both are projected out of the problem (section 4
of part 3 of the same work). At the middle resolution an affine warp is estimated, so that a
template stays usable while its surface turns or comes nearer; at the others the place alone.

Pixels here are model pixels, (0, 0) the centre of the top-left one. The pictures are of
`image_scale` times that resolution and coarser, and cover the same area, so that a place has
the same normalised coordinates in all of them. B cameras, M templates, L places at which each is
looked for, P positions of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AlignmentConfig:
    """Shape of the patches and of the search."""

    radius: int = 6  # cells of a patch on each side of its centre
    # Model px of a cell, coarse to fine. With 0.5 at the end a patch covers 6 px, and the aligner
    # alone is off by 0.30 camera px of 1920 x 1080 in the median instead of 0.22.
    spacing: tuple[float, ...] = (2.0, 1.0, 0.7)
    steps: tuple[int, ...] = (3, 2, 2)  # Gauss-Newton steps at each resolution
    warp_level: int = 1  # resolution at which the warp is estimated
    warp_step: float = 0.06  # largest change of a number of the warp in a frame
    damping: float = 0.01  # of the normal equations, against their diagonal
    noise: float = 2.0  # grey levels that count as no texture
    stride: float = 1.5  # cells, longest step


class Alignment(NamedTuple):
    """xy (B, M, L, 2) px; fit (B, M, L), the correlation of template and picture over all
    resolutions, in [-1, 1].
    """

    xy: Tensor
    fit: Tensor


class Prepared(NamedTuple):
    """What aligning needs of templates (..., P cells), which the picture does not change. With U
    unknowns: rows (..., U + 2, P), of which the products with a picture are the change of the
    unknowns at the template's contrast, their covariance, and the picture's mean; power
    (..., 1, 1), the template's weighted variance.
    """

    rows: Tensor
    power: Tensor


class PatchAligner(nn.Module):
    """Cuts templates and finds them again; nothing in it is learned."""

    def __init__(self, config: AlignmentConfig, image_size: tuple[int, int], image_scale: int):
        """`image_size` (H, W) px of the model; pictures are `image_scale` times as large."""
        super().__init__()
        self.config, self.image_size = config, image_size
        reach = config.radius + 1  # one more cell on each side, for the slopes
        axis = torch.arange(-reach, reach + 1.0)
        offsets = torch.stack(torch.meshgrid(axis, axis, indexing='xy'), -1)
        inner = offsets[1:-1, 1:-1].reshape(-1, 2)
        weight = torch.exp(-0.5 * inner.square().sum(-1) / (0.6 * config.radius) ** 2)
        weight = weight / weight.sum()

        def constant(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        constant('inner', inner)
        constant('inner_cells', spread(inner))
        constant('all_cells', spread(offsets.reshape(-1, 2)))
        constant('weight', weight[None])
        constant('grey', torch.tensor([[0.299, 0.587, 0.114]]))
        constant('to_grid', 2 / torch.tensor(image_size[::-1]).float())
        constant('unity', torch.eye(8))
        # A matrix of two rows, as four numbers, to its adjugate.
        constant(
            'adjugate', torch.tensor([[0.0, 0, 0, 1], [0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]])
        )
        self.pooling = [round(s * image_scale) for s in config.spacing]

    @property
    def cells(self) -> int:
        """Values of a template at one resolution."""
        return self.all_cells.shape[1] // 2

    def parts(self, template: Tensor, unknowns: int) -> Tensor:
        """What templates (..., cells) are made of, (..., U + 2, P): the inner part, how that
        changes with x and y and, of 6 unknowns, with the four numbers of the warp; and ones.
        """
        side = 2 * self.config.radius + 3
        grid = template.unflatten(-1, (side, side))
        inner, before, after = slice(1, -1), slice(None, -2), slice(2, None)
        patch = grid[..., inner, inner]
        x = (grid[..., inner, after] - grid[..., inner, before]) / 2
        y = (grid[..., after, inner] - grid[..., before, inner]) / 2
        if unknowns == 2:
            return torch.stack([patch, x, y, torch.ones_like(patch)], -3).flatten(-2)
        slopes = torch.stack([x, y], -3).flatten(-2)
        bend = slopes[..., None, :] * (self.inner.T / self.config.radius)
        patch = patch.flatten(-2)[..., None, :]
        return torch.cat([patch, slopes, bend.flatten(-3, -2), torch.ones_like(patch)], -2)

    def pictures(self, image: Tensor) -> list[Tensor]:
        """Grey pictures (B, 1, h, w) of an image (B, H, W, 3) uint8 RGB, coarse to fine."""
        planes = image.permute(0, 3, 1, 2).to(self.grey.dtype)
        fine = (self.grey @ planes.flatten(2)).unflatten(2, planes.shape[2:])
        return [F.avg_pool2d(fine, n) if n > 1 else fine for n in self.pooling]

    def place(self, xy: Tensor) -> Tensor:
        """Places (..., 2) px in normalised coordinates."""
        return (xy + 0.5) * self.to_grid - 1

    def axes(self, warp: Tensor, level: int) -> Tensor:
        """The steps from cell to cell of patches deformed by warps (..., 2, 2), in normalised
        coordinates: (..., 2, 2), a row for each axis of the template.
        """
        return warp.transpose(-1, -2) * (self.config.spacing[level] * self.to_grid)

    def read(self, picture: Tensor, cells: Tensor, place: Tensor, axes: Tensor) -> Tensor:
        """A picture (B, 1, h, w) in cells, see `spread`, of patches with `axes` (B, M, 2, 2) at
        `place` (B, M, L, 2): (B, M, L, P).
        """
        # One product for all patches: a small one for each takes longer than reading the picture.
        axes = axes.flatten(-2)[..., None, :].expand(*place.shape[:-1], 4)
        grid = (torch.cat([axes, place], -1) @ cells).unflatten(-1, (-1, 2))
        seen = F.grid_sample(
            picture, grid.flatten(1, 2), padding_mode='border', align_corners=False
        )
        return seen.view(grid.shape[:-1])

    def cut(self, pictures: list[Tensor], xy: Tensor) -> Tensor:
        """Templates (B, M, resolutions, cells) at xy (B, M, 2) px."""
        place, unity = self.place(xy)[..., None, :], self.unity[:2, :2].expand(*xy.shape, 2)
        seen = [
            self.read(picture, self.all_cells, place, self.axes(unity, level))[..., 0, :]
            for level, picture in enumerate(pictures)
        ]
        # Joined by their cells: TensorRT-RTX 1.7 crashes on a graph that joins what was sampled in
        # several pictures along another axis.
        return torch.cat(seen, -1).unflatten(-1, (len(seen), -1))

    def align(
        self, pictures: list[Tensor], template: Tensor, xy: Tensor, warp: Tensor
    ) -> Alignment:
        """Find templates (B, M, resolutions, cells), deformed by warps (B, M, 2, 2), near places
        xy (B, M, L, 2) px.
        """
        c = self.config
        rows, power = self.prepare(template.movedim(2, 0), 2)
        place, together, energy = self.place(xy), [], []
        for level, picture in enumerate(pictures):
            axes = self.axes(warp, level)
            for _ in range(c.steps[level]):
                change, covariance, variance = self.look(picture, rows[level], place, axes)
                # The template's contrast is the picture's here; and a step is not too long.
                longest = change.square().sum(-1, keepdim=True) / c.stride**2
                place = place - change * torch.maximum(variance, longest).rsqrt() @ axes
            # How well it fits, where the last step began.
            together.append(covariance)
            energy.append(variance)
        fit = sum(together) / (sum(energy) * power.sum(0)).sqrt()
        return Alignment((place + 1) / self.to_grid - 0.5, fit[..., 0])

    def deform(self, pictures: list[Tensor], template: Tensor, xy: Tensor, warp: Tensor) -> Tensor:
        """The warps (B, M, 2, 2) with which templates (B, M, resolutions, cells) fit better at xy
        (B, M, 2) px: one Gauss-Newton step for place and warp, the old one where it does not pay.
        """
        level, limit = self.config.warp_level, self.config.warp_step
        picture = pictures[level]
        rows, _ = self.prepare(template[..., level, :], 6)
        place, axes = self.place(xy)[..., None, :], self.axes(warp, level)
        change, covariance, variance = self.look(picture, rows, place, axes)
        move, bend = (change * variance.rsqrt()).split([2, 4], -1)
        bend = (bend.unflatten(-1, (2, 2))[..., 0, :, :] / self.config.radius).clamp(-limit, limit)
        bent = warp - warp @ bend
        _, then, new_variance = self.look(
            picture, rows, place - move @ axes, self.axes(bent, level)
        )
        better = then * new_variance.rsqrt() > covariance * variance.rsqrt()
        return torch.where(better, bent, warp)

    def look(
        self, picture: Tensor, rows: Tensor, place: Tensor, axes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Products of what a picture holds at places (B, M, L, 2) with the rows of `Prepared`: the
        change of the unknowns (B, M, L, U) and their covariance (B, M, L, 1); and the picture's
        weighted variance (B, M, L, 1), with that of noise.
        """
        seen = self.read(picture, self.inner_cells, place, axes)
        products = seen @ rows.transpose(-1, -2)
        change, covariance, mean = products.split([rows.shape[-2] - 2, 1, 1], -1)
        variance = seen.square() @ self.weight.T - mean.square()
        return change, covariance, variance.clamp(min=0) + self.config.noise**2

    def prepare(self, template: Tensor, unknowns: int) -> Prepared:
        """Of templates (..., cells), for the place (2 unknowns) or for place and warp (6)."""
        # Against its centre, so that rounding does not grow with brightness.
        middle = self.cells // 2
        parts = self.parts(template - template[..., middle : middle + 1], unknowns)
        heavy = parts * self.weight
        gram = heavy @ parts.transpose(-1, -2)
        mean = gram[..., :-1, -1:]
        gram = gram[..., :-1, :-1] - mean @ mean.transpose(-1, -2)
        noise = self.config.noise**2
        power = gram[..., :1, :1] + noise
        # Brightness is projected out of template and slopes, as they lose their means, and
        # contrast out of the slopes, as they lose their share of the template: what is left of a
        # picture is the error.
        share = gram[..., 1:, :1] / power
        normal = gram[..., 1:, 1:] - (power + noise) * share @ share.transpose(-1, -2)
        solve = self.invert(normal, unknowns) * power.sqrt()
        unity = self.unity[: unknowns + 2, : unknowns + 2]
        centred = unity[:-1] - mean * unity[-1:]
        change = solve @ (centred[..., 1:, :] - share * centred[..., :1, :])
        mix = torch.cat(
            [change, centred[..., :1, :], unity[-1:].expand_as(centred[..., :1, :])], -2
        )
        return Prepared(mix @ heavy, power)

    def invert(self, normal: Tensor, unknowns: int) -> Tensor:
        """The inverse of damped symmetric matrices (..., U, U): ONNX has no solver."""
        unity = self.unity[:unknowns, :unknowns]
        diagonal = (normal * unity).sum(-1)
        root = (diagonal + 0.05 * self.config.noise**2).rsqrt()
        scaled = normal * root[..., None] * root[..., None, :] + self.config.damping * unity
        if unknowns == 2:  # by Cramer's rule; the sum is twice the determinant
            flat = scaled.flatten(-2)
            adjugate = flat @ self.adjugate
            inverse = (adjugate / (flat * adjugate).sum(-1, keepdim=True) * 2).unflatten(
                -1, (2, 2)
            )
        else:  # by Newton's iteration (Schulz)
            inverse = unity / unknowns
            for _ in range(11):
                inverse = inverse @ (2 * unity - scaled @ inverse)
        return inverse * root[..., None] * root[..., None, :]


def spread(cells: Tensor) -> Tensor:
    """What the six numbers of two axes and a place, row by row, give to x and y of the cells
    (P, 2) of a patch: (6, 2 P), x and y of a cell side by side.
    """
    numbers = torch.cat([cells, torch.ones(len(cells), 1)], 1).T
    return torch.kron(numbers.contiguous(), torch.eye(2))
