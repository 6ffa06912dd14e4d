"""Track points through a video file: `python -m cotracker_ros.track_video clip.mp4 --grid 20`.

Writes an overlay video, and beside it the tracks as .npz and .csv. Runs the same streaming tracker
as the node, frame by frame: of a long video only the tracks stay in memory. With `--backward` the
video is first run from the last query back to its beginning, so that each point is tracked before
its query too. A recording (rosbag2, MCAP or SQLite) is copied with a topic /tracks added instead.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from cotracker_ros import geometry
from cotracker_ros.demo.video import Video, VideoError, is_short, open_video
from cotracker_ros.engines import ENGINES, EngineError
from cotracker_ros.point_files import Bodies, read_points, read_pose
from cotracker_ros.points import grid
from cotracker_ros.progress import Progress
from cotracker_ros.streaming import VISIBLE, StreamingTracker, Tracks, table
from cotracker_ros.track_recording import is_recording, track_recording
from cotracker_ros.visualise import (
    check_video_path,
    draw_tracks,
    draw_tracks_and_poses,
    write_video,
)

CSV_COLUMNS = ('frame', 'time', 'id', 'x', 'y', 'visible', 'visibility', 'confidence')


def track_frames(
    tracker: StreamingTracker,
    frames: Iterable[np.ndarray],
    fps: float,
    queries: np.ndarray,
    keypoints: np.ndarray | None = None,
    times: Sequence[float] | None = None,
) -> Iterator[tuple[np.ndarray, Tracks]]:
    """Yield every frame with its tracks, as they are computed.

    queries: (N, 3) of frame, x px, y px, in the order of their frames: a new tracker gives them
    the ids 1 to N in this order. keypoints: (N,) as `StreamingTracker.add_points` takes them.
    times: seconds of the frames, known when each comes; without them n / fps.
    Raises ValueError for a query outside the image or, at the end,
    beyond the last frame.
    """
    number = -1
    for number, frame in enumerate(frames):
        now, stamp = queries[:, 0] == number, number / fps if times is None else times[number]
        if now.any():
            _check_inside(queries[now], frame.shape[:2])
            numbers = None if keypoints is None else keypoints[now]
            tracker.add_points(queries[now, 1:], stamp=stamp, keypoints=numbers)
        yield frame, tracker.track(frame, stamp)
    _check_reached(queries, number + 1)


def track_back(
    tracker: StreamingTracker,
    open_clip: Callable[[], Video],
    queries: np.ndarray,
    keypoints: np.ndarray | None = None,
) -> dict[int, Tracks]:
    """Return, by frame, the tracks of points before their queries: the video run in reverse.

    tracker: as for `track_frames`, another one than it; so are queries (N, 3) and keypoints (N,).
    open_clip: opens the video anew, at its beginning. The tracks have the ids and stamps that the
    run forwards gives; their age is 0.
    """
    fps, last = open_clip().fps, int(queries[:, 0].max())
    order = np.argsort(-queries[:, 0], kind='stable')  # in which the reversed video asks for them
    mirrored = queries[order]
    mirrored[:, 0] = last - mirrored[:, 0]
    before = {}
    times: list[float] = []  # of all frames, known once the last one is read, which comes first
    frames = reversed_frames(open_clip, last + 1, times)
    backward = _Mirrored(times, last)
    numbers = None if keypoints is None else keypoints[order]
    pairs = track_frames(tracker, frames, fps, mirrored, numbers, backward)
    with Progress() as progress:
        for back, (_, tracks) in enumerate(pairs):
            index, number = order[tracks.ids - 1], last - back
            early = np.flatnonzero(queries[index, 0] > number)
            rows = {
                name: getattr(tracks, name)[early]
                for name in ('xy', 'visibility', 'confidence', 'flags')
            }
            ids, age = index[early] + 1, np.zeros(len(early), np.uint32)
            before[number] = Tracks(times[number], ids.astype(np.uint32), age=age, **rows)
            progress.show(back + 1, last + 1, ' backward')
    return before


class _Mirrored(Sequence):
    """Times of a video run from its frame `last` back to its beginning."""

    def __init__(self, times: Sequence[float], last: int) -> None:
        self._times, self._last = times, last

    def __len__(self) -> int:
        return self._last + 1

    def __getitem__(self, back):
        return self._times[self._last] - self._times[self._last - back]


HELD_BYTES = 1 << 29  # bytes of frames that stay in memory while a video is read backwards


def reversed_frames(
    open_clip: Callable[[], Video], count: int, times: list[float] | None = None
) -> Iterator[np.ndarray]:
    """Yield the first `count` frames (H, W, 3) of a video, the last first; `times` gets their
    seconds.

    Video files cannot be read backwards reliably, so a long one is read forwards once for every
    512 MiB of frames, the last part first. Raises ValueError where it has fewer frames.
    """
    end, part = count, 1
    while end > 0:
        clip = open_clip()
        if end == count:  # nothing is known of the frames yet
            first = next(iter(clip.frames))
            part = max(1, HELD_BYTES // first.nbytes)
            clip = open_clip()
        start = max(0, end - part)
        held = list(islice(clip.frames, start, end))
        if len(held) < end - start:
            raise ValueError(
                f'a point is queried in frame {end - 1}, but the video has '
                f'{start + len(held)} frames'
            )
        if times is not None and not times:
            times += clip.times
        yield from reversed(held)
        end = start


def merged(tracks: Tracks, before: Tracks | None) -> Tracks:
    """Return the tracks of one frame, of points already queried and of those queried later."""
    if before is None or not len(before):
        return tracks
    order = np.argsort(np.concatenate([tracks.ids, before.ids]), kind='stable')
    names = ('ids', 'xy', 'visibility', 'confidence', 'age', 'flags')
    parts = {n: np.concatenate([getattr(tracks, n), getattr(before, n)])[order] for n in names}
    return replace(tracks, **parts)


def _check_reached(queries: np.ndarray, frames: int) -> None:
    if queries[:, 0].max() >= frames:
        raise ValueError(
            f'a point is queried in frame {queries[:, 0].max():.0f}, but the video has '
            f'{frames} frames'
        )


def _check_inside(queries: np.ndarray, size: tuple[int, int]) -> None:
    outside = ~geometry.inside(queries[:, 1:], size)
    if outside.any():
        (frame, x, y), (height, width) = queries[outside.argmax()], size
        raise ValueError(
            f'the point {x:g}, {y:g} of frame {frame:.0f} is outside the {width} x {height} image'
        )


class History:
    """Tracks of all frames so far, (T, N) by id; NaN and False before a point exists."""

    def __init__(self) -> None:
        self.ids = np.zeros(0, np.uint32)
        self.stamps: list[float] = []
        self._rows: list[Tracks] = []

    def add(self, tracks: Tracks) -> None:
        """Append one frame."""
        self._rows.append(tracks)
        self.stamps.append(tracks.stamp)
        self.ids = np.union1d(self.ids, tracks.ids)

    def arrays(self, last: int | None = None) -> dict[str, np.ndarray]:
        """Return xy (T, N, 2), visible, visibility and confidence (T, N) of the `last` frames."""
        rows = [vars(row) for row in (self._rows if last is None else self._rows[-last:])]
        arrays = table(rows, self.ids, ('xy', 'visibility', 'confidence', 'flags'))
        return arrays | {'visible': (arrays.pop('flags') & VISIBLE) != 0}

    def save(self, path: Path, fps: float) -> None:
        """Write .npz and .csv beside `path`; the csv has a row for each frame and point."""
        arrays = self.arrays()
        stamps = np.array(self.stamps)
        arrays |= {'ids': self.ids, 'stamps': stamps, 'fps': np.array(fps)}
        np.savez_compressed(path.with_suffix('.npz'), **arrays)  # pyright: ignore
        with path.with_suffix('.csv').open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(CSV_COLUMNS)
            for t, row in enumerate(self._rows):
                for n, i in enumerate(row.ids):
                    x, y = row.xy[n]
                    trust = f'{row.visibility[n]:.4f}', f'{row.confidence[n]:.4f}'
                    head = t, f'{row.stamp:.6f}', i, f'{x:.3f}', f'{y:.3f}', int(row.visible[n])
                    writer.writerow((*head, *trust))


def overlay(
    pairs: Iterable[tuple[np.ndarray, Tracks]],
    history: History,
    tail: int,
    total: int | None,
    pose: Bodies | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 RGB with their tracks drawn, adding these to `history`.

    pose: what the points of ids 1 to N are; keypoints are drawn as skeletons, without tails.
    """
    with Progress() as progress:
        for frame, tracks in pairs:
            history.add(tracks)
            recent = history.arrays(tail + 1)
            progress.show(len(history.stamps), total)
            shown = recent['xy'], recent['visible'], history.ids
            if pose is None:
                yield draw_tracks(frame, *shown, tail)
            else:
                keypoint, instance = (x[history.ids - 1] for x in pose)
                yield draw_tracks_and_poses(frame, *shown, (keypoint, instance), tail)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, with one message where something is wrong."""
    parser = argparse.ArgumentParser('cotracker-track', description='Track points in a video.')
    parser.add_argument('video', help='a file OpenCV can read, a folder of images or a recording')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--grid', type=int, default=20, help='points per side [20]')
    which.add_argument('--points', help='file with lines frame,x,y or x,y, instead of a grid')
    which.add_argument(
        '--pose',
        help='file with lines frame,x,y,keypoint,person: tracks keypoints and draws skeletons',
    )
    parser.add_argument('--grid-frame', type=int, default=0, help='where the grid starts [0]')
    parser.add_argument(
        '--backward', action='store_true', help='track points before their frame as well'
    )
    parser.add_argument(
        '--output', type=Path, help='[tracks.mp4; of a recording: the new folder NAME_tracks]'
    )
    parser.add_argument('--topic', help="of a recording's camera [the only one]")
    parser.add_argument(
        '--image-range',
        default='auto',
        help='black and white of 16-bit images: bits:12, min,max [auto]',
    )
    parser.add_argument('--model', default='realtime', help='shipped name or file [realtime]')
    parser.add_argument('--engine', default='auto', choices=('auto', *ENGINES))
    parser.add_argument('--threads', type=int, default=0, help='of the runtime; 0: automatic')
    parser.add_argument('--fps', type=float, help="frame rate [the file's; a folder: 30]")
    parser.add_argument('--tail', type=int, default=16, help='frames a tail reaches back [16]')
    args = parser.parse_args(arguments)
    try:
        if args.grid < 1 or args.tail < 0 or args.grid_frame < 0:
            raise ValueError('--grid must be at least 1, --tail and --grid-frame at least 0')
        print((_track_recording if is_recording(args.video) else _track_video)(args))
    except (VideoError, EngineError, ValueError, OSError) as error:
        print(f'cotracker-track: {error}', file=sys.stderr)
        return 1
    except ImportError as error:
        needs = 'a recording needs the messages of ROS 2, and rosbags: pip install rosbags'
        print(f'cotracker-track: {error}; {needs}', file=sys.stderr)
        return 1
    return 0


def _track_video(args: argparse.Namespace) -> str:
    if args.topic is not None:
        raise ValueError('--topic is for recordings; a video has one camera')
    output = args.output or Path('tracks.mp4')
    check_video_path(output)

    def open_clip() -> Video:
        return open_video(args.video, args.fps, args.image_range)

    video, queries, pose = _queries(args, open_clip())
    keypoints = None if pose is None else pose.keypoint

    def new_tracker() -> StreamingTracker:
        return StreamingTracker(args.model, len(queries), args.engine, args.threads)

    tracker, before = new_tracker(), {}
    if args.backward and queries[:, 0].any():
        if video.count is None:
            raise ValueError(f'{args.video}: a camera has no past; --backward is for files')
        before = track_back(new_tracker(), open_clip, queries, keypoints)
    history = History()
    forward = track_frames(tracker, video.frames, video.fps, queries, keypoints, video.times)
    pairs = (
        (frame, merged(tracks, before.get(number)))
        for number, (frame, tracks) in enumerate(forward)
    )
    drawn = overlay(pairs, history, args.tail, video.count, pose)
    unwritten = None
    try:
        write_video(output, drawn, video.fps, history.stamps)
    except OSError as error:  # of the writer: the tracks are worth more than their picture
        unwritten = error
        for _ in drawn:
            pass
    history.save(output, video.fps)
    visible, stem = history.arrays()['visible'], output.with_suffix('')
    frames = len(history.stamps)
    short = f' (of {video.count}: the file is cut short)' if is_short(video) else ''
    text = (
        f'{frames} frames{short}, {len(history.ids)} points, {100 * visible.mean():.0f} % visible'
    )
    if unwritten is not None:
        raise OSError(f'{text}: {stem}.npz, {stem}.csv; but no overlay: {unwritten}')
    return f'{text}: {output}, {stem}.npz, {stem}.csv'


def _queries(args: argparse.Namespace, video: Video) -> tuple[Video, np.ndarray, Bodies | None]:
    """Return the video and the queries (N, 3) of the command line, in the order of their frames,
    and what they are where they are a pose.
    """
    if args.pose is not None:
        queries, pose = read_pose(args.pose)
        order = np.argsort(queries[:, 0], kind='stable')
        return video, queries[order], Bodies(*(part[order] for part in pose))
    if args.points is not None:
        queries = read_points(args.points)
        return video, queries[np.argsort(queries[:, 0], kind='stable')], None
    frames = iter(video.frames)
    first = next(frames)
    xy = grid(args.grid, first.shape[:2])
    queries = np.concatenate([np.full((len(xy), 1), args.grid_frame), xy], 1)
    return replace(video, frames=chain([first], frames)), queries, None


def _track_recording(args: argparse.Namespace) -> str:
    unused = args.points, args.pose, args.fps
    if any(a is not None for a in unused) or args.backward or args.grid_frame:
        raise ValueError(
            '--points, --pose, --fps, --backward and --grid-frame are for videos; of a recording '
            'the node would have seen one image after the other'
        )
    source = Path(args.video)
    output = args.output or source.with_name(f'{source.stem}_tracks')
    tracker = StreamingTracker(args.model, args.grid**2, args.engine, args.threads)
    images, how = 0, {'image_range': args.image_range}
    pairs = track_recording(source, output, tracker, args.grid, args.topic, **how)
    with Progress() as progress:
        for images, total in pairs:
            progress.show(images, total)
    return f'{images} images, {args.grid**2} points: /tracks in {output}'


if __name__ == '__main__':
    raise SystemExit(main())
