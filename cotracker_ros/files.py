"""Lists of files, in the order that people mean, and names that OpenCV takes."""

import re
from collections.abc import Iterable
from pathlib import Path


def natural_order(path: Path) -> tuple:
    """Return a key by which names are sorted with runs of digits as numbers: 9 before 10."""
    parts = re.split(r'([0-9]+)', path.name)
    numbers = tuple((int(part), part) if i % 2 else part for i, part in enumerate(parts))
    return numbers, path.name


def listed(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files of a folder with these suffixes (lower case), in natural order.

    Names that begin with a dot are no content: macOS and editors leave them beside each file.
    """
    suffixes = tuple(suffixes)
    return sorted(
        (
            path
            for path in folder.iterdir()
            if path.suffix.lower() in suffixes and not path.name.startswith('.') and path.is_file()
        ),
        key=natural_order,
    )


def opencv_name(path: Path) -> str:
    """Return a path as OpenCV takes it. Raises ValueError for a name that is not UTF-8, of which
    OpenCV dies and takes the process with it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        name = str(path).encode(errors='backslashreplace').decode()
        raise ValueError(f'{name}: OpenCV reads no file whose name is not UTF-8') from error
    return str(path)
