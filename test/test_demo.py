import subprocess
import sys

import cv2
import numpy as np
import pytest

from cotracker_ros.demo.clip import FRAMES, SIZE, Clip
from cotracker_ros.demo.video import VideoError, open_video

CLIP = Clip()


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
    truth, seen = CLIP.truth(xy, 4)
    flags = np.where(seen, VISIBLE, 0)[4:60].astype(np.uint32)
    flags[0] |= QUERY_FRAME
    stamps = np.arange(56) * 10
    table = {'stamps': stamps, 'ids': np.arange(3), 'xy': truth[4:60], 'flags': flags}
    sent = [-1, -2, -3, -4, *stamps.tolist()]
    errors = known_motion_errors(table, sent)
    assert errors['mean'] < 1e-6 and errors['within3'] == errors['visibility'] == 1
    table['xy'] = np.repeat(xy[None], 56, 0)
    errors = known_motion_errors(table, sent)
    assert errors['median'] == pytest.approx(errors['still']) and errors['still'] > 5


def run_demo(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'cotracker_ros.demo', *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_demo_runs_over_ros(tmp_path):
    pytest.importorskip('rclpy')
    done = run_demo('--output', tmp_path, '--seconds', 4, '--rate', 5)
    assert done.returncode == 0, done.stderr
    figures, errors, _ = done.stdout.splitlines()
    assert figures.startswith('20 frames sent, ') and ' of 49.0 points visible' in figures
    assert errors.startswith('error against the known motion: median ')
    assert cv2.imread(str(tmp_path / 'overlay.png')).shape[1] > 1000
    overlay = open_video(str(tmp_path / 'overlay.mp4'))
    assert next(overlay.frames).shape == (*SIZE, 3)


def test_demo_says_what_is_wrong(tmp_path):
    pytest.importorskip('rclpy')
    done = run_demo('--output', tmp_path, '--video', tmp_path / 'nothing.mp4')
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.strip() == f'demo: {tmp_path}/nothing.mp4: no such file, folder or device'
    done = run_demo('--output', tmp_path, '--model', 'nothing', '--seconds', 1)
    assert done.returncode == 1 and "no model 'nothing'" in done.stderr
    pictures(tmp_path, [(48, 64), (48, 60)])
    done = run_demo('--output', tmp_path, '--video', tmp_path)
    assert done.returncode == 1 and '60 x 48 pixels' in done.stderr
