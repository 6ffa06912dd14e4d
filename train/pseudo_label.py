"""Label unlabelled video with several trackers (CoTracker3, section 5): any pile of it teaches.

    python train/pseudo_label.py VIDEOS... --output runs/labels
    python train/pseudo_label.py s3://bucket/videos --output s3://bucket/labels --ray auto

VIDEOS are files, folders of them, folders of pictures and recordings, at paths or URLs. A run that
was stopped goes on by the same command: a clip that is done is never done again. With --ray the
same work is spread over a cluster, or over this machine's cores where there is none; the labels
are the same to the byte. train/data/readers/pseudo_labels.py describes what is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from tqdm import tqdm

from cotracker_ros.demo.video import VideoError
from cotracker_ros.engines import EngineError
from train.data.readers.pseudo_labels import FORMAT, LabelledClip, name_of, pack
from train.data.storage import Busy, Folder, Lease
from train.data.videos import Facts, VideoFile, VideoReader, find_videos
from train.teachers import (
    LabelConfig,
    Teacher,
    TooFewPoints,
    label,
    load_teacher,
    try_out,
    weights_hash,
)

ROOT = Path(__file__).resolve().parents[1]
STATES = ('done before', 'done', 'skipped', 'failed', 'missing')
RETRIES = 3  # of a clip or video whose worker died, before it counts as failed


class OutputError(Exception):
    """The output cannot be written: no clip can be labelled any more."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to know once."""

    config: LabelConfig
    teachers: tuple[tuple[str, str], ...]  # name as given, sha256
    output: str
    device: str
    threads: int


@dataclasses.dataclass(frozen=True)
class PlannedClip:
    """A clip to label."""

    id: str
    video: VideoFile
    facts: Facts
    first: int
    frames: int


class Outcome(NamedTuple):
    """What became of a clip or of an inspection of a video."""

    state: str  # done, skipped, failed, or lost: the output cannot be written
    reason: str = ''
    seconds: float = 0.0
    frames: int = 0
    worker: str = ''
    note: dict[str, Any] = {}  # noqa: RUF012 (never written to), what was found out of a video


class Worker:
    """Does the work of one process: teachers loaded once, the last video kept open."""

    def __init__(self, job: Job):
        """Raises ValueError or OSError for teachers that cannot be loaded or are others here."""
        cv2.setNumThreads(job.threads)
        if 'torch' in sys.modules or any(Path(n).suffix for n, _ in job.teachers):
            import torch

            torch.set_num_threads(job.threads)
        self.job, self.folder = job, Folder(job.output)
        self.reader = VideoReader(job.config.size)
        self.name = f'{socket.gethostname()}:{os.getpid()}'
        self.teachers: list[Teacher] = []

    def inspect(self, video: VideoFile) -> Outcome:
        """Find out what a video holds and write it down."""
        name, content = _video_note(video), {'video': video.url, 'stamp': video.stamp}
        try:
            facts = self.reader.facts(video)
            content |= {**dataclasses.asdict(facts), 'files': video.files}
        except Exception as error:  # a decoder may raise anything; the rest goes on
            content['unreadable'] = _told(error)
        return self._write(name, _json(content))._replace(note=content)

    def label(self, clip: PlannedClip) -> Outcome:
        """Label a clip and write the labels, or why there are none."""
        began = time.perf_counter()
        try:
            data = self._labels(clip)
            outcome = self._write(name_of('clips', clip.id, '.npz'), data)
        except TooFewPoints as error:
            outcome = self._record(clip, 'skipped', str(error))
        except Exception as error:  # a teacher or a decoder may raise anything; the rest goes on
            outcome = self._record(clip, 'failed', _told(error))
        if outcome.state != 'failed':
            self.folder.remove(name_of('failed', clip.id, '.json'))
        seconds = time.perf_counter() - began
        return outcome._replace(seconds=seconds, frames=clip.frames, worker=self.name)

    def _labels(self, clip: PlannedClip) -> bytes:
        config = self.job.config
        video = self.reader.clip(clip.video, clip.first, clip.frames)
        if len(video) < config.min_frames:
            raise TooFewPoints(f'{len(video)} frames can be read, {config.min_frames} are needed')
        rng = np.random.default_rng((config.seed, int(clip.id, 16)))
        queries, labels, used = label(video, self._loaded(), config, rng)
        about = {
            'format': FORMAT,
            'id': clip.id,
            'video': clip.video.url,
            'files': clip.video.files,
            'video_sha256': clip.facts.sha256,
            'first': clip.first,
            'frames': len(video),
            'fps': clip.facts.fps,
            'recorded_size': clip.facts.size,
            'size': video.shape[1:3],
            'teachers': [{'name': t.name, 'sha256': t.sha256} for t in used],
            'queries': 'sift',
            'seed': config.seed,
            'store': config.store,
        }
        return pack(LabelledClip(about, video, queries, *labels), config.quality)

    def _loaded(self) -> list[Teacher]:
        if not self.teachers:
            job, loaded = self.job, []
            for name, sha256 in job.teachers:
                teacher = load_teacher(
                    name, job.config.visibility_threshold, job.device, job.threads
                )
                if teacher.sha256 != sha256:
                    raise ValueError(f'{name} is another file here than where the run began')
                loaded.append(teacher)
            self.teachers = loaded  # all or none: a clip's teacher is drawn from all of them
        return self.teachers

    def _record(self, clip: PlannedClip, state: str, reason: str) -> Outcome:
        outcome = self._write(*_note(clip, state, reason))
        return outcome if outcome.state == 'lost' else Outcome(state, reason)

    def _write(self, name: str, data: bytes) -> Outcome:
        try:
            self.folder.write(name, data)
        except OSError as error:
            return Outcome('lost', f'{self.folder.url}/{name}: {error.strerror or error}')
        return Outcome('done')


@lru_cache(maxsize=1)
def worker(job: Job) -> Worker:
    """The worker of this process."""
    return Worker(job)


def _note(clip: PlannedClip, state: str, reason: str) -> tuple[str, bytes]:
    """The name and the content of the file that says why a clip has no labels."""
    note = {'id': clip.id, 'video': clip.video.url, 'first': clip.first, 'reason': reason}
    return name_of(state, clip.id, '.json'), _json(note)


def _told(error: Exception) -> str:
    """What an error says; of one that is none of ours with its kind."""
    return str(error) if isinstance(error, VideoError) else f'{type(error).__name__}: {error}'


def _json(content: Any) -> bytes:
    return (json.dumps(content, sort_keys=True) + '\n').encode()


def _video_note(video: VideoFile) -> str:
    return name_of('videos', hashlib.sha256(os.fsencode(video.url)).hexdigest()[:16], '.json')


# A pool maps a method of Worker over items: pairs of an item and its outcome, as they come.
Pool = Callable[[str, Iterable[Any]], Iterator[tuple[Any, Outcome]]]


def in_process(job: Job) -> Pool:
    """A pool that does all work in this process, in order."""

    def run(method: str, items: Iterable[Any]) -> Iterator[tuple[Any, Outcome]]:
        for item in items:
            yield item, getattr(worker(job), method)(item)

    return run


def on_ray(job: Job, address: str) -> Pool:
    """A pool on a Ray cluster, a task for each item; `auto`: the cluster of this machine, or one
    started for this run on its cores. A task whose worker dies is given to another one.

    Raises ImportError where ray is missing, ConnectionError for an address with no cluster.
    """
    import ray

    modules = [str(ROOT / 'train'), str(ROOT / 'cotracker_ros')]
    # At most one log line per event in the driver; workers' warnings would hide the progress bar.
    options: dict[str, Any] = {
        'runtime_env': {'py_modules': modules, 'excludes': ['**/__pycache__', '**/*.pyc']},
        'log_to_driver': False,
        'logging_level': 'ERROR',
    }
    if not ray.is_initialized():
        try:
            ray.init(address=address, **options)
        except ConnectionError:
            if address != 'auto':
                raise
            ray.init(include_dashboard=False, **options)

    on_gpu = job.device.startswith('cuda')

    @ray.remote(num_cpus=job.threads, num_gpus=1 if on_gpu else 0, max_retries=RETRIES)
    def task(job: Job, method: str, item: Any) -> Outcome:
        return getattr(worker(job), method)(item)

    shared = ray.put(job)

    def run(method: str, items: Iterable[Any]) -> Iterator[tuple[Any, Outcome]]:
        items = iter(items)
        # Enough to keep every worker busy while results are collected, and no more: a million
        # tasks at once would lie in this process's memory.
        unit = 'GPU' if on_gpu else 'CPU'
        many = 2 * max(1, int(ray.cluster_resources().get(unit, 1)))
        running = {task.remote(shared, method, item): item for item in islice(items, many)}
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            item = running.pop(ready)
            for more in islice(items, 1):
                running[task.remote(shared, method, more)] = more
            try:
                yield item, ray.get(ready)
            except ray.exceptions.RayError as error:
                cause = getattr(error, 'cause', None) or error
                first = str(cause).strip().partition('\n')[0]
                yield item, Outcome('failed', f'{type(cause).__name__}: {first}')

    return run


def plan(
    folder: Folder,
    videos: Sequence[VideoFile],
    config: LabelConfig,
    pool: Pool,
    per_video: int | None = None,
) -> tuple[list[PlannedClip], Counter]:
    """The clips of the videos, of each at most `per_video`, and how many videos are of use. What
    is known of a video from an earlier run is not found out again.
    """
    names, known = {video: _video_note(video) for video in videos}, folder.names('videos', '.json')
    old = folder.read_all(sorted(set(known) & set(names.values())))
    notes = {video: json.loads(old[name]) for video, name in names.items() if name in old}
    new = [v for v in videos if v not in notes or not _still_holds(notes[v], v)]
    for video, outcome in _bar(pool('inspect', new), len(new), 'video'):
        _stop_if_lost(outcome)
        notes[video] = outcome.note
        if outcome.state == 'failed':  # its worker died of it, each time
            note = {'video': video.url, 'unreadable': outcome.reason, 'stamp': video.stamp}
            folder.write(names[video], _json(note))
            notes[video] = note
    clips: dict[str, PlannedClip] = {}
    counts, contents = Counter(), set()
    for video in videos:
        note = notes[video]
        if 'unreadable' in note:
            counts['unreadable'] += 1
            print(f'unreadable: {note["unreadable"]}', file=sys.stderr)
            continue
        facts = Facts(note['sha256'], note['frames'], note['fps'], tuple(note['size']))
        starts = spread(cut(facts.frames, config), per_video)
        if facts.sha256 in contents:
            counts['there twice'] += 1
        elif not starts:
            counts['too short'] += 1
            needed = f'{facts.frames} frames, {config.min_frames} are needed'
            print(f'too short: {video.url}: {needed}', file=sys.stderr)
        else:
            counts['of use'] += 1
        contents.add(facts.sha256)
        for first, frames in starts:
            key = f'{facts.sha256} {first} {frames}'
            clip = PlannedClip(_clip_id(key), video, facts, first, frames)
            clips.setdefault(clip.id, clip)
    return list(clips.values()), counts


def _still_holds(note: dict, video: VideoFile) -> bool:
    """Whether what was found out about a video need not be found out again. What could not be read
    is tried again: a network, a disk or a missing package may have been why.
    """
    return note.get('stamp') == video.stamp and 'unreadable' not in note


def cut(frames: int, config: LabelConfig) -> list[tuple[int, int]]:
    """First frame and length of each clip of a video: one after the other, the last shorter."""
    starts = range(0, frames - config.min_frames + 1, config.frames)
    return [(first, min(config.frames, frames - first)) for first in starts]


def spread(clips: list[tuple[int, int]], most: int | None) -> list[tuple[int, int]]:
    """At most so many of a video's clips, from all over it."""
    if most is None or most >= len(clips):
        return clips
    return [clips[int((k + 0.5) * len(clips) / most)] for k in range(most)]


def _clip_id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _bar(outcomes: Iterator[tuple[Any, Outcome]], total: int, unit: str) -> Iterable:
    return tqdm(outcomes, total=total, unit=unit, disable=None)


def _stop_if_lost(outcome: Outcome) -> None:
    if outcome.state == 'lost':
        raise OutputError(outcome.reason)


@dataclasses.dataclass
class Report:
    """What a run found and did."""

    videos: Counter
    others: int  # files that are no video
    planned: int
    states: Counter  # of the planned clips, see STATES
    reasons: Counter  # of skipped and failed ones
    workers: dict[str, list[float]]  # clips, frames, seconds of each

    def __str__(self) -> str:
        def listed(counts: Counter) -> str:
            return ', '.join(f'{n} {what}' for what, n in counts.items() if n) or 'none'

        lines = [f'videos: {listed(self.videos)}; {self.others} other files']
        lines.append(f'clips: {self.planned}, of these {listed(self.states)}')
        lines += [f'  {n} {reason}' for reason, n in self.reasons.most_common(20)]
        for name, (clips, frames, seconds) in sorted(self.workers.items()):
            lines.append(
                f'worker {name}: {clips:.0f} clips, {seconds / clips:.2f} s a clip, '
                f'{frames / max(seconds, 1e-9):.1f} frames/s'
            )
        return '\n'.join(lines)


def run(
    urls: Sequence[str],
    job: Job,
    pool: Pool,
    limit: int | None = None,
    per_video: int | None = None,
    on_outcome: Callable[[PlannedClip, Outcome], None] | None = None,
) -> Report:
    """Label what is not labelled yet.

    limit: clips of this run, for a first look. per_video: clips of a video at most. on_outcome:
    called with every outcome as it comes. Raises Busy, OutputError, FileNotFoundError for a URL
    with nothing at it, and ValueError for an output of other settings.
    """
    folder = Folder(job.output)
    videos, others = find_videos(urls)
    with Lease(folder):
        folder.sweep()
        _agree_on_settings(folder, job)
        clips, counts = plan(folder, videos, job.config, pool, per_video)
        lines = (
            {'id': c.id, 'video': c.video.url, 'first': c.first, 'frames': c.frames} for c in clips
        )
        folder.write('manifest.jsonl', b''.join(map(_json, lines)))
        finished = _ids(folder, 'clips', '.npz') | _ids(folder, 'skipped', '.json')
        waiting = [clip for clip in clips if clip.id not in finished]
        now = waiting[:limit]
        states = Counter(dict.fromkeys(STATES, 0))  # printed in this order
        report = Report(counts, others, len(clips), states, Counter(), {})
        report.states['done before'] = len(clips) - len(waiting)
        rows: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
        try:
            for clip, outcome in _bar(pool('label', now), len(now), 'clip'):
                _stop_if_lost(outcome)
                if outcome.state == 'failed' and not outcome.worker:  # which died of it
                    folder.write(*_note(clip, 'failed', outcome.reason))
                report.states[outcome.state] += 1
                if outcome.reason:
                    report.reasons[f'{outcome.state}: {outcome.reason}'] += 1
                for i, value in enumerate((1, outcome.frames, outcome.seconds)):
                    rows[outcome.worker or 'dead'][i] += value
                if on_outcome is not None:
                    on_outcome(clip, outcome)
        finally:
            report.states['missing'] = len(clips) - sum(report.states.values())
            report.workers.update(rows)
            print(report)
    return report


def _ids(folder: Folder, kind: str, suffix: str) -> set[str]:
    return {name.rpartition('/')[2].removesuffix(suffix) for name in folder.names(kind, suffix)}


def _agree_on_settings(folder: Folder, job: Job) -> None:
    """Write the settings, or raise ValueError where the folder has others."""
    teachers = [{'name': Path(name).name, 'sha256': sha256} for name, sha256 in job.teachers]
    mine = {'format': FORMAT, 'teachers': teachers, **dataclasses.asdict(job.config)}
    try:
        there = json.loads(folder.read('settings.json'))
    except FileNotFoundError:
        folder.write('settings.json', _json(mine))
        return
    other = [name for name, value in mine.items() if there.get(name) != value]
    if other:
        raise ValueError(
            f'{folder.url}: holds labels made with other settings ({", ".join(other)}); '
            'choose another folder'
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: 0 all done, 1 cannot be done, 2 some clips failed or are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('videos', nargs='+', help='files, folders, recordings; paths or URLs')
    parser.add_argument('--output', required=True, help='folder of labels; a path or URL')
    parser.add_argument(
        '--teachers', nargs='+', default=['realtime', 'dis-flow', 'lucas-kanade'],
        help='lucas-kanade, dis-flow, shipped names, .onnx, .safetensors, .pth '
        '[realtime dis-flow lucas-kanade]',
    )  # fmt: skip
    parser.add_argument('--ray', metavar='ADDRESS', help='auto, or the address of a Ray cluster')
    parser.add_argument('--device', default='cpu', help='where checkpoints compute [cpu]')
    parser.add_argument(
        '--threads', type=int, default=1,
        help='of a worker; with others, networks round differently [1]',
    )  # fmt: skip
    parser.add_argument('--limit', type=at_least_one, help='clips of this run, for a first look')
    parser.add_argument(
        '--per-video', type=at_least_one,
        help='clips of a video at most, from all over it, so that long videos do not outweigh '
        'the others [all]',
    )  # fmt: skip
    for field in dataclasses.fields(LabelConfig):
        option = '--' + field.name.replace('_', '-')
        if isinstance(field.default, bool):
            parser.add_argument(option, action='store_true', help=HELP[field.name])
        else:
            parser.add_argument(
                option, type=type(field.default), default=field.default,
                help=f'{HELP[field.name]} [{field.default}]',
            )  # fmt: skip
    args = parser.parse_args(arguments)
    try:
        chosen = {f.name: getattr(args, f.name) for f in dataclasses.fields(LabelConfig)}
        teachers = tuple((name, weights_hash(name)) for name in args.teachers)
        job = Job(LabelConfig(**chosen), teachers, args.output, args.device, args.threads)
        for name in args.teachers:  # one that cannot be loaded ends the run before any work
            try_out(load_teacher(name, job.config.visibility_threshold))
        pool = on_ray(job, args.ray) if args.ray else in_process(job)
        report = run(args.videos, job, pool, args.limit, args.per_video)
    except (Busy, EngineError, OutputError, ValueError, OSError, ImportError) as error:
        print(f'pseudo_label: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('pseudo_label: stopped; the same command goes on', file=sys.stderr)
        return 130
    return 2 if report.states['failed'] or report.states['missing'] else 0


def at_least_one(word: str) -> int:
    """A count from the command line."""
    count = int(word)
    if count < 1:
        raise argparse.ArgumentTypeError(f'{count} is less than 1')
    return count


HELP = {
    'seed': 'of queries and of the choice of teachers',
    'frames': 'of a clip',
    'min_frames': 'of the shortest clip',
    'size': "px of the frames' longer side; 0: as recorded",
    'points': 'queries of a clip; one with fewer keypoints is skipped',
    'query_frames': 'frames that queries are taken from, more of them early',
    'moving_share': 'of the queries, taken where the picture changes',
    'min_tracks': 'that must pass the checks, or the clip is skipped',
    'visibility_threshold': "probability above which a network's point is visible",
    'round_trip': 'px, largest forward-backward error; 0: not checked',
    'min_correlation': "of a visible point's patch with its query's; 0: not checked",
    'together': 'every teacher tracks every clip, and more than half must agree',
    'agree': 'px from the median of the teachers, with --together',
    'store': 'jpeg: pictures beside the labels; reference: where the video is',
    'quality': 'of the pictures, JPEG',
}

if __name__ == '__main__':
    # Workers must find what they are sent under a name that can be imported.
    from train import pseudo_label

    raise SystemExit(pseudo_label.main())
