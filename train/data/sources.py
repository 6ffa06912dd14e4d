"""The sources of training clips by name, as the YAML of a run mixes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor

from cotracker_ros.geometry import rescale
from cotracker_ros.streaming.image import resize
from train.data.augment import augment
from train.data.batch import BatchConfig, Clips
from train.data.clip import Clip, DataError
from train.data.mixture import Mixture, Source
from train.data.readers.kubric import kubric_sequences, read_kubric
from train.data.readers.posetrack import (
    COUNT,
    clip_of,
    posetrack_files,
    read_sequence,
    read_starts,
)
from train.data.readers.posetrack import Sequence as PoseSequence
from train.data.readers.pseudo_labels import PseudoLabels
from train.data.synthetic.photo_scenes import PhotoClip, PhotoScenes, video_cutouts
from train.data.synthetic.procedural import ProceduralVideo, SceneConfig
from train.data.synthetic.textures import read_photographs

if TYPE_CHECKING:
    from train.config import TrainConfig

CHAPTER = 400  # batches between new texture banks, which take some seconds to make
TRIES = 20  # recordings looked at for one clip


class ProceduralSource:
    """Clips rendered from nothing but photographs (synthetic/procedural.py)."""

    name = 'procedural'

    def __init__(
        self,
        scene: SceneConfig,
        batch: BatchConfig,
        seed: int,
        device: str = 'cpu',
        textures: Sequence[np.ndarray] = (),
    ):
        self.scene, self.config, self.seed = scene, batch, seed
        self.device, self.textures, self.chapter = device, textures, -1
        self.video: ProceduralVideo

    def batch(self, index: int) -> Clips:
        """Batch `index` of the run; the texture bank is that of its chapter."""
        if self.chapter != index // CHAPTER:
            self.chapter = index // CHAPTER
            seed = self.seed * 1_000_003 + self.chapter
            self.video = ProceduralVideo(
                self.scene, seed, self.device, self.textures, self.config.bank
            )
        self.video.rng.manual_seed(self.seed * 7_919_000_003 + index)
        return self.video.clips(self.config.clips, self.config.points, self.times(self.video))

    def times(self, video: ProceduralVideo) -> Tensor:
        """Frame times (clips, T): evenly paced with dropped frames, in the scene's frames."""
        shape, (low, high) = (self.config.clips, self.scene.frames), self.config.pace
        if self.config.shuffle:
            return video.uniform(*shape, low=low, high=high).cumsum(1)
        pace = low * (high / low) ** video.uniform(shape[0], 1)
        dropped = (video.uniform(*shape) < self.config.skip) * (
            1 + 3 * video.uniform(*shape)
        ).floor()
        return pace * (1 + dropped).cumsum(1)


class RandomClips:
    """A source that draws each clip of a batch at random, from its seed and the batch's index."""

    config: BatchConfig
    seed: int

    def batch(self, index: int) -> Clips:
        """Batch `index` of the run. Raises DataError where hardly a clip will do."""
        rng = np.random.default_rng((self.seed, index))
        return Clips.join([self.clip(rng) for _ in range(self.config.clips)])

    def clip(self, rng: np.random.Generator) -> Clips:
        """A random clip, as a batch of one. Raises DataError."""
        raise NotImplementedError


class RecordedSource(RandomClips):
    """Clips of `size` (H, W) px cut out of recordings with known tracks, augmented."""

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        read: Callable[[Path], Clip | None],
        size: tuple[int, int],
        frames: int,
        batch: BatchConfig,
        seed: int,
    ):
        """read returns the clip of a file, or None where no point is ever visible in it."""
        self.name, self.files, self.read = name, files, read
        self.size, self.frames, self.config, self.seed = size, frames, batch, seed

    def clip(self, rng: np.random.Generator) -> Clips:
        """One random clip, as a batch of one."""
        for _ in range(TRIES):
            path = self.files[int(rng.integers(len(self.files)))]
            clip = self.read(path)
            part = None if clip is None else self.cut(clip, rng)
            if part is not None:
                return part
        raise DataError(
            f'{path.parent}: {TRIES} sequences in a row have fewer than {self.frames} frames '
            f'or {self.config.points} visible points'
        )

    def cut(self, clip: Clip, rng: np.random.Generator) -> Clips | None:
        """Frames of a random stretch at a random pace, forwards or backwards, and points with the
        frames that they are queried in: half of them the first, the others a random one; where a
        point is not visible there, the first that shows it. None where there are too few.
        """
        frames, points = self.frames, self.config.points
        fastest = min(self.config.pace[1], (len(clip.video) - 1) / max(1, frames - 1))
        if len(clip.video) < frames:
            return None
        pace = rng.uniform(1, max(1, fastest))
        last = len(clip.video) - 1 - (frames - 1) * pace
        index = (rng.uniform(0, last) + pace * np.arange(frames)).astype(int)
        if rng.random() < self.config.augment.reverse:
            index = index[::-1]
        video, tracks, visible = augment(
            clip.video[index],
            clip.tracks[index],
            clip.visible[index],
            self.size,
            self.config.augment,
            rng,
        )
        wanted = np.where(rng.random(tracks.shape[1]) < 0.5, 0, rng.integers(frames))
        first = visible.argmax(0)
        wanted = np.where(visible[wanted, np.arange(tracks.shape[1])], wanted, first)
        chosen = np.flatnonzero(visible.any(0) & (first < frames - 1))
        if len(chosen) < points:
            return None
        chosen = rng.choice(chosen, points, replace=False)
        known = np.ones_like(visible) if clip.known is None else clip.known[index]
        video, tracks, visible, query_frame, known = (
            torch.from_numpy(part)[None]
            for part in (
                video,
                tracks[:, chosen].astype(np.float32),
                visible[:, chosen],
                wanted[chosen].astype(np.int64),
                known[:, chosen],
            )
        )
        return Clips(video, tracks, visible, query_frame, known=known)


class PhotoSource:
    """Scenes of real pixels (synthetic/photo_scenes.py)."""

    name = 'photo'

    def __init__(self, scenes: PhotoScenes, batch: BatchConfig):
        self.scenes, self.config = scenes, batch

    def batch(self, index: int) -> Clips:
        """Batch `index` of the run."""
        cv2.setNumThreads(0)  # threads of OpenCV do not survive the fork of a worker
        count = self.config.clips
        parts = [self.scenes.clip(index * count + k, self.config.points) for k in range(count)]
        columns = zip(*parts, strict=True)
        named = zip(PhotoClip._fields, columns, strict=True)
        return Clips(**{name: torch.from_numpy(np.stack(x)) for name, x in named})


class Fitted:
    """A source whose pictures are resized to `scale` times the model's `size` (H, W) px, edges to
    edges, and whose tracks come in model pixels.
    """

    def __init__(self, source: Source, size: tuple[int, int], scale: int):
        self.source, self.name = source, source.name
        self.size, self.picture_size = size, (scale * size[0], scale * size[1])

    def batch(self, index: int) -> Clips:
        """Batch `index` of the run."""
        clips = self.source.batch(index)
        size = tuple(clips.video.shape[2:4])
        if size != self.picture_size:
            clips.video = torch.from_numpy(
                np.stack([[resize(f, self.picture_size) for f in v] for v in clips.video.numpy()])
            )
        clips.tracks = rescale(clips.tracks, size, self.size)
        if clips.warp is not None:
            scale = torch.tensor(self.size[::-1]) / torch.tensor(size[::-1])
            clips.warp = clips.warp * scale[:, None] / scale
        return clips


class Numbered:
    """A source whose plain points have numbers of keypoints by their place, of nobody."""

    def __init__(self, source: Source):
        self.source, self.name = source, source.name

    def batch(self, index: int) -> Clips:
        """Batch `index` of the run."""
        clips = self.source.batch(index)
        place = torch.arange(clips.keypoint.shape[1]).to(clips.keypoint) % COUNT
        return replace(clips, keypoint=torch.where(clips.keypoint < 0, place, clips.keypoint))


class PoseTrackSource(RandomClips):
    """Clips of one person each from PoseTrack, 17 points in COCO's order, unlabelled frames masked
    (readers/posetrack.py). Keypoints that a clip never shows are plain points that no loss counts.
    """

    name = 'posetrack'

    def __init__(
        self,
        root: str,
        size: tuple[int, int],
        frames: int,
        batch: BatchConfig,
        seed: int,
        starts: str = '',
    ):
        """starts: a JSON of start frames; without one a clip begins in any frame that shows its
        person. Raises DataError for a folder or a file that is none.
        """
        self.root, self.files = Path(root), posetrack_files(root)
        self.size, self.frames, self.config, self.seed = size, frames, batch, seed
        self.starts = read_starts(starts) if starts else None

    def clip(self, rng: np.random.Generator) -> Clips:
        """A random person from a random labelled frame on, as a batch of one."""
        for _ in range(TRIES):
            path = self.files[int(rng.integers(len(self.files)))]
            sequence = read_sequence(path)
            begins = self.begins(path.stem, sequence)
            if begins:
                starts = dict([begins[int(rng.integers(len(begins)))]])
                part = clip_of(self.root, path.stem, sequence, starts, self.size, self.frames)
                if part is not None and part.pose is not None and len(part.video) == self.frames:
                    return whole_person(part, part.pose.keypoint)
        raise DataError(
            f'{self.root}: {TRIES} sequences in a row have nobody who is labelled '
            f'{self.frames} frames before their end'
        )

    def begins(self, name: str, sequence: PoseSequence) -> list[tuple[int, np.ndarray]]:
        """Return whom a clip of a sequence may show, with the start frames (17,) of each."""
        if self.starts is not None:
            starts = self.starts.get(name, {})
            return [(person, starts[person]) for person in sequence.people if person in starts]
        last = len(sequence.images) - self.frames  # the latest that leaves frames enough
        return [
            (person, np.full(COUNT, t))
            for person, marks in sequence.people.items()
            for t, mark in marks.items()
            if t <= last and mark.visible.any()
        ]


def whole_person(clip: Clip, keypoint: np.ndarray) -> Clips:
    """A batch of one clip with 17 points, of which those of keypoints (N,) are known."""
    frames = len(clip.video)
    tracks, query = np.zeros((frames, COUNT, 2), np.float32), np.zeros(COUNT, np.int64)
    visible, known, visibility_known = (np.zeros((frames, COUNT), bool) for _ in range(3))
    number, instance = np.full(COUNT, -1), np.full(COUNT, -1)
    tracks[:, keypoint], visible[:, keypoint] = clip.tracks, clip.visible
    known[:, keypoint] = clip.visible if clip.known is None else clip.known
    visibility_known[:, keypoint] = (
        known[:, keypoint] if clip.visibility_known is None else clip.visibility_known
    )
    query[keypoint], number[keypoint], instance[keypoint] = clip.queries[:, 0], keypoint, 0
    parts = (clip.video, tracks, visible, query, number, instance, known, visibility_known)
    return Clips(*(torch.from_numpy(part)[None] for part in parts))


def people(config: TrainConfig, seed: int, device: str) -> Source:
    """Build the source that renders people: 17 points a clip, keypoints of whom it shows."""
    textures = read_photographs(config.textures)
    scene = replace(config.scene, people=1.0)
    source = ProceduralSource(scene, replace(config.batch, points=COUNT), seed, device, textures)
    source.name = 'people'
    return source


def posetrack(config: TrainConfig, seed: int, device: str) -> Source:
    """Build the source that reads PoseTrack; DataError where the folder holds none."""
    scene = config.scene
    return PoseTrackSource(
        config.posetrack, scene.size, scene.frames, config.batch, seed, config.posetrack_starts
    )


def procedural(config: TrainConfig, seed: int, device: str) -> Source:
    """Build the source that renders; ValueError where the photographs cannot be read."""
    textures = read_photographs(config.textures)
    return ProceduralSource(config.scene, config.batch, seed, device, textures)


def kubric(config: TrainConfig, seed: int, device: str) -> Source:
    """Build the source that reads Kubric; DataError where the folder holds none."""
    scene, files = config.scene, kubric_sequences(config.kubric)
    return RecordedSource(
        'kubric', files, read_kubric, scene.size, scene.frames, config.batch, seed
    )


def pseudo_labels(config: TrainConfig, seed: int, device: str) -> Source:
    """Build the source of labelled real video; DataError where the folder holds none."""
    scene, labels = config.scene, PseudoLabels(config.labels)
    files = [Path(name) for name in labels.names]
    return RecordedSource(
        'pseudo-labels', files, labels.clip, scene.size, scene.frames, config.batch, seed
    )


def photo(config: TrainConfig, seed: int, device: str) -> Source:
    """Build the source of real pixels; ValueError where photographs or videos cannot be read."""
    textures = read_photographs(config.textures)
    scenes = PhotoScenes(config.photo, textures, video_cutouts(config.videos), seed)
    return PhotoSource(scenes, config.batch)


# By the names of the YAML's `sources`. A builder takes the run's settings, the seed and the
# device to render on ('cpu' where other processes make the batches).
SOURCES: dict[str, Callable[[TrainConfig, int, str], Source]] = {
    'procedural': procedural,
    'photo': photo,
    'kubric': kubric,
    'people': people,
    'posetrack': posetrack,
    'pseudo_labels': pseudo_labels,
}


def mixture(
    config: TrainConfig,
    seed: int,
    device: str = 'cpu',
    size: tuple[int, int] | None = None,
    scale: int = 1,
) -> Mixture:
    """Build the mixture that a run learns from, in pictures of `scale` times the model's `size`
    (H, W), by default as the sources give them. Raises ValueError or DataError for a source that
    does not exist, or whose files cannot be used.
    """
    unknown = config.sources.keys() - SOURCES.keys()
    if unknown:
        raise ValueError(f'no source {", ".join(sorted(unknown))}; there are {", ".join(SOURCES)}')
    files = (
        ('kubric', config.kubric),
        ('posetrack', config.posetrack),
        ('posetrack', config.posetrack_starts),
        ('pseudo_labels', config.labels),
    )
    for name, file in files:
        if file and name not in config.sources:
            raise ValueError(f'{file} is named, but sources gives {name} no share')
    sources = [SOURCES[name](config, seed, device) for name in config.sources]
    if size is not None and (scale > 1 or size != config.scene.size or 'photo' in config.sources):
        sources = [Fitted(source, size, scale) for source in sources]
    if config.embedding not in ('pose', 'all'):
        raise ValueError(f'embedding is pose or all, not {config.embedding!r}')
    if config.embedding == 'all':
        sources = [Numbered(source) for source in sources]
    return Mixture(sources, list(config.sources.values()))
