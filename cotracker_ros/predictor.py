"""Offline use with the call signatures of the published package.

A script written for it runs with its import line changed:

    from cotracker_ros.predictor import CoTrackerOnlinePredictor, CoTrackerPredictor

Videos are (B, T, 3, H, W) with values 0 to 255, of any size; points are pixels of the video.
`CoTrackerPredictor` takes a checkpoint of the real-time model too, frame by frame and without
support points. Long videos: the networks that slide hold the features of one window, the real-time
model its state, whatever the length; the offline network needs those of all frames at once (8.4 MB
a frame at 384 x 512).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cotracker_ros import geometry
from cotracker_ros.model import build_model, load_checkpoint
from cotracker_ros.model.config import ModelFacts
from cotracker_ros.model.cotracker import VideoTracks, WindowState
from cotracker_ros.model.embeddings import check_keypoints
from cotracker_ros.points import support_grid
from cotracker_ros.streaming.image import resize

ITERATIONS = 6
DENSE_GRID = 80  # points per row of one pass of the dense mode


def fit_video(video: Tensor, facts: ModelFacts) -> Tensor:
    """Resize frames (T, 3, H, W), 0 to 255, to the size that a model is given, in its own way."""
    size = facts.picture_size
    if facts.causal:  # as on a robot
        images = video.round().clamp(0, 255).to('cpu', torch.uint8).permute(0, 2, 3, 1).numpy()
        resized = np.stack([resize(image, size, facts.resize) for image in images])
        return torch.from_numpy(resized).permute(0, 3, 1, 2).to(video)
    aligned = facts.resize == 'aligned'
    return F.interpolate(video, size, mode='bilinear', align_corners=aligned)


class _Predictor(nn.Module):
    """A network, and the way between the video's pixels and its own."""

    support_grid_size = 6

    def __init__(
        self, checkpoint: str | Path | None, offline: bool, v2: bool, window_len: int
    ) -> None:
        super().__init__()
        name = 'cotracker2' if v2 else f'cotracker3_{"offline" if offline else "online"}'
        if checkpoint is None:
            model = build_model(name) if v2 else build_model(name, window=window_len)
            self.model = model.eval()
            return
        self.model = load_checkpoint(checkpoint)
        if self.model.facts.causal:
            return  # a model of frame by frame, of which these arguments say nothing
        found = self.model.config
        if found.name not in (name, 'cotracker1'):
            raise ValueError(
                f'{checkpoint} holds {found.name}; offline={offline}, v2={v2} is {name}'
            )
        if found.name == name and not v2 and found.window != window_len:
            raise ValueError(f'{checkpoint} has window_len={found.window}, not {window_len}')

    @property
    def interp_shape(self) -> tuple[int, int]:
        """Extent (H, W) that frames are resized to."""
        return self.model.image_size

    def _rescale(self, xy: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
        """Move points from frames of one size to another, as this version has it."""
        return geometry.POINTS[self.model.facts.resize](xy, source, target)

    def _frames(self, video: Tensor) -> Tensor:
        """Resize a video (B, T, 3, H, W) to the model's size."""
        frames = fit_video(video.flatten(0, 1).to(self._weight), self.model.facts)
        return frames.unflatten(0, video.shape[:2])

    @property
    def _weight(self) -> Tensor:
        """A weight of the network, for its precision and device."""
        return next(self.model.parameters())

    def _run(
        self, frames: Tensor, queries: Tensor, keypoints: Tensor | None = None
    ) -> VideoTracks:
        """Track queries (B, N, 3) in model pixels through frames (B, T, 3, H, W); the first of
        them are keypoints (K,) of a body.
        """
        numbers = _padded(keypoints, queries)
        if not self.model.facts.causal:
            return self.model(frames, queries, ITERATIONS, numbers)
        row = None if numbers is None else numbers[0]
        pairs = zip(frames, queries, strict=True)
        clips = [vars(self.model.track(*pair, keypoints=row)) for pair in pairs]
        return VideoTracks(**{name: torch.stack([c[name] for c in clips]) for name in clips[0]})

    def _queries(self, video: Tensor, xy: Tensor, frame: Tensor | int) -> Tensor:
        """Make queries (B, N, 3) of points (N, 2) or (B, N, 2) in model pixels."""
        xy = xy.to(self._weight).expand(len(video), -1, -1)
        frames = torch.as_tensor(frame).to(xy).expand(xy.shape[:2])
        return torch.cat([frames[..., None], xy], dim=-1)

    def _grid(self, video: Tensor, size: int, frame: int = 0) -> Tensor:
        """Make queries on a grid over the frame."""
        return self._queries(video, torch.from_numpy(support_grid(size, self.interp_shape)), frame)

    def _keypoints(self, keypoints: Tensor | None, queries: Tensor | None) -> Tensor | None:
        """Return a user's numbers of keypoints (N,), checked; ValueError for what is none."""
        if keypoints is None:
            return None
        if queries is None:
            raise ValueError('keypoints are of queries; give both or neither')
        keypoints = torch.as_tensor(keypoints)
        check_keypoints(keypoints, queries.shape[1], getattr(self.model, 'keypoints', None))
        return keypoints

    def _user_queries(self, video: Tensor, queries: Tensor) -> Tensor:
        """Bring a user's queries (B, N, 3) to model pixels."""
        xy = queries[..., 1:].to(self._weight)
        xy = self._rescale(xy, video.shape[-2:], self.interp_shape)
        return self._queries(video, xy, queries[..., 0])


class CoTrackerPredictor(_Predictor):
    """Tracks points through a whole video.

    `checkpoint` is a published or own file, or None for random weights; `offline`, `v2` and
    `window_len` say what it should hold. ValueError where it does not.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = './checkpoints/scaled_offline.pth',
        offline: bool = True,
        v2: bool = False,
        window_len: int = 60,
    ) -> None:
        super().__init__(checkpoint, offline, v2, window_len)

    @torch.no_grad()
    def forward(
        self,
        video: Tensor,
        queries: Tensor | None = None,
        segm_mask: Tensor | None = None,
        grid_size: int = 0,
        grid_query_frame: int = 0,
        backward_tracking: bool = False,
        keypoints: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Track points through videos (B, T, 3, H, W) with values 0 to 255: `queries` (B, N, 3) of
        frame, x px, y px; or a grid of points; or, given neither, all.

        A grid has `grid_size`^2 points at frame `grid_query_frame`, only those inside `segm_mask`
        (1, 1, H, W) where given. Points are tracked forward from their frame, with
        `backward_tracking` also back from it. Gives tracks (B, T, N, 2) in pixels and visibility
        (B, T, N) bool.

        `keypoints` (N,), whole numbers, say which of a body's keypoints the queries are, -1: none,
        to a network with an embedding of keypoints. Left out, queries are plain points, also 17 of
        one frame. Raises ValueError, naming what was given, for other shapes, for queries that are
        not finite or of frames that the video has not, and for keypoints that the network does not
        know.
        """
        _check_video(video)
        _check_grid(grid_size, grid_query_frame, video.shape[1])
        frames = self._frames(video)
        if queries is None and grid_size == 0 and keypoints is None:
            return self._dense(video, frames, grid_query_frame, backward_tracking)
        if queries is not None:
            _check_queries(queries, len(video), video.shape[1])
            points = self._user_queries(video, queries)
            keypoints = self._keypoints(keypoints, queries)
        else:
            self._keypoints(keypoints, queries)
            points = self._grid(video, grid_size, grid_query_frame)
            if segm_mask is not None:
                points = points[:, self._covered(segm_mask, video, points[0, :, 1:])]
        support = queries is not None or segm_mask is not None
        return self._track(video, frames, points, support, backward_tracking, keypoints)

    def _covered(self, mask: Tensor, video: Tensor, xy: Tensor) -> Tensor:
        """Tell which points (N, 2) in model pixels a mask of the video covers."""
        if len(video) != 1 or tuple(mask.shape) != (1, 1, *video.shape[-2:]):
            raise ValueError(
                f'segm_mask has shape {tuple(mask.shape)} for a video of {tuple(video.shape)};'
                f' it needs one clip, and (1, 1, {video.shape[-2]}, {video.shape[-1]})'
            )
        x, y = xy.round().long().unbind(-1)
        covered = F.interpolate(mask.to(xy), self.interp_shape)[0, 0, y, x] > 0
        if not covered.any():
            raise ValueError('segm_mask covers no point of the grid; take a larger grid_size')
        return covered

    def _dense(
        self, video: Tensor, frames: Tensor, frame: int, backward: bool
    ) -> tuple[Tensor, Tensor]:
        """Track a pixel grid of the video, shifted until it has been on every pixel."""
        height, width = video.shape[-2:]
        step = max(1, width // DENSE_GRID)
        y = torch.arange(height // step) * step
        x = torch.arange(width // step) * step
        passes = []
        for offset in torch.cartesian_prod(torch.arange(step), torch.arange(step)):
            xy = torch.cartesian_prod(y + offset[0], x + offset[1]).flip(1).to(frames)
            xy = self._rescale(xy, (height, width), self.interp_shape)
            points = self._queries(video, xy, frame)
            passes.append(self._track(video, frames, points, False, backward))
        tracks, visible = zip(*passes, strict=True)
        return torch.cat(tracks, dim=2), torch.cat(visible, dim=2)

    def _track(
        self,
        video: Tensor,
        frames: Tensor,
        points: Tensor,
        support: bool,
        backward: bool,
        keypoints: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Track points (B, N, 3) in model pixels; `support` adds a grid of helping points."""
        count, length = points.shape[1], frames.shape[1]
        queries = points
        if support and self.model.facts.support_grid:
            queries = torch.cat([points, self._grid(video, self.support_grid_size)], dim=1)
        tracks = self._run(frames, queries, keypoints)
        seen = self.model.facts.visible_whole
        xy, visible = tracks.xy, seen(tracks.visibility, tracks.confidence)
        start = points[:, None, :, 0].long()  # (B, 1, N)
        time = torch.arange(length, device=start.device)[:, None]
        if backward:
            mirrored = torch.cat([length - 1 - queries[..., :1], queries[..., 1:]], dim=-1)
            back = self._run(frames.flip(1), mirrored, keypoints)
            before = time < queries[:, None, :, 0]
            xy = torch.where(before[..., None], back.xy.flip(1), xy)
            visible = torch.where(before, seen(back.visibility, back.confidence).flip(1), visible)
        xy, visible = xy[:, :, :count], visible[:, :, :count]
        # In its query frame a point is where it was queried, and visible.
        xy = torch.where((time == start)[..., None], points[:, None, :, 1:], xy)
        visible = visible | (time == start)
        return self._rescale(xy, self.interp_shape, video.shape[-2:]), visible


class CoTrackerOnlinePredictor(_Predictor):
    """Tracks points through a video that comes in chunks, each overlapping the last by half.

    A first call registers the points. Later calls take 2 * `step` frames, the last perhaps
    fewer, and overlap with the call before by `step` frames.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = './checkpoints/scaled_online.pth',
        offline: bool = False,
        v2: bool = False,
        window_len: int = 16,
    ) -> None:
        super().__init__(checkpoint, offline, v2, window_len)
        if self.model.facts.causal:
            raise ValueError(
                f'{checkpoint} holds the real-time model, which takes frames and not chunks: '
                'cotracker_ros.streaming.StreamingTracker'
            )
        if not self.model.facts.sliding:
            raise ValueError('an offline network cannot track chunk by chunk; pass offline=False')
        self.state: WindowState | None = None
        self.count = 0  # points queried; support points come after them
        self.so_far: VideoTracks | None = None

    @property
    def step(self) -> int:
        """Frames that are new in each call."""
        return self.model.config.window // 2

    @torch.no_grad()
    def forward(
        self,
        video_chunk: Tensor,
        is_first_step: bool = False,
        queries: Tensor | None = None,
        grid_size: int = 5,
        grid_query_frame: int = 0,
        add_support_grid: bool = False,
        keypoints: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Track the next chunk (B, F, 3, H, W), values 0 to 255: of all frames so far, tracks
        (B, T, N, 2) px and visibility (B, T, N) bool.

        With `is_first_step` nothing is tracked: a new video begins, with points `queries`
        (B, N, 3) of frame, x px, y px, or a grid, and (None, None) is returned; `keypoints` (N,)
        as for `CoTrackerPredictor`. The chunk then only tells the size. Raises ValueError for
        other shapes, without a first step, for a chunk of a wrong length, and after a short one.
        """
        _check_video(video_chunk)
        if is_first_step:
            points = self._begun(video_chunk, queries, grid_size, grid_query_frame)
            numbers = self._keypoints(keypoints, queries)
            self.count = points.shape[1]
            if add_support_grid:
                support = self._grid(video_chunk, self.support_grid_size)
                points = torch.cat([points, support], dim=1)
            self.state = WindowState(points, keypoint=_padded(numbers, points))
            self.so_far = None
            return None, None
        if self.state is None:
            raise ValueError('no points yet: the first call must have is_first_step=True')
        overlap = self.step if self.so_far else 0
        frames = video_chunk.shape[1]
        if not overlap < frames <= 2 * self.step:
            raise ValueError(
                f'a chunk of {frames} frames: it needs {overlap + 1} to {2 * self.step},'
                f' the first {overlap} of them known from the call before'
            )
        start = self.state.start
        if self.so_far and self.so_far.xy.shape[1] < start + self.step:
            raise ValueError('the last chunk was a short one, which ends a video; begin a new one')
        frames = self._frames(video_chunk[:, overlap:])
        estimates, self.state = self.model.advance(self.state, frames, ITERATIONS)
        new = self.model.read_out(estimates[-1])
        new = VideoTracks(*(value[:, :, : self.count] for value in vars(new).values()))
        if self.so_far:
            pairs = zip(vars(self.so_far).values(), vars(new).values(), strict=True)
            new = VideoTracks(*(torch.cat([old[:, :start], value], dim=1) for old, value in pairs))
        self.so_far = new
        xy = self._rescale(new.xy, self.interp_shape, video_chunk.shape[-2:])
        return xy, self.model.facts.visible(new.visibility, new.confidence)

    def _begun(self, video: Tensor, queries: Tensor | None, size: int, frame: int) -> Tensor:
        """Make the points (B, N, 3) in model pixels that a video begins with."""
        if queries is not None:
            _check_queries(queries, len(video))
            return self._user_queries(video, queries)
        _check_grid(size, frame)
        if size == 0:
            raise ValueError('no points: give queries, or a grid_size of at least 1')
        return self._grid(video, size, frame)


def _padded(keypoints: Tensor | None, queries: Tensor) -> Tensor | None:
    """Bring numbers (K,) of keypoints to (B, N) of queries (B, N, 3), which they are the first of,
    -1: none.
    """
    if keypoints is None:
        return None
    row = F.pad(keypoints, (0, queries.shape[1] - len(keypoints)), value=-1)
    return row.to(queries.device).expand(len(queries), -1)


def _check_video(video: Tensor) -> None:
    if video.ndim != 5 or video.shape[2] != 3 or 0 in video.shape:
        raise ValueError(
            f'video has shape {tuple(video.shape)}, expected (clips, frames, 3, height, width)'
        )


def _check_grid(size: int, frame: int, frames: int | None = None) -> None:
    if size < 0:
        raise ValueError(f'grid_size is {size}, it must be 0 (none) or more')
    if frame < 0 or (frames is not None and frame >= frames):
        last = '' if frames is None else f' to {frames - 1}'
        raise ValueError(f'grid_query_frame is {frame}, it must be 0{last or " or more"}')


def _check_queries(queries: Tensor, clips: int, frames: int | None = None) -> None:
    if queries.ndim != 3 or queries.shape[2] != 3 or len(queries) != clips or 0 in queries.shape:
        raise ValueError(
            f'queries have shape {tuple(queries.shape)}, expected ({clips}, points > 0, 3)'
        )
    if not queries.isfinite().all():
        raise ValueError('queries must be finite numbers: frame, x, y')
    first, last = queries[..., 0].min(), queries[..., 0].max()
    if first < 0 or (frames is not None and last > frames - 1):
        raise ValueError(f'queries at frames {first:g} to {last:g} of a video of {frames} frames')
