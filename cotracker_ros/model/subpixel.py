"""Sub-pixel alignment of small grey patches: where exactly a point is, once the tracker has said
roughly where.

Inverse compositional Gauss-Newton (Baker and Matthews, Lucas-Kanade 20 years on, IJCV 2004,
section 3.2), coarse to fine over pictures of three resolutions. The patch may be brighter or
darker and of another contrast than its template: both are projected out of the problem (section 4
of part 3 of the same work). At the middle resolution an affine warp is estimated, so that a
template stays usable while its surface turns or comes nearer; at the others the place alone.

Pixels here are model pixels, (0, 0) the centre of the top-left one. The pictures are of
`image_scale` times that resolution and coarser, and cover the same area, so that a place has
the same normalised coordinates in all of them. B cameras, M patches, P positions of a patch.
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
    spacing: tuple[float, ...] = (2.0, 1.0, 0.5)  # model px of a cell, coarse to fine
    steps: tuple[int, ...] = (3, 2, 2)  # Gauss-Newton steps at each resolution
    warp_level: int = 1  # resolution at which the warp is estimated
    warp_step: float = 0.06  # largest change of a number of the warp in a frame
    damping: float = 0.01  # of the normal equations, against their diagonal
    noise: float = 2.0  # grey levels that count as no texture
    stride: float = 1.5  # cells, longest step


class Alignment(NamedTuple):
    """xy (B, M, 2) px; warp (B, M, 2, 2) of template offsets to picture offsets; fit (B, M), the
    correlation of template and picture over all resolutions, in [-1, 1].
    """

    xy: Tensor
    warp: Tensor
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
        constant('unity', torch.eye(6))
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
        """What templates (..., cells) are made of, (..., 1 + U, P), each without its mean: the
        inner part, how that changes with x and y and, of 6 unknowns, with the four numbers of the
        warp.
        """
        side = 2 * self.config.radius + 3
        grid = template.unflatten(-1, (side, side))
        inner, before, after = slice(1, -1), slice(None, -2), slice(2, None)
        patch = grid[..., inner, inner]
        x = (grid[..., inner, after] - grid[..., inner, before]) / 2
        y = (grid[..., after, inner] - grid[..., before, inner]) / 2
        parts = torch.stack([patch, x, y], -3).flatten(-2)
        if unknowns > 2:
            bend = parts[..., 1:, None, :] * (self.inner.T / self.config.radius)
            parts = torch.cat([parts, bend.flatten(-3, -2)], -2)
        return parts - parts @ self.weight.T

    def pictures(self, image: Tensor) -> list[Tensor]:
        """Grey pictures (B, 1, h, w) of an image (B, H, W, 3) uint8 RGB, coarse to fine."""
        planes = image.permute(0, 3, 1, 2).to(self.grey.dtype)
        fine = (self.grey @ planes.flatten(2)).unflatten(2, planes.shape[2:])
        return [F.avg_pool2d(fine, n) if n > 1 else fine for n in self.pooling]

    def place(self, xy: Tensor) -> Tensor:
        """Places (..., 2) px as rows (..., 1, 2) of normalised coordinates."""
        return ((xy + 0.5) * self.to_grid - 1)[..., None, :]

    def axes(self, warp: Tensor, level: int) -> Tensor:
        """The steps from cell to cell of patches deformed by warps (..., 2, 2), in normalised
        coordinates: (..., 2, 2), a row for each axis of the template.
        """
        return warp.transpose(-1, -2) * (self.config.spacing[level] * self.to_grid)

    def read(self, picture: Tensor, cells: Tensor, place: Tensor, axes: Tensor) -> Tensor:
        """A picture (B, 1, h, w) in cells, see `spread`, of patches with `axes` (B, ..., 2, 2) at
        `place` (B, ..., 1, 2): (B, ..., P, 1).
        """
        # One product for all patches: a small one for each takes longer than reading the picture.
        grid = torch.cat([axes, place], -2).flatten(-2) @ cells
        grid = grid.unflatten(-1, (-1, 2))
        seen = F.grid_sample(
            picture, grid.flatten(1, -3), padding_mode='border', align_corners=False
        )
        return seen.view(*grid.shape[:-1], 1)

    def cut(self, pictures: list[Tensor], xy: Tensor) -> Tensor:
        """Templates (B, M, resolutions, cells) at xy (B, M, 2) px."""
        place, unity = self.place(xy), self.unity[:2, :2].expand(*xy.shape, 2)
        seen = [
            self.read(picture, self.all_cells, place, self.axes(unity, level))[..., 0]
            for level, picture in enumerate(pictures)
        ]
        # Joined by their cells: TensorRT-RTX 1.7 crashes on a graph that joins what was sampled in
        # several pictures along another axis.
        return torch.cat(seen, -1).unflatten(-1, (len(seen), -1))

    def align(
        self,
        pictures: list[Tensor],
        template: Tensor,
        xy: Tensor,
        warp: Tensor,
        which: tuple[int, ...] = (0,),
    ) -> Alignment:
        """Find templates (B, K, M, resolutions, cells) near places xy (B, L, M, 2) px, deformed
        by warps (B, L, M, 2, 2): the l-th places for templates `which[l]` of the K. The results
        have the axes of the places.
        """
        c = self.config
        index = torch.tensor(which, device=xy.device)
        rows, power = (x.index_select(1, index) for x in self.prepare(template, 2))
        place, together, energy = self.place(xy), [], []
        for level, picture in enumerate(pictures):
            axes, products, variance = self.axes(warp, level), rows[:, :, :, level], None
            for _ in range(c.steps[level]):
                change, covariance, variance = self.look(picture, products, place, axes)
                # The template's contrast is the picture's here; and a step is not too long.
                longest = change.square().sum(-2, keepdim=True) / c.stride**2
                change = change * torch.maximum(variance, longest).rsqrt()
                place = place - change.transpose(-1, -2) @ axes
            # How well it fits, where the last step began.
            together.append(covariance)
            energy.append(variance)
        fit = sum(together) / (sum(energy) * power.sum(3)).sqrt()
        xy = (place[..., 0, :] + 1) / self.to_grid - 0.5
        return Alignment(xy, warp, fit[..., 0, 0])

    def deform(self, pictures: list[Tensor], template: Tensor, xy: Tensor, warp: Tensor) -> Tensor:
        """The warps (B, K, 2, 2) with which templates (B, K, resolutions, cells) fit better at xy
        (B, K, 2) px: one Gauss-Newton step for place and warp, the old one where it does not pay.
        """
        level, limit = self.config.warp_level, self.config.warp_step
        picture = pictures[level]
        rows, _ = self.prepare(template[..., level, :], 6)
        place, axes = self.place(xy), self.axes(warp, level)
        change, covariance, variance = self.look(picture, rows, place, axes)
        change = (change * variance.rsqrt())[..., 0]
        bend = (change[..., 2:].unflatten(-1, (2, 2)) / self.config.radius).clamp(-limit, limit)
        bent = warp - warp @ bend
        place = place - change[..., None, :2] @ axes
        _, then, new_variance = self.look(picture, rows, place, self.axes(bent, level))
        better = then * new_variance.rsqrt() > covariance * variance.rsqrt()
        return torch.where(better, bent, warp)

    def look(
        self, picture: Tensor, rows: Tensor, place: Tensor, axes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Products of what a picture holds at a place with the rows of `Prepared`: the change of
        the unknowns (B, ..., U, 1), their covariance (B, ..., 1, 1); and the picture's weighted
        variance (B, ..., 1, 1), with that of noise.
        """
        seen = self.read(picture, self.inner_cells, place, axes)
        change, covariance, mean = (rows @ seen).split([rows.shape[-2] - 2, 1, 1], -2)
        variance = self.weight @ seen.square() - mean.square()
        return change, covariance, variance.clamp(min=0) + self.config.noise**2

    def prepare(self, template: Tensor, unknowns: int) -> Prepared:
        """Of templates (..., cells), for the place (2 unknowns) or for place and warp (6)."""
        # Against its centre, so that rounding does not grow with brightness.
        middle = self.cells // 2
        template = template - template[..., middle : middle + 1]
        patch, slope = self.parts(template, unknowns).split([1, unknowns], -2)
        heavy = patch * self.weight
        power = heavy @ patch.transpose(-1, -2) + self.config.noise**2
        # Brightness is projected out of the slopes, which have no mean, and contrast here: what
        # is left of a picture is the error.
        basis = slope - (slope @ heavy.transpose(-1, -2)) / power * patch
        weighted = basis * self.weight
        normal = weighted @ basis.transpose(-1, -2)
        solve = self.invert(normal, unknowns) @ weighted * power.sqrt()
        return Prepared(torch.cat([solve, heavy, self.weight.expand_as(heavy)], -2), power)

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
