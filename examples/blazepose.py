r"""A pose detector as a process of its own: frames in on stdin, people out on stdout.

BlazePose (Apache-2.0) as the wheel mediapipe 0.10.21 carries it. It wants numpy 1 and jax, so it
has an environment of its own:

    python3.11 -m venv detector && detector/bin/pip install mediapipe==0.10.21
    python examples/follow_people.py clip.mp4 --detector \
        'detector/bin/python examples/blazepose.py'

A frame is height and width as two little-endian uint32, then height x width x 3 bytes of RGB. Its
answer is a line of JSON: a list of people, each 17 triples of x, y px and score in [0, 1] in
COCO's order. Any program that speaks so can stand in. BlazePose finds one person.
"""

import json
import os
import struct
import sys

import mediapipe as mp
import numpy as np

# BlazePose's landmarks that are COCO's keypoints, in COCO's order.
COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)


def main() -> None:
    """Answer every frame until stdin ends."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    frames = sys.stdin.buffer
    # Each frame on its own: what is between is the tracker's.
    with mp.solutions.pose.Pose(static_image_mode=True, model_complexity=1) as pose:
        while len(head := frames.read(8)) == 8:
            height, width = struct.unpack('<II', head)
            data = frames.read(height * width * 3)
            image = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            found = pose.process(image).pose_landmarks
            people = []
            if found is not None:
                marks = [found.landmark[k] for k in COCO]
                people.append(
                    [(m.x * width - 0.5, m.y * height - 0.5, m.visibility) for m in marks]
                )
            print(json.dumps(people), file=answers, flush=True)


if __name__ == '__main__':
    main()
