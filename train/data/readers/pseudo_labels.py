"""Pseudo-labels: the files that `train/pseudo_label.py` writes, and their reader.

A folder of labels, on any file system that fsspec knows:

    settings.json                   what all clips have in common; a run with others is refused
    manifest.jsonl                  a line for every clip of the run, labelled or not
    videos/XX/HASH.json             what was found out about a video, by the hash of its URL
    clips/XX/ID.npz                 a labelled clip
    skipped/XX/ID.json              why a clip has no labels, and never will have
    failed/XX/ID.json               why it has none yet: the next run tries it again

XX, the shard, is the first two digits of a clip's ID: 256 folders, so that none grows too long. A
clip is an .npz of plain arrays, nothing pickled, of T frames and N points:

    about       uint8, JSON: format, id, video (URL), video_sha256, first (frame), frames, fps,
                recorded_size and size (H, W) px, teachers [{name, sha256}], queries ('sift'),
                seed, store
    jpeg        uint8, T pictures one after the other, and bytes, (T,) int64, their lengths; not
                there where store is 'reference': then the video is read again, and must have the
                same sha256
    queries     (N, 3) float32: frame, x, y px
    tracks      (T, N, 2) float32 px
    visible     (T, N) bool
    weight      (T, N) float16 in [0, 1]: how far a row of the two above is trusted, 0: not known

Pixels are those of the stored frames, (0, 0) the centre of the top-left one. The same videos,
settings, teachers and packages give the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from train.data.clip import Clip, DataError
from train.data.storage import Folder
from train.data.videos import VideoError, VideoFile, VideoReader

FORMAT = 1
ARRAYS = ('about', 'queries', 'tracks', 'visible', 'weight')


@dataclass(frozen=True)
class LabelledClip:
    """A clip with pseudo-labels; see the file's format."""

    about: dict[str, Any]
    video: np.ndarray  # (T, H, W, 3) uint8 RGB
    queries: np.ndarray  # (N, 3) float32: frame, x, y px
    tracks: np.ndarray  # (T, N, 2) float32 px
    visible: np.ndarray  # (T, N) bool
    weight: np.ndarray  # (T, N) float32

    @property
    def teacher(self) -> str:
        """Who labelled it."""
        return ' + '.join(teacher['name'] for teacher in self.about['teachers'])


def name_of(kind: str, identity: str, suffix: str) -> str:
    """The name of a file about a clip or a video below the folder of labels."""
    return f'{kind}/{identity[:2]}/{identity}{suffix}'


def pack(clip: LabelledClip, quality: int) -> bytes:
    """The bytes of a clip's file; quality of its pictures, JPEG."""
    arrays = {
        'about': np.frombuffer(json.dumps(clip.about, sort_keys=True).encode(), np.uint8),
        'queries': clip.queries.astype(np.float32),
        'tracks': clip.tracks.astype(np.float32),
        'visible': clip.visible.astype(bool),
        'weight': clip.weight.astype(np.float16),
    }
    if clip.about['store'] == 'jpeg':
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        pictures = [
            cv2.imencode('.jpg', np.ascontiguousarray(frame[..., ::-1]), options)[1].ravel()
            for frame in clip.video
        ]
        arrays['jpeg'] = np.concatenate(pictures)
        arrays['bytes'] = np.array([len(picture) for picture in pictures])
    file = io.BytesIO()
    np.savez(file, **arrays)  # dates nothing: the same arrays are the same bytes
    return file.getvalue()


def unpack(data: bytes, where: str) -> LabelledClip:
    """Read a clip's file. Raises DataError, naming `where`, for one that is not whole or whose
    video is not what it was.
    """
    try:
        with np.load(io.BytesIO(data)) as file:  # refuses pickled arrays
            content = {name: file[name] for name in file.files}
        about = json.loads(content['about'].tobytes())
        if about['format'] != FORMAT:
            raise DataError(f'{where}: format {about["format"]}; this program reads {FORMAT}')
        queries, tracks, visible, weight = (content[name] for name in ARRAYS[1:])
        frames, size = about['frames'], tuple(about['size'])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f'{where}: not a clip of pseudo-labels ({error!r})') from error
    if 'jpeg' in content and 'bytes' in content:
        video = _pictures(content['jpeg'], content['bytes'], where)
    else:
        video = _again(about, where)
    shape = frames, len(queries)
    if video.shape != (frames, *size, 3):
        raise DataError(f'{where}: frames {video.shape}, not {(frames, *size, 3)}')
    if (tracks.shape, visible.shape, weight.shape) != ((*shape, 2), shape, shape):
        raise DataError(f'{where}: tracks {tracks.shape}, visible {visible.shape}')
    return LabelledClip(about, video, queries, tracks, visible, weight.astype(np.float32))


def _pictures(jpeg: np.ndarray, lengths: np.ndarray, where: str) -> np.ndarray:
    frames = []
    for part in np.split(jpeg, np.cumsum(lengths)[:-1]):
        frame = cv2.imdecode(part, cv2.IMREAD_COLOR) if len(part) else None
        if frame is None:
            raise DataError(f'{where}: frame {len(frames)} is no picture')
        frames.append(frame[..., ::-1])
    return np.stack(frames)


def _again(about: dict[str, Any], where: str) -> np.ndarray:
    """The frames of a clip that only refers to its video."""
    video = VideoFile(about['video'], tuple(about['files']))
    try:
        if _hash(video) != about['video_sha256']:
            raise DataError(f'{where}: {video.url} is not the video that was labelled')
        reader = VideoReader(max(about['size']))
        try:
            return reader.clip(video, about['first'], about['frames'])
        finally:
            reader.close()
    except (VideoError, OSError) as error:
        raise DataError(f'{where}: {error}') from error


@lru_cache(maxsize=4096)
def _hash(video: VideoFile) -> str:
    reader = VideoReader(0)
    try:
        return reader.facts(video).sha256
    finally:
        reader.close()


class PseudoLabels:
    """The labelled clips of a folder, in the order of their IDs; a source of training clips."""

    def __init__(self, url: str):
        """Raises DataError where there are none."""
        self.url, self._folder, self._process = url, Folder(url), os.getpid()
        self.names = self.folder.names('clips', '.npz')
        if not self.names:
            raise DataError(f'{url}: no labelled clip (clips/XX/ID.npz)')

    @property
    def folder(self) -> Folder:
        """The folder as this process opened it: file systems of clouds cannot be forked."""
        if self._process != os.getpid():
            self._folder, self._process = Folder(self.url), os.getpid()
        return self._folder

    def clip(self, name: Path) -> Clip:
        """Read a clip of `names` for training. Raises DataError."""
        labelled = self._read(name.as_posix())
        return Clip(
            name.as_posix(),
            labelled.video,
            labelled.queries,
            labelled.tracks,
            labelled.visible,
            known=labelled.weight > 0,
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledClip:
        """Read a clip. Raises DataError."""
        return self._read(self.names[index])

    def _read(self, name: str) -> LabelledClip:
        where = f'{self.folder.url}/{name}'
        try:
            return unpack(self.folder.read(name), where)
        except OSError as error:
            raise DataError(f'{where}: cannot be read ({error})') from error

    def __iter__(self) -> Iterator[LabelledClip]:
        return (self[i] for i in range(len(self)))

    def missing(self) -> int:
        """How many clips of the manifest have neither labels nor a reason to have none."""
        try:
            manifest = self.folder.read('manifest.jsonl')
        except OSError:
            return 0
        planned = {json.loads(line)['id'] for line in manifest.splitlines()}
        skipped = self.folder.names('skipped', '.json')
        finished = {name.rpartition('/')[2].partition('.')[0] for name in [*self.names, *skipped]}
        return len(planned - finished)
