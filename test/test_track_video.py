"""Tracking a video file: queries in, overlay, npz and csv out, one message for what is wrong."""

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest

from cotracker_ros import engines, track_video
from cotracker_ros.engines.metadata import Metadata
from cotracker_ros.points import grid
from cotracker_ros.streaming import StreamingTracker
from cotracker_ros.visualise import write_video


class Standing(engines.Engine):
    """Points stay where they were put; those in the right half are not seen after that."""

    name, device, precision = 'standing', 'none', 'f32'

    def __init__(self, slots):
        metadata = Metadata(1, 'm', '', 48, 64, 8, 1, 'fp32', '', '', '')
        super().__init__(metadata, 1, slots, 0)
        self.reset()

    def _step(self, inputs):
        query = inputs['query'][..., None]
        self.xy = np.where(query, inputs['query_xy'], self.xy)
        live = inputs['live'].astype(np.float32)
        seen = live * (inputs['query'] | (self.xy[..., 0] < 32))
        return {'xy': self.xy * live[..., None], 'visibility': seen, 'confidence': live}

    def reset(self):
        self.xy = np.zeros((1, self.slots, 2), np.float32)


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """Return the path of a video of ten frames, 128 x 96, and stand the engine in."""
    tracker = lambda model, count, *_: StreamingTracker(Standing(count))  # noqa: E731
    monkeypatch.setattr(track_video, 'StreamingTracker', tracker)
    path = tmp_path / 'clip.mp4'
    write_video(path, (np.full((96, 128, 3), 20 * t, np.uint8) for t in range(10)), 25)
    return path


def run(*arguments):
    return track_video.main([str(argument) for argument in arguments])


def test_a_grid_goes_through_and_everything_is_written(clip, tmp_path, capsys):
    output = tmp_path / 'tracks.mp4'
    assert run(clip, '--grid', 4, '--output', output) == 0
    assert '10 frames, 16 points' in capsys.readouterr().out
    saved = np.load(tmp_path / 'tracks.npz')
    assert saved['fps'] == 25 and saved['ids'].tolist() == list(range(1, 17))
    np.testing.assert_allclose(saved['stamps'], np.arange(10) / 25)
    expected = grid(4, (96, 128))
    np.testing.assert_allclose(saved['xy'], np.repeat(expected[None], 10, 0), atol=1e-4)
    assert (saved['visible'][0]).all()
    assert (saved['visible'][1:] == (expected[:, 0] < 64)).all()
    with (tmp_path / 'tracks.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 160 and tuple(rows[0]) == track_video.CSV_COLUMNS
    row = next(r for r in rows if r['frame'] == '3' and r['id'] == '4')
    assert row['time'] == '0.120000' and row['visible'] == '0'
    assert float(row['x']) == pytest.approx(expected[3, 0], abs=1e-3)
    video = cv2.VideoCapture(str(output))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 10 and video.get(cv2.CAP_PROP_FPS) == 25
    there, frame = video.read()
    x, y = expected[0].round().astype(int)
    assert there and np.abs(frame[y, x].astype(int) - frame[y + 12, x + 12]).max() > 40


def test_points_start_in_the_frames_they_are_asked_for(clip, tmp_path):
    points = tmp_path / 'points.csv'
    points.write_text('frame,x,y\n# a comment\n\n4,10,20\n0,30.5,40.25\n')
    assert run(clip, '--points', points, '--output', tmp_path / 't.mp4') == 0
    saved = np.load(tmp_path / 't.npz')
    np.testing.assert_allclose(saved['xy'][0, 0], [30.5, 40.25], atol=1e-4)
    assert np.isnan(saved['xy'][:4, 1]).all()
    np.testing.assert_allclose(saved['xy'][4:, 1], np.tile([10, 20], (6, 1)), atol=1e-4)


class Drifting(Standing):
    """Points move right with the brightness of the image: 1 px of the model for 10 levels."""

    def _step(self, inputs):
        level = float(inputs['image'].mean()) / 10
        if inputs['query'].any():
            self.level = np.where(inputs['query'], level, self.level)
        outputs = super()._step(inputs)
        moved = outputs['xy'].copy()
        moved[..., 0] += level - self.level
        return {**outputs, 'xy': moved, 'visibility': outputs['confidence']}

    def reset(self):
        super().reset()
        self.level = np.zeros((1, self.slots))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder of twelve images, 128 x 96, ten levels brighter each: 2 px a frame."""
    tracker = lambda model, count, *_: StreamingTracker(Drifting(count))  # noqa: E731
    monkeypatch.setattr(track_video, 'StreamingTracker', tracker)
    monkeypatch.setattr(track_video, 'HELD_BYTES', 5 * 128 * 96 * 3)  # five frames at a time
    path = tmp_path / 'frames'
    path.mkdir()
    for t in range(12):
        cv2.imwrite(str(path / f'{t:02d}.png'), np.full((96, 128, 3), 10 * t, np.uint8))
    return path


def test_points_are_tracked_back_to_the_beginning(folder, tmp_path):
    (tmp_path / 'points.csv').write_text('7,60,20\n0,30,40\n11,90,50\n')
    words = ('--points', tmp_path / 'points.csv', '--backward', '--output', tmp_path / 't.mp4')
    assert run(folder, *words) == 0
    saved = np.load(tmp_path / 't.npz')
    t = np.arange(12)
    # scaled to the model and back: 1 px of the model is 127 / 63 px of the image
    for n, (frame, x, y) in enumerate([(0, 30, 40), (7, 60, 20), (11, 90, 50)]):
        expected = x + (t - frame) * 128 / 64
        np.testing.assert_allclose(saved['xy'][:, n, 0], expected, atol=0.2)
        np.testing.assert_allclose(saved['xy'][:, n, 1], y, atol=1e-3)
    assert saved['ids'].tolist() == [1, 2, 3] and saved['visible'].all()
    np.testing.assert_allclose(saved['stamps'], t / 30)


def test_a_grid_in_the_middle_goes_both_ways(folder, tmp_path):
    words = ('--grid', 2, '--grid-frame', 6, '--output', tmp_path / 't.mp4')
    assert run(folder, *words) == 0
    forwards = dict(np.load(tmp_path / 't.npz'))  # read before it is written again
    assert run(folder, *words, '--backward') == 0
    both = np.load(tmp_path / 't.npz')
    assert np.isnan(forwards['xy'][:6]).all() and np.isfinite(both['xy']).all()
    np.testing.assert_array_equal(both['xy'][6:], forwards['xy'][6:])
    start = grid(2, (96, 128))
    np.testing.assert_allclose(both['xy'][6], start, atol=1e-4)
    np.testing.assert_allclose(both['xy'][0, :, 0], start[:, 0] - 12, atol=0.2)


def test_a_video_backwards_in_parts_is_the_video_reversed(folder):
    clip = lambda: track_video.open_video(str(folder))  # noqa: E731
    for count in (12, 10, 5, 1):
        levels = [frame[0, 0, 0] // 10 for frame in track_video.reversed_frames(clip, count)]
        assert levels == list(range(count))[::-1]
    with pytest.raises(ValueError, match='frame 12, but the video has 12 frames'):
        list(track_video.reversed_frames(clip, 13))


def test_a_file_that_breaks_off_is_told(clip, tmp_path, monkeypatch, capsys):
    opened = track_video.open_video
    longer = lambda *words: replace(opened(*words), count=100)  # noqa: E731
    monkeypatch.setattr(track_video, 'open_video', longer)
    assert run(clip, '--grid', 2, '--output', tmp_path / 't.mp4') == 0
    assert '10 frames (of 100: the file is cut short)' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ('5,9999,3', 'point 9999, 3 of frame 5 is outside the 128 x 96 image'),
        ('12,3,3', 'frame 12, but the video has 10 frames'),
        ('1;2;x', "points.csv:1: '1;2;x' is not frame,x,y"),
        ('-1,2,3', 'a frame is 0, 1, 2'),
        ('1,nan,3', 'x and y numbers'),
        ('# nothing', 'no points in it'),
    ],
)
def test_wrong_points_are_named_and_nothing_is_left_behind(clip, tmp_path, capsys, lines, message):
    points = tmp_path / 'points.csv'
    points.write_text(lines)
    assert run(clip, '--points', points, '--output', tmp_path / 't.mp4') == 1
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {'clip.mp4', 'points.csv'}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.mp4'], 'no such file'),
        (['{clip}', '--output', 'none/t.mp4'], 'no folder'),
        (['{clip}', '--output', 't.avi'], 'as .mp4'),
        (['{clip}', '--topic', '/camera'], '--topic is for recordings'),
        (['{clip}', '--grid', '0'], '--grid must be at least 1'),
        (['{clip}', '--grid-frame', '10'], 'frame 10, but the video has 10 frames'),
        (['{clip}', '--grid-frame', '10', '--backward'], 'but the video has 10 frames'),
        (['broken.mp4'], 'broken.mp4'),
    ],
)
def test_one_clear_message(clip, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(clip.parent)
    (clip.parent / 'broken.mp4').write_bytes(clip.read_bytes()[:200])
    assert run(*(argument.format(clip=clip) for argument in arguments)) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path, capsys):
    (tmp_path / 'frames').mkdir()
    cv2.imwrite(str(tmp_path / 'frames' / '0.png'), np.zeros((96, 128, 3), np.uint8))
    assert run(tmp_path / 'frames', '--model', tmp_path / 'none.onnx') == 1
    assert 'none.onnx' in capsys.readouterr().err


def test_a_pose_is_tracked_and_drawn_as_a_skeleton(clip, tmp_path, capsys):
    pose, output = tmp_path / 'pose.csv', tmp_path / 'pose.mp4'
    lines = ['frame,x,y,keypoint,person', '2,50,70,left_hip,1', '0,30,20,5,1', '0,90,20,-1,0']
    pose.write_text('\n'.join(lines))
    assert run(clip, '--pose', pose, '--output', output) == 0
    saved = np.load(tmp_path / 'pose.npz')
    np.testing.assert_allclose(saved['xy'][3], [[30, 20], [90, 20], [50, 70]], atol=1e-4)
    video = cv2.VideoCapture(str(output))
    frames = [video.read()[1].astype(int) for _ in range(10)]
    middle = [frame[45, 40] - frame[45, 80] for frame in frames]  # of shoulder and hip
    assert np.abs(middle[1]).max() < 20 < np.abs(middle[4]).max()
    assert middle[4][2] - middle[4][0] > 40  # orange: the person's left

    for line, message in (
        ('0,30,20,17,1', '17 is no keypoint: they go from 0, nose, to 16, right_ankle'),
        ('0,30,20,tail,1', 'is not frame,x,y,keypoint,person: tail is none of nose, left_eye'),
        ('?,30,20,nose,1', 'is not frame,x,y,keypoint,person\n'),
        ('0,30,20,5', 'is not frame,x,y,keypoint,person'),
        ('0,30,20,5,1', 'left_shoulder of person 1 comes twice'),
    ):
        pose.write_text('\n'.join([*lines, line]))
        assert run(clip, '--pose', pose, '--output', output) == 1
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and f'{pose}:5' in error and message in error
