import subprocess
import sys

import cv2
import numpy as np
import pytest

from cotracker_ros.demo.clip import FRAMES, GENTLE, HARD, SIZE, Clip
from cotracker_ros.demo.video import VideoError, open_video

CLIP = Clip(HARD)


def test_truth_follows_the_picture():
    """Colours around a point stay those of its query frame wherever it is said to be seen."""
    rng = np.random.default_rng(3)
    xy = rng.uniform((10, 10), (SIZE[1] - 10, SIZE[0] - 10), (60, 2))
    start, later = 30, 75
    smooth = {t: cv2.GaussianBlur(CLIP.frame(t), (0, 0), 3).astype(int) for t in (start, later)}
    tracks, visible = CLIP.truth(xy, start)
    np.testing.assert_allclose(tracks[start], xy, atol=1e-9)
    assert visible[start].all()
    assert 0.2 < visible.mean() < 0.98  # the clip does hide points
    seen = (
        visible[later]
        & (tracks[later] > 8).all(1)
        & (tracks[later] < np.array(SIZE[::-1]) - 8).all(1)
    )
    at = np.round(tracks[later, seen]).astype(int)
    before = np.round(xy[seen]).astype(int)
    difference = np.abs(
        smooth[later][at[:, 1], at[:, 0]] - smooth[start][before[:, 1], before[:, 0]]
    )
    assert np.median(difference.mean(1)) < 4
    unmoved = np.abs(
        smooth[later][before[:, 1], before[:, 0]] - smooth[start][before[:, 1], before[:, 0]]
    )
    assert np.median(unmoved.mean(1)) > 10


def test_the_clip_for_a_first_look_moves_and_hides_little():
    xy = np.random.default_rng(3).uniform((10, 10), (SIZE[1] - 10, SIZE[0] - 10), (60, 2))
    (gentle, seen), (hard, _) = (Clip(strength).truth(xy, 0) for strength in (GENTLE, HARD))
    assert seen.mean() > 0.9
    steps = [np.abs(np.diff(tracks, axis=0)).max() for tracks in (gentle, hard)]
    assert 0.5 < steps[0] < 0.4 * steps[1]


def test_rendered_clip_is_the_default():
    video = open_video(None)
    assert (video.count, video.fps) == (FRAMES, 30)
    frame = next(video.frames)
    assert frame.shape == (*SIZE, 3) and frame.dtype == np.uint8


def pictures(folder, sizes):
    for number, (height, width) in enumerate(sizes):
        picture = np.full((height, width, 3), number, np.uint8)
        cv2.imwrite(str(folder / f'{number:03}.png'), picture)


def test_folder_of_images(tmp_path):
    pictures(tmp_path, [(20, 30)] * 3)
    (tmp_path / 'notes.txt').write_text('no image')
    video = open_video(str(tmp_path), 25)
    assert (video.count, video.fps) == (3, 25)
    assert [frame[0, 0, 0] for frame in video.frames] == [0, 1, 2]


def test_video_file(tmp_path):
    file = str(tmp_path / 'clip.avi')
    writer = cv2.VideoWriter(file, cv2.VideoWriter.fourcc(*'MJPG'), 12, (64, 48))
    for _ in range(5):
        writer.write(np.full((48, 64, 3), (200, 100, 0), np.uint8))
    writer.release()
    video = open_video(file)
    frames = list(video.frames)
    assert (video.fps, video.count, len(frames)) == (12, 5, 5)
    assert np.abs(frames[0].astype(int) - (0, 100, 200)).max() < 12  # RGB


def test_videos_that_cannot_be_read(tmp_path):
    with pytest.raises(VideoError, match=r'nothing\.mp4: no such file'):
        open_video(str(tmp_path / 'nothing.mp4'))
    with pytest.raises(VideoError, match='no images in this folder'):
        open_video(str(tmp_path))
    text = tmp_path / 'text.mp4'
    text.write_text('not a video')
    with pytest.raises(VideoError, match=r'text\.mp4: OpenCV cannot open it'):
        open_video(str(text))
    pictures(tmp_path, [(20, 30), (20, 31)])
    with pytest.raises(VideoError, match=r'001\.png has 31 x 20 pixels, 000\.png has 30 x 20'):
        list(open_video(str(tmp_path)).frames)
    (tmp_path / '000.png').write_bytes(b'broken')
    with pytest.raises(VideoError, match=r'000\.png: OpenCV cannot read'):
        list(open_video(str(tmp_path)).frames)


def test_errors_of_perfect_and_of_still_tracks():
    pytest.importorskip('rclpy')
    from cotracker_ros.demo.run import known_motion_errors
    from cotracker_ros.streaming import QUERY_FRAME, VISIBLE

    xy = np.array([[100.0, 100], [320, 240], [560, 420]])
    truth, seen = Clip().truth(xy, 4)
    flags = np.where(seen, VISIBLE, 0)[4:60].astype(np.uint32)
    flags[0] |= QUERY_FRAME
    stamps = np.arange(56) * 10
    table = {'stamps': stamps, 'ids': np.arange(3), 'xy': truth[4:60], 'flags': flags}
    sent = [-1, -2, -3, -4, *stamps.tolist()]
    errors = known_motion_errors(table, sent)
    assert errors['median'] < 1e-6 and errors['within3'] == errors['visibility'] == 1
    table['xy'] = np.repeat(xy[None], 56, 0)
    errors = known_motion_errors(table, sent)
    assert errors['median'] == pytest.approx(errors['still']) and errors['still'] > 1


def test_words_tell_what_happened_to_the_images():
    pytest.importorskip('rclpy')
    from cotracker_ros.demo.run import outcome_words, pace_words

    assert (
        outcome_words(180, 12.1, {'tracks': 180}) == 'All 180 images were tracked, 12.1 a second.'
    )
    busy = outcome_words(180, 30.0, {'tracks': 77})
    assert busy.startswith('77 of 180 images were tracked. The others came while')
    assert busy.endswith('they came 30.0 a second, and it kept 12.8.')
    assert 'takes 50 ms' in pace_words(30, 14, 0.05) and '--rate 30' in pace_words(30, 14, 0.05)
    assert 'faster than it can follow, instead of 30' in pace_words(30, 2, 0.9)
    assert pace_words(30, 30, 0.01).endswith('played at its own 30 frames/s')


def run_demo(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'cotracker_ros.demo', *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1000)


def test_demo_runs_over_ros(tmp_path):
    pytest.importorskip('rclpy')
    done = run_demo('--output', tmp_path, '--seconds', 4, '--rate', 5)
    assert done.returncode == 0, done.stderr
    outcome, errors, figures, *_ = done.stdout.splitlines()
    assert outcome.startswith('All 20 images were tracked, 5.0') or ' of 20 images were' in outcome
    assert errors.startswith('Half of all points are within ')
    assert ' of 49.0 points visible' in figures
    assert cv2.imread(str(tmp_path / 'overlay.png')).shape[1] > 1000
    overlay = open_video(str(tmp_path / 'overlay.mp4'))
    assert next(overlay.frames).shape == (*SIZE, 3)


def test_a_video_is_played_at_the_pace_of_the_machine(tmp_path):
    pytest.importorskip('rclpy')
    folder = tmp_path / 'pictures'
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number in range(6):
        cv2.imwrite(str(folder / f'{number}.png'), rng.integers(0, 255, (48, 64, 3), np.uint8))
    done = run_demo('--output', tmp_path / 'out', '--video', folder, '--grid', 2)
    assert done.returncode == 0, done.stderr
    pace, outcome, *_ = done.stdout.splitlines()
    assert pace.startswith('one step of the model takes ') and ' frames/s' in pace
    assert ' images were tracked' in outcome
    overlay = cv2.VideoCapture(str(tmp_path / 'out/overlay.mp4'))
    # As long as the six pictures are at 30 a second, however slowly they were played.
    assert overlay.get(cv2.CAP_PROP_FRAME_COUNT) / overlay.get(cv2.CAP_PROP_FPS) < 0.6


def test_demo_says_what_is_wrong(tmp_path):
    pytest.importorskip('rclpy')
    done = run_demo('--output', tmp_path, '--video', tmp_path / 'nothing.mp4')
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.strip() == f'demo: {tmp_path}/nothing.mp4: no such file, folder or device'
    done = run_demo('--output', tmp_path, '--model', 'nothing', '--seconds', 1)
    assert done.returncode == 1 and "no model 'nothing'" in done.stderr
    done = run_demo('--output', tmp_path, '--grid', 200)
    assert done.returncode == 1 and done.stderr == 'demo: --grid must be 1 to 128, not 200\n'
    pictures(tmp_path, [(48, 64), (48, 60)])
    done = run_demo('--output', tmp_path, '--video', tmp_path)
    assert done.returncode == 1 and '60 x 48 pixels' in done.stderr
