"""The training streams: batch i is a function of the seed and i alone, so that a resumed run
goes on exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from train.data.augment import AugmentConfig, augment
from train.data.batch import Clips
from train.data.clip import Clip, DataError
from train.data.readers.kubric import read_kubric
from train.data.synthetic.procedural import ProceduralVideo, SceneConfig

CHAPTER = 400  # batches between new texture banks, which take some seconds to make


@dataclass(frozen=True)
class StreamConfig:
    """What a batch of clips holds."""

    clips: int = 2
    points: int = 64
    bank: int = 64  # generated textures in use at a time
    pace: tuple[float, float] = (
        0.5,
        2.0,
    )  # frame rate of a clip against the scene's own, log-uniform
    skip: float = 0.1  # chance that frames are dropped before a frame
    shuffle: bool = False  # unrelated frame times up to pace[1] apart: for matching, not tracking
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009 (frozen), of recorded data


def batch_numbers(start: int, rank: int, ranks: int) -> Iterator[int]:
    """The numbers of a process's batches from step `start` on; a loader's workers take turns."""
    worker = get_worker_info()
    first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
    if worker:
        torch.set_num_threads(1)
    return (step * ranks + rank for step in count(start + first, stride))


class ClipStream(IterableDataset):
    """Endless batches of `Clips` for one process of a run."""

    def __init__(
        self,
        scene: SceneConfig,
        stream: StreamConfig,
        seed: int,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
        device: str = 'cpu',
        textures: Sequence[np.ndarray] = (),
    ):
        super().__init__()
        self.scene, self.stream, self.seed, self.start = scene, stream, seed, start
        self.rank, self.ranks, self.device, self.textures = rank, ranks, device, textures

    def __iter__(self) -> Iterator[Clips]:
        video, chapter = None, -1
        for index in batch_numbers(self.start, self.rank, self.ranks):
            if video is None or chapter != index // CHAPTER:
                chapter = index // CHAPTER
                seed = self.seed * 1_000_003 + chapter
                video = ProceduralVideo(
                    self.scene, seed, self.device, self.textures, self.stream.bank
                )
            video.rng.manual_seed(self.seed * 7_919_000_003 + index)
            yield video.clips(self.stream.clips, self.stream.points, self.times(video))

    def times(self, video: ProceduralVideo) -> Tensor:
        """Frame times (clips, T): evenly paced with dropped frames, in the scene's frames."""
        shape, (low, high) = (self.stream.clips, self.scene.frames), self.stream.pace
        if self.stream.shuffle:
            return video.uniform(*shape, low=low, high=high).cumsum(1)
        pace = low * (high / low) ** video.uniform(shape[0], 1)
        dropped = (video.uniform(*shape) < self.stream.skip) * (
            1 + 3 * video.uniform(*shape)
        ).floor()
        return pace * (1 + dropped).cumsum(1)


class FolderStream(IterableDataset):
    """Endless batches of `Clips` cut out of Kubric sequences, augmented, for one process."""

    def __init__(
        self,
        sequences: Sequence[Path],
        scene: SceneConfig,
        stream: StreamConfig,
        seed: int,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        super().__init__()
        self.sequences, self.scene, self.stream = sequences, scene, stream
        self.seed, self.start, self.rank, self.ranks = seed, start, rank, ranks

    def __iter__(self) -> Iterator[Clips]:
        for index in batch_numbers(self.start, self.rank, self.ranks):
            rng = np.random.default_rng((self.seed, index))
            parts = [self.clip(rng) for _ in range(self.stream.clips)]
            yield Clips(*(torch.stack(x) for x in zip(*parts, strict=True)))

    def clip(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One random clip: video, tracks, visible and query frames as in `Clips`, without B."""
        for _ in range(20):
            path = self.sequences[int(rng.integers(len(self.sequences)))]
            clip = read_kubric(path)
            part = None if clip is None else self.cut(clip, rng)
            if part is not None:
                return part
        raise DataError(
            f'{path.parent}: 20 sequences in a row have fewer than {self.scene.frames} frames '
            f'or {self.stream.points} visible points'
        )

    def cut(
        self, clip: Clip, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Frames of a random stretch at a random pace, and points that are visible at a random
        frame of it, half of them at the first; None where there are too few.
        """
        frames, points = self.scene.frames, self.stream.points
        fastest = min(self.stream.pace[1], (len(clip.video) - 1) / max(1, frames - 1))
        if len(clip.video) < frames:
            return None
        pace = rng.uniform(1, max(1, fastest))
        last = len(clip.video) - 1 - (frames - 1) * pace
        index = (rng.uniform(0, last) + pace * np.arange(frames)).astype(int)
        video, tracks, visible = augment(
            clip.video[index],
            clip.tracks[index],
            clip.visible[index],
            self.scene.size,
            self.stream.augment,
            rng,
        )
        wanted = np.where(rng.random(tracks.shape[1]) < 0.5, 0, rng.integers(frames))
        chosen = np.flatnonzero(visible[wanted, np.arange(tracks.shape[1])])
        if len(chosen) < points:
            return None
        chosen = rng.choice(chosen, points, replace=False)
        return (
            torch.from_numpy(video),
            torch.from_numpy(tracks[:, chosen].astype(np.float32)),
            torch.from_numpy(visible[:, chosen]),
            torch.from_numpy(wanted[chosen].astype(np.int64)),
        )


def loader(stream: IterableDataset, workers: int) -> Iterator[Clips]:
    """Iterate over a stream, rendering in `workers` other processes, or in this one when 0 (as
    on a GPU).
    """
    return iter(
        DataLoader(
            stream, batch_size=None, num_workers=workers, prefetch_factor=3 if workers else None
        )
    )
