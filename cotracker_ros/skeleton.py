"""The human body as COCO annotates it: 17 keypoints, its limbs and its constants of similarity.

A keypoint's number is its place in KEYPOINTS. Source: COCO's keypoint task (Lin et al. 2014,
arXiv 1405.0312; constants of its evaluation, https://cocodataset.org/#keypoints-eval).
"""

import numpy as np

KEYPOINTS = (
    'nose',
    'left_eye',
    'right_eye',
    'left_ear',
    'right_ear',
    'left_shoulder',
    'right_shoulder',
    'left_elbow',
    'right_elbow',
    'left_wrist',
    'right_wrist',
    'left_hip',
    'right_hip',
    'left_knee',
    'right_knee',
    'left_ankle',
    'right_ankle',
)
NUMBER = {name: number for number, name in enumerate(KEYPOINTS)}


def _limb(one: str, other: str) -> tuple[int, int]:
    return NUMBER[one], NUMBER[other]


# COCO's skeleton: pairs of keypoints that a limb joins, left and right apart.
LIMBS = (
    *(
        _limb(f'{side}_{one}', f'{side}_{other}')
        for side in ('left', 'right')
        for one, other in (
            ('ankle', 'knee'),
            ('knee', 'hip'),
            ('hip', 'shoulder'),
            ('shoulder', 'elbow'),
            ('elbow', 'wrist'),
            ('shoulder', 'ear'),
            ('ear', 'eye'),
        )
    ),
    _limb('left_hip', 'right_hip'),
    _limb('left_shoulder', 'right_shoulder'),
    _limb('left_eye', 'right_eye'),
    _limb('nose', 'left_eye'),
    _limb('nose', 'right_eye'),
)

# Of each keypoint: 'left', 'right' or 'middle'.
SIDE = tuple(name.split('_')[0] if '_' in name else 'middle' for name in KEYPOINTS)
_OTHER = {'left': 'right', 'right': 'left', 'middle': 'middle'}
# (17,) the keypoint on the other side of the body; the nose is its own.
MIRROR = np.array(
    [NUMBER[name.replace(side, _OTHER[side])] for name, side in zip(KEYPOINTS, SIDE, strict=True)]
)

# (17,) of object keypoint similarity: spread of human annotations, as a share of the square root
# of the person's area.
OKS_SIGMA = np.array(
    [0.026, *np.repeat([0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089], 2)]
)


def check_keypoints(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers (count,) of keypoints, int32; -1: a plain point.

    Raises ValueError for another shape and for numbers that are no keypoint.
    """
    numbers = np.asarray(numbers)
    if numbers.shape != (count,):
        raise ValueError(f'{count} points, but keypoint numbers of shape {numbers.shape}')
    wrong = (numbers != numbers.astype(np.int32)) | (numbers < -1) | (numbers >= len(KEYPOINTS))
    if wrong.any():
        raise ValueError(
            f'{numbers[wrong.argmax()]} is no keypoint: they go from 0, {KEYPOINTS[0]}, to '
            f'{len(KEYPOINTS) - 1}, {KEYPOINTS[-1]}, and -1 is a plain point'
        )
    return numbers.astype(np.int32)
