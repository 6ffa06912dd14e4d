"""`ros2 launch cotracker_ros tracker.launch.py image_topic:=/camera/image_raw`."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

SHARE = Path(get_package_share_directory('cotracker_ros'))

# Arguments that go to the node as parameters; empty leaves the value to the parameter file.
PARAMETERS = {
    'model': (str, 'Name of a shipped model, or path of an .onnx or .engine file'),
    'engine': (str, 'Runtime of the model'),
    'image_transport': (str, 'raw or compressed'),
    'initial_grid': (int, 'Points per side of the initial grid'),
    'max_points': (int, 'Slots for points'),
    'autostart': (bool, 'Configure and activate at start'),
    'use_sim_time': (bool, 'Take the time from /clock'),
}
OTHERS = {
    'namespace': ('', 'Namespace of the node and its topics'),
    'image_topic': ('image', 'The camera image'),
    'params_file': (str(SHARE / 'config' / 'tracker.yaml'), 'YAML file of parameters'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
    'rviz': ('false', 'Open RViz with the tracks'),
}


def tracker(context):
    """Return the node, with those parameters that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in PARAMETERS}
    explicit = {
        name: ParameterValue(value, value_type=PARAMETERS[name][0])
        for name, value in given.items()
        if value
    }
    return [
        Node(
            package='cotracker_ros',
            executable='tracker_node',
            name='tracker',
            namespace=LaunchConfiguration('namespace'),
            parameters=[ParameterFile(LaunchConfiguration('params_file')), explicit],
            remappings=[('image', LaunchConfiguration('image_topic'))],
            arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
            output='screen',
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Describe the node, its arguments and the viewer."""
    arguments = [
        DeclareLaunchArgument(name, default_value='', description=text)
        for name, (_, text) in PARAMETERS.items()
    ] + [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in OTHERS.items()
    ]
    viewer = Node(
        package='rviz2',
        executable='rviz2',
        arguments=['-d', str(SHARE / 'config' / 'tracker.rviz')],
        condition=IfCondition(LaunchConfiguration('rviz')),
    )
    return LaunchDescription(
        [
            SetEnvironmentVariable('RCUTILS_LOGGING_BUFFERED_STREAM', '1'),
            *arguments,
            OpaqueFunction(function=tracker),
            viewer,
        ]
    )
