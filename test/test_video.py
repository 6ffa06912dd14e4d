"""Videos and folders as people have them: names, orientation, times, depths."""

import math
import struct

import cv2
import numpy as np
import pytest

from cotracker_ros import point_files, track_video
from cotracker_ros.demo import video
from cotracker_ros.demo.orientation import rotation
from cotracker_ros.demo.video import VideoError, is_short, open_video
from cotracker_ros.files import listed
from cotracker_ros.visualise import write_video

CORNER = np.full((48, 64, 3), 40, np.uint8)
CORNER[:24, :32] = 220  # light where the picture's upper left is


def write_pictures(folder, names, dtype=np.uint8):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((48, 64, 3), 20 * number, dtype))
    return folder


def levels(source, *args) -> list:
    return [round(int(frame[5, 5, 0]) / 20) for frame in open_video(str(source), *args).frames]


@pytest.mark.parametrize('names', [
    ['frame_9.png', 'frame_10.png', 'frame_11.png', 'frame_100.png'],
    ['1.png', '2.png', '010.png', '0011.png'],
    ['a2b10.png', 'a2b11.png', 'a10b1.png'],
    ['left-1.5.png', 'left-1.10.png', 'left-2.0.png'],
    ['9.PNG', '10.png'],
])  # fmt: skip
def test_pictures_come_in_the_order_of_their_numbers(tmp_path, names):
    assert levels(write_pictures(tmp_path / 'x', names)) == list(range(len(names)))


def test_names_that_begin_with_a_dot_are_no_content(tmp_path):
    folder = write_pictures(tmp_path / 'x', ['1.png', '2.png'])
    (folder / '._1.png').write_bytes(b'Mac OS X')
    (folder / '.hidden.png').write_bytes(b'')
    (folder / 'folder.png').mkdir()
    assert levels(folder) == [0, 1]
    assert [path.name for path in listed(folder, ['.png'])] == ['1.png', '2.png']
    for path in (folder / '1.png', folder / '2.png'):
        path.unlink()
    with pytest.raises(VideoError, match='no images in this folder'):
        open_video(str(folder))


def test_one_picture_is_one_frame(tmp_path):
    """OpenCV takes the name of a picture for the first of a sequence."""
    folder = write_pictures(tmp_path / 'x', ['f_7.png', 'f_8.png', 'f_9.png'])
    assert levels(folder / 'f_8.png') == [1]


@pytest.mark.parametrize('bits', [10, 12, 16])
def test_pictures_of_16_bits_keep_their_content(tmp_path, bits):
    folder = tmp_path / 'x'
    folder.mkdir()
    ramp = np.linspace(0, 2**bits - 1, 64).astype(np.uint16)
    for number in range(3):
        cv2.imwrite(str(folder / f'{number}.png'), np.tile(np.roll(ramp, number), (48, 1)))
    automatic = list(open_video(str(folder)).frames)
    assert all(np.ptp(frame) > 150 for frame in automatic)
    np.testing.assert_array_equal(np.roll(automatic[0], 2, 1), automatic[2])
    (first, *_) = open_video(str(folder), None, f'bits:{bits}').frames
    np.testing.assert_array_equal(first[0, :, 0], ramp >> (bits - 8))


@pytest.mark.parametrize('name', [
    '2024-05-01T10:15:30.mp4', "bob's clip.mp4", 'a%03d.mp4', 'ü.mp4', '-x.mp4', 'http:x.mp4',
])  # fmt: skip
def test_any_relative_name_is_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video('plain.mp4', [CORNER] * 3, 10)
    (tmp_path / 'plain.mp4').rename(tmp_path / name)
    assert len(list(open_video(name).frames)) == 3


def turned(path, degrees: int) -> None:
    """Write a rotation into the matrix of the first track of an MP4 file."""
    data = bytearray(path.read_bytes())
    start = data.index(b'tkhd') + 4 + 40
    c, s = (round(f(math.radians(degrees))) << 16 for f in (math.cos, math.sin))
    data[start : start + 36] = struct.pack('>9i', c, s, 0, -s, c, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize('degrees', [0, 90, 180, 270])
@pytest.mark.parametrize('told', [True, False])
def test_phone_videos_are_upright(tmp_path, monkeypatch, degrees, told):
    """Whether OpenCV tells of the rotation, or (4.11) says 0."""
    path = tmp_path / 'phone.mp4'
    write_video(path, [CORNER] * 3, 10)
    turned(path, degrees)
    assert rotation(path) == degrees
    if not told:
        real = cv2.VideoCapture

        class Ignorant:
            def __init__(self, *args):
                self._real = real(*args)

            def __getattr__(self, name):
                return getattr(self._real, name)

            def get(self, what):
                return 0.0 if what == cv2.CAP_PROP_ORIENTATION_META else self._real.get(what)

        monkeypatch.setattr(video.cv2, 'VideoCapture', Ignorant)
    expected = np.rot90(CORNER, -degrees // 90)
    for frame in open_video(str(path)).frames:
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 6


@pytest.mark.parametrize('data', [b'', b'RIFF1234AVI LIST', b'\0\0\0\x08ftyp' + b'\xff' * 50])
def test_files_without_a_matrix_say_nothing(tmp_path, data):
    path = tmp_path / 'x'
    path.write_bytes(data)
    assert rotation(path) is None
    assert rotation(tmp_path / 'none') is None


def variable_rate(path):
    """Write 12 frames at 30 a second, then 12 at 10; returns their times."""
    pytest.importorskip('av', reason='the extra video, which writes uneven times')
    times = [n / 30 for n in range(12)] + [0.4 + n / 10 for n in range(12)]
    write_video(path, [np.full((48, 64, 3), 9 * n, np.uint8) for n in range(24)], 15, times)
    return times


def test_times_are_those_of_the_container(tmp_path):
    times = variable_rate(tmp_path / 'vfr.mp4')
    opened = open_video(str(tmp_path / 'vfr.mp4'))
    assert len(list(opened.frames)) == 24 and not is_short(opened)
    np.testing.assert_allclose(opened.times, times, atol=1e-3)
    assert opened.times[12] == pytest.approx(0.4) and opened.times[-1] == pytest.approx(1.5)
    opened = open_video(str(tmp_path / 'vfr.mp4'), 20)
    list(opened.frames)
    np.testing.assert_allclose(opened.times, np.arange(24) / 20)


def test_times_come_through_to_all_results(tmp_path):
    times = variable_rate(tmp_path / 'vfr.mp4')
    points, output = tmp_path / 'points.csv', tmp_path / 'out.mp4'
    points.write_text('20,10,10\n0,30,30\n')
    arguments = [tmp_path / 'vfr.mp4', '--points', points, '--output', output, '--backward']
    assert track_video.main([str(a) for a in arguments]) == 0
    saved = np.load(tmp_path / 'out.npz')
    np.testing.assert_allclose(saved['stamps'], times, atol=1e-3)
    rows = (tmp_path / 'out.csv').read_text().splitlines()[1:]
    assert float(rows[-1].split(',')[1]) == pytest.approx(1.5, abs=1e-3)
    overlay = open_video(str(output))
    list(overlay.frames)
    np.testing.assert_allclose(overlay.times, times, atol=2e-3)


class Odd:
    """A capture whose container has the wrong number of frames, rate or times."""

    def __init__(self, frames=24, count=24.0, fps=30.0, msec=lambda n: 0.0):
        self._left, self._count, self._fps, self._msec = frames, count, fps, msec
        self._n = -1

    def isOpened(self):
        return True

    def read(self):
        self._left -= 1
        self._n += 1
        return (True, CORNER.copy()) if self._left >= 0 else (False, None)

    def set(self, what, value):
        return True

    def release(self):
        pass

    def get(self, what):
        return {
            cv2.CAP_PROP_FPS: self._fps,
            cv2.CAP_PROP_FRAME_COUNT: self._count,
            cv2.CAP_PROP_POS_MSEC: self._msec(self._n),
        }.get(what, 0.0)


@pytest.mark.parametrize('fields, last, short', [
    ({}, 23 / 30, False),  # no times at all
    ({'msec': lambda n: 1000 * (7 + n / 30)}, 23 / 30, False),  # they begin at 7 s
    ({'msec': lambda n: math.nan}, 23 / 30, False),
    ({'fps': math.nan}, 23 / 30, False),
    ({'fps': 90_000.0}, 23 / 30, False),
    ({'count': -9e18}, 23 / 30, False),
    ({'count': math.inf}, 23 / 30, False),
    # 24 frames in 1.6 s; Matroska tells 48, as its length would hold at 30 a second
    ({'count': 48.0, 'msec': lambda n: 1000 * n / 15}, 23 / 15, False),
    ({'frames': 10, 'msec': lambda n: 1000 * n / 30}, 9 / 30, True),
])  # fmt: skip
def test_what_a_container_says_is_not_believed(tmp_path, monkeypatch, fields, last, short):
    (tmp_path / 'x.mkv').write_bytes(b'x')
    monkeypatch.setattr(video.cv2, 'VideoCapture', lambda *args: Odd(**fields))
    opened = open_video(str(tmp_path / 'x.mkv'))
    frames = list(opened.frames)
    assert len(opened.times) == len(frames) and np.all(np.diff(opened.times) > 0)
    assert opened.times[0] == 0 and opened.times[-1] == pytest.approx(last)
    assert is_short(opened) == short


@pytest.mark.parametrize('rate', [0.0, -3.0, math.nan, math.inf, 1e9])
def test_rates_that_are_none_are_refused(tmp_path, rate):
    with pytest.raises(VideoError, match='the frame rate must be'):
        open_video(str(write_pictures(tmp_path / 'x', ['1.png'])), rate)


def test_tables_are_written_where_the_overlay_cannot_be(tmp_path, monkeypatch, capsys):
    folder = write_pictures(tmp_path / 'x', [f'{n}.png' for n in range(6)])

    def refuse(path, frames, fps, times):
        for _ in zip(frames, range(2), strict=False):
            pass
        raise OSError('no such codec')

    monkeypatch.setattr(track_video, 'write_video', refuse)
    assert track_video.main([str(folder), '--grid', '2', '--output', str(tmp_path / 't.mp4')]) == 1
    assert 'no overlay: no such codec' in capsys.readouterr().err
    assert np.load(tmp_path / 't.npz')['xy'].shape == (6, 4, 2)
    assert len((tmp_path / 't.csv').read_text().splitlines()) == 1 + 6 * 4


@pytest.mark.parametrize('text, expected', [
    ('10,80\n', [(0, 10, 80)]),
    ('2,10,80\n1;5;6\n', [(2, 10, 80), (1, 5, 6)]),
    ('x,y,frame\n10,80,0\n', [(0, 10, 80)]),
    ('Frame, X, Y\n3, 10, 80\n', [(3, 10, 80)]),
    ('"x";"y"\r\n10;80\r\n', [(0, 10, 80)]),
    ('id\tframe\tx\ty\n7\t1\t2\t3\n', [(1, 2, 3)]),
    ('# from a sheet\n\ny,x\n1,2\n', [(0, 2, 1)]),
])  # fmt: skip
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_points_files_of_spreadsheets(tmp_path, text, expected, encoding):
    path = tmp_path / 'points.csv'
    path.write_text(text, encoding=encoding)
    assert point_files.read_points(path).tolist() == [list(map(float, row)) for row in expected]


@pytest.mark.parametrize('text, message', [
    ('column,row\n1,2\n', ":1: 'column,row': the columns x and y must be there"),
    ('x,x,y\n1,2,3\n', 'the columns x and y must be there'),
    ('x,y\n1,2,3\n', ":2: '1,2,3' is not x,y"),
    ('1,2\nx,y\n', ":2: 'x,y' is not frame,x,y or x,y"),
    ('1,2,3,4\n', 'is not frame,x,y or x,y'),
    ('1e300,2,3\n', 'a frame is 0, 1, 2'),
    ('0.5,2,3\n', 'a frame is 0, 1, 2'),
])  # fmt: skip
def test_points_that_are_none_are_named(tmp_path, text, message):
    path = tmp_path / 'points.csv'
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        point_files.read_points(path)
    assert message in str(error.value)
    path.write_bytes(b'\x81\x82\xff')
    with pytest.raises(ValueError, match='not a text file in UTF-8'):
        point_files.read_points(path)


@pytest.mark.parametrize('name', ['caf\udce9.mp4', 'caf\udce9.png', 'folder'])
def test_a_name_that_is_not_utf_8_is_refused_before_opencv_dies_of_it(tmp_path, name):
    path = tmp_path / name
    if name == 'folder':
        path.mkdir()
        (path / 'caf\udce9.png').touch()
    else:
        path.touch()
    with pytest.raises(VideoError, match=r'caf\\udce9\..*whose name is not UTF-8'):
        list(open_video(str(path)).frames)
