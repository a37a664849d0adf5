"""Start a tracker_node for each of several cameras, in one process that shares the CUDA context.

ros2 launch foundationpose_trt trackers.launch.py namespaces:=left,right
    mesh_file_path:=/path/to/mug.obj image_topic:=color/image_raw
    depth_topic:=aligned_depth_to_color/image_raw camera_info_topic:=color/camera_info

Topics without a leading slash are in the namespace of each camera. What differs from camera to
camera stands in params_file, under the nodes' names: /left/tracker_node, /right/tracker_node.
"""

import json
import os

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from foundationpose_trt.ros.dds import node_environment
from launch import LaunchContext, LaunchDescription

PACKAGE = 'foundationpose_trt'
NOT_GIVEN = ''
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
    """Declare the arguments; the process is made once their values are known."""
    default_file = PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'tracker.yaml'])
    arguments = [
        DeclareLaunchArgument(
            'namespaces', description='of the cameras, separated by commas: left,right'
        ),
        DeclareLaunchArgument(
            'params_file', default_value=default_file, description='parameters of the nodes'
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
    # for these nodes and every publisher started from a launch file that includes this one
    variables = [
        SetEnvironmentVariable(name, value) for name, value in node_environment(os.environ).items()
    ]
    return LaunchDescription([*arguments, *variables, OpaqueFunction(function=make_node)])


def make_node(context: LaunchContext) -> list[Action]:
    """Make the process with one node per camera."""
    shared = ['--params-file', LaunchConfiguration('params_file')]
    for name, kind, _ in OVERRIDES:
        given = LaunchConfiguration(name).perform(context)
        if given != NOT_GIVEN:
            shared += ['-p', f'{name}:={json.dumps(kind(given))}']
    for topic in TOPICS:
        target = LaunchConfiguration(f'{topic}_topic').perform(context)
        shared += ['-r', f'{topic}:={target}']
    arguments = []
    for namespace in namespaces(LaunchConfiguration('namespaces').perform(context)):
        arguments += ['--tracker', '-r', f'__ns:={namespace}', *shared]
    use_sim_time = LaunchConfiguration('use_sim_time').perform(context)
    given = [{'use_sim_time': use_sim_time == 'true'}] if use_sim_time != NOT_GIVEN else []
    # without a name: it would go to all nodes
    node = Node(
        package=PACKAGE,
        executable='pipeline_node',
        arguments=arguments,
        parameters=given,
        output='screen',
    )
    return [node]


def namespaces(text: str) -> list[str]:
    """Read absolute namespaces; raises ValueError where two cameras would be one."""
    found = ['/' + name.strip().strip('/') for name in text.split(',')]
    if len(set(found)) < len(found) or '/' in found:
        raise ValueError(
            f'launch argument namespaces:={text}: each camera needs a name of its own,'
            " as in 'left,right'"
        )
    return found
