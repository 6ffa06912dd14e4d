"""The launch file, with the real `launch` where it is installed and strict stand-ins elsewhere."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import stand_in_launch

from cotracker_ros.ros import parameters

pytest.importorskip('yaml', reason='launch files read YAML')
FILE = Path(__file__).parents[1] / 'launch' / 'tracker.launch.py'
REAL = importlib.util.find_spec('launch') and importlib.util.find_spec('launch_ros')


@pytest.fixture
def stand_ins(monkeypatch):
    for name, module in stand_in_launch.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def load():
    """The launch file as a module, as launch loads it."""
    spec = importlib.util.spec_from_file_location('tracker_launch', FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launched(*arguments: str) -> list[dict]:
    """What the nodes are made of that `ros2 launch ... name:=value ...` would start."""
    context = stand_in_launch.LaunchContext(argv=arguments)
    context.launch_configurations.update(a.split(':=', 1) for a in arguments)
    nodes = []
    for entity in load().generate_launch_description().entities:
        nodes += entity.execute(context) or []
    return [node.kwargs for node in nodes]


def explicit(*arguments: str) -> dict:
    """The parameters that these arguments set."""
    return launched(*arguments)[0]['parameters'][1]


def test_every_parameter_is_a_described_argument(stand_ins):
    entities = load().generate_launch_description().entities
    declared = {e.name: e for e in entities if hasattr(e, 'default')}
    assert set(declared) >= {*parameters.BY_NAME, 'use_sim_time', 'namespace', 'image_topic'}
    assert all(argument.description for argument in declared.values())
    assert set(parameters.BY_NAME['engine'].choices) < set(declared['engine'].choices)
    assert Path(declared['params_file'].default).is_file()


@pytest.mark.parametrize(
    'name, text, value',
    [
        ('threads', '1', 1),
        ('max_points', '32', 32),
        ('initial_grid', '3', 3),
        ('autostart', 'false', False),
        ('use_sim_time', 'True', True),
        ('age_budget', '1', 1.0),
        ('model', 'true', 'true'),  # a name, not a truth
        ('model', '/my models/a.onnx', '/my models/a.onnx'),
        ('engine', 'onnxruntime', 'onnxruntime'),
        ('query_points', '[10, 20.5]', [10.0, 20.5]),
        ('query_points', '10,20', [10.0, 20.0]),
        ('cameras', "[front, 'rear']", ['front', 'rear']),
    ],
)
def test_arguments_arrive_in_the_type_of_their_parameter(stand_ins, name, text, value):
    given = explicit(f'{name}:={text}')
    assert given == {name: value}
    assert type(given[name]) is type(value)


def test_only_given_arguments_replace_the_file(stand_ins):
    (node,) = launched()
    file, given = node['parameters']
    assert given == {} and Path(file.param_file).is_file()
    assert node['remappings'] == [
        ('image', 'image'),
        ('camera_info', 'camera_info'),
        ('depth', 'depth'),
    ]
    assert (node['package'], node['executable']) == ('cotracker_ros', 'tracker_node')
    assert explicit('cameras:=[]') == {}  # launch_ros refuses an empty list


def test_a_depth_topic_switches_depth_on(stand_ins):
    (node,) = launched('depth_topic:=/camera/depth')
    assert node['parameters'][1] == {'depth': True}
    assert node['remappings'][2] == ('depth', '/camera/depth')


def test_topics_of_several_cameras_lie_below_their_names(stand_ins):
    (node,) = launched('cameras:=[front, rear]', 'image_topic:=image_raw')
    assert dict(node['remappings'])['rear/image'] == 'rear/image_raw'
    with pytest.raises(RuntimeError, match=r"below the name of each \(front/image\), not '/x'"):
        launched('cameras:=[front]', 'image_topic:=/x')


@pytest.mark.parametrize(
    'argument, message',
    [
        ('threads:=many', "threads must be of type integer, not 'many'"),
        ('threads:=1.5', "threads must be of type integer, not '1.5'"),
        ('threads:=-1', 'threads must be 0 to 256, not -1'),
        ('autostart:=maybe', "autostart must be of type bool, not 'maybe'"),
        ('query_points:=[10]', 'pairs of x and y, not 1 numbers'),
        ('query_points:=[a, b]', "type double.., not 'a'"),
        ('cameras:=[front, front]', 'cameras must be different names'),
        ('engine:=onnx', 'Valid options are: .*onnxruntime'),
        ('rviz:=yes', 'Valid options are'),
        ('params_file:=/nowhere.yaml', "params_file: .*No such file.*'/nowhere.yaml'"),
        ('foxglove_layout:=/nowhere/x.json', 'foxglove_layout: .*No such file'),
        ('image_topic:=my camera', "image_topic must be a topic such as .*, not 'my camera'"),
        ('depth_topic:=/camera/2nd', "depth_topic must be a topic such as .*, not '/camera/2nd'"),
        ('camera:=/nowhere.mp4', 'camera: /nowhere.mp4: no such file'),
    ],
)
def test_wrong_arguments_start_nothing(stand_ins, argument, message):
    with pytest.raises(RuntimeError, match=message):
        launched(argument)


def test_a_follower_of_people_for_each_camera(stand_ins):
    _, people = launched('people:=true', 'poses_topic:=/detector/poses', 'namespace:=robot')
    assert (people['executable'], people['namespace']) == ('people_node', 'robot')
    assert people['remappings'] == [('poses', '/detector/poses')]
    assert people['parameters'] == [{'tracker': 'tracker'}]
    _, front, rear = launched('people:=true', 'cameras:=[front, rear]')
    assert (front['name'], rear['name']) == ('people_front', 'people_rear')
    assert rear['parameters'] == [{'tracker': 'tracker', 'camera': 'rear'}]
    assert rear['remappings'] == [('rear/poses', 'rear/poses')]


@pytest.mark.parametrize(
    'text, message',
    [
        ('{', 'params_file: '),
        ('', r'has parameters of no node \(ros__parameters is missing\), none of tracker'),
        ('/**: {threads: 1}', 'ros__parameters is missing'),
        ('/a/camera: {ros__parameters: {x: 1}}', 'has parameters of /a/camera, none of tracker'),
    ],
)
def test_a_file_without_parameters_of_the_node_is_refused(stand_ins, tmp_path, text, message):
    file = tmp_path / 'my.yaml'
    file.write_text(text)
    with pytest.raises(RuntimeError, match=message):
        launched(f'params_file:={file}')


@pytest.mark.parametrize('node', ['/**', '/*', 'tracker', '/front/tracker', '/**/tracker'])
def test_a_file_of_the_node_is_taken(stand_ins, tmp_path, node):
    file = tmp_path / 'my.yaml'
    file.write_text(f'{node}: {{ros__parameters: {{cameras: [front]}}}}')
    (made,) = launched(f'params_file:={file}', 'namespace:=front')
    assert ('front/image', 'front/image') in made['remappings']
    with pytest.raises(RuntimeError, match='cameras cannot be emptied'):
        launched(f'params_file:={file}', 'cameras:=[]')


def test_misspelt_arguments_are_refused_with_the_nearest_name(stand_ins, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['ros2', 'launch', 'cotracker_ros', FILE.name])
    with pytest.raises(RuntimeError, match="no argument 'imge_topic'; did you mean 'image_topic'"):
        launched('imge_topic:=/camera')
    with pytest.raises(RuntimeError, match="no argument 'zzz'; --show-args lists all"):
        launched('zzz:=1')
    monkeypatch.setattr(sys, 'argv', ['ros2', 'launch', 'robot', 'robot.launch.py'])
    assert launched('robot_arm:=left')  # an argument of the file that includes ours


def test_without_rviz_nothing_starts(stand_ins, monkeypatch):
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    with pytest.raises(RuntimeError, match='rviz:=true needs the package rviz2'):
        launched('rviz:=true')


def test_a_live_view_for_each_camera(stand_ins):
    _, live = launched('live:=true', 'image_topic:=/cam', 'image_transport:=compressed')
    assert (live['executable'], live['remappings']) == ('cotracker-live', [('image', '/cam')])
    assert live['arguments'][:4] == ['--address', '127.0.0.1', '--port', '8080']
    assert '--compressed' in live['arguments']
    _, front, rear = launched('live:=true', 'cameras:=[front, rear]', 'live_port:=9000')
    assert '9001' in rear['arguments'] and rear['name'] == 'live_rear' != front['name']
    assert rear['remappings'] == [('rear/image', 'rear/image')]
    # The program itself takes these options.
    live_main = pytest.importorskip('cotracker_ros.live.__main__', reason='needs ROS 2')
    assert live_main.parsed(rear['arguments']).camera == 'rear'
    _, front, rear = launched('live:=true', 'cameras:=[front, rear]', 'live_port:=0')
    assert [n['arguments'][3] for n in (front, rear)] == ['0', '0']  # any that are free
    for port, last in (('x', 65535), ('-1', 65535), ('99999', 65535), ('65535', 65534)):
        cameras = ['cameras:=[front, rear]'] if last < 65535 else []
        with pytest.raises(RuntimeError, match=f"live_port must be 0 to {last}, not '{port}'"):
            launched('live:=true', f'live_port:={port}', *cameras)


def test_a_camera_is_started(stand_ins, monkeypatch, tmp_path):
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    arguments = ('camera:=/dev/video0', 'image_topic:=/cam/image', 'camera_frame:=optical')
    _, camera = launched(*arguments)
    assert (camera['package'], camera['executable']) == ('cotracker_ros', 'camera_node')
    assert camera['parameters'] == [{'source': '/dev/video0', 'frame_id': 'optical'}]
    assert camera['remappings'] == [('image', '/cam/image')]
    for wrong in ('image_transport:=compressed', 'cameras:=[a]'):
        with pytest.raises(RuntimeError, match=r'usb_cam|start these yourself'):
            launched('camera:=/dev/video0', wrong)
    program = tmp_path / 'lib/usb_cam/usb_cam_node_exe'
    marker = tmp_path / 'share/ament_index/resource_index/packages/usb_cam'
    for file in (program, marker):
        file.parent.mkdir(parents=True)
        file.touch()
    program.chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    _, camera = launched(*arguments)
    assert camera['package'] == 'usb_cam'
    assert camera['parameters'] == [{'video_device': '/dev/video0', 'frame_id': 'optical'}]
    assert ('image_raw', '/cam/image') in camera['remappings']
    clip = tmp_path / 'clip.mp4'
    clip.touch()
    _, camera = launched(f'camera:={clip}')  # a file is not for usb_cam
    assert camera['parameters'] == [{'source': str(clip), 'frame_id': 'camera'}]


def test_viewers_show_the_topics_of_this_launch(stand_ins, monkeypatch, tmp_path):
    program = tmp_path / 'lib/rviz2/rviz2'
    marker = tmp_path / 'share/ament_index/resource_index/packages/rviz2'
    for file in (program, marker):
        file.parent.mkdir(parents=True)
        file.touch()
    program.chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    layout = tmp_path / 'layout.json'
    arguments = ('namespace:=front', 'image_topic:=/cam/image_raw', f'foxglove_layout:={layout}')
    _, rviz = launched('rviz:=true', 'camera_frame:=optical', *arguments)
    remapped = dict(rviz['remappings'])
    assert remapped['/tracks'] == 'tracks' and rviz['namespace'] == 'front'
    assert remapped['/tracker/overlay'] == 'tracker/overlay'
    config = Path(rviz['arguments'][1]).read_text()
    assert rviz['arguments'][2:] == ['-f', 'optical']
    assert {'/tracks', '/tracker/overlay'} <= {*remapped} and 'Value: /tracker/overlay' in config
    panels = json.loads(layout.read_text())['configById']
    assert panels['Image!tracks']['imageMode'] == {
        'imageTopic': '/cam/image_raw',
        'calibrationTopic': '/front/camera_info',
        'annotations': {'/front/tracker/markers': {'visible': True}},
    }
    assert panels['Image!overlay']['imageMode']['imageTopic'] == '/front/tracker/overlay'
    assert panels['RawMessages!tracks']['topicPath'] == '/front/tracks'
    launched('image_transport:=compressed', 'cameras:=[left]', f'foxglove_layout:={layout}')
    panels = json.loads(layout.read_text())['configById']
    assert panels['Image!tracks']['imageMode']['imageTopic'] == '/left/image/compressed'
    assert panels['Image!overlay']['imageMode']['imageTopic'] == '/tracker/left/overlay'


# Mistakes that launch refuses: the stand-ins must, too.
MISTAKES = """
ParameterValue('1', value_type=int)
ParameterValue('false', value_type=bool)
ParameterValue(1, value_type=float)
node(parameters={'a': 1})
node(parameters=[{'a': None}])
node(parameters=[{'a': []}])
node(parameters=[{'a': [1, 'b']}])
node(parameters=[{'a': [True, 2]}])
node(parameters=[{'a': object()}])
node(parameters=[5])
node(remappings=[('a',)])
node(remappings=['ab'])
node(remappings=[('a', 5)])
node(namespace=5)
node(arguments=[5])
node(nonsense=5)
ParameterFile(5)
LaunchConfiguration(5)
LaunchConfiguration('missing').perform(LaunchContext())
DeclareLaunchArgument('a', default_value=5)
DeclareLaunchArgument('a', default_value='b', choices=['c'])
DeclareLaunchArgument('a', choices=[])
DeclareLaunchArgument('a').execute(LaunchContext())
SetEnvironmentVariable('A', 5)
OpaqueFunction(function='text')
ExecutableInPackage(package='nothing', executable='x').perform(LaunchContext())
""".strip().splitlines()


def real_classes() -> dict:
    return {
        kind.__name__: getattr(importlib.import_module(name), kind.__name__)
        for name, classes in stand_in_launch.MODULES.items()
        for kind in classes
    }


@pytest.mark.parametrize('mistake', MISTAKES)
@pytest.mark.parametrize('kind', ['stand-in', 'real'])
def test_stand_ins_refuse_what_launch_refuses(kind, mistake):
    if kind == 'real' and not REAL:
        pytest.skip('launch is not installed: needs a ROS distribution')
    stand_in = {c.__name__: c for classes in stand_in_launch.MODULES.values() for c in classes}
    names = real_classes() if kind == 'real' else stand_in

    def node(**options):
        made = names['Node'](package='demo', executable='x', **options)
        if kind == 'real':  # which evaluates later what the stand-in checks at once
            utilities = importlib.import_module('launch_ros.utilities')
            rules = utilities.normalize_parameters(options.get('parameters', []))
            utilities.evaluate_parameters(names['LaunchContext'](), rules)
            importlib.import_module('launch.utilities').normalize_to_list_of_substitutions(
                options.get('namespace', '')
            )
        return made

    with pytest.raises(Exception):  # noqa: B017 - each class has its own
        eval(mistake, {**names, 'node': node})


def test_real_launch_takes_the_file():
    launch = pytest.importorskip('launch', reason='needs a ROS distribution')
    sources = pytest.importorskip('launch.launch_description_sources')
    description = sources.PythonLaunchDescriptionSource(str(FILE))
    assert description.get_launch_description(launch.LaunchContext())


LAUNCHED = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
namespace = sys.argv[-1].removeprefix('__ns:=')
arguments = {
    'namespace': namespace,
    'image_topic': 'picture',
    'initial_grid': '3',
    'query_points': '[10, 20]',
    'autostart': 'true',
    'use_sim_time': 'false',
    'age_budget': '1',
    'engine': 'onnxruntime',
}
source = PythonLaunchDescriptionSource(FILE)
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments.items())])
)
sys.exit(service.run())
"""


def test_real_launch_starts_the_node(start_tracker, tmp_path, monkeypatch):
    """From a package folder as colcon lays it out."""
    pytest.importorskip('launch_ros', reason='needs a ROS distribution')
    from sensor_msgs.msg import Image

    marker = tmp_path / 'share/ament_index/resource_index/packages/cotracker_ros'
    script = tmp_path / 'lib/cotracker_ros/tracker_node'
    for file in (marker, script):
        file.parent.mkdir(parents=True)
        file.write_text(f'#!/bin/sh\nexec {sys.executable} -m cotracker_ros "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path), prepend=':')
    tracker = start_tracker(('-c', f'FILE = {str(FILE)!r}{LAUNCHED}'), ready=False)
    publisher = tracker.publisher(Image, 'picture')

    def answered():
        publisher.publish(tracker.image())
        return any(msg.width == 10 for msg in tracker.tracks)

    tracker.until(answered)
