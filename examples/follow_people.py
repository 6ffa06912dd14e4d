"""Detector slow, tracker fast: people of a video, found a few times a second, followed always.

    python examples/follow_people.py clip.mp4 --detector 'COMMAND' --rate 2 --output people.mp4

COMMAND is a pose detector that reads frames and answers with people as examples/blazepose.py does.
Writes a video of the skeletons.
"""

import argparse
import json
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from cotracker_ros.demo.video import VideoError, open_video
from cotracker_ros.engines import EngineError
from cotracker_ros.follow import Follower, People, Pose
from cotracker_ros.streaming import StreamingTracker
from cotracker_ros.visualise import draw_pose, write_video


class Detector:
    """A detector's process; see examples/blazepose.py for what goes in and out."""

    def __init__(self, command: str) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(shlex.split(command), stdin=pipe, stdout=pipe)

    def find(self, frame: np.ndarray) -> np.ndarray:
        """Return the people (P, 17, 3) of a frame: x, y px and score. OSError where it ended."""
        height, width = frame.shape[:2]
        try:
            self._process.stdin.write(struct.pack('<II', height, width) + frame.tobytes())
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b''
        if not answer:
            raise OSError(f'the detector ended with status {self._process.wait()}')
        people = np.array(json.loads(answer), float).reshape(-1, 17, 3)
        x, y, score = np.moveaxis(people, 2, 0)
        score[(x < 0) | (y < 0) | (x > width - 1) | (y > height - 1)] = 0  # no tracker sees them
        return people

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(10)


def drawn(frame: np.ndarray, poses: list[Pose]) -> np.ndarray:
    """Return the frame with everybody's skeleton."""
    if not poses:
        return frame
    xy, visible = (np.concatenate([getattr(p, n) for p in poses]) for n in ('xy', 'visible'))
    instance = np.repeat([p.instance for p in poses], 17)
    return draw_pose(frame, xy, visible, np.tile(np.arange(17), len(poses)), instance)


def follow(video, detector: Detector, follower: Follower, rate: float):
    """Yield the frames with their skeletons, asking the detector `rate` times a second."""
    due = 0.0
    for number, frame in enumerate(video.frames):
        stamp = number / video.fps
        if stamp >= due - 1e-6:
            due += 1 / rate
            try:
                follower.correct(detector.find(frame), stamp)
            except ValueError as error:  # more people than there is room for
                print(f'frame {number}: {error}', file=sys.stderr)
        yield drawn(frame, follower.track(frame, stamp))


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description='Follow the people of a video.')
    parser.add_argument('video', help='a file OpenCV can read, or a folder of images')
    parser.add_argument('--detector', required=True, help='command of the detector')
    parser.add_argument('--rate', type=float, default=2.0, help='detections a second [2]')
    parser.add_argument('--output', type=Path, default=Path('people.mp4'))
    parser.add_argument('--model', default='realtime', help='shipped name or file [realtime]')
    parser.add_argument('--points', type=int, default=68, help='room, 17 a person [68]')
    args = parser.parse_args()
    detector = None
    try:
        if args.rate <= 0:
            raise ValueError(f'--rate is {args.rate}, it must be above 0')
        video = open_video(args.video)
        tracker = StreamingTracker(args.model, args.points)
        follower = Follower(tracker, People(patience=1.5 / args.rate))
        detector = Detector(args.detector)
        write_video(args.output, follow(video, detector, follower, args.rate), video.fps)
    except (VideoError, EngineError, ValueError, OSError) as error:
        print(f'follow_people: {error}', file=sys.stderr)
        return 1
    finally:
        if detector is not None:
            detector.close()
    print(f'wrote {args.output}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
