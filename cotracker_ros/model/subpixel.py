"""Sub-pixel alignment of small grey patches: where exactly a point is, once the tracker has said
roughly where.

A patch is of the picture in which its point was queried, and often shows more than the surface of
its point: what lies before or behind that moves another way and would take the point along. A
small network tells from the colours which cells count (`PatchWeights`).

Inverse compositional Gauss-Newton (Baker and Matthews, Lucas-Kanade 20 years on, IJCV 2004,
section 3.2), coarse to fine over pictures of three resolutions. The patch may be brighter or
darker and of another contrast than its template: both are projected out of the problem (section 4
of part 3 of the same work). At the middle resolution an affine warp is estimated, so that a
template stays usable while its surface turns or comes nearer; at the others the place alone.

Pixels here are model pixels, (0, 0) the centre of the top-left one. The pictures are of
`image_scale` times that resolution and coarser, and cover the same area, so that a place has
the same normalised coordinates in all of them. B cameras, M templates, L places at which each is
looked for, P cells of a patch; R resolutions.
"""

from __future__ import annotations

import math
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
    # Gain in correlation from which on a change of the warp is applied in full. A smaller gain
    # applies it in proportion, none not at all: with a hard limit rounding decided between warps
    # that fit equally well.
    warp_gain: float = 0.001
    damping: float = 0.01  # of the normal equations, against their diagonal
    noise: float = 2.0  # grey levels that count as no texture
    stride: float = 1.5  # cells, longest step


class Alignment(NamedTuple):
    """xy (B, M, L, 2) px; fit (B, M, L), the correlation of template and picture over all
    resolutions, in [-1, 1].
    """

    xy: Tensor
    fit: Tensor


class Pictures(NamedTuple):
    """A frame: in colour (B, 3, H, W), and in grey at the resolutions of patches, coarse to fine,
    (B, 1, h, w); 0 to 255.
    """

    colour: Tensor
    grey: list[Tensor]


class Templates(NamedTuple):
    """What aligning needs of patches, which the picture does not change. The products of what a
    picture shows with rows (U + 2, P), for U unknowns, are the change of the unknowns where the
    picture has the template's contrast, the covariance of both, and the picture's mean, by the
    weights of the cells, which are the last row. Covariances are with a template of variance 1.

    place (B, M, R, 4, P), for the place alone, of variance 1 over all resolutions; warp
    (B, M, 8, P), for place and warp, at one resolution.
    """

    place: Tensor
    warp: Tensor

    @classmethod
    def empty(
        cls, aligner: PatchAligner, cameras: int, slots: int, device: torch.device | str = 'cpu'
    ) -> Templates:
        """Of no patch: nothing fits, and nothing moves."""
        shape, cells = (cameras, slots), aligner.inner.shape[0]
        place, warp = (len(aligner.config.spacing), 4, cells), (8, cells)
        return cls(*(torch.zeros(*shape, *rest, device=device) for rest in (place, warp)))


class PatchWeights(nn.Module):
    """How much every cell of a patch counts, 0 to 1: much where aligning by it has brought points
    to where they are, above all where it shows the surface of its point.

    Convolutions over the two coarser resolutions of a patch, of the colours against those of its
    middle. Before it is trained all cells count alike.
    """

    RESOLUTIONS, WIDTHS, HIDDEN = 2, (24, 32), 128

    def __init__(self, side: int, outputs: tuple[int, int]):
        """side: cells of a patch along each axis; outputs: resolutions and cells of a weight."""
        super().__init__()
        self.side, self.outputs = side, outputs
        first, second = self.WIDTHS
        left = math.ceil(math.ceil(side / 2) / 2)
        self.layers = nn.Sequential(
            nn.Conv2d(5 * self.RESOLUTIONS, first, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * left**2, self.HIDDEN),
            nn.ReLU(),
            nn.Linear(self.HIDDEN, math.prod(outputs)),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Of patches (B, M, R, 3, cells): (B, M, R, P)."""
        colour = patches[:, :, : self.RESOLUTIONS].unflatten(-1, (self.side, self.side))
        middle = slice(self.side // 2 - 1, self.side // 2 + 2)
        away = (colour - colour[..., middle, middle].mean((-1, -2), keepdim=True)) / 32
        far = away.abs().mean(3)
        inputs = torch.cat(
            [away.flatten(2, 3), (-2 * far).exp(), (-4 * far.square()).exp()], 2
        ).flatten(0, 1)
        shares = self.layers(inputs).sigmoid()
        return shares.unflatten(-1, self.outputs).unflatten(0, patches.shape[:2])


class PatchAligner(nn.Module):
    """Cuts templates and finds them again."""

    def __init__(self, config: AlignmentConfig, image_size: tuple[int, int], image_scale: int):
        """`image_size` (H, W) px of the model; pictures are `image_scale` times as large."""
        super().__init__()
        self.config, self.image_size, self.image_scale = config, image_size, image_scale
        reach = config.radius + 1  # one more cell on each side, for the slopes
        axis = torch.arange(-reach, reach + 1.0)
        offsets = torch.stack(torch.meshgrid(axis, axis, indexing='xy'), -1)
        inner = offsets[1:-1, 1:-1].reshape(-1, 2)
        nearness = torch.exp(-0.5 * inner.square().sum(-1) / (0.6 * config.radius) ** 2)

        def constant(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        constant('inner', inner)
        constant('inner_cells', spread(inner))
        constant('all_cells', spread(offsets.reshape(-1, 2)))
        constant('nearness', nearness)
        constant('grey', torch.tensor([[0.299, 0.587, 0.114]]))
        constant('to_grid', 2 / torch.tensor(image_size[::-1]).float())
        constant('unity', torch.eye(8))
        # A matrix of two rows, as four numbers, to its adjugate.
        constant(
            'adjugate', torch.tensor([[0.0, 0, 0, 1], [0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]])
        )
        self.pooling = [round(s * image_scale) for s in config.spacing]
        self.weights = PatchWeights(2 * reach + 1, (len(config.spacing), len(inner)))

    def of_size(self, image_size: tuple[int, int]) -> PatchAligner:
        """The same, with the same weights, for pictures of another size."""
        other = PatchAligner(self.config, image_size, self.image_scale).to(self.grey)
        other.weights = self.weights
        return other

    def pictures(self, image: Tensor) -> Pictures:
        """Of an image (B, H, W, 3) uint8 RGB."""
        colour = image.permute(0, 3, 1, 2).to(self.grey.dtype)
        return Pictures(colour, self.resolutions(self.brightness(colour)))

    def brightness(self, colour: Tensor) -> Tensor:
        """Pictures in colour (B, 3, H, W) in grey, (B, 1, H, W)."""
        return (self.grey @ colour.flatten(2)).unflatten(2, colour.shape[2:])

    def resolutions(self, grey: Tensor) -> list[Tensor]:
        """Grey pictures (B, 1, H, W) at the resolutions of patches, coarse to fine."""
        return [pooled(grey, n) for n in self.pooling]

    def place(self, xy: Tensor) -> Tensor:
        """Places (..., 2) px in normalised coordinates."""
        return (xy + 0.5) * self.to_grid - 1

    def axes(self, warp: Tensor, level: int) -> Tensor:
        """The steps from cell to cell of patches deformed by warps (..., 2, 2), in normalised
        coordinates: (..., 2, 2), a row for each axis of the template.
        """
        return warp.transpose(-1, -2) * (self.config.spacing[level] * self.to_grid)

    def read(self, picture: Tensor, cells: Tensor, place: Tensor, axes: Tensor) -> Tensor:
        """A picture (B, C, h, w) in cells, see `spread`, of patches with `axes` (B, M, 2, 2) at
        `place` (B, M, L, 2): (B, C, M, L, P).
        """
        # One product for all patches: a small one for each takes longer than reading the picture.
        axes = axes.flatten(-2)[..., None, :].expand(*place.shape[:-1], 4)
        grid = (torch.cat([axes, place], -1) @ cells).unflatten(-1, (-1, 2))
        seen = F.grid_sample(
            picture, grid.flatten(1, 2), padding_mode='border', align_corners=False
        )
        return seen.unflatten(2, grid.shape[1:3])

    def cut(self, picture: Tensor, xy: Tensor) -> Tensor:
        """Patches (B, M, R, 3, cells) of a picture (B, 3, H, W) at xy (B, M, 2) px, with one more
        cell on each side.
        """
        place, unity = self.place(xy)[..., None, :], self.unity[:2, :2].expand(*xy.shape, 2)
        seen = []
        for level, n in enumerate(self.pooling):
            axes = self.axes(unity, level)
            seen.append(self.read(pooled(picture, n), self.all_cells, place, axes)[..., 0, :])
        # Joined by their cells: TensorRT-RTX 1.7 crashes on a graph that joins what was sampled in
        # several pictures along another axis.
        return torch.cat(seen, -1).unflatten(-1, (len(seen), -1)).permute(0, 2, 3, 1, 4)

    def renew(self, old: Templates, new: Tensor, pictures: Pictures, xy: Tensor) -> Templates:
        """Templates of which some, new (B, M) bool, are cut at xy (B, M, 2) px.

        An exported graph does nothing where there is no new one: that is 5 to 13 % of a step.
        """

        def cut(
            new: Tensor, place: Tensor, warp: Tensor, xy: Tensor, picture: Tensor
        ) -> tuple[Tensor, Tensor]:
            patches = self.cut(picture, xy.unflatten(0, (picture.shape[0], -1)))
            made, mask = self.prepare(patches), new[:, None, None]
            return (
                torch.where(mask[..., None], made.place.flatten(0, 1), place),
                torch.where(mask, made.warp.flatten(0, 1), warp),
            )

        def keep(
            new: Tensor, place: Tensor, warp: Tensor, xy: Tensor, picture: Tensor
        ) -> tuple[Tensor, Tensor]:
            return place.clone(), warp.clone()

        # Cameras and points as one axis: the exporter cannot do with strides that it must compute.
        given = (
            new.flatten(), old.place.flatten(0, 1), old.warp.flatten(0, 1), xy.flatten(0, 1),
            pictures.colour,
        )  # fmt: skip
        exporting = torch.compiler.is_exporting()
        place, warp = torch.cond(new.any(), cut, keep, given) if exporting else cut(*given)
        return Templates(place.unflatten(0, new.shape), warp.unflatten(0, new.shape))

    def prepare(self, patches: Tensor) -> Templates:
        """Templates of patches (B, M, R, 3, cells)."""
        weight = self.nearness * self.weights(patches)
        weight = (weight / weight.sum(-1, keepdim=True).clamp(min=1e-6))[..., None, :]
        patch, level = (self.grey @ patches)[..., 0, :], self.config.warp_level
        place, power = self.solved(self.parts(patch, 2), weight, 2)
        change, covariance, mean = place.split([2, 1, 1], -2)
        covariance = covariance * power.sum(2, keepdim=True).rsqrt()
        warp, power = self.solved(self.parts(patch[..., level, :], 6), weight[..., level, :, :], 6)
        bend, with_warp, _ = warp.split([6, 1, 1], -2)
        return Templates(
            torch.cat([change, covariance, mean], -2),
            torch.cat([bend, with_warp * power.rsqrt(), weight[..., level, :, :]], -2),
        )

    def parts(self, patch: Tensor, unknowns: int) -> Tensor:
        """What grey patches (..., cells) are made of, (..., U + 2, P): the inner part, how that
        changes with x and y and, of 6 unknowns, with the four numbers of the warp; and ones.
        """
        # Against its centre, so that rounding does not grow with brightness.
        middle = patch.shape[-1] // 2
        side = 2 * self.config.radius + 3
        grid = (patch - patch[..., middle : middle + 1]).unflatten(-1, (side, side))
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

    def solved(self, parts: Tensor, weight: Tensor, unknowns: int) -> tuple[Tensor, Tensor]:
        """Rows as `Templates` has them, (..., U + 2, P), of parts (..., U + 2, P) and weights
        (..., 1, P) that add up to 1; and the weighted variance of the template (..., 1, 1).
        """
        heavy = parts * weight
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
        return mix @ heavy, power

    def align(
        self, pictures: Pictures, templates: Templates, xy: Tensor, warp: Tensor
    ) -> Alignment:
        """Find templates, deformed by warps (B, M, 2, 2), near places xy (B, M, L, 2) px."""
        c = self.config
        place, together, energy = self.place(xy), [], []
        for level, picture in enumerate(pictures.grey):
            axes, rows = self.axes(warp, level), templates.place[:, :, level]
            for _ in range(c.steps[level]):
                change, covariance, variance = self.look(picture, rows, place, axes)
                # The template's contrast is the picture's here; and a step is not too long.
                longest = change.square().sum(-1, keepdim=True) / c.stride**2
                place = place - change * torch.maximum(variance, longest).rsqrt() @ axes
            # How well it fits, where the last step began.
            together.append(covariance)
            energy.append(variance)
        fit = sum(together) * sum(energy).rsqrt()
        return Alignment((place + 1) / self.to_grid - 0.5, fit[..., 0])

    def deform(self, pictures: Pictures, templates: Templates, xy: Tensor, warp: Tensor) -> Tensor:
        """The warps (B, M, 2, 2) with which templates fit better at xy (B, M, 2) px: one
        Gauss-Newton step for place and warp, as far as it pays.
        """
        level, limit = self.config.warp_level, self.config.warp_step
        picture, rows = pictures.grey[level], templates.warp
        place, axes = self.place(xy)[..., None, :], self.axes(warp, level)
        change, covariance, variance = self.look(picture, rows, place, axes)
        move, bend = (change * variance.rsqrt()).split([2, 4], -1)
        bend = (bend.unflatten(-1, (2, 2))[..., 0, :, :] / self.config.radius).clamp(-limit, limit)
        bent = warp - warp @ bend
        _, then, new_variance = self.look(
            picture, rows, place - move @ axes, self.axes(bent, level)
        )
        gain = then * new_variance.rsqrt() - covariance * variance.rsqrt()
        return warp + (gain / self.config.warp_gain).clamp(0, 1) * (bent - warp)

    def look(
        self, picture: Tensor, rows: Tensor, place: Tensor, axes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Products of what a picture holds at places (B, M, L, 2) with rows (B, M, U + 2, P) of
        `Templates`: the change of the unknowns (B, M, L, U) and the covariance (B, M, L, 1); and
        the picture's weighted variance (B, M, L, 1), with that of noise.
        """
        seen = self.read(picture, self.inner_cells, place, axes)[:, 0]
        products = seen @ rows.transpose(-1, -2)
        change, covariance, mean = products.split([rows.shape[-2] - 2, 1, 1], -1)
        variance = seen.square() @ rows[..., -1:, :].transpose(-1, -2) - mean.square()
        return change, covariance, variance.clamp(min=0) + self.config.noise**2

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


def pooled(picture: Tensor, size: int) -> Tensor:
    """Means of size x size pixels of a picture (B, C, h, w)."""
    return F.avg_pool2d(picture, size) if size > 1 else picture


def spread(cells: Tensor) -> Tensor:
    """What the six numbers of two axes and a place, row by row, give to x and y of the cells
    (P, 2) of a patch: (6, 2 P), x and y of a cell side by side.
    """
    numbers = torch.cat([cells, torch.ones(len(cells), 1)], 1).T
    return torch.kron(numbers.contiguous(), torch.eye(2))
