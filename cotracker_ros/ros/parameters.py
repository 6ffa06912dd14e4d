"""Parameters of the node: one table declares, checks and documents them.

`python -m cotracker_ros.ros.parameters` rewrites config/tracker.yaml and the table in README.md.
"""

import contextlib
import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

from cotracker_ros.engines import ENGINES, MAX_SLOTS
from cotracker_ros.streaming import image_range


@dataclass(frozen=True)
class Parameter:
    """One parameter; its ROS type is that of the default, and lists hold `element`s."""

    name: str
    default: bool | int | float | str | tuple
    text: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    dynamic: bool = False  # may be set while the node runs
    element: type = float  # of a list
    check: Callable[[Any], object] | None = None  # of the value as a whole; raises ValueError

    @property
    def kind(self) -> str:
        """Name of the ROS type."""
        names = {bool: 'bool', int: 'integer', float: 'double', str: 'string'}
        if isinstance(self.default, tuple):
            return names[self.element] + '[]'
        return names[type(self.default)]

    def clean(self, value: object) -> object:
        """Return `value` in the parameter's type, or raise ValueError.

        Whole numbers pass as doubles: YAML files are full of them.
        """
        kind = type(self.default)
        if kind is tuple:
            if value is None:  # what rclpy makes of an empty list in a file
                return ()
            if not hasattr(value, '__iter__') or isinstance(value, (str, bytes)):
                raise ValueError(f'{self.name} must be a list, not {value!r}')
            items = tuple(self._clean_one(item, self.element) for item in value)  # type: ignore
            if self.check is not None:
                self.check(items)
            return items
        result = self._clean_one(value, kind)
        if self.check is not None:
            self.check(result)
        return result

    def parse(self, text: str) -> object:
        """Return the checked value that a text on a command line means, or raise ValueError.

        Lists are written `[10, 20]` or `10, 20`.
        """
        if not isinstance(self.default, tuple):
            return self.clean(self._parse_one(text.strip(), type(self.default)))
        inner = text.strip()
        if inner.startswith('[') and inner.endswith(']'):
            inner = inner[1:-1]
        items = [item.strip() for item in inner.split(',')] if inner.strip() else []
        return list(self.clean([self._parse_one(item, self.element) for item in items]))  # type: ignore

    def _parse_one(self, text: str, kind: type) -> object:
        if kind is str:
            quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '\'"'
            return text[1:-1] if quoted else text
        try:
            if kind is bool:
                return {'true': True, 'false': False}[text.lower()]
            return kind(text)
        except (KeyError, ValueError):
            raise ValueError(f'{self.name} must be of type {self.kind}, not {text!r}') from None

    def _clean_one(self, value: Any, kind: type) -> Any:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is bool and str(value).lower() in self.choices:
            value = str(value).lower()  # `rectified: true` in a file
        if type(value) is not kind:
            raise ValueError(f'{self.name} must be of type {self.kind}, not {value!r}')
        if self.choices and value not in self.choices:
            raise ValueError(
                f'{self.name} must be one of {", ".join(self.choices)}, not {value!r}'
            )
        if kind is float and not math.isfinite(value):
            raise ValueError(f'{self.name} must be finite, not {value}')
        below = self.low is not None and value < self.low
        above = self.high is not None and value > self.high
        if below or above:
            raise ValueError(f'{self.name} must be {self.range_text()}, not {value}')
        return value

    def range_text(self) -> str:
        """Return what values are allowed, in words; empty for all."""
        if self.choices:
            return ', '.join(self.choices)
        if self.high is None:
            return '' if self.low is None else f'at least {self.low}'
        return f'{self.low} to {self.high}'


_CAMERA = re.compile(r'[A-Za-z]\w*')


def _check_cameras(names: tuple) -> None:
    if not all(map(_CAMERA.fullmatch, names)) or len(set(names)) < len(names):
        raise ValueError(f'cameras must be different names such as front or rear_left: {names}')


def _check_pairs(numbers: tuple) -> None:
    if len(numbers) % 2:
        raise ValueError(f'query_points must hold pairs of x and y, not {len(numbers)} numbers')


TABLE = (
    Parameter('autostart', True, 'Configure and activate at start; off for a lifecycle manager'),
    Parameter(
        'model',
        'realtime',
        'Shipped model (realtime, realtime_int8), or path of an .onnx or .engine file, or of a '
        'checkpoint (.safetensors, .pth; needs torch)',
    ),
    Parameter(
        'engine',
        'auto',
        'Runtime of the model; auto: for .onnx openvino where it is installed (openvino:bf16 '
        'where the CPU has bf16), else onnxruntime',
        choices=('auto', *ENGINES),
    ),
    Parameter(
        'threads',
        0,
        'CPU threads of the model; 0: all cores that the process may use, less one for ROS where '
        'there are more than two',
        low=0,
        high=256,
    ),
    Parameter(
        'max_points',
        0,
        'Number of points that fit; time and memory are those of so many, used or not. 0: 64, or '
        'as many as the initial points and `target_points` need',
        low=0,
        high=MAX_SLOTS,
    ),
    Parameter(
        'cameras',
        (),
        'Names of several cameras: topics `<camera>/image`, `<camera>/tracks`, '
        '`~/<camera>/queries`, ..., each with `max_points` slots; empty: one camera on `image`',
        element=str,
        check=_check_cameras,
    ),
    Parameter(
        'image_transport',
        'raw',
        'raw: `image`; compressed: JPEG or PNG on `image/compressed`',
        choices=('raw', 'compressed'),
    ),
    Parameter(
        'depth',
        False,
        '`~/tracks_3d` in metres, from the depth image on `depth` that is aligned with `image`; '
        'off: rays with z = 1',
    ),
    Parameter(
        'initial_grid',
        7,
        'Points per side of the grid that is placed in the first frame and by `~/resample`; '
        '0: no grid',
        low=0,
        high=128,
        dynamic=True,
    ),
    Parameter(
        'initial_corners',
        0,
        'Shi-Tomasi corners that are placed with the grid; both lie on the last `~/mask`, if any',
        low=0,
        high=MAX_SLOTS,
        dynamic=True,
    ),
    Parameter(
        'retire_after',
        0,
        'Consecutive invisible frames after which a point is dropped; 0: never',
        low=0,
        high=1_000_000,
        dynamic=True,
    ),
    Parameter(
        'target_points',
        0,
        'Number of points below which corners are added, twice a second',
        low=0,
        high=MAX_SLOTS,
        dynamic=True,
    ),
    Parameter(
        'query_points',
        (),
        'x1, y1, x2, y2, ...: points to track on each camera; setting it replaces those it set '
        'before',
        unit='px',
        dynamic=True,
        check=_check_pairs,
    ),
    Parameter(
        'image_range',
        'auto',
        'Which values of images with more than 8 bits become black and white: `bits:12`, '
        '`min,max`, or auto: what the first images span, then fixed',
        dynamic=True,
        check=image_range.parse,
    ),
    Parameter(
        'frozen_after',
        5,
        'Images with the very same pixels after which diagnostics call the camera frozen; '
        '0: never',
        low=0,
        high=1000,
        dynamic=True,
    ),
    Parameter(
        'hold_frozen',
        False,
        'Points of a frozen camera count as invisible and no new ones start; off: they are '
        'tracked on, as on a scene that stands still',
        dynamic=True,
    ),
    Parameter(
        'rectified',
        'auto',
        'Whether images are rectified, so that `~/tracks_3d` uses P and R of `camera_info` and '
        'not K and D; auto: where the topic is named `image_rect...`',
        choices=('auto', 'true', 'false'),
        dynamic=True,
    ),
    Parameter(
        'late_within',
        1.0,
        'An image that is older than the newest by less than this is late and not tracked; by '
        'more, or the third late one in a row: stamps jumped back, and all points start anew',
        unit='s',
        low=0.0,
        high=60.0,
        dynamic=True,
    ),
    Parameter(
        'query_timeout',
        5.0,
        'How long, by the stamps of the images, a point waits for the image of its stamp; 0: for '
        'ever',
        unit='s',
        low=0.0,
        high=3600.0,
        dynamic=True,
    ),
    Parameter(
        'overlay_rate',
        10.0,
        'Pictures and markers per second, at most, on `~/overlay`, `~/overlay/compressed` and '
        '`~/markers`; drawn only while someone subscribes',
        unit='Hz',
        low=0.1,
        high=240.0,
        dynamic=True,
    ),
    Parameter(
        'age_budget',
        0.1,
        'Diagnostics warn when the 95th percentile of the age of tracks is higher',
        unit='s',
        low=0.001,
        high=60.0,
        dynamic=True,
    ),
    Parameter(
        'image_timeout',
        2.0,
        'Diagnostics report an error after this time without an image',
        unit='s',
        low=0.1,
        high=3600.0,
        dynamic=True,
    ),
)
BY_NAME = {p.name: p for p in TABLE}


def clean(name: str, value: object) -> object:
    """Return the checked value of one parameter of the table, or raise ValueError."""
    return BY_NAME[name].clean(value)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question after the name that this one resembles; empty if it resembles none."""
    near = difflib.get_close_matches(name, list(names), 1, 0.75)
    return f'; did you mean {near[0]!r}?' if near else ''


def declare(node) -> None:
    """Declare the table on a node.

    Raises ValueError for a bad value from the command line or a file, and StartError for a name
    there that is none of the table's but resembles one.
    """
    from rcl_interfaces.msg import ParameterDescriptor

    for p in TABLE:
        default = list(p.default) if isinstance(p.default, tuple) else p.default
        anything = ParameterDescriptor(dynamic_typing=True)
        given = node.declare_parameter(p.name, default, anything).value
        node.set_parameters([_typed(p, clean(p.name, given))])
        node.set_descriptor(p.name, _descriptor(p))
    check_names(node, BY_NAME)


def check_names(node, names: Iterable[str]) -> None:
    """Warn of parameters from the command line or a file that `node` has not declared.

    Raises StartError where one resembles one of its `names`: it is misspelt.
    """
    from cotracker_ros.ros.startup import StartError  # launch files read the table without rclpy

    for name in getattr(node, '_parameter_overrides', ()):  # rclpy tells them nowhere else
        if not node.has_parameter(name) and not name.startswith('qos_overrides.'):
            hint = did_you_mean(name, names)
            if hint:
                raise StartError(f'there is no parameter {name!r}{hint}')
            node.get_logger().warning(f'there is no parameter {name!r}: it is not used')


def typed(changes: list) -> list:
    """Return changes of rclpy parameters, those that the table takes in its types.

    Tools make integers of whole numbers, and bytes of an empty list.
    """
    result = []
    for change in changes:
        with contextlib.suppress(KeyError, ValueError):  # not ours, or for `checked`
            change = _typed(BY_NAME[change.name], clean(change.name, change.value))
        result.append(change)
    return result


_ROS_TYPES = {
    'bool': 'BOOL',
    'integer': 'INTEGER',
    'double': 'DOUBLE',
    'string': 'STRING',
    'double[]': 'DOUBLE_ARRAY',
    'string[]': 'STRING_ARRAY',
}


def _typed(p: Parameter, value):
    from rclpy.parameter import Parameter as RosParameter

    kind = RosParameter.Type[_ROS_TYPES[p.kind]]
    return RosParameter(p.name, kind, list(value) if isinstance(value, tuple) else value)


def _descriptor(p: Parameter):
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(
        description=p.text + (f' [{p.unit}]' if p.unit else ''),
        additional_constraints=', '.join(p.choices),
        read_only=not p.dynamic,
        dynamic_typing=True,  # `clean` is stricter where it must be, and takes 1 for 1.0
    )
    if p.kind == 'integer' and p.high is not None:
        bounds = IntegerRange(from_value=int(p.low or 0), to_value=int(p.high), step=0)
        descriptor.integer_range = [bounds]
    if p.kind == 'double' and p.high is not None:
        bounds = FloatingPointRange(from_value=float(p.low or 0), to_value=float(p.high))
        descriptor.floating_point_range = [bounds]
    return descriptor


NodeParameters = make_dataclass('NodeParameters', [p.name for p in TABLE], frozen=True)


def values(node) -> Any:
    """Return the values of the table that a node has, as read-only attributes."""
    return NodeParameters(**checked(node.get_parameter(p.name) for p in TABLE))


def checked(changes: Iterable) -> dict[str, Any]:
    """Return the values, by name, of those rclpy parameters that are the table's.

    Raises ValueError for a value that is not allowed.
    """
    return {c.name: clean(c.name, c.value) for c in changes if c.name in BY_NAME}


def yaml_text() -> str:
    """Return config/tracker.yaml: every parameter with its default and meaning."""
    lines = ['# Written by python -m cotracker_ros.ros.parameters; defaults throughout.']
    lines += ['/**:', '  ros__parameters:']
    for p in TABLE:
        note = '; '.join(filter(None, [p.text, p.unit, p.range_text()]))
        lines.append(f'    # {note}')
        if isinstance(p.default, tuple):  # ROS reads no empty list
            lines.append(f'    # {p.name}: []')
        elif isinstance(p.default, str):
            lines.append(f"    {p.name}: '{p.default}'")
        else:
            lines.append(f'    {p.name}: {str(p.default).lower()}')
    return '\n'.join(lines) + '\n'


def markdown_table() -> str:
    """Return the README's table of parameters."""
    rows = ['| parameter | type | default | allowed | unit | while running | meaning |']
    rows.append('|' + ' --- |' * 7)
    for p in TABLE:
        default = '[]' if isinstance(p.default, tuple) else str(p.default).lower()
        changes = 'yes' if p.dynamic else ''
        cells = (f'`{p.name}`', p.kind, f'`{default}`', p.range_text(), p.unit, changes, p.text)
        rows.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(rows) + '\n'


_MARKED = re.compile(r'(<!-- parameters -->\n).*?(<!-- end -->)', re.S)


def insert_table(readme: str) -> str:
    """Return the README's text with the current table between its markers."""
    if not _MARKED.search(readme):
        raise ValueError('README.md has no <!-- parameters --> ... <!-- end -->')
    return _MARKED.sub(lambda m: m[1] + markdown_table() + m[2], readme)


def main() -> None:
    """Rewrite the two files that repeat the table."""
    root = Path(__file__).parents[2]
    (root / 'config' / 'tracker.yaml').write_text(yaml_text(), encoding='utf-8')
    readme = root / 'README.md'
    readme.write_text(insert_table(readme.read_text(encoding='utf-8')), encoding='utf-8')


if __name__ == '__main__':
    main()
