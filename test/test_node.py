"""The node as a process, over real DDS."""

import json
import math
import os
import signal
import time
from array import array
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

from builtin_interfaces.msg import Time
from conftest import PATIENCE, texture
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point, PointStamped
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import ImageMarker

from cotracker_ros.points import grid
from cotracker_ros.ros.messages import cloud_to_tracks, compressed_to_array, image_to_array
from cotracker_ros.ros.parameters import TABLE
from cotracker_ros.streaming import NEW, QUERY_FRAME, VISIBLE

# Stand-ins for the tracker, as programs: real ones take milliseconds and do not fail.
SLOW = """
import threading, time
import cotracker_ros.ros.node as node
class Slow(node.StreamingTracker):
    def track(self, frame, stamp):
        print('step', flush=True)
        time.sleep({seconds})
        return super().track(frame, stamp)
node.StreamingTracker = Slow
raise SystemExit(node.main())
"""


def queries(rows, stamp: Time | None = None) -> PointCloud2:
    """Message of rows x, y, id."""
    points = np.array([tuple(row) for row in rows], [('x', '<f4'), ('y', '<f4'), ('id', '<u4')])
    fields = [
        PointField(name=n, offset=4 * i, datatype=t, count=1)
        for i, (n, t) in enumerate((('x', 7), ('y', 7), ('id', 6)))
    ]
    return PointCloud2(
        header=Header(stamp=stamp or Time()),
        height=1,
        width=len(points),
        fields=fields,
        point_step=12,
        row_step=points.nbytes,
        data=array('B', points.tobytes()),
    )


def test_every_frame_is_answered_under_its_header(start_tracker):
    tracker = start_tracker(initial_grid=4)
    first = tracker.track()
    assert len(first) == 16 and (first['age'] == 0).all()
    assert (first['flags'] == VISIBLE | NEW | QUERY_FRAME).all()
    np.testing.assert_allclose(
        np.stack([first['x'], first['y']], 1), grid(4, (240, 320)), atol=1e-3
    )
    for age in (1, 2, 3):
        rows = tracker.track()  # waits for the very header, frame_id and nanoseconds included
        assert rows['id'].tolist() == first['id'].tolist()
        assert (rows['age'] == age).all() and not (rows['flags'] & (NEW | QUERY_FRAME)).any()
        assert ((rows['visibility'] >= 0) & (rows['visibility'] <= 1)).all()
    assert len(tracker.tracks) == 4


def test_points_come_and_go_by_topics(start_tracker):
    tracker = start_tracker(initial_grid=0)
    assert len(tracker.track()) == 0  # a message all the same
    send = tracker.publisher(PointCloud2, 'tracker/queries').publish
    send(queries([(30, 40, 0), (100, 50, 0)]))
    tracker.until(lambda: len(tracker.track()) == 2)
    rows = tracker.track()
    one, two = rows['id'].tolist()
    send(queries([(math.nan, math.nan, one), (200, 60, two)]))
    # One is gone; two has moved, and is still two.
    moved = lambda row: abs(row['x'] - 200) + abs(row['y'] - 60) < 1  # noqa: E731
    tracker.until(lambda: [moved(row) for row in tracker.track()] == [True])
    assert tracker.track()['id'].tolist() == [two] and two > one

    def received(count):
        return lambda: len(tracker.track()) == count

    point = tracker.publisher(PointStamped, 'tracker/add_point')
    point.publish(PointStamped(point=Point(x=10.0, y=20.0)))
    tracker.until(received(2))
    click = tracker.publisher(Point, 'image_mouse_left')
    click.publish(Point(x=310.0, y=20.0))
    tracker.until(received(3))
    send(queries([(5000, 5000, 0), (30, 40, 0)]))
    tracker.diagnostic(lambda s, v: v['queries refused'] == '1' and '5000' in s.message)
    send(queries([(30, 40, 0)] * 10_000))
    status = tracker.diagnostic(lambda s, v: v['queries refused'] == '2')
    assert '10000 points to add' in status.message and '64' in status.message
    assert len(tracker.track()) == 3


def test_query_of_a_past_frame_starts_there(start_tracker):
    tracker = start_tracker(initial_grid=0)
    tracker.track()
    past = tracker.tracks[-1].header.stamp
    tracker.track(texture(2))
    tracker.publisher(PointCloud2, 'tracker/queries').publish(queries([(160, 120, 0)], past))
    tracker.until(lambda: len(tracker.track(texture(4))) == 1)
    rows = tracker.track(texture(6))
    assert rows['age'][0] >= 3


def received(status) -> int:
    """Images that had arrived at a status."""
    return int({v.key: v.value for v in status.values}['images received'])


def test_services(start_tracker):
    tracker = start_tracker(initial_grid=2)
    before = tracker.track()['id']
    assert tracker.call(Trigger, '~/clear').success
    assert len(tracker.track()) == 0
    assert tracker.call(Trigger, '~/resample').message == 'replaced 0 points by the initial ones'
    after = tracker.track()
    assert len(after) == 4 and (after['flags'] & NEW).all()
    assert not set(after['id']) & set(before)
    assert 'dropped 4 points' in tracker.call(Trigger, '~/reset').message
    assert (tracker.track()['age'] == 0).all()
    assert tracker.call(SetBool, '~/enable', SetBool.Request(data=False)).message == 'paused'
    before = tracker.diagnostic(lambda s, v: v['enabled'] == 'false')
    unseen = tracker.send()
    tracker.diagnostic(lambda s, v: int(v['images received']) > received(before))
    assert tracker.call(SetBool, '~/enable', SetBool.Request(data=True)).success
    rows = tracker.track()
    assert (rows['age'] == 1).all()
    assert unseen.header not in [msg.header for msg in tracker.tracks]


def test_parameters_while_running(start_tracker):
    tracker = start_tracker(initial_grid=0, max_points=9)
    assert tracker.set('query_points', [20.0, 30.0, 60.0, 70.0]).successful
    first = tracker.track()
    np.testing.assert_allclose(
        np.stack([first['x'], first['y']], 1), [[20, 30], [60, 70]], atol=1e-3
    )
    assert tracker.set('query_points', [100, 110]).successful  # whole numbers too
    second = tracker.track()
    assert second['x'].tolist() == pytest.approx([100], abs=1e-3)
    for name, value, reason in (
        ('query_points', [1.0, 2.0, 3.0], 'pairs of x and y'),
        ('query_points', [900.0, 20.0], 'outside the image of 320 x 240'),
        ('initial_grid', 4, 'max_points is 9'),
        ('initial_grid', -1, 'range'),
        ('initial_grid', 'two', 'type'),
        ('max_points', 10, 'read-only'),
        ('age_budget', 0.0, 'range'),
    ):
        result = tracker.set(name, value)
        assert not result.successful and reason in result.reason, (name, value, result.reason)
    assert tracker.track()['id'].tolist() == second['id'].tolist()  # nothing was lost
    assert tracker.set('initial_grid', 2).successful
    tracker.call(Trigger, '~/resample')
    assert len(tracker.track()) == 5


CHECKS = """
import cotracker_ros.ros.node as node
from cotracker_ros.ros.parameters import Parameter
clean = Parameter.clean
def told(self, value):
    print('checked', self.name, flush=True)
    return clean(self, value)
Parameter.clean = told
raise SystemExit(node.main())
"""


def test_parameters_are_checked_when_they_are_set_and_not_for_each_image(start_tracker):
    tracker = start_tracker(('-c', CHECKS), initial_grid=2)
    before = tracker.output().count('checked')
    for _ in range(5):
        tracker.track()
    tracker.diagnostic(lambda s, v: int(v['images tracked']) >= 5)
    assert before >= len(TABLE) and tracker.output().count('checked') == before
    assert tracker.set('late_within', 2.0).successful
    assert 'late_within' in tracker.output().splitlines()[-1]


def dump(tracker) -> tuple[dict, dict]:
    """All parameters as `ros2 param dump` writes them, and their described types."""
    from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters
    from rclpy.parameter import Parameter, parameter_value_to_python

    names = tracker.call(ListParameters, '~/list_parameters').result.names
    request = GetParameters.Request(names=names)
    values = tracker.call(GetParameters, '~/get_parameters', request).values
    request = DescribeParameters.Request(names=names)
    described = tracker.call(DescribeParameters, '~/describe_parameters', request).descriptors
    tree: dict = {}
    for name, value in zip(names, values, strict=True):
        *above, last = name.split('.')
        branch = tree
        for part in above:
            branch = branch.setdefault(part, {})
        branch[last] = parameter_value_to_python(value)
        branch[last] = list(branch[last]) if hasattr(branch[last], 'tolist') else branch[last]
    return tree, {d.name: Parameter.Type(d.type).name for d in described}


def test_every_parameter_survives_dump_and_load(start_tracker, tmp_path):
    kinds = {'bool': 'BOOL', 'integer': 'INTEGER', 'double': 'DOUBLE', 'string': 'STRING'}
    wanted = {p.name: kinds.get(p.kind, p.kind.upper()[:-2] + '_ARRAY') for p in TABLE}
    others = {  # than the defaults
        'cameras': '[front, rear]', 'query_points': '[10, 20]', 'age_budget': 1, 'depth': 'true',
        'image_transport': 'compressed', 'initial_grid': 9, 'overlay_rate': 3, 'threads': 1,
    }  # fmt: skip
    for changed in ({}, others):
        tracker = start_tracker(ready=False, **changed)
        tracker.until(lambda tracker=tracker: 'tracking ' in tracker.output())
        before, types = dump(tracker)
        assert {name: types[name] for name in wanted} == wanted
        file = tmp_path / 'dump.yaml'  # JSON is YAML
        tracker.close()
        file.write_text(json.dumps({'/**': {'ros__parameters': before}}))
        again = start_tracker(ready=False, extra=('--params-file', str(file)))
        again.until(lambda again=again: 'tracking ' in again.output())
        after, types = dump(again)
        again.close()
        assert {n: after[n] for n in wanted} == {n: before[n] for n in wanted}
        assert {name: types[name] for name in wanted} == wanted


def test_set_parameters_keep_their_types(start_tracker):
    tracker = start_tracker(ready=False, autostart='false')
    for name, value, kind in (
        ('query_points', [1, 2], 'DOUBLE_ARRAY'),
        ('query_points', [], 'DOUBLE_ARRAY'),
        ('age_budget', 1, 'DOUBLE'),
    ):
        assert tracker.set(name, value).successful
        assert dump(tracker)[1][name] == kind


def test_slots_grow_to_the_initial_points(start_tracker):
    tracker = start_tracker(initial_grid=9, initial_corners=4, query_points='[20.0, 30.0]')
    assert 'x 86 points' in tracker.output()
    rows = tracker.track()
    assert len(rows) >= 82  # corners may be fewer
    result = tracker.set('initial_grid', 10)
    assert not result.successful and 'max_points is 86' in result.reason


@pytest.mark.parametrize(
    'values, message',
    [
        ({'model': 'nothing'}, "no model 'nothing'"),
        ({'model': '/nowhere/model.onnx'}, '/nowhere/model.onnx: no such model file'),
        ({'max_points': -1}, 'max_points must be 0 to'),
        ({'max_point': 9}, "no parameter 'max_point'; did you mean 'max_points'?"),
        ({'engine': 'abacus'}, 'engine must be one of auto'),
        (
            {'initial_grid': 9, 'max_points': 64},
            'initial_grid 9, initial_corners 0, 0 query_points and target_points 0 need 81 slots',
        ),
        ({'query_points': '[1.0, 2.0, 3.0]'}, 'pairs of x and y'),
    ],
)
def test_wrong_parameters_end_the_start_with_one_message(start_tracker, values, message):
    tracker = start_tracker(ready=False, **values)
    assert tracker.process.wait(PATIENCE) in (1, 2)
    said = tracker.output()
    assert message in said and 'Traceback' not in said


def test_bad_images_are_reported_and_lose_no_track(start_tracker):
    tracker = start_tracker(initial_grid=2)
    ids = tracker.track()['id'].tolist()
    bad = (
        {'encoding': 'abc'},
        {'data': array('B', bytes(100))},
        {'step': 3},
        {'height': 0},
        {'width': 2**31},
    )
    for change in bad:
        before = len(tracker.tracks)
        tracker.send(tracker.image(**change))
        number = str(1 + bad.index(change))
        tracker.diagnostic(lambda s, v, n=number: v['images unusable'] == n)
        assert tracker.track()['id'].tolist() == ids
        assert len(tracker.tracks) == before + 1
    tracker.send(tracker.image(encoding='abc'))
    status = tracker.diagnostic(lambda s, v: "'abc' is none of rgb8" in s.message)
    assert status.level in (DiagnosticStatus.WARN, DiagnosticStatus.ERROR)


def test_stamps_that_jump_back_start_anew(start_tracker):
    tracker = start_tracker(initial_grid=3)
    ids = set(tracker.track()['id'])
    tracker.track()
    tracker.stamp -= 10**10  # a bag that starts again
    tracker.until(lambda: len(tracker.track()) == 9)
    rows = tracker.track()
    assert not ids & set(rows['id'])
    tracker.diagnostic(lambda s, v: v['jumps back in time'] == '1')
    late = tracker.image()
    tracker.track()
    tracker.send(late)
    tracker.diagnostic(lambda s, v: v['images late'] == '1')
    assert tracker.track()['id'].tolist() == rows['id'].tolist()
    assert late.header not in [msg.header for msg in tracker.tracks]


def test_size_and_encoding_may_change(start_tracker):
    tracker = start_tracker(initial_grid=2)
    ids = tracker.track()['id'].tolist()
    large = cv2.resize(texture(), (640, 480))
    rows = tracker.track(large)
    assert rows['id'].tolist() == ids
    grey = tracker.image(large[..., 0], encoding='mono8', step=640)
    grey.data = array('B', large[..., 0].tobytes())
    tracker.send(grey)
    tracker.until(lambda: tracker.tracks[-1].header == grey.header)
    tracker.until(lambda: tracker.said('from rgb8 640 x 480 to mono8 640 x 480'))


def test_compressed_images(start_tracker):
    tracker = start_tracker(ready=False, image_transport='compressed', initial_grid=2)
    publisher = tracker.publisher(CompressedImage, 'image/compressed')
    jpeg = array('B', cv2.imencode('.jpg', texture())[1].tobytes())

    def answered():
        publisher.publish(CompressedImage(header=tracker.header(), format='jpeg', data=jpeg))
        return any(msg.width == 4 for msg in tracker.tracks)

    tracker.until(answered)
    publisher.publish(CompressedImage(header=tracker.header(), format='jpeg', data=jpeg[:99]))
    tracker.diagnostic(lambda s, v: v['images unusable'] == '1' and 'neither a JPEG' in s.message)
    tracker.tracks.clear()
    tracker.until(answered)


def test_best_effort_camera_that_comes_later(start_tracker):
    """A reliable subscription never hears a best-effort camera; ours must notice."""
    tracker = start_tracker(ready=False, initial_grid=1)
    tracker.until(lambda: 'tracking /' in tracker.output())
    qos = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    publisher = tracker.publisher(Image, 'image', qos)

    def answered():
        publisher.publish(tracker.image())
        return tracker.tracks

    tracker.until(answered)


def test_qualities_of_service_can_be_overridden(start_tracker):
    key = f'qos_overrides./picture_{os.getpid()}.subscription'
    topic = f'/picture_{os.getpid()}'
    extra = ('-r', f'image:={topic}', '-p', f'{key}.depth:=3', '-p', f'{key}.reliability:=')
    wrong = start_tracker(ready=False, extra=(*extra[:-1], extra[-1] + 'sometimes'))
    assert wrong.process.wait(PATIENCE) == 1
    assert f'{key}.reliability must be best_available, reliable or' in wrong.output()
    for choice in ('best_effort', 'reliable'):
        tracker = start_tracker(ready=False, extra=(*extra[:-1], extra[-1] + choice))
        ours = tracker.until(lambda t=tracker: t.node.get_subscriptions_info_by_topic(topic))
        assert ours[0].qos_profile.reliability.name == choice.upper()
    publisher = tracker.publisher(Image, topic)
    tracker.until(lambda: publisher.publish(tracker.image()) or tracker.tracks)


# What rclpy of Humble lacks: https://docs.ros.org/en/iron/Releases/Release-Iron-Irwini.html
HUMBLE = """
import inspect, sys
import rclpy.node
import cotracker_ros.ros.node as node
import cotracker_ros.ros.subscription as subscription
from rclpy.qos import QoSReliabilityPolicy
create = rclpy.node.Node.create_subscription
def create_subscription(self, kind, topic, callback, qos, **options):
    assert len(inspect.signature(callback).parameters) == 1, topic
    assert getattr(qos, 'reliability', None) != QoSReliabilityPolicy.BEST_AVAILABLE
    return create(self, kind, topic, callback, qos, **options)
rclpy.node.Node.create_subscription = create_subscription
del rclpy.node.Node.add_post_set_parameters_callback
subscription.HAS_MESSAGE_INFO = False
raise SystemExit(node.main())
"""


def test_without_what_humble_lacks(start_tracker):
    tracker = start_tracker(('-c', HUMBLE), initial_grid=2)
    ids = tracker.track()['id'].tolist()
    tracker.node.destroy_publisher(tracker._publishers.pop('image'))
    best_effort = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    tracker.publisher(Image, 'image', best_effort)
    tracker.tracks.clear()
    tracker.until(lambda: tracker.send() and tracker.tracks)
    assert cloud_to_tracks(tracker.tracks[-1])['id'].tolist() == ids
    assert tracker.set('query_points', [50.0, 60.0]).successful
    tracker.until(lambda: len(tracker.track()) == 5)
    values = {v.key: v.value for v in tracker.diagnostic(lambda s, v: True).values}
    assert values['images lost by DDS'] == '0'


def test_each_parameter_is_fixed_or_takes_effect_while_running(start_tracker):
    tracker = start_tracker(initial_grid=2, image_timeout=60.0)
    for p in TABLE:
        result = tracker.set(p.name, list(p.default) if p.kind.endswith(']') else p.default)
        assert result.successful == p.dynamic, (p.name, result.reason)
        assert p.dynamic or 'read-only' in result.reason

    assert tracker.set('image_timeout', 0.1).successful
    tracker.diagnostic(lambda s, v: s.message.startswith('no image for'))
    assert tracker.set('age_budget', 0.001).successful
    tracker.diagnostic(lambda s, v: tracker.send() and 'older than 1 ms' in s.message)

    assert tracker.set('hold_frozen', True).successful

    def visible():
        return (tracker.track(texture(5))['flags'] & VISIBLE).any()

    tracker.until(lambda: not visible())  # of the default, 5
    assert tracker.set('frozen_after', 0).successful
    tracker.until(visible)
    pictures = []
    tracker.node.create_subscription(Image, 'tracker/overlay', pictures.append, 10)
    assert tracker.set('overlay_rate', 240.0).successful
    tracker.until(lambda: tracker.track() is not None and len(pictures) > 3)
    assert tracker.set('overlay_rate', 0.1).successful
    start, before = time.monotonic(), tracker.stamp
    for _ in range(20):
        tracker.track()
    drawn = [p for p in pictures if p.header.stamp.sec * 10**9 + p.header.stamp.nanosec > before]
    assert len(drawn) <= 1 + (time.monotonic() - start) / 10

    assert tracker.set('initial_corners', 5).successful
    tracker.call(Trigger, '~/resample')
    many = len(tracker.track())
    assert many > 0
    assert tracker.set('retire_after', 2).successful
    noise = np.random.default_rng(3)
    tracker.until(
        lambda: len(tracker.track(noise.integers(0, 256, (240, 320, 3), np.uint8))) < many
    )
    tracker.diagnostic(lambda s, v: int(v['points retired']) > 0)


def test_parameter_file_and_remapping(start_tracker, tmp_path):
    file = tmp_path / 'parameters.yaml'
    file.write_text('/**:\n  ros__parameters:\n    initial_grid: 3\n    age_budget: 1\n')
    extra = ('--params-file', str(file), '-r', 'image:=camera/picture')
    tracker = start_tracker(ready=False, extra=extra)
    publisher = tracker.publisher(Image, 'camera/picture')

    def answered():
        publisher.publish(tracker.image())
        return any(msg.width == 9 for msg in tracker.tracks)

    tracker.until(answered)


def test_lifecycle(start_tracker):
    tracker = start_tracker(ready=False, autostart='false', initial_grid=2)

    def change(label):
        request = ChangeState.Request()
        request.transition.label = label
        return tracker.call(ChangeState, '~/change_state', request).success

    def state():
        return tracker.call(GetState, '~/get_state').current_state.label

    assert state() == 'unconfigured'
    for _ in range(3):
        assert change('configure') and state() == 'inactive'
        assert change('activate') and state() == 'active'
        assert change('deactivate') and state() == 'inactive'
        assert change('activate') and change('deactivate') and change('cleanup')
        assert state() == 'unconfigured'
    assert change('configure') and change('activate')
    tracker.warm_up()
    assert len(tracker.track()) == 4
    assert change('shutdown') and state() == 'finalized'


def test_lifecycle_failure_is_logged_and_can_be_tried_again(start_tracker):
    tracker = start_tracker(ready=False, autostart='false', model='nothing')
    request = ChangeState.Request()
    request.transition.label = 'configure'
    assert not tracker.call(ChangeState, '~/change_state', request).success
    assert "on_configure: no model 'nothing'" in tracker.output()
    assert tracker.call(GetState, '~/get_state').current_state.label == 'unconfigured'


def test_the_newest_image_wins(start_tracker):
    tracker = start_tracker(('-c', SLOW.format(seconds=0.2)), initial_grid=1)
    tracker.track()
    publisher = tracker.publisher(Image, 'image', 50)

    def flooded(_, values):
        tracker.last = tracker.image()
        publisher.publish(tracker.last)
        return int(values['images replaced by newer ones']) > 3

    tracker.until(lambda: publisher.publish(tracker.image()) or tracker.status)
    status = tracker.diagnostic(flooded)
    tracker.until(lambda: tracker.tracks[-1].header == tracker.last.header)
    values = {v.key: v.value for v in status.values}
    assert int(values['images tracked']) < int(values['images received'])


def test_diagnostics_of_a_silent_camera(start_tracker):
    tracker = start_tracker(ready=False, image_timeout=1.0, engine='auto')
    status = tracker.diagnostic(lambda s, v: True)
    assert (status.level, status.message) == (DiagnosticStatus.STALE, 'no image yet')
    tracker.warm_up()
    status = tracker.diagnostic(lambda s, v: s.level == DiagnosticStatus.ERROR)
    assert status.message.startswith('no image for ')
    tracker.track()
    values = {v.key: v.value for v in tracker.diagnostic(lambda s, v: True).values}
    assert values['model'] == 'realtime'
    # Whichever is there.
    assert values['engine'] in ('openvino cpu bf16', 'openvino cpu f32', 'onnxruntime cpu f32')
    assert {'age p50 [ms]', 'age p95 [ms]', 'age p99 [ms]', 'step p95 [ms]'} <= set(values)


def test_simulated_time(start_tracker):
    """The age of tracks is told in it, and not before it has begun."""
    tracker = start_tracker(use_sim_time=True, initial_grid=1)
    tracker.track()
    status = tracker.diagnostic(lambda s, v: v['images tracked'] != '0')
    assert not any(value.key.startswith('age') for value in status.values)
    clock = tracker.publisher(Clock, '/clock')

    def told():
        tracker.stamp += 40_000_000
        nanoseconds = tracker.stamp + 540_000_000  # the next image is half a second older
        seconds, rest = divmod(nanoseconds, 10**9)
        clock.publish(Clock(clock=Time(sec=seconds, nanosec=rest)))
        tracker.track()
        return 'age p50 [ms]'

    status = tracker.diagnostic(lambda s, v: told() in v)
    age = {v.key: v.value for v in status.values}['age p50 [ms]']
    assert 0 < float(age) <= 580


def test_blank_and_frozen_images_hold_the_tracks(start_tracker):
    tracker = start_tracker(initial_grid=2, frozen_after=2, hold_frozen='true')
    tracker.track(np.zeros((240, 320, 3), np.uint8))  # initial points wait for a picture
    assert tracker.tracks[-1].width == 0
    tracker.track()
    before = tracker.track()
    for colour in (0, 255):
        rows = tracker.track(np.full((240, 320, 3), colour, np.uint8))
        for name in ('id', 'x', 'y', 'age'):
            np.testing.assert_array_equal(rows[name], before[name])
        assert not (rows['flags'] & VISIBLE).any() and not rows['visibility'].any()
    tracker.diagnostic(
        lambda s, v: v['images blank or frozen'] == '3' and tracker.track() is not None
    )
    before = tracker.track(texture(20))
    tracker.track(texture(20))
    frozen = [tracker.track(texture(20)) for _ in range(2)]
    assert not any((rows['flags'] & VISIBLE).any() for rows in frozen)
    after = tracker.track(texture(4))
    assert (after['age'] == before['age'] + 2).all()
    assert after['id'].tolist() == before['id'].tolist()


def test_overlay_markers_and_rays_for_those_who_subscribe(start_tracker):
    tracker = start_tracker(initial_grid=2, overlay_rate=100.0)
    heard = {}
    for kind, topic in (
        (Image, 'overlay'),
        (CompressedImage, 'overlay/compressed'),
        (ImageMarker, 'markers'),
        (PointCloud2, 'tracks_3d'),
    ):
        tracker.node.create_subscription(
            kind, f'tracker/{topic}', lambda msg, name=topic: heard.update({name: msg}), 10
        )
    info = CameraInfo(k=[100.0, 0, 160, 0, 100, 120, 0, 0, 1], distortion_model='plumb_bob', d=[])
    publisher = tracker.publisher(CameraInfo, 'camera_info')

    def all_heard():
        publisher.publish(info)
        return tracker.track() is not None and len(heard) == 4

    tracker.until(all_heard)
    overlay = image_to_array(heard['overlay'])
    assert overlay.shape == (240, 320, 3)
    assert compressed_to_array(heard['overlay/compressed']).shape == (240, 320, 3)
    assert heard['markers'].type == ImageMarker.POINTS
    cloud = heard['tracks_3d']
    flat = next(t for t in tracker.tracks if t.header == cloud.header)
    space, pixels = cloud_to_tracks(cloud), cloud_to_tracks(flat)
    np.testing.assert_allclose(space['x'], (pixels['x'] - 160) / 100, atol=1e-4)
    np.testing.assert_allclose(space['y'], (pixels['y'] - 120) / 100, atol=1e-4)
    assert (space['z'] == 1).all() and space['id'].tolist() == pixels['id'].tolist()


def test_tracks_in_metres_with_an_aligned_depth_image(start_tracker):
    tracker = start_tracker(initial_grid=2, depth=True)
    heard = []
    tracker.node.create_subscription(PointCloud2, 'tracker/tracks_3d', heard.append, 10)
    info = CameraInfo(k=[100.0, 0, 160, 0, 100, 120, 0, 0, 1], distortion_model='plumb_bob', d=[])
    depth = np.full((240, 320), 2000, '<u2')  # mm
    depth[:120] = 0  # too near to measure
    tracker.publisher(
        Image, 'depth', QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    )
    calibration = tracker.publisher(CameraInfo, 'camera_info')

    def answered():
        picture = tracker.image()
        late = Image(header=picture.header, height=240, width=320, step=640, encoding='16UC1',
                     data=array('B', depth.tobytes()))  # fmt: skip
        calibration.publish(info)
        tracker.send(picture)
        tracker.until(lambda: tracker.tracks and tracker.tracks[-1].header == picture.header)
        tracker.send(late, 'depth')
        return heard and np.isfinite(cloud_to_tracks(heard[-1])['z']).any()

    tracker.until(answered)
    cloud = heard[-1]
    flat = next(t for t in tracker.tracks if t.header == cloud.header)
    space, pixels = cloud_to_tracks(cloud), cloud_to_tracks(flat)
    measured = (pixels['y'] > 120) & ((pixels['flags'] & VISIBLE) != 0)
    assert not cloud.is_dense and np.isnan(space['z'][~measured]).all()
    np.testing.assert_allclose(space['z'][measured], 2)
    np.testing.assert_allclose(space['x'][measured], (pixels['x'][measured] - 160) / 50, atol=1e-3)
    assert space['id'].tolist() == pixels['id'].tolist()
    status = tracker.diagnostic(  # no depth image any more
        lambda s, v: tracker.track() is not None and 'has their stamps' in s.message
    )
    assert status.level == DiagnosticStatus.WARN


def test_several_cameras_do_not_disturb_each_other(start_tracker):
    tracker = start_tracker(ready=False, cameras='[front, rear]', initial_grid=2)
    answers = {'front': [], 'rear': []}
    for camera, heard in answers.items():
        tracker.node.create_subscription(PointCloud2, f'{camera}/tracks', heard.append, 10)

    def both():
        for camera in answers:
            tracker.send(topic=f'{camera}/image')
        return all(answers.values())

    tracker.until(both)
    ids = {camera: cloud_to_tracks(heard[-1])['id'].tolist() for camera, heard in answers.items()}
    for _ in range(3):  # the rear camera is broken; the front one is answered every time
        tracker.send(tracker.image(encoding='abc'), 'rear/image')
        sent = tracker.send(topic='front/image')
        tracker.until(lambda want=sent: answers['front'][-1].header == want.header)
        assert cloud_to_tracks(answers['front'][-1])['id'].tolist() == ids['front']
    status = tracker.until(lambda: next((s for s in tracker.status if 'abc' in s.message), None))
    assert status.name.endswith(': rear') and status.level >= DiagnosticStatus.WARN
    sent = tracker.send(topic='rear/image')
    tracker.until(lambda: answers['rear'][-1].header == sent.header)
    assert cloud_to_tracks(answers['rear'][-1])['id'].tolist() == ids['rear']
    tracker.publisher(PointCloud2, 'tracker/rear/queries').publish(queries([(20, 30, 0)]))

    def grown():
        tracker.send(topic='rear/image')
        return answers['rear'][-1].width == 5

    tracker.until(grown)
    assert answers['front'][-1].width == 4


FAILING = """
import cotracker_ros.ros.node as node
from cotracker_ros.engines import EngineError
class Failing(node.StreamingTracker):
    steps = 0
    def track(self, frame, stamp):
        self.steps += 1
        if 5 < self.steps < 9:
            raise EngineError('the device is lost')
        if self.steps == 9:
            raise RuntimeError('a bug')
        return super().track(frame, stamp)
node.StreamingTracker = Failing
raise SystemExit(node.main())
"""


def test_tracking_goes_on_after_the_engine_failed(start_tracker):
    start = time.monotonic()
    tracker = start_tracker(('-c', FAILING), ready=False, initial_grid=2)

    def failed():
        tracker.send()
        return any('the device is lost' in status.message for status in tracker.status)

    tracker.until(failed)

    before = len(tracker.tracks)
    ids = set(cloud_to_tracks(tracker.tracks[0])['id'])
    tracker.until(lambda: tracker.send() and len(tracker.tracks) > before + 2)
    assert set(cloud_to_tracks(tracker.tracks[-1])['id']) == ids
    assert 'RuntimeError: a bug' in tracker.output()
    most = 1 + (time.monotonic() - start) / 5  # throttled
    assert 1 <= tracker.output().count('the device is lost') <= most


def test_an_engine_that_fails_for_one_camera_leaves_the_other(start_tracker):
    tracker = start_tracker(('-c', FAILING), ready=False, cameras='[front, rear]', initial_grid=2)
    answers = {'front': [], 'rear': []}
    for camera, heard in answers.items():
        tracker.node.create_subscription(PointCloud2, f'{camera}/tracks', heard.append, 10)

    def rear_failed():
        tracker.send(topic='rear/image')
        return any(s.name.endswith('rear') and 'is lost' in s.message for s in tracker.status)

    tracker.until(rear_failed)
    for _ in range(3):
        sent = tracker.send(topic='front/image')
        tracker.until(
            lambda want=sent: answers['front'] and answers['front'][-1].header == want.header
        )
    tracker.diagnostic(lambda s, v: s.name.endswith('front') and v['steps failed'] == '0')
    answers['rear'].clear()
    tracker.until(lambda: tracker.send(topic='rear/image') and answers['rear'])


def test_points_are_retired_and_refilled(start_tracker):
    tracker = start_tracker(initial_grid=0, initial_corners=3, retire_after=2, target_points=6)
    first = tracker.track()
    assert len(first) == 3
    tracker.until(lambda: len(tracker.track()) == 6)
    assert not tracker.set('target_points', 65).successful
    mask = np.zeros((240, 320), np.uint8)
    mask[:, :160] = 255
    msg = tracker.image(np.dstack([mask] * 3))
    tracker.publisher(Image, 'tracker/mask').publish(msg)
    assert tracker.set('initial_grid', 4).successful
    assert tracker.set('initial_corners', 0).successful
    assert tracker.set('target_points', 0).successful

    def masked():
        tracker.call(Trigger, '~/resample')
        rows = tracker.track()
        return len(rows) == 16 and (rows['x'] < 160).all()

    tracker.until(masked)


# The step lasts for ever; the process would too, if it waited for it.
@pytest.mark.parametrize('program', [('-m', 'cotracker_ros'), ('-c', SLOW.format(seconds=10**6))])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_node_and_nothing_stays_behind(start_tracker, program, number):
    tracker = start_tracker(program, ready=False)
    tracker.send()
    tracker.until(lambda: tracker.tracks or 'step' in tracker.output())
    maps = Path(f'/proc/{tracker.process.pid}/maps').read_text().split()
    files = {Path(word) for word in maps if word.startswith('/dev/shm/fast')}
    shared = {f for f in files if '_port7' not in f.name}  # 7000 and up: of all domains
    assert shared  # Fast DDS does use it
    assert tracker.end(number) == 0
    assert 'Traceback' not in tracker.output()
    tracker.close()  # ours, whose files it had open too
    assert not [file for file in shared if file.exists()]
