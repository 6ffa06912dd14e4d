"""Losses of bodies: zero at the truth, gradients that lead there, nothing else moved."""

import pytest

torch = pytest.importorskip('torch')

from cotracker_ros.skeleton import LIMBS, NUMBER  # noqa: E402
from train.losses import (  # noqa: E402
    LossConfig,
    continuity,
    joint_relation,
    limb_pairs,
    occlusion_aware,
    tracking_loss,
)

FRAMES, ALL = 7, 38  # two people and four plain points


@pytest.fixture
def body():
    """Keypoints and instances (1, ALL), tracks (1, FRAMES, ALL, 2) px, all counted."""
    rng = torch.Generator().manual_seed(2)
    keypoint = torch.tensor([[*range(17), *range(17), -1, -1, -1, -1]])
    instance = torch.tensor([[0] * 17 + [1] * 17 + [-1] * 4])
    tracks = 100 * torch.rand(1, 1, ALL, 2, generator=rng) + torch.randn(
        1, FRAMES, ALL, 2, generator=rng
    ).cumsum(1)
    return keypoint, instance, tracks, torch.ones(1, FRAMES, ALL, dtype=torch.bool)


def slope(loss, x):
    """The gradient of loss(x) at x."""
    x = x.clone().requires_grad_()
    loss(x).backward()
    return x.grad


def test_continuity_is_zero_at_the_truth_and_for_smoother_tracks(body):
    _, _, tracks, counted = body
    assert continuity(tracks, tracks, counted) == 0
    straight = tracks[:, :1] + torch.arange(FRAMES)[:, None, None] * torch.ones(2)
    assert continuity(straight, tracks, counted) == 0
    # Moving as a whole or at another steady speed bends nothing.
    assert continuity(tracks + 5, tracks, counted) < 1e-5
    # By hand: straight truth, one frame of one track 3 px aside: bends of 3, 6 and 3 px over 3.
    kinked = straight.clone()
    kinked[0, 3, 4, 0] += 3
    expected = (3 + 6 + 3) / (5 * ALL)
    assert float(continuity(kinked, straight, counted)) == pytest.approx(expected, rel=1e-4)


def test_continuity_pushes_a_kink_back_and_leaves_uncounted_frames(body):
    _, _, tracks, counted = body
    straight = tracks[:, :1].expand(-1, FRAMES, -1, -1)
    kinked = straight.clone()
    kinked[0, 3, 4, 0] += 3
    grad = slope(lambda x: continuity(x, straight, counted), kinked)
    assert grad[0, 3, 4, 0] > 0 and grad[0, 3, 4, 1].abs() < 1e-6
    assert grad[0, :, :4].abs().max() == 0 and grad[0, :, 5:].abs().max() == 0
    blind = counted.clone()
    blind[0, 3, 4] = False
    assert continuity(kinked, straight, blind) == 0


def test_limbs_join_keypoints_of_one_person_only(body):
    keypoint, instance, *_ = body
    clip, one, other = limb_pairs(keypoint, instance)
    assert len(clip) == 2 * len(LIMBS) and (clip == 0).all()
    assert torch.equal(instance[0, one], instance[0, other])
    pairs = {(int(keypoint[0, i]), int(keypoint[0, j])) for i, j in zip(one, other, strict=True)}
    assert pairs == set(LIMBS)


def test_joint_relation_is_zero_where_limbs_are_right(body):
    keypoint, instance, tracks, counted = body
    assert joint_relation(tracks, tracks, counted, keypoint, instance) < 1e-4
    moved = tracks.clone()
    moved[:, :, :17] += torch.tensor([30.0, -8])  # one person as a whole
    moved[:, :, 34:] += 50  # plain points
    assert joint_relation(moved, tracks, counted, keypoint, instance) < 1e-4
    assert slope(
        lambda x: joint_relation(x, tracks, counted, keypoint, instance), moved
    ).abs().max() < 1e-3  # fmt: skip


def test_joint_relation_by_hand_and_its_direction():
    # One limb 10 px long, drawn as 12 px and then turned by a right angle.
    keypoint = torch.tensor([[NUMBER['left_hip'], NUMBER['left_knee'], -1]])
    instance = torch.tensor([[0, 0, -1]])
    true = torch.tensor([[[[0.0, 0], [0, 10], [5, 5]]]])
    counted = torch.ones(1, 1, 3, dtype=torch.bool)
    longer = true.clone()
    longer[0, 0, 1, 1] = 12
    args = true, counted, keypoint, instance
    assert float(joint_relation(longer, *args)) == pytest.approx(2 - 0.5)  # Huber, 2 px off
    turned = true.clone()
    turned[0, 0, 1] = torch.tensor([10.0, 0])
    assert float(joint_relation(turned, *args)) == pytest.approx(10)
    grad = slope(lambda x: joint_relation(x, *args), longer)
    assert grad[0, 0, 1, 1] > 0 > grad[0, 0, 0, 1]  # the ends are drawn together
    assert grad[0, 0, 2].abs().max() == 0
    grad = slope(lambda x: joint_relation(x, *args), turned)
    assert grad[0, 0, 1, 1] < 0  # the knee is drawn down again
    blind = counted.clone()
    blind[0, 0, 0] = False
    assert joint_relation(longer, true, blind, keypoint, instance) == 0


def test_occlusion_aware_weighs_what_is_hidden(body):
    keypoint, instance, _, counted = body
    visible = counted.clone()
    wrist, elbow, knee = (NUMBER[f'left_{n}'] for n in ('wrist', 'elbow', 'knee'))
    visible[0, :, wrist] = False
    sure = torch.where(visible, 30.0, -30.0)
    args = visible, counted, keypoint, instance
    assert occlusion_aware(sure, *args) < 1e-6
    grad = slope(lambda x: occlusion_aware(x, *args), torch.zeros_like(sure))
    # Hidden ones are told down, visible ones up, plain points nothing.
    assert (grad[0, :, wrist] > 0).all() and (grad[0, :, knee] < 0).all()
    assert grad[0, :, 34:].abs().max() == 0
    # Weights by hand: this person's wrist is always hidden, the other's never: half. The elbow's
    # limbs go to shoulder and wrist, of which one is hidden; the knee's to hip and ankle.
    each = grad.abs()[0, 0]
    assert float(each[wrist] / each[knee]) == pytest.approx(1.5)
    assert float(each[elbow] / each[knee]) == pytest.approx(1.5)
    assert float(each[17 + wrist] / each[knee]) == pytest.approx(1.5)


def test_weights_of_zero_leave_the_losses_as_they_were(body):
    class Estimate:
        def __init__(self, xy):
            self.xy, self.visibility, self.confidence = xy, xy[..., 0] - 50, None

    keypoint, instance, tracks, counted = body
    off = tracks + torch.randn(tracks.shape, generator=torch.Generator().manual_seed(1))
    args = [Estimate(off)], tracks, counted, counted, tracks
    plain = tracking_loss(*args, LossConfig())
    same = tracking_loss(*args, LossConfig(), keypoint, instance)
    assert same['total'] == plain['total'] and set(same) == set(plain)
    held = tracking_loss(
        *args,
        LossConfig(continuity=0.5, joint_relation=2.0, occlusion_aware=3.0),
        keypoint,
        instance,
    )
    extra = 0.5 * held['continuity'] + 2 * held['joint_relation'] + 3 * held['occlusion_aware']
    assert float(held['total']) == pytest.approx(float(plain['total'] + extra), rel=1e-5)
    assert min(held[name] for name in ('continuity', 'joint_relation', 'occlusion_aware')) > 0


def test_visibility_counts_where_it_is_known_though_the_place_is_not(body):
    class Estimate:
        confidence = None

        def __init__(self, xy, visibility):
            self.xy, self.visibility = xy, visibility

    keypoint, instance, tracks, visibility_known = body
    visible = visibility_known.clone()
    visible[0, 3, 9] = False  # a wrist is hidden in one frame; where, nobody knows
    counted, somewhere = visible, tracks.clone()
    somewhere[0, 3, 9] += 40
    weights = LossConfig(continuity=1.0, joint_relation=1.0, occlusion_aware=1.0)

    def losses(xy, logits, *more):
        estimates = [Estimate(xy, logits)]
        args = tracks, visible, counted, tracks, weights, keypoint, instance
        return tracking_loss(estimates, *args, *more)

    logits = torch.full(visibility_known.shape, 9.0)  # all of it called visible
    right, wrong = losses(tracks, logits), losses(tracks, logits, visibility_known)
    assert wrong['visibility'] > right['visibility'] + 0.01
    assert wrong['occlusion_aware'] > right['occlusion_aware'] + 0.01
    assert wrong['visibility right'] < right['visibility right'] == 1
    moved = losses(somewhere, logits, visibility_known)
    for name in ('track', 'continuity', 'joint_relation'):
        assert moved[name] == wrong[name] and wrong[name] < 1e-4
