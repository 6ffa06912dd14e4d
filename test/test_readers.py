"""Readers of data sets: each on a small set written here in the published format."""

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from cotracker_ros.skeleton import KEYPOINTS
from train.data import readers
from train.data.clip import Clip, DataError, beginning, there_and_back, with_occluder
from train.data.readers.kubric import read_kubric

FRAMES, POINTS = 6, 3
DAVIS = Path(__file__).parents[2] / 'shared' / 'davis'


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def picture(rng, height=48, width=64):
    """Return a smooth random picture, which survives JPEG."""
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(frame, kind='.png'):
    return cv2.imencode(kind, frame[..., ::-1])[1].tobytes()


def tapvid_entry(rng):
    return {
        'video': np.stack([picture(rng) for _ in range(FRAMES)]),
        'points': rng.random((POINTS, FRAMES, 2)).astype(np.float32),
        'occluded': np.array([[0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0], [1] * 6], bool),
    }


def dump(path, content, **options):
    path.write_bytes(pickle.dumps(content, **options))
    return path


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_tapvid_davis_is_a_dict_of_arrays(tmp_path, rng, protocol):
    entry = tapvid_entry(rng)
    path = dump(tmp_path / 'tapvid_davis.pkl', {'goat': entry}, protocol=protocol)
    (clip,) = readers.tapvid(path)
    assert clip.name.endswith('goat')
    assert clip.video.shape == (FRAMES, 256, 256, 3)
    # The third point is never seen; the others are asked for where they are first seen.
    assert clip.queries[:, 0].tolist() == [0, 2]
    assert clip.visible.T.tolist() == (~entry['occluded'][:2]).tolist()
    expected = entry['points'][:2].transpose(1, 0, 2) * 256 - 0.5
    np.testing.assert_allclose(clip.tracks, expected, atol=1e-4)
    np.testing.assert_allclose(clip.queries[1, 1:], expected[2, 1], atol=1e-4)


def test_strided_queries_ask_for_every_visible_point_of_every_fifth_frame(tmp_path, rng):
    path = dump(tmp_path / 'a.pkl', [tapvid_entry(rng)])
    (clip,) = readers.tapvid(path, strided=True)
    assert clip.queries[:, 0].tolist() == [0, 5, 5]
    np.testing.assert_array_equal(clip.tracks[:, 0], clip.tracks[:, 1])
    t = clip.queries[:, 0].astype(int)
    np.testing.assert_array_equal(clip.queries[:, 1:], clip.tracks[t, np.arange(3)])


def test_kinetics_and_robotap_are_several_files_of_encoded_frames(tmp_path, rng):
    entry = tapvid_entry(rng)
    jpeg = {**entry, 'video': [encoded(frame, '.jpg') for frame in entry['video']]}
    dump(tmp_path / '0001_of_0002.pkl', [entry, entry])
    dump(tmp_path / '0002_of_0002.pkl', [jpeg])
    clips = list(readers.tapvid(tmp_path))
    assert [clip.name for clip in clips] == [
        '0001_of_0002.pkl: 0001_of_0002_0000',
        '0001_of_0002.pkl: 0001_of_0002_0001',
        '0002_of_0002.pkl: 0002_of_0002_0000',
    ]
    assert np.abs(clips[2].video.astype(int) - clips[0].video).mean() < 4


class Evil:
    def __reduce__(self):
        return os.system, ('touch SHOULD_NOT_EXIST',)


def test_a_pickle_that_calls_anything_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = dump(tmp_path / 'evil.pkl', {'a': Evil()})
    with pytest.raises(DataError, match=r'evil\.pkl.*system: refused'):
        list(readers.tapvid(path))
    array = np.empty((), object)
    array[()] = {'coords': Evil()}
    (tmp_path / '0' / 'frames').mkdir(parents=True)
    (tmp_path / '0' / 'frames' / '0.png').write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    np.save(tmp_path / '0' / '0.npy', array)
    with pytest.raises(DataError, match='refused'):
        list(readers.kubric(tmp_path))
    assert not Path('SHOULD_NOT_EXIST').exists()


def without(entry, name):
    return {key: value for key, value in entry.items() if key != name}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda e: [without(e, 'points')], "needs 'video', 'points'"),
        (lambda e: [{**e, 'video': e['video'][:-1]}], '5 frames but tracks of 6'),
        (lambda e: [{**e, 'occluded': e['occluded'][:2]}], r'occluded \(2, 6\)'),
        (lambda e: [{**e, 'points': np.full_like(e['points'], np.nan)}], 'NaN'),
        (lambda e: [{**e, 'video': [b'x'] * FRAMES}], 'not a picture'),
        (lambda e: [], 'no clip'),
        (lambda e: 'text', 'holds a str'),
        (lambda e: [3], "needs 'video'"),
    ],
)
def test_broken_tapvid_files_say_what_is_wrong(tmp_path, rng, change, message):
    path = dump(tmp_path / 'b.pkl', change(tapvid_entry(rng)))
    with pytest.raises(DataError, match=message):
        list(readers.tapvid(path))


def test_files_that_are_not_there_or_not_pickles(tmp_path):
    with pytest.raises(DataError, match=r'cannot be read \(No such file'):
        list(readers.tapvid(tmp_path / 'none.pkl'))
    with pytest.raises(DataError, match=r'no \*\.pkl'):
        list(readers.tapvid(tmp_path))
    (tmp_path / 'c.pkl').write_bytes(b'not a pickle')
    with pytest.raises(DataError, match='not a pickle'):
        list(readers.tapvid(tmp_path))


def write_kubric(root, rng, name='0000', **extra):
    """Write one sequence; returns (video, coords (N, T, 2), hidden (N, T))."""
    video = np.stack([picture(rng) for _ in range(FRAMES)])
    coords = (rng.random((POINTS, FRAMES, 2)) * (64, 48)).astype(np.float32)
    hidden = np.array([[0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0], [1] * 6], bool)
    (root / name / 'frames').mkdir(parents=True)
    for t, frame in enumerate(video):
        (root / name / 'frames' / f'{t:03d}.png').write_bytes(encoded(frame))
    note = {'coords': coords, 'visibility': hidden, **extra}
    np.save(root / name / f'{name}.npy', note, allow_pickle=True)
    return video, coords, hidden


def check_kubric(clip, video, coords, hidden):
    np.testing.assert_array_equal(clip.video, video)
    np.testing.assert_array_equal(clip.tracks, coords[:2].transpose(1, 0, 2))
    np.testing.assert_array_equal(clip.visible, ~hidden[:2].T)
    assert clip.queries[:, 0].tolist() == [0, 2]


def test_kubric_movi_f(tmp_path, rng):
    first = write_kubric(tmp_path, rng, '0000')
    second = write_kubric(tmp_path, rng, '0001')
    clips = list(readers.kubric(tmp_path))
    assert [clip.name for clip in clips] == ['0000', '0001']
    check_kubric(clips[0], *first)
    check_kubric(clips[1], *second)


def test_the_cotracker3_release_is_read_from_its_archives(tmp_path, rng):
    depth = np.zeros((POINTS, FRAMES), np.float32)
    expected = write_kubric(tmp_path / 'unpacked', rng, '0000', coords_depth=depth)
    (tmp_path / 'unpacked' / '0000' / 'depth').mkdir()
    np.save(tmp_path / 'unpacked' / '0000' / 'depth' / '000.npy', depth)
    (tmp_path / 'release').mkdir()
    with tarfile.open(tmp_path / 'release' / '0000.tar.gz', 'w:gz') as archive:
        archive.add(tmp_path / 'unpacked' / '0000', '0000')
    (clip,) = readers.kubric(tmp_path / 'release')
    check_kubric(clip, *expected)


def test_broken_kubric_sequences_say_what_is_wrong(tmp_path, rng):
    with pytest.raises(DataError, match='no sequence'):
        list(readers.kubric(tmp_path))
    with pytest.raises(DataError, match='no such folder'):
        list(readers.kubric(tmp_path / 'none'))
    write_kubric(tmp_path, rng)
    frames = tmp_path / '0000' / 'frames'
    (frames / '005.png').unlink()
    with pytest.raises(DataError, match='5 frames but tracks of 6'):
        list(readers.kubric(tmp_path))
    (frames / '005.png').write_bytes(b'')
    with pytest.raises(DataError, match=r'005\.png: not a picture'):
        list(readers.kubric(tmp_path))
    (frames / '005.png').write_bytes(encoded(picture(rng, 48, 60)))
    with pytest.raises(DataError, match='60 x 48 px, but the first frame has 64 x 48'):
        list(readers.kubric(tmp_path))
    (frames / '005.png').write_bytes(encoded(picture(rng)))
    np.save(tmp_path / '0000' / '0000.npy', np.zeros(3))
    with pytest.raises(DataError, match='not an annotation'):
        read_kubric(tmp_path / '0000')
    (tmp_path / '0001.tar.gz').write_bytes(b'not an archive')
    with pytest.raises(DataError, match='cannot be read'):
        read_kubric(tmp_path / '0001.tar.gz')
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode='w:gz').close()
    (tmp_path / '0001.tar.gz').write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match='no frames'):
        read_kubric(tmp_path / '0001.tar.gz')


def write_badja(root, rng):
    """Write eight frames of 96 x 54 px, annotated in frames 2 and 7."""
    for folder in ('JPEGImages/dog', 'Annotations/dog', 'joint_annotations'):
        (root / folder).mkdir(parents=True)
    for t in range(8):
        (root / f'JPEGImages/dog/{t:05d}.jpg').write_bytes(encoded(picture(rng, 54, 96), '.jpg'))
        mask = np.zeros((54, 96, 3), np.uint8)
        mask[:27, :48] = 128, 0, 0
        (root / f'Annotations/dog/{t:05d}.png').write_bytes(encoded(mask))
    joints = np.zeros((37, 2), int)
    joints[8], joints[9] = (108, 192), (540, 960)  # y, x of 1920 x 1080
    seen = np.zeros(37, bool)
    seen[[7, 8, 9]] = True  # 7 is none of the scored joints
    later = seen.copy()
    later[9] = False
    later[10] = True  # not visible at first, so not asked for
    notes = [
        {
            'image_path': f'DAVIS/JPEGImages/Full-Resolution/dog/{t:05d}.jpg',
            'joints': (joints + shift).tolist(),
            'visibility': visible.tolist(),
        }
        for t, shift, visible in ((2, 0, seen), (7, 108, later))
    ]
    (root / 'joint_annotations' / 'dog.json').write_text(json.dumps(notes))
    return notes


def test_badja(tmp_path, rng):
    write_badja(tmp_path, rng)
    (clip,) = readers.badja(tmp_path)
    assert clip.name == 'dog' and clip.video.shape == (6, 320, 512, 3)
    np.testing.assert_allclose(clip.queries, [[0, 51.2, 32], [0, 256, 160]], rtol=1e-6)
    np.testing.assert_allclose(clip.tracks[5, 0], [300 * 512 / 1920, 216 * 320 / 1080])
    assert clip.visible.tolist() == [[True, True], *[[False, False]] * 4, [True, False]]
    assert np.flatnonzero(np.isfinite(clip.area)).tolist() == [0, 5]
    assert clip.area[0] == pytest.approx(320 * 512 / 4, rel=0.03)


def test_broken_badja_folders_say_what_is_wrong(tmp_path, rng):
    with pytest.raises(DataError, match='no BADJA folder'):
        list(readers.badja(tmp_path))
    notes = write_badja(tmp_path, rng)
    path = tmp_path / 'joint_annotations' / 'dog.json'
    mask = tmp_path / 'Annotations' / 'dog' / '00007.png'
    mask.unlink()
    with pytest.raises(DataError, match=r'00007\.png: cannot be read'):
        list(readers.badja(tmp_path))
    for content, message in [
        ('{', 'not a list of BADJA annotations'),
        (json.dumps([without(notes[0], 'joints')]), 'joints'),
        ('[]', 'no annotated frame'),
        (json.dumps([{**notes[0], 'image_path': '00008.jpg'}]), 'frame 8 is annotated'),
    ]:
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            list(readers.badja(tmp_path))
    for image in (tmp_path / 'JPEGImages' / 'dog').iterdir():
        image.unlink()
    path.write_text(json.dumps(notes))
    with pytest.raises(DataError, match='no jpg or png frame'):
        list(readers.badja(tmp_path))


def test_videos_with_masks_but_no_joints(tmp_path, rng):
    write_badja(tmp_path, rng)
    with pytest.raises(DataError, match='without joints'):
        list(readers.davis_masks(tmp_path))
    for folder in ('JPEGImages', 'Annotations'):
        shutil.copytree(tmp_path / folder / 'dog', tmp_path / folder / 'cat')
    (clip,) = readers.davis_masks(tmp_path)
    assert clip.name == 'cat' and clip.video.shape == (8, 320, 512, 3) and not clip.known.any()
    x, y = clip.queries[:, 1:].T
    # The mask is the picture's first quarter, to within a pixel of the written picture.
    assert ((x < 256) & (y < 160)).tolist() == [True] * 48 + [False] * 24
    assert clip.side[3, 80, 128] == 1 and clip.side[3, 200, 300] == -1
    assert np.flatnonzero(clip.side[3, 80] == 0).size == 4  # two pixels on each side of the edge
    (tmp_path / 'Annotations' / 'cat' / '00003.png').unlink()
    with pytest.raises(DataError, match=r'00003\.png: cannot be read'):
        list(readers.davis_masks(tmp_path))


@pytest.mark.skipif(not DAVIS.is_dir(), reason=f'no DAVIS videos at {DAVIS}')
def test_the_real_badja_videos():
    clips = {clip.name: clip for clip in readers.badja(DAVIS)}
    assert {'camel', 'cows'} <= set(clips)
    for clip in clips.values():
        t, n = np.nonzero(clip.visible)
        x, y = clip.tracks[t, n].T
        assert (x >= 0).all() and (x < 512).all() and (y >= 0).all() and (y < 320).all()
        assert (clip.area[np.isfinite(clip.area)] > 1000).all()


def write_posetrack(root, rng):
    """Write four frames of two people; frame 0 is not labelled, the second person comes later."""
    (root / 'annotations' / 'val').mkdir(parents=True)
    (root / 'images' / 'val' / 'a').mkdir(parents=True)
    images, notes = [], []
    for t in range(4):
        name = f'images/val/a/{t:06d}.jpg'
        (root / name).write_bytes(encoded(picture(rng), '.jpg'))
        images.append({'id': 100 + t, 'file_name': name, 'is_labeled': t > 0})
    for t, person in ((1, 7), (2, 7), (3, 7), (3, 9)):
        joints = np.zeros((17, 3))
        joints[0] = 10 * t, 5, 1
        joints[9] = 20, person, t != 2
        note = {
            'image_id': 100 + t, 'track_id': person, 'keypoints': joints.ravel().tolist(),
            'bbox': [0, 0, 20, 30], 'bbox_head': [0, 0, 6, 8],
        }  # fmt: skip
        notes.append(note)
    content = {'images': images[::-1], 'annotations': notes, 'categories': []}
    (root / 'annotations' / 'val' / 'a.json').write_text(json.dumps(content))
    return content


def test_posetrack(tmp_path, rng):
    content = write_posetrack(tmp_path, rng)
    (clip,) = readers.posetrack(tmp_path)
    assert clip.video.shape == (3, 48, 64, 3)  # from the first labelled frame on
    # Nose and left wrist of person 7 in frame 1, of person 9 in frame 3.
    np.testing.assert_array_equal(clip.queries, [[0, 10, 5], [0, 20, 7], [2, 30, 5], [2, 20, 9]])
    assert clip.visible.T.tolist() == [[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert clip.tracks[1, 0].tolist() == [20, 5]
    assert clip.known.T.tolist() == clip.visible.T.tolist()
    assert clip.pose.head[:, 0].tolist() == [6, 6, 6] and clip.pose.area[2, 2] == 600
    assert clip.pose.box[:, 0].tolist() == [30, 30, 30] and clip.pose.box[0, 2] == 0
    assert clip.pose.keypoint.tolist() == [0, 9, 0, 9]
    assert clip.pose.instance.tolist() == [0, 0, 1, 1]

    path = tmp_path / 'annotations' / 'val' / 'a.json'
    path.write_text(json.dumps({**content, 'annotations': []}))
    assert not list(readers.posetrack(tmp_path))
    path.write_text(json.dumps(without(content, 'images')))
    with pytest.raises(DataError, match=r"a\.json: not a PoseTrack annotation \('images'"):
        list(readers.posetrack(tmp_path))
    with pytest.raises(DataError, match='no PoseTrack folder'):
        list(readers.posetrack(tmp_path / 'images'))


def test_poses_are_measured_from_the_command_line(tmp_path, rng, capsys):
    from train import evaluate

    write_posetrack(tmp_path, rng)
    saved = tmp_path / 'scores.json'
    words = ['--dataset', 'posetrack', '--data', str(tmp_path), '--output', str(saved)]
    assert evaluate.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.split()[:5] == ['PCK@0.05', 'PCK@0.1', 'PCK@0.2', 'PCKh', 'OKS']
    # Standing still, the nose is 10 and 20 px off, a third of the box and more; the wrist stands.
    mean = json.loads(saved.read_text())['results']['standing-still']['mean']
    for name in ('pck_0.05', 'pck_0.2', 'pckh', 'oks'):
        assert mean[name] == pytest.approx(100 / 3)
        assert mean[f'{name}/nose'] == pytest.approx(0, abs=1e-6)
        assert mean[f'{name}/left_wrist'] == 100


def test_posetrack_for_training(tmp_path, rng):
    content = write_posetrack(tmp_path, rng)
    # Frame 2 is not labelled now; the picture, 48 x 64, is read at half its size.
    notes = [note for note in content['annotations'] if note['image_id'] != 102]
    path = tmp_path / 'annotations' / 'val' / 'a.json'
    path.write_text(json.dumps({**content, 'annotations': notes}))
    (clip,) = readers.posetrack(tmp_path, size=(24, 32))
    assert clip.video.shape == (3, 24, 32, 3)
    assert clip.known.T.tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 1], [0, 0, 1]]
    # (10.5, 5.5) and (30.5, 5.5) from the picture's corner, halved; half way between them.
    assert clip.tracks[:, 0].tolist() == [[4.75, 2.25], [9.75, 2.25], [14.75, 2.25]]
    assert clip.pose.area[0, 0] == 150 and clip.pose.box[0, 0] == 15

    (short,) = readers.posetrack(tmp_path, max_frames=2)
    assert short.video.shape[0] == 2 and short.pose.instance.tolist() == [0, 0]

    starts = tmp_path / 'starts.json'
    late = [None] * 17
    late[0], late[9] = 2, 0
    starts.write_text(json.dumps({'a': {'7': late}}))
    (clip,) = readers.posetrack(tmp_path, starts=starts)
    assert clip.queries[:, 0].tolist() == [2, 0] and clip.pose.instance.tolist() == [0, 0]
    starts.write_text(json.dumps({'a': {'9': 3}}))
    (clip,) = readers.posetrack(tmp_path, starts=starts)
    assert len(clip.video) == 1 and clip.queries[:, 1:].tolist() == [[30, 5], [20, 9]]
    starts.write_text('{"a": 3}')
    with pytest.raises(DataError, match=r'starts\.json: not a JSON of start frames'):
        list(readers.posetrack(tmp_path, starts=starts))


def test_posetrack_as_a_source_of_training(tmp_path, rng):
    torch = pytest.importorskip('torch')
    from train.data.batch import BatchConfig
    from train.data.sources import PoseTrackSource

    content = write_posetrack(tmp_path, rng)
    notes = [note for note in content['annotations'] if note['image_id'] != 102]
    path = tmp_path / 'annotations' / 'val' / 'a.json'
    path.write_text(json.dumps({**content, 'annotations': notes}))
    source = PoseTrackSource(str(tmp_path), (24, 32), 3, BatchConfig(clips=2), seed=1)
    clips = source.batch(5)
    assert clips.video.shape == (2, 3, 24, 32, 3) and clips.tracks.shape == (2, 3, 17, 2)
    # Only person 7 in frame 1 has three frames before the end; frame 2 is not labelled.
    assert clips.keypoint[0].tolist() == [0, *[-1] * 8, 9, *[-1] * 7]
    assert clips.instance[0, [0, 9, 1]].tolist() == [0, 0, -1]
    assert clips.known[0, :, [0, 9]].T.tolist() == [[1, 0, 1]] * 2
    assert not clips.known[0, :, 1:9].any() and not clips.visible[0, :, 1:9].any()
    # Hidden in frame 3, the wrist has no place there, but that it is hidden is known.
    notes[1]['keypoints'][9 * 3 + 2] = 0
    path.write_text(json.dumps({**content, 'annotations': notes}))
    hidden = source.batch(5)
    assert hidden.known[0, :, 9].tolist() == hidden.visible[0, :, 9].tolist() == [1, 0, 0]
    assert hidden.visibility_known[0, :, [0, 9]].T.tolist() == [[1, 0, 1]] * 2
    assert not hidden.visibility_known[0, :, 1:9].any()
    notes[1]['keypoints'][9 * 3 + 2] = 1
    path.write_text(json.dumps({**content, 'annotations': notes}))
    assert clips.tracks[0, :, 0].tolist() == [[4.75, 2.25], [9.75, 2.25], [14.75, 2.25]]
    again = source.batch(5)
    assert torch.equal(again.video, clips.video) and torch.equal(again.tracks, clips.tracks)
    late = PoseTrackSource(str(tmp_path), (24, 32), 4, BatchConfig(), seed=1)
    with pytest.raises(DataError, match='nobody who is labelled 4 frames before their end'):
        late.batch(0)
    # Start frames from a file: the wrist only from frame 3 on, the nose from frame 1.
    starts = tmp_path / 'starts.json'
    begin = [None] * 17
    begin[9] = 3
    starts.write_text(json.dumps({'a': {'7': begin}}))
    source = PoseTrackSource(str(tmp_path), (24, 32), 3, BatchConfig(), 1, str(starts))
    clips = source.batch(0)
    assert clips.query_frame[0, [0, 9]].tolist() == [0, 2]
    begin[0] = 3  # then only one frame is left
    starts.write_text(json.dumps({'a': {'7': begin}}))
    source = PoseTrackSource(str(tmp_path), (24, 32), 3, BatchConfig(), 1, str(starts))
    with pytest.raises(DataError, match='3 frames before their end'):
        source.batch(0)
    with pytest.raises(DataError, match=r'gone\.json: not a JSON of start frames'):
        PoseTrackSource(str(tmp_path), (24, 32), 3, BatchConfig(), 1, 'gone.json')


def test_posetrack_is_shown_where_it_is_known(tmp_path, rng, monkeypatch):
    pytest.importorskip('torch')
    from train import visualize_data

    write_posetrack(tmp_path, rng)
    config = tmp_path / 'run.yaml'
    config.write_text(
        f'sources: {{posetrack: 1}}\nposetrack: {tmp_path}\n'
        'scene: {size: [48, 64], frames: 3}\nbatch: {points: 8}\n'
    )
    shown, draw = [], visualize_data.draw

    def drawn(video, tracks, visible, body, t):
        shown.append(np.isfinite(tracks).all(-1))
        return draw(video, tracks, visible, body, t)

    monkeypatch.setattr(visualize_data, 'draw', drawn)
    words = ['--config', str(config), '--clips', '1', '--output', str(tmp_path / 'seen')]
    monkeypatch.setattr('sys.argv', ['visualize_data.py', *words])
    visualize_data.main()
    # Person 7 from frame 1 on: the nose in all, the wrist in all but frame 2, and nothing else.
    assert len(shown) == 3 and shown[0].T[[0, 9]].tolist() == [[1, 1, 1], [1, 0, 1]]
    assert shown[0].sum() == 5
    assert (tmp_path / 'seen' / 'preview.png').exists()


def test_posetrack_maps_joints_by_the_names_of_its_category(tmp_path, rng):
    content = write_posetrack(tmp_path, rng)
    path = tmp_path / 'annotations' / 'val' / 'a.json'
    joints = [name for name in KEYPOINTS if 'eye' not in name] + ['head_top', 'head_bottom']
    for note in content['annotations']:
        marks = np.zeros((17, 3))
        marks[0], marks[7], marks[15] = (1, 2, 1), (3, 4, 1), (9, 9, 1)  # nose, left wrist, head
        note['keypoints'] = marks.ravel().tolist()
        del note['bbox']  # its joints' extent then
        del note['bbox_head']
    category = [{'name': 'person', 'keypoints': joints}]
    path.write_text(json.dumps({**content, 'categories': category}))
    (clip,) = readers.posetrack(tmp_path)
    assert clip.pose.keypoint.tolist() == [0, 9, 0, 9]
    assert clip.tracks[0].tolist()[:2] == [[1, 2], [3, 4]]
    assert clip.pose.box[0, 0] == 2 and clip.pose.area[0, 0] == 4 and not clip.pose.head.any()

    def refused(change, message):
        broken = json.loads(json.dumps({**content, 'categories': category}))
        change(broken)
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=message):
            list(readers.posetrack(tmp_path))

    refused(
        lambda c: c['categories'][0].update(keypoints=['tail']),
        r"a\.json: joint 'tail' is of no skeleton known here",
    )
    refused(
        lambda c: c['annotations'][0]['keypoints'].pop(),
        r'person 7 in image 101 has 16\.6667 joints, not 17',
    )
    refused(
        lambda c: c['annotations'][0].update(bbox=[1, 2]),
        r'person 7 in image 101: bbox is \[1, 2\], not x, y, width and height',
    )
    refused(lambda c: c['annotations'][1].pop('keypoints'), 'annotation 1 has no keypoints')
    refused(lambda c: c['annotations'][1].update(track_id=None), 'annotation 1 has no track_id')
    refused(
        lambda c: c['annotations'][0].update(image_id=9),
        'person 7 in image 9: no such image is listed',
    )
    refused(
        lambda c: c['annotations'][0]['keypoints'].__setitem__(0, float('nan')),
        r'person 7 in image 101: nose is at \[nan, 2\.0\], which is no place',
    )


def test_posetrack_with_visibility_as_in_coco(tmp_path, rng):
    content = write_posetrack(tmp_path, rng)
    for note in content['annotations']:
        flags = note['keypoints'][2::3]
        note['keypoints'][2::3] = [2 * flag for flag in flags]
    wrist = content['annotations'][2]['keypoints'][27:30]  # person 7 in frame 3
    wrist[2] = 1
    content['annotations'][2]['keypoints'][27:30] = wrist
    path = tmp_path / 'annotations' / 'val' / 'a.json'
    path.write_text(json.dumps(content))
    (clip,) = readers.posetrack(tmp_path)
    assert clip.visible.T.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert clip.known.T.tolist() == [[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert clip.tracks[2, 1].tolist() == [20, 7]


def test_posetrack_2017(tmp_path, rng):
    write_posetrack(tmp_path, rng)  # for its pictures
    path = tmp_path / 'annotations' / 'val' / 'a.json'

    def point(joint, x, y, **visible):
        return {'id': [joint], 'x': [x], 'y': [y], **visible}

    def frame(t, *people):
        return {'image': [{'name': f'images/val/a/{t:06d}.jpg'}], 'annorect': list(people)}

    def one(points, person=4):
        return {
            'track_id': [person], 'x1': [10], 'y1': [20], 'x2': [13], 'y2': [24],
            'annopoints': [{'point': points}],
        }  # fmt: skip

    # Right ankle (0), left wrist (11), neck (12), nose (13).
    seen, hidden = {'is_visible': [1]}, {'is_visible': [0]}
    first = [point(0, 5, 6, **seen), point(13, 1, 2), point(12, 0, 0, **seen)]
    then = [point(0, 7, 6, **hidden), point(11, 3, 3, **seen), point(13, 1, 3, is_visible=[])]
    content = {'annolist': [frame(2, one(then)), frame(0), frame(1, one(first))]}
    path.write_text(json.dumps(content))
    (clip,) = readers.posetrack(tmp_path)
    assert [KEYPOINTS[k] for k in clip.pose.keypoint] == ['nose', 'left_wrist', 'right_ankle']
    assert clip.queries.tolist() == [[0, 1, 2], [1, 3, 3], [0, 5, 6]]
    assert clip.visible.T.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert clip.known.T.tolist() == [[1, 1], [0, 1], [1, 1]]  # hidden, but its place is told
    assert clip.tracks[1, 2].tolist() == [7, 6]
    assert clip.pose.head[0, 0] == 3 and clip.pose.box[0, 0] == 4 and clip.pose.area[0, 0] == 16

    content['annolist'][0]['annorect'][0]['annopoints'][0]['point'][0]['id'] = [15]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'a\.json: person 4 has joint 15, of 15'):
        list(readers.posetrack(tmp_path))
    person = content['annolist'][0]['annorect'][0]
    person['annopoints'][0]['point'][0] = without(point(0, 7, 6), 'y')
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'person 0 of .*000002\.jpg has a joint without y'):
        list(readers.posetrack(tmp_path))
    del person['track_id']
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'person 0 of .*000002\.jpg has no track_id'):
        list(readers.posetrack(tmp_path))
    person['annopoints'] = []  # of whom nothing is told
    path.write_text(json.dumps(content))
    (clip,) = readers.posetrack(tmp_path)
    assert clip.visible.tolist() == [[1, 1], [0, 0]]


def test_held_out_people(tmp_path):
    pytest.importorskip('torch')
    pytest.importorskip('skimage')
    path = tmp_path / 'people.npz'
    (clip,) = readers.people(path, clips=1, frames=3)
    pose = clip.pose
    assert clip.tracks.shape[1] >= 8 and clip.known.all() and clip.size == (320, 512)
    assert (pose.keypoint >= 0).all() and (pose.instance >= 0).all() and not pose.head.any()
    for t in range(3):
        for person in np.unique(pose.instance):
            own = pose.instance == person
            high = np.ptp(clip.tracks[t, own, 1])
            assert pose.box[t, own][0] >= 1.2 * high - 1e-3
    (again,) = readers.people(path)
    np.testing.assert_array_equal(again.tracks, clip.tracks)
    with np.load(path) as file:
        rest = {name: file[name] for name in file.files if name != 'keypoint'}
    np.savez(path, **rest)
    with pytest.raises(DataError, match='a set without people: name another file'):
        list(readers.people(path))


def test_dynamic_replica(tmp_path, rng):
    torch = pytest.importorskip('torch')
    notes, places, seen = [], rng.random((3, 20, 3)).astype(np.float32) * 40, rng.random((3, 20))
    places[1, 5, 0], places[0, 6, 1] = 64, -1  # outside, whatever the mesh's visibility says
    seen[:, 5:7] = 0
    for t in (2, 0, 1):  # in no order
        for camera in ('left', 'right'):
            frame, track = f'a_{camera}/{t}.png', f'a_{camera}/{t}.pth'
            (tmp_path / f'a_{camera}').mkdir(exist_ok=True)
            (tmp_path / frame).write_bytes(encoded(picture(rng)))
            content = {
                'traj_2d': torch.from_numpy(places[t] + (camera == 'right')),
                'traj_3d_world': torch.zeros(20, 3),
                'verts_inds_vis': torch.from_numpy(seen[t] < 0.7),
                'img': torch.zeros(48, 64, 3, dtype=torch.uint8),
                'instances': torch.zeros(20),
            }
            torch.save(content, tmp_path / track)
            notes.append({
                'sequence_name': 'a', 'camera_name': camera, 'frame_number': t,
                'image': {'path': frame}, 'trajectories': {'path': track},
            })  # fmt: skip
    path = tmp_path / 'frame_annotations_valid.jgz'
    path.write_bytes(gzip.compress(json.dumps(notes).encode()))
    (clip,) = readers.dynamic_replica(tmp_path, points=1000)
    shown = (seen < 0.7) & (places[..., 0] <= 63) & (places[..., 1] >= 0)
    asked = shown[0]
    np.testing.assert_array_equal(clip.tracks, places[:, asked, :2])
    np.testing.assert_array_equal(clip.visible, shown[:, asked])
    assert not asked[6] and not clip.visible[1, asked[:5].sum()]
    assert clip.known.all() and clip.video.shape == (3, 48, 64, 3)
    (few,) = readers.dynamic_replica(tmp_path, points=4)
    assert few.tracks.shape == (3, 4, 2)
    np.testing.assert_array_equal(few.tracks[:, [0, -1]], clip.tracks[:, [0, -1]])

    (again,) = readers.dynamic_replica(path, points=4)  # the list itself
    np.testing.assert_array_equal(again.tracks, few.tracks)
    other = tmp_path / 'frame_annotations_test.jgz'
    other.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r'2 splits; give the path of one, such as .*test\.jgz'):
        list(readers.dynamic_replica(tmp_path))
    other.unlink()

    (tmp_path / 'a_left' / '1.pth').write_bytes(b'nothing')
    with pytest.raises(DataError, match=r'1\.pth: not the trajectories'):
        list(readers.dynamic_replica(tmp_path))
    path.write_bytes(b'nothing')
    with pytest.raises(DataError, match='not a list of frame annotations'):
        list(readers.dynamic_replica(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match='no Dynamic Replica split'):
        list(readers.dynamic_replica(tmp_path))


def test_a_clip_played_there_and_back_and_its_beginning(rng):
    video = rng.integers(0, 256, (4, 8, 9, 3), np.uint8)
    tracks = rng.random((4, 2, 2))
    visible = rng.random((4, 2)) < 0.5
    queries = np.array([[1, 2, 3], [3, 4, 5]])
    clip = there_and_back(Clip('x', video, queries, tracks, visible))
    for t, old in enumerate((0, 1, 2, 3, 2, 1, 0)):
        np.testing.assert_array_equal(clip.video[t], video[old])
        np.testing.assert_array_equal(clip.tracks[t], tracks[old])
        np.testing.assert_array_equal(clip.visible[t], visible[old])
    start = beginning(clip, 5, asked_before=3)
    assert start.video.shape[0] == 5 and start.queries.tolist() == [[1, 2, 3]]
    np.testing.assert_array_equal(start.tracks, clip.tracks[:5, :1])
    assert beginning(clip, 5, asked_before=1) is None


def test_an_occluder_hides_what_is_behind_it(rng):
    video = np.stack([picture(rng, 20, 30) for _ in range(8)])
    xy = np.array([[5, 5], [15, 5], [15, 9], [25, 5]], np.float32)
    queries = np.concatenate([np.array([[0], [0], [4], [3]]), xy], 1)
    tracks = np.repeat(xy[None], 8, 0)
    clip = Clip('x', video, queries, tracks, np.ones((8, 4), bool))
    behind = with_occluder(clip, 2, 3)
    assert behind.queries[:, 0].tolist() == [0, 0, 3]  # the third was asked for behind the post
    assert behind.visible.T.astype(int).tolist() == [
        [1] * 8, [1, 1, 0, 0, 0, 1, 1, 1], [1] * 8,
    ]  # fmt: skip
    changed = (behind.video != clip.video).any((0, 3))
    assert not changed[:, :10].any() and not changed[:, 20:].any() and changed[:, 10:20].all()
    np.testing.assert_array_equal(behind.video[[0, 1, 5, 6, 7]], video[[0, 1, 5, 6, 7]])
    assert behind.known.all() and (clip.video == video).all()


def test_a_query_beyond_the_clip():
    clip = {
        'name': 'x',
        'video': np.zeros((2, 4, 4, 3), np.uint8),
        'tracks': np.zeros((2, 1, 2)),
        'visible': np.ones((2, 1), bool),
    }
    with pytest.raises(DataError, match='beyond the 2 frames'):
        Clip(queries=np.array([[2, 0, 0]]), **clip)
    with pytest.raises(DataError, match='no point'):
        Clip(
            **{**clip, 'tracks': np.zeros((2, 0, 2)), 'visible': np.zeros((2, 0), bool)},
            queries=np.zeros((0, 3)),
        )


def test_the_held_out_set_is_rendered_once_and_comes_back(tmp_path):
    pytest.importorskip('torch')
    pytest.importorskip('skimage')
    path = tmp_path / 'new' / 'held_out.npz'
    (clip,) = readers.held_out(path, clips=1, frames=2, points=5)
    t = clip.queries[:, 0].astype(int)
    assert clip.video.shape == (2, 320, 512, 3) and clip.visible[t, np.arange(5)].all()
    np.testing.assert_array_equal(clip.queries[:, 1:], clip.tracks[t, np.arange(5)])
    written = path.stat().st_mtime_ns
    (again,) = readers.held_out(path)
    np.testing.assert_array_equal(again.video, clip.video)
    assert path.stat().st_mtime_ns == written
    whole = path.read_bytes()
    other, row = io.BytesIO(), io.BytesIO()
    np.savez(other, xy=np.zeros(3))
    np.save(row, np.zeros(3))
    for content in (b'half', whole[: len(whole) // 2], other.getvalue(), row.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match='not a held-out set'):
            list(readers.held_out(path))
