"""Measures of tracking, against hand-computed cases and their defining properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train import metrics

SIZE = (256, 256)


def track(*x):
    """Return one point moving along x, (T, 1, 2) px."""
    return np.array([[[value, 0.0]] for value in x])


def seen(*flags):
    return np.array(flags, bool)[:, None]


def test_tapvid_by_hand():
    # Four frames, query in the first. Errors 0, 3, 20; true: seen, seen, hidden; said: seen,
    # hidden, seen. Within 1 and 2 px: 1 of 2 seen points is near, hits 1, false positives 1
    # (the hidden one); so jaccard = 1 / (2 + 1). Within 4, 8, 16: near 2 of 2, jaccard the same.
    scores = metrics.tapvid(
        np.array([0]), track(0, 0, 0, 0), seen(1, 1, 1, 0), track(0, 0, 3, 20), seen(1, 1, 0, 1),
        SIZE,
    )  # fmt: skip
    assert scores['occlusion_accuracy'] == pytest.approx(100 / 3)
    assert [scores[f'position_accuracy_{x}'] for x in (1, 2, 4, 8, 16)] == [50, 50, 100, 100, 100]
    assert scores['position_accuracy'] == pytest.approx(80)
    assert scores['average_jaccard'] == pytest.approx(100 / 3)


def test_a_far_visible_claim_is_both_a_miss_and_a_false_positive():
    scores = metrics.tapvid(
        np.array([0]), track(0, 0, 0), seen(1, 1, 1), track(0, 0, 5), seen(1, 1, 1), SIZE
    )
    # One hit, two truly seen, one false: 1 / (2 + 1) below 8 px, 2 / 2 from there on.
    expected = [100 / 3, 100 / 3, 100 / 3, 100, 100]
    assert [scores[f'jaccard_{x}'] for x in (1, 2, 4, 8, 16)] == pytest.approx(expected)


def test_a_threshold_is_not_within_itself():
    scores = metrics.tapvid(np.array([0]), track(0, 0), seen(1, 1), track(0, 4), seen(1, 1), SIZE)
    assert [scores[f'position_accuracy_{x}'] for x in (4, 8)] == [0, 100]


def test_first_judges_after_the_query_and_strided_all_but_its_frame():
    truth, wrong = track(0, 0, 0, 0), track(99, 99, 0, 0)
    args = (np.array([1]), truth, seen(1, 1, 1, 1), wrong, seen(1, 1, 1, 1), SIZE)
    assert metrics.tapvid(*args)['position_accuracy'] == 100
    strided = metrics.tapvid(*args, strided=True)
    assert strided['position_accuracy'] == pytest.approx(200 / 3)


def test_errors_are_scaled_to_256():
    # 3 px of 512 columns is 1.5 of 256; 3 px of 128 rows is 6.
    truth = np.zeros((2, 2, 2))
    xy = truth.copy()
    xy[1] = [[3, 0], [0, 3]]
    both = np.ones((2, 2), bool)
    scores = metrics.tapvid(np.array([0, 0]), truth, both, xy, both, (128, 512))
    found = [scores[f'position_accuracy_{x}'] for x in (1, 2, 4, 8)]
    assert found == [0, 50, 50, 100]


tracks = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def random_case(rng):
    frames, count = rng.integers(2, 12), rng.integers(1, 6)
    truth = rng.uniform(0, 256, (frames, count, 2))
    query_t = rng.integers(0, frames - 1, count)
    true_visible = rng.random((frames, count)) < 0.6
    true_visible[-1] = True  # so that there is something to measure
    noise = rng.normal(0, 6, truth.shape)
    return query_t, truth, true_visible, truth + noise, rng.random((frames, count)) < 0.6


@settings(max_examples=40, deadline=None)
@given(tracks, st.booleans())
def test_properties(rng, strided):
    query_t, truth, true_visible, xy, visible = random_case(rng)
    real = (query_t, truth, true_visible)
    perfect = metrics.tapvid(*real, truth, true_visible, SIZE, strided)
    assert set(perfect.values()) == {100}
    scores = metrics.tapvid(*real, xy, visible, SIZE, strided)
    swapped = metrics.tapvid(*real, xy, ~visible, SIZE, strided)
    for name, value in scores.items():
        assert 0 <= value <= 100
        if name.startswith('position'):
            assert swapped[name] == value
    total = scores['occlusion_accuracy'] + swapped['occlusion_accuracy']
    assert total == pytest.approx(100)
    # What happens in the query's frame, and where the truth is hidden, moves nothing positional.
    moved = xy.copy()
    moved[query_t, np.arange(len(query_t))] += 77
    assert metrics.tapvid(*real, moved, visible, SIZE, strided) == scores
    moved = np.where(true_visible[..., None], xy, xy + 99)
    assert metrics.tapvid(*real, moved, visible, SIZE, strided) == scores


@settings(max_examples=25, deadline=None)
@given(tracks)
def test_every_protocol_gives_100_to_the_truth_and_less_to_a_shift(rng):
    query_t, truth, true_visible, *_ = random_case(rng)
    known, hidden = np.ones_like(true_visible), ~true_visible
    hidden[-1] = True
    area = np.full(len(truth), 100.0)
    head, box = np.full(true_visible.shape, 10.0), np.full(true_visible.shape, 40.0)
    area_of = np.full(true_visible.shape, 900.0)
    keypoint = np.arange(len(query_t)) % 17

    def scores(xy):
        return {
            'hidden': metrics.occluded_accuracy(query_t, truth, hidden, xy, SIZE),
            'survival': metrics.survival(query_t, truth, known, xy, SIZE),
            **metrics.badja(xy, truth, true_visible, area),
            **metrics.pose(query_t, truth, true_visible, xy, head, box, area_of, keypoint),
        }

    perfect, shifted = scores(truth), scores(truth + 60)
    right = {name: v for name, v in perfect.items() if np.isfinite(v)}
    assert {v for name, v in right.items() if 'jitter' not in name} == {100}
    assert {v for name, v in right.items() if 'jitter' in name} <= {0}
    # a constant shift moves as the joint does, after the query
    alike = ('temporal_consistency', 'smoothness', 'jitter')
    assert all(value < 1 for name, value in shifted.items() if not name.startswith(alike))
    found = metrics.redetection(query_t, truth, true_visible, truth, true_visible, SIZE)
    unsaid = metrics.redetection(query_t, truth, true_visible, truth, ~true_visible, SIZE)
    assert found['episodes'] == unsaid['episodes']
    if found['episodes']:
        assert found['recovered'] == found['reported'] == unsaid['recovered'] == 100
        assert unsaid['reported'] == 0


def test_badja_by_hand():
    # Area 100: reach 0.2 * 10 = 2 px. Area 2500: reach 10 px. Frame 2 is not annotated.
    truth = np.zeros((4, 2, 2))
    xy = truth.copy()
    xy[1, :, 0] = 1.5, 2.5
    xy[2] = 99
    xy[3, :, 0] = 9, 11
    true_visible = np.ones((4, 2), bool)
    area = np.array([100, 100, np.nan, 2500])
    scores = metrics.badja(xy, truth, true_visible, area)
    assert scores == {'badja_segment': 50, 'badja_3px': 50}
    true_visible[3] = False
    scores = metrics.badja(xy, truth, true_visible, area)
    assert scores == {'badja_segment': 50, 'badja_3px': 100}
    xy[0] = 1000  # the queries' frame is not counted
    assert metrics.badja(xy, truth, true_visible, area) == scores


def test_a_track_of_nan_is_wrong_not_ignored():
    truth = np.zeros((2, 1, 2))
    lost = np.full_like(truth, np.nan)
    both = np.ones((2, 1), bool)
    assert metrics.badja(lost, truth, both, np.array([9.0, 9.0]))['badja_segment'] == 0
    scores = metrics.tapvid(np.array([0]), truth, both, lost, both, SIZE)
    assert scores['position_accuracy'] == 0 and scores['average_jaccard'] == 0


def test_occluded_by_hand():
    truth, query_t = track(0, 0, 0, 0), np.array([0])
    xy = track(9, 2.9, 3, 20)
    # Hidden in frames 2 and 3, 3 and 20 px off: near within 4, 8 and 16 px in one of two.
    hidden = seen(0, 0, 1, 1)
    assert metrics.occluded_accuracy(query_t, truth, hidden, xy, SIZE) == pytest.approx(30)
    assert np.isnan(metrics.occluded_accuracy(query_t, truth, seen(0, 0, 0, 0), xy, SIZE))


def test_on_object_by_hand():
    # A row of pixels: beside, edge, object, edge, beside; it moves right by one in frame 2. The
    # first point is the object's and stays where it is asked for: on it, at its edge, and then,
    # unseen, beside it. The second is the background's and runs into the object.
    side = np.array([[[-1, 0, 1, 0, -1, -1]], [[-1, 0, 1, 0, -1, -1]], [[-1, -1, 0, 1, 0, -1]]])
    x = np.array([[2.0, 5], [3.4, 4], [0, 3]])
    visible = np.array([[1, 1], [1, 1], [0, 1]], bool)
    scores = metrics.on_object(
        np.array([0, 0]), np.stack([x, np.zeros_like(x)], -1), visible, side
    )
    assert scores == {'on_object': 100, 'held': 50, 'on_background': 50}
    visible[2, 0] = True
    scores = metrics.on_object(
        np.array([0, 1]), np.stack([x, np.zeros_like(x)], -1), visible, side
    )
    assert scores == {'on_object': 50, 'held': 50, 'on_background': 0}


def test_pose_by_hand():
    # A nose, head 10 px, box 100 px, annotated in frames 0, 2 and 3; errors 4.9 and 5.1.
    truth, xy = track(0, 50, 0, 0), track(0, 99, 4.9, 5.1)
    true_visible = seen(1, 0, 1, 1)
    head, box, area = (value * true_visible for value in (10.0, 100.0, 4900.0))
    args = (np.array([0]), truth, true_visible, xy, head, box, area, np.array([0]))
    scores = metrics.pose(*args)
    assert scores['pckh'] == scores['pck_0.05'] == 50 and scores['pck_0.1'] == 100
    # 2 * area * (2 * 0.026)^2 = 26.499: exp(-4.9^2 / 26.499) = 0.4041, with 5.1: 0.3747.
    assert scores['oks'] == pytest.approx(38.94, abs=0.01)
    # Steps: 0 to 2 differs by 4.9 px, 2 to 3 by 0.2; within 2 px is one of two.
    assert scores['temporal_consistency'] == 50
    # Frames 0, 2 and 3: the error bends by 5.1 - 2 * 4.9 = -4.7 px, more than 2 px of the box.
    assert scores['jitter'] == pytest.approx(4.7) and scores['smoothness'] == 0
    assert scores['pckh/nose'] == 50 and {n.rpartition('/')[2] for n in scores if '/' in n} == {
        'nose'
    }
    perfect = metrics.pose(*args[:3], truth, *args[4:])
    assert {v for name, v in perfect.items() if 'jitter' not in name} == {100}
    assert perfect['jitter'] == 0


def test_pose_is_told_for_every_keypoint_and_only_where_sizes_are():
    # Two keypoints: the wrist always right, the hip always 6 px off.
    truth = np.zeros((4, 2, 2))
    xy = truth + np.array([[0, 0], [6, 0]])
    true_visible = np.ones((4, 2), bool)
    head, box = np.zeros((4, 2)), np.full((4, 2), 100.0)
    box[2] = 0
    args = (np.array([0, 0]), truth, true_visible, xy, head, box, box, np.array([9, 11]))
    scores = metrics.pose(*args)
    assert scores['pck_0.05'] == 50 and scores['pck_0.1'] == 100
    assert (scores['pck_0.05/left_wrist'], scores['pck_0.05/left_hip']) == (100, 0)
    assert not any(name.startswith(('pckh', 'temporal')) for name in scores)


def test_similarity_is_cocos():
    # COCO's own evaluation: sigmas, vars = (2 sigma)^2, e = d^2 / vars / (area + eps) / 2.
    rng = np.random.default_rng(3)
    truth, xy = rng.uniform(0, 50, (2, 17, 2)), rng.uniform(0, 50, (2, 17, 2))
    seen_all, size = np.ones((2, 17), bool), np.full((2, 17), 2500.0)
    scores = metrics.pose(np.zeros(17, int), truth, seen_all, xy, size, size, size, np.arange(17))
    coco = '.26 .25 .25 .35 .35 .79 .79 .72 .72 .62 .62 1.07 1.07 .87 .87 .89 .89'
    spread = (2 * np.array(coco.split(), float) / 10) ** 2
    e = ((xy[1] - truth[1]) ** 2).sum(-1) / spread / 2500 / 2
    assert scores['oks'] == pytest.approx(100 * np.exp(-e).mean())


def test_survival_by_hand():
    truth = np.zeros((5, 2, 2))
    xy = truth.copy()
    xy[3, 0] = 51, 0  # lost in frame 3 of 1 to 4: half survived, although it comes back
    xy[:, 1] = 0, 50  # exactly on the limit: never lost
    known = np.ones((5, 2), bool)
    args = (np.array([0, 2]), truth, known, xy, SIZE)
    assert metrics.survival(*args) == pytest.approx((50 + 100) / 2)
    known[3] = False
    assert metrics.survival(*args) == 100
    assert np.isnan(metrics.survival(np.array([4, 4]), truth, known, xy, SIZE))


def test_redetection_by_hand():
    #            query       gap of 2         gap of 1
    true_visible = seen(1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1)
    truth = np.zeros((11, 1, 2))
    xy = truth.copy()
    xy[9:] = 20, 0  # not found after the second
    visible = true_visible.copy()
    visible[4:7] = False  # found after the first, but said so in one of four frames only
    args = (np.array([0]), truth, true_visible, xy, visible, SIZE)
    scores = metrics.redetection(*args, frames=4)
    assert scores == {'episodes': 2, 'recovered': 50, 'reported': 0}
    scores = metrics.redetection(*args, shortest=2, frames=4)
    assert scores == {'episodes': 1, 'recovered': 100, 'reported': 0}
    for away, share in ((slice(5, 8), 0), (slice(6, 8), 100)):  # half of the frames count
        some = xy.copy()
        some[away] = 20, 0
        scores = metrics.redetection(*args[:3], some, *args[4:], shortest=2, frames=4)
        assert scores['recovered'] == share
    scores = metrics.redetection(*args, longest=1)
    assert scores == {'episodes': 1, 'recovered': 0, 'reported': 0}
    scores = metrics.redetection(np.array([4]), *args[1:])
    assert scores['episodes'] == 1
    assert np.isnan(metrics.redetection(*args, shortest=3)['recovered'])


def test_means_leave_nan_out_and_add_episodes():
    clips = [{'a': 10, 'n_episodes': 3}, {'a': np.nan, 'n_episodes': 2}, {'a': 20, 'b': 5}]
    assert metrics.mean_scores(clips) == {'a': 15, 'n_episodes': 5, 'b': 5}
    assert np.isnan(metrics.mean_scores([{'a': np.nan}])['a'])


def test_arrays_that_do_not_belong_together():
    truth = np.zeros((3, 2, 2))
    both = np.ones((3, 2), bool)
    with pytest.raises(ValueError, match='do not belong together'):
        metrics.tapvid(np.zeros(2, int), truth, both, truth[:2], both, SIZE)
    with pytest.raises(ValueError, match='3 queries'):
        metrics.survival(np.zeros(3, int), truth, both, truth, SIZE)
    with pytest.raises(ValueError, match='areas of 2'):
        metrics.badja(truth, truth, both, np.ones(2))
