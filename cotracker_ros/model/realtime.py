"""The real-time member of the family: a small causal tracker for a robot's CPU.

Two scales: features of a small picture tell points apart; grey patches of a picture `image_scale`
times that size give their exact positions. Per frame: a convolutional pyramid; correlation maps of
every point's two templates (what it looked like when it was queried, and recently) by one matrix
product per level, but at the finest, where only windows are compared; a few refinements, each
reading small windows of all levels into one token per point. Tokens attend to the point's own last
frames, which are cached, and to the other points through a few virtual tracks, as in CoTracker.
Then the patches are aligned (model/subpixel.py). The cost of a frame does not depend on the
window, and in training all frames are refined in parallel under a causal mask.

Letters: G cameras or clips, F frames at once (1 in a stream), N points, P window positions, D
width. Coordinates are model pixels, (0, 0) the centre of the top-left pixel, x before y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cotracker_ros.model.attention import CausalAttention, CrossAttention
from cotracker_ros.model.config import FRESH, ModelFacts
from cotracker_ros.model.cotracker import VideoTracks
from cotracker_ros.model.embeddings import KeypointEmbedding, check_keypoints
from cotracker_ros.model.grouping import UNKNOWN, GroupingConfig, drift_apart, shared_motion
from cotracker_ros.model.half_precision import HalfPrecisionEncoder, encode
from cotracker_ros.model.lite0 import Lite0Encoder, upsample
from cotracker_ros.model.pyramid import PyramidEncoder, SlimEncoder, TuckerEncoder
from cotracker_ros.model.sampling import last_cell
from cotracker_ros.model.subpixel import AlignmentConfig, PatchAligner, Pictures, Templates
from cotracker_ros.visible import VisibleRule

ENCODERS = {
    'lite0': Lite0Encoder, 'pyramid': PyramidEncoder, 'slim': SlimEncoder, 'tucker': TuckerEncoder,
}  # fmt: skip

# The probabilities that are shown are calibrated: visible is what is so more likely than not.
VISIBLE = VisibleRule(0.5)


@dataclass(frozen=True)
class RealtimeConfig:
    """Shape of the real-time tracker."""

    encoder: str = 'lite0'  # one of ENCODERS
    features: int = 64  # channels of the matched features, at every stride
    strides: tuple[int, ...] = (8, 16, 32)  # px of one feature cell, per level
    radius: int = 3  # cells of the correlation window on each side
    width: int = 128  # channels of a token
    heads: int = 4
    depth: int = 2  # time and space blocks
    virtual: int = 16  # virtual tracks that carry information between points
    update: float = 0.3  # share of what is seen now that the recent template takes over
    window: int = 8  # frames a token sees, its own among them; also the reach of query_age, plus 1
    iterations: int = 2  # refinements per frame, unless asked otherwise
    momentum: float = 0.5  # share of the last displacement that the search starts ahead by
    sharpness: float = 20.0  # inverse temperature of the soft arg-max over a correlation window
    far_sharpness: float = 150.0  # the same over a whole correlation map
    # the two strides, by their place in `strides`, that must agree on the best place of a picture
    far_levels: tuple[int, int] = (0, 1)
    far_scale: float = 128.0  # px that tokens measure the way to the best places by
    motion_scale: float = 16.0  # px that tokens measure displacements by
    image_scale: int = 2  # the picture against the one that the encoder sees
    query_fit: float = 0.75  # correlation above which the query's patch says where a point is
    nearby: float = 8.0  # px that alignment may move a point by
    loose_fit: float = 0.5  # correlation above which the patch still moves a point
    loose_nearby: float = 4.0  # px that it may then move a point by
    redetection_threshold: float = 0.5  # probability above which a lost point is taken back
    keypoints: int = 0  # numbers of a body's keypoints with an embedding of their own; 0: none


# The shape of the weights that ship: an encoder of plain convolutions, one stride finer.
PYRAMID_CONFIG = RealtimeConfig(
    encoder='pyramid', strides=(4, 8, 16), far_levels=(1, 2), far_scale=64.0, motion_scale=8.0,
    image_scale=1,
)  # fmt: skip


class Motion(NamedTuple):
    """What a frame's search starts from, (G, F, N, 2) px and (G, F, N): the state of the points
    one frame before.
    """

    xy: Tensor
    velocity: Tensor  # px per frame
    visibility: Tensor  # probability
    confidence: Tensor  # probability
    fit: Tensor  # correlation of the query's patch where it was aligned last


class Estimate(NamedTuple):
    """One refinement's result: xy (G, F, N, 2) px; logits (G, F, N)."""

    xy: Tensor
    visibility: Tensor
    confidence: Tensor


class BestPlaces(NamedTuple):
    """place (G, F, N, 2 templates, 2) px; score (G, F, N, 2), a cosine."""

    place: Tensor
    score: Tensor


class CorrelationMap(NamedTuple):
    """How two templates of every point compare with every cell of a level, values (B N, 2, h,
    w), B = G F.
    """

    values: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Cells of the level, (h, w)."""
        height, width = self.values.shape[-2:]
        return height, width

    def windows(self, place: Tensor, offsets: Tensor) -> Tensor:
        """Values at place (B, N, 2) + offsets (P, 2) cells, x before y, zero outside the picture:
        (B, N, 2, P).
        """
        to_grid = 2 / last_cell(self.size, place)
        around = (offsets * to_grid - 1)[:, None]
        grid = place.reshape(-1, 1, 1, 2) * to_grid + around
        values = F.grid_sample(self.values, grid, padding_mode='zeros', align_corners=True)
        return values.view(*place.shape[:2], 2, -1)


class NearCorrelation(NamedTuple):
    """The same of a level of which windows alone are read, so that most of its cells are never
    compared: their features cells (B, h w, C); size (h, w); templates (B, N, 2, C).
    """

    cells: Tensor
    size: tuple[int, int]
    templates: Tensor

    def windows(self, place: Tensor, offsets: Tensor) -> Tensor:
        """As `CorrelationMap.windows`, for offsets that are a square of whole cells, row by row:
        products with the cells beneath, then bilinear between them.
        """
        side = math.isqrt(offsets.shape[0]) + 1  # cells beneath the window, along each axis
        beneath = torch.arange(side, dtype=place.dtype, device=place.device) + offsets[0, 0]
        corner = place.floor()
        cell = corner[..., None] + beneath  # (B, N, 2, side), x and y
        inside = torch.minimum(cell.clamp(min=0), last_cell(self.size, place)[:, None])
        # What each cell gives each position of the window; those outside the picture nothing.
        unity = torch.eye(side, dtype=place.dtype, device=place.device)
        first, second = unity[:, :-1], unity[:, 1:]
        share = first + (place - corner)[..., None, None] * (second - first)
        x, y = (share * (inside == cell)[..., None]).unbind(-3)
        index = (inside[..., 1, :, None] * self.size[1] + inside[..., 0, None, :]).flatten(-2)
        frame = torch.arange(place.shape[0], device=place.device, dtype=torch.int32)[:, None, None]
        cells = gather(self.cells, index.int() + self.cells.shape[1] * frame)
        product = self.templates @ cells.transpose(-1, -2)
        product = product.unflatten(-1, (side, side))
        return (y[:, :, None].transpose(-1, -2) @ product @ x[:, :, None]).flatten(-2)

    def everywhere(self) -> CorrelationMap:
        """Compare all cells."""
        values = self.templates.flatten(1, 2) @ self.cells.transpose(1, 2)
        return CorrelationMap(values.view(-1, 2, *self.size))


Level = CorrelationMap | NearCorrelation


class Refined(NamedTuple):
    """What a frame's refinements end with: every one's estimate, the new caches, the last tokens
    (G, F, N, D), normalised, and the best places.
    """

    estimates: list[Estimate]
    past: list[Tensor]
    token: Tensor
    best: BestPlaces


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
        """Update tokens x (G, F, N, D) and virtual tracks (G, F, V, D); past (G, N, window - 1,
        2 D) is the cache of this block. Gives the three anew.
        """
        update, past = self.time(x.transpose(1, 2), past, masks.time, masks.lag)
        x = x + update.transpose(1, 2)
        virtual = virtual + self.gather(virtual, x, masks.points)
        x = x + self.spread(x, virtual)
        return x + self.mlp(x), virtual, past


class Masks(NamedTuple):
    """Who may look at whom, true where allowed: a point at its own frames, time (G, N, F, window -
    1 + F) bool, and the virtual tracks at points, points (G, F, 1, N) bool. lag (F, window - 1 +
    F): how many frames before each frame the others are.
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
        return cls(seen & begun, live[:, :, None], lag)


class Refiner(nn.Module):
    """Correlation windows and motion to better positions, visibility and confidence."""

    def __init__(self, config: RealtimeConfig):
        super().__init__()
        self.config = config
        width, levels, templates = config.width, len(config.strides) + 1, 2
        positions = (2 * config.radius + 1) ** 2
        # Per level and template: the window, its soft arg-max (2) and maximum. Per template: the
        # best place of the whole map (2), its score, and the score here. Place in the image (2),
        # motion (4), probabilities (2), fit.
        inputs = levels * templates * (positions + 3) + templates * 4 + 9
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
        self.keypoints = KeypointEmbedding(config.keypoints, width) if config.keypoints else None

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of one cell of every correlation map."""
        return (*self.config.strides, 2 * self.config.strides[-1])

    def no_past(
        self, clips: int, points: int, iterations: int, device: torch.device | str = 'cpu'
    ) -> list[Tensor]:
        """The caches of points that have just begun: of every block of one refinement after the
        other, keys and values (G, N, window - 1, 2 D) of past frames.
        """
        shape = clips, points, self.config.window - 1, 2 * self.config.width
        count = iterations * self.config.depth
        return [torch.zeros(shape, device=device) for _ in range(count)]

    def forward(
        self,
        levels: list[Level],
        motion: Motion,
        masks: Masks,
        past: list[Tensor],
        keypoint: Tensor | None = None,
    ) -> Refined:
        """Refine as often as there are caches for.

        levels: fine to coarse; past: as `no_past`; keypoint (G, N): numbers of a body's
        keypoints, -1: none.
        """
        c = self.config
        xy = motion.xy + c.momentum * motion.velocity
        best = self.best_places(levels, xy.shape)
        middle = last_cell(levels[0].size, xy) * (self.config.strides[0] / 2)
        normalise, read_out = self.head
        estimates, caches = [], []
        for k in range(0, len(past), c.depth):
            windows, moves = self.read(levels, xy)
            away = best.place - xy[..., None, :]
            far = (
                torch.cat([away / c.far_scale, best.score[..., None]], -1).clamp(-2, 2).flatten(-2)
            )
            by_level = windows.unflatten(-1, (len(self.strides), 2, -1))
            here = by_level[..., 1, :, self.offsets.shape[0] // 2]
            inputs = torch.cat(
                [
                    windows * 4,
                    moves.flatten(-2) / 3,
                    far,
                    here,
                    (xy / middle - 1).clamp(-1.5, 1.5),
                    (xy - motion.xy) / c.motion_scale,
                    motion.velocity / c.motion_scale,
                    motion.visibility[..., None],
                    motion.confidence[..., None],
                    motion.fit[..., None],
                ],
                -1,
            )
            x = self.embed(inputs)
            if self.keypoints is not None and keypoint is not None:
                x = x + self.keypoints(keypoint).transpose(1, 2)
            virtual = self.virtual.expand(*x.shape[:2], -1, -1)
            for block, cache in zip(self.blocks, past[k : k + c.depth], strict=True):
                x, virtual, cache = block(x, virtual, cache, masks)
                caches.append(cache)
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

    def read(self, levels: list[Level], xy: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of all levels around xy (G, F, N, 2): (G, F, N, levels * 2 * (P + 1)) and soft
        arg-max moves in cells (G, F, N, levels * 2, 2). The last value of a window is its
        maximum.
        """
        place = xy.flatten(0, 1)
        windows = [
            level.windows(place / stride, self.offsets)
            for level, stride in zip(levels, self.strides, strict=True)
        ]
        window = torch.cat(windows, 2).unflatten(0, xy.shape[:2])
        share = (window * self.config.sharpness).softmax(-1)
        value = torch.cat([window, window.amax(-1, keepdim=True)], -1)
        return value.flatten(-2), share @ self.offsets

    def best_places(self, levels: list[Level], shape: torch.Size) -> BestPlaces:
        """The best place of the whole image per template, where the strides `far_levels` agree: a
        sharp soft arg-max, because with a hard one rounding decides between two equally good
        places, and runtimes round differently.
        """
        fine, coarse = (levels[k].values for k in self.config.far_levels)
        height, width = fine.shape[-2:]
        # Sharpened before they are joined: less work than on the larger map after.
        half = self.config.far_sharpness / 2
        level = half * fine + upsample(half * coarse)
        flat = level.flatten(2)
        share = flat.softmax(-1).view_as(level)
        # Products with ones and numbers on both sides: a matrix of all places, or sums along an
        # axis, take runtimes several times as long.
        row, column = (
            torch.stack([torch.ones_like(n), n]).to(level)
            for n in (torch.arange(height), torch.arange(width))
        )
        sums = row @ share @ column.T
        x, y = sums[..., 0, 1], sums[..., 1, 0]
        place = torch.stack([x, y], -1) * self.config.strides[self.config.far_levels[0]]
        score = flat.amax(-1) / self.config.far_sharpness
        return BestPlaces(place.view(*shape[:3], 2, 2), score.view(*shape[:3], 2))


class Points(NamedTuple):
    """What is kept of the points from one frame to the next, (B, M, ...)."""

    age: Tensor  # frames since the point started, at most the window
    xy: Tensor  # px
    velocity: Tensor  # px per frame
    visibility: Tensor  # probability, as the network uses it
    confidence: Tensor  # the same
    fit: Tensor  # correlation of the query's patch where it was aligned last
    warp: Tensor  # (B, M, 2, 2), how the query's patch is deformed by now
    template: Tensor  # (B, M, levels, C), features of the query
    recent: Tensor  # the same of what the point looked like recently
    patch: Tensor  # the query's patch, as `Templates.place`
    patch_warp: Tensor  # the same, as `Templates.warp`
    apart: Tensor  # (B, M, M) px², see model/grouping.py

    @classmethod
    def empty(
        cls, model: RealtimeTracker, cameras: int, slots: int, device: str = 'cpu'
    ) -> Points:
        """No point has started yet."""
        c = model.config

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(cameras, slots, *shape, device=device)

        features = len(c.strides), c.features
        patch = Templates.empty(model.aligner, cameras, slots, device)
        age = torch.zeros(cameras, slots, dtype=torch.int32, device=device)
        return cls(
            age, zeros(2), zeros(2), zeros(), zeros(), zeros(), zeros(2, 2),
            zeros(*features), zeros(*features), patch.place, patch.warp, zeros(slots),
        )  # fmt: skip

    def started(self, query: Tensor, xy: Tensor, template: Tensor) -> Points:
        """With the queried slots (B, M) bool begun anew at xy (B, M, 2) px with templates
        (B, M, levels, C); `advance_frame` cuts their patches.
        """

        def put(new: Tensor | float, old: Tensor) -> Tensor:
            mask = query.view(*query.shape, *(1,) * (old.ndim - 2))
            return torch.where(mask, new, old)

        return Points(
            age=self.age * ~query,
            xy=put(xy, self.xy),
            velocity=put(0.0, self.velocity),
            visibility=put(1.0, self.visibility),
            confidence=put(1.0, self.confidence),
            fit=put(1.0, self.fit),
            warp=put(torch.eye(2, dtype=xy.dtype, device=xy.device), self.warp),
            template=put(template, self.template),
            recent=put(template, self.recent),
            patch=self.patch,
            patch_warp=self.patch_warp,
            apart=torch.where(query[:, None] | query[..., None], UNKNOWN, self.apart),
        )

    @property
    def templates(self) -> Templates:
        """Of the patches."""
        return Templates(self.patch, self.patch_warp)

    @property
    def motion(self) -> Motion:
        """With an axis for the one frame, (B, 1, M, ...)."""
        parts = self.xy, self.velocity, self.visibility, self.confidence, self.fit
        return Motion(*(x[:, None] for x in parts))


class Aligned(NamedTuple):
    """What the grey patches say about a frame. xy (B, M, 2) px, aligned where the patch fits
    more or less; held (B, M) bool, whether it fits well; warp as in `Points`; fits (B, M, 2): near
    the estimate, and at the best place, which is `best` (B, M, 2) px.
    """

    xy: Tensor
    held: Tensor
    warp: Tensor
    fits: Tensor
    best: Tensor


class Advanced(NamedTuple):
    """A frame's result: what is shown, (B, M) probabilities beside `points.xy`; the points for
    the next frame; the new caches; and what the read-outs were given, (B, M, ...).
    """

    visibility: Tensor
    confidence: Tensor
    points: Points
    past: list[Tensor]
    calibration_features: Tensor
    redetection_features: Tensor
    network: Estimate  # xy as aligned, before redetection; logits without calibration
    best: Tensor  # (B, M, 2) px, where a lost point would be taken to


class RealtimeTracker(HalfPrecisionEncoder):
    """The real-time tracker; `RealtimeStep` runs it on a stream."""

    origin = FRESH  # of its weights

    def __init__(self, config: RealtimeConfig, image_size: tuple[int, int]):
        super().__init__()
        if any(n % 32 for n in image_size):
            raise ValueError(f'image size {image_size} must be multiples of 32')
        self.config, self.image_size = config, image_size
        self.sizes = [(image_size[0] // s, image_size[1] // s) for s in config.strides]
        self.counts = [height * width for height, width in self.sizes]
        self.cells = sum(self.counts)

        def constant(name: str, values: list) -> None:
            self.register_buffer(name, torch.tensor(values), persistent=False)

        constant('per_pixel', [[1 / s] for s in config.strides])
        constant('last', [(width - 1.0, height - 1.0) for height, width in self.sizes])
        constant('index_steps', [(1.0, width) for _, width in self.sizes])
        offsets = [sum(self.counts[:k]) for k in range(len(self.counts))]
        corners = [
            (n, n + 1, n + width, n + width + 1)
            for n, (_, width) in zip(offsets, self.sizes, strict=True)
        ]
        self.register_buffer('corners', torch.tensor(corners, dtype=torch.int32), persistent=False)
        self.encoder = ENCODERS[config.encoder](config.features)
        self.refiner = Refiner(config)
        self.aligner = PatchAligner(AlignmentConfig(), image_size, config.image_scale)
        self.grouping = GroupingConfig()
        # What is added to the logits of visibility and confidence on the way out: training
        # balances the answers, and the network goes on from what it was trained with. It is
        # fitted when training ends.
        levels = len(config.strides)
        self.calibration = nn.Linear(config.width + 7 + levels, 2).requires_grad_(False)
        # Whether a lost point is back, where its first template fits best: a logit, fitted
        # likewise.
        self.redetection = nn.Linear(config.width + 17, 1).requires_grad_(False)
        for fitted in (self.calibration, self.redetection):
            nn.init.zeros_(fitted.weight)
            nn.init.zeros_(fitted.bias)

    @property
    def facts(self) -> ModelFacts:
        """What users of the network must know."""
        return ModelFacts(
            name='realtime', image_size=self.image_size, image_scale=self.config.image_scale,
            window=self.config.window, iterations=self.config.iterations, resize='edges',
            visible=VISIBLE, visible_whole=VISIBLE, sliding=False, causal=True, support_grid=0,
            not_streamable='', origin=self.origin,
        )  # fmt: skip

    @property
    def keypoints(self) -> KeypointEmbedding | None:
        """The embedding of a body's keypoints, if the network has one."""
        return self.refiner.keypoints

    def encode(self, image: Tensor) -> Tensor:
        """Features of pictures (B, h, w, 3) uint8 RGB of `image_scale` times the model's size, as
        `rows`.
        """
        picture = image.permute(0, 3, 1, 2).float()
        if self.config.image_scale > 1:
            picture = F.avg_pool2d(picture, self.config.image_scale)
        return self.rows(encode(self.encoder, picture))

    def rows(self, maps: list[Tensor]) -> Tensor:
        """The features of a frame as one list of cells, (B, cells, C), of the encoder's maps
        (B, C, h, w), fine to coarse.
        """
        return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)

    def maps(self, rows: Tensor) -> list[Tensor]:
        """The encoder's maps again, see `rows`."""
        levels = rows.transpose(1, 2).split(self.counts, 2)
        return [x.unflatten(2, size) for x, size in zip(levels, self.sizes, strict=True)]

    def correlate(self, rows: Tensor, templates: Tensor) -> list[Level]:
        """Compare templates (G, F, N, 2, levels, C) with the features of frames, rows (G F,
        cells, C): per level, fine to coarse, and once more the coarsest averaged over 2 x 2
        cells. The best place is looked for in levels from the first of `far_levels` on, so only
        these are compared as a whole.
        """
        templates, first = templates.flatten(0, 1), min(self.config.far_levels)
        levels = [
            NearCorrelation(cells, size, templates[..., k, :])
            for k, (size, cells) in enumerate(
                zip(self.sizes, rows.split(self.counts, 1), strict=True)
            )
        ]
        # Averages of products with a template are products with averages: one map to average
        # instead of one for each template.
        cells, size, template = levels[-1]
        average = F.avg_pool2d(cells.transpose(1, 2).unflatten(2, size), 2)
        levels.append(NearCorrelation(self.rows([average]), tuple(average.shape[2:]), template))
        return [*levels[:first], *(level.everywhere() for level in levels[first:])]

    def four_cells(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The four cells around places xy (B, N, 2) px at every level, as numbers of a frame's
        rows (B, N, levels, 4), and their shares (B, N, levels, 4); the border continues.
        """
        place = torch.minimum((xy[..., None, :] * self.per_pixel).clamp(min=0), self.last)
        corner = torch.minimum(place.floor(), self.last - 1)
        after = place - corner
        x, y = torch.stack([1 - after, after], -1).unbind(-2)
        share = (y[..., :, None] * x[..., None, :]).flatten(-2)
        index = (corner * self.index_steps).sum(-1, keepdim=True).int() + self.corners
        return index, share

    def describe(self, rows: Tensor, xy: Tensor) -> Tensor:
        """Features of frames, rows (B, cells, C), at xy (B, N, 2) px, every level, unit length:
        (B, N, levels, C).
        """
        index, share = self.four_cells(xy)
        camera = torch.arange(xy.shape[0], device=xy.device, dtype=index.dtype)
        return interpolated(gather(rows, index + self.cells * camera[:, None, None, None]), share)

    def describe_query(
        self, rows: Tensor, ring: Tensor, frame: Tensor, xy: Tensor, age: Tensor
    ) -> Tensor:
        """Templates (B, N, levels, C) at xy (B, N, 2) px in the frame `age` (B, N) frames ago: in
        the newest one's rows (B, cells, C), or in the ring of past ones' (window, B, cells, C),
        where `frame` (1,) is the newest's place.
        """
        index, share = self.four_cells(xy)
        cameras, window = rows.shape[0], ring.shape[0]
        camera = torch.arange(cameras, device=xy.device, dtype=index.dtype)[:, None]
        past = ((frame - age) % window).to(index.dtype) * cameras + camera
        here = gather(rows, index + (self.cells * camera)[..., None, None])
        there = gather(ring.flatten(0, 1), index + (self.cells * past)[..., None, None])
        now = (age == 0)[..., None, None, None]
        return interpolated(torch.where(now, here, there.to(here.dtype)), share)

    def update_template(
        self, recent: Tensor, now: Tensor, visibility: Tensor, confidence: Tensor
    ) -> Tensor:
        """The recent template follows what is seen, as far as the point is believed visible;
        (..., levels, C).
        """
        trust = (visibility * confidence)[..., None, None]
        return F.normalize(recent + self.config.update * trust * (now - recent), dim=-1)

    def align(self, pictures: Pictures, points: Points, xy: Tensor, best: Tensor) -> Aligned:
        """Align the patches near the estimate xy and at the best place (B, M, 2) px of the whole
        frame, all in one batch.
        """
        c = self.config
        places = torch.stack([xy, best], 2)
        found = self.aligner.align(pictures, points.templates, places, points.warp)
        (near, back), (fit, back_fit) = found.xy.unbind(2), found.fit.unbind(2)
        moved = (near - xy).norm(dim=-1)
        held = (fit > c.query_fit) & (moved < c.nearby)
        taken = held | ((fit > c.loose_fit) & (moved < c.loose_nearby))
        bent = self.aligner.deform(pictures, points.templates, near, points.warp)
        area = bent[..., 0, 0] * bent[..., 1, 1] - bent[..., 0, 1] * bent[..., 1, 0]
        bending = held & (area > 0.15) & (area < 6)
        return Aligned(
            torch.where(taken[..., None], near, xy),
            held,
            torch.where(bending[..., None, None], bent, points.warp),
            found.fit,
            torch.where((back_fit > c.query_fit)[..., None], back, best),
        )

    def inside(self, xy: Tensor) -> Tensor:
        """How far xy (..., 2) px is inside the picture, up to 16 and up to 64 px: (..., 2)."""
        height, width = self.image_size
        far = torch.tensor([width - 1, height - 1], dtype=xy.dtype, device=xy.device)
        inside = torch.minimum(xy, far - xy).amin(-1, keepdim=True)
        return torch.cat([(inside / 8).clamp(-2, 2), (inside / 32).clamp(-2, 2)], -1)

    def calibration_features(
        self, token: Tensor, aligned: Aligned, template: Tensor, now: Tensor
    ) -> Tensor:
        """What calibration reads, (..., D + 7 + levels): the last tokens (..., D); how far
        inside the picture the point is; how well its patch fits, and whether it is held; how
        similar its first template (..., levels, C) and the picture there (..., levels, C) are.
        """
        fit, _ = aligned.fits.unbind(-1)
        fits = [
            2 * fit, 4 * (fit - 0.7).clamp(min=0), 8 * (fit - 0.9).clamp(min=0),
            4 * (fit - 0.8).clamp(min=0), aligned.held.to(fit.dtype),
        ]  # fmt: skip
        similarity = 2 * (template * now).sum(-1)
        return torch.cat([token, self.inside(aligned.xy), torch.stack(fits, -1), similarity], -1)

    def redetection_features(
        self,
        token: Tensor,
        best: BestPlaces,
        aligned: Aligned,
        template: Tensor,
        now: Tensor,
        believed: Tensor,
    ) -> Tensor:
        """What redetection reads, (..., D + 17): the last tokens (..., D); how well the first
        template (..., levels, C) fits at its best place and at the estimate, where the picture is
        `now` (..., levels, C); how far that place is from the estimate, and from the recent
        template's; how well the patch fits; and what is believed of the point, (..., 4):
        probabilities of visibility and confidence a frame before, their logits in this one.
        """
        place, score = best.place[..., 0, :], best.score[..., 0]
        here = (template * now).sum(-1)[..., 1:].mean(-1)
        away = (place - aligned.xy).norm(dim=-1)
        apart = (place - best.place[..., 1, :]).norm(dim=-1)
        fit, back = aligned.fits.unbind(-1)
        hints = [
            4 * score, 4 * here, 4 * (score - 0.8).clamp(min=0), 4 * (score - 0.9).clamp(min=0),
            (away / 16).clamp(max=2), (away / 64).clamp(max=2),
            (apart / 16).clamp(max=2), (apart / 64).clamp(max=2),
            2 * back, 4 * (back - 0.6).clamp(min=0), 8 * (back - 0.8).clamp(min=0),
            2 * fit, 2 * (back - fit),
        ]  # fmt: skip
        return torch.cat([token, torch.stack(hints, -1), believed], -1)

    def advance_frame(
        self,
        rows: Tensor,
        pictures: Pictures,
        points: Points,
        past: list[Tensor],
        here: Tensor,
        live: Tensor,
        keypoint: Tensor | None = None,
    ) -> Advanced:
        """Track points into a new frame; as many refinements as `past` holds caches for.

        rows (B, cells, C), the features; pictures as `PatchAligner.pictures`; here (B, M) bool:
        queried in this very frame, so that a point is where it was put; live (B, M) bool; keypoint
        (B, M), the number of a body's keypoint, -1: none. A point of age 0 has no patch yet: it is
        cut where the point is found in this frame.
        """
        c, new = self.config, points.age == 0
        templates = torch.stack([points.template, points.recent], 2)
        levels = self.correlate(rows, templates[:, None])
        masks = Masks.build(points.age[:, None], live[:, None], c.window)
        refined = self.refiner(levels, points.motion, masks, past, keypoint)
        estimate, visibility, confidence = (x[:, 0] for x in refined.estimates[-1])
        token, best = refined.token[:, 0], BestPlaces(*(x[:, 0] for x in refined.best))

        aligned = self.align(pictures, points, estimate, best.place[..., 0, :])
        xy = torch.where(new[..., None], estimate, aligned.xy)
        xy = torch.where(here[..., None], points.xy, xy)
        aligned = aligned._replace(
            xy=xy,
            held=aligned.held | new,
            warp=torch.where(new[..., None, None], points.warp, aligned.warp),
            fits=torch.where(new[..., None], 1.0, aligned.fits),
        )
        now = self.describe(rows, xy)
        calibration = self.calibration_features(token, aligned, points.template, now)
        believed = [points.visibility, points.confidence, visibility, confidence]
        redetection = self.redetection_features(
            token, best, aligned, points.template, now, torch.stack(believed, -1)
        )
        shift = self.calibration(calibration)
        found = self.redetection(redetection)[..., 0]
        threshold = c.redetection_threshold
        back = (found > math.log(threshold / (1 - threshold))) & ~new
        network = Estimate(xy, visibility, confidence)

        xy = torch.where(back[..., None], aligned.best, xy)
        now = torch.where(back[..., None, None], points.template, now)
        templates = self.aligner.renew(points.templates, new, pictures, xy)

        def probability(logit: Tensor) -> Tensor:
            return torch.where(here, 1.0, torch.where(back, found, logit).sigmoid())

        def shown(logit: Tensor, k: int) -> Tensor:
            return torch.where(live, probability(logit + shift[..., k]), 0.0)

        shown_visibility, shown_confidence = shown(visibility, 0), shown(confidence, 1)
        visibility, confidence = probability(visibility), probability(confidence)
        displacement = xy - points.xy
        going_on = live & ~(new | back)
        seen = going_on & (torch.minimum(points.visibility, visibility) > 0.5)
        motion, known = shared_motion(points.xy, displacement, seen, points.apart, self.grouping)
        unseen = ~VISIBLE(shown_visibility, shown_confidence)
        hidden = unseen & (aligned.fits[..., 0] < c.query_fit) & going_on & known
        xy = torch.where(hidden[..., None], points.xy + motion, xy)
        renewed = self.update_template(points.recent, now, visibility, confidence)
        following = Points(
            age=(points.age + 1).clamp(max=c.window),
            xy=xy,
            velocity=(xy - points.xy) * ~(here | back)[..., None],
            visibility=visibility,
            confidence=confidence,
            fit=torch.where(back, aligned.fits[..., 1], aligned.fits[..., 0]),
            warp=aligned.warp,
            template=points.template,
            recent=torch.where(back[..., None, None], points.template, renewed),
            patch=templates.place,
            patch_warp=templates.warp,
            apart=drift_apart(points.apart, points.xy, displacement, seen, self.grouping),
        )
        return Advanced(
            shown_visibility, shown_confidence, following, refined.past, calibration, redetection,
            network, aligned.best,
        )  # fmt: skip

    @torch.no_grad()
    def track(
        self,
        video: Tensor,
        queries: Tensor,
        iterations: int | None = None,
        keypoints: Tensor | None = None,
    ) -> VideoTracks:
        """Track queries (N, 3) = t, x, y px through a video (T, 3, H, W) 0..255 at
        `image_size`, frame by frame; keypoints (N,) as `CoTracker.track` has them.

        Before a point's query frame: the query position, visibility and confidence 0.
        """
        from cotracker_ros.model.realtime_step import RealtimeStep

        check_keypoints(keypoints, len(queries), self.keypoints)
        step = RealtimeStep(self, iterations or self.config.iterations)
        picture_size = [n * step.image_scale for n in self.image_size]
        count, state = len(queries), step.initial_state(1, len(queries))
        state = {name: value.to(video.device) for name, value in state.items()}
        age = torch.zeros(1, count, dtype=torch.int32, device=video.device)
        rows = []
        for t, frame in enumerate(video):
            if step.image_scale > 1:
                frame = F.interpolate(frame[None].float(), size=picture_size, mode='bilinear')[0]
            image = frame.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)[None]
            begun, now = (queries[None, :, 0] <= t), (queries[None, :, 0] == t)
            inputs = {
                'image': image, 'query_xy': queries[None, :, 1:].float(), 'query': now,
                'query_age': age, 'live': begun,
            }  # fmt: skip
            if keypoints is not None:
                inputs['keypoint'] = keypoints[None].to(video.device)
            out, state = step(inputs, state)
            xy = torch.where(begun[..., None], out['xy'], queries[None, :, 1:].to(out['xy'].dtype))
            rows.append((xy[0], out['visibility'][0], out['confidence'][0]))
        return VideoTracks(*(torch.stack(x) for x in zip(*rows, strict=True)))


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (F, cells, C), of all frames one after the other, by their numbers (...): (..., C)."""
    return rows.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)


def interpolated(cells: Tensor, share: Tensor) -> Tensor:
    """Means of four cells (..., 4, C) by their shares (..., 4), at unit length: (..., C)."""
    return F.normalize((share[..., None, :] @ cells)[..., 0, :], dim=-1)


def build_realtime(image_size: tuple[int, int] | None = None, **changes: Any) -> RealtimeTracker:
    """With fresh weights, the shape of `RealtimeConfig`, or of the weights that ship where the
    encoder is not 'lite0', but for `changes`; image size (H, W) px, multiples of 32.
    """
    finer = changes.get('encoder', 'lite0') != 'lite0'
    config = PYRAMID_CONFIG if finer else RealtimeConfig()
    size = (320, 512) if finer else (256, 416)
    return RealtimeTracker(replace(config, **changes), image_size or size)


def encoder_of(state: dict[str, Tensor]) -> str:
    """Which of ENCODERS a state dict belongs to."""
    if any('.depthwise.' in key for key in state):
        return 'lite0'
    if 'encoder.stages.1.0.conv1.2.weight' in state:
        return 'tucker'
    return 'slim' if 'encoder.down.0.weight' in state else 'pyramid'


# Of older files, by layer: places of the inputs "fit of the query's patch" and "fit of the recent
# one" after those of the token, and how many inputs came after it then.
RECENT_FITS = {'calibration.weight': (2, 5, (11,)), 'redetection.weight': (11, 12, (14, 18))}


def upgraded(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """An older state dict: with zeros for the inputs that layers have gained since, and what the
    fit of a recent patch weighed, which is no longer kept, added to what the query's does.
    """
    state = dict(state)
    width = expected['refiner.virtual'].shape[1]
    for key, (query, recent, lengths) in RECENT_FITS.items():
        if key in state and state[key].shape[1] - width in lengths:
            weight, gone = state[key].clone(), width + recent
            weight[:, width + query] += weight[:, gone]
            state[key] = torch.cat([weight[:, :gone], weight[:, gone + 1 :]], 1)
    for key in ('refiner.embed.0.weight', *RECENT_FITS):
        if key in state and key in expected:
            missing = expected[key].shape[1] - state[key].shape[1]
            state[key] = F.pad(state[key], (0, max(0, missing)))
    # All cells of a patch counted alike.
    fresh = {key: x for key, x in expected.items() if key.startswith('aligner.')}
    return fresh | state
