"""`ros2 launch cotracker_ros tracker.launch.py image_topic:=/camera/image_raw`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

from cotracker_ros.ros.parameters import BY_NAME
from cotracker_ros.ros.share import share_file

# Arguments that go to the node as parameters; empty leaves the value to the parameter file.
NAMES = (
    'model', 'engine', 'threads', 'max_points', 'image_transport', 'initial_grid', 'autostart',
)  # fmt: skip
PARAMETERS = {
    **{name: (type(BY_NAME[name].default), BY_NAME[name].text) for name in NAMES},
    'use_sim_time': (bool, 'Take the time from /clock'),
}
OTHERS = {
    'namespace': ('', 'Namespace of the node and its topics'),
    'image_topic': ('image', 'The camera image'),
    'camera_info_topic': ('camera_info', 'Calibration of the camera, for ~/tracks_3d'),
    'depth_topic': ('', 'Depth image aligned with the image: ~/tracks_3d is then in metres'),
    'params_file': (str(share_file('config/tracker.yaml')), 'YAML file of parameters'),
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
    depth_topic = LaunchConfiguration('depth_topic').perform(context)
    if depth_topic:
        explicit['depth'] = True
    return [
        Node(
            package='cotracker_ros',
            executable='tracker_node',
            name='tracker',
            namespace=LaunchConfiguration('namespace'),
            parameters=[ParameterFile(LaunchConfiguration('params_file')), explicit],
            remappings=[
                ('image', LaunchConfiguration('image_topic')),
                ('camera_info', LaunchConfiguration('camera_info_topic')),
                ('depth', depth_topic or 'depth'),
            ],
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
        arguments=['-d', str(share_file('config/tracker.rviz'))],
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
