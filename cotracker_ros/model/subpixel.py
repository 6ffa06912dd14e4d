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
        self.register_buffer('inner', inner, persistent=False)
        for name, cells in (('inner_and_one', inner), ('all_and_one', offsets.reshape(-1, 2))):
            one = torch.ones(len(cells), 1)
            self.register_buffer(name, torch.cat([cells, one], 1), persistent=False)
        weight = weight / weight.sum()
        self.register_buffer('weight', weight, persistent=False)
        self.register_buffer('mean', weight[None], persistent=False)
        grey = torch.tensor([[0.299, 0.587, 0.114]])
        self.register_buffer('grey', grey, persistent=False)
        self.register_buffer('extent', torch.tensor(image_size[::-1]).float(), persistent=False)
        self.register_buffer('unity', torch.eye(6), persistent=False)
        self.pooling = [round(s * image_scale) for s in config.spacing]

    @property
    def cells(self) -> int:
        """Values of a template at one resolution."""
        return len(self.all_and_one)

    def pictures(self, image: Tensor) -> list[Tensor]:
        """Grey pictures (B, 1, h, w) of an image (B, H, W, 3) uint8 RGB, coarse to fine."""
        planes = image.permute(0, 3, 1, 2).to(self.grey.dtype)
        fine = (self.grey @ planes.flatten(2)).unflatten(2, planes.shape[2:])
        return [F.avg_pool2d(fine, n) if n > 1 else fine for n in self.pooling]

    def read(
        self, picture: Tensor, cells_and_one: Tensor, spacing: float, xy: Tensor, warp: Tensor
    ) -> Tensor:
        """A picture (B, 1, h, w) in the cells (P, 3), x, y and 1, of patches at xy (B, ..., 2) px
        deformed by warps (B, ..., 2, 2): (B, ..., P).
        """
        to_grid = 2 / self.extent
        # One matrix for warp and place: a sum of the two costs as much as reading the picture.
        axes = spacing * warp.transpose(-1, -2) * to_grid
        centre = ((xy + 0.5) * to_grid - 1)[..., None, :]
        grid = cells_and_one @ torch.cat([axes, centre], -2)
        seen = F.grid_sample(
            picture, grid.flatten(1, -3), padding_mode='border', align_corners=False
        )
        return seen[:, 0].unflatten(1, grid.shape[1:-2])

    def cut(self, pictures: list[Tensor], xy: Tensor) -> Tensor:
        """Templates (B, M, resolutions, cells) at xy (B, M, 2) px."""
        unity = self.unity[:2, :2].expand(*xy.shape, 2)
        return torch.stack(
            [
                self.read(picture, self.all_and_one, spacing, xy, unity)
                for picture, spacing in zip(pictures, self.config.spacing, strict=True)
            ],
            2,
        )

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
        together = energy = own = torch.zeros_like(xy[..., 0])
        index = torch.tensor(which, device=xy.device)
        for level, picture in enumerate(pictures):
            patch, size, basis, solve = (
                x.index_select(1, index) for x in self.prepare(template[..., level, :], 2)
            )
            seen = power = size
            for _ in range(c.steps[level]):
                seen, power = self.look(picture, level, xy, warp)
                # Brightness and the template are projected out of the basis: what is left of the
                # picture, at the template's contrast, is the error.
                change = solve @ (basis @ seen) * (size / power).sqrt()
                length = change.norm(dim=-2, keepdim=True)
                change = change * (c.stride / length.clamp(min=c.stride))
                xy = xy - c.spacing[level] * (warp @ change)[..., 0]
            # How well it fits, where the last step began.
            together = together + (patch @ seen)[..., 0, 0]
            energy, own = energy + power[..., 0, 0], own + size[..., 0, 0]
        return Alignment(xy, warp, together / (energy * own).sqrt())

    def deform(self, pictures: list[Tensor], template: Tensor, xy: Tensor, warp: Tensor) -> Tensor:
        """The warps (B, K, 2, 2) with which templates (B, K, resolutions, cells) fit better at xy
        (B, K, 2) px: one Gauss-Newton step for place and warp, the old one where it does not pay.
        """
        level, limit = self.config.warp_level, self.config.warp_step
        patch, size, basis, solve = self.prepare(template[..., level, :], 6)
        seen, power = self.look(pictures[level], level, xy, warp)
        change = (solve @ (basis @ seen) * (size / power).sqrt())[..., 0]
        bend = (change[..., 2:].unflatten(-1, (2, 2)) / self.config.radius).clamp(-limit, limit)
        bent = warp - warp @ bend
        shift = self.config.spacing[level] * (warp @ change[..., :2, None])[..., 0]
        then, new_power = self.look(pictures[level], level, xy - shift, bent)
        better = patch @ then / new_power.sqrt() > patch @ seen / power.sqrt()
        return torch.where(better, bent, warp)

    def look(self, picture: Tensor, level: int, xy: Tensor, warp: Tensor) -> tuple[Tensor, Tensor]:
        """What a picture holds around xy, deformed by the warp: (B, ..., P, 1), and its weighted
        variance (B, ..., 1, 1), at least that of noise.
        """
        spacing = self.config.spacing[level]
        seen = self.read(picture, self.inner_and_one, spacing, xy, warp)[..., None]
        power = self.mean @ seen.square() - (self.mean @ seen).square()
        return seen, power.clamp(min=0) + self.config.noise**2

    def prepare(self, template: Tensor, unknowns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a template (B, K, cells): its inner part without its mean, weighted (B, K, 1, P);
        its energy (B, K, 1, 1); how it changes with each unknown, without what brightness and
        contrast explain, weighted (B, K, U, P); and the inverse of the normal equations (B, K,
        U, U).
        """
        side = 2 * self.config.radius + 3
        grid = template.unflatten(-1, (side, side))
        patch = grid[..., 1:-1, 1:-1].flatten(-2)[..., None, :]
        slope = torch.stack(
            [
                (grid[..., 1:-1, 2:] - grid[..., 1:-1, :-2]).flatten(-2) / 2,
                (grid[..., 2:, 1:-1] - grid[..., :-2, 1:-1]).flatten(-2) / 2,
            ],
            -2,
        )
        if unknowns == 6:  # slope times offset, for the four numbers of the warp
            offset = (self.inner / self.config.radius).T
            bend = [slope[..., k : k + 1, :] * offset for k in (0, 1)]
            slope = torch.cat([slope, *bend], -2)
        weight = self.mean.transpose(0, 1)  # (P, 1)
        patch = patch - patch @ weight
        heavy = patch * self.weight
        size = heavy @ patch.transpose(-1, -2) + self.config.noise**2
        basis = slope - slope @ weight
        basis = basis - (basis @ heavy.transpose(-1, -2)) / size * patch
        weighted = basis * self.weight
        normal = weighted @ basis.transpose(-1, -2)
        return heavy, size, weighted, self.invert(normal, unknowns)

    def invert(self, normal: Tensor, unknowns: int) -> Tensor:
        """The inverse of damped symmetric matrices (B, K, U, U), by Newton's iteration (Schulz):
        ONNX has no solver.
        """
        unity = self.unity[:unknowns, :unknowns]
        diagonal = (normal * unity).sum(-1)
        root = (diagonal + 0.05 * self.config.noise**2).rsqrt()
        scaled = normal * root[..., None] * root[..., None, :] + self.config.damping * unity
        inverse = unity / unknowns
        for _ in range(6 if unknowns == 2 else 11):
            inverse = inverse @ (2 * unity - scaled @ inverse)
        return inverse * root[..., None] * root[..., None, :]
