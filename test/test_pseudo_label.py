"""Pseudo-labels: what is labelled, what is believed, and what survives accidents."""

import dataclasses
import hashlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

from cotracker_ros.visualise import write_video
from train import pseudo_label, teachers, trackers
from train.data.clip import DataError
from train.data.readers.pseudo_labels import PseudoLabels, pack, unpack
from train.data.storage import LEASE, Busy, Folder, Lease, is_dead
from train.data.videos import VideoReader, find_videos
from train.teachers import Labels, Teacher, consensus, sift_queries, track_queries

ROOT = Path(__file__).parents[1]
VELOCITY = 2, -1  # px per frame
SMALL = [
    '--frames',
    '8',
    '--min-frames',
    '4',
    '--points',
    '40',
    '--min-tracks',
    '10',
    '--size',
    '128',
]
CLASSICAL = ['--teachers', 'lucas-kanade', 'dis-flow']


def texture(frames=8, size=(96, 128), seed=0):
    """A smooth texture that moves by VELOCITY, (T, H, W, 3)."""
    height, width = size
    noise = np.random.default_rng(seed).integers(0, 256, (height + frames, width + 2 * frames))
    grey = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.5)
    grey = np.clip(128 + 4 * (grey - 128), 0, 255).astype(np.uint8)
    (dx, dy), steps = VELOCITY, range(frames)
    corners = [((frames - t) * dx, -t * dy) for t in steps]
    return np.stack([np.repeat(grey[y : y + height, x : x + width, None], 3, 2)
                     for x, y in corners])  # fmt: skip


def write_pictures(folder, video):
    folder.mkdir(parents=True)
    for t, frame in enumerate(video):
        cv2.imwrite(str(folder / f'{t:03d}.png'), frame[..., ::-1])
    return folder


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / 'videos'
    for seed in range(3):
        write_pictures(folder / f'texture{seed}', texture(seed=seed))
    return folder


def run(*words):
    return pseudo_label.main([*map(str, words), *SMALL, *CLASSICAL])


def labels_of(folder):
    """The bytes of everything that a run leaves, but for its notes on videos (with times)."""
    folder = Path(folder)
    files = [path for path in folder.rglob('*') if path.is_file()]
    assert LEASE not in [path.name for path in files]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if 'videos' not in path.relative_to(folder).parts
    }


def test_labels_follow_a_known_motion(videos, tmp_path):
    assert run(videos, '--output', tmp_path / 'out') == 0
    clips = list(PseudoLabels(tmp_path / 'out'))
    assert len(clips) == 3 and {clip.teacher for clip in clips} <= {'lucas-kanade', 'dis-flow'}
    for clip in clips:
        t = np.arange(8)[:, None, None]
        truth = clip.queries[:, 1:] + (t - clip.queries[:, :1]) * np.array(VELOCITY)
        error = np.linalg.norm(clip.tracks - truth, axis=-1)
        assert np.percentile(error[clip.visible], 95) < 0.6
        late = t[..., 0] >= clip.queries[:, 0]
        assert clip.visible[late].mean() > 0.7 and not clip.visible[~late].any()
        assert not clip.weight[~late].any() and clip.weight[clip.visible].all()
        # Pictures are what was labelled, but for JPEG.
        seed = int(clip.about['video'][-1])
        assert np.abs(clip.video.astype(float) - texture(seed=seed)).mean() < 4


def test_queries_are_keypoints_of_few_frames_more_of_them_early():
    video, times = texture(40), []
    for seed in range(20):
        queries = sift_queries(video, 60, 4, np.random.default_rng(seed))
        assert len(np.unique(queries, axis=0)) == 60
        times.append(np.unique(queries[:, 0]))
        assert len(times[-1]) == 4
    assert 8 < np.mean(times) < 16  # evenly drawn: 19.5
    with pytest.raises(teachers.TooFewPoints):
        sift_queries(np.full_like(video, 90), 60, 4, np.random.default_rng(0))


def test_a_share_of_the_queries_is_taken_where_something_moves():
    video = np.repeat(texture(1), 12, 0)
    video[:, 30:60, 40:70] = texture(12, seed=1)[:, 30:60, 40:70]  # a tenth of the picture
    shares = []
    for moving_share in (0.0, 0.5):
        queries = sift_queries(video, 60, 4, np.random.default_rng(0), moving_share)
        assert len(np.unique(queries, axis=0)) == 60
        _, x, y = queries.T
        shares.append(np.mean((x > 32) & (x < 78) & (y > 22) & (y < 68)))
    assert shares[0] < 0.35 and shares[1] >= 0.5
    # Where nothing moves there are as many queries as ever.
    still = sift_queries(np.repeat(video[:1], 12, 0), 60, 4, np.random.default_rng(0), 0.5)
    assert len(still) == 60


def test_a_track_counts_only_where_the_way_back_agrees():
    def track(video, queries):  # right going forward; point 1 is lost on the way back
        speed = 1.0 if video[0, 0, 0, 0] == 0 else -1.0
        t = np.arange(len(video))[:, None] - queries[:, 0]
        xy = np.repeat(queries[None, :, 1:], len(video), 0).copy()
        xy[..., 0] += speed * np.maximum(t, 0)
        if speed < 0:
            xy[:, 1] += 3.0 * np.maximum(t[:, 1:2], 0)
        return xy, t >= 0

    video = np.zeros((6, 32, 64, 3), np.uint8)
    video += np.arange(6, dtype=np.uint8)[:, None, None, None]
    queries = np.array([[1, 10, 10], [1, 20, 10], [0, 60, 10]], np.float32)
    labels = track_queries(Teacher('fake', '', True, track), video, queries, 2.0)
    assert labels.visible[:, 0].tolist() == [False, True, True, True, True, True]
    assert not labels.visible[:, 1].any() and not labels.weight[:, 1].any()
    # Point 2 leaves the picture at x = 63.5: hidden there, and its place a guess.
    assert labels.visible[:, 2].tolist() == [True] * 4 + [False] * 2
    assert labels.weight[:, 2].tolist() == [1.0] * 6
    classical = track_queries(Teacher('fake', '', False, track), video, queries, 2.0)
    assert classical.weight[:, 2].tolist() == [1.0] * 4 + [0.0] * 2
    alone = track_queries(Teacher('fake', '', True, track), video, queries, 0.0)
    assert alone.visible[1:, 1].all()


def test_a_visible_point_must_look_as_at_its_query():
    video, t = texture(), np.arange(8)[:, None, None]
    queries = np.insert(
        np.random.default_rng(0).uniform((45, 40), (75, 60), (10, 2)), 0, 1, axis=1
    )
    truth = queries[:, 1:] + (t - 1) * np.array(VELOCITY)
    # The first half stays on the texture; what the second half is said to be on passes below it.
    said = np.where(np.arange(10)[:, None] < 5, truth, queries[:, 1:]).astype(np.float32)
    hidden = np.zeros((8, 10), bool)
    hidden[5:, 9] = True
    for tracks_hidden in (True, False):
        stand_in = Teacher('stand-in', '', tracks_hidden, lambda video, queries: (said, ~hidden))
        labels = track_queries(stand_in, video, queries, 0.0, 0.5)
        known = labels.weight > 0
        assert known[1:, :5].all() and not known[0].any()
        # Two frames on, 4 px off, nothing looks the same; what is hidden need not.
        assert known[1, 5:].all() and not known[3:, 5:9].any() and not known[3:5, 9].any()
        assert (known[5:, 9] == tracks_hidden).all()
    assert (track_queries(stand_in, video, queries, 0.0).weight[1:, :9] > 0).all()


def test_teachers_agree_by_majority():
    xy = np.zeros((3, 1, 4, 2), np.float32)
    xy[1, 0, :, 0] = 1.0
    xy[2, 0, :, 0] = [0.5, 50, 50, 50]
    seen = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool)[:, None]
    labels = consensus(
        [Labels(*x, x[1].astype(np.float32)) for x in zip(xy, seen, strict=True)], 2
    )
    assert labels.visible.tolist() == [[True, True, False, False]]
    assert labels.weight[0].tolist() == pytest.approx([1, 2 / 3, 0, 0])
    assert labels.tracks[0, :2, 0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize('scheme', ['memory', 'file'])
def test_videos_and_labels_may_be_anywhere(scheme, videos, tmp_path):
    assert run(videos, '--output', tmp_path / 'here') == 0
    if scheme == 'memory':
        system = fsspec.filesystem('memory')
        system.put(str(videos), '/videos', recursive=True)
        source, output = 'memory://videos', 'memory://labels'
    else:
        source, output = videos.as_uri(), (tmp_path / 'there').as_uri()
    try:
        assert run(source, '--output', output) == 0
        assert run(source, '--output', output) == 0  # all done before
        here, there = PseudoLabels(tmp_path / 'here'), PseudoLabels(output)
        assert here.names == there.names and there.missing() == 0
        for one, two in zip(here, there, strict=True):
            assert np.array_equal(one.tracks, two.tracks)
            assert np.array_equal(one.video, two.video)
            assert one.about['video_sha256'] == two.about['video_sha256']
    finally:
        if scheme == 'memory':
            system.rm('/videos', recursive=True)
            system.rm('/labels', recursive=True)


def test_bad_videos_are_told_and_counted_and_the_rest_goes_on(videos, tmp_path, capsys):
    (videos / 'empty.mp4').touch()
    (videos / 'text.mkv').write_text('no video at all\n' * 100)
    (videos / 'notes.txt').write_text('not even named like one')
    write_pictures(videos / 'still', texture(1))
    write_video(videos / 'one.mp4', texture(1, (100, 120), seed=8), 30)
    write_pictures(videos / 'twin', texture(seed=0))
    write_pictures(videos / 'blank', np.full((8, 96, 128, 3), 70, np.uint8))
    torn = tmp_path / 'whole.mp4'
    write_video(torn, texture(30), 30)
    (videos / 'torn.mp4').write_bytes(torn.read_bytes()[:2000])
    # OpenCV dies of a name that is not UTF-8; a pipe keeps who opens it waiting.
    with open(os.fsencode(videos) + b'/caf\xe9.mp4', 'wb') as file:
        file.write(torn.read_bytes())
    os.mkfifo(videos / 'pipe.mp4')
    assert run(videos, '--output', tmp_path / 'out') == 0
    out, wrong = capsys.readouterr()
    assert '4 unreadable' in out and '2 too short' in out and '1 there twice' in out
    assert '2 other files' in out and '4, of these 3 done, 1 skipped' in out
    assert '1 skipped: 0 keypoints' in out
    for name in ('empty.mp4', 'text.mkv', 'torn.mp4', 'caf\\udce9.mp4'):
        assert name in wrong
    assert f'too short: {videos / "still"}: 1 frames, 4 are needed' in wrong
    assert len(PseudoLabels(tmp_path / 'out')) == 3
    assert PseudoLabels(tmp_path / 'out').missing() == 0


def test_what_could_not_be_read_is_tried_again(videos, tmp_path, monkeypatch, capsys):
    from train.data import videos as reading

    opened = reading.open_video

    def failing(name):
        if name.endswith('texture1'):
            raise KeyError('no decoder, say, or no network')
        return opened(name)

    with monkeypatch.context() as change:
        change.setattr(reading, 'open_video', failing)
        pseudo_label.worker.cache_clear()
        assert run(videos, '--output', tmp_path / 'out') == 0
    told = capsys.readouterr()
    assert '2 of use, 1 unreadable' in told.out and 'texture1: ' in told.err
    pseudo_label.worker.cache_clear()
    assert run(videos, '--output', tmp_path / 'out') == 0
    assert '3 of use' in capsys.readouterr().out
    assert len(PseudoLabels(tmp_path / 'out')) == 3


def test_what_is_known_of_many_videos_is_read_at_once(videos, tmp_path, monkeypatch):
    read = Folder.read

    def alone(folder, name):
        assert not name.startswith('videos/')  # a million of them, one after the other
        return read(folder, name)

    monkeypatch.setattr(Folder, 'read', alone)
    for out in (tmp_path / 'out', 'memory://known'):
        for _ in range(2):
            assert run(videos, '--output', out, '--limit', '1') in (0, 2)
        assert run(videos, '--output', out) == 0
        assert len(PseudoLabels(out)) == 3
    fsspec.filesystem('memory').rm('/known', recursive=True)


def test_large_videos_are_shrunk_as_they_are_read(tmp_path):
    path = write_pictures(tmp_path / 'large', texture(3, (2160, 3840)))
    ((video,), _) = find_videos([str(path)])
    reader = VideoReader(512)
    assert reader.facts(video).size == (2160, 3840)
    frames = reader.clip(video, 1, 5)
    assert frames.shape == (2, 288, 512, 3)
    assert reader.clip(video, 0, 1).shape == (1, 288, 512, 3)


def test_a_teacher_that_fails_in_the_middle_costs_its_clip_alone(
    videos, tmp_path, monkeypatch, capsys
):
    work, calls = trackers.lucas_kanade, []

    def moody(video, queries):
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError('out of memory, say')
        return work(video, queries)

    words = [str(videos), *SMALL, '--teachers', 'lucas-kanade', '--output']
    out = [*words, str(tmp_path / 'out')]
    with monkeypatch.context() as change:
        change.setitem(trackers.BASELINES, 'lucas-kanade', moody)
        pseudo_label.worker.cache_clear()
        assert pseudo_label.main(out) == 2
    assert '1 failed: RuntimeError: out of memory, say' in capsys.readouterr().out
    assert len(PseudoLabels(tmp_path / 'out')) == 2 and PseudoLabels(tmp_path / 'out').missing()
    pseudo_label.worker.cache_clear()
    assert pseudo_label.main(out) == 0
    assert pseudo_label.main([*words, str(tmp_path / 'sound')]) == 0
    assert labels_of(tmp_path / 'out') == labels_of(tmp_path / 'sound')


def test_a_teacher_that_does_not_load_leaves_no_clip_to_the_others(
    videos, tmp_path, monkeypatch, capsys
):
    load, calls = pseudo_label.load_teacher, []

    def moody(name, *settings):
        calls.append(name)
        if (
            name == 'dis-flow' and calls.count(name) == 2
        ):  # the first look is that of the command itself
            raise MemoryError('no memory left, say')
        return load(name, *settings)

    monkeypatch.setattr(pseudo_label, 'load_teacher', moody)
    pseudo_label.worker.cache_clear()
    assert run(videos, '--output', tmp_path / 'out') == 2
    assert '1 failed: MemoryError: no memory left, say' in capsys.readouterr().out
    # By the command, in vain for the first clip, and once for the other two.
    assert calls == 3 * ['lucas-kanade', 'dis-flow']
    assert run(videos, '--output', tmp_path / 'out') == 0
    assert run(videos, '--output', tmp_path / 'sound') == 0
    assert labels_of(tmp_path / 'out') == labels_of(tmp_path / 'sound')


def test_positions_that_are_no_numbers_are_no_labels(videos, tmp_path, monkeypatch):
    def blind(video, queries):
        shape = len(video), len(queries)
        return np.full((*shape, 2), np.nan), np.ones(shape, bool)

    monkeypatch.setitem(trackers.BASELINES, 'lucas-kanade', blind)
    pseudo_label.worker.cache_clear()
    words = [str(videos), *SMALL, '--teachers', 'lucas-kanade', '--output', str(tmp_path / 'out')]
    assert pseudo_label.main(words) == 2
    pseudo_label.worker.cache_clear()
    with pytest.raises(DataError, match='no labelled clip'):
        PseudoLabels(tmp_path / 'out')


def command(*words):
    script = [sys.executable, str(ROOT / 'train' / 'pseudo_label.py')]
    return [*script, *map(str, words), *SMALL, *CLASSICAL]


def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(videos, tmp_path):
    out = tmp_path / 'out'
    assert run(videos, '--output', tmp_path / 'sound') == 0
    sizes = [p.stat().st_size for p in (tmp_path / 'sound').rglob('*.npz')]
    # The largest file that may be written is smaller than any clip.
    limit = f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({min(sizes) - 1},) * 2)'
    start = f'{limit}; import os, sys; os.execv(sys.argv[1], sys.argv[1:])'
    done = subprocess.run(
        [sys.executable, '-c', start, *command(videos, '--output', out)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and 'File too large' in done.stderr
    assert '3 missing' in done.stdout
    assert not list(out.rglob('*.npz')) and not list(out.rglob('.part-*'))
    # Full from the beginning: the message says where.
    start = start.replace(str(min(sizes) - 1), '10')
    words = command(videos, '--output', tmp_path / 'none')
    done = subprocess.run(
        [sys.executable, '-c', start, *words], capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 1 and str(tmp_path / 'none') in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run(videos, '--output', out) == 0
    assert labels_of(out) == labels_of(tmp_path / 'sound')


def test_a_killed_driver_is_followed_by_another(videos, tmp_path):
    out = tmp_path / 'out'
    kill = (
        'import os, signal; from train import pseudo_label; import sys; run = pseudo_label.run\n'
        'def seen(clip, outcome): os.kill(os.getpid(), signal.SIGKILL)\n'
        'pseudo_label.run = lambda *given: run(*given, on_outcome=seen)\n'
        'pseudo_label.main(sys.argv[1:])'
    )
    words = command(videos, '--output', out)[2:]
    done = subprocess.run([sys.executable, '-c', kill, *words], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (out / LEASE).exists() and len(PseudoLabels(out)) == 1
    half = out / 'clips' / '00' / '.part-of-a-killed-writer'
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes(b'PK')
    assert PseudoLabels(out).missing() == 2
    assert run(videos, '--output', out) == 0
    assert run(videos, '--output', tmp_path / 'whole') == 0
    assert labels_of(out) == labels_of(tmp_path / 'whole')


def test_two_drivers_do_not_share_a_folder(videos, tmp_path, capsys):
    out = tmp_path / 'out'
    with Lease(Folder(str(out))):
        assert run(videos, '--output', out) == 1
        assert 'another run is at work here' in capsys.readouterr().err
        with pytest.raises(Busy), Lease(Folder(str(out))):
            pass
    assert run(videos, '--output', out) == 0
    # One of another machine is dead when it has been silent for long.
    other = {'host': f'not {socket.gethostname()}', 'pid': 1, 'run': 'x', 'alive': time.time()}
    (out / LEASE).write_text(json.dumps(other))
    assert run(videos, '--output', out) == 1
    (out / LEASE).write_text(json.dumps({**other, 'alive': time.time() - 1000}))
    assert run(videos, '--output', out) == 0


def test_of_runs_that_find_a_dead_one_together_one_goes_on(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    dead = {'host': 'elsewhere', 'pid': 1, 'run': 'x', 'alive': time.time() - 1000}
    folder.write(LEASE, json.dumps(dead).encode())
    look, go, won, looks = Lease.holder, threading.Event(), [], count(1)

    def slowly(lease):
        holder = look(lease)
        go.wait(0.4 * next(looks))  # each acts on what it saw after the one before has signed
        return holder

    monkeypatch.setattr(Lease, 'holder', slowly)

    def begin():
        with suppress(Busy), Lease(folder):
            won.append(1)
            go.wait(60)

    runs = [threading.Thread(target=begin) for _ in range(3)]
    for thread in runs:
        thread.start()
    while sum(thread.is_alive() for thread in runs) > max(1, len(won)):
        time.sleep(0.01)
    assert len(won) == 1
    go.set()
    for thread in runs:
        thread.join()
    assert not (tmp_path / LEASE).exists()


def test_a_process_of_another_user_is_judged_by_its_signs_of_life(monkeypatch):
    def not_mine(pid, signal):
        raise PermissionError

    monkeypatch.setattr('os.kill', not_mine)
    holder = {'host': socket.gethostname(), 'pid': 1, 'run': 'x', 'alive': time.time()}
    assert not is_dead(holder)
    assert is_dead({**holder, 'alive': time.time() - 1000})


def test_labels_of_other_settings_are_not_mixed(videos, tmp_path, capsys):
    assert run(videos, '--output', tmp_path / 'out') == 0
    assert run(videos, '--output', tmp_path / 'out', '--quality', '50') == 1
    assert 'other settings (quality)' in capsys.readouterr().err
    assert run(videos, '--output', tmp_path / 'out', '--visibility-threshold', '2') == 1
    assert 'must lie between 0 and 1' in capsys.readouterr().err
    assert run(tmp_path / 'nowhere', '--output', tmp_path / 'out') == 1
    assert 'nothing is there' in capsys.readouterr().err


def test_teachers_that_are_none_end_the_run_before_any_work(videos, tmp_path, capsys):
    for name in ('bad.onnx', 'bad.pth'):
        (tmp_path / name).write_text('no model at all')
    out = tmp_path / 'out'
    for name, message in (
        ('nobody', "no model 'nobody'"),
        (tmp_path / 'gone.onnx', 'no such model file'),
        (tmp_path / 'bad.onnx', 'not an ONNX file'),
        (tmp_path / 'bad.pth', 'is no readable checkpoint'),
    ):
        words = [
            str(videos),
            '--output',
            str(out),
            *SMALL,
            '--teachers',
            'lucas-kanade',
            str(name),
        ]
        assert pseudo_label.main(words) == 1
        told = capsys.readouterr().err
        assert message in told and len(told.splitlines()) == 1, name
    assert not out.exists()


def test_a_long_video_gives_no_more_clips_than_asked_for(tmp_path):
    write_pictures(tmp_path / 'videos' / 'long', texture(32))
    write_pictures(tmp_path / 'videos' / 'short', texture(8, seed=1))
    out = tmp_path / 'out'
    assert run(tmp_path / 'videos', '--output', out, '--per-video', '2') == 0
    places = [(Path(c.about['video']).name, c.about['first']) for c in PseudoLabels(out)]
    assert sorted(places) == [('long', 8), ('long', 24), ('short', 0)]
    assert PseudoLabels(out).missing() == 0
    # More of them later: those that are done stay.
    assert run(tmp_path / 'videos', '--output', out) == 0
    assert run(tmp_path / 'videos', '--output', tmp_path / 'at_once') == 0
    assert labels_of(out) == labels_of(tmp_path / 'at_once')


def test_clips_may_refer_to_their_video(videos, tmp_path):
    write_video(videos / 'film.mp4', texture(20), 30)
    assert run(videos, '--output', tmp_path / 'jpeg') == 0
    assert run(videos, '--output', tmp_path / 'out', '--store', 'reference') == 0
    for one, two in zip(*map(PseudoLabels, (tmp_path / 'jpeg', tmp_path / 'out')), strict=True):
        assert np.array_equal(one.tracks, two.tracks)
        assert np.abs(one.video.astype(float) - two.video).mean() < 4
    files = sorted((videos / 'texture0').iterdir())
    files[0].write_bytes(files[1].read_bytes())
    changed = find_videos([str(videos / 'texture0')])[0][0].url
    labels = PseudoLabels(tmp_path / 'out')
    notes = [json.loads(np.load(p)['about'].tobytes()) for p in (tmp_path / 'out').rglob('*.npz')]
    bad = [n for n in labels.names if any(n.endswith(f'{a["id"]}.npz') and a['video'] == changed
                                          for a in notes)]  # fmt: skip
    from train.data.readers import pseudo_labels

    pseudo_labels._hash.cache_clear()
    with pytest.raises(DataError, match='not the video that was labelled'):
        labels[labels.names.index(bad[0])]


def test_half_a_file_is_never_taken_for_a_clip(videos, tmp_path):
    assert run(videos, '--output', tmp_path / 'out', '--limit', '1') == 2
    (path,) = (tmp_path / 'out').rglob('*.npz')
    data = path.read_bytes()
    for length in (0, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(DataError, match='somewhere'):
            unpack(data[:length], 'somewhere')
    clip = unpack(data, 'somewhere')
    clip.about['format'] = 2
    with pytest.raises(DataError, match='format 2'):
        unpack(pack(clip, 90), 'somewhere')


def test_recordings_are_videos_too(tmp_path):
    pytest.importorskip('rosbags')
    pytest.importorskip('rclpy')
    from rclpy.serialization import serialize_message
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore
    from std_msgs.msg import Header

    from cotracker_ros.ros.messages import array_to_image

    with Writer(tmp_path / 'bag', version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        store = get_typestore(Stores.ROS2_HUMBLE)
        camera = writer.add_connection('/image', 'sensor_msgs/msg/Image', typestore=store)
        for t, frame in enumerate(texture()):
            writer.write(camera, t, bytes(serialize_message(array_to_image(frame, Header()))))
    assert run(tmp_path / 'bag', '--output', tmp_path / 'out') == 0
    (clip,) = PseudoLabels(tmp_path / 'out')
    assert clip.video.shape == (8, 96, 128, 3)


def test_the_tasks_of_a_process_share_their_worker(tmp_path):
    job = pseudo_label.Job(
        teachers.LabelConfig(), (('lucas-kanade', 'x'),), str(tmp_path), 'cpu', 1
    )
    mine = pseudo_label.worker(job)
    assert pseudo_label.worker(pickle.loads(pickle.dumps(job))) is mine  # as Ray sends it
    assert pseudo_label.worker(dataclasses.replace(job, output=str(tmp_path / 'x'))) is not mine


def test_labelling_does_not_move_a_teacher(videos, tmp_path):
    torch = pytest.importorskip('torch')
    from safetensors.torch import save_file

    from cotracker_ros.model import build_model
    from cotracker_ros.model.checkpoint import checkpoint_metadata

    torch.manual_seed(0)
    small = {'depth': 1, 'window': 4, 'width': 16, 'heads': 2, 'channels': 10, 'levels': 2}
    model = build_model('cotracker3_online', (96, 128), **small).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = Teacher('v3', '', True, trackers.whole_video(model, 1, threshold=0.4))
    video = texture(6)
    queries = sift_queries(video, 20, 2, np.random.default_rng(0))
    one, two = (track_queries(teacher, video, queries, 0.0) for _ in range(2))
    assert np.array_equal(one.tracks, two.tracks)
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    # A teacher's hash is that of its file.
    path = tmp_path / 'teacher.safetensors'
    save_file(model.state_dict(), path, metadata=checkpoint_metadata(model))
    assert teachers.weights_hash(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of this machine alone, which may be slow, and which tells nobody about itself."""
    pytest.importorskip('ray')
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    monkeypatch.setenv('RAY_AUTH_MODE', 'disabled')
    for patience in (
        'raylet_start_wait_time_s',
        'worker_register_timeout_seconds',
        'gcs_server_request_timeout_seconds',
        'gcs_rpc_server_connect_timeout_s',
    ):
        monkeypatch.setenv(f'RAY_{patience}', '500')  # fmt: skip


ON_TWO_WORKERS = """
import os, signal, sys
import ray
from train import pseudo_label

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
run, killed = pseudo_label.run, []

def seen(clip, outcome):
    if not killed:
        killed.append(outcome.worker)
        os.kill({victim}, signal.SIGKILL)

pseudo_label.run = lambda *given: run(*given, on_outcome=seen)
sys.exit(pseudo_label.main(sys.argv[1:]))
"""


@pytest.mark.parametrize('victim', ['worker', 'driver'])
def test_ray_gives_the_same_bytes_whoever_is_killed(cluster, victim, tmp_path):
    for seed in range(6):
        write_pictures(tmp_path / 'videos' / str(seed), texture(seed=seed))
    out = tmp_path / 'out'
    words = command(tmp_path / 'videos', '--output', out, '--ray', 'auto')[2:]
    pid = {'worker': "int(outcome.worker.rpartition(':')[2])", 'driver': 'os.getpid()'}[victim]
    done = subprocess.run(
        [sys.executable, '-c', ON_TWO_WORKERS.format(victim=pid), *words],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if victim == 'worker':
        assert done.returncode == 0, done.stderr
        assert '6 done' in done.stdout and done.stdout.count('worker ') >= 2
    else:
        assert done.returncode == -signal.SIGKILL
        assert 1 <= len(PseudoLabels(out)) < 6
        again = command(tmp_path / 'videos', '--output', out, '--ray', 'auto')
        done = subprocess.run(again, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert 'done before' in done.stdout
    assert run(tmp_path / 'videos', '--output', tmp_path / 'alone') == 0
    assert labels_of(out) == labels_of(tmp_path / 'alone')


def test_labels_can_be_looked_at(videos, tmp_path, monkeypatch):
    from train import visualize_data

    assert run(videos, '--output', tmp_path / 'out') == 0
    words = ['--labels', str(tmp_path / 'out'), '--clips', '2', '--output', str(tmp_path / 'seen')]
    titles, write = set(), visualize_data.titled

    def titled(frame, title):
        titles.add(title)
        return write(frame, title)

    monkeypatch.setattr(visualize_data, 'titled', titled)
    monkeypatch.setattr('sys.argv', ['visualize_data.py', *words])
    visualize_data.main()
    of = {(c.teacher, Path(c.about['video']).name) for c in PseudoLabels(tmp_path / 'out')}
    assert len(titles) == 2 and titles < {f'{teacher}: {name}, 0' for teacher, name in of}
    sheet = cv2.imread(str(tmp_path / 'seen' / 'preview.png'))
    # Two clips of five frames, tracks drawn in colour on grey.
    assert sheet.shape[0] > 2 * 96 and sheet.shape[1] > 5 * 128
    assert (np.ptp(sheet.astype(int), axis=2) > 60).any()
