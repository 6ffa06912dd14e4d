"""Pictures of tracks: what is drawn where, and clear errors."""

import sys

import cv2
import numpy as np
import pytest

from cotracker_ros import visualise
from cotracker_ros.skeleton import NUMBER
from cotracker_ros.visualise import (
    LEFT_COLOUR,
    MIDDLE_COLOUR,
    RIGHT_COLOUR,
    contact_sheet,
    draw_errors,
    draw_pose,
    draw_tracks,
    id_colours,
    titled,
    write_video,
)

GREY = np.full((480, 640, 3), 128, np.uint8)


def still(xy, frames=1):
    """Return the history (T, N, 2) of points that stand still."""
    return np.repeat(np.asarray(xy, float)[None], frames, 0)


def test_a_visible_point_is_filled_in_its_colour_and_an_occluded_one_hollow():
    xy = still([[100, 80], [300, 200]])
    picture = draw_tracks(GREY, xy, np.array([[True, False]]), np.array([3, 4]))
    assert np.abs(picture[80, 100].astype(int) - id_colours([3])[0]).max() < 3
    assert (picture[200, 300] == 128).all()
    ring = picture[190:211, 290:311].astype(int) - id_colours([4])[0]
    assert (np.abs(ring).max(2) < 40).sum() >= 8
    changed = (picture != GREY).any(2)
    assert not changed[:, 110:290].any()


def test_the_tail_reaches_back_only_as_far_as_asked_and_the_frame_is_not_written_to():
    x = np.arange(50.0, 450, 10)
    xy = np.stack([x, np.full_like(x, 240)], -1)[:, None]
    picture = draw_tracks(GREY, xy, np.ones((40, 1), bool), np.array([0]), tail=10)
    columns = np.flatnonzero((picture != GREY).any((0, 2)))
    assert columns.min() == pytest.approx(x[-11], abs=4)
    assert columns.max() == pytest.approx(x[-1], abs=8)
    assert (GREY == 128).all()


def test_subpixel_positions_move_the_picture():
    pictures = [
        draw_tracks(GREY, still([[100 + d, 80]]), np.ones((1, 1), bool), np.array([0]))
        for d in (0, 0.25)
    ]
    assert (pictures[0] != pictures[1]).any()


def test_missing_and_far_points_are_harmless():
    xy = np.array([[[np.nan, np.nan], [1e9, -1e9]], [[10, np.nan], [-1e9, 1e9]]])
    picture = draw_tracks(GREY, xy, np.ones((2, 2), bool), np.array([1, 2]))
    assert picture.shape == GREY.shape
    none = draw_tracks(GREY, np.zeros((0, 0, 2)), np.zeros((0, 0), bool), np.zeros(0, int))
    assert (none == GREY).all()


def test_colours_are_stable_and_apart():
    ids = np.arange(200)
    colours = id_colours(ids).astype(int)
    assert (id_colours(ids[::-1]) == colours[::-1]).all()
    assert (id_colours(np.array([7, 2**32 - 1], np.uint32))[0] == colours[7]).all()
    distance = np.linalg.norm(colours[:, None] - colours, axis=-1) + 999 * np.eye(200)
    assert distance[:12, :12].min() > 45
    assert distance[:64, :64].min() > 15


def test_errors_go_from_green_to_red():
    truth = np.array([[100.0, 100], [300, 300]])
    picture = draw_errors(GREY, truth + np.array([[0, 0], [40, 0]]), truth)
    assert picture[300, 340].tolist() == [255, 0, 0]
    assert picture[97:104, 93:108].reshape(-1, 3).tolist().count([0, 255, 0]) > 3


@pytest.mark.parametrize(
    ('xy', 'visible', 'ids', 'message'),
    [
        ((2, 3, 2), (2, 4), 3, 'visible'),
        ((2, 3, 2), (2, 3), 4, '3 tracks but ids'),
        ((2, 3), (2, 3), 3, r'\(T, N, 2\)'),
    ],
)
def test_arrays_that_do_not_belong_together(xy, visible, ids, message):
    with pytest.raises(ValueError, match=message):
        draw_tracks(GREY, np.zeros(xy), np.zeros(visible, bool), np.arange(ids))


def test_a_title_stands_in_the_corner_only():
    picture = titled(GREY, 'camel')
    changed = (picture != GREY).any(2)
    assert changed[:25, :40].any() and not changed[60:].any() and not changed[:, 200:].any()
    assert picture[:25, :60].max() > 200 and (GREY == 128).all()


def test_contact_sheet_places_every_frame():
    frames = [np.full((20, 30, 3), 40 * (i + 1), np.uint8) for i in range(5)]
    sheet = contact_sheet(frames, columns=3)
    assert {40, 80, 120, 160, 200} <= set(np.unique(sheet))
    assert sheet.shape[0] > 2 * 20 and sheet.shape[1] > 3 * 30
    with pytest.raises(ValueError, match='at least one'):
        contact_sheet([])
    with pytest.raises(ValueError, match='different sizes'):
        contact_sheet([GREY, GREY[:100]])


@pytest.fixture(params=['libx264', 'libopenh264', 'libvpx-vp9', 'OpenCV'])
def encoder(request, monkeypatch) -> str:
    """The only one that there is; returns its codec."""
    if request.param == 'OpenCV':
        monkeypatch.setitem(sys.modules, 'av', None)
        return 'mpeg4'
    av = pytest.importorskip('av', reason='the extra video')
    if request.param not in av.codecs_available:
        pytest.skip(f'this PyAV has no {request.param}')
    encoders = visualise._ENCODERS
    monkeypatch.setattr(visualise, '_ENCODERS', {request.param: encoders[request.param]})
    return encoders[request.param][0]


@pytest.mark.parametrize('size', [(120, 160), (121, 161)])
def test_a_video_comes_back(tmp_path, encoder, size):
    path = tmp_path / 'out.mp4'
    frames = [np.full((*size, 3), (200, 20 * i, 50), np.uint8) for i in range(8)]
    assert write_video(path, iter(frames), 29.97) == encoder
    video = cv2.VideoCapture(str(path))
    fourcc = int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, 'little')
    assert fourcc == {'h264': b'h264', 'vp9': b'VP90', 'mpeg4': b'FMP4'}[encoder]
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(29.97, abs=1e-3)
    back = [video.read()[1][..., ::-1] for _ in range(8)]
    assert not video.read()[0]
    wide = size if encoder == 'vp9' else (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert back[0].shape == (*wide, 3)  # nothing is cut off
    shown = np.stack(back)[:, : size[0], : size[1]].astype(int)
    assert np.abs(shown - np.stack(frames)).max() < 12
    assert [file.name for file in tmp_path.iterdir()] == ['out.mp4']
    if encoder != 'mpeg4':
        data = path.read_bytes()
        assert data.index(b'moov') < data.index(b'mdat')  # plays while it loads


def test_a_missing_encoder_falls_back_to_the_next(tmp_path, monkeypatch):
    pytest.importorskip('av', reason='the extra video')
    encoders = {'none': ('h264', {}), **visualise._ENCODERS}
    monkeypatch.setattr(visualise, '_ENCODERS', encoders)
    assert write_video(tmp_path / 'a.mp4', [GREY], 10) in ('h264', 'vp9')
    monkeypatch.setattr(visualise, '_ENCODERS', {'none': ('h264', {})})
    assert write_video(tmp_path / 'b.mp4', [GREY], 10) == 'mpeg4'


@pytest.mark.parametrize(
    ('name', 'frames', 'error', 'message'),
    [
        ('a.mp4', [], ValueError, 'no frames'),
        ('a.avi', [GREY], ValueError, 'as .mp4'),
        ('missing/a.mp4', [GREY], OSError, 'no folder'),
        ('a.mp4', [GREY, GREY[:100]], ValueError, 'different sizes'),
        ('a.mp4', [GREY.astype(float)], ValueError, 'uint8'),
    ],
)
def test_a_video_that_cannot_be_written_says_why(tmp_path, name, frames, error, message):
    with pytest.raises(error, match=message):
        write_video(tmp_path / name, frames, 10)
    assert not list(tmp_path.iterdir())


def person(shift=0.0):
    """A standing person of COCO's 17 keypoints, facing us: xy (17, 2) px."""
    x = [0, 3, -3, 6, -6, 20, -20, 26, -26, 28, -28, 12, -12, 13, -13, 14, -14]
    y = [0, -3, -3, -2, -2, 20, 20, 45, 45, 70, 70, 75, 75, 110, 110, 145, 145]
    return 4 * np.stack([np.array(x) + 80.0 + shift, np.array(y) + 30.0], 1)


def shade(picture, xy):
    """The colour at a place."""
    x, y = np.round(xy).astype(int)
    return picture[y, x].astype(int)


def test_a_pose_has_limbs_in_the_colours_of_its_sides():
    frame, xy = np.zeros((800, 640, 3), np.uint8), person()
    visible, keypoint, person_of = np.ones(17, bool), np.arange(17), np.zeros(17, int)
    picture = draw_pose(frame, xy, visible, keypoint, person_of)
    assert not frame.any()
    for limb, colour in (
        (('left_elbow', 'left_wrist'), LEFT_COLOUR),
        (('right_hip', 'right_knee'), RIGHT_COLOUR),
        (('left_hip', 'right_hip'), MIDDLE_COLOUR),
    ):
        middle = xy[[NUMBER[name] for name in limb]].mean(0)
        assert np.abs(shade(picture, middle) - colour).max() < 40
    assert np.abs(shade(picture, xy[NUMBER['left_knee']]) - LEFT_COLOUR).max() < 5
    # Nothing joins knee and knee.
    assert not shade(picture, xy[[NUMBER['left_knee'], NUMBER['right_knee']]].mean(0)).any()


def test_hidden_keypoints_are_hollow_and_missing_ones_are_not_drawn():
    frame, xy = np.zeros((800, 640, 3), np.uint8), person()
    visible, everyone = np.ones(17, bool), np.zeros(17, int)
    ankle, knee, wrist = (NUMBER[f'left_{n}'] for n in ('ankle', 'knee', 'wrist'))
    visible[ankle] = False
    xy[wrist] = np.nan
    picture = draw_pose(frame, xy, visible, np.arange(17), everyone)
    full = draw_pose(frame, xy, np.ones(17, bool), np.arange(17), everyone)
    # Below the ankle's middle, where no limb ends, a ring has a hole.
    below = xy[ankle] + [0, 2]
    assert not shade(picture, below).any() and shade(full, below).any()
    assert not picture[380:420, 416:448].any()
    shin = xy[[ankle, knee]].mean(0).round().astype(int)
    across = slice(shin[0] - 20, shin[0] + 21)
    width = [(p[shin[1], across].max(-1) > 60).sum() for p in (picture, full)]
    assert 0 < width[0] < width[1]  # thin where an end is hidden


def test_limbs_join_one_person_and_plain_points_are_left_out():
    frame = np.zeros((800, 1280, 3), np.uint8)
    xy = np.concatenate([person(), person(140.0)])
    keypoint, visible = np.tile(np.arange(17), 2), np.ones(34, bool)
    two = draw_pose(frame, xy, visible, keypoint, np.repeat([3, 8], 17))
    alone = draw_pose(frame, xy[:17], visible[:17], keypoint[:17], np.full(17, 3))
    assert np.array_equal(two[:, :560], alone[:, :560]) and two[:, 720:].any()
    assert not two[:, 460:740].any()
    assert not draw_pose(frame, xy, visible, np.full(34, -1), np.zeros(34)).any()


def test_a_pose_that_is_none_is_refused():
    frame, xy = np.zeros((800, 640, 3), np.uint8), person()
    ones = np.ones(17)
    with pytest.raises(ValueError, match='17 is no keypoint: they go from 0, nose, to 16'):
        draw_pose(frame, xy, ones, np.arange(1, 18), ones)
    with pytest.raises(ValueError, match='17 points, but keypoint numbers of shape'):
        draw_pose(frame, xy, ones, np.arange(5), ones)
    with pytest.raises(ValueError, match='visible and instance'):
        draw_pose(frame, xy, ones[:3], np.arange(17), ones)


@pytest.mark.parametrize('fps', [0.01, 14.985, 59.94006, 89.917, 119.88, 123.4567, 999.9])
def test_any_rate_is_written_as_near_as_the_codec_has_it(tmp_path, encoder, fps):
    """89.917 is 89917 / 1000, and MPEG-4 has 16 bits for it."""
    path = tmp_path / 'out.mp4'
    write_video(path, [GREY[:64, :64]] * 3, fps)
    assert cv2.VideoCapture(str(path)).read()[0]
    if fps > 1 and encoder == 'mpeg4':
        found = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
        assert found == pytest.approx(fps, rel=1e-4)


@pytest.mark.parametrize('name', ['2024-05-01T10:15:30.mp4', "bob's clip.mp4", 'a%03d.mp4'])
def test_any_name_is_written(tmp_path, monkeypatch, encoder, name):
    monkeypatch.chdir(tmp_path)
    write_video(name, [GREY[:64, :64]] * 3, 10)
    assert [file.name for file in tmp_path.iterdir()] == [name]
