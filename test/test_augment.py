"""Augmented clips: what a track shows stays what it showed; folders of recordings as streams."""

import dataclasses

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from train.data.augment import AugmentConfig, augment, cover, crop  # noqa: E402
from train.data.clip import DataError  # noqa: E402
from train.data.loader import FolderStream, StreamConfig  # noqa: E402
from train.data.readers.kubric import kubric_sequences  # noqa: E402
from train.data.synthetic.procedural import SceneConfig  # noqa: E402

STILL = AugmentConfig(colour=0, blur=0, erase=0, replace=0, flip=0, reverse=0, drift=0)
TIME = np.arange(8)


def moving_dots(points: int = 12):
    """White dots of 3 px on black that move one px a frame: video, tracks, visible."""
    start = np.stack(np.meshgrid([20, 50, 80, 110], [20, 45, 70]), -1).reshape(-1, 2)[:points]
    tracks = start[None] + TIME[:, None, None] * np.array([1.0, 0.5])
    video = np.zeros((len(TIME), 96, 144, 3), np.uint8)
    for frame, places in zip(video, tracks, strict=True):
        y, x = np.mgrid[:96, :144]
        for px, py in places:
            frame[(x - px) ** 2 + (y - py) ** 2 < 9] = 255
    return video, tracks, np.ones(tracks.shape[:2], bool)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'flip': 1.0},
        {'drift': 0.3},
        {'colour': 1.0},
        {'blur': 1.0},
        {'erase': 1.0, 'replace': 1.0, 'patch': (10, 30)},
    ],
)
def test_a_visible_point_still_shows_its_dot(changes):
    clip = moving_dots()
    shown = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        config = dataclasses.replace(STILL, **changes)
        video, tracks, visible = augment(*clip, (64, 96), config, rng)
        assert video.shape == (8, 64, 96, 3)
        t, n = np.nonzero(visible)
        x, y = np.round(tracks[t, n]).astype(int).T
        bright = video[t, y, x].max(-1) > 90
        assert bright.all()
        if 'replace' not in changes:  # patches may hide every point
            assert visible.any()
        shown += visible.sum()
    assert shown > 100


def test_time_runs_backwards():
    video, tracks, visible = moving_dots()
    config = dataclasses.replace(STILL, reverse=1.0, scale=(1.0, 1.0))
    _, back, _ = augment(video, tracks, visible, (96, 144), config, np.random.default_rng(0))
    np.testing.assert_allclose(back, tracks[::-1], atol=1e-4)


def test_a_patch_hides_what_is_below_it_and_nothing_else():
    video, tracks, visible = moving_dots()
    before = video.copy()
    cover(video, tracks, visible, False, (30, 31), np.random.default_rng(3))
    changed = (video != before).any(-1)
    assert (~visible).any()
    assert visible.any()
    t, n = np.nonzero(~visible)
    x, y = np.round(tracks[t, n]).astype(int).T
    assert changed[t, y, x].all()


def test_a_whole_crop_only_scales():
    video, tracks, visible = moving_dots()
    config = dataclasses.replace(STILL, scale=(1.0, 1.0))
    _, moved, _ = crop(video, tracks, visible, (48, 72), config, np.random.default_rng(0))
    np.testing.assert_allclose(moved, (tracks + 0.5) / 2 - 0.5, atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    """Two Kubric sequences of moving dots."""
    video, tracks, visible = moving_dots()
    for name in ('0001', '0002'):
        (tmp_path / name / 'frames').mkdir(parents=True)
        for i, frame in enumerate(video):
            cv2.imwrite(str(tmp_path / name / 'frames' / f'{i:03d}.png'), frame)
        note = {'coords': tracks.transpose(1, 0, 2), 'visibility': ~visible.T}
        np.save(tmp_path / name / f'{name}.npy', note, allow_pickle=True)
    return tmp_path


SCENE = SceneConfig(size=(64, 96), frames=6)


def test_a_folder_is_a_stream_that_resumes_exactly(folder):
    config = StreamConfig(clips=2, points=3, augment=STILL)
    sequences = kubric_sequences(folder)
    stream = iter(FolderStream(sequences, SCENE, config, seed=1))
    next(stream)
    second = next(stream)
    assert second.video.shape == (2, 6, 64, 96, 3)
    assert second.tracks.shape == (2, 6, 3, 2)
    asked = second.visible.gather(1, second.query_frame[:, None])
    assert asked.all()
    resumed = next(iter(FolderStream(sequences, SCENE, config, seed=1, start=1)))
    for one, two in zip(vars(second).values(), vars(resumed).values(), strict=True):
        assert torch.equal(one, two)


def test_sequences_without_enough_points_are_told(folder):
    stream = FolderStream(kubric_sequences(folder), SCENE, StreamConfig(points=500), seed=1)
    with pytest.raises(DataError, match='20 sequences in a row'):
        next(iter(stream))
