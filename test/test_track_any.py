"""The command line on anything: the documented error or a result, never a traceback."""

import contextlib
import io
import itertools
import string

import cv2
import numpy as np
import pytest
from stand_in_engine import Standing

pytest.importorskip('hypothesis', reason='the extra test')

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cotracker_ros import track_video
from cotracker_ros.streaming import StreamingTracker
from cotracker_ros.visualise import write_video

EXAMPLES = 60
NUMBER = itertools.count()


@pytest.fixture(autouse=True)
def standing(monkeypatch):
    tracker = lambda model, count, *_: StreamingTracker(Standing(count))  # noqa: E731
    monkeypatch.setattr(track_video, 'StreamingTracker', tracker)


def run(folder, arguments: list) -> None:
    """Run the command line in a folder, and check that it ends as documented."""
    output = folder / 'out.mp4'
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = track_video.main([*map(str, arguments), '--output', str(output)])
        except SystemExit as error:  # argparse
            status = error.code
    if status == 2:
        return
    assert status in (0, 1) and 'Traceback' not in err.getvalue()
    if status:
        assert err.getvalue().startswith('cotracker-track: ') and not output.exists()
        assert not out.getvalue()
    else:
        assert output.stat().st_size and output.with_suffix('.csv').stat().st_size
        saved = np.load(output.with_suffix('.npz'))
        assert len(saved['stamps']) == len(saved['xy']) and (np.diff(saved['stamps']) > 0).all()
    assert not [path for path in folder.iterdir() if path.name.startswith('.part-')]


def fresh(tmp_path):
    folder = tmp_path / str(next(NUMBER))
    folder.mkdir()
    return folder


fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
stems = st.text(string.ascii_letters + string.digits + "._-:%#? '()äß", min_size=1, max_size=12)
suffixes = st.sampled_from(['.png', '.PNG', '.jpg', '.tiff', '.bmp', '.txt', '', '.yaml', '.mp4'])
sizes = st.sampled_from([(8, 9), (8, 9), (8, 9), (1, 1), (9, 8)])
contents = st.one_of(
    st.tuples(
        st.just('picture'), sizes, st.sampled_from(['u1', 'u2']), st.sampled_from([1, 3, 4])
    ),
    st.tuples(st.just('bytes'), st.binary(max_size=60)),
    st.tuples(st.just('folder')),
)
options = st.lists(
    st.sampled_from([
        ('--backward',), ('--grid', '1'), ('--grid', '3'), ('--grid', '0'), ('--grid', '-2'),
        ('--grid-frame', '1'), ('--grid-frame', '9'), ('--grid-frame', '-1'), ('--tail', '0'),
        ('--tail', '-1'), ('--fps', '0'), ('--fps', '-5'), ('--fps', 'nan'), ('--fps', 'inf'),
        ('--fps', '89.917'), ('--fps', '1e-9'), ('--fps', '1e9'), ('--image-range', 'bits:12'),
        ('--image-range', 'bits:99'), ('--image-range', '0,1'), ('--topic', '/x'),
    ]),
    max_size=3, unique_by=lambda option: option[0],
).map(lambda chosen: [word for option in chosen for word in option])  # fmt: skip


def write(path, content) -> None:
    """Write what a name stands for; names that the system refuses are left out."""
    kind, *rest = content
    with contextlib.suppress(OSError):
        if kind == 'folder':
            path.mkdir()
        elif kind == 'bytes':
            path.write_bytes(rest[0])
        else:
            size, dtype, channels = rest
            picture = np.full((*size, channels), 99, dtype)
            path.write_bytes(cv2.imencode('.png', picture)[1].tobytes())


@fuzzed
@given(st.dictionaries(st.tuples(stems, suffixes), contents, max_size=5), options)
def test_any_folder(tmp_path, files, arguments):
    folder = fresh(tmp_path)
    source = folder / 'source'
    source.mkdir()
    for (stem, suffix), content in files.items():
        if stem + suffix not in ('.', '..'):
            write(source / f'{stem}{suffix}', content)
    run(folder, [source, *arguments])


numbers = st.one_of(
    st.integers(-2, 12).map(str),
    st.floats(allow_nan=True, allow_infinity=True, width=32).map(str),
    st.sampled_from(['', 'x', 'y', 'frame', '"1"', '1e999', '0x1', ' 3 ', '1_0', '٣']),
)
lines = st.lists(numbers, max_size=5).flatmap(
    lambda cells: st.sampled_from([',', ';', '\t', ', ']).map(lambda comma: comma.join(cells))
)
texts = st.one_of(
    st.lists(lines | st.sampled_from(['x,y,frame', 'frame,x,y', '# note', '']), max_size=6).map(
        '\n'.join
    ),
    st.text(max_size=40),
)


@fuzzed
@given(
    texts.flatmap(
        lambda text: st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'latin-1']).map(
            lambda encoding: text.encode(encoding, 'replace')
        )
    )
    | st.binary(max_size=40),
    st.sampled_from(['--points', '--points', '--pose']),
    st.booleans(),
)
def test_any_points_file(tmp_path, data, kind, backward):
    folder = fresh(tmp_path)
    source = folder / 'source'
    source.mkdir()
    for number in range(3):
        cv2.imwrite(str(source / f'{number}.png'), np.zeros((12, 16, 3), np.uint8))
    points = folder / 'points.csv'
    points.write_bytes(data)
    run(folder, [source, kind, points, *(['--backward'] if backward else [])])


@pytest.fixture(scope='module')
def clip(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp('clip') / 'clip.mp4'
    write_video(path, [np.full((32, 48, 3), 20 * n, np.uint8) for n in range(5)], 10)
    return path.read_bytes()


@fuzzed
@given(
    st.integers(0, 1 << 16),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6),
    stems,
    st.sampled_from(['.mp4', '.mov', '.mkv', '.avi', '.db3', '.mcap', '.bag', '.png']),
    options,
)
def test_any_video_file(tmp_path, clip, cut, changes, stem, suffix, arguments):
    """Cut short and with wrong bytes, under any name."""
    folder = fresh(tmp_path)
    data = bytearray(clip[: len(clip) if cut % 3 else cut % len(clip)])
    for place, value in changes:
        if data:
            data[place % len(data)] = value
    path = folder / f'{stem}{suffix}'
    path.write_bytes(data)
    run(folder, [path, *arguments])
