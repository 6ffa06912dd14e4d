"""Measures of point tracking, one function for each benchmark; numpy only.

Shapes: xy, truth (T, N, 2) px with (0, 0) the centre of the top-left pixel; visible, true_visible
(T, N) bool; query_t (N,) frame of each query. Every measure is in percent unless its docstring
says otherwise, and NaN where a clip holds nothing to measure (`mean_scores` skips those).
"""

from collections.abc import Iterable, Mapping

import numpy as np

from cotracker_ros.skeleton import KEYPOINTS, OKS_SIGMA

THRESHOLDS = (1, 2, 4, 8, 16)  # px of a 256 x 256 picture: TAP-Vid
RASTER = 256
PCK = (0.05, 0.1, 0.2)  # parts of a person's box


def tapvid(
    query_t: np.ndarray,
    truth: np.ndarray,
    true_visible: np.ndarray,
    xy: np.ndarray,
    visible: np.ndarray,
    size: tuple[int, int],
    strided: bool = False,
) -> dict[str, float]:
    """Return the TAP-Vid measures of one clip (Doersch et al. 2022, arXiv 2211.03726, section 4).

    size: (H, W) of the pixels that xy is given in; errors are measured at 256 x 256.
    Query-first looks at the frames after each query, strided at all but the query's own.
    position_accuracy (the paper's < delta^x_avg): share of truly visible points nearer than x.
    average_jaccard: true positives, visible in truth and prediction and near, over all truly
    visible points and false positives. occlusion_accuracy: share of right visibilities.
    """
    _check(query_t, truth, true_visible, xy, visible)
    judged = _judged(query_t, len(truth), strided)
    error = raster_error(xy, truth, size)
    scores = {
        'occlusion_accuracy': _share((visible == true_visible) & judged, judged),
    }
    real = true_visible & judged
    claimed = visible & judged
    for x in THRESHOLDS:
        near = error < x
        hits = (near & real & claimed).sum()
        false = (claimed & ~(real & near)).sum()
        total = real.sum() + false
        scores[f'position_accuracy_{x}'] = _share(near & real, real)
        scores[f'jaccard_{x}'] = 100 * hits / total if total else np.nan
    for name in ('position_accuracy', 'jaccard'):
        mean = float(np.mean([scores[f'{name}_{x}'] for x in THRESHOLDS]))
        scores['average_jaccard' if name == 'jaccard' else name] = mean
    return {name: float(score) for name, score in scores.items()}


def badja(
    xy: np.ndarray, truth: np.ndarray, true_visible: np.ndarray, area: np.ndarray
) -> dict[str, float]:
    """Return the share of joints within 0.2 sqrt(mask area) and within 3 px of one clip.

    area: (T,) px, the object's mask in every annotated frame and NaN in others. Frame 0 holds the
    queries and is not counted; in later annotated frames every visible joint is. Biggs et al.
    2018 (arXiv 1811.05804), with the pixel measure at the resolution given, 320 x 512 by custom.
    """
    if not len(truth) == len(xy) == len(true_visible) == len(area):
        raise ValueError(
            f'tracks of {len(xy)} frames, truth of {len(truth)}, visibility of '
            f'{len(true_visible)} and areas of {len(area)}'
        )
    counted = true_visible & np.isfinite(area)[:, None]
    counted[0] = False
    error = _distance(xy, truth)
    reach = 0.2 * np.sqrt(np.where(np.isfinite(area), area, 0))[:, None]
    return {
        'badja_segment': _share((error < reach) & counted, counted),
        'badja_3px': _share((error < 3) & counted, counted),
    }


def on_object(
    query_t: np.ndarray, xy: np.ndarray, visible: np.ndarray, side: np.ndarray
) -> dict[str, float]:
    """Return whether points stay on what they were taken from. side (T, H, W): 1 on the object,
    -1 beside it, 0 at its edge.

    on_object: of the frames in which a point of the object is called visible, the share in which
    it is not beside the object. held: the same of all frames after its query. on_background: of
    the frames in which another point is called visible, the share in which it is not on the
    object. Our definition: it needs no true tracks; it tells points that are lost to something
    else, not those that slide on the object.
    """
    points = np.arange(len(query_t))
    column, row = np.moveaxis(np.round(xy).astype(int), -1, 0)
    row, column = row.clip(0, side.shape[1] - 1), column.clip(0, side.shape[2] - 1)
    here = side[np.arange(len(side))[:, None], row, column]
    own = here[query_t, points] > 0
    judged = _judged(query_t, len(side), strided=False)
    kept, other = judged & own, judged & ~own & visible
    called_visible = kept & visible
    right = called_visible & (here >= 0)
    return {
        'on_object': _share(right, called_visible),
        'held': _share(right, kept),
        'on_background': _share(other & (here <= 0), other),
    }


def occluded_accuracy(
    query_t: np.ndarray,
    truth: np.ndarray,
    hidden: np.ndarray,
    xy: np.ndarray,
    size: tuple[int, int],
) -> float:
    """Return position accuracy, as TAP-Vid's, where the point is hidden and its place known.

    hidden (T, N) bool. With the visible share and survival this is Dynamic Replica's table
    (arXiv 2307.07635).
    """
    _check(query_t, truth, hidden, xy, hidden)
    judged = _judged(query_t, len(truth), strided=False) & hidden
    error = raster_error(xy, truth, size)
    return float(np.mean([_share((error < x) & judged, judged) for x in THRESHOLDS]))


def pose(
    query_t: np.ndarray,
    truth: np.ndarray,
    true_visible: np.ndarray,
    xy: np.ndarray,
    head: np.ndarray,
    box: np.ndarray,
    area: np.ndarray,
    keypoint: np.ndarray,
) -> dict[str, float]:
    """Return how well keypoints of people are followed, in annotated frames after the query.

    head, box (T, N) px: size of the head of the keypoint's person, 0.6 of the diagonal of its box
    (MPII), and the longer side of the person's box; area (T, N) px^2 of the person; 0 where it is
    unknown, and not counted. keypoint (N,): COCO's number.

    pck_0.05, pck_0.1, pck_0.2: share within that part of the box. pckh: share within half a head
    (PCKh@0.5). oks: mean of exp(-d^2 / (2 area (2 sigma)^2)), COCO's object keypoint similarity,
    here the mean over keypoints that are visible. Our definitions, from one annotated frame to
    the next: temporal_consistency: share of steps in which track and keypoint move alike, within
    a fifth of a head; jitter: mean second difference of the error, in percent of the box;
    smoothness: share of three frames in a row in which the track bends at most 2 % of the box
    more than the truth. Each also for every keypoint, as MEASURE/KEYPOINT. Left out where no
    head, or no box, is known.
    """
    _check(query_t, truth, true_visible, xy, true_visible)
    judged = _judged(query_t, len(truth), strided=False) & true_visible
    error = _distance(xy, truth)
    frames = np.flatnonzero(true_visible.any(1))
    spread = (2 * OKS_SIGMA[keypoint]) ** 2
    with np.errstate(over='ignore', divide='ignore', invalid='ignore'):
        similarity = np.exp(-(error**2) / (2 * area * spread))
    # Of annotated frames, the first of two or the first two of three may be the query's.
    seen, now = true_visible[frames], judged[frames]
    pair, three = now[1:] & seen[:-1], now[2:] & seen[1:-1] & seen[:-2]
    drift = _distance(np.diff(xy[frames], axis=0), np.diff(truth[frames], axis=0))
    bend, true_bend = (np.diff(x[frames], n=2, axis=0) for x in (xy, truth))
    wide = box[frames[2:]]
    with np.errstate(divide='ignore', invalid='ignore'):
        shake = _distance(bend, true_bend) / wide
    more = _distance(bend, 0 * bend) - _distance(true_bend, 0 * bend)
    counted = {  # what is right or how much, and where it counts
        **{f'pck_{part}': (error < part * box, judged & (box > 0)) for part in PCK},
        'pckh': (error < 0.5 * head, judged & (head > 0)),
        'oks': (similarity, judged & (area > 0)),
        'temporal_consistency': (drift < 0.2 * head[frames[1:]], pair & (head[frames[1:]] > 0)),
        'smoothness': (more <= 0.02 * wide, three & (wide > 0)),
        'jitter': (shake, three & (wide > 0)),
    }
    has = {'head': (head > 0).any(), 'box': (box > 0).any()}
    scores = {}
    for name, (values, where) in counted.items():
        if not has['head' if name in ('pckh', 'temporal_consistency') else 'box']:
            continue
        scores[name] = _mean(values, where)
        for number in np.unique(keypoint):
            own = keypoint == number
            score = _mean(values[:, own], where[:, own])
            scores[f'{name}/{KEYPOINTS[number]}'] = score
    return scores


def survival(
    query_t: np.ndarray,
    truth: np.ndarray,
    known: np.ndarray,
    xy: np.ndarray,
    size: tuple[int, int],
    limit: float = 50,
) -> float:
    """Return the mean share of frames before a track is first lost.

    A track is lost in the first frame after its query with an error over `limit` px of 256 x 256
    (PointOdyssey, Zheng et al. 2023, arXiv 2307.15055). known (T, N): where the truth is; frames
    without it cannot end a track.
    """
    _check(query_t, truth, known, xy, known)
    after = _judged(query_t, len(truth), strided=False)
    lost = (raster_error(xy, truth, size) > limit) & after & known
    alive = after & (np.cumsum(lost, 0) == 0)
    lengths = after.sum(0)
    some = lengths > 0
    return float(100 * np.mean(alive.sum(0)[some] / lengths[some])) if some.any() else np.nan


def redetection(
    query_t: np.ndarray,
    truth: np.ndarray,
    true_visible: np.ndarray,
    xy: np.ndarray,
    visible: np.ndarray,
    size: tuple[int, int],
    shortest: int = 1,
    longest: int | None = None,
    within: float = 8,
    frames: int = 8,
) -> dict[str, float]:
    """Return how many points are found again after an occlusion.

    An episode is `shortest` to `longest` frames unseen between two seen ones, after the query.
    The point is recovered where the track is within `within` px of 256 x 256 in at least half of
    the frames, of the next `frames`, in which it is seen; it is reported where the track also
    says visible there. `episodes` is their number, not a share.
    """
    _check(query_t, truth, true_visible, xy, visible)
    near = raster_error(xy, truth, size) < within
    recovered, reported = [], []
    for n, start in enumerate(query_t):
        seen = np.flatnonzero(true_visible[:, n] & (np.arange(len(truth)) >= start))
        gaps = np.diff(seen) - 1
        for i in np.flatnonzero((gaps >= shortest) & (gaps <= (longest or len(truth)))):
            back = seen[(seen >= seen[i + 1]) & (seen < seen[i + 1] + frames)]
            recovered.append(np.mean(near[back, n]) >= 0.5)
            reported.append(np.mean(near[back, n] & visible[back, n]) >= 0.5)
    return {
        'episodes': float(len(recovered)),
        'recovered': 100 * float(np.mean(recovered)) if recovered else np.nan,
        'reported': 100 * float(np.mean(reported)) if reported else np.nan,
    }


def raster_error(xy: np.ndarray, truth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the distances (T, N) in px of a 256 x 256 picture, of positions in one of `size`."""
    height, width = size
    return _distance(xy, truth, np.array([RASTER / width, RASTER / height]))


def mean_scores(clips: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over clips of every measure, leaving NaN out; `episodes` is summed."""
    clips = list(clips)
    names = dict.fromkeys(name for clip in clips for name in clip)
    means = {}
    for name in names:
        values = np.array([clip[name] for clip in clips if name in clip], float)
        values = values[np.isfinite(values)]
        combine = np.sum if name.endswith('episodes') else np.mean
        means[name] = float(combine(values)) if len(values) else float('nan')
    return means


def _check(query_t, truth, true_visible, xy, visible) -> None:
    shape = truth.shape[:2]
    fits = xy.shape == truth.shape and visible.shape == true_visible.shape == shape
    if not fits or len(query_t) != shape[1]:
        raise ValueError(
            f'truth {truth.shape} and {true_visible.shape}, tracks {xy.shape} and '
            f'{visible.shape}, {len(query_t)} queries: these do not belong together'
        )


def _judged(query_t: np.ndarray, frames: int, strided: bool) -> np.ndarray:
    t = np.arange(frames)[:, None]
    return t != query_t if strided else t > query_t


def _distance(xy: np.ndarray, truth: np.ndarray, scale: np.ndarray | float = 1) -> np.ndarray:
    # A lost track may be NaN: it is infinitely far, so it counts as wrong, not as unmeasured.
    distance = np.linalg.norm((xy - truth) * scale, axis=-1)
    return np.where(np.isfinite(distance), distance, np.inf)


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    """Return the mean in percent of what counts; NaN where nothing does."""
    return 100 * float(values[where].mean()) if where.any() else float('nan')


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(100 * part.sum() / whole.sum()) if whole.any() else np.nan
