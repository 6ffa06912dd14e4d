"""Procedural video with exact tracks: layered textured sprites on smooth random paths.

A scene is a background and K sprites in depth order; some have a body in three dimensions between
them (bodies.py, people.py). A layer is a function of its own coordinates
u in [-1, 1]^2 (texture and coverage), carried to the image by a homography that changes with time
and, for some layers, bent by a smooth non-rigid wave. Rendering maps every pixel back to u and
composites the layers; a track maps one u forward; visibility samples the same coverage at the same
place. All three use the same two functions, `to_layer` and `to_image`, so tracks are exact by
construction.

Coordinates of tracks are pixels, (0, 0) the centre of the top-left pixel, x before y.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cotracker_ros.geometry import between_centres
from train.data.batch import Clips
from train.data.occluders import hide, is_hidden
from train.data.synthetic.bodies import Body, bounds, pixels, random_body, transform
from train.data.synthetic.people import TEXTURES, People, random_people
from train.data.synthetic.random_source import RandomSource
from train.data.synthetic.textures import TextureBank

BODY_TEXTURE = 256  # px
RUN = 8  # frames rendered at once: short, so that a sprite's box in them is small


@dataclass(frozen=True)
class SceneConfig:
    """What the random scenes are made of; every field is a range or a probability."""

    size: tuple[int, int] = (192, 256)  # height, width, px
    frames: int = 16
    objects: tuple[int, int] = (4, 9)
    radius: tuple[float, float] = (0.08, 0.36)  # sprite radius / image height
    speed: float = 0.012  # typical displacement of a sprite per frame / image width
    camera_speed: float = 0.008  # typical displacement of the background per frame / image width
    bend: float = 0.5  # share of sprites that bend
    articulated: float = 0.45  # share of sprites that are jointed to the one before
    bodies: float = 0.0  # share of clips with a body in three dimensions behind the sprites
    people: float = 0.0  # share of clips with people behind the sprites, in place of a body
    photometric: float = 1.0  # strength of lighting, blur and noise
    still_camera: float = 0.15  # share of clips whose camera does not move
    distractors: float = 0.0  # share of sprites that look like the one before
    occluders: float = 0.0  # share of clips before which an occluder stands for a while
    corruption: float = 0.0  # share of clips with a run of black, white, noise or frozen frames
    jpeg: float = 0.0  # share of clips compressed as a camera's driver does


class Layers:
    """Geometry of B scenes of L layers at T times; layer 0 is the background.

    forward (B, L, T, 3, 3) maps layer coordinates to pixels; amplitude, frequency (B, L, 2) and
    phase (B, L, T, 2) describe the wave u = v + amplitude * sin(frequency * swap(v) + phase).
    camera (B, T, 3, 3) is what the background's maps have of the camera, pixels to pixels.
    """

    def __init__(
        self,
        forward: Tensor,
        amplitude: Tensor,
        frequency: Tensor,
        phase: Tensor,
        camera: Tensor,
    ):
        self.forward, self.inverse = forward, torch.linalg.inv(forward.double()).float()
        self.camera = camera
        self.amplitude, self.frequency, self.phase = amplitude, frequency, phase

    def during(self, frames: slice) -> Layers:
        """The same layers at some of the times."""
        part = copy.copy(self)  # the inverse is sliced too, not computed again
        part.forward, part.inverse, part.phase = (
            x[:, :, frames] for x in (self.forward, self.inverse, self.phase)
        )
        return part

    def box(self, layer: int, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the image outside which a layer never covers anything."""
        reach = 1 + self.amplitude[:, layer].abs().amax()
        square = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], device=reach.device)
        corners = F.pad(square * reach, (0, 1), value=1.0)
        x, y, w = (self.forward[:, layer] @ corners.T).unbind(2)
        if w.amin() < 0.05:  # seen almost along its plane: it may reach anywhere
            return slice(0, height), slice(0, width)
        return bounds(torch.stack([x / w, y / w], -1), height, width)

    def wave(self, v: Tensor, layer: Tensor | int) -> Tensor:
        """Displacement of the non-rigid wave at v (B, T, ..., 2)."""
        shape = (v.shape[0], -1) + (1,) * (v.ndim - 3) + (2,)
        amplitude = self.amplitude[:, layer].view(shape)
        frequency = self.frequency[:, layer].view(shape)
        return amplitude * torch.sin(frequency * v.flip(-1) + self.phase[:, layer].view(shape))

    def to_layer(self, xy: Tensor, layer: int) -> Tensor:
        """Pixels (B, T, ..., 2) to coordinates u of one layer."""
        v = transform(self.inverse[:, layer], xy)
        return v + self.wave(v, layer)

    def to_image(self, u: Tensor, layer: Tensor) -> Tensor:
        """Layer coordinates u (B, N, 2) of the points' own layers (B, N) to pixels (B, T, N,
        2).
        """
        pick = torch.arange(len(u), device=u.device)[:, None]
        amplitude = self.amplitude[pick, layer][:, None]
        frequency = self.frequency[pick, layer][:, None]
        phase = self.phase[pick, layer].transpose(1, 2)
        v = u[:, None].expand_as(phase)
        for _ in range(40):  # a contraction of at most 0.5: exact in float32 after 25
            v = u[:, None] - amplitude * torch.sin(frequency * v.flip(-1) + phase)
        return transform(self.forward[pick, layer].transpose(1, 2), v[..., None, :])[..., 0, :]


class Chosen(NamedTuple):
    """Points to track: xy (B, N, 2) px in frames query (B, N), where layer top (B, N), 0 the
    background, is seen, or a body before the background, on_body (B, N) bool.
    """

    xy: Tensor
    query: Tensor
    top: Tensor
    on_body: Tensor


class ProceduralVideo(RandomSource):
    """A seeded source of clips. The same seed gives the same clips on the same device."""

    def __init__(
        self,
        config: SceneConfig,
        seed: int = 0,
        device: torch.device | str = 'cpu',
        textures: Sequence[np.ndarray] = (),
        bank: int = 64,
    ):
        """Textures are photographs (H, W, 3) uint8 to mix with the generated bank of `bank`
        textures.
        """
        super().__init__(torch.Generator(device=device).manual_seed(seed))
        self.config = config
        self.bank = TextureBank(bank, self.rng, textures)

    # scene
    # ----------------------------------------------------------------------------------------

    def layers(self, batch: int, times: Tensor) -> Layers:
        """Random geometry of `batch` scenes at the given times (B, T)."""
        c, width = self.config, self.config.size[1]
        count, times = c.objects[1] + 1, times[:, None]
        # Half of the sprites are slow, a few are fast; the camera likewise.
        tempo = torch.exp(0.9 * self.normal(batch, count)).clamp(0.02, 4)
        camera = c.camera_speed * width * torch.exp(0.9 * self.normal(batch)).clamp(0.02, 4)
        camera = camera * ~self.chance(c.still_camera, batch)
        alone, jointed = self.sprite_maps(tempo, times), self.joint_maps(tempo, times)
        self.articulated = self.chance(c.articulated, batch, count)
        self.articulated[:, :2] = False  # the background, and the first sprite, which hangs on it
        chain = [alone[:, 0], alone[:, 1]]
        for k in range(2, count):
            hangs = self.articulated[:, k, None, None, None]
            chain.append(torch.where(hangs, chain[-1] @ jointed[:, k], alone[:, k]))
        view = self.camera_maps(camera, times, count)
        return Layers(view @ torch.stack(chain, 1), *self.waves(tempo, times), view[:, 0])

    def sprite_maps(self, tempo: Tensor, times: Tensor) -> Tensor:
        """Homographies (B, L, T, 3, 3) of layers that move by themselves, layer coordinates to px;
        tempo (B, L) against the usual speed, times (B, 1, T). The background does not move.
        """
        c, (height, width), shape = self.config, self.config.size, tempo.shape
        low, high = (math.log(r) for r in c.radius)
        radius = torch.exp(self.uniform(*shape, low=low, high=high)) * height
        radius[:, 0] = 0.9 * width
        centre = self.uniform(*shape, 2) * torch.tensor([width, height], device=self.device)
        centre[:, 0] = torch.tensor([width / 2, height / 2], device=self.device)
        moves = (torch.arange(shape[1], device=self.device) > 0).float()
        shift = self.path_xy(shape, times, c.speed * width * tempo * moves)
        angle = self.path(shape, times, 0.04 * moves * tempo)
        zoom = self.path(shape, times, 0.02 * moves * tempo).clamp(-0.7, 0.7)
        tilt = self.path_xy(shape, times, 0.015 * moves).clamp(-0.25, 0.25)
        start = self.uniform(*shape, 1, high=2 * math.pi)
        aspect = torch.exp(0.35 * self.normal(*shape, 1))
        start[:, 0], aspect[:, 0] = start[:, 0] * 0.1, 1.0
        scale = radius[..., None] * zoom.exp()
        return matrix(scale, angle + start, centre[:, :, None] + shift, tilt, aspect)

    def joint_maps(self, tempo: Tensor, times: Tensor) -> Tensor:
        """Homographies (B, L, T, 3, 3) of layers that hang on the one before, their coordinates to
        its: a joint inside its outline, about which they swing.
        """
        shape, frames = tempo.shape, times.shape[-1]
        swing = self.path(shape, times, 0.12 * tempo.clamp_max(1.5))
        swing = swing + self.uniform(*shape, 1, high=2 * math.pi)
        size = self.uniform(*shape, 1, low=0.35, high=0.8).expand(-1, -1, frames)
        joint = self.uniform(*shape, 1, 2, low=-0.6, high=0.6).expand(-1, -1, frames, -1)
        aspect = self.uniform(*shape, 1, low=1.0, high=2.5)
        flat, one = torch.zeros_like(joint), torch.ones_like(size)
        out = flat.clone()
        out[..., 0] = 0.6  # the joint is near an end of the sprite
        hang = matrix(one, 0 * one, out, flat, one[..., :1])
        return matrix(size, swing, joint, flat, aspect) @ hang

    def camera_maps(self, speed: Tensor, times: Tensor, count: int) -> Tensor:
        """Homographies (B, L, T, 3, 3) by which a camera of speed (B,) px a frame moves `count`
        layers, px to px, near ones (high index) more: parallax.
        """
        (height, width), (batch, _, frames) = self.config.size, times.shape
        depth = torch.linspace(1.0, 1.6, count, device=self.device)[None, :, None]
        speed = speed[:, None]
        moves = speed > 0
        pan = self.path_xy((batch, 1), times, speed)
        shake = self.chance(0.3, batch, 1, 1, 1) * 0.006 * width * self.normal(batch, 1, frames, 2)
        roll = self.path((batch, 1), times, 0.006 * moves)
        zoom = self.path((batch, 1), times, 0.012 * moves).clamp(-0.5, 0.5)
        tilt = self.path_xy((batch, 1), times, 0.00002 * moves).clamp(-4e-4, 4e-4)
        one = torch.ones(batch, count, frames, device=self.device)
        middle = torch.tensor([width / 2, height / 2], device=self.device).expand(*one.shape, 2)
        to_centre = matrix(one, 0 * one, -middle, torch.zeros_like(middle), one[..., :1])
        shift = middle + (pan + shake) * depth[..., None]
        turn = roll.expand_as(one)
        view = matrix(one * zoom.exp(), turn, shift, tilt.expand_as(middle), one[..., :1])
        return view @ to_centre

    def waves(self, tempo: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Amplitude and frequency (B, L, 2) and phase (B, L, T, 2) of the layers' waves."""
        shape = tempo.shape
        bend = self.chance(self.config.bend, *shape, 1).float()
        bend[:, 0] *= 0.3
        frequency = self.uniform(*shape, 2, low=1.0, high=5.0)
        amplitude = bend * self.uniform(*shape, 2, low=0.05, high=0.45) / frequency
        phase = self.path_xy(shape, times, 0.12 * tempo)
        return amplitude, frequency, phase + self.uniform(*shape, 1, 2, high=2 * math.pi)

    def path_xy(self, shape: tuple[int, ...], times: Tensor, speed: Tensor) -> Tensor:
        """As `path`, one path for x and one for y: (*shape, T, 2)."""
        return torch.stack([self.path(shape, times, speed) for _ in range(2)], -1)

    def bodies(self, layers: Layers, times: Tensor) -> list[Body | None]:
        """A body, or people, for some of the clips, at times (B, T)."""
        c, out = self.config, []
        for camera, moments in zip(layers.camera, times, strict=True):
            if c.people and self.number() < c.people:
                textures = self.bank.draw(TEXTURES, BODY_TEXTURE)
                out.append(random_people(self, moments, camera, textures, c.size, c.photometric))
            elif c.bodies and self.number() < c.bodies:
                texture = self.bank.draw(1, BODY_TEXTURE)[0]
                out.append(random_body(self, moments, camera, texture, c.size, c.photometric))
            else:
                out.append(None)
        return out

    def sprites(self, bodies: Sequence[Body | None]) -> Tensor:
        """Random textures with coverage, (B, L, 4, h, w): RGB in [0, 1] and alpha in [0, 1]; few
        before a body.
        """
        batch, count, side = len(bodies), self.config.objects[1], 160
        colour = self.bank.draw(batch * count, side).view(batch, count, 3, side, side)
        # An articulated sprite often has the texture of the one that it hangs on.
        same = self.chance(0.7, batch, count) & self.articulated[:, 1:]
        for k in range(1, count):
            colour[:, k] = torch.where(
                same[:, k, None, None, None], colour[:, k - 1].flip(-1), colour[:, k]
            )
        distractors = self.chance(self.config.distractors, batch, count) & ~self.articulated[:, 1:]
        shading = self.normal(batch * count, 1, 3, 3) * 0.35
        shading = F.interpolate(shading, (side, side), mode='bicubic', align_corners=True)
        colour = (colour * torch.exp(shading).view(batch, count, 1, side, side)).clamp(0, 1)
        alpha = self.outlines(batch * count, side).view(batch, count, 1, side, side)
        for k in range(1, count):
            distractor = distractors[:, k, None, None, None]
            colour[:, k] = torch.where(distractor, colour[:, k - 1], colour[:, k])
            alpha[:, k] = torch.where(distractor, alpha[:, k - 1], alpha[:, k])
        number = torch.randint(
            self.config.objects[0], count + 1, (batch, 1), generator=self.rng, device=self.device
        )
        crowded = torch.tensor([[body is not None] for body in bodies], device=self.device)
        number = torch.where(crowded, number // 3, number)
        used = torch.arange(count, device=self.device) < number
        return torch.cat([colour, alpha * used[..., None, None, None]], 2)

    def outlines(self, count: int, side: int) -> Tensor:
        """Random coverage masks (count, side, side): blobs, polygons, bars and rings, edges one
        texel soft.
        """
        axis = torch.linspace(-1, 1, side, device=self.device)
        y, x = torch.meshgrid(axis, axis, indexing='ij')
        theta, r = torch.atan2(y, x), torch.hypot(x, y)
        order = torch.arange(2, 8, device=self.device)
        amplitude = self.normal(count, 6) * 0.5 / order * self.uniform(count, 1, high=1.5)
        wave = torch.cos(order * theta[..., None] + 0.0)[None] * amplitude[:, None, None]
        quad = (
            torch.sin(order * theta[..., None])[None]
            * (self.normal(count, 6) * 0.3 / order)[:, None, None]
        )
        blob = 0.7 * torch.exp((wave + quad).sum(-1)).clamp(0.25, 1.35) - r
        sides = torch.randint(3, 8, (count, 1, 1), generator=self.rng, device=self.device)
        sector = 2 * math.pi / sides
        turned = torch.remainder(theta + self.uniform(count, 1, 1, high=6.3), sector) - sector / 2
        polygon = 0.9 * torch.cos(sector / 2) - r * torch.cos(turned)
        thickness = self.uniform(count, 1, 1, low=0.06, high=0.35)
        bar = torch.minimum(thickness - y.abs(), 0.92 - x.abs())
        ring = torch.minimum(0.9 - r, r - self.uniform(count, 1, 1, low=0.4, high=0.75))
        kind = self.uniform(count, 1, 1)
        distance = torch.where(
            kind < 0.45,
            blob,
            torch.where(kind < 0.7, polygon, torch.where(kind < 0.93, bar, ring)),
        )
        edge = torch.minimum(torch.minimum(1 - x.abs(), 1 - y.abs()) - 2.0 / side, distance)
        return (edge * side / 2 + 0.5).clamp(0, 1)

    # rendering
    # ------------------------------------------------------------------------------------

    def clips(self, batch: int, points: int, times: Tensor | None = None) -> Clips:
        """Render `batch` clips with `points` tracks each. Times (B, T) in frames; default 0, 1,
        2, ...
        """
        if times is None:
            times = torch.arange(self.config.frames, device=self.device).expand(batch, -1).float()
        # Paths are stationary except for their drift: centre time on the clip.
        times = times - times.mean(1, keepdim=True)
        layers = self.layers(batch, times)
        bodies = self.bodies(layers, times)
        sprites = self.sprites(bodies)
        ground = self.bank.draw(batch, 2 * self.config.size[1])  # a texel a pixel
        video = self.render(layers, bodies, sprites, ground)
        corrupted, occluded = self.corrupted(*video.shape[:2]), self.occluders(*video.shape[:2])
        for b in torch.nonzero(occluded.flatten(1).any(1)).flatten().tolist():
            video[b] = hide(video[b], occluded[b])
        found = self.points(layers, bodies, sprites, points, video, corrupted, occluded)
        video = self.replace(self.photometric(video), corrupted)
        video = (video * 255).round().clamp(0, 255).to(torch.uint8).movedim(2, -1).contiguous()
        return Clips(self.compress(video), *found)

    def render(
        self, layers: Layers, bodies: Sequence[Body | None], sprites: Tensor, ground: Tensor
    ) -> Tensor:
        """Composite the background, the bodies and the sprites: (B, T, 3, H, W) in [0, 1]."""
        (height, width), (batch, frames) = self.config.size, layers.phase.shape[0:3:2]
        pixel = pixels(height, width, self.device)
        image = sample(
            ground,
            layers.to_layer(pixel.expand(batch, frames, height, width, 2), 0),
            padding='reflection',
        )
        used = sprites[:, :, 3].flatten(2).any(2).any(0)
        for first in range(0, frames, RUN):
            run = slice(first, first + RUN)
            part, some = image[:, run], layers.during(run)
            for frame, body in zip(part, bodies, strict=True):
                if body is not None:
                    body.during(run).draw(frame)
            for k in torch.nonzero(used).flatten().tolist():
                rows, columns = some.box(k + 1, height, width)
                if rows.start >= rows.stop or columns.start >= columns.stop:
                    continue
                place = pixel[rows, columns].expand(*part.shape[:2], -1, -1, -1)
                rgba = sample(sprites[:, k], some.to_layer(place, k + 1))
                below = part[..., rows, columns]
                part[..., rows, columns] = below + rgba[:, :, 3:] * (rgba[:, :, :3] - below)
        return image

    def choose(
        self,
        layers: Layers,
        bodies: Sequence[Body | None],
        sprites: Tensor,
        count: int,
        video: Tensor,
        corrupted: Tensor,
        occluded: Tensor,
    ) -> Chosen:
        """Choose `count` points a clip, each visible in a frame, of four times as many drawn."""
        (height, width), (batch, frames) = self.config.size, layers.phase.shape[0:3:2]
        device, many, layer = self.device, 4 * count, sprites.shape[1] + 1
        query = torch.randint(0, frames, (batch, many), generator=self.rng, device=device)
        query = torch.where(self.chance(0.5, batch, 1), torch.zeros_like(query), query)
        query = query * ~corrupted.gather(1, query)  # the first frame is never corrupted
        xy = self.uniform(batch, many, 2) * torch.tensor([width - 1, height - 1], device=device)
        here = xy[:, None].expand(-1, frames, -1, -1)
        cover = self.coverage(layers, sprites, here)
        there = query[:, None, None].expand(-1, layer - 1, 1, -1)
        cover = cover.gather(2, there)[:, :, 0]  # (B, K, many)
        number = torch.arange(1, layer, device=device)[:, None]
        top = ((cover > 0.5) * number).amax(1)
        behind = self.body_coverage(bodies, here).gather(1, query[:, None])[:, 0]
        on_body = (top == 0) & (behind > 0.5)
        # A blended edge shows no single surface.
        clear = ((cover < 0.02) | (cover > 0.98)).all(1)
        clear = clear & ((top > 0) | (behind < 0.02) | (behind > 0.98))
        clear = clear & ~is_hidden(occluded, here).gather(1, query[:, None])[:, 0]
        score = self.uniform(batch, many) + edges(video, xy, query) * 0.35
        score = score + (top > 0) * 0.35 + on_body * 0.7 - 10.0 * ~clear
        keep = score.topk(count, 1).indices
        return Chosen(
            *(
                x.gather(1, keep if x.ndim == 2 else keep[..., None].expand(-1, -1, 2))
                for x in (xy, query, top, on_body)
            )
        )

    def follow(
        self, layers: Layers, bodies: Sequence[Body | None], chosen: Chosen
    ) -> tuple[Tensor, Tensor]:
        """Tracks (B, T, N, 2) px of the surfaces seen at the chosen points, and where their own
        clip's body hides them, (B, T, N).
        """
        (xy, query, top, on_body), frames = chosen, layers.phase.shape[2]
        (batch, count), device, layer = query.shape, self.device, layers.phase.shape[1]
        # Layer coordinates of the surface seen in the query frame, then forward through time.
        here = xy[:, None].expand(-1, frames, -1, -1)
        u = torch.stack([layers.to_layer(here, k) for k in range(layer)], 1)
        pick = (torch.arange(batch, device=device)[:, None], top, query)
        tracks = layers.to_image(u[(*pick, torch.arange(count, device=device))], top)
        hidden = (top == 0)[:, None] & (self.body_coverage(bodies, tracks) > 0.5)
        for b, body in enumerate(bodies):
            if body is not None:
                path, lost = body.follow(xy[b], query[b])
                tracks[b] = torch.where(on_body[b, :, None], path, tracks[b])
                hidden[b] = torch.where(on_body[b], lost, hidden[b])
        return tracks, hidden

    def points(
        self,
        layers: Layers,
        bodies: Sequence[Body | None],
        sprites: Tensor,
        count: int,
        video: Tensor,
        corrupted: Tensor,
        occluded: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Tracks, visibility, query frames, keypoints and instances (see `Clips`) of points that
        are visible in their query frame: keypoints of people first, then other points, sprites,
        bodies and edges in the video (B, T, 3, H, W) preferred. Nothing is visible in a corrupted
        frame (B, T), nor in columns that are occluded (B, T, W).
        """
        (batch, frames), device = layers.phase.shape[0:3:2], self.device
        chosen = self.choose(layers, bodies, sprites, count, video, corrupted, occluded)
        tracks, hidden = self.follow(layers, bodies, chosen)
        _, query, top, _ = chosen
        number_of = torch.full((2, batch, count), -1, device=device)
        people = {b: body for b, body in enumerate(bodies) if isinstance(body, People)}
        if people:
            joints = max(len(body.keypoint) for body in people.values())
            wide = (joints, 0)
            tracks, hidden = F.pad(tracks, (0, 0, *wide)), F.pad(hidden, wide, value=True)
            top, query = F.pad(top, wide), F.pad(query, wide)
            number_of = F.pad(number_of, wide, value=-1)
            for b, body in people.items():
                those = slice(len(body.keypoint))
                tracks[b, :, those], hidden[b, :, those] = body.keypoints()
                number_of[:, b, those] = torch.stack([body.keypoint, body.instance])
        inside = between_centres(tracks, self.config.size)
        over = self.coverage(layers, sprites, tracks) > 0.5
        number = torch.arange(1, sprites.shape[1] + 1, device=device)[:, None]
        above = number[:, None] > top[:, None, None]
        seen = inside & ~hidden & ~(over & above).any(1) & ~corrupted[..., None]
        seen = seen & ~is_hidden(occluded, tracks)
        if people:
            # Keypoints are queried where they are first seen; those never seen are left out.
            extra = torch.arange(joints + count, device=device) < joints
            first = seen.int().argmax(1)
            query = torch.where(extra, first, query)
            order = torch.where(extra & seen.any(1), 0, torch.where(extra, 2, 1))
            keep = order.sort(dim=1, stable=True).indices[:, :count]
            across = keep[:, None].expand(-1, frames, -1)
            seen, query = seen.gather(2, across), query.gather(1, keep)
            tracks = tracks.gather(2, across[..., None].expand(-1, -1, -1, 2))
            number_of = number_of.gather(2, keep.expand(2, -1, -1))
        return tracks, seen, query, *number_of

    def body_coverage(self, bodies: Sequence[Body | None], xy: Tensor) -> Tensor:
        """How much of pixels xy (B, T, N, 2) their clip's body covers: (B, T, N)."""
        cover = torch.zeros(xy.shape[:3], device=self.device)
        for b, body in enumerate(bodies):
            if body is not None:
                cover[b] = body.look(xy[b])[0]
        return cover

    def coverage(self, layers: Layers, sprites: Tensor, xy: Tensor) -> Tensor:
        """Alpha of every sprite at pixels xy (B, T, N, 2): (B, K, T, N)."""
        return torch.stack(
            [
                sample(sprites[:, k, 3:], layers.to_layer(xy[:, :, None], k + 1))[:, :, 0, 0]
                for k in range(sprites.shape[1])
            ],
            1,
        )

    # photometric model
    # ----------------------------------------------------------------------------

    def photometric(self, video: Tensor) -> Tensor:
        """Lighting, shadow, defocus, motion blur and sensor noise; (B, T, 3, H, W) in [0, 1]."""
        s, (batch, frames, _, height, width) = self.config.photometric, video.shape
        if s == 0:
            return video
        t = torch.arange(frames, device=self.device)[None].float().expand(batch, -1)
        gain = torch.exp(
            s * (0.15 * self.normal(batch, 1) + self.path((batch,), t, 0.01)).clamp(-0.5, 0.5)
        )
        tint = torch.exp(s * 0.06 * self.normal(batch, 1, 3))
        gamma = torch.exp(s * 0.2 * self.normal(batch, 1)).expand(-1, frames)
        video = (
            video.clamp(0, 1) ** gamma[..., None, None, None]
            * (gain[..., None] * tint)[..., None, None]
        )
        # A soft shadow over each frame, wandering from frame to frame.
        shadow = self.normal(batch, 1, 4, 5) + 0.3 * self.normal(batch, frames, 4, 5)
        shadow = F.interpolate(shadow, (height, width), mode='bicubic', align_corners=True)
        strength = s * 0.25 * self.chance(0.5, batch, 1, 1, 1) * self.uniform(batch, 1, 1, 1)
        video = video * torch.exp(-strength * shadow.clamp(0, 2))[:, :, None]
        video = self.blur(video, s)
        noise = s * self.uniform(batch, 1, 1, 1, 1, high=0.03) * self.normal(*video.shape)
        return (video + noise).clamp(0, 1)

    def corrupted(self, batch: int, frames: int) -> Tensor:
        """Frames that show nothing of the scene, (B, T) bool: in some clips a run of up to half
        of its frames, after the first.
        """
        if self.config.corruption == 0 or frames < 3:
            return torch.zeros(batch, frames, dtype=torch.bool, device=self.device)
        return self.run(self.config.corruption, batch, frames, frames - 1)

    def run(self, share: float, batch: int, frames: int, latest: float) -> Tensor:
        """Draw a run of frames in a share of the clips, (B, T) bool: up to half of the frames,
        not the first, none of them before frame 1 or beginning after frame `latest`.
        """
        first = 1 + (self.uniform(batch, 1) * latest).long()
        length = (self.uniform(batch, 1) * frames / 2).long() + 1
        t = torch.arange(frames, device=self.device)
        return self.chance(share, batch, 1) & (t >= first) & (t < first + length)

    def occluders(self, batch: int, frames: int) -> Tensor:
        """Columns of the picture that an occluder hides, (B, T, W) bool: in some clips, for up
        to half of the frames after the first, 15 to 45 % of its width.
        """
        width = self.config.size[1]
        if self.config.occluders == 0:
            return torch.zeros(batch, frames, width, dtype=torch.bool, device=self.device)
        there = self.run(self.config.occluders, batch, frames, frames / 2)[..., None]
        middle, half = self.uniform(batch, 1, 1), self.uniform(batch, 1, 1, low=0.075, high=0.225)
        x = torch.arange(width, device=self.device) / (width - 1)
        return there & ((x - middle).abs() < half)

    def replace(self, video: Tensor, corrupted: Tensor) -> Tensor:
        """The video (B, T, 3, H, W) with its corrupted frames black, white, noise, or frozen."""
        for b in torch.nonzero(corrupted.any(1)).flatten().tolist():
            run, kind = corrupted[b], int(self.uniform(1, high=4))
            frozen = video[b, int(run.int().argmax()) - 1].clone()
            noise = self.uniform(*video.shape[3:])
            video[b, run] = (torch.zeros_like(frozen), torch.ones_like(frozen), noise, frozen)[
                kind
            ]
        return video

    def compress(self, video: Tensor) -> Tensor:
        """Some of the clips (B, T, H, W, 3) uint8 after JPEG of quality 25 to 90."""
        if self.config.jpeg == 0:
            return video
        which, quality = self.chance(self.config.jpeg, len(video)), self.uniform(len(video))
        for b in torch.nonzero(which).flatten().tolist():
            setting = [cv2.IMWRITE_JPEG_QUALITY, int(25 + 65 * quality[b])]
            frames = [
                cv2.imdecode(cv2.imencode('.jpg', frame, setting)[1], cv2.IMREAD_COLOR)
                for frame in video[b].cpu().numpy()
            ]
            video[b] = torch.from_numpy(np.stack(frames)).to(self.device)
        return video

    def blur(self, video: Tensor, strength: float) -> Tensor:
        """Per clip one of: none (60 %), defocus, or a straight motion blur up to 9 px."""
        batch, frames, channels, height, width = video.shape
        axis = torch.arange(-4, 5, device=self.device).float()
        y, x = torch.meshgrid(axis, axis, indexing='ij')
        sigma = self.uniform(batch, 1, 1, low=0.4, high=0.4 + strength)
        angle = self.uniform(batch, 1, 1, high=math.pi)
        length = self.uniform(batch, 1, 1, low=0.5, high=0.5 + 3.5 * strength)
        along = x * angle.cos() + y * angle.sin()
        across = y * angle.cos() - x * angle.sin()
        line = torch.exp(-0.5 * (across / 0.6) ** 2) * (along.abs() <= length)
        disc = torch.exp(-0.5 * (x**2 + y**2) / sigma**2)
        kernel = torch.where(self.chance(0.5, batch, 1, 1), line, disc)
        which = torch.nonzero(self.chance(0.4, batch)).flatten()
        kernel = kernel / kernel.sum((1, 2), keepdim=True)
        for b in which.tolist():
            padded = F.pad(video[b].flatten(0, 1)[:, None], (4, 4, 4, 4), mode='replicate')
            video[b] = F.conv2d(padded, kernel[b][None, None]).view(
                frames, channels, height, width
            )
        return video


def edges(video: Tensor, xy: Tensor, frame: Tensor) -> Tensor:
    """How much of an edge there is in the video (B, T, 3, H, W) at xy (B, N, 2) px of frames (B,
    N), in [0, 1).
    """
    grey = F.pad(video.mean(2), (0, 1, 0, 1), mode='replicate')
    slope = grey.diff(dim=-1)[..., :-1, :].abs() + grey.diff(dim=-2)[..., :-1].abs()
    batch = torch.arange(len(video), device=video.device)[:, None]
    x, y = xy.round().long().unbind(-1)
    there = slope[batch, frame, y, x]
    return there / (there + slope.mean() + 1e-6)


def matrix(scale: Tensor, angle: Tensor, shift: Tensor, tilt: Tensor, aspect: Tensor) -> Tensor:
    """Homographies (..., 3, 3): scale (times aspect on x), then rotate, then shift; tilt is the
    perspective row.
    """
    cos, sin = angle.cos() * scale, angle.sin() * scale
    wide = aspect.sqrt().expand_as(cos)
    rows = [
        cos * wide,
        -sin / wide,
        shift[..., 0],
        sin * wide,
        cos / wide,
        shift[..., 1],
        tilt[..., 0],
        tilt[..., 1],
        torch.ones_like(cos),
    ]
    out = torch.stack(torch.broadcast_tensors(*rows), -1)
    return out.view(*out.shape[:-1], 3, 3)


def sample(image: Tensor, u: Tensor, padding: str = 'zeros') -> Tensor:
    """Images (B, C, h, w) at layer coordinates u (B, T, H, W, 2): (B, T, C, H, W)."""
    batch, frames = u.shape[:2]
    image = image[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    out = F.grid_sample(
        image, u.flatten(0, 1), mode='bilinear', padding_mode=padding, align_corners=True
    )
    return out.view(batch, frames, *out.shape[1:])
