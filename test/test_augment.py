"""Augmented clips: what a track shows stays what it showed; recordings as a source."""

import dataclasses

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from train.data.augment import AugmentConfig, augment, cover, crop  # noqa: E402
from train.data.batch import BatchConfig  # noqa: E402
from train.data.clip import Clip, DataError  # noqa: E402
from train.data.readers.kubric import kubric_sequences, read_kubric  # noqa: E402
from train.data.sources import RecordedSource  # noqa: E402

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
        {'follow': 1.0, 'scale': (1.5, 1.5)},
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


@pytest.mark.parametrize('speed', [0.0, 6.0])
def test_a_patch_hides_what_is_below_it_and_nothing_else(speed):
    video, tracks, visible = moving_dots()
    before, config = video.copy(), AugmentConfig(patch=(30, 31), patch_speed=speed)
    cover(video, tracks, visible, False, config, np.random.default_rng(3))
    changed = (video != before).any(-1)
    assert (~visible).any()
    assert visible.any()
    t, n = np.nonzero(~visible)
    x, y = np.round(tracks[t, n]).astype(int).T
    assert changed[t, y, x].all()


def test_a_crop_that_follows_goes_with_what_moves():
    frames = 40
    across = np.column_stack([np.linspace(200, 500, frames), np.linspace(120, 160, frames)])
    offsets = np.array([[-15, -10], [15, 10], [0, 12.0]])
    background = np.stack(np.meshgrid([180, 350, 520], [80, 250]), -1).reshape(-1, 2)
    still = np.repeat(background[None].astype(float), frames, 0)
    tracks = np.concatenate([across[:, None] + offsets, still], 1)
    video, visible = np.zeros((frames, 320, 720, 3), np.uint8), np.ones(tracks.shape[:2], bool)
    visible[5, 1], tracks[5, 1] = False, np.nan  # hidden, and nothing is known of it
    config = dataclasses.replace(STILL, follow=1.0, scale=(2.0, 2.0))

    def way(points):
        return np.linalg.norm(points[-1] - points[0], axis=-1).mean()

    for seed in range(4):
        rng = np.random.default_rng(seed)
        _, moved, _ = crop(video, tracks, visible, (320, 512), config, rng)
        assert way(moved[:, :3]) < 0.35 * 2 * way(tracks[:, :3])
        assert way(moved[:, 3:]) > 0.65 * 2 * way(tracks[:, :3])
    # Where nothing moves the crop wanders.
    _, moved, _ = crop(video, still, visible[:, 3:], (320, 512), config, np.random.default_rng(0))
    assert np.linalg.norm(moved - moved[0], axis=-1).max() > 20


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


def recorded(folder, **batch):
    config = BatchConfig(**{'clips': 2, 'points': 3, 'augment': STILL, **batch})
    files = kubric_sequences(folder)
    return RecordedSource('kubric', files, read_kubric, (64, 96), 6, config, seed=1)


def test_a_folder_gives_the_same_batch_for_the_same_number(folder):
    source = recorded(folder)
    source.batch(0)
    second, again = source.batch(1), recorded(folder).batch(1)
    assert second.video.shape == (2, 6, 64, 96, 3)
    assert second.tracks.shape == (2, 6, 3, 2)
    asked = second.visible.gather(1, second.query_frame[:, None])
    assert asked.all() and second.known.all()
    for name in ('video', 'tracks', 'visible', 'query_frame', 'known'):
        assert torch.equal(getattr(second, name), getattr(again, name)), name


def test_time_runs_backwards_in_a_share_of_the_clips(folder):
    for share, way in ((0.0, 1), (1.0, -1)):
        config = dataclasses.replace(STILL, reverse=share)
        steps = recorded(folder, augment=config).batch(0).tracks.diff(dim=1)
        assert (way * steps > 0).all()  # the dots move right and down


def test_recordings_run_at_random_rates_up_to_the_fastest_asked_for():
    x = np.stack(np.broadcast_arrays(np.arange(60.0)[:, None], 20.0 + np.arange(5)), -1)
    video, visible = np.zeros((60, 32, 64, 3), np.uint8), np.ones((60, 5), bool)
    clip = Clip('line', video, np.insert(x[0], 0, 0, axis=1), x.astype(np.float32), visible)
    whole = dataclasses.replace(STILL, scale=(1.0, 1.0))
    config = BatchConfig(clips=40, points=5, pace=(1.0, 4.0), augment=whole)
    clips = RecordedSource('x', [None], lambda _: clip, (32, 64), 8, config, seed=1).batch(0)
    frames = clips.tracks[:, :, 0, 0].round()
    rates = (frames[:, -1] - frames[:, 0]) / 7
    assert 1 <= rates.min() < 1.5 and 3.5 < rates.max() <= 4 + 1 / 7
    assert 2 < rates.mean() < 3 and len(frames[:, 0].unique()) > 10
    # A short recording goes no faster than its frames last.
    short = Clip('short', video[:8], clip.queries, clip.tracks[:8], visible[:8])
    source = RecordedSource('x', [None], lambda _: short, (32, 64), 8, config, seed=1)
    assert (source.batch(0).tracks.diff(dim=1)[..., 0].round() == 1).all()


def test_what_is_not_known_is_told_so():
    video, tracks, visible = moving_dots()
    known = np.ones_like(visible)
    known[5:, :6] = visible[5:, :6] = False
    queries = np.insert(tracks[0], 0, 0, axis=1)
    clip = Clip('dots', video, queries, tracks.astype(np.float32), visible, known)
    whole = dataclasses.replace(STILL, scale=(1.0, 1.0))
    config = BatchConfig(clips=1, points=12, pace=(1.0, 1.0), augment=whole)
    source = RecordedSource('x', [None], lambda _: clip, (96, 144), 8, config, seed=1)
    clips = source.batch(0)
    assert (~clips.known).sum() == 3 * 6
    assert not clips.visible[~clips.known].any()
    # Points are shuffled: those not known are the ones whose truth ended.
    ended = ~clips.known[0, 5]
    start = clips.tracks[0, 0, ended].round().int().tolist()
    assert sorted(start) == sorted(tracks[0, :6].round().astype(int).tolist())


def test_sequences_without_enough_points_are_told(folder):
    with pytest.raises(DataError, match='20 sequences in a row'):
        recorded(folder, points=500).batch(0)
