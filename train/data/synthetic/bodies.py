"""Bodies in three dimensions: joined ellipsoids that walk or tumble, with exact tracks.

A body is K textured ellipsoids, each the unit sphere under an affine map that changes with time.
It is seen along the z axis without perspective, then through the camera's homography. A line of
sight meets an ellipsoid in closed form, so pixels, tracks and visibility are exact, and come from
the same two functions: `look` goes from pixels to the surface, `to_image` back.

Letters: T frames, K parts, N points. The scene's x and y are px before the camera, z px away from
the viewer; u is a place on the unit sphere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.synthetic.random_source import RandomSource

COVERED = 1.3  # half axes of the largest part that half of a texture reaches


class Parts(NamedTuple):
    """Ellipsoids in units of the body: half axes, as columns (T, K, 3, 3), and centres (T, K,
    3).
    """

    axes: Tensor
    centre: Tensor


class Sight(NamedTuple):
    """What lines of sight (T, K, ...) meet: how far inside the outline, px; depth, px."""

    inside: Tensor
    depth: Tensor


class Body:
    """One body in a clip of T frames."""

    def __init__(
        self,
        parts: Parts,
        camera: Tensor,
        texture: Sequence[Tensor],
        offset: Tensor,
        shade: Tensor,
        sun: Tensor,
    ):
        """parts in px; camera (T, 3, 3), px to image px; texture, of each part, (3, h, w); offset
        (K, 2), where on it each lies; shade (K,), its brightness; sun (3,), where light comes
        from, as long as it is strong.
        """
        self.parts, self.texture, self.offset = parts, texture, offset
        self.shade, self.sun = shade, sun
        self.camera, self.view = camera, torch.linalg.inv(camera.double()).float()
        # A line of sight at v = (x, y) from the centre meets the sphere where |W (v, z)| = 1: at
        # z = -g v -+ n sqrt(1 - v P v).
        self.unit = torch.linalg.inv(parts.axes.double()).float()  # W
        across, along = self.unit[..., :2], self.unit[..., 2:]
        length = along.square().sum(-2, keepdim=True)
        self.slope = (across * along / length).sum(-2)  # g
        self.thickness = length[..., 0, 0].rsqrt()  # n
        rest = across - along * self.slope[..., None, :]
        self.outline = rest.transpose(-1, -2) @ rest  # P
        size = parts.axes.norm(dim=-2)
        self.span = size[0, :, :2] / size[0].amax() / COVERED  # of a part on the texture

    def during(self, frames: slice | Tensor) -> Body:
        """The same body at some of the times, in any order."""
        part = copy.copy(self)
        part.parts = Parts(*(x[frames] for x in self.parts))
        for name in ('camera', 'view', 'unit', 'slope', 'thickness', 'outline'):
            setattr(part, name, getattr(self, name)[frames])
        return part

    def sight(self, v: Tensor, part: slice) -> Sight:
        """Lines of sight v (T, K, M, 2) px from the centres of some parts."""
        pushed = v @ self.outline[:, part]  # P is symmetric
        q = (v * pushed).sum(-1)
        # First order distance to the outline: (1 - sqrt q) / |grad sqrt q|.
        inside = (q.sqrt() - q) / pushed.norm(dim=-1).clamp_min(1e-9)
        inside = torch.where(q < 1e-6, self.thickness.new_tensor(1e3), inside)
        reach = (1 - q).clamp_min(0).sqrt() * self.thickness[:, part, None]
        level = self.parts.centre[:, part, 2, None] - (v * self.slope[:, part, None]).sum(-1)
        return Sight(inside, level - reach)

    def look(self, xy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image px xy (T, N, 2) to the surface seen there: coverage (T, N), depth (T, N) px, part
        (T, N) and u (T, N, 3).
        """
        place = transform(self.view, xy)[:, None]
        v = place - self.parts.centre[:, :, None, :2]
        sight = self.sight(v, slice(None))
        cover = (sight.inside + 0.5).clamp(0, 1)
        depth = torch.where(cover > 0.5, sight.depth, math.inf)
        nearest, part = depth.min(1)
        pick = torch.arange(len(xy), device=xy.device)[:, None], part
        points = torch.arange(xy.shape[1], device=xy.device)
        ray = torch.cat([v, (sight.depth - self.parts.centre[..., 2:])[..., None]], -1)
        u = (self.unit[pick] @ ray[pick[0], part, points][..., None])[..., 0]
        return cover.amax(1), nearest, part, u

    def to_image(self, part: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Places u (N, 3) of parts (N,) in all frames: image px (T, N, 2) and depth (T, N) px."""
        place = (self.parts.axes[:, part] @ u[:, :, None])[..., 0] + self.parts.centre[:, part]
        return transform(self.camera, place[..., :2]), place[..., 2]

    def follow(self, xy: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """The surface seen at xy (N, 2) px in frames query (N,): its image px in all frames, (T,
        N, 2), and where another part of the body hides it or it faces away, (T, N).
        """
        _, _, part, u = self.during(query).look(xy[:, None])
        track, depth = self.to_image(part[:, 0], u[:, 0])
        return track, depth > self.look(track)[1] + 0.5

    def colour(self, k: int, u: Tensor) -> Tensor:
        """Colours of part k at u (T, h, w, 3): (T, 3, h, w) in [0, 1]. The texture goes around the
        first axis, its two halves each other's mirror image.
        """
        around = torch.atan2(u[..., 2], u[..., 1]).abs()
        spot = torch.stack([u[..., 0], around - math.pi / 2], -1) * self.span[k] + self.offset[k]
        rgb = F.grid_sample(
            self.texture[k].expand(len(u), -1, -1, -1),
            spot,
            padding_mode='reflection',
            align_corners=True,
        )
        normal = F.normalize(u @ self.unit[:, k, None], dim=-1)
        light = 1 + 0.5 * ((normal * self.sun).sum(-1) - self.sun.norm())
        return (rgb * (light * self.shade[k])[:, None]).clamp(0, 1)

    def draw(self, image: Tensor) -> None:
        """Draw the body over frames (T, 3, H, W) in [0, 1], in place."""
        height, width = image.shape[2:]
        depth = torch.full((len(image), height, width), math.inf, device=image.device)
        pixel = pixels(height, width, image.device)
        for k in self.parts.centre[..., 2].mean(0).argsort(descending=True).tolist():
            rows, columns = self.box(k, height, width)
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            place = pixel[rows, columns].expand(len(image), -1, -1, -1)
            v = transform(self.view, place) - self.parts.centre[:, k, None, None, :2]
            inside, z = (
                x.view(place.shape[:3])
                for x in self.sight(v.flatten(1, 2)[:, None], slice(k, k + 1))
            )
            ray = torch.cat([v, (z - self.parts.centre[:, k, 2, None, None])[..., None]], -1)
            colour = self.colour(k, ray @ self.unit[:, k, None].transpose(-1, -2))
            before = depth[:, rows, columns]
            cover = (inside + 0.5).clamp(0, 1) * (z < before)
            below = image[..., rows, columns]
            image[..., rows, columns] = below + cover[:, None] * (colour - below)
            depth[:, rows, columns] = torch.where(cover > 0.5, z, before)

    def box(self, k: int, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the image outside which part k is never seen."""
        reach = self.parts.axes[:, k, :2].norm(dim=-1) + 1
        corner = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], device=reach.device)
        place = self.parts.centre[:, k, None, :2] + corner * reach[:, None]
        return bounds(transform(self.camera, place), height, width)


def bounds(xy: Tensor, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of an image that hold all of the pixels xy (..., 2)."""
    sides = []
    for value, size in ((xy[..., 1], height), (xy[..., 0], width)):
        low, high = value.amin().floor().clamp(0, size), (value.amax().ceil() + 1)
        sides.append(slice(int(low), int(high.clamp(0, size))))
    return sides[0], sides[1]


def pixels(height: int, width: int, device: torch.device) -> Tensor:
    """Every pixel's x, y: (height, width, 2)."""
    axes = [torch.arange(n, device=device).float() for n in (width, height)]
    return torch.stack(torch.meshgrid(*axes, indexing='xy'), -1)


def transform(matrix: Tensor, xy: Tensor) -> Tensor:
    """Apply homographies (..., 3, 3) to points (..., *, 2), the leading axes shared."""
    extra = xy.ndim - matrix.ndim + 1
    m = matrix.reshape(matrix.shape[:-2] + (1,) * extra + (3, 3))
    x, y = xy.unbind(-1)
    # Written out: a batched product of 3x3 matrices copies the whole pixel grid several times.
    w = (m[..., 2, 0] * x + m[..., 2, 1] * y + m[..., 2, 2]).clamp_min(1e-3)
    return torch.stack(
        [(m[..., i, 0] * x + m[..., i, 1] * y + m[..., i, 2]) / w for i in (0, 1)], -1
    )


def random_body(
    random: RandomSource,
    times: Tensor,
    camera: Tensor,
    texture: Tensor,
    size: tuple[int, int],
    light: float,
) -> Body:
    """An animal that walks and turns, or a rigid cluster of ellipsoids that tumbles, at times (T,)
    in an image of size (height, width) px. camera as `Body`'s; texture (3, h, w) in [0, 1]. The
    strength of the light is drawn from 0 to `light`.
    """
    height, width = size
    frames, walks = len(times), random.number() < 0.7
    parts = animal(random, times) if walks else rigid_cluster(random, frames)
    # Animals stand upright and are seen from somewhat above.
    turn = random.path((3,), times, 0.012 if walks else 0.03)
    start = random.uniform(3, 1, high=2 * math.pi)
    if walks:
        turn[1:], start[1] = turn[1:] * 0.2, random.number(-0.1, 0.5)
        start[2] = 0.1 * float(random.normal(1))
    yaw, pitch, roll = turn + start
    rotation = axis_rotation(2, roll) @ axis_rotation(0, pitch) @ axis_rotation(1, yaw)
    scale = random.size(0.13, 0.4) * height * random.path((), times, 0.01).clamp(-0.5, 0.5).exp()
    middle = random.uniform(2, low=0.25, high=0.75) * torch.tensor(
        [width, height], device=random.device
    )
    speed = 0.006 * width * math.exp(0.8 * float(random.normal(1)))
    place = middle[:, None] + random.path((2,), times, speed)
    carried = rotation * scale[:, None, None]
    centre = (carried[:, None] @ parts.centre[..., None])[..., 0]
    centre[..., :2] += place.T[:, None]
    count = parts.centre.shape[1]
    sun = F.normalize(
        random.normal(3) - torch.tensor([0.0, 1.0, 0.7], device=random.device), dim=0
    )
    return Body(
        Parts(carried[:, None] @ parts.axes, centre),
        camera,
        [texture] * count,
        0.6 * (random.uniform(count, 2) - 0.5),
        torch.exp(0.12 * random.normal(count)),
        sun * random.number() * light,
    )


def animal(random: RandomSource, times: Tensor) -> Parts:
    """A trunk with a hump, neck, head, tail and four legs of three parts. x forward, y down, z
    from left to right; the trunk is two units long. Hip and knee swing as sines of one period.
    """
    frames, pi = len(times), math.pi
    still = torch.zeros(frames, device=random.device)
    axes, centres = [], []

    def add(middle: Tensor, angle: Tensor, half: float, thick: float, wide: float) -> None:
        c, s = angle.cos(), angle.sin()
        rows = [
            half * c,
            -thick * s,
            still,
            half * s,
            thick * c,
            still,
            still,
            still,
            still + wide,
        ]
        axes.append(torch.stack(rows, -1).view(frames, 3, 3))
        centres.append(middle)

    def bone(start: Tensor, angle: Tensor, length: float, thick: float, wide: float) -> Tensor:
        """A part that hangs at its start; returns its end."""
        way = torch.stack([angle.cos(), angle.sin(), still], -1) * length
        add(start + way / 2, angle, 0.5 * length + 0.6 * thick, thick, wide)
        return start + way

    def at(x: float, y: float, z: float) -> Tensor:
        return torch.tensor([x, y, z], device=random.device).expand(frames, 3)

    deep, broad = random.number(0.3, 0.5), random.number(0.25, 0.42)
    add(at(0, 0, 0), still, 1.0, deep, broad)
    hump = random.number(-0.6, 0.6)
    add(
        at(hump, -random.number(0.0, 0.8) * deep, 0),
        still,
        random.size(0.25, 0.6),
        0.8 * deep,
        0.8 * broad,
    )
    nod = random.path((), times, 0.02).clamp(-0.6, 0.6)
    rise, length = -random.number(0.1, 1.4) + nod, random.size(0.4, 1.0)
    end = bone(
        at(0.8, -0.3 * deep, 0), rise, length, random.number(0.14, 0.24), random.number(0.1, 0.2)
    )
    bone(end, rise + random.number(0.5, 1.5), random.number(0.3, 0.6), 0.16, 0.12)
    wag = pi - random.number(0.2, 1.6) + random.path((), times, 0.05).clamp(-0.8, 0.8)
    bone(at(-0.9, -0.4 * deep, 0), wag, random.number(0.3, 1.0), 0.06, 0.06)

    beat = random.number(0.1, 0.6) * times
    gait = random.uniform(4, high=2 * pi)
    if random.number() < 0.7:  # diagonal legs together
        gait = torch.tensor([0.0, pi, pi, 0.0], device=random.device) + 0.5 * gait / pi
    stride, bend = random.number(0.1, 0.55), random.number(0.1, 0.6)
    upper, lower = random.number(0.45, 0.75), random.number(0.45, 0.75)
    thick, foot = random.number(0.09, 0.2), random.number(0.12, 0.3)
    for leg in range(4):
        front, side = (1.0 if leg % 2 else -1.0), (1.0 if leg < 2 else -1.0)
        phase = beat + gait[leg]
        hip = at(0.68 * front, 0.45 * deep, 0.65 * broad * side)
        swing = pi / 2 + stride * phase.sin()
        knee = bone(hip, swing, upper, 1.3 * thick, thick)
        swing = swing + bend * (front + (phase + 1.3).sin())
        ankle = bone(knee, swing, lower, 0.7 * thick, 0.7 * thick)
        bone(ankle, swing - 0.9, foot, 0.6 * thick, 0.7 * thick)
    return Parts(torch.stack(axes, 1), torch.stack(centres, 1))


def rigid_cluster(random: RandomSource, frames: int) -> Parts:
    """Two to six ellipsoids that intersect and do not move against each other."""
    count = 2 + random.integer(5)
    turned = torch.linalg.qr(random.normal(count, 3, 3))[0]
    half = torch.exp(random.uniform(count, 3, low=math.log(0.15), high=math.log(0.9)))
    axes, centre = turned * half[:, None], 0.45 * random.normal(count, 3)
    return Parts(axes.expand(frames, -1, -1, -1), centre.expand(frames, -1, -1))


def axis_rotation(axis: int, angle: Tensor) -> Tensor:
    """Rotations by angles (T,) about a coordinate axis: (T, 3, 3)."""
    c, s, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
    rows = [[one, zero, zero], [zero, c, -s], [zero, s, c]]
    about_x = torch.stack([torch.stack(row, -1) for row in rows], -2)
    return about_x.roll((axis, axis), (-2, -1))
