"""Unlabelled video on any file system that fsspec knows: files, folders of pictures, recordings.

Frames are read as the rest of the project reads them, shrunk one by one, so that a long or large
video never lies in memory.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from cotracker_ros.demo.video import IMAGE_SUFFIXES, VideoError, open_video
from cotracker_ros.track_recording import is_recording, recorded_images

RECORDING_SUFFIXES = ('.mcap', '.db3')
VIDEO_SUFFIXES = (
    '.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts', '.ogv', '.ts', '.webm',
    '.wmv', '.y4m', *RECORDING_SUFFIXES,
)  # fmt: skip

LEAST_BYTES = 8  # of a frame in any file


@dataclass(frozen=True)
class VideoFile:
    """A video before it is opened: where it is, and the files that it is made of."""

    url: str
    files: tuple[str, ...]  # URLs
    stamp: str = ''  # changes where a file does


@dataclass(frozen=True)
class Facts:
    """What is known of a video once it has been opened."""

    sha256: str  # of its bytes; of a folder also of its files' names
    frames: int
    fps: float
    size: tuple[int, int]  # (H, W) px as recorded


def find_videos(urls: Sequence[str]) -> tuple[list[VideoFile], int]:
    """The videos at and below files and folders, in the order of their URLs, and how many other
    files lie there.

    A folder with pictures is one video, a folder with a metadata.yaml one recording. Raises
    FileNotFoundError for a URL with nothing at it.
    """
    videos, others = {}, 0
    for url in urls:
        system, root = fsspec.core.url_to_fs(str(url))
        if not system.exists(root):
            raise FileNotFoundError(f'{url}: nothing is there')
        found = system.find(root, detail=True)
        paths = sorted(found)
        recordings = {_folder(p) for p in paths if _name(p) == 'metadata.yaml'}
        parts: dict[str, list[str]] = {}
        for path in paths:
            suffix = Path(path).suffix.lower()
            info = found[path]
            # A pipe or a socket, which would keep its reader waiting.
            special = info.get('type') == 'other' and not info.get('islink')
            if special or _name(path).startswith('.'):
                others += 1
            elif _folder(path) in recordings or suffix in IMAGE_SUFFIXES:
                parts.setdefault(_folder(path), []).append(path)
            elif suffix in VIDEO_SUFFIXES or path == root:
                parts[path] = [path]
            else:
                others += 1
        for path, files in parts.items():
            url_of = _url(system, path)
            stamp = hashlib.sha256(repr([_stamp(found[file]) for file in files]).encode())
            videos[url_of] = VideoFile(
                url_of, tuple(_url(system, file) for file in files), stamp.hexdigest()[:16]
            )
    return sorted(videos.values(), key=lambda video: video.url), others


def _folder(path: str) -> str:
    return path.rpartition('/')[0]


def _name(path: str) -> str:
    return path.rpartition('/')[2]


def _stamp(info: dict) -> tuple:
    """What file systems tell of a file's version, each by a name of its own."""
    known = ('mtime', 'ETag', 'etag', 'LastModified', 'last_modified', 'updated', 'created')
    version = next((info[key] for key in known if info.get(key) is not None), '')
    return info['name'], info['size'], str(version)


def _url(system: fsspec.AbstractFileSystem, path: str) -> str:
    return path if isinstance(system, LocalFileSystem) else system.unstrip_protocol(path)


class VideoReader:
    """Reads clips of videos, the last one kept open: clips requested in order are read once."""

    def __init__(self, longest: int):
        """longest: px, what frames' longer side is shrunk to by area averaging; 0: not at all."""
        self.longest = longest
        self._video: VideoFile | None = None
        self._frames: Iterator[np.ndarray] = iter(())
        self._at = 0  # number of the next frame
        self._copy: Path | None = None  # folder of the copy of a video from elsewhere

    def facts(self, video: VideoFile) -> Facts:
        """Open a video and count its frames. Raises VideoError for one that cannot be read."""
        path = self._open(video)
        try:
            digest, fps, count = fingerprint(path), 30.0, 0
        except OSError as error:
            raise VideoError(f'{video.url}: {error.strerror}') from error
        first = next(self._frames, None)
        if first is None:
            raise VideoError(f'{video.url}: no frames')
        if not is_recording(path):
            opened = open_video(str(path))
            fps, count = opened.fps, opened.count or 0
        if not count or (path.is_file() and count > path.stat().st_size / LEAST_BYTES):
            count = 1 + sum(1 for _ in self._frames)  # the container does not say it, or lies
            self._video = None
        self._at = 1
        return Facts(digest, count, float(fps), first.shape[:2])

    def clip(self, video: VideoFile, first: int, count: int) -> np.ndarray:
        """Frames first, first + 1, ... as (T, h, w, 3) uint8 RGB, T less than count where the
        video ends before. Raises VideoError.
        """
        if video != self._video or first < self._at:
            self._open(video)
        frames = []
        while self._at < first + count:
            frame = next(self._frames, None)
            if frame is None:
                break
            if self._at >= first:
                frames.append(shrink(frame, self.longest))
            self._at += 1
        return np.stack(frames) if frames else np.zeros((0, 1, 1, 3), np.uint8)

    def close(self) -> None:
        """Forget the open video and its copy."""
        self._video, self._frames, self._at = None, iter(()), 0
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)
            self._copy = None

    def _open(self, video: VideoFile) -> Path:
        """Start a video anew; its path on this machine."""
        if video != self._video:
            self.close()
        path = self._local(video)
        self._frames, self._at, self._video = _frames(path, video.url), 0, video
        return path

    def _local(self, video: VideoFile) -> Path:
        """Where OpenCV can read it: as it is, or in a copy that lives until the next video."""
        systems = [fsspec.core.url_to_fs(url) for url in video.files]
        if all(isinstance(system, LocalFileSystem) for system, _ in systems):
            return Path(fsspec.core.url_to_fs(video.url)[1])
        name = video.url.rpartition('/')[2]
        if self._copy is None:
            self._copy = Path(tempfile.mkdtemp(prefix='video-'))
            weakref.finalize(self, shutil.rmtree, self._copy, ignore_errors=True)
            alone = video.files == (video.url,)
            folder = self._copy / ('' if alone else name)
            folder.mkdir(exist_ok=True)
            try:
                for system, path in systems:
                    target = folder / _name(path)
                    with system.open(path, 'rb') as source, target.open('wb') as file:
                        shutil.copyfileobj(source, file, 1 << 20)
            except OSError as error:
                self.close()
                raise VideoError(f'{video.url}: cannot be fetched ({error})') from error
        return self._copy / name


def _frames(path: Path, url: str) -> Iterator[np.ndarray]:
    """Frames as they were recorded; whatever a decoder raises, as VideoError."""
    try:
        if is_recording(path):
            yield from recorded_images(path)
        else:
            yield from open_video(str(path)).frames
    except VideoError:
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        raise VideoError(text if text.startswith(url) else f'{url}: {text}') from error


def shrink(frame: np.ndarray, longest: int) -> np.ndarray:
    """A frame (H, W, 3) whose longer side is at most so many px, by area averaging."""
    height, width = frame.shape[:2]
    scale = longest / max(height, width) if longest else 1.0
    if scale >= 1:
        return frame
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def fingerprint(path: Path) -> str:
    """sha256 of a file, or of a folder's file names and contents in order."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file()):
        if path.is_dir():
            digest.update(file.name.encode() + b'\0')
        with file.open('rb') as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
