"""Images, tracks and queries as messages and as arrays; pure functions, no node."""

import functools
import sys
from array import array
from typing import NamedTuple

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from cotracker_ros.skeleton import KEYPOINTS, check_keypoints
from cotracker_ros.streaming import MAX_INSTANCE, Tracks
from cotracker_ros.streaming.image_range import to_8_bit


class MessageError(ValueError):
    """A message whose content cannot be used; the text names the value and what is allowed."""


# A row of /tracks. Flags: bit 0 visible, 1 new, 2 outside the image, 3 query frame; bits 8 to 31
# as cotracker_ros.streaming.body_of reads them: which keypoint of whom.
TRACK = np.dtype(
    [
        ('x', '<f4'),
        ('y', '<f4'),
        ('z', '<f4'),
        ('id', '<u4'),
        ('visibility', '<f4'),
        ('confidence', '<f4'),
        ('flags', '<u4'),
        ('age', '<u4'),
    ]
)
_NUMPY_TYPE = {
    PointField.INT8: 'i1',
    PointField.UINT8: 'u1',
    PointField.INT16: 'i2',
    PointField.UINT16: 'u2',
    PointField.INT32: 'i4',
    PointField.UINT32: 'u4',
    PointField.FLOAT32: 'f4',
    PointField.FLOAT64: 'f8',
}
_POINT_TYPE = {name: number for number, name in _NUMPY_TYPE.items()}
# A row of ~/queries as this package writes them; others may leave out all but x and y.
QUERY = np.dtype(
    [('x', '<f4'), ('y', '<f4'), ('id', '<u4'), ('keypoint', '<i4'), ('instance', '<u4')]
)

MAX_SIDE = 32768  # of an image; more is a damaged header


class _Layout(NamedTuple):
    """How the bytes of an encoding become RGB."""

    channels: int  # values per pixel and row
    order: str | int  # the channels that are R, G, B; or a conversion of cv2; or '' (see _nv24)
    kind: str = 'u1'  # numpy's name of a value's type
    rows: tuple[int, int] = (1, 1)  # rows of data for each row of the image, as a fraction


_GREY, _RGB, _BGR = '000', '012', '210'
_YUV420 = (cv2.COLOR_YUV2RGB_NV12, cv2.COLOR_YUV2RGB_NV21)
# All of sensor_msgs/image_encodings. Bayer patterns are named by ROS after the first two pixels
# of the first row, by OpenCV after the second row and column, hence the other letters. Types that
# say nothing of colour (8UC3, 32FC1) are taken as OpenCV's users publish them: BGR from three
# channels on, else grey, which is the first channel.
_LAYOUTS = {
    'rgb8': _Layout(3, _RGB), 'bgr8': _Layout(3, _BGR),
    'rgba8': _Layout(4, _RGB), 'bgra8': _Layout(4, _BGR),
    'rgb16': _Layout(3, _RGB, 'u2'), 'bgr16': _Layout(3, _BGR, 'u2'),
    'rgba16': _Layout(4, _RGB, 'u2'), 'bgra16': _Layout(4, _BGR, 'u2'),
    'mono8': _Layout(1, _GREY), 'mono16': _Layout(1, _GREY, 'u2'),
    **{f'bayer_{name}{8 * size}': _Layout(1, code, f'u{size}')
       for size in (1, 2) for name, code in (
        ('rggb', cv2.COLOR_BayerBG2RGB), ('bggr', cv2.COLOR_BayerRG2RGB),
        ('gbrg', cv2.COLOR_BayerGR2RGB), ('grbg', cv2.COLOR_BayerGB2RGB))},
    'uyvy': _Layout(2, cv2.COLOR_YUV2RGB_UYVY), 'yuv422': _Layout(2, cv2.COLOR_YUV2RGB_UYVY),
    'yuyv': _Layout(2, cv2.COLOR_YUV2RGB_YUYV), 'yuv422_yuy2': _Layout(2, cv2.COLOR_YUV2RGB_YUYV),
    'nv12': _Layout(1, _YUV420[0], rows=(3, 2)), 'nv21': _Layout(1, _YUV420[1], rows=(3, 2)),
    'nv24': _Layout(1, '', rows=(3, 1)),
    **{f'{name}C{count or ""}': _Layout(count or 1, _GREY if count < 3 else _BGR, kind)
       for name, kind in (('8U', 'u1'), ('8S', 'i1'), ('16U', 'u2'), ('16S', 'i2'), ('32S', 'i4'),
                          ('32F', 'f4'), ('64F', 'f8'))
       for count in range(5)},
}  # fmt: skip
ENCODINGS = tuple(_LAYOUTS)


class Picture(NamedTuple):
    """The content of an image message before its values are reduced to 8 bits."""

    rows: np.ndarray  # (R, bytes) uint8: all that was sent but the padding
    values: np.ndarray  # (H, W, C), as sent; of nv12 and nv21 (H * 3 / 2, W, 1)
    order: str | int  # see _Layout

    def rgb(self, limits: tuple[float, float] | None = None) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB, of the values between `limits` as `to_8_bit` takes them."""
        values = to_8_bit(self.values, limits)
        if self.order == '':
            return _yuv444_to_rgb(values)
        if not isinstance(self.order, str):
            return cv2.cvtColor(values, self.order)
        if self.order == _GREY:  # no view: its resize would copy it slowly
            return cv2.cvtColor(np.ascontiguousarray(values[..., :1]), cv2.COLOR_GRAY2RGB)
        return values[..., 2::-1] if self.order == _BGR else values[..., :3]


def unpack(msg: Image) -> Picture:
    """Return the values of `msg`, as views where that can be.

    Row padding (`step`) and `is_bigendian` are honoured. Encodings that are none of ENCODINGS are
    left to cv_bridge, where it is installed. Raises MessageError for everything that does not fit
    together.
    """
    layout = _LAYOUTS.get(msg.encoding)
    if layout is None:
        frame = _by_cv_bridge(msg)
        return Picture(frame.reshape(len(frame), -1), frame, _RGB)
    _check_size(msg)
    height, width = msg.height, msg.width
    if (layout.channels == 2 and not isinstance(layout.order, str) and width % 2) or (
        layout.rows == (3, 2) and (width | height) % 2
    ):
        raise MessageError(f'{msg.encoding} needs an even size, not {width} x {height}')
    dtype = np.dtype(('>' if msg.is_bigendian else '<') + layout.kind)
    row_bytes = width * layout.channels * dtype.itemsize
    rows = _rows(msg, height * layout.rows[0] // layout.rows[1], row_bytes)
    if layout.order == '':
        return Picture(rows, _nv24(msg), '')
    values = rows.view(dtype) if rows.strides[1] == 1 else np.ascontiguousarray(rows).view(dtype)
    return Picture(rows, values.reshape(len(rows), width, layout.channels), layout.order)


def image_to_array(msg: Image, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Return the picture of `msg` as (H, W, 3) uint8 RGB.

    rgb8, bgr8, rgba8 and bgra8 are views of the message's bytes, with any strides; the rest is
    converted. `limits` are the values of wider types that become black and white, as `to_8_bit`
    takes them; without them, of 16 bits the high byte. Raises MessageError as `unpack`.
    """
    return unpack(msg).rgb(limits)


def image_to_mask(msg: Image) -> np.ndarray:
    """Return which pixels of a mask are labelled, (H, W) uint8: 255 where any value is not 0.

    Masks are labels, not brightness: 3 in 16UC1 counts as 255 in mono8. Of colours with alpha,
    alpha does not count. Raises MessageError.
    """
    picture = unpack(msg)
    values = picture.values
    if not isinstance(picture.order, str) or picture.order == '':
        values = picture.rgb()
    labelled = (np.nan_to_num(values[..., :3]) != 0).any(2)
    return np.where(labelled, 255, 0).astype(np.uint8)


def depth_to_metres(msg: Image) -> np.ndarray:
    """Return the depth image of `msg` as (H, W) float32 metres, NaN where nothing was measured.

    16UC1 and mono16 hold millimetres, 32FC1 metres (REP 118). Raises MessageError.
    """
    kind = {'16UC1': 'u2', 'mono16': 'u2', '32FC1': 'f4'}.get(msg.encoding)
    if kind is None:
        raise MessageError(f'depth encoding {msg.encoding!r} is none of 16UC1, mono16, 32FC1')
    _check_size(msg)
    dtype = np.dtype(('>' if msg.is_bigendian else '<') + kind)
    values = np.ascontiguousarray(_rows(msg, msg.height, msg.width * dtype.itemsize)).view(dtype)
    with np.errstate(invalid='ignore'):  # signalling NaNs
        metres = values.astype(np.float32) * np.float32(0.001 if kind == 'u2' else 1)
    metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


def _check_size(msg: Image) -> None:
    if not (0 < msg.height <= MAX_SIDE and 0 < msg.width <= MAX_SIDE):
        raise MessageError(
            f'image size {msg.width} x {msg.height}: each side must be 1 to {MAX_SIDE}'
        )


def _rows(msg: Image, rows: int, row_bytes: int) -> np.ndarray:
    """View (rows, row_bytes) uint8 of the data without the padding of its rows."""
    if msg.step < row_bytes:
        raise MessageError(
            f'image step {msg.step} is less than a row of {msg.width} pixels in '
            f'{msg.encoding}: {row_bytes} bytes'
        )
    data = np.frombuffer(msg.data, np.uint8)
    if data.size < msg.step * rows:
        raise MessageError(
            f'image data has {data.size} bytes, but {rows} rows of {msg.step} bytes '
            f'need {msg.step * rows}'
        )
    return data[: msg.step * rows].reshape(rows, msg.step)[:, :row_bytes]


@functools.cache
def _cv_bridge():
    """Return a bridge, or None; ROS distributions have it, the wheels do not."""
    try:
        from cv_bridge import CvBridge
    except ImportError:
        return None
    return CvBridge()


def _by_cv_bridge(msg: Image) -> np.ndarray:
    reason = f'image encoding {msg.encoding!r} is none of {", ".join(ENCODINGS)}'
    if _cv_bridge() is None:
        raise MessageError(reason)
    try:
        frame = _cv_bridge().imgmsg_to_cv2(msg, 'rgb8')
    except Exception as error:  # CvBridgeError, and numpy's where size and data do not fit
        raise MessageError(f'{reason}; cv_bridge: {error}') from None
    if frame.shape != (msg.height, msg.width, 3) or not frame.size:
        raise MessageError(f'{reason}; cv_bridge made of it an array {frame.shape}')
    return frame


def _nv24(msg: Image) -> np.ndarray:
    """View a plane of Y, `step` bytes a row, and one of U, V pairs, twice as many: (H, W, 3)."""
    height, width, step = msg.height, msg.width, msg.step
    data = np.frombuffer(msg.data, np.uint8)
    luma = data[: step * height].reshape(height, step)[:, :width]
    chroma = data[step * height : step * height * 3].reshape(height, 2 * step)[:, : 2 * width]
    return np.dstack([luma, chroma.reshape(height, width, 2)])


def _yuv444_to_rgb(yuv: np.ndarray) -> np.ndarray:
    """Convert BT.601 with values from 16 to 235, as OpenCV takes the other YUV formats."""
    matrix = np.array([[1.164, 0, 1.596], [1.164, -0.391, -0.813], [1.164, 2.018, 0]], np.float32)
    shift = -matrix @ np.array([16, 128, 128], np.float32)
    rgb = cv2.transform(yuv.astype(np.float32), np.column_stack([matrix, shift]))
    return np.clip(np.round(rgb), 0, 255).astype(np.uint8)


def unpack_compressed(msg: CompressedImage) -> Picture:
    """Return the JPEG or PNG picture of `msg`, of 8 or 16 bits, or raise MessageError.

    Its pixels stay where image_transport has them: a camera's orientation tag turns nothing.
    """
    data = np.frombuffer(msg.data, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        picture = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:  # such as a header that declares a gigantic picture
        raise MessageError(f'compressed image of {data.size} bytes: {error.err}') from None
    if picture is None:
        raise MessageError(
            f'compressed image of {data.size} bytes (format {msg.format!r}) is '
            'neither a JPEG nor a PNG picture'
        )
    return Picture(picture.reshape(len(picture), -1).view(np.uint8), picture, _BGR)


def compressed_to_array(msg: CompressedImage) -> np.ndarray:
    """Return the picture of `msg` as (H, W, 3) uint8 RGB, of 16 bits the high byte."""
    return unpack_compressed(msg).rgb()


def array_to_image(rgb: np.ndarray, header: Header) -> Image:
    """Return an rgb8 Image of `rgb` (H, W, 3) uint8."""
    height, width = rgb.shape[:2]
    msg = Image(header=header, height=height, width=width, encoding='rgb8', step=3 * width)
    set_data(msg, rgb)
    return msg


def set_data(msg, values: np.ndarray) -> None:
    """Copy an array's bytes to a message's `data`.

    For VGA 0.1 ms; setting the numpy array takes 63 ms, the message's constructor 2.4 ms.
    """
    data = array('B')
    if values.size:
        data.frombytes(np.ascontiguousarray(values).data.cast('B'))
    msg.data = data


def tracks_to_cloud(tracks: Tracks, header: Header, xyz: np.ndarray | None = None) -> PointCloud2:
    """Return the rows of `tracks` as the record TRACK, under the header of their image.

    `xyz` (N, 3) stands in for the pixels: points in space, NaN where that is not known.
    """
    rows = np.zeros(len(tracks.ids), TRACK)
    if xyz is None:
        rows['x'], rows['y'] = tracks.xy.T
    else:
        rows['x'], rows['y'], rows['z'] = xyz.T
    rows['id'], rows['age'], rows['flags'] = tracks.ids, tracks.age, tracks.flags
    rows['visibility'], rows['confidence'] = tracks.visibility, tracks.confidence
    return rows_to_cloud(rows, header, xyz is None or bool(np.isfinite(xyz).all()))


def rows_to_cloud(rows: np.ndarray, header: Header, is_dense: bool = True) -> PointCloud2:
    """Return a structured array (N,), little endian, as a cloud with the fields of its dtype.

    is_dense: whether no value is NaN.
    """
    msg = PointCloud2(
        header=header,
        height=1,
        width=len(rows),
        fields=_fields(rows.dtype),
        is_bigendian=False,
        point_step=rows.dtype.itemsize,
        row_step=rows.nbytes,
        is_dense=is_dense,
    )
    set_data(msg, rows)
    return msg


@functools.cache
def _fields(dtype: np.dtype) -> list[PointField]:
    return [
        PointField(
            name=name,
            offset=dtype.fields[name][1],
            count=1,
            datatype=_POINT_TYPE[dtype.fields[name][0].str[1:]],
        )
        for name in dtype.names
    ]


def cloud_to_tracks(msg: PointCloud2) -> np.ndarray:
    """Return the rows of a /tracks message, a view (N,) of dtype TRACK; all a subscriber needs."""
    return np.frombuffer(msg.data, TRACK)


class Queries(NamedTuple):
    """What a ~/queries message asks for."""

    add: np.ndarray  # (N, 2) float32 px: new points
    remove: np.ndarray  # (K,) uint32: ids to stop tracking
    stamp: float | None  # seconds, of the frame in which they were seen; None: the next frame
    move: np.ndarray  # (J,) uint32: ids of points to track on from elsewhere
    to: np.ndarray  # (J, 2) float32 px, where
    # Of the new points and, for those of them that are gone, of the points to move:
    keypoint: np.ndarray  # (N + J,) int32: which of a body's keypoints they are, -1: none
    instance: np.ndarray  # (N + J,) int64: whose, 0: nobody's


def cloud_to_queries(msg: PointCloud2) -> Queries:
    """Return what `msg` asks for; raises MessageError.

    Fields `x` and `y`, of any numeric type, are pixels of the camera image. A field `id` names
    points that are tracked: (x, y, 0) adds a point, (x, y, id) moves that point, which keeps its
    id, and (NaN, NaN, id) removes it. A field `keypoint` holds COCO's number of points that are a
    body's keypoints, -1 of others; a field `instance`, from 1, whose they are, 0: nobody's.
    """
    columns = _columns(msg, ('x', 'y'), ('id', 'keypoint', 'instance'))
    with np.errstate(over='ignore', invalid='ignore'):  # too large becomes infinite: refused
        xy = np.stack([columns['x'], columns['y']], 1).astype(np.float32)
    ids = columns.get('id', np.zeros(len(xy), np.uint32))
    instance = columns.get('instance', np.zeros(len(xy), np.uint32))
    for name, values, most in (('id', ids, 2**32 - 1), ('instance', instance, MAX_INSTANCE)):
        if values.dtype.kind == 'f' or (values.size and (values.min() < 0 or values.max() > most)):
            raise MessageError(f'the field {name} must hold whole numbers from 0 to {most}')
    removed = np.isnan(xy).all(1) & (ids != 0)
    if not np.isfinite(xy[~removed]).all():
        bad = xy[~removed & ~np.isfinite(xy).all(1)][0]
        raise MessageError(f'a query at ({bad[0]}, {bad[1]}) is not finite')
    try:
        keypoint = check_keypoints(columns.get('keypoint', np.full(len(xy), -1)), len(xy))
    except ValueError as error:
        raise MessageError(f'the field keypoint: {error}') from error
    new, moved = np.flatnonzero(ids == 0), np.flatnonzero((ids != 0) & ~removed)[::-1]
    move, last = np.unique(ids[moved], return_index=True)
    moved = moved[last]  # of several places for one point the last counts
    placed = np.concatenate([new, moved])
    return Queries(
        xy[new],
        np.unique(ids[removed]).astype(np.uint32),
        stamp_seconds(msg.header) or None,
        move.astype(np.uint32),
        xy[moved],
        keypoint[placed],
        instance[placed].astype(np.int64),
    )


def cloud_to_people(msg: PointCloud2) -> np.ndarray:
    """Return a detector's answer as people (P, 17, 3): x, y px and score, of keypoints that it
    does not name NaN, NaN, 0; raises MessageError.

    A row is a keypoint: fields `x`, `y`, `keypoint` (COCO's number), `instance`, any whole number
    that the rows of one person share, and `score` from 0 to 1, without which it is 1.
    """
    columns = _columns(msg, ('x', 'y', 'keypoint', 'instance'), ('score',))
    try:
        keypoint = check_keypoints(columns['keypoint'], len(columns['x']))
    except ValueError as error:
        raise MessageError(f'the field keypoint: {error}') from error
    if columns['instance'].dtype.kind == 'f':
        raise MessageError('the field instance must hold whole numbers')
    named = keypoint >= 0
    numbers, person = np.unique(columns['instance'][named], return_inverse=True)
    person, keypoint = person.reshape(-1), keypoint[named]
    if len(np.unique(person * len(KEYPOINTS) + keypoint)) < len(person):
        raise MessageError('a keypoint of one instance comes twice')
    people = np.full((len(numbers), len(KEYPOINTS), 3), np.nan)
    people[..., 2] = 0
    score = columns.get('score', np.ones(len(named)))
    row = np.stack([columns['x'], columns['y'], score], 1).astype(float)
    people[person, keypoint] = row[named]
    return people


def _columns(msg: PointCloud2, needed: tuple, optional: tuple) -> dict[str, np.ndarray]:
    """Views of named fields, each (width * height,)."""
    fields = {f.name: f for f in msg.fields if f.name in needed + optional}
    missing = [name for name in needed if name not in fields]
    if missing:
        raise MessageError(
            f'a point cloud with the fields {[f.name for f in msg.fields]} lacks '
            f'{" and ".join(missing)}'
        )
    count = msg.width * msg.height
    for field in fields.values():
        if field.datatype not in _NUMPY_TYPE or field.count > 1:
            raise MessageError(
                f'field {field.name} has the unknown type {field.datatype} or more '
                f'than one value ({field.count})'
            )
        end = field.offset + np.dtype(_NUMPY_TYPE[field.datatype]).itemsize
        if end > msg.point_step:
            raise MessageError(
                f'field {field.name} ends at byte {end} of a point of {msg.point_step} bytes'
            )
    row_step = msg.row_step if msg.height > 1 else msg.width * msg.point_step
    if row_step < msg.width * msg.point_step or len(msg.data) < row_step * msg.height:
        raise MessageError(
            f'{len(msg.data)} bytes and rows of {row_step} are too little for '
            f'{msg.height} x {msg.width} points of {msg.point_step} bytes'
        )
    if not count:
        return {name: np.zeros(0, _type(f, msg)) for name, f in fields.items()}
    data = np.frombuffer(msg.data, np.uint8)[: row_step * msg.height].reshape(msg.height, row_step)
    points = data[:, : msg.width * msg.point_step].reshape(count, msg.point_step)
    return {
        name: np.ascontiguousarray(points[:, f.offset : f.offset + _type(f, msg).itemsize]).view(
            _type(f, msg)
        )[:, 0]
        for name, f in fields.items()
    }


def _type(field: PointField, msg: PointCloud2) -> np.dtype:
    return np.dtype(('>' if msg.is_bigendian else '<') + _NUMPY_TYPE[field.datatype])


def stamp_seconds(header: Header) -> float:
    """Return a header's stamp in seconds; 0 where it was never set."""
    return header.stamp.sec + header.stamp.nanosec * 1e-9


assert sys.byteorder == 'little', 'messages are written in the byte order of this machine'
