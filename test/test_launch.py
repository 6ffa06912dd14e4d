"""The launch file, with small stand-ins where `launch` is not installed."""

import sys
import types
from pathlib import Path

import pytest

from cotracker_ros.ros import parameters

FILE = Path(__file__).parents[1] / 'launch' / 'tracker.launch.py'


class Record:
    """Remembers how it was made; enough of every class of launch that the file uses."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs

    def perform(self, context):
        return context[self.args[0]]


@pytest.fixture
def launch_file(monkeypatch):
    """The launch file as a module."""
    modules = {
        'launch': ('LaunchDescription',),
        'launch.actions': ('DeclareLaunchArgument', 'OpaqueFunction', 'SetEnvironmentVariable'),
        'launch.conditions': ('IfCondition',),
        'launch.substitutions': ('LaunchConfiguration',),
        'launch_ros': (),
        'launch_ros.actions': ('Node',),
        'launch_ros.parameter_descriptions': ('ParameterFile', 'ParameterValue'),
    }
    for name, classes in modules.items():
        module = types.ModuleType(name)
        for kind in classes:
            setattr(module, kind, type(kind, (Record,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    module = types.ModuleType('tracker_launch')
    exec(compile(FILE.read_text(), FILE, 'exec'), module.__dict__)
    return module


def test_arguments_are_those_that_users_expect(launch_file):
    expected = (
        'namespace image_topic camera_info_topic depth_topic params_file model engine '
        'image_transport use_sim_time autostart log_level rviz'
    )
    assert {*launch_file.PARAMETERS, *launch_file.OTHERS} >= set(expected.split())
    for name, (kind, _) in launch_file.PARAMETERS.items():
        if name != 'use_sim_time':  # every node has it
            assert type(parameters.BY_NAME[name].default) is kind


def test_only_given_arguments_replace_the_file(launch_file):
    actions = launch_file.generate_launch_description().args[0]
    declared = {a.args[0]: a for a in actions if type(a).__name__ == 'DeclareLaunchArgument'}
    assert set(declared) == {*launch_file.PARAMETERS, *launch_file.OTHERS}
    assert all(a.kwargs['description'] for a in declared.values())
    defaults = {name: a.kwargs['default_value'] for name, a in declared.items()}
    assert Path(defaults['params_file']).is_file()
    viewer = actions[-1]
    assert Path(viewer.kwargs['arguments'][1]).is_file()
    (node,) = launch_file.tracker({**defaults, 'model': 'other.onnx', 'initial_grid': '3'})
    file, explicit = node.kwargs['parameters']
    assert type(file).__name__ == 'ParameterFile'
    assert {name: value.args[0] for name, value in explicit.items()} == {
        'model': 'other.onnx',
        'initial_grid': '3',
    }
    assert [name for name, _ in node.kwargs['remappings']] == ['image', 'camera_info', 'depth']
    assert (node.kwargs['package'], node.kwargs['executable']) == ('cotracker_ros', 'tracker_node')


def test_a_depth_topic_switches_depth_on(launch_file):
    values = dict.fromkeys(launch_file.PARAMETERS, '')
    (node,) = launch_file.tracker({**values, 'depth_topic': '/camera/depth'})
    assert node.kwargs['parameters'][1] == {'depth': True}
    assert node.kwargs['remappings'][2] == ('depth', '/camera/depth')
    (node,) = launch_file.tracker({**values, 'depth_topic': ''})
    assert node.kwargs['parameters'][1] == {}


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
arguments = {'namespace': namespace, 'image_topic': 'picture', 'initial_grid': '3'}
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
        return any(msg.width == 9 for msg in tracker.tracks)

    tracker.until(answered)
