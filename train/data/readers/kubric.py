"""Kubric MOVi-F, in folders or in the archives of CoTracker3_Kubric."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.data.clip import Clip, DataError, with_queries
from train.data.readers.files import decode, frame_files, load_object, read_frames


def kubric(root: str | Path, strided: bool = False) -> Iterator[Clip]:
    """Yield the sequences of Kubric MOVi-F in the layout that CoTracker is trained from.

    A folder for each sequence, with its pictures in frames/ and NAME.npy: a dict of 'coords'
    (N, T, 2) px and 'visibility' (N, T), which despite its name is true where a point is
    **hidden**. The published CoTracker3_Kubric release has the same layout, one NAME.tar.gz for a
    sequence; these are read as they are, without unpacking. Coordinates are taken as they stand.
    """
    for path in kubric_sequences(root):
        clip = read_kubric(path, strided)
        if clip is not None:
            yield clip


def kubric_sequences(root: str | Path) -> list[Path]:
    """Return the sequences (folders or archives) below root in the order of their names."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f'{root}: no such folder')
    folders = (path for path in root.iterdir() if (path / f'{path.name}.npy').is_file())
    sequences = sorted([*folders, *root.glob('*.tar.gz')])
    if not sequences:
        raise DataError(f'{root}: no sequence (NAME/NAME.npy and NAME/frames, or NAME.tar.gz)')
    return sequences


def read_kubric(path: Path, strided: bool = False) -> Clip | None:
    """Read one sequence of `kubric_sequences`; None where no point is ever visible."""
    if path.is_dir():
        video = read_frames(frame_files(path / 'frames'))
        note = load_object(path / f'{path.name}.npy')
    else:
        video, note = _read_archive(path)
    try:
        coords = np.asarray(note['coords'], np.float32)
        visible = ~np.asarray(note['visibility'], bool)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: needs 'coords' and 'visibility' ({error})") from error
    if coords.ndim != 3 or coords.shape[2] != 2 or visible.shape != coords.shape[:2]:
        raise DataError(f'{path}: coords {coords.shape} and visibility {visible.shape}')
    if coords.shape[1] != len(video):
        raise DataError(f'{path}: {len(video)} frames but tracks of {coords.shape[1]}')
    tracks = coords.transpose(1, 0, 2)
    return with_queries(path.name, video, tracks, visible.T, strided, hidden_known=True)


def _read_archive(path: Path) -> tuple[np.ndarray, Any]:
    """Return the frames (T, H, W, 3) and the annotation of a CoTracker3_Kubric archive."""
    frames, note = {}, None
    try:
        with tarfile.open(path, 'r|gz') as archive:  # a stream: no name of it touches the disk
            for member in archive:
                name = Path(member.name)
                if not member.isfile():
                    continue
                if name.parent.name == 'frames' and name.suffix in ('.png', '.jpg'):
                    frames[name.name] = decode(archive.extractfile(member).read(), str(path))
                elif name.suffix == '.npy' and name.stem == name.parent.name:
                    note = load_object(path, archive.extractfile(member).read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f'{path}: cannot be read ({error})') from error
    if not frames or note is None:
        raise DataError(f'{path}: no frames/*.png or no NAME/NAME.npy in it')
    return np.stack([frames[name] for name in sorted(frames)]), note
