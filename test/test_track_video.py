"""Tracking a video file: queries in, overlay, npz and csv out, one message for what is wrong."""

import csv

import cv2
import numpy as np
import pytest

from cotracker_ros import engines, track_video
from cotracker_ros.engines.metadata import Metadata
from cotracker_ros.streaming import StreamingTracker
from cotracker_ros.visualise import write_video


class Standing(engines.Engine):
    """Points stay where they were put; those in the right half are not seen."""

    name, device, precision = 'standing', 'none', 'f32'

    def __init__(self, slots):
        metadata = Metadata(1, 'm', '', 48, 64, 8, 1, 'fp32', '', '', '')
        super().__init__(metadata, 1, slots, 0)
        self.reset()

    def _step(self, inputs):
        query = inputs['query'][..., None]
        self.xy = np.where(query, inputs['query_xy'], self.xy)
        live = inputs['live'].astype(np.float32)
        seen = live * (self.xy[..., 0] < 32)
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
    expected = track_video.grid(4, (96, 128))
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
def test_wrong_points_are_named_and_nothing_is_left_behind(
    clip, tmp_path, capsys, lines, message
):
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
        (['{clip}', '--grid', '0'], '--grid must be at least 1'),
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
