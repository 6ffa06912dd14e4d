"""How well people are tracked between the detections of a slow pose detector.

    python train/following.py VIDEO ... --detector 'COMMAND' --output runs/following.json

The detector (see examples/blazepose.py) runs once on every frame; at 1, 2, 5 and 10 detections a
second all others are kept from the tracker, and are what it is measured against: the distance from
the detector's own keypoints in frames that were not given, beside holding the last detection and
Lucas-Kanade from it. There is no ground truth here: the detector's jitter is in every row.

Times are of the processor, all threads together, so that a busy machine does not change them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

if not __package__:  # run as a script: the folder above holds the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.demo.video import VideoError, open_video
from cotracker_ros.engines import EngineError
from cotracker_ros.follow import Follower, People
from cotracker_ros.streaming import StreamingTracker
from examples.follow_people import Detector
from export.reporting import markdown

RATES = (1.0, 2.0, 5.0, 10.0)  # detections a second
PEOPLE = 3  # for whom there is room
MIN_SCORE = 0.5  # of a keypoint that counts

Method = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Video (T, H, W, 3), detections (T, 17, 3), given (T,) bool -> xy (T, 17, 2), NaN: none."""


def known(detections: np.ndarray) -> np.ndarray:
    """Return the places (..., 17, 2) of detections (..., 17, 3), NaN where their score is low."""
    return np.where(detections[..., 2:] >= MIN_SCORE, detections[..., :2], np.nan)


def hold(video: np.ndarray, detections: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Everybody stays where the last detection was."""
    last = np.maximum.accumulate(np.where(given, np.arange(len(given)), 0))
    return known(detections)[last]


def lucas_kanade(video: np.ndarray, detections: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Pyramidal Lucas-Kanade from frame to frame, from each detection on."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
    xy, places = known(detections), np.full((*detections.shape[:2], 2), np.nan)
    for t in range(len(video)):
        if given[t]:
            places[t] = xy[t]
            continue
        seen = np.flatnonzero(np.isfinite(places[t - 1]).all(1))
        if len(seen):
            start = places[t - 1, seen].astype(np.float32)[:, None]
            moved, _, _ = cv2.calcOpticalFlowPyrLK(
                grey[t - 1], grey[t], start, np.empty_like(start), winSize=(21, 21), maxLevel=3
            )
            places[t, seen] = moved[:, 0]
    return places


def tracked(model: str, fps: float, threads: int) -> Method:
    """Our tracker, which each detection corrects."""
    tracker = StreamingTracker(model, 17 * PEOPLE, threads=threads)

    def run(video: np.ndarray, detections: np.ndarray, given: np.ndarray) -> np.ndarray:
        tracker.reset()
        follower = Follower(tracker, People(MIN_SCORE, patience=3.0))
        places = np.full((*detections.shape[:2], 2), np.nan)
        for t, frame in enumerate(video):
            if given[t] and np.isfinite(detections[t]).all():
                follower.correct(detections[t][None], t / fps)
            poses = follower.track(frame, t / fps)
            if poses:  # whom the detector found last, where it goes from one person to another
                places[t] = max(poses, key=lambda pose: pose.found).xy
        return places

    return run


def score(places: np.ndarray, detections: np.ndarray, given: np.ndarray) -> dict[str, float]:
    """Return the median distance from the detections that were not given, in percent of the
    person's size, and the share within 10 %.

    Counted are keypoints whose score is high enough both here and in the last detection given.
    """
    xy = known(detections)
    low, high = (np.where(np.isfinite(xy), xy, fill) for fill in (np.inf, -np.inf))
    size = (high.max(1) - low.min(1)).max(-1)  # -inf where nobody was found
    counted = ~given[:, None] & np.isfinite(xy).all(-1)
    counted &= np.isfinite(hold(places, detections, given)).all(-1) & (size > 0)[:, None]
    error = np.linalg.norm(places - xy, axis=-1) / size[:, None]
    error = np.where(np.isfinite(error), error, np.inf)[counted]  # no track: wrong
    return {
        'median': 100 * float(np.median(error)) if len(error) else float('nan'),
        'within 10 %': 100 * float((error < 0.1).mean()) if len(error) else float('nan'),
        'counted': len(error),
    }


def processor_seconds(pid: int) -> float:
    """Return the seconds of the processor that another process has used (Linux)."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def detect(
    path: Path, detector: Detector, seconds: float
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Return a video (T, H, W, 3), at most 640 px wide, the first person (T, 17, 3) that the
    detector finds in every frame, NaN: none, the frames a second, and the detector's ms a frame.
    """
    video = open_video(str(path))
    images, detections, began = [], [], 0.0
    for image in islice(video.frames, round(seconds * video.fps)):
        if len(images) == 1:  # the first one loads the network
            began = processor_seconds(detector.pid)
        scale = min(1.0, 640 / image.shape[1])
        size = round(scale * image.shape[1]), round(scale * image.shape[0])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        found = detector.find(image)
        images.append(image)
        detections.append(found[0] if len(found) else np.full((17, 3), np.nan))
    used = processor_seconds(detector.pid) - began
    return np.stack(images), np.stack(detections), video.fps, 1000 * used / max(1, len(images) - 1)


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description='Measure following between detections.')
    parser.add_argument('videos', type=Path, nargs='+')
    parser.add_argument('--detector', required=True, help='its command')
    parser.add_argument('--model', default='realtime', help='shipped name or file [realtime]')
    parser.add_argument('--seconds', type=float, default=4, help='of each video, at most [4]')
    parser.add_argument('--threads', type=int, default=1, help='of the runtime [1]')
    parser.add_argument('--output', type=Path, default=Path('runs/following.json'))
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rows = []
    try:
        detector = Detector(args.detector)
        for path in args.videos:
            video, detections, fps, detector_ms = detect(path, detector, args.seconds)
            methods = {
                'still': hold,
                'Lucas-Kanade': lucas_kanade,
                'tracker': tracked(args.model, fps, args.threads),
            }
            for rate in RATES:
                due = np.arange(len(video)) * rate / fps
                given = np.diff(np.floor(due + 1e-6), prepend=-1) > 0
                for name, run in methods.items():
                    began = time.process_time()
                    places = run(video, detections, given)
                    ms = 1000 * (time.process_time() - began) / len(video)
                    row = {'video': path.name, 'rate': rate, 'method': name}
                    row |= score(places, detections, given)
                    row |= {'ms': ms, 'detector ms': detector_ms}
                    row['pair ms'] = ms + detector_ms * rate / fps
                    rows.append(row)
                    print(rows[-1], flush=True)
        detector.close()
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rows, indent=1) + '\n')
    except (VideoError, EngineError, ValueError, OSError) as error:
        print(f'following: {error}', file=sys.stderr)
        return 1
    print('\n'.join(table(rows)))
    return 0


def table(rows: list[dict]) -> list[str]:
    """Return the means over the videos as a table in Markdown."""
    names = list(dict.fromkeys(row['method'] for row in rows))
    head = ['detections a second', *names, 'frames a second: pair', 'detector alone']
    lines = []
    for rate in sorted({row['rate'] for row in rows}):
        own = [row for row in rows if row['rate'] == rate and row['counted']]
        if not own:
            continue
        cells = []
        for name in names:
            of = [row for row in own if row['method'] == name]
            within, median = (np.mean([row[k] for row in of]) for k in ('within 10 %', 'median'))
            cells.append(f'{within:.1f} % ({median:.1f})')
        pair = 1000 / np.mean([row['pair ms'] for row in own if row['method'] == names[-1]])
        alone = 1000 / np.mean([row['detector ms'] for row in own])
        lines.append([f'{rate:g}', *cells, f'{pair:.1f}', f'{alone:.1f}'])
    return markdown(head, lines)


if __name__ == '__main__':
    raise SystemExit(main())
