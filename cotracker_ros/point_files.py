"""Files of points to track, and of the keypoints of people, as text."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cotracker_ros.skeleton import KEYPOINTS, NUMBER, check_keypoints


def read_points(path: str | Path) -> np.ndarray:
    """Read queries (N, 3) of frame, x px, y px from lines of `frame,x,y` or, in frame 0, `x,y`.

    A first line of names (`x,y,frame`) says what the columns are, in any order and beside others;
    without `frame`, points are of frame 0. Lines that are
    empty or begin with # are skipped; a semicolon or a tab separates as a comma does. Raises
    ValueError naming the line that is none of these.
    """
    rows, names = [], None
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        text = line.strip()
        if not text or text[0] == '#':
            continue
        cells = [cell.strip().strip('"') for cell in re.split('[,;\t]', text)]
        if not rows and names is None and not any(map(_is_number, cells)):
            names = [cell.lower() for cell in cells]
            if any(names.count(name) != 1 for name in 'xy') or names.count('frame') > 1:
                raise ValueError(f'{path}:{number}: {text!r}: the columns x and y must be there')
            continue
        try:
            if names is not None and len(cells) != len(names):
                raise ValueError
            named = dict(zip(names or _COLUMNS[len(cells)], cells, strict=True))
            values = {name: float(named[name]) for name in ('x', 'y', 'frame') if name in named}
        except (KeyError, ValueError):
            columns = ','.join(names) if names else 'frame,x,y or x,y'
            raise ValueError(f'{path}:{number}: {text!r} is not {columns}') from None
        frame, x, y = values.get('frame', 0.0), values['x'], values['y']
        if not np.isfinite([frame, x, y]).all() or not 0 <= frame < 2**31 or frame != int(frame):
            raise ValueError(f'{path}:{number}: {text!r}: a frame is 0, 1, 2 ..., x and y numbers')
        rows.append((frame, x, y))
    if not rows:
        raise ValueError(f'{path}: no points in it')
    return np.array(rows)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_COLUMNS = {2: ('x', 'y'), 3: ('frame', 'x', 'y')}


def _text_of(path: str | Path) -> str:
    """Return a text file's content, whose marks of byte order spreadsheets set."""
    data = Path(path).read_bytes()
    wide = data.startswith((b'\xff\xfe', b'\xfe\xff'))
    try:
        return data.decode('utf-16' if wide else 'utf-8-sig')
    except UnicodeDecodeError:
        raise ValueError(f'{path}: is not a text file in UTF-8') from None


class Bodies(NamedTuple):
    """Which keypoint of which person each query is, (N,) each; a keypoint of -1: a plain point."""

    keypoint: np.ndarray
    instance: np.ndarray


def read_pose(path: str | Path) -> tuple[np.ndarray, Bodies]:
    """Read queries (N, 3) of frame, x px, y px, and what they are, from lines of
    `frame,x,y,keypoint,person`.

    A keypoint is COCO's number or its name (cotracker_ros.skeleton); -1: a plain point. A person
    is any whole number. Lines as in `read_points`. Raises ValueError naming the line that is none
    of these, and for a keypoint of a person that comes twice.
    """
    rows, seen = [], set()
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        text = line.strip()
        if not text or text[0] == '#' or text[0].isalpha():
            continue
        where, name = f'{path}:{number}: {text!r}', ''
        try:
            frame, x, y, name, person = (v.strip() for v in text.replace(';', ',').split(','))
            keypoint = NUMBER[name] if name in NUMBER else int(name)
            row = float(frame), float(x), float(y), keypoint, int(person)
        except ValueError:
            unknown = name.isidentifier() and name not in NUMBER
            why = f': {name} is none of {", ".join(KEYPOINTS)}' if unknown else ''
            raise ValueError(f'{where} is not frame,x,y,keypoint,person{why}') from None
        if not np.isfinite(row).all() or row[0] < 0 or row[0] != int(row[0]):
            raise ValueError(f'{where}: a frame is 0, 1, 2 ..., x and y numbers')
        try:
            check_keypoints(np.array([keypoint]), 1)
        except ValueError as error:
            raise ValueError(f'{where}: {error}') from None
        if keypoint >= 0 and (keypoint, row[4]) in seen:
            raise ValueError(f'{where}: {KEYPOINTS[keypoint]} of person {row[4]} comes twice')
        seen.add((keypoint, row[4]))
        rows.append(row)
    if not rows:
        raise ValueError(f'{path}: no keypoints in it')
    table = np.array(rows)
    return table[:, :3], Bodies(*table[:, 3:].astype(np.int32).T)
