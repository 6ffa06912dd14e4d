"""Hidden points go with their companions: against least squares, and on rendered truth."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from cotracker_ros.model.grouping import (  # noqa: E402
    UNKNOWN,
    GroupingConfig,
    drift_apart,
    shared_motion,
)
from cotracker_ros.model.realtime import Points, build_realtime  # noqa: E402

GROUPING = GroupingConfig()


def test_shared_motion_is_the_weighted_affine_fit():
    rng = np.random.default_rng(4)
    xy, moved = rng.uniform(0, 400, (30, 2)), rng.normal(0, 3, (30, 2))
    seen, apart = rng.random(30) < 0.7, rng.uniform(0, 2, (30, 30))
    given = [torch.tensor(x[None], dtype=torch.float32) for x in (xy, moved, apart)]
    motion, known = shared_motion(given[0], given[1], torch.tensor(seen[None]), given[2], GROUPING)
    reach, alike, slope = GROUPING.reach, GROUPING.alike, GROUPING.slope
    for i in range(30):
        away = xy - xy[i]
        weight = np.exp(-(away**2).sum(1) / (2 * reach**2) - apart[i] / (2 * alike**2)) * seen
        weight[i] = 0
        assert bool(known[0, i]) == (weight.sum() > GROUPING.enough)
        weight /= weight.sum()
        # Least squares with slopes that cost as much as companions `slope` px to each side.
        middle = weight @ away
        rows = np.concatenate(
            [np.c_[np.ones(30), away - middle] * np.sqrt(weight)[:, None], [[0, slope, 0]],
             [[0, 0, slope]]]
        )  # fmt: skip
        values = np.concatenate([moved * np.sqrt(weight)[:, None], np.zeros((2, 2))])
        fit = np.linalg.lstsq(rows, values, rcond=None)[0]
        assert np.allclose(motion[0, i], fit[0] - middle @ fit[1:], atol=1e-3)


def two_surfaces(frames: int):
    """Places (T, 40, 2) of points of a surface that turns and of one that slides, mixed up."""
    rng = np.random.default_rng(2)
    start = rng.uniform(100, 220, (40, 2))
    tracks = np.empty((frames, 40, 2))
    for t in range(frames):
        c, s = np.cos(0.02 * t), np.sin(0.02 * t)
        tracks[t] = (start - 160) @ np.array([[c, s], [-s, c]]) + 160 + [0.5 * t, 0]
        tracks[t, 20:] = start[20:] + np.array([-2.0, 1.0]) * t
    return torch.tensor(tracks, dtype=torch.float32)


def test_a_hidden_point_goes_with_its_own_surface():
    tracks = two_surfaces(50)
    hidden = torch.zeros(1, 40, dtype=torch.bool)
    apart, xy = torch.full((1, 40, 40), UNKNOWN), tracks[:1].clone()
    for t in range(1, 50):
        hidden[0, [0, 25]] = t >= 20
        moved = tracks[None, t] - xy
        motion, known = shared_motion(xy, moved, ~hidden, apart, GROUPING)
        assert known.all()
        apart = drift_apart(apart, xy, moved, ~hidden, GROUPING)
        xy = torch.where(hidden[..., None], xy + motion, tracks[t])
    assert (xy - tracks[-1]).norm(dim=-1).max() < 6
    assert (tracks[19] - tracks[-1])[[0, 25]].norm(dim=-1).min() > 30  # they have gone far


def test_what_was_never_seen_together_stays_unknown():
    apart = torch.full((1, 3, 3), UNKNOWN)
    seen = torch.tensor([[True, True, False]])
    moved = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [9.0, 9.0]]])
    after = drift_apart(apart, torch.zeros(1, 3, 2), moved, seen, GROUPING)
    assert after[0, 0, 1] == UNKNOWN + GROUPING.pace * (9 - UNKNOWN) == after[0, 1, 0]
    assert (after[0, 2] == UNKNOWN).all() and (after[0, :, 2] == UNKNOWN).all()


def test_a_point_that_starts_anew_forgets_its_companions_and_they_forget_it():
    model = build_realtime((32, 64), features=8, width=32)
    points = Points.empty(model, 1, 3)._replace(apart=torch.zeros(1, 3, 3))
    query = torch.tensor([[False, True, False]])
    apart = points.started(query, points.xy, points.template).apart[0]
    unknown = query | query.T
    assert torch.equal(apart, torch.where(unknown, UNKNOWN, 0.0))


def test_a_point_alone_is_told_nothing():
    xy = torch.tensor([[[0.0, 0.0], [900.0, 0.0]]])
    apart = torch.zeros(1, 2, 2)
    motion, known = shared_motion(xy, xy, torch.tensor([[True, True]]), apart, GROUPING)
    assert not known.any() and motion.isfinite().all()


def test_many_fast_points_fit_into_half_precision():
    # Exports in mixed precision compute products in it.
    torch.manual_seed(0)
    xy = 100 + 10 * torch.rand(1, 1024, 2)
    moved, seen = 150 + torch.rand(1, 1024, 2), torch.ones(1, 1024, dtype=torch.bool)
    apart = torch.zeros(1, 1024, 1024)
    want, _ = shared_motion(xy, moved, seen, apart, GROUPING)
    got, known = shared_motion(xy.half(), moved.half(), seen, apart.half(), GROUPING)
    assert torch.allclose(got.float(), want, atol=1) and known.all()
