"""What a model file says about itself: one JSON object under the key `cotracker_ros`.

An ONNX file carries it in its metadata; a TensorRT engine in the sidecar beside it. It is read
here without any runtime, so that every engine gives the same answer, and the same message, for a
file that is missing, truncated, foreign or newer than this package.
"""

import io
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import get_type_hints

from cotracker_ros.geometry import POINTS
from cotracker_ros.visible import VisibleRule

# The newest layout of inputs, outputs and metadata that this package can run. 2: state may lie in
# rings, see spec.ring_length. 3: an input `keypoint` may be taken; the metadata say image_scale,
# resize and visible.
FORMAT = 3
KEY = 'cotracker_ros'

# Field numbers of onnx.ModelProto (onnx/onnx.proto).
_GRAPH, _METADATA, _LAST_FIELD = 7, 14, 31
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class EngineError(RuntimeError):
    """A model, engine or runtime cannot be used; the message names value and remedy."""


@dataclass(frozen=True)
class Metadata:
    """What a runtime must know of a step, and what a user wants to know of a model."""

    format: int  # layout of the file, at most FORMAT
    model: str  # 'realtime', 'cotracker3_online', ...
    version: str  # of the package that exported it
    height: int  # of the model's image, pixels
    width: int
    window: int  # S frames; the largest query_age is S - 1
    iterations: int  # of refinement in one step
    precision: str  # of the graph: 'fp32', 'fp16', 'mixed' or 'int8'
    licence: str  # of the weights
    weights_sha256: str
    provenance: str  # where the weights come from, one sentence
    # Since format 3; older files are read as these say, see _before_format_3.
    image_scale: int = 1  # a step takes a picture so many times as high and wide
    resize: str = 'edges'  # how camera images become it and points move: geometry.POINTS
    visible: str = str(VisibleRule(0.6, True))  # when a point counts as visible

    @property
    def visible_rule(self) -> VisibleRule:
        """When a point counts as visible."""
        return VisibleRule.parse(self.visible)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the image that all coordinates are of."""
        return self.height, self.width

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the picture that a step takes, in its own pixels."""
        return self.image_scale * self.height, self.image_scale * self.width


def read_metadata(path: str | Path) -> Metadata:
    """Metadata of an ONNX file, without loading its weights.

    Raises EngineError for a file that is missing, no ONNX file, truncated, not of this package or
    newer than it.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f'{path}: no such model file')
    with path.open('rb') as file:
        try:
            found = dict(_metadata_entries(file, path.stat().st_size))
        except _Truncated:
            raise EngineError(f'{path}: the ONNX file is truncated') from None
        except ValueError:
            raise EngineError(f'{path}: not an ONNX file') from None
    if KEY not in found:
        raise EngineError(
            f'{path}: not a cotracker_ros model (it has no metadata "{KEY}"); '
            'export one with export/export_onnx.py'
        )
    return parse_metadata(found[KEY], path)


def parse_metadata(text: str, path: str | Path) -> Metadata:
    """Metadata from its JSON text; `path` is named in the EngineErrors."""
    try:
        values = json.loads(text)
        form = int(values['format'])
    except (ValueError, TypeError, KeyError):
        raise EngineError(f'{path}: its "{KEY}" metadata cannot be read: {text[:80]!r}') from None
    if form > FORMAT:
        raise EngineError(
            f'{path}: its format {form} is newer than this package, which reads '
            f'up to {FORMAT}; update cotracker_ros'
        )
    kinds = get_type_hints(Metadata)
    if form < 3:
        values = _before_format_3(values)
    missing = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
    if missing:
        raise EngineError(f'{path}: its metadata lacks a valid {", ".join(missing)}')
    small = [n for n in ('height', 'width', 'window', 'image_scale') if values[n] < 1]
    if small:
        raise EngineError(f'{path}: its metadata has a {", ".join(small)} below 1')
    try:
        VisibleRule.parse(values['visible'])
    except ValueError as error:
        raise EngineError(f'{path}: its metadata has no rule of visibility: {error}') from None
    if values['resize'] not in POINTS:
        raise EngineError(
            f'{path}: its metadata ask for the resizing {values["resize"]!r}; there are '
            f'{", ".join(POINTS)}; update cotracker_ros'
        )
    return Metadata(**{name: values[name] for name in kinds})


def _before_format_3(values: dict) -> dict:
    """Add what files of formats 1 and 2 did not say, as it was when they were made."""
    defaults = {f.name: f.default for f in fields(Metadata) if f.default is not MISSING}
    if values.get('model') == 'realtime':
        defaults['visible'] = str(VisibleRule(0.5))
    return defaults | values


class _Truncated(ValueError):
    pass


def _metadata_entries(file, size: int):
    """Walk the top level of a serialized ModelProto; skip the graph; yield metadata pairs."""
    seen_graph = False
    while file.tell() < size:
        tag = _varint(file)
        field, wire = tag >> 3, tag & 7
        if not 1 <= field <= _LAST_FIELD or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            raise ValueError(f'field {field} of type {wire} is not in an ONNX file')
        if wire == _VARINT:
            _varint(file)
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire) or _varint(file)
        if file.tell() + length > size:
            # Random bytes end up here too; a graph or known header is what makes it ONNX.
            raise _Truncated() if field in (_GRAPH, _METADATA) else ValueError('past the end')
        if field == _METADATA and wire == _BYTES:
            yield _pair(file.read(length))
        else:
            seen_graph |= field == _GRAPH
            file.seek(length, 1)
    if not seen_graph:
        raise _Truncated() if size else ValueError('empty')


def _pair(data: bytes) -> tuple[str, str]:
    """Key and value of one serialized StringStringEntryProto."""
    values = {1: '', 2: ''}
    file = io.BytesIO(data)
    while file.tell() < len(data):
        field = _varint(file) >> 3
        values[field] = file.read(_varint(file)).decode()
    return values[1], values[2]


def _varint(file) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte:
            raise _Truncated()
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return value
        if shift > 63:
            raise ValueError('a number of more than 64 bits')
