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
        'ament_index_python': (),
        'ament_index_python.packages': (),
    }
    for name, classes in modules.items():
        module = types.ModuleType(name)
        for kind in classes:
            setattr(module, kind, type(kind, (Record,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    share = str(FILE.parents[1])
    sys.modules['ament_index_python.packages'].get_package_share_directory = lambda name: share
    module = types.ModuleType('tracker_launch')
    exec(compile(FILE.read_text(), FILE, 'exec'), module.__dict__)
    return module


def test_arguments_are_parameters_of_the_node(launch_file):
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
    assert node.kwargs['remappings'][0][0] == 'image'
    assert (node.kwargs['package'], node.kwargs['executable']) == ('cotracker_ros', 'tracker_node')


def test_real_launch_takes_the_file():
    launch = pytest.importorskip('launch', reason='needs a ROS distribution')
    sources = pytest.importorskip('launch.launch_description_sources')
    description = sources.PythonLaunchDescriptionSource(str(FILE))
    assert description.get_launch_description(launch.LaunchContext())
