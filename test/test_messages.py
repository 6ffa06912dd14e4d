import contextlib
import itertools
import sys
import types
from array import array

import cv2
import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg', reason='needs the ROS messages')

from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from cotracker_ros.ros import messages
from cotracker_ros.ros.messages import MessageError
from cotracker_ros.streaming import Tracks
from cotracker_ros.streaming.image_range import ImageRange

HEIGHT, WIDTH = 6, 8
RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
# A smooth picture survives the loss of colour resolution in YUV and Bayer images.
Y, X = np.mgrid[:HEIGHT, :WIDTH]
SMOOTH = np.dstack([60 + 8 * X, 90 + 6 * Y, 150 - 5 * X]).astype(np.uint8)


def image(values: np.ndarray, encoding: str, padding: int = 0, **fields) -> Image:
    """Message of rows `values` (H', bytes) uint8."""
    rows = np.pad(values.reshape(len(values), -1), ((0, 0), (0, padding)), constant_values=99)
    fields = {'height': HEIGHT, 'width': WIDTH, 'step': rows.shape[1], **fields}
    return Image(encoding=encoding, data=array('B', rows.tobytes()), **fields)


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding, channels', [
    ('rgb8', [0, 1, 2]), ('bgr8', [2, 1, 0]), ('rgba8', [0, 1, 2, 0]), ('bgra8', [2, 1, 0, 1]),
    ('8UC3', [2, 1, 0]), ('8UC4', [2, 1, 0, 1]),
])  # fmt: skip
def test_colour_images_are_views(encoding, channels, padding):
    msg = image(RGB[..., channels], encoding, padding)
    frame = messages.image_to_array(msg)
    np.testing.assert_array_equal(frame, RGB)
    assert np.shares_memory(frame, np.frombuffer(msg.data, np.uint8))


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', ['mono8', '8UC1'])
def test_grey_images(encoding, padding):
    frame = messages.image_to_array(image(RGB[..., 0], encoding, padding))
    np.testing.assert_array_equal(frame, np.dstack([RGB[..., 0]] * 3))


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('encoding, channels', [
    ('rgb16', [0, 1, 2]), ('bgr16', [2, 1, 0]), ('16UC3', [2, 1, 0]), ('rgba16', [0, 1, 2, 0]),
    ('bgra16', [2, 1, 0, 1]), ('16UC4', [2, 1, 0, 1]), ('mono16', [0]), ('16UC1', [0]),
])  # fmt: skip
def test_16_bit_images_keep_their_high_byte(encoding, channels, big_endian):
    wide = (RGB[..., channels].astype(np.uint16) << 8) + 77
    wide = wide.astype('>u2' if big_endian else '<u2', order='C')
    msg = image(wide.view(np.uint8), encoding, 3, is_bigendian=big_endian)
    expected = RGB if len(channels) > 1 else np.dstack([RGB[..., 0]] * 3)
    np.testing.assert_array_equal(messages.image_to_array(msg), expected)


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_images(pattern, depth):
    mosaic = np.zeros((HEIGHT, WIDTH), np.uint16)
    for (row, column), colour in zip(itertools.product((0, 1), (0, 1)), pattern, strict=True):
        mosaic[row::2, column::2] = SMOOTH[row::2, column::2, 'rgb'.index(colour)]
    values = mosaic.astype(np.uint8) if depth == 8 else (mosaic.astype('<u2') << 8)
    frame = messages.image_to_array(image(values.view(np.uint8), f'bayer_{pattern}{depth}'))
    inner = np.abs(frame.astype(int) - SMOOTH)[1:-1, 1:-1]
    assert inner.max() <= 8


def yuv(rgb: np.ndarray) -> np.ndarray:
    """BT.601 with values 16 to 235, from its definition."""
    r, g, b = (rgb.astype(float) / 255).transpose(2, 0, 1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    u, v = 0.564 * (b - luma), 0.713 * (r - luma)
    return np.round(np.dstack([16 + 219 * luma, 128 + 224 * u, 128 + 224 * v])).astype(np.uint8)


@pytest.mark.parametrize(
    'encoding', ['uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2', 'nv12', 'nv21', 'nv24']
)
def test_yuv_images(encoding):
    planes = yuv(SMOOTH)
    luma, u, v = planes.transpose(2, 0, 1)
    if encoding == 'nv24':
        rows = np.concatenate([luma.reshape(-1), planes[..., 1:].reshape(-1)]).reshape(-1, WIDTH)
    elif encoding in ('nv12', 'nv21'):
        order = [u, v] if encoding == 'nv12' else [v, u]
        rows = np.concatenate([luma, np.dstack(order)[::2, ::2].reshape(-1, WIDTH)])
    else:
        chroma = np.where(X % 2, v[:, X[0] // 2 * 2], u)
        pair = (chroma, luma) if encoding in ('uyvy', 'yuv422') else (luma, chroma)
        rows = np.dstack(pair).reshape(HEIGHT, -1)
    frame = messages.image_to_array(image(rows, encoding))
    assert np.abs(frame.astype(int) - SMOOTH).max() <= 20  # of a slope of 8 a pixel


# All constants of sensor_msgs/image_encodings.hpp (rolling), and how OpenCV makes RGB of them;
# None: by a test of its own above.
CV_TYPES = {f'{bits}{sign}C{channels}' for bits, sign in (
    (8, 'U'), (8, 'S'), (16, 'U'), (16, 'S'), (32, 'S'), (32, 'F'), (64, 'F'))
    for channels in (1, 2, 3, 4)}  # fmt: skip
NAMED = {
    'rgb8': None, 'rgba8': cv2.COLOR_RGBA2RGB, 'bgr8': cv2.COLOR_BGR2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB, 'mono8': cv2.COLOR_GRAY2RGB,
    'rgb16': None, 'rgba16': cv2.COLOR_RGBA2RGB, 'bgr16': cv2.COLOR_BGR2RGB,
    'bgra16': cv2.COLOR_BGRA2RGB, 'mono16': cv2.COLOR_GRAY2RGB,
    **{f'bayer_{p}{b}': getattr(cv2, f'COLOR_Bayer{c}2RGB') for b in (8, 16) for p, c in (
        ('rggb', 'RGGB'), ('bggr', 'BGGR'), ('gbrg', 'GBRG'), ('grbg', 'GRBG'))},
    'uyvy': cv2.COLOR_YUV2RGB_UYVY, 'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2, 'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'nv12': cv2.COLOR_YUV2RGB_NV12, 'nv21': cv2.COLOR_YUV2RGB_NV21, 'nv24': None,
}  # fmt: skip
BY_CHANNELS = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}


def test_the_table_has_every_encoding_of_sensor_msgs():
    assert set(messages.ENCODINGS) >= CV_TYPES | set(NAMED)


@pytest.mark.parametrize('encoding', sorted(CV_TYPES | set(NAMED)))
@pytest.mark.parametrize('big_endian', [False, True])
def test_every_encoding_is_what_opencv_makes_of_it(encoding, big_endian):
    if encoding in CV_TYPES:
        bits, channels = int(encoding[:-3]), int(encoding[-1])
        kind = {'U': 'u', 'S': 'i', 'F': 'f'}[encoding[-3]]
        code = BY_CHANNELS.get(channels)
    else:
        bits, kind = 16 if '16' in encoding else 8, 'u'
        channels = {'rgb': 3, 'bgr': 3, 'rgba': 4, 'bgra': 4}.get(encoding.rstrip('0123456789'), 1)
        channels = 2 if encoding in ('uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2') else channels
        code = NAMED[encoding]
    height = HEIGHT * {'nv12': 3, 'nv21': 3, 'nv24': 6}.get(encoding, 2) // 2
    bytes_8 = RNG.integers(0, 256, (height, WIDTH, channels), np.uint8)
    dtype = np.dtype(('>' if big_endian else '<') + kind + str(bits // 8))
    # Values that a fixed range takes back to these 8 bits.
    if kind == 'f':
        values = (bytes_8 / 255).astype(dtype)
    elif kind == 'i':
        values = ((bytes_8.astype(np.int64) - 128) << (bits - 8)).astype(dtype)
    else:
        values = (bytes_8.astype(np.int64) << (bits - 8)).astype(dtype)
    got = messages.image_to_array(
        image(values.view(np.uint8), encoding, 4, is_bigendian=big_endian)
    )
    if encoding == 'nv24':  # OpenCV has none: of equal chroma everywhere, as nv12
        return
    if channels == 2 and encoding in CV_TYPES:  # the second of two has no colour
        expected = np.dstack([bytes_8[..., 0]] * 3)
    else:
        expected = bytes_8 if code is None else cv2.cvtColor(bytes_8, code)
    np.testing.assert_array_equal(got, expected)


def test_nv24_is_nv12_where_colour_is_even():
    luma = RNG.integers(16, 236, (HEIGHT, WIDTH), np.uint8)
    u, v = 90, 160
    small = np.full((HEIGHT // 2, WIDTH // 2, 2), (u, v), np.uint8).reshape(-1, WIDTH)
    full = np.full((HEIGHT, WIDTH, 2), (u, v), np.uint8).reshape(-1, WIDTH)
    nv12 = messages.image_to_array(image(np.concatenate([luma, small]), 'nv12'))
    nv24 = messages.image_to_array(image(np.concatenate([luma, full]), 'nv24'))
    assert np.abs(nv12.astype(int) - nv24).max() <= 1


@pytest.mark.parametrize('encoding, dtype', [
    ('mono8', 'u1'), ('8UC1', 'u1'), ('8SC1', 'i1'), ('mono16', 'u2'), ('16UC1', 'u2'),
    ('16SC1', 'i2'), ('32SC1', 'i4'), ('32FC1', 'f4'), ('64FC1', 'f8'),
])  # fmt: skip
@pytest.mark.parametrize('label', [1, 3, 255, -1])
@pytest.mark.parametrize('big_endian', [False, True])
def test_masks_are_labels_of_any_type(encoding, dtype, label, big_endian):
    if (label < 0 and dtype[0] == 'u') or (label > 127 and dtype == 'i1'):
        pytest.skip('no value of this type')
    labels = np.zeros((HEIGHT, WIDTH), np.dtype(('>' if big_endian else '<') + dtype))
    labels[2:4, 3:6] = label
    if dtype[0] == 'f':
        labels[0, 0] = np.nan
    mask = messages.image_to_mask(
        image(labels.view(np.uint8), encoding, 2, is_bigendian=big_endian)
    )
    assert mask.dtype == np.uint8 and mask.shape == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(mask, np.where(np.nan_to_num(labels) != 0, 255, 0))


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'rgb16'])
def test_masks_in_colour_are_labelled_where_a_colour_is_not_0(encoding):
    """Alpha is full everywhere, and says nothing."""
    wide = encoding.endswith('16')
    channels = 4 if 'a' in encoding else 3
    colours = np.zeros((HEIGHT, WIDTH, channels), np.uint16 if wide else np.uint8)
    colours[2, 3, 2] = 1
    if 'a' in encoding:
        colours[..., 3] = 255
    mask = messages.image_to_mask(image(colours.view(np.uint8), encoding))
    assert np.argwhere(mask).tolist() == [[2, 3]]


def test_compressed_images_of_16_bits_keep_their_content_and_their_place():
    wide = RNG.integers(0, 1024, (HEIGHT, WIDTH), np.uint16)
    data = array('B', cv2.imencode('.png', wide)[1].tobytes())
    msg = CompressedImage(format='16UC1; png compressed', data=data)
    picture = messages.unpack_compressed(msg)
    np.testing.assert_array_equal(picture.values, np.dstack([wide] * 3))
    np.testing.assert_array_equal(picture.rgb((0, 1023)), np.dstack([wide >> 2] * 3))


@pytest.mark.parametrize('change, text', [
    ({'encoding': 'jpeg'}, "'jpeg' is none of rgb8, bgr8"),
    ({'height': 0}, 'image size 8 x 0'),
    ({'width': 2**31}, 'each side must be 1 to'),
    ({'step': 23}, 'image step 23 is less than a row of 8 pixels in rgb8: 24 bytes'),
    ({'step': 25}, '144 bytes, but 6 rows of 25 bytes need 150'),
    ({'data': array('B')}, '0 bytes'),
    ({'encoding': 'uyvy', 'width': 7}, 'even size'),
])  # fmt: skip
def test_bad_images_say_what_is_wrong(change, text):
    msg = image(RGB, 'rgb8')
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(MessageError, match=text):
        messages.image_to_array(msg)


@pytest.mark.parametrize('encoding, scale', [('16UC1', 0.001), ('mono16', 0.001), ('32FC1', 1)])
@pytest.mark.parametrize('big_endian', [False, True])
def test_depth_is_in_metres(encoding, scale, big_endian):
    values = RNG.integers(1, 60_000, (HEIGHT, WIDTH))
    values[2, 3] = 0  # not measured
    kind = np.dtype(('>' if big_endian else '<') + ('f4' if encoding == '32FC1' else 'u2'))
    stored = values.astype(kind)
    if encoding == '32FC1':
        stored[1, :3] = np.nan, np.inf, -1
    msg = image(stored.view(np.uint8), encoding, 3, is_bigendian=big_endian)
    depth = messages.depth_to_metres(msg)
    unknown = np.argwhere(np.isnan(depth)).tolist()
    wrong = [[1, 0], [1, 1], [1, 2]] if encoding == '32FC1' else []
    assert unknown == [*wrong, [2, 3]]
    known = ~np.isnan(depth)
    np.testing.assert_allclose(depth[known], values[known] * scale, rtol=1e-6)


def test_bad_depth_says_what_is_wrong():
    good = {'values': np.zeros((HEIGHT, 2 * WIDTH), np.uint8), 'encoding': '16UC1'}
    for change, text in (
        ({'encoding': 'rgb8'}, "'rgb8' is none of 16UC1"),
        ({'width': 0}, 'image size 0 x 6'),
        ({'step': 15}, 'a row of 8 pixels in 16UC1: 16 bytes'),
        ({'step': 17}, '96 bytes, but'),
    ):
        with pytest.raises(MessageError, match=text):
            messages.depth_to_metres(image(**{**good, **change}))


def test_cv_bridge_converts_what_we_cannot_where_it_is_installed(monkeypatch):
    """With a stand-in of its interface: the wheels have none."""
    asked = []

    class CvBridge:
        def imgmsg_to_cv2(self, msg, desired_encoding='passthrough'):
            asked.append((msg.encoding, desired_encoding))
            if msg.encoding == 'abc':
                raise TypeError('Unrecognized image encoding [abc]')
            return RGB

    module = types.ModuleType('cv_bridge')
    module.CvBridge = CvBridge
    monkeypatch.setitem(sys.modules, 'cv_bridge', module)
    messages._cv_bridge.cache_clear()
    try:
        frame = messages.image_to_array(image(RGB, 'bayer_xyz'))
        np.testing.assert_array_equal(frame, RGB)
        messages.image_to_array(image(RGB, 'rgb8'))
        with pytest.raises(MessageError, match=r"'abc' is none of rgb8.*Unrecognized"):
            messages.image_to_array(image(RGB, 'abc'))
        with pytest.raises(MessageError, match='made of it'):
            messages.image_to_array(image(RGB, 'bayer_xyz', width=7))
    finally:
        messages._cv_bridge.cache_clear()
    assert asked == [('bayer_xyz', 'rgb8'), ('abc', 'rgb8'), ('bayer_xyz', 'rgb8')]


def test_compressed_image():
    for extension, tolerance in (('.png', 0), ('.jpg', 12)):
        data = cv2.imencode(extension, SMOOTH[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1]
        msg = CompressedImage(format=extension, data=array('B', data.tobytes()))
        difference = messages.compressed_to_array(msg).astype(int) - SMOOTH
        assert np.abs(difference).max() <= tolerance
    for data in (b'', b'\xff\xd8\xff' + bytes(40)):
        with pytest.raises(MessageError, match='bytes'):
            messages.compressed_to_array(CompressedImage(format='jpeg', data=array('B', data)))


def test_array_to_image_and_back():
    header = Header(frame_id='optical', stamp=Time(sec=3, nanosec=4))
    msg = messages.array_to_image(RGB[::2], header)
    assert msg.header == header
    np.testing.assert_array_equal(messages.image_to_array(msg), RGB[::2])


def tracks(count: int) -> Tracks:
    return Tracks(
        1.5,
        np.arange(count, dtype=np.uint32) + 9,
        RNG.random((count, 2), np.float32) * 500,
        RNG.random(count, np.float32),
        RNG.random(count, np.float32),
        np.arange(count, dtype=np.uint32),
        np.full(count, 5, np.uint32),
    )


@pytest.mark.parametrize('count', [0, 3])
def test_tracks_are_a_32_byte_record(count):
    given_, header = tracks(count), Header(frame_id='optical', stamp=Time(sec=1, nanosec=2))
    msg = messages.tracks_to_cloud(given_, header)
    assert (msg.header, msg.height, msg.width) == (header, 1, count)
    assert (msg.point_step, msg.row_step) == (32, 32 * count)
    assert [(f.name, f.offset, f.datatype, f.count) for f in msg.fields] == [
        ('x', 0, 7, 1),
        ('y', 4, 7, 1),
        ('z', 8, 7, 1),
        ('id', 12, 6, 1),
        ('visibility', 16, 7, 1),
        ('confidence', 20, 7, 1),
        ('flags', 24, 6, 1),
        ('age', 28, 6, 1),
    ]
    rows = messages.cloud_to_tracks(msg)
    np.testing.assert_array_equal(np.stack([rows['x'], rows['y']], 1), given_.xy)
    for name, values in (
        ('id', given_.ids),
        ('visibility', given_.visibility),
        ('z', 0),
        ('confidence', given_.confidence),
        ('flags', 5),
        ('age', given_.age),
    ):
        np.testing.assert_array_equal(rows[name], values)


def cloud(rows: np.ndarray, **change) -> PointCloud2:
    """Message of a structured array with fields of 32 or 64 bits."""
    types = {'f4': 7, 'f8': 8, 'u4': 6, 'i4': 5}
    fields = [
        PointField(
            name=n, offset=rows.dtype.fields[n][1], count=1, datatype=types[rows.dtype[n].str[1:]]
        )
        for n in rows.dtype.names
    ]
    known = {
        'height': 1,
        'width': len(rows),
        'fields': fields,
        'point_step': rows.itemsize,
        'row_step': rows.nbytes,
        'data': array('B', rows.tobytes()),
    }
    return PointCloud2(**{**known, **change})


def test_queries_add_remove_and_move():
    nan = float('nan')
    rows = np.array(
        [
            (1, 2, 0, 16, 3),
            (nan, nan, 7, -1, 0),
            (3, 4, 9, 5, 3),
            (5, 6, 0, -1, 0),
            (7, 8, 9, 0, 4),
        ],
        [('x', '<f8'), ('y', '<f4'), ('id', '<u4'), ('keypoint', '<i4'), ('instance', '<u4')],
    )
    asked = messages.cloud_to_queries(
        cloud(rows, header=Header(stamp=Time(sec=2, nanosec=500_000_000)))
    )
    assert asked.add.tolist() == [[1, 2], [5, 6]]
    assert asked.keypoint.tolist() == [16, -1, 0] and asked.instance.tolist() == [3, 0, 4]
    assert asked.remove.tolist() == [7]
    assert asked.move.tolist() == [9] and asked.to.tolist() == [[7, 8]]  # the last place
    assert asked.stamp == 2.5


def test_queries_without_id_stamp_or_order():
    rows = np.array([[(5, 6)], [(7, 8)]], [('y', '>f4'), ('x', '>f4')])  # two rows, big endian
    padded = array('B', b''.join(row.tobytes() + b'pad' for row in rows))
    asked = messages.cloud_to_queries(
        cloud(rows[:, 0], height=2, width=1, row_step=11, is_bigendian=True, data=padded)
    )
    assert asked.add.tolist() == [[6, 5], [8, 7]]
    assert not asked.remove.size and asked.stamp is None


@pytest.mark.parametrize('rows, change, text', [
    (np.zeros(2, [('x', '<f4')]), {}, r"\['x'\] lacks y"),
    (np.zeros(2, [('x', '<f4'), ('y', '<f4')]), {'width': 3}, '16 bytes .* 1 x 3 points'),
    (np.zeros(2, [('x', '<f4'), ('y', '<f4')]), {'point_step': 7}, 'ends at byte 8'),
    (np.zeros(2, [('x', '<f4'), ('y', '<f4'), ('id', '<f4')]), {}, 'whole numbers'),
    (np.full(2, -1, [('x', '<f4'), ('y', '<f4'), ('id', '<i4')]), {}, 'whole numbers'),
    (np.full(2, np.inf, [('x', '<f4'), ('y', '<f4')]), {}, r'\(inf, inf\) is not finite'),
    (np.full(2, np.nan, [('x', '<f4'), ('y', '<f4')]), {}, 'not finite'),
    (
        np.full(2, 17, [('x', '<f4'), ('y', '<f4'), ('keypoint', '<i4')]), {},
        'field keypoint: 17 is no keypoint: they go from 0, nose, to 16',
    ),
    (
        np.full(2, 65536, [('x', '<f4'), ('y', '<f4'), ('instance', '<u4')]), {},
        'field instance must hold whole numbers from 0 to 65535',
    ),
])  # fmt: skip
def test_bad_queries_say_what_is_wrong(rows, change, text):
    with pytest.raises(MessageError, match=text):
        messages.cloud_to_queries(cloud(rows, **change))


sizes = st.integers(0, 2**32 - 1) | st.integers(0, 12)
BYTES = {'rgba16': 8, 'rgb16': 6, 'rgba8': 4, 'rgb8': 3, 'mono16': 2, '16UC1': 2, '32FC1': 4}


@st.composite
def images(draw) -> Image:
    """Any image: half of them with sizes that nearly fit, so that many are valid."""
    encoding = draw(st.sampled_from((*messages.ENCODINGS, '32FC1')) | st.text(max_size=8))
    endian = draw(st.integers(0, 255))
    if draw(st.booleans()):
        height, width, step = draw(sizes), draw(sizes), draw(sizes)
        data = draw(st.binary(max_size=600))
    else:
        height, width = draw(st.integers(1, 5)) * 2, draw(st.integers(1, 5)) * 2
        step = width * BYTES.get(encoding, 4) + draw(st.integers(-1, 3))
        seed = np.random.default_rng(draw(st.integers(0, 2**32)))
        data = seed.bytes(3 * height * step + draw(st.integers(-3 * step, 2)))
    return Image(height=height, width=width, step=step, is_bigendian=endian, encoding=encoding,
                 data=array('B', data))  # fmt: skip


@settings(max_examples=800, deadline=None)
@given(images())
def test_any_image_converts_or_raises_the_documented_error(msg):
    with contextlib.suppress(MessageError):
        frame = messages.image_to_array(msg)
        assert frame.shape == (msg.height, msg.width, 3) and frame.dtype == np.uint8
        picture = messages.unpack(msg)
        frame = picture.rgb(ImageRange().limits(picture.values))
        assert frame.shape == (msg.height, msg.width, 3) and frame.dtype == np.uint8
        assert messages.image_to_mask(msg).shape == (msg.height, msg.width)
    with contextlib.suppress(MessageError):
        depth = messages.depth_to_metres(msg)
        assert depth.shape == (msg.height, msg.width) and not (depth <= 0).any()


@st.composite
def clouds(draw) -> PointCloud2:
    """Any cloud: half of them with a layout that nearly fits, so that many are valid."""
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(['x', 'y', 'id', 'z', '']), max_size=4))
        fields = [
            PointField(name=name, offset=draw(sizes), datatype=draw(st.integers(0, 255)),
                       count=draw(sizes))
            for name in names
        ]  # fmt: skip
        height, width, point_step, row_step = (draw(sizes) for _ in range(4))
        data = draw(st.binary(max_size=200))
    else:
        types_of_fields = draw(st.tuples(*[st.integers(1, 8)] * 3))
        fields = [
            PointField(name=name, offset=8 * i + draw(st.integers(0, 1)), datatype=kind, count=1)
            for i, (name, kind) in enumerate(zip(('x', 'y', 'id'), types_of_fields, strict=True))
        ]
        height, width, point_step = draw(st.integers(1, 3)), draw(st.integers(0, 5)), 25
        row_step = width * point_step + draw(st.integers(-1, 3))
        seed = np.random.default_rng(draw(st.integers(0, 2**32)))
        data = seed.bytes(height * row_step + draw(st.integers(-1, 2))) if width else b''
        if draw(st.booleans()):
            data = bytes(len(data))
    return PointCloud2(height=height, width=width, point_step=point_step,
                       row_step=max(row_step, 0), fields=fields,
                       is_bigendian=draw(st.booleans()), data=array('B', data))  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(clouds())
def test_any_cloud_converts_or_raises_the_documented_error(msg):
    with contextlib.suppress(MessageError):
        asked = messages.cloud_to_queries(msg)
        assert np.isfinite(asked.add).all() and asked.remove.dtype == np.uint32
