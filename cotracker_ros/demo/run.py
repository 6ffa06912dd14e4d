"""Run camera, tracker and recorder, each its own process, and report what came out."""

import argparse
import json
import queue
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from cotracker_ros.demo.clip import FRAMES, Clip
from cotracker_ros.demo.live import show
from cotracker_ros.demo.processes import DemoError, Process, environments
from cotracker_ros.demo.video import Video, VideoError, open_video
from cotracker_ros.engines import EngineError
from cotracker_ros.points import grid
from cotracker_ros.progress import Progress
from cotracker_ros.ros.parameters import BY_NAME
from cotracker_ros.signals import end_at_sigterm
from cotracker_ros.streaming import QUERY_FRAME, VISIBLE, StreamingTracker

START_SECONDS = 120.0  # for the processes to start and find each other, on a busy machine too
SILENCE_SECONDS = 5.0  # without a message after the last image
DEVICE_SECONDS = 20.0  # to record from a camera
MEASURED = (1.0, 8)  # seconds and steps, at least, to measure a step
SHARE = 0.7  # of the steps that the model alone does; camera and recorder need their time, too
SLOWEST = 2.0  # images a second, or a first look takes minutes


def step_seconds(frame: np.ndarray, arguments: argparse.Namespace) -> float:
    """Return the seconds of one step of the model on this machine, the median over one second.

    frame: (H, W, 3) uint8. Raises EngineError for a model that cannot be loaded.
    """
    points = grid(arguments.grid, frame.shape[:2])
    tracker = StreamingTracker(arguments.model, max(64, len(points)), arguments.engine)
    try:
        tracker.add_points(points)
        times, end = [], time.monotonic() + MEASURED[0]
        while len(times) < MEASURED[1] or time.monotonic() < end:
            start = time.perf_counter()
            tracker.track(frame, float(len(times)))
            times.append(time.perf_counter() - start)
        return float(np.median(times[2:]))  # the first ones make buffers
    finally:
        tracker.close()


def record(video: Video, shown_at: float, arguments: argparse.Namespace) -> tuple[list[int], dict]:
    """Run the processes; returns the stamps (ns) that were sent and the recorder's figures.

    The video is played at its `fps`, and the overlay at `shown_at` frames a second. Raises
    DemoError, naming its log, where a process fails.
    """
    output, seconds = arguments.output, arguments.seconds
    everyone, with_profile = environments()
    source = [] if arguments.video is None else ['--video', arguments.video]
    source += ['--rate', video.fps] + ([] if seconds is None else ['--seconds', seconds])
    node = ['cotracker_ros', '--ros-args', '-p', f'model:={arguments.model}']
    node += ['-p', f'engine:={arguments.engine}', '-p', f'initial_grid:={arguments.grid}']
    recorder = ['cotracker_ros.demo.recorder', '--output', output, '--fps', shown_at]
    recorder += ['--speed', shown_at / video.fps]
    processes = []
    try:
        for name, command, environment in (
            ('recorder', recorder, everyone),
            ('tracker', node, everyone),
            ('camera', ['cotracker_ros.demo.camera', *source], with_profile),
        ):
            log = output / f'{name}.log'
            processes.append(Process(name, command, environment, log))
        recording, tracking, camera = processes
        with Progress() as progress:
            stamps = _follow(recording, tracking, camera, _expected(video, seconds), progress)
        processes[0].close_input()
        processes[0].wait(60 + len(stamps))
        figures = None
        while figures is None:
            try:
                line = processes[0].lines.get(timeout=30)
            except queue.Empty:  # it ended early: say why
                recording.check()
                raise DemoError('the recorder gave no figures') from None
            figures = json.loads(line) if line.startswith('{') else None
        status = processes[1].stop()
        if status:
            raise DemoError(f'the tracker ended with status {status}, see {processes[1].errors}')
        return stamps, figures
    finally:
        for process in processes:
            process.close_input()
        for process in processes:
            process.stop()


def _expected(video: Video, seconds: float | None) -> int | None:
    limit = None if seconds is None else round(seconds * video.fps)
    known = [n for n in (video.count, limit) if n]
    return min(known) if known else None


def _follow(
    recorder: Process, tracker: Process, camera: Process, total: int | None, progress: Progress
) -> list[int]:
    """Show the progress until the last image is tracked or nothing comes; returns the stamps."""
    stamps, tracked, last_tracked, done = [], 0, 0, False
    deadline = time.monotonic() + START_SECONDS
    while not (done and stamps and last_tracked >= stamps[-1]):
        for process in (recorder, tracker, camera):
            while not process.lines.empty():
                words = process.lines.get().split(' ', 1)
                if process is camera and words[0] == 'error':
                    raise DemoError(words[1])
                if process is camera and words[0] == 'sent':
                    stamps.append(int(words[1].split()[1]))
                elif process is camera and words[0] == 'done':
                    done = True
                elif process is recorder and words[0] == 'tracks':
                    tracked, last_tracked = map(int, words[1].split())
                else:
                    continue
                deadline = time.monotonic() + SILENCE_SECONDS + (0 if tracked else START_SECONDS)
            if not (process is camera and done):
                process.check()
        progress.show(len(stamps), total, f', {tracked} tracks messages')
        if time.monotonic() > deadline:
            if tracked:
                break  # the last images were dropped for newer ones, or lost
            raise DemoError(f'no tracks came in {START_SECONDS:.0f} s; see {tracker.errors}')
        time.sleep(0.02)
    return stamps


def known_motion_errors(table: dict[str, np.ndarray], sent: list[int]) -> dict[str, float]:
    """Compare tracks of the rendered clip, as of `Recorder.table`, with its known motion.

    sent: stamps of the images, ns. Returns `median` and `still` in px, and as shares of 1
    `within3` (px) and `visibility`; nothing where no point can be compared. Counts points from
    their query frame on, where the clip says that they are seen; `still` is the median error of
    points that would not move at all.
    """
    clip, index = Clip(), {stamp: i for i, stamp in enumerate(sent)}
    frames = np.array([index[s] for s in table['stamps'].tolist()])
    errors, still, judged = [], [], []
    for n in range(len(table['ids'])):
        start = np.flatnonzero(table['flags'][:, n] & QUERY_FRAME)
        if not start.size or frames[start[0]] >= FRAMES:
            continue
        query = table['xy'][start[0], n]
        truth, seen = clip.truth(query[None], int(frames[start[0]]))
        later = np.arange(start[0] + 1, len(frames))
        later = later[np.isfinite(table['xy'][later, n, 0])]
        t = frames[later]
        in_sight = seen[t, 0]
        distance = np.linalg.norm(table['xy'][later, n] - truth[t, 0], axis=-1)
        errors.append(distance[in_sight])
        still.append(np.linalg.norm(query - truth[t, 0], axis=-1)[in_sight])
        judged.append(((table['flags'][later, n] & VISIBLE) != 0) == in_sight)
    if not errors:
        return {}
    error, fixed = np.concatenate(errors), np.concatenate(still)
    return {
        'median': float(np.median(error)),
        'within3': float((error < 3).mean()),
        'still': float(np.median(fixed)),
        'visibility': float(np.concatenate(judged).mean()),
    }


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog='cotracker-demo', description=__doc__)
    parser.add_argument('--video', help='file, folder of images or device; else a rendered clip')
    parser.add_argument('--rate', type=float, help="frames a second, instead of the video's")
    parser.add_argument('--seconds', type=float, help='stop after this time')
    parser.add_argument('--grid', type=int, default=7, help='points per side of the initial grid')
    parser.add_argument('--model', default='realtime')
    parser.add_argument('--engine', default='auto')
    parser.add_argument('--output', type=Path, default=Path('build/demo'))
    parser.add_argument('--live', action='store_true', help='a live view instead of a recording')
    parser.add_argument('--port', type=int, default=8080, help='of the live view')
    arguments = parser.parse_args()
    end_at_sigterm()
    try:
        most = int(BY_NAME['initial_grid'].high or 0)
        if not 1 <= arguments.grid <= most:
            raise DemoError(f'--grid must be 1 to {most}, not {arguments.grid}')
        video = open_video(arguments.video)
        if video.count is None:
            arguments.seconds = arguments.seconds or DEVICE_SECONDS
        played = paced(video, arguments)
        if hasattr(video.frames, 'close'):
            video.frames.close()  # the camera process reads it
        arguments.output.mkdir(parents=True, exist_ok=True)
        if arguments.live:
            arguments.rate = None if video.count is None else played.fps
            show(arguments)
            return 0
        sent, figures = record(played, video.fps, arguments)
    except (VideoError, DemoError, EngineError) as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(outcome_words(len(sent), played.fps, figures))
    if arguments.video is None:
        table = dict(np.load(arguments.output / 'tracks.npz'))
        print(error_words(known_motion_errors(table, sent)))
    print(figures_line(figures))
    if 'no overlay' in figures:
        print(f'no overlay: {figures["no overlay"]}; {arguments.output}/tracks.npz')
    else:
        print(f'{arguments.output}/overlay.mp4, {arguments.output}/overlay.png')
    if figures.get('codec') == 'mpeg4':
        print("overlay.mp4 is MPEG-4 part 2, which browsers do not play: pip install 'av>=12'")
    return 0


def paced(video: Video, arguments: argparse.Namespace) -> Video:
    """Return the video with the rate at which it is played: what was asked for, or is kept.

    Raises DemoError for a rate that cannot be played.
    """
    if arguments.rate is not None:
        if not 0 < arguments.rate <= 1000:
            raise DemoError(f'--rate must be above 0 and at most 1000, not {arguments.rate}')
        return replace(video, fps=arguments.rate)
    if video.count is None:  # a camera has its own
        return video
    step = step_seconds(next(video.frames), arguments)
    played = replace(video, fps=min(video.fps, max(SHARE / step, SLOWEST)))
    print(pace_words(video.fps, played.fps, step), flush=True)
    return played


def pace_words(own: float, played: float, step: float) -> str:
    """Return at which rate a video is played, and why."""
    took = f'one step of the model takes {step * 1e3:.0f} ms on this machine'
    if played >= own:
        return f'{took}: the video is played at its own {own:.0f} frames/s'
    keeps = 'which it keeps up with' if played <= 1 / step else 'faster than it can follow'
    return (
        f'{took}: the video is played at {played:.1f} frames/s, {keeps}, '
        f'instead of {own:.0f} (--rate {own:.0f} plays it in real time)'
    )


def outcome_words(sent: int, rate: float, f: dict) -> str:
    """Return what happened to the images that were sent, `rate` a second."""
    if f['tracks'] >= sent:
        return f'All {sent} images were tracked, {rate:.1f} a second.'
    kept = f['tracks'] / max(sent, 1) * rate
    return (
        f'{f["tracks"]} of {sent} images were tracked. The others came while the tracker was busy '
        f'and gave way to newer ones, as those of a camera that is faster than the machine: '
        f'they came {rate:.1f} a second, and it kept {kept:.1f}.'
    )


def error_words(f: dict[str, float]) -> str:
    """Return the comparison with the known motion."""
    if not f:
        return 'No track could be compared with the known motion.'
    return (
        f'Half of all points are within {f["median"]:.2f} px of where they should be, '
        f'{f["within3"]:.0%} within 3 px (had they not moved: half within {f["still"]:.1f} px); '
        f'whether they are seen or hidden is right in {f["visibility"]:.0%}.'
    )


def figures_line(f: dict) -> str:
    """Return the figures of a run in one line."""
    if not f['tracks']:
        return 'no tracks'
    return (
        f'{f["rate"]:.1f} tracks messages/s, from the image to its tracks {f["age_p50"]:.0f} ms '
        f'(half of them), {f["age_p95"]:.0f} ms (95 %); '
        f'{f["visible"]:.1f} of {f["points"]:.1f} points visible'
    )
