"""COCO's body, against the numbers of its own annotation files."""

import numpy as np

from cotracker_ros import skeleton

# person category of COCO's keypoint annotations, numbers from 1
COCO_LIMBS = [
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9),
    (8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
]  # fmt: skip


def test_limbs_are_cocos():
    ours = {frozenset((a + 1, b + 1)) for a, b in skeleton.LIMBS}
    assert ours == {frozenset(limb) for limb in COCO_LIMBS}
    assert len(skeleton.LIMBS) == len(COCO_LIMBS)


def test_keypoints_sigmas_and_sides_are_cocos():
    assert skeleton.KEYPOINTS[0] == 'nose' and skeleton.KEYPOINTS[16] == 'right_ankle'
    assert skeleton.KEYPOINTS[9] == 'left_wrist' and skeleton.KEYPOINTS[12] == 'right_hip'
    coco = '.26 .25 .25 .35 .35 .79 .79 .72 .72 .62 .62 1.07 1.07 .87 .87 .89 .89'
    assert np.allclose(skeleton.OKS_SIGMA, np.array(coco.split(), float) / 10)
    assert skeleton.MIRROR.tolist() == [0, *(n + 1 if n % 2 else n - 1 for n in range(1, 17))]
    assert [skeleton.SIDE[n] for n in (0, 5, 6)] == ['middle', 'left', 'right']
