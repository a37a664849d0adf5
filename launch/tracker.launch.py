"""Start tracker_node on the topics of a camera and a segmentation.

ros2 launch foundationpose_trt tracker.launch.py mesh_file_path:=/path/to/object.obj
    image_topic:=/camera/color/image_raw depth_topic:=/camera/aligned_depth_to_color/image_raw

With namespaces:=left,right there is one for each of several cameras, in one process that shares
the CUDA context. Topics without a leading slash are then in the namespace of each camera. What
differs from camera to camera stands in params_file, under the nodes' names: /left/tracker_node.
"""

import os

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from foundationpose_trt.ros.dds import node_environment
from foundationpose_trt.ros.launch_arguments import NOT_GIVEN, override_files
from launch import LaunchContext, LaunchDescription

PACKAGE = 'foundationpose_trt'
TOPICS = {
    'image': 'colour image',
    'depth': 'depth image, registered to the colour image',
    'camera_info': 'calibration of the colour camera',
    'segmentation': 'mask of the object, with the stamp of its image',
}
# launch argument, type, description; what is not given is left to params_file
OVERRIDES = (
    ('mesh_file_path', str, 'mesh of the object: obj, ply, glb or stl'),
    ('mesh_scale', float, 'factor from file units to metres: 0.001 for a mesh in mm'),
    ('weights', str, 'weight set: small, base, auto or a folder'),
    ('device', str, 'auto, cpu or cuda'),
)


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; the node is made once their values are known."""
    default_file = PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'tracker.yaml'])
    arguments = [
        DeclareLaunchArgument(
            'params_file', default_value=default_file, description='parameters of tracker_node'
        ),
        DeclareLaunchArgument('namespace', default_value='', description='namespace of the node'),
        DeclareLaunchArgument(
            'namespaces', default_value=NOT_GIVEN,
            description='of several cameras, separated by commas, in the place of namespace',
        ),
        DeclareLaunchArgument(
            'use_sim_time', default_value=NOT_GIVEN, choices=['true', 'false', NOT_GIVEN],
            description='take the time from /clock; empty: as the parameter file',
        ),
    ]  # fmt: skip
    for name, _, description in OVERRIDES:
        arguments.append(
            DeclareLaunchArgument(
                name, default_value=NOT_GIVEN, description=f'{description}; empty: as params_file'
            )
        )
    for topic, description in TOPICS.items():
        arguments.append(
            DeclareLaunchArgument(f'{topic}_topic', default_value=topic, description=description)
        )
    # for this node and every publisher started from a launch file that includes this one
    variables = [
        SetEnvironmentVariable(name, value) for name, value in node_environment(os.environ).items()
    ]
    return LaunchDescription([*arguments, *variables, OpaqueFunction(function=make_node)])


def make_node(context: LaunchContext) -> list[Action]:
    """Make the node or nodes; only arguments that were given override params_file."""
    kinds = {name: kind for name, kind, _ in OVERRIDES}
    given = override_files(
        'tracker_node', kinds, lambda name: LaunchConfiguration(name).perform(context)
    )
    files = [LaunchConfiguration('params_file'), *given]
    cameras = LaunchConfiguration('namespaces').perform(context)
    if cameras != NOT_GIVEN:
        return [one_process(context, namespaces(cameras), files)]
    node = Node(
        package=PACKAGE,
        executable='tracker_node',
        name='tracker_node',
        namespace=LaunchConfiguration('namespace'),
        parameters=files,
        remappings=[(topic, LaunchConfiguration(f'{topic}_topic')) for topic in TOPICS],
        output='screen',
    )
    return [node]


def one_process(context: LaunchContext, cameras: list[str], files: list) -> Node:
    """Make the process of several nodes, one in each namespace."""
    shared = [word for file in files for word in ('--params-file', file)]
    for topic in TOPICS:
        target = LaunchConfiguration(f'{topic}_topic').perform(context)
        shared += ['-r', f'{topic}:={target}']
    arguments = []
    for namespace in cameras:
        arguments += ['--tracker', '-r', f'__ns:={namespace}', *shared]
    # without a name: it would go to all nodes
    return Node(package=PACKAGE, executable='pipeline_node', arguments=arguments, output='screen')


def namespaces(text: str) -> list[str]:
    """Read absolute namespaces; raises ValueError where two cameras would be one."""
    found = ['/' + name.strip().strip('/') for name in text.split(',')]
    if len(set(found)) < len(found) or '/' in found:
        raise ValueError(
            f'launch argument namespaces:={text}: each camera needs a name of its own,'
            " as in 'left,right'"
        )
    return found
