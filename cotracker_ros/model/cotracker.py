"""CoTracker 1, 2 and 3: points of a video refined together, window by window.

Inside the network all coordinates are feature pixels and tracks are laid out (B, N, S): clips,
points, frames of a window. VideoTracks that leave it are frame pixels, laid out (B, T, N).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from cotracker_ros.model.config import FRESH, VISIBLE_WHOLE, Config, ModelFacts
from cotracker_ros.model.correlation import DotCorrelation, VolumeCorrelation
from cotracker_ros.model.embeddings import (
    KeypointEmbedding,
    check_keypoints,
    displacement_encoding,
    motion_encoding,
    position_table,
    time_table,
)
from cotracker_ros.model.encoder import Encoder
from cotracker_ros.model.sampling import PyramidLayout, Read, reader
from cotracker_ros.model.transformer import UpdateTransformer

# Long videos and many points go through in parts that bound the memory, and suit a CPU's caches.
ENCODED_TOGETHER = 8  # frames
COMPARED_TOGETHER = 512  # points, counted in every frame: 64 MiB of features at 128 channels


@dataclass(frozen=True)
class VideoTracks:
    """Tracks of N points over T frames, with or without a leading axis of clips."""

    xy: Tensor  # (T, N, 2) pixels of the frames given
    visibility: Tensor  # (T, N) in [0, 1]
    confidence: Tensor  # (T, N) in [0, 1]; 1 for networks that predict none


@dataclass(frozen=True)
class WindowEstimate:
    """What is believed of the points in the frames of a window."""

    xy: Tensor  # (B, N, S, 2) feature pixels
    logits: Tensor  # (B, N, S, K): visibility, and confidence where predicted
    feature: Tensor | None = None  # (B, N, S, C) evolving track features, where used

    def at(self, *index: slice) -> WindowEstimate:
        """Cut out some points, or some points and frames."""
        index = (slice(None), *index)
        return WindowEstimate(*(None if x is None else x[index] for x in vars(self).values()))

    def over(self, frames: slice) -> WindowEstimate:
        """Cut out some frames."""
        return self.at(slice(None), frames)

    def followed_by(self, later: WindowEstimate) -> WindowEstimate:
        """Append later frames."""
        pairs = zip(vars(self).values(), vars(later).values(), strict=True)
        return WindowEstimate(*(None if a is None else torch.cat([a, b], dim=2) for a, b in pairs))


@dataclass(frozen=True)
class WindowState:
    """What is kept from one window for the next; of constant size."""

    queries: Tensor  # (B, N, 3): frame of the video, x, y in pixels
    start: int = 0  # first frame of the next window
    rows: Tensor | None = None  # (B, S / 2, P, C) pyramids of the frames already encoded
    template: Tensor | None = None  # of the points started so far
    last: WindowEstimate | None = None  # results in the frames already encoded
    keypoint: Tensor | None = None  # (B, N) numbers of a body's keypoints, -1: none


def interleave(mask: Tensor, logit: Tensor, queried: Tensor, joined: Tensor) -> Tensor:
    """Pair mask and logit (B, N, S) as the CoTracker 1 weights expect: (B, N, S, 2).

    The pairs are read off one flat list, first all masks, then all logits, of the `joined` points
    (B, N) in the order in which they were `queried`. Pairs of points that have not joined are
    arbitrary.
    """
    order = queried.argsort(dim=1, stable=True)
    index = order[..., None].expand_as(mask)
    flat = torch.cat([value.gather(1, index).flatten(1) for value in (mask, logit)], dim=1)
    position = torch.arange(flat.shape[1], device=flat.device)
    masks = joined.sum(1, keepdim=True) * mask.shape[2]  # in the list of each clip
    position = torch.where(position < masks, position, position - masks + flat.shape[1] // 2)
    pairs = flat.gather(1, position.clamp(max=flat.shape[1] - 1)).view(*mask.shape, 2)
    return pairs.gather(1, order.argsort(dim=1)[..., None, None].expand_as(pairs))


class FeatureUpdate(nn.Module):
    """CoTracker 1 and 2: a track feature starts as the query's and is refined with the track."""

    logits = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.correlation = DotCorrelation(config.levels, (2 * config.radius + 1) ** 2)
        self.norm = nn.LayerNorm(channels)
        self.feature = nn.Linear(channels, channels)
        self.visibility = nn.Linear(channels, 1)
        self.template_shape = (1, channels)
        self.token_size = 130 + self.correlation.size + channels + 2
        if self.token_size % 4:
            raise ValueError(
                f'{config.levels} levels and {channels} channels make a token of '
                f'{self.token_size}; sines and cosines of x and y need a multiple of 4'
            )
        self.delta_size = 2 + channels

    def template(self, patches: Tensor) -> Tensor:
        """Keep the feature (B, N, 1, C) in the middle of query patches (B, N, L, P, C)."""
        return patches[:, :, 0, patches.shape[3] // 2, None]

    def begin(self, xy: Tensor, logits: Tensor, template: Tensor) -> WindowEstimate:
        """Make the first estimate of a window: xy (B, N, S, 2) feature pixels, logits
        (B, N, S, 1), template (B, N, 1, C).
        """
        return WindowEstimate(xy, logits, template.expand(-1, -1, xy.shape[2], -1))

    def correlate(self, patches: Tensor, estimate: WindowEstimate, _: Tensor) -> Tensor:
        """Compare the patches around the tracks with their features: (B, N, S, 196)."""
        return self.correlation(patches, estimate.feature)

    def tokens(
        self, estimate: WindowEstimate, start: WindowEstimate, known: Tensor, corr: Tensor
    ) -> Tensor:
        """Join all that is known (B, N, S, token_size); `known` (B, N, S, 2) is of the start."""
        parts = [displacement_encoding(estimate.xy), corr, estimate.feature, known]
        position = position_table(start.xy[:, :, :1], self.config.feature_size, self.token_size)
        return torch.cat(parts, dim=-1) + position

    def apply_delta(self, estimate: WindowEstimate, delta: Tensor) -> WindowEstimate:
        """Add the transformer's output (B, N, S, delta_size): x, y in feature pixels first."""
        update = self.feature(self.norm(delta[..., 2:]))
        feature = estimate.feature + nn.functional.gelu(update)
        return WindowEstimate(estimate.xy + delta[..., :2], self.visibility(feature), feature)


class TemplateUpdate(nn.Module):
    """CoTracker 3: the template is the fixed patch around the query; logits are refined."""

    logits = 2

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        positions = (2 * config.radius + 1) ** 2
        self.correlation = VolumeCorrelation(config.levels, positions)
        self.template_shape = (config.levels, positions, config.channels)
        self.token_size = self.logits + self.correlation.size + 84
        self.delta_size = 2 + self.logits

    def template(self, patches: Tensor) -> Tensor:
        """Keep the query patches (B, N, L, P, C)."""
        return patches

    def begin(self, xy: Tensor, logits: Tensor, template: Tensor) -> WindowEstimate:
        """Make the first estimate of a window: xy (B, N, S, 2) feature pixels, logits
        (B, N, S, 2); the template (B, N, L, P, C) stays as it is.
        """
        return WindowEstimate(xy, logits)

    def correlate(self, patches: Tensor, _: WindowEstimate, template: Tensor) -> Tensor:
        """Compare the patches around the tracks with their templates: (B, N, S, 1024)."""
        return self.correlation(patches, template)

    def tokens(
        self, estimate: WindowEstimate, start: WindowEstimate, known: Tensor, corr: Tensor
    ) -> Tensor:
        """Join all that is known (B, N, S, token_size)."""
        motion = motion_encoding(estimate.xy, self.config.feature_size)
        return torch.cat([estimate.logits, corr, motion], dim=-1)

    def apply_delta(self, estimate: WindowEstimate, delta: Tensor) -> WindowEstimate:
        """Add the transformer's output (B, N, S, delta_size): x, y in feature pixels first."""
        return WindowEstimate(estimate.xy + delta[..., :2], estimate.logits + delta[..., 2:])


class CoTracker(nn.Module):
    """A CoTracker network of any version."""

    origin = FRESH  # of its weights

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layout = PyramidLayout(config.feature_size, config.levels, config.zero_border)
        self.encoder = Encoder(config.channels, config.stride)
        rule = TemplateUpdate if config.patch_template else FeatureUpdate
        self.update = rule(config)
        self.transformer = UpdateTransformer(
            self.update.token_size, self.update.delta_size,
            config.width, config.heads, config.depth, config.virtual,
        )  # fmt: skip
        self.keypoints = None
        if config.keypoints:
            self.keypoints = KeypointEmbedding(config.keypoints, self.update.token_size)

    @property
    def facts(self) -> ModelFacts:
        """What users of the network must know."""
        c = self.config
        return ModelFacts(
            name=c.name, image_size=c.image_size, image_scale=1, window=c.window, iterations=1,
            resize=c.resize, visible=c.visible, visible_whole=VISIBLE_WHOLE, sliding=c.sliding,
            causal=False,
            support_grid=c.support_grid, not_streamable=c.not_streamable, origin=self.origin,
        )  # fmt: skip

    @property
    def image_size(self) -> tuple[int, int]:
        """Extent (H, W) of the frames, pixels."""
        return self.config.image_size

    @property
    def weight(self) -> Tensor:
        """A weight, for its precision and device."""
        return self.transformer.head.weight

    def track(
        self,
        video: Tensor,
        queries: Tensor,
        iterations: int = 6,
        keypoints: Tensor | None = None,
    ) -> VideoTracks:
        """Track points through a video, without gradients.

        `video` (T, 3, H, W) has values 0 to 255 at `image_size`; `queries` (N, 3) are frame, x, y
        in pixels; `keypoints` (N,) the numbers of a body's keypoints that they are, -1: none, for
        networks with an embedding of keypoints. Raises ValueError for anything else. Before a
        point's frame the tracks are whatever the network says, as published.
        """
        video, queries = torch.as_tensor(video), torch.as_tensor(queries)
        check_clip(video, queries, self.image_size)
        with torch.no_grad():
            numbers = None if keypoints is None else torch.as_tensor(keypoints)
            check_keypoints(numbers, len(queries), self.keypoints)
            numbers = None if numbers is None else numbers[None].to(queries.device)
            tracks = self(video[None], queries[None], iterations, numbers)
        return VideoTracks(tracks.xy[0], tracks.visibility[0], tracks.confidence[0])

    def forward(
        self,
        video: Tensor,
        queries: Tensor,
        iterations: int = 6,
        keypoints: Tensor | None = None,
    ) -> VideoTracks:
        """Track points through clips (B, T, 3, H, W), queries (B, N, 3), keypoints (B, N);
        differentiable.
        """
        half = self.config.window // 2
        state, results = WindowState(queries.to(self.weight), keypoint=keypoints), []
        for piece in new_frames(video, self.config.window, self.config.sliding):
            estimates, state = self.advance(state, piece, iterations)
            # A window overwrites the frames it shares with the one before.
            results = [*results[:-1], *(r.over(slice(half)) for r in results[-1:])]
            results.append(replace(estimates[-1], feature=None))  # of a long video: too many
        return self.read_out(reduce(WindowEstimate.followed_by, results))

    def read_out(self, estimate: WindowEstimate) -> VideoTracks:
        """Turn an estimate (B, N, S) into tracks (B, S, N) in pixels and probabilities."""
        visibility, *confidence = estimate.logits.transpose(1, 2).sigmoid().unbind(-1)
        return VideoTracks(
            estimate.xy.transpose(1, 2) * self.config.stride,
            visibility,
            confidence[0] if confidence else torch.ones_like(visibility),
        )

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames (F, 3, H, W), values 0 to 255, to pyramids (F, P, C), few at a time."""
        return torch.cat([self.encode_together(few) for few in frames.split(ENCODED_TOGETHER)])

    def encode_together(self, frames: Tensor) -> Tensor:
        """Encode frames (F, 3, H, W), values 0 to 255, to pyramids (F, P, C)."""
        features = self.encoder(2 * (frames.to(self.weight) / 255) - 1)
        if self.config.patch_template:
            squares = features.square().sum(dim=1, keepdim=True)
            features = features / squares.clamp(min=1e-12).sqrt()
        return self.layout.flatten(features)

    def advance(
        self, state: WindowState, frames: Tensor, iterations: int
    ) -> tuple[list[WindowEstimate], WindowState]:
        """Refine the next window; give the estimate after each iteration, and the new state.

        `frames` (B, F, 3, H, W) are those not given before: S in the first call, S / 2 in later
        ones, fewer only in the last (a network that does not slide takes all frames at once).
        Estimates cover the frames from `state.start` to the newest. Raises ValueError for more
        frames than a window holds, and for less than one iteration.
        """
        window = self.config.window if self.config.sliding else frames.shape[1]
        rows = self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        rows = rows if state.rows is None else torch.cat([state.rows, rows], dim=1)
        real = rows.shape[1]
        if real > window or iterations < 1:
            raise ValueError(
                f'{real} frames and {iterations} iterations; at most {window} and at least 1'
            )

        queried = state.queries[..., 0] - state.start  # frame of the window, (B, N)
        joined = queried < window
        start, template = self._begin(state, rows, window, queried, joined)
        known = self._known(start.logits[..., 0], queried, joined, state.start > 0, real)
        time = time_table(window, self.config.window, self.update.token_size).to(rows)
        shown = joined if self.config.hide_unstarted else None

        clips = torch.arange(len(rows), device=rows.device)[:, None, None]
        shot = torch.arange(window, device=rows.device).clamp(max=real - 1)  # repeats the last
        read = reader(rows.flatten(0, 1), clips * real + shot)
        estimate, estimates = start, []
        for _ in range(iterations):
            estimate = replace(estimate, xy=estimate.xy.detach())
            corr = self._compare(read, estimate, template)
            tokens = self.update.tokens(estimate, start, known, corr) + time
            tokens = self.named(tokens, state.keypoint)
            estimate = self.update.apply_delta(estimate, self.transformer(tokens, shown))
            estimates.append(estimate.over(slice(real)))
        if self.config.drop_unstarted:
            estimates = [
                WindowEstimate(where_points(joined, e.xy, 0), where_points(joined, e.logits, 0))
                for e in estimates
            ]

        half = window // 2
        last = estimates[-1].over(slice(half, None))
        following = replace(
            state, start=state.start + half, rows=rows[:, half:], template=template, last=last
        )
        return estimates, following

    def named(self, tokens: Tensor, keypoint: Tensor | None) -> Tensor:
        """Add to tokens (B, N, S, D) which keypoints (B, N) of a body their points are."""
        if self.keypoints is None or keypoint is None:
            return tokens
        return tokens + self.keypoints(keypoint)

    def _compare(self, read: Read, estimate: WindowEstimate, template: Tensor) -> Tensor:
        """Correlate (B, N, S, E), few points at a time: patches are far larger than results."""
        batch, count, frames = estimate.xy.shape[:3]
        few = max(1, COMPARED_TOGETHER // (batch * frames))
        results = []
        for first in range(0, count, few):
            some = slice(first, first + few)
            part = estimate.at(some)
            patches = self.patches(read, part.xy)
            results.append(self.update.correlate(patches, part, template[:, some]))
        return torch.cat(results, dim=1)

    def patches(self, read: Read, xy: Tensor) -> Tensor:
        """Sample the patches (..., L, P, C) around xy (..., 2)."""
        return self.layout.patches(read, xy, self.config.radius)

    def _begin(
        self, state: WindowState, rows: Tensor, window: int, queried: Tensor, joined: Tensor
    ) -> tuple[WindowEstimate, Tensor]:
        """Give the estimate that a window starts from, and the templates of its points."""
        real = rows.shape[1]
        xy = state.queries[..., 1:].to(rows.dtype) / self.config.stride
        clips = torch.arange(len(rows), device=rows.device)[:, None]
        read = reader(rows.flatten(0, 1), clips * real + queried.clamp(0, real - 1).long())
        # Zeros beyond the border are for correlation: a template is always of the image.
        height, width = self.config.feature_size
        inside = torch.minimum(xy.clamp(min=0), xy.new_tensor([width - 1, height - 1]))
        patches = self.patches(read, inside if self.config.zero_border else xy)
        template = self.update.template(patches)

        xy = xy[:, :, None].expand(-1, -1, window, -1)
        logits = xy.new_full((*xy.shape[:3], self.update.logits), self.config.start_logit)
        if state.last is None:
            template = where_points(joined, template, 0)
        else:
            carried = queried < window // 2
            template = where_points(joined & ~carried, template, state.template)
            xy = where_points(carried, prolong(state.last.xy, window), xy)
            logits = where_points(carried, prolong(state.last.logits, window), logits)
        return self.update.begin(xy, logits, template), template

    def _known(
        self, logit: Tensor, queried: Tensor, joined: Tensor, carried: bool, real: int
    ) -> Tensor:
        """Pair the logit (B, N, S) that a window starts from with its mask: (B, N, S, 2).

        The mask is 1 where a track is still open: from its query on, and not carried over.
        """
        window = logit.shape[2]
        frame = torch.arange(window, device=logit.device)
        still_open = frame >= (window // 2 if carried else 0)
        if self.config.drop_unstarted:
            still_open = still_open & (frame < real)
        mask = ((queried[..., None] <= frame) & still_open).to(logit)
        if self.config.interleave_points:
            return interleave(mask, logit, queried, joined)
        return torch.stack([mask, logit], dim=-1)


def new_frames(video: Tensor, window: int, sliding: bool) -> list[Tensor]:
    """Cut a video (B, T, ...) into the frames that are new in each window: all of the first, half
    of each later one; all at once for a network that does not slide.
    """
    if not sliding or video.shape[1] <= window:
        return [video]
    return [video[:, :window], *video[:, window:].split(window // 2, dim=1)]


def check_clip(video: Tensor, queries: Tensor, image_size: tuple[int, int]) -> None:
    """Raise ValueError unless video (T, 3, H, W) and queries (N, 3) can be tracked."""
    if video.ndim != 4 or video.shape[1] != 3 or tuple(video.shape[2:]) != tuple(image_size):
        expected = f'(frames, 3, {image_size[0]}, {image_size[1]})'
        raise ValueError(f'video has shape {tuple(video.shape)}, expected {expected}')
    if queries.ndim != 2 or queries.shape[1] != 3 or not len(queries):
        raise ValueError(f'queries have shape {tuple(queries.shape)}, expected (points > 0, 3)')
    if not queries.isfinite().all():
        raise ValueError('queries must be finite numbers: frame, x, y')
    frames = queries[:, 0]
    if len(video) == 0 or frames.min() < 0 or frames.max() > len(video) - 1:
        raise ValueError(
            f'queries at frames {frames.min():g} to {frames.max():g} of a video'
            f' of {len(video)} frames (0 to {len(video) - 1})'
        )


def where_points(points: Tensor, yes: Tensor, no: Tensor | float) -> Tensor:
    """Choose per point (B, N) between values (B, N, ...)."""
    return torch.where(points.reshape(*points.shape, *[1] * (yes.ndim - 2)), yes, no)


def prolong(values: Tensor, frames: int) -> Tensor:
    """Repeat the last of (B, N, F, ...) up to a number of frames."""
    return torch.cat([values, values[:, :, -1:].expand(-1, -1, frames - values.shape[2], -1)], 2)
