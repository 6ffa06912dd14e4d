"""The real-time member of the family: a small causal tracker for a robot's CPU.

Per frame: a light convolutional pyramid; correlation maps of every point's two templates (what it
looked like when it was queried, and recently) by one matrix product per level; a few refinements,
each reading small windows of those maps into one token per point. Tokens attend to the point's own
last frames, which are cached, and to the other points through a few virtual tracks, as in
CoTracker. The cost of a frame does not depend on the window, and in training all frames run in
parallel under a causal mask.

Letters: G cameras or clips, F frames at once (1 in a stream), N points, P window positions, D
width. Coordinates are model pixels, (0, 0) the centre of the top-left pixel, x before y.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cotracker_ros.model.config import FRESH, ModelFacts
from cotracker_ros.model.cotracker import Tracks
from cotracker_ros.model.step import Step
from cotracker_ros.visible import VisibleRule


@dataclass(frozen=True)
class RealtimeConfig:
    """Shape of the real-time tracker."""

    stem: int = 24  # channels at stride 2
    stages: tuple[int, ...] = (48, 96, 128, 160)  # channels at strides 4, 8, 16, 32
    blocks: tuple[int, ...] = (1, 2, 2, 1)  # residual blocks per stage
    features: int = 64  # channels of the matched features, at every stride
    strides: tuple[int, ...] = (4, 8, 16)  # px of one feature cell, per level
    radius: int = 3  # cells of the correlation window on each side
    width: int = 128  # channels of a token
    heads: int = 4
    depth: int = 2  # time and space blocks
    virtual: int = 16  # virtual tracks that carry information between points
    update: float = 0.3  # share of what is seen now that the recent template takes over
    window: int = 8  # frames a token sees, its own among them; also the reach of query_age, plus 1
    iterations: int = 2  # refinements per frame, unless asked otherwise; training does 3
    momentum: float = 0.5  # share of the last displacement that the search starts ahead by
    sharpness: float = 20.0  # inverse temperature of the soft arg-max over a correlation window
    far_sharpness: float = 150.0  # the same over a whole correlation map
    sure: float = 0.7  # probability above which a lost point is taken to its best place


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, which inference folds into them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Conv2d(inputs, outputs, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(y)))


def unit(x: Tensor) -> Tensor:
    """Maps (B, C, h, w) divided by their length over channels.

    The sum of squares is a 1x1 convolution: a reduction over channels takes ONNX Runtime 1.1 ms
    at stride 4, the convolution 0.1 ms.
    """
    ones = torch.ones(1, x.shape[1], 1, 1, dtype=x.dtype, device=x.device)
    return x * torch.rsqrt(F.conv2d(x * x, ones) + 1e-12)


class PyramidEncoder(nn.Module):
    """Frame to L2-normalised features at strides 4, 8 and 16, coarse levels summed into fine ones.

    Every convolution is centred on the top-left pixel of its stride: feature (i, j) is pixel
    (stride j, stride i), so feature coordinates are pixels / stride.
    """

    def __init__(self, config: RealtimeConfig):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, config.stem, 5, 2, 2, bias=False), nn.BatchNorm2d(config.stem), nn.ReLU()
        )
        widths = (config.stem, *config.stages)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(widths[i], widths[i + 1], 2),
                *(
                    ResidualBlock(widths[i + 1], widths[i + 1])
                    for _ in range(config.blocks[i] - 1)
                ),
            )
            for i in range(len(config.stages))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, config.features, 1) for c in config.stages)
        self.smooth = nn.ModuleList(
            nn.Conv2d(config.features, config.features, 3, 1, 1) for _ in config.strides
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W) in 0..255 to features (B, C, H/s, W/s), fine to coarse."""
        x = self.stem(image / 127.5 - 1)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        top = self.lateral[-1](skips[-1])
        features = []
        for level in reversed(range(len(self.smooth))):
            up = F.interpolate(
                top, size=skips[level].shape[-2:], mode='bilinear', align_corners=False
            )
            top = self.lateral[level](skips[level]) + up
            features.insert(0, unit(self.smooth[level](top).float()))
        return features


class Motion(NamedTuple):
    """What a frame's search starts from, (G, F, N, 2) px and (G, F, N): the state of the points
    one frame before.
    """

    xy: Tensor
    velocity: Tensor  # px per frame
    visibility: Tensor  # probability
    confidence: Tensor  # probability


class Estimate(NamedTuple):
    """One refinement's result: xy (G, F, N, 2) px; logits (G, F, N)."""

    xy: Tensor
    visibility: Tensor
    confidence: Tensor


class BestPlaces(NamedTuple):
    """place (G, F, N, 2 templates, 2) px; score (G, F, N, 2), a cosine."""

    place: Tensor
    score: Tensor


class Refined(NamedTuple):
    """What a frame's refinements end with: every one's estimate, the new caches, the last tokens
    (G, F, N, D), normalised, and the best places.
    """

    estimates: list[Estimate]
    past: list[Tensor]
    token: Tensor
    best: BestPlaces


class CausalAttention(nn.Module):
    """Attention of a point's token to its own last `window` frames, with a learned bias per
    head and lag.
    """

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.lag_bias = nn.Parameter(torch.zeros(heads, window))

    def forward(self, x: Tensor, past: Tensor, mask: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """x (G, N, F, D), past keys and values (G, N, window - 1, 2 D), mask (G, N, F, window -
        1 + F) additive, lag (F, window - 1 + F) frames. Returns the update and the keys and
        values of the newest window - 1 frames.
        """
        q, kv = self.to_qkv(self.norm(x)).split([x.shape[-1], 2 * x.shape[-1]], -1)
        kv = torch.cat([past, kv], 2)
        k, v = kv.chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(2, 3) for y in (q, k, v))
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        score = score + self.lag_bias[:, lag.clamp(0, self.window - 1)] + mask[:, :, None]
        out = (score.softmax(-1) @ v).transpose(2, 3).flatten(-2)
        return self.to_out(out), kv[:, :, kv.shape[2] - self.window + 1 :]


class CrossAttention(nn.Module):
    """Attention of x (..., N, D) to a context (..., K, D), with an additive mask (..., 1, K)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, (k, v) = self.to_q(self.norm(x)), self.to_kv(self.norm_context(context)).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for y in (q, k, v))
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            score = score + mask[..., None, :, :]
        return self.to_out((score.softmax(-1) @ v).transpose(-2, -3).flatten(-2))


class Block(nn.Module):
    """Own past, then the other points through the virtual tracks, then a two-layer perceptron."""

    def __init__(self, config: RealtimeConfig):
        super().__init__()
        width = config.width
        self.time = CausalAttention(width, config.heads, config.window)
        self.gather = CrossAttention(width, config.heads)
        self.spread = CrossAttention(width, config.heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.GELU(),
            nn.Linear(3 * width, width),
        )

    def forward(
        self, x: Tensor, virtual: Tensor, past: Tensor, masks: Masks
    ) -> tuple[Tensor, Tensor, Tensor]:
        update, past = self.time(x.transpose(1, 2), past, masks.time, masks.lag)
        x = x + update.transpose(1, 2)
        virtual = virtual + self.gather(virtual, x, masks.points)
        x = x + self.spread(x, virtual)
        return x + self.mlp(x), virtual, past


class Masks(NamedTuple):
    """time (G, N, F, window - 1 + F) and points (G, F, 1, N), additive; lag (F, window - 1 + F)
    frames.
    """

    time: Tensor
    points: Tensor
    lag: Tensor

    @classmethod
    def build(cls, age: Tensor, live: Tensor, window: int) -> Masks:
        """age (G, F, N): frames since the point started, negative before; live (G, F, N) bool."""
        frames = age.shape[1]
        now = torch.arange(frames, device=age.device)
        then = torch.arange(-(window - 1), frames, device=age.device)
        lag = now[:, None] - then
        seen = (lag >= 0) & (lag < window)
        begun = (lag <= age.transpose(1, 2)[..., None]) | (lag == 0)
        # -1e4 rather than -inf: a row without anything to attend to stays finite.
        return cls(((seen & begun).float() - 1) * 1e4, (live.float() - 1)[:, :, None] * 1e4, lag)


def last_cell(level: Tensor) -> Tensor:
    """x, y of the last cell of a map (..., h, w)."""
    size = [level.shape[-1] - 1, level.shape[-2] - 1]
    return torch.tensor(size, dtype=level.dtype, device=level.device)


def sample_cells(features: Tensor, xy: Tensor) -> Tensor:
    """Features (B, C, h, w) at xy (B, N, 2) in cells, the border continued: (B, N, C)."""
    grid = (xy / last_cell(features) * 2 - 1)[:, :, None]
    sampled = F.grid_sample(features, grid, padding_mode='border', align_corners=True)
    return sampled[..., 0].transpose(1, 2)


class Refiner(nn.Module):
    """Correlation windows and motion to better positions, visibility and confidence."""

    def __init__(self, config: RealtimeConfig):
        super().__init__()
        self.config = config
        width, levels, templates = config.width, len(config.strides) + 1, 2
        positions = (2 * config.radius + 1) ** 2
        # Per level and template: the window, its soft arg-max (2) and maximum. Per template: the
        # best place of the whole map (2), its score, and the score here. Place in the image (2),
        # motion (4), probabilities (2).
        inputs = levels * templates * (positions + 3) + templates * 4 + 8
        self.embed = nn.Sequential(
            nn.Linear(inputs, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.virtual = nn.Parameter(torch.randn(config.virtual, width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        # x, y of the correction in cells of the finest level; gates of the soft arg-max of every
        # level and template and of the two best places; visibility and confidence
        self.moves = levels * templates + templates
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 + self.moves + 2))
        # At first the mean of all soft arg-max moves, and hardly ever a jump to the best places.
        nn.init.normal_(self.head[1].weight, std=0.01)
        bias = torch.zeros(2 + self.moves + 2)
        bias[2 : 2 + self.moves] = -2
        bias[self.moves : 2 + self.moves] = -5
        self.head[1].bias.data.copy_(bias)
        axis = torch.arange(-config.radius, config.radius + 1.0)
        offsets = torch.stack(torch.meshgrid(axis, axis, indexing='xy'), -1).view(-1, 2)
        self.register_buffer('offsets', offsets, persistent=False)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of one cell of every correlation map."""
        return (*self.config.strides, 2 * self.config.strides[-1])

    @property
    def cache_width(self) -> int:
        """Channels of the cached keys and values of one iteration of one point and frame."""
        return 2 * self.config.width * self.config.depth

    def forward(
        self, maps: list[Tensor], motion: Motion, masks: Masks, past: list[Tensor], iterations: int
    ) -> Refined:
        """Refine `iterations` times.

        maps: per level correlation maps (G F N, 2, h, w); past: per iteration (G, N, window - 1,
        cache_width).
        """
        xy = motion.xy + self.config.momentum * motion.velocity
        best = self.best_places(maps, xy.shape)
        middle = last_cell(maps[0]) * (self.config.strides[0] / 2)
        normalise, read_out = self.head
        estimates, caches = [], []
        for k in range(iterations):
            windows, moves = self.read(maps, xy)
            away = best.place - xy[..., None, :]
            far = torch.cat([away / 64, best.score[..., None]], -1).clamp(-2, 2).flatten(-2)
            here = windows.unflatten(-1, (len(maps), 2, -1))[..., 1, :, self.offsets.shape[0] // 2]
            inputs = torch.cat(
                [
                    windows * 4,
                    moves.flatten(-2) / 3,
                    far,
                    here,
                    (xy / middle - 1).clamp(-1.5, 1.5),
                    (xy - motion.xy) / 8,
                    motion.velocity / 8,
                    motion.visibility[..., None],
                    motion.confidence[..., None],
                ],
                -1,
            )
            x = self.embed(inputs)
            virtual = self.virtual.expand(*x.shape[:2], -1, -1)
            kept = []
            for block, cache in zip(
                self.blocks, past[k].chunk(self.config.depth, -1), strict=True
            ):
                x, virtual, cache = block(x, virtual, cache, masks)
                kept.append(cache)
            caches.append(torch.cat(kept, -1))
            token = normalise(x)
            shift, gates, visibility, confidence = read_out(token).split([2, self.moves, 1, 1], -1)
            steps = torch.cat([moves * self.cell(moves), away], -2)
            xy = xy + self.config.strides[0] * shift + (gates.sigmoid()[..., None] * steps).sum(-2)
            estimates.append(Estimate(xy, visibility[..., 0], confidence[..., 0]))
            xy = xy.detach()
        return Refined(estimates, caches, token, best)

    def cell(self, moves: Tensor) -> Tensor:
        """Pixels of one cell for every level and template, (levels * 2, 1)."""
        return torch.tensor(
            [s for s in self.strides for _ in range(2)], dtype=moves.dtype, device=moves.device
        )[:, None]

    def read(self, maps: list[Tensor], xy: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of all maps around xy (G, F, N, 2): (G, F, N, levels * 2 * (P + 1)) and soft
        arg-max moves in cells (G, F, N, levels * 2, 2). The last value of a window is its
        maximum.
        """
        windows = []
        for level, stride in zip(maps, self.strides, strict=True):
            place = (xy / stride).reshape(-1, 1, 2) + self.offsets
            grid = (place / last_cell(level) * 2 - 1)[:, :, None]
            windows.append(
                F.grid_sample(level, grid, padding_mode='zeros', align_corners=True)[..., 0]
            )
        window = torch.stack(windows, 1).view(*xy.shape[:3], len(maps) * 2, -1)
        share = (window * self.config.sharpness).softmax(-1)
        value = torch.cat([window, window.amax(-1, keepdim=True)], -1)
        return value.flatten(-2), share @ self.offsets

    def best_places(self, maps: list[Tensor], shape: torch.Size) -> BestPlaces:
        """The best place of the whole image per template, where the second and third strides
        agree: a sharp soft arg-max, because with a hard one rounding decides between two equally
        good places, and runtimes round differently.
        """
        fine, coarse = maps[1], maps[2]
        height, width = fine.shape[-2:]
        level = (fine + F.interpolate(coarse, size=(height, width), mode='bilinear')) / 2
        flat = level.flatten(2)
        share = (flat * self.config.far_sharpness).softmax(-1)
        axes = [torch.arange(n, dtype=level.dtype, device=level.device) for n in (width, height)]
        cells = torch.stack(torch.meshgrid(*axes, indexing='xy'), -1).view(-1, 2)
        place = share @ cells * self.config.strides[1]
        return BestPlaces(place.view(*shape[:3], 2, 2), flat.amax(-1).view(*shape[:3], 2))


class RealtimeTracker(nn.Module):
    """The real-time tracker; `RealtimeStep` runs it on a stream."""

    origin = FRESH  # of its weights

    def __init__(self, config: RealtimeConfig, image_size: tuple[int, int]):
        super().__init__()
        if any(n % 32 for n in image_size):
            raise ValueError(f'image size {image_size} must be multiples of 32')
        self.config, self.image_size = config, image_size
        self.encoder = PyramidEncoder(config)
        self.refiner = Refiner(config)
        # What is added to the logits of visibility and confidence on the way out only: training
        # balances the answers, and the tracker goes on from what it was trained with. It is
        # fitted when training ends.
        self.calibration = nn.Linear(config.width + 2, 2).requires_grad_(False)
        # Whether a lost point is back, where its first template fits best: a logit, fitted
        # likewise.
        self.redetection = nn.Linear(config.width + 8, 1).requires_grad_(False)
        for fitted in (self.calibration, self.redetection):
            nn.init.zeros_(fitted.weight)
            nn.init.zeros_(fitted.bias)

    @property
    def facts(self) -> ModelFacts:
        """What users of the network must know."""
        # Its probabilities are calibrated: visible is what is so more likely than not.
        rule = VisibleRule(0.5)
        return ModelFacts(
            name='realtime', image_size=self.image_size, image_scale=1,
            window=self.config.window, iterations=self.config.iterations, resize='edges',
            visible=rule, visible_whole=rule, sliding=False, causal=True, support_grid=0,
            not_streamable='', origin=self.origin,
        )  # fmt: skip

    def correlate(self, features: list[Tensor], templates: Tensor) -> list[Tensor]:
        """Correlation maps of templates (G, F, N, 2, levels, C) with features (G F, C, h, w):
        per level, and once more the coarsest averaged over 2x2 cells, (G F N, 2, h, w).
        """
        maps = []
        for level, feature in enumerate(features):
            template = templates[..., level, :].flatten(0, 1).flatten(1, 2)
            volume = template @ feature.flatten(2)
            maps.append(volume.view(-1, 2, *feature.shape[-2:]))
        return [*maps, F.avg_pool2d(maps[-1], 2)]

    def describe(self, features: list[Tensor], xy: Tensor) -> Tensor:
        """Features (B, C, h, w) at xy (B, N, 2) px, every level, unit length: (B, N, levels,
        C).
        """
        out = [
            sample_cells(feature, xy / stride)
            for feature, stride in zip(features, self.config.strides, strict=True)
        ]
        return F.normalize(torch.stack(out, 2), dim=-1)

    def remember(
        self, recent: Tensor, now: Tensor, visibility: Tensor, confidence: Tensor
    ) -> Tensor:
        """The recent template follows what is seen, as far as the point is believed visible;
        (..., levels, C).
        """
        trust = (visibility * confidence)[..., None, None]
        return F.normalize(recent + self.config.update * trust * (now - recent), dim=-1)

    def evidence(self, token: Tensor, xy: Tensor) -> Tensor:
        """What calibration reads, (..., D + 2): the last tokens (..., D), and how far xy (..., 2)
        px is inside the picture, up to 16 and up to 64 px: a token knows where its search began,
        not where it ended.
        """
        height, width = self.image_size
        far = torch.tensor([width - 1, height - 1], dtype=xy.dtype, device=xy.device)
        inside = torch.minimum(xy, far - xy).amin(-1, keepdim=True)
        return torch.cat([token, (inside / 8).clamp(-2, 2), (inside / 32).clamp(-2, 2)], -1)

    def clues(
        self, token: Tensor, best: BestPlaces, xy: Tensor, template: Tensor, now: Tensor
    ) -> Tensor:
        """What redetection reads, (..., D + 8): the last tokens (..., D); how well the first
        template (..., levels, C) fits at its best place and at xy (..., 2) px, where the picture
        is `now` (..., levels, C); how far that place is from xy, and from the recent template's.
        """
        place, score = best.place[..., 0, :], best.score[..., 0]
        here = (template * now).sum(-1)[..., 1:].mean(-1)  # at the strides of the best places
        away = (place - xy).norm(dim=-1)
        apart = (place - best.place[..., 1, :]).norm(dim=-1)
        hints = [
            4 * score, 4 * here, 4 * (score - 0.8).clamp(min=0), 4 * (score - 0.9).clamp(min=0),
            (away / 16).clamp(max=2), (away / 64).clamp(max=2),
            (apart / 16).clamp(max=2), (apart / 64).clamp(max=2),
        ]  # fmt: skip
        return torch.cat([token, torch.stack(hints, -1)], -1)

    def redetect(self, clues: Tensor) -> tuple[Tensor, Tensor]:
        """Whether points are taken to their best places, (...) bool, and the logit of that."""
        logit = self.redetection(clues)[..., 0]
        return logit > math.log(self.config.sure / (1 - self.config.sure)), logit

    @torch.no_grad()
    def track(self, video: Tensor, queries: Tensor, iterations: int | None = None) -> Tracks:
        """Track queries (N, 3) = t, x, y px through a video (T, 3, H, W) 0..255 at
        `image_size`, frame by frame.

        Before a point's query frame: the query position, visibility and confidence 0.
        """
        step = RealtimeStep(self, iterations or self.config.iterations)
        count, state = len(queries), step.initial_state(1, len(queries))
        state = {name: value.to(video.device) for name, value in state.items()}
        age = torch.zeros(1, count, dtype=torch.int32, device=video.device)
        rows = []
        for t, frame in enumerate(video):
            image = frame.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)[None]
            begun, now = (queries[None, :, 0] <= t), (queries[None, :, 0] == t)
            inputs = {
                'image': image, 'query_xy': queries[None, :, 1:].float(), 'query': now,
                'query_age': age, 'live': begun,
            }  # fmt: skip
            out, state = step(inputs, state)
            xy = torch.where(begun[..., None], out['xy'], queries[None, :, 1:].to(out['xy'].dtype))
            rows.append((xy[0], out['visibility'][0], out['confidence'][0]))
        return Tracks(*(torch.stack(x) for x in zip(*rows, strict=True)))


class RealtimeStep(Step):
    """The tracker on a stream, see Step."""

    rings = ('features',)

    def __init__(self, model: RealtimeTracker, iterations: int | None = None):
        super().__init__()
        self.model = model
        self.image_size = model.image_size
        self.window = model.config.window
        self.iterations = iterations or model.config.iterations
        self.sizes = [tuple(n // s for n in self.image_size) for s in model.config.strides]

    def initial_state(self, cameras: int, slots: int) -> dict[str, Tensor]:
        """Zeros: an empty stream."""
        c, cells = self.model.config, sum(height * width for height, width in self.sizes)
        # Half precision is exact enough for unit vectors.
        ring = torch.zeros(c.window, cameras, cells, c.features, dtype=torch.float16)
        state = {
            'frame': torch.zeros(1, dtype=torch.int64),  # row of the ring for the new frame
            'features': ring,  # of the last frames, for queries of an older one
            'age': torch.zeros(
                cameras, slots, dtype=torch.int32
            ),  # frames since the point started, at most the window
            'xy': torch.zeros(cameras, slots, 2),
            'velocity': torch.zeros(cameras, slots, 2),
            'visibility': torch.zeros(cameras, slots),
            'confidence': torch.zeros(cameras, slots),
            'template': torch.zeros(cameras, slots, len(c.strides), c.features),
            'recent': torch.zeros(cameras, slots, len(c.strides), c.features),
        }
        for k in range(self.iterations):
            state[f'past{k}'] = torch.zeros(
                cameras, slots, c.window - 1, self.model.refiner.cache_width
            )
        return state

    def advance(
        self, inputs: Mapping[str, Tensor], state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See Step."""
        image, query_xy = inputs['image'], inputs['query_xy']
        query, query_age, live = inputs['query'], inputs['query_age'], inputs['live']
        c, model = self.model.config, self.model
        features = model.encoder(image.permute(0, 3, 1, 2).float())
        # A row of channels for each cell, all levels in one list: a point is read as a few rows.
        rows = [feature.permute(0, 2, 3, 1).flatten(1, 2) for feature in features]
        cells = torch.cat(rows, 1)
        features = [
            row.transpose(1, 2).unflatten(2, size)
            for row, size in zip(rows, self.sizes, strict=True)
        ]

        # Start queried points from the frame they were seen in.
        first = self.describe_past(cells, state, query_xy, query_age)
        template = torch.where(query[..., None, None], first, state['template'])
        recent = torch.where(query[..., None, None], first, state['recent'])
        restart = ~query
        start = Motion(
            torch.where(query[..., None], query_xy, state['xy'])[:, None],
            (state['velocity'] * restart[..., None])[:, None],
            torch.where(query, 1.0, state['visibility'])[:, None],
            torch.where(query, 1.0, state['confidence'])[:, None],
        )
        age = state['age'] * restart

        maps = model.correlate(features, torch.stack([template, recent], 2)[:, None])
        masks = Masks.build(age[:, None], live[:, None], c.window)
        past = [state[f'past{k}'] for k in range(self.iterations)]
        estimates, past, token, best = model.refiner(maps, start, masks, past, self.iterations)
        xy, visibility, confidence = (x[:, 0] for x in estimates[-1])
        token, best = token[:, 0], BestPlaces(*(x[:, 0] for x in best))
        # In its own frame a point is where it was asked for; a lost one that is back starts anew.
        here = query & (query_age == 0)
        xy = torch.where(here[..., None], query_xy, xy)
        now = self.describe(cells, xy)
        correction = model.calibration(model.evidence(token, xy)).unbind(-1)
        back, found = model.redetect(model.clues(token, best, xy, template, now))
        back = back & ~query
        xy = torch.where(back[..., None], best.place[..., 0, :], xy)
        velocity = (xy - start.xy[:, 0]) * ~(here | back)[..., None]

        def probability(logit: Tensor) -> Tensor:
            return torch.where(here, 1.0, torch.where(back, found, logit).sigmoid())

        shown = [
            torch.where(live, probability(logit + shift), 0.0)
            for logit, shift in zip((visibility, confidence), correction, strict=True)
        ]
        visibility, confidence = probability(visibility), probability(confidence)
        recent = model.remember(recent, now, visibility, confidence)
        recent = torch.where(back[..., None, None], template, recent)

        used = live.float()
        xy, visibility, confidence = xy * used[..., None], visibility * used, confidence * used
        following = {
            'frame': (state['frame'] + 1) % c.window,
            'features': cells[None].half(),
            'age': (age + 1).clamp(max=c.window),
            'xy': xy,
            'velocity': velocity * used[..., None],
            'visibility': visibility,
            'confidence': confidence,
            'template': template,
            'recent': recent,
            **{f'past{k}': cache for k, cache in enumerate(past)},
        }
        return {'xy': xy, 'visibility': shown[0], 'confidence': shown[1]}, following

    def describe(self, cells: Tensor, xy: Tensor) -> Tensor:
        """Templates (B, M, levels, C) at xy (B, M, 2) px, from the rows of a frame (B, P, C)."""
        camera = torch.arange(cells.shape[0], device=xy.device)[:, None]
        return self.mix(cells.flatten(0, 1), camera, xy)

    def describe_past(self, cells: Tensor, state: dict[str, Tensor], xy: Tensor, age: Tensor):
        """Templates (B, M, levels, C) at xy (B, M, 2) px in the frame `age` (B, M) frames ago."""
        cameras = cells.shape[0]
        camera = torch.arange(cameras, device=xy.device)[:, None]
        row = (state['frame'] - age) % self.window
        past = self.mix(state['features'].flatten(0, 2), row * cameras + camera, xy)
        return torch.where((age == 0)[..., None, None], self.describe(cells, xy), past)

    def mix(self, rows: Tensor, frame: Tensor, xy: Tensor) -> Tensor:
        """Bilinear templates (B, M, levels, C) from rows (frames P, C), `frame` (B, M) of each."""

        def number(values, dtype):
            return torch.tensor(values, dtype=dtype, device=xy.device)

        widths = number([width for _, width in self.sizes], torch.int64)
        counts = [height * width for height, width in self.sizes]
        offsets = number([sum(counts[:k]) for k in range(len(counts))], torch.int64)
        last = number([(width - 1, height - 1) for height, width in self.sizes], xy.dtype)
        strides = number(self.model.config.strides, xy.dtype)
        place = torch.minimum((xy[..., None, :] / strides[:, None]).clamp(min=0), last)
        corner = torch.minimum(place.floor(), last - 1)  # (B, M, levels, 2)
        part = place - corner
        x, y = corner.long().unbind(-1)
        base = frame[..., None] * sum(counts) + offsets + y * widths + x
        index = torch.stack([base, base + 1, base + widths, base + widths + 1], -1)
        (right, down), (left, up) = part.unbind(-1), (1 - part).unbind(-1)
        weight = torch.stack([left * up, right * up, left * down, right * down], -1)
        four = rows.index_select(0, index.flatten()).unflatten(0, index.shape)
        return F.normalize((four.to(xy.dtype) * weight[..., None]).sum(-2), dim=-1)


def build_realtime(image_size: tuple[int, int] = (320, 512), **changes: Any) -> RealtimeTracker:
    """The shipped shape, but for `changes` of its configuration, with fresh weights; image size
    (H, W) px, multiples of 32.
    """
    return RealtimeTracker(RealtimeConfig(**changes), image_size)
