"""`ros2 launch cotracker_ros tracker.launch.py image_topic:=/camera/image_raw`."""

import json
import re
import sys
from pathlib import Path

import yaml
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile
from launch_ros.substitutions import ExecutableInPackage

from cotracker_ros.ros.parameters import TABLE, Parameter, did_you_mean
from cotracker_ros.ros.resources import resource_file

NAME = 'tracker'
# ROS refuses other names only in the node, in terms of its parser.
TOPIC = re.compile(r'(~/|/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*', re.ASCII)
# Every parameter is an argument; an empty one leaves the value to the parameter file.
PARAMETERS = {p.name: p for p in (*TABLE, Parameter('use_sim_time', False, 'Time from /clock'))}
# name: (default, description, choices)
OTHERS = {
    'namespace': ('', 'Namespace of the node and its topics', None),
    'image_topic': ('image', 'The camera image; with cameras, below the name of each', None),
    'camera_info_topic': ('camera_info', 'Calibration of the camera, for ~/tracks_3d', None),
    'depth_topic': ('', 'Depth image aligned with the image: ~/tracks_3d is then metric', None),
    'params_file': (str(resource_file('config/tracker.yaml')), 'YAML file of parameters', None),
    'log_level': ('info', 'Least severity logged', ['debug', 'info', 'warn', 'error', 'fatal']),
    'rviz': ('false', 'Open RViz with the tracks and ~/overlay', ['true', 'false']),
    'camera': (
        '',
        'Starts a camera too: a device such as /dev/video0, a video file or a folder of pictures',
        None,
    ),
    'people': (
        'false',
        'Follow the people that a pose detector finds (docs/tutorials/people.md)',
        ['true', 'false'],
    ),
    'poses_topic': (
        'poses',
        'Keypoints that the pose detector finds; with cameras, below the name of each',
        None,
    ),
    'live': ('false', 'Serve a live view for browsers (needs aiohttp)', ['true', 'false']),
    'live_address': (
        '127.0.0.1',
        'Address of the live view; on any other than this one browsers need a token',
        None,
    ),
    'live_port': (
        '8080',
        'Port of the live view; with several cameras that of the first, the others follow; '
        '0: any that is free',
        None,
    ),
    'camera_frame': ('camera', 'frame_id of the images, which RViz needs', None),
    'foxglove_layout': ('', 'File to write: a layout for Foxglove with these topics', None),
}


def check_names(context) -> None:
    """Refuse arguments of the command line that this file does not have.

    Only if it was named there: a file that includes this one may have arguments of its own.
    """
    if not any(Path(word).name == Path(__file__).name for word in sys.argv):
        return
    names = [word.partition(':=')[0] for word in context.argv if ':=' in word]
    for name in names:
        if name not in PARAMETERS and name not in OTHERS:
            hint = did_you_mean(name, (*PARAMETERS, *OTHERS)) or '; --show-args lists all'
            raise RuntimeError(f'there is no argument {name!r}{hint}')


def file_parameters(path: str) -> dict:
    """Return the node's parameters in a parameter file; raises RuntimeError if it has none."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RuntimeError(f'params_file: {error}') from None
    found, nodes = {}, []

    def search(tree, names: str) -> None:
        for key, value in tree.items() if isinstance(tree, dict) else ():
            if key == 'ros__parameters':
                nodes.append(names or '/')
                if names.rpartition('/')[2] in ('*', '**', NAME) and isinstance(value, dict):
                    found.update(value)
            else:
                search(value, f'{names}/{key}'.replace('//', '/'))

    search(content, '')
    if not found:
        of = ', '.join(nodes) or 'no node (ros__parameters is missing)'
        raise RuntimeError(
            f'params_file: {path} has parameters of {of}, none of {NAME}; a file begins with '
            '"/**:" or "tracker:", then "ros__parameters:", as config/tracker.yaml does'
        )
    return found


def given_parameters(arguments: dict[str, str], from_file: dict) -> dict:
    """Return the values of the arguments that are parameters, checked, in their types.

    Typed here, and not by ParameterValue(LaunchConfiguration(...), value_type=...): to that,
    [10, 20] is no list of floats.
    """
    given = {}
    for name, parameter in PARAMETERS.items():
        if not arguments[name]:
            continue
        try:
            value = parameter.parse(arguments[name])
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        if value != []:
            given[name] = value
        elif from_file.get(name):  # ROS has no way to say an empty list
            raise RuntimeError(f'{name} cannot be emptied: take it out of params_file')
    if arguments['depth_topic']:
        given['depth'] = True
    return given


def camera_topics(
    arguments: dict[str, str], camera: str, names=('image', 'camera_info', 'depth')
) -> dict[str, str]:
    """Return where the topics of a camera ('' if it is the only one) really are.

    Those of one camera of several lie below its name. Raises RuntimeError for what is no name of a
    topic, and then for absolute names, which all cameras would share.
    """
    topics = {}
    for name in names:
        topic = arguments[f'{name}_topic'] or name
        if not TOPIC.fullmatch(topic):
            raise RuntimeError(
                f'{name}_topic must be a topic such as /camera/{name}, not {topic!r}'
            )
        if camera and topic.startswith(('/', '~')):
            raise RuntimeError(
                f'{name}_topic must be relative where there are several cameras, as it is below '
                f'the name of each ({camera}/{name}), not {topic!r}'
            )
        topics[f'{camera}/{name}' if camera else name] = f'{camera}/{topic}' if camera else topic
    return topics


def viewer_topics(arguments: dict[str, str], camera: str) -> dict[str, str]:
    """Return the names of topics in the files of the viewers, and what each is here."""
    image, camera_info, _ = camera_topics(arguments, camera).values()
    prefix = f'{camera}/' if camera else ''
    return {
        '/image': image,
        '/camera_info': camera_info,
        '/tracks': f'{prefix}tracks',
        f'/{NAME}/overlay': f'{NAME}/{prefix}overlay',
        f'/{NAME}/markers': f'{NAME}/{prefix}markers',
    }


def tracker(context) -> list:
    """Return the node and its viewers, or raise RuntimeError before any of them starts."""
    check_names(context)
    arguments = {n: LaunchConfiguration(n).perform(context) for n in (*PARAMETERS, *OTHERS)}
    used = file_parameters(arguments['params_file'])
    given = given_parameters(arguments, used)
    used.update(given)
    cameras = used.get('cameras') or ['']
    remappings = [pair for c in cameras for pair in camera_topics(arguments, c).items()]
    viewed = viewer_topics(arguments, cameras[0])
    if arguments['foxglove_layout']:
        if used.get('image_transport') == 'compressed':
            viewed['/image'] += '/compressed'
        outer = context.launch_configurations.get('ros_namespace', '')
        write_layout(Path(arguments['foxglove_layout']), viewed, [outer, arguments['namespace']])
    return [
        Node(
            package='cotracker_ros',
            executable='tracker_node',
            name=NAME,
            namespace=arguments['namespace'],
            parameters=[ParameterFile(arguments['params_file']), given],
            remappings=remappings,
            arguments=['--ros-args', '--log-level', arguments['log_level']],
            output='screen',
        ),
        *([camera(context, arguments, used)] if arguments['camera'] else []),
        *(followers(arguments, used) if arguments['people'] == 'true' else []),
        *(live_views(arguments, used) if arguments['live'] == 'true' else []),
        *([rviz(context, arguments, viewed)] if arguments['rviz'] == 'true' else []),
    ]


def camera(context, arguments: dict[str, str], used: dict) -> Node:
    """Return a camera that publishes the device: usb_cam where it is installed, else our own."""
    if used.get('cameras'):
        raise RuntimeError(
            'camera starts one camera, and cameras names others: start these yourself'
        )
    source, topic = arguments['camera'], arguments['image_topic']
    if not source.startswith('/dev/') and not Path(source).exists():  # devices come and go
        raise RuntimeError(f'camera: {source}: no such file, folder or device')
    common = {'namespace': arguments['namespace'], 'output': 'screen'}
    if source.startswith('/dev/') and is_installed(context, 'usb_cam', 'usb_cam_node_exe'):
        return Node(
            package='usb_cam',
            executable='usb_cam_node_exe',
            name='camera',
            parameters=[{'video_device': source, 'frame_id': arguments['camera_frame']}],
            remappings=[
                ('image_raw', topic),
                ('image_raw/compressed', f'{topic}/compressed'),
                ('camera_info', arguments['camera_info_topic']),
            ],
            **common,
        )
    if used.get('image_transport') == 'compressed':
        raise RuntimeError('camera with image_transport:=compressed needs the package usb_cam')
    return Node(
        package='cotracker_ros',
        executable='camera_node',
        name='camera',
        parameters=[{'source': source, 'frame_id': arguments['camera_frame']}],
        remappings=[('image', topic)],
        **common,
    )


def followers(arguments: dict[str, str], used: dict) -> list[Node]:
    """Return a node for each camera that follows the people whom a detector finds there."""
    return [
        Node(
            package='cotracker_ros',
            executable='people_node',
            name=f'people_{name}' if name else 'people',
            namespace=arguments['namespace'],
            parameters=[{'tracker': NAME, **({'camera': name} if name else {})}],
            remappings=[(poses, topic)],
            output='screen',
        )
        for name in used.get('cameras') or ['']
        for poses, topic in [camera_topics(arguments, name, ('poses',)).popitem()]
    ]


def live_views(arguments: dict[str, str], used: dict) -> list[Node]:
    """Return a live view for each camera, on ports that follow each other."""
    cameras = used.get('cameras') or ['']
    text = arguments['live_port']
    port, last = int(text) if text.isdecimal() else -1, 65536 - len(cameras)
    if not 0 <= port <= last:
        raise RuntimeError(f'live_port must be 0 to {last}, not {text!r}')
    nodes = []
    for number, name in enumerate(cameras):
        options = ['--address', arguments['live_address']]
        options += ['--port', str(port + number if port else 0), '--tracker', NAME]
        options += ['--camera', name] if name else []
        options += ['--compressed'] if used.get('image_transport') == 'compressed' else []
        nodes.append(
            Node(
                package='cotracker_ros',
                executable='cotracker-live',
                name=f'live_{name}' if name else 'live',
                namespace=arguments['namespace'],
                remappings=list(camera_topics(arguments, name).items())[:1],
                arguments=options,
                output='screen',
            )
        )
    return nodes


def is_installed(context, package: str, executable: str) -> bool:
    """Whether a program of a package is there."""
    try:
        ExecutableInPackage(package=package, executable=executable).perform(context)
    except Exception:  # of three kinds, from launch_ros and ament_index
        return False
    return True


def rviz(context, arguments: dict[str, str], topics: dict[str, str]) -> Node:
    """Return RViz; raises RuntimeError where it is not installed."""
    if not is_installed(context, 'rviz2', 'rviz2'):
        raise RuntimeError('rviz:=true needs the package rviz2')
    return Node(
        package='rviz2',
        executable='rviz2',
        namespace=arguments['namespace'],
        remappings=list(topics.items()),
        arguments=[
            '-d',
            str(resource_file('config/tracker.rviz')),
            '-f',
            arguments['camera_frame'],
        ],
    )


def write_layout(path: Path, topics: dict[str, str], namespaces: list[str]) -> None:
    """Write the Foxglove layout with these topics, whose names are relative to the namespaces."""

    def absolute(name: str) -> str:
        for namespace in reversed(namespaces):
            name = name if name.startswith('/') else f'{namespace.rstrip("/")}/{name}'
        return '/' + name.lstrip('/')

    def renamed(value):
        if isinstance(value, dict):
            return {renamed(key): renamed(item) for key, item in value.items()}
        return absolute(topics[value]) if isinstance(value, str) and value in topics else value

    layout = json.loads(resource_file('config/foxglove_layout.json').read_text(encoding='utf-8'))
    try:
        path.write_text(json.dumps(renamed(layout), indent=2) + '\n', encoding='utf-8')
    except OSError as error:
        raise RuntimeError(f'foxglove_layout: {error}') from None


def describe(parameter: Parameter) -> str:
    """Return what an argument means, what is allowed and the node's default."""
    default = list(parameter.default) if isinstance(parameter.default, tuple) else (
        str(parameter.default).lower()
    )  # fmt: skip
    allowed = '' if parameter.choices else parameter.range_text()
    unit = f'in {parameter.unit}' if parameter.unit else ''
    return '; '.join(filter(None, [parameter.text, unit, allowed, f'default {default}']))


def generate_launch_description() -> LaunchDescription:
    """Describe the node, its arguments and the viewers."""
    arguments = [
        DeclareLaunchArgument(
            name,
            default_value='',
            description=describe(p),
            choices=['', *p.choices] if p.choices else None,
        )
        for name, p in PARAMETERS.items()
    ] + [
        DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
        for name, (default, text, choices) in OTHERS.items()
    ]
    return LaunchDescription(
        [
            SetEnvironmentVariable('RCUTILS_LOGGING_BUFFERED_STREAM', '1'),
            *arguments,
            OpaqueFunction(function=tracker),
        ]
    )
