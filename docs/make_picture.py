"""`make picture`: docs/tracks.webp for the README, the demo's clip with its tracks."""

from pathlib import Path

import numpy as np
from PIL import Image

from cotracker_ros.demo.clip import FPS, FRAMES, SIZE, Clip
from cotracker_ros.streaming import StreamingTracker
from cotracker_ros.visualise import draw_tracks

OUTPUT = Path(__file__).with_name('tracks.webp')
STEP = 3  # every third frame is shown; all are tracked
WIDTH = 416  # px of the picture
SIDE = 8  # points per side of the grid


def main() -> None:
    """Track the clip and write the picture."""
    tracker, clip = StreamingTracker(max_points=SIDE**2), Clip()
    y, x = np.meshgrid(*(np.arange(SIDE) * s / SIDE + s / SIDE / 2 for s in SIZE), indexing='ij')
    tracker.add_points(np.stack([x.ravel(), y.ravel()], 1))
    places, seen, pictures = [], [], []
    for index in range(FRAMES):
        frame = clip.frame(index)
        tracks = tracker.track(frame, index / FPS)
        places.append(tracks.xy)
        seen.append(tracks.visible)
        if index % STEP == 0:
            drawn = draw_tracks(frame, np.array(places), np.array(seen), tracks.ids, tail=20)
            size = (WIDTH, round(WIDTH * SIZE[0] / SIZE[1]))
            pictures.append(Image.fromarray(drawn).resize(size, Image.Resampling.LANCZOS))
    duration = round(1000 * STEP / FPS)
    pictures[0].save(
        OUTPUT, save_all=True, append_images=pictures[1:], duration=duration, loop=0,
        quality=55, method=4,
    )  # fmt: skip
    print(f'{OUTPUT}: {len(pictures)} frames, {OUTPUT.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    main()
