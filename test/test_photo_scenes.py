"""Scenes of real pixels: what a track says stays the same surface, and visibility is what is on
top.
"""

import dataclasses

import cv2
import numpy as np
import pytest

pytest.importorskip('torch')
data = pytest.importorskip('skimage.data', reason='its photographs are the scene')

from train.data.synthetic.photo_scenes import (  # noqa: E402
    PhotoSceneConfig,
    PhotoScenes,
    candidates,
    crop_out,
    video_cutouts,
)

CONFIG = PhotoSceneConfig(size=(160, 224), frames=12, jpeg=0.0, blur=0.0, occluders=1.0, late=0.4)


@pytest.fixture(scope='module')
def scenes():
    return PhotoScenes(CONFIG, [data.astronaut(), data.coffee()], seed=3)


class Plain(PhotoScenes):
    """Without changes of light and noise."""

    def photometric(self, video, rng):
        return video


def test_a_clip_is_a_function_of_seed_and_number(scenes):
    again = PhotoScenes(CONFIG, [data.astronaut(), data.coffee()], seed=3)
    scenes.clip(0, 20)
    for one, two in zip(scenes.clip(5, 20), again.clip(5, 20), strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(scenes.clip(5, 20).video, scenes.clip(6, 20).video)


def test_the_surface_under_a_track_keeps_its_colour():
    scenes = Plain(CONFIG, [data.astronaut(), data.coffee()], seed=3)
    on, off = [], []
    for index in range(4):
        clip = scenes.clip(index, 40)
        smooth = [cv2.GaussianBlur(frame, (0, 0), 1.0).astype(np.float32) for frame in clip.video]

        def colour(t, xy, smooth=smooth):
            return cv2.remap(smooth[t], np.float32(xy[:, None]), None, cv2.INTER_LINEAR)[:, 0]

        points = np.arange(40)
        first = np.stack(
            [
                colour(t, clip.tracks[t, [n]])[0]
                for n, t in zip(points, clip.query_frame, strict=True)
            ]
        )
        for t in range(CONFIG.frames):
            seen = clip.visible[t]
            on.append(abs(colour(t, clip.tracks[t, seen]) - first[seen]).mean(-1))
            off.append(abs(colour(t, clip.tracks[t, seen] + [9, 7]) - first[seen]).mean(-1))
    on, off = np.concatenate(on), np.concatenate(off)
    assert np.median(on) < 3 and np.mean(on < 12) > 0.9
    assert np.median(off) > 3 * np.median(on)


def test_the_surface_around_a_track_is_deformed_as_its_warp_says():
    config = dataclasses.replace(CONFIG, late=0.0, pace=(6.0, 6.0), outlines=0, on_objects=0.3)
    scenes = Plain(config, [data.astronaut(), data.coffee()], seed=5)
    axis = np.arange(-8.0, 9, 4)
    offsets = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    bent, straight, much = [], [], []
    for index in range(4):
        clip = scenes.clip(index, 40)
        smooth = [cv2.GaussianBlur(frame, (0, 0), 1.0).astype(np.float32) for frame in clip.video]

        def colours(t, xy, smooth=smooth):
            return cv2.remap(smooth[t], np.float32(xy), None, cv2.INTER_LINEAR)

        first = colours(0, clip.tracks[0, :, None] + offsets)
        t = CONFIG.frames - 1
        seen = clip.visible[t]
        unity = np.broadcast_to(np.eye(2), (40, 2, 2))
        for found, warp in ((bent, clip.warp[t]), (straight, unity)):
            there = clip.tracks[t, :, None] + offsets @ warp.swapaxes(-1, -2)
            found.append(abs(colours(t, there) - first)[seen].mean((1, 2)))
        much.append(abs(clip.warp[t] - unity).max((1, 2))[seen] > 0.3)
    bent, straight, much = (np.concatenate(x) for x in (bent, straight, much))
    assert much.sum() > 10
    assert np.median(bent[much] / straight[much]) < 0.6


def test_points_are_taken_near_outlines_on_both_sides():
    owner = np.zeros((200, 300), np.uint8)
    owner[60:140, 100:200] = 1
    empty = np.full((200, 300, 3), 90, np.uint8)  # no corners: half of the places are anywhere
    xy = candidates(empty, owner, 400, np.random.default_rng(0), 1, 9)
    inside = np.minimum(xy - (99.5, 59.5), (199.5, 139.5) - xy).min(-1)  # px to the outline
    strip = abs(inside) < 5
    assert 0.5 < strip.mean() < 0.7
    assert 0.4 < (inside[strip] > 0).mean() < 0.6
    assert len(candidates(empty, np.zeros_like(owner), 400, np.random.default_rng(0), 1, 9)) == 400


def test_points_are_hidden_and_come_back(scenes):
    hidden = back = 0
    for index in range(6):
        clip = scenes.clip(index, 40)
        assert clip.visible[clip.query_frame, np.arange(40)].all()
        assert 0 < (clip.query_frame > 0).sum() < 40
        lost = (~clip.visible).cumsum(0) > 0
        hidden += (~clip.visible).any(0).sum()
        back += (lost & clip.visible).any(0).sum()
    assert hidden > 20 and back > 5


def test_what_moves_before_a_still_camera_is_cut_out(tmp_path):
    background = cv2.resize(data.coffee(), (320, 240))
    ball = cv2.resize(data.astronaut()[50:200, 150:300], (70, 70))
    writer = cv2.VideoWriter(
        str(tmp_path / 'a.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (320, 240)
    )
    for t in range(30):
        frame = background.copy()
        frame[80:150, 5 + 8 * t : 75 + 8 * t] = ball
        writer.write(frame[..., ::-1].copy())
    writer.release()
    parts = video_cutouts(tmp_path)
    assert len(parts) > 5
    sizes = np.array([part.alpha.shape for part in parts])
    assert abs(np.median(sizes, 0) - 70).max() < 12
    image, alpha = parts[len(parts) // 2]
    inner = abs(cv2.resize(image, (70, 70)).astype(int) - ball)[20:50, 20:50]
    assert np.median(inner) < 25 and alpha.mean() > 0.7


def test_what_is_too_small_is_no_cutout():
    mask = np.zeros((200, 200), bool)
    mask[5:12, 5:12] = True
    assert crop_out(np.zeros((200, 200, 3), np.uint8), mask) is None


def test_bad_folders_are_told(tmp_path):
    with pytest.raises(ValueError, match='no video'):
        video_cutouts(tmp_path)
    with pytest.raises(ValueError, match='need photographs'):
        PhotoScenes(CONFIG, [])
