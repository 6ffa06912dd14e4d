"""Files of others: pictures by OpenCV, and pickles that may name nothing but numpy's arrays.

Anything else in a pickle is refused, not run.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from train.data.clip import DataError


def read_frames(files: list[Path], size: tuple[int, int] | None = None) -> np.ndarray:
    """Read image files as (T, H, W, 3) uint8 RGB, shrunk by area averaging to size (H, W)."""
    frames = []
    for path in files:
        frame = read_image(path)
        if size is not None and frame.shape[:2] != size:
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        if frames and frame.shape != frames[0].shape:
            raise DataError(
                f'{path}: {frame.shape[1]} x {frame.shape[0]} px, but the first frame has '
                f'{frames[0].shape[1]} x {frames[0].shape[0]}'
            )
        frames.append(frame)
    return np.stack(frames)


def frame_files(folder: Path) -> list[Path]:
    """Return the image files of a folder in the order of their names."""
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder of frames')
    kinds = ('.jpg', '.jpeg', '.png')
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds)
    if not files:
        raise DataError(f'{folder}: no jpg or png frame in it')
    return files


def read_image(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    return decode(data, str(path))


def decode(data: bytes, name: str) -> np.ndarray:
    """Return the picture (H, W, 3) uint8 RGB of an encoded one."""
    array = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(array, cv2.IMREAD_COLOR) if len(array) else None
    if image is None:
        raise DataError(f'{name}: not a picture OpenCV can decode')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class _Unpickler(pickle.Unpickler):
    """Takes numpy's arrays apart from everything else a pickle can call."""

    ALLOWED = frozenset(
        (f'numpy.{core}.{module}', name)
        for core in ('core', '_core')
        for module, name in (
            ('multiarray', '_reconstruct'),
            ('multiarray', 'scalar'),
            ('numeric', '_frombuffer'),
        )
    ) | {('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f'it calls {module}.{name}: refused')
        return super().find_class(module.replace('numpy.core', 'numpy._core'), name)


def unpickle(path: Path) -> object:
    """Return the arrays and plain containers of a pickle; DataError for anything else in it."""
    try:
        with path.open('rb') as file:
            return _Unpickler(file).load()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    except Exception as error:  # a broken pickle may raise nearly anything
        raise DataError(f'{path}: not a pickle of arrays ({error})') from error


def load_object(path: Path, data: bytes | None = None) -> Any:
    """Return the object of an .npy file that holds one pickled dict, from its bytes if given."""
    try:
        file = io.BytesIO(path.read_bytes() if data is None else data)
        version = np.lib.format.read_magic(file)
        form = np.lib.format
        header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, _, dtype = header(file)
        if shape != () or not dtype.hasobject:
            raise ValueError(f'an array {shape} of {dtype}, not a dict')
        return _Unpickler(file).load().item()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    except Exception as error:
        raise DataError(f'{path}: not an annotation of Kubric ({error})') from error
