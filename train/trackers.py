"""Every tracker as one function: a video and queries in, tracks out.

The networks, streaming or with the whole video at once, and classical trackers: Lucas-Kanade,
chained DIS flow, standing still. Each takes a video (T, H, W, 3) uint8 RGB and queries (N, 3) of
t, x, y px, and returns positions (T, N, 2) px and visibility (T, N) bool. Before its query a
streamed or classical track stands at the query, invisible. Networks also take `keypoints` (N,),
the numbers of a body's keypoints that the queries are, -1 for others; those without an embedding
of keypoints do nothing with them.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from cotracker_ros import geometry
from cotracker_ros.points import support_grid

Tracker = Callable[..., tuple[np.ndarray, np.ndarray]]

ROUND_TRIP = 1.0  # px: a point that comes back further off was hidden or lost


def lucas_kanade(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Track from frame to frame by Lucas-Kanade, 21 x 21; visible while the way back agrees."""
    options = {'winSize': (21, 21), 'maxLevel': 3}

    def step(old, new, xy):
        xy = np.ascontiguousarray(xy, np.float32)
        there, found, _ = cv2.calcOpticalFlowPyrLK(old, new, xy, None, **options)
        back, found_back, _ = cv2.calcOpticalFlowPyrLK(new, old, there, None, **options)
        agrees = np.linalg.norm(back - xy, axis=1) < ROUND_TRIP
        return there, agrees & (found[:, 0] == 1) & (found_back[:, 0] == 1)

    return _chain(video, queries, step)


def dis_flow(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow DIS optical flow (medium) from frame to frame; visible while the flow back agrees."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def step(old, new, xy):
        there = xy + _sample(dis.calc(old, new, None), xy)
        back = there + _sample(dis.calc(new, old, None), there)
        return there, np.linalg.norm(back - xy, axis=1) < ROUND_TRIP

    return _chain(video, queries, step)


def standing_still(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave every point where it was queried, visible."""
    return _chain(video, queries, lambda old, new, xy: (xy, np.ones(len(xy), bool)))


BASELINES: dict[str, Tracker] = {
    'lucas-kanade': lucas_kanade,
    'dis-flow': dis_flow,
    'standing-still': standing_still,
}


def _chain(video, queries, step) -> tuple[np.ndarray, np.ndarray]:
    """Run step(old, new, xy (K, 2)) -> xy, visible over neighbouring grey frames.

    A point that leaves the picture or loses its way stays in the chain, invisible, because it may
    come back; where the flow cannot say where it went, it stands.
    """
    query_t, start = queries[:, 0].astype(int), queries[:, 1:].astype(np.float32)
    frames, count = len(video), len(queries)
    xy = np.repeat(start[None], frames, 0)
    visible = np.zeros((frames, count), bool)
    visible[query_t, np.arange(count)] = True
    old = cv2.cvtColor(np.ascontiguousarray(video[0]), cv2.COLOR_RGB2GRAY)
    for t in range(1, frames):
        new = cv2.cvtColor(np.ascontiguousarray(video[t]), cv2.COLOR_RGB2GRAY)
        going = np.flatnonzero(query_t < t)
        if len(going):
            there, found = step(old, new, xy[t - 1, going])
            finite = np.isfinite(there).all(1)
            xy[t, going] = np.where(finite[:, None], there, xy[t - 1, going])
            visible[t, going] = found & finite & geometry.inside(there, video.shape[1:3])
        old = new
    return xy, visible


def _sample(flow: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return the flow (H, W, 2) at positions (K, 2), bilinear, clamped to the picture."""
    at = np.ascontiguousarray(xy[:, None], np.float32)
    return cv2.remap(flow, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]


def open_tracker(
    name: str, threshold: float | None = None, device: str = 'cpu', threads: int = 0
) -> Tracker:
    """Return the tracker of this name: a key of BASELINES, a shipped model or an .onnx file
    (streaming), or a checkpoint (.safetensors, .pth, .pt: the whole video at once).

    threshold: probability above which a network's point counts as visible; None: by
    the model's own rule. Raises EngineError, ValueError or OSError for a name or a file of no
    tracker.
    """
    if name in BASELINES:
        return BASELINES[name]
    if Path(name).suffix in CHECKPOINTS:
        return whole_video(name, device=device, threshold=threshold)
    return streaming(name, threads=threads, threshold=threshold)


CHECKPOINTS = ('.safetensors', '.pth', '.pt')


def streaming(
    model: str | Path, engine: str = 'auto', threads: int = 0, threshold: float | None = None
) -> Tracker:
    """Return a tracker that feeds a model file to the streaming runtime frame by frame.

    The tracker's positions before a query are the query, invisible. threshold: see open_tracker.
    Raises EngineError for a file that no runtime takes.
    """
    from cotracker_ros import engines
    from cotracker_ros.streaming import StreamingTracker

    runtime: StreamingTracker | None = None
    if not isinstance(model, engines.Engine):
        model = engines.find_model(model, engine)  # a wrong name is refused before any work

    def track(
        video: np.ndarray, queries: np.ndarray, keypoints: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        nonlocal runtime
        if runtime is None or runtime.max_points < len(queries):
            runtime = StreamingTracker(model, len(queries), engine, threads)
        runtime.reset()
        xy, visible = standing_still(video, queries)
        visible[:] = False
        height, width = video.shape[1:3]
        column: dict[int, int] = {}  # of each id
        for t, frame in enumerate(video):
            new = np.flatnonzero(queries[:, 0].astype(int) == t)
            placed = np.clip(queries[new, 1:], -0.5, (width - 0.5, height - 0.5))
            numbers = None if keypoints is None else keypoints[new]
            ids = runtime.add_points(placed, stamp=float(t), keypoints=numbers)
            column.update(zip(ids.tolist(), new.tolist(), strict=True))
            tracks = runtime.track(frame, float(t))
            at = [column[i] for i in tracks.ids.tolist()]
            xy[t, at] = tracks.xy
            visible[t, at] = tracks.visible if threshold is None else tracks.visibility > threshold
        return xy, visible

    return track


LOCAL_EXTENT = 50  # px of the model's image that a local grid spans


def whole_video(
    checkpoint,
    iterations: int | None = None,
    grid: int | None = None,
    local_grid: int = 0,
    first_estimate: bool = False,
    device: str = 'cpu',
    alone: bool = False,
    threshold: float | None = None,
) -> Tracker:
    """Return a tracker that gives a checkpoint the whole clip at once, as the papers do.

    checkpoint: its path, or the loaded model. iterations: None for the model's own number. grid:
    side of a square of support points over the first frame; None for the papers' (5; CoTracker 1:
    6), or none for the real-time model, which sees no future frames here either. alone: track one
    target at a time. local_grid: side of another grid, in 50 px around each target, which is then
    tracked alone; CoTracker3 was measured with 8, CoTracker 1 with 6.
    first_estimate: of a network of sliding windows use each frame's first estimate, which is at
    most half a window late, instead of its last. threshold: see open_tracker; the model's own
    rule is that of whole videos, as in CoTrackerPredictor, or, with first_estimate, that of its
    online use. Raises ValueError for a checkpoint that cannot be loaded.
    """
    import torch

    from cotracker_ros.model import load_checkpoint
    from cotracker_ros.predictor import fit_video

    loaded = isinstance(checkpoint, torch.nn.Module)
    model = (checkpoint if loaded else load_checkpoint(checkpoint)).to(device)
    facts = model.facts
    size, move = facts.image_size, geometry.POINTS[facts.resize]
    if first_estimate and not facts.sliding:
        raise ValueError(f'{checkpoint}: only a network of sliding windows has a first estimate')
    is_visible = facts.visible if first_estimate else facts.visible_whole
    side = facts.support_grid if grid is None else grid
    steps = {} if iterations is None else {'iterations': iterations}

    def run(
        video: torch.Tensor, queries: np.ndarray, keypoints: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        queries_here, told = torch.from_numpy(queries.astype(np.float32)).to(device), {}
        if keypoints is not None and getattr(model, 'keypoints', None) is not None:
            padded = np.pad(keypoints, (0, len(queries) - len(keypoints)), constant_values=-1)
            told['keypoints'] = torch.from_numpy(padded.astype(np.int64)).to(device)
        with torch.no_grad():
            if first_estimate:
                tracks = _first_estimates(model, video, queries_here, iterations or 6, **told)
            else:
                tracks = model.track(video, queries_here, **steps, **told)
        if threshold is None:
            seen = is_visible(tracks.visibility, tracks.confidence)
        else:
            seen = tracks.visibility > threshold
        return tracks.xy.cpu().numpy(), seen.cpu().numpy()

    def track(
        video: np.ndarray, queries: np.ndarray, keypoints: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        images = torch.from_numpy(video).to(device).permute(0, 3, 1, 2).float()
        images = fit_video(images, facts)
        places = move(queries[:, 1:], video.shape[1:3], size)
        queries_in_model = np.concatenate([queries[:, :1], places], 1)
        extra = in_first_frame(support_grid(side, size))
        if local_grid or alone:
            parts = []
            for n, query in enumerate(queries_in_model):
                local = support_grid(local_grid, (LOCAL_EXTENT, LOCAL_EXTENT), query[1:])
                own = queries_in_model[n : n + 1]
                number = None if keypoints is None else keypoints[n : n + 1]
                beside = np.concatenate([own, extra, in_first_frame(local)])
                parts.append(run(images, beside, number))
            xy, visible = (np.concatenate([part[i][:, :1] for part in parts], 1) for i in (0, 1))
        else:
            xy, visible = run(images, np.concatenate([queries_in_model, extra]), keypoints)
        count = len(queries)
        return move(xy[:, :count], size, video.shape[1:3]), visible[:, :count]

    return track


def _first_estimates(model, video, queries, iterations: int, keypoints=None):
    """Track video (T, 3, H, W) window by window; keep of each window only its new frames."""
    import torch

    from cotracker_ros.model.cotracker import (
        VideoTracks,
        WindowEstimate,
        WindowState,
        new_frames,
    )

    window, half = model.config.window, model.config.window // 2
    numbers = None if keypoints is None else keypoints[None]
    state, kept = WindowState(queries[None], keypoint=numbers), []
    for piece in new_frames(video[None], window, sliding=True):
        estimates, state = model.advance(state, piece, iterations)
        kept.append(estimates[-1].over(slice(half if kept else 0, None)))
    joined = (torch.cat([getattr(e, name) for e in kept], 2) for name in ('xy', 'logits'))
    tracks = model.read_out(WindowEstimate(*joined))
    return VideoTracks(tracks.xy[0], tracks.visibility[0], tracks.confidence[0])


def in_first_frame(xy: np.ndarray) -> np.ndarray:
    """Return points (N, 2) px as queries (N, 3) of frame 0."""
    return np.insert(xy, 0, 0.0, axis=1)


def takes_keypoints(tracker: Tracker) -> bool:
    """Return whether a tracker can be told which keypoints of bodies the queries are."""
    return 'keypoints' in inspect.signature(tracker).parameters


def both_ways(tracker: Tracker) -> Tracker:
    """Return a tracker that also goes back in time from each query, as strided queries demand."""

    def track(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mirrored = queries.copy()
        mirrored[:, 0] = len(video) - 1 - queries[:, 0]
        xy, visible = tracker(video, queries)
        old_xy, old_visible = (part[::-1] for part in tracker(video[::-1], mirrored))
        before = np.arange(len(video))[:, None] < queries[:, 0]
        return np.where(before[..., None], old_xy, xy), np.where(before, old_visible, visible)

    return track
