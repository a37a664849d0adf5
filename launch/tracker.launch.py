"""Start tracker_node on the topics of a camera and a segmentation.

ros2 launch foundationpose_trt tracker.launch.py mesh_file_path:=/path/to/object.obj
    image_topic:=/camera/color/image_raw depth_topic:=/camera/aligned_depth_to_color/image_raw
"""

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
    """Declare the arguments; the node is made once their values are known."""
    default_file = PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'tracker.yaml'])
    arguments = [
        DeclareLaunchArgument(
            'params_file', default_value=default_file, description='parameters of tracker_node'
        ),
        DeclareLaunchArgument('namespace', default_value='', description='namespace of the node'),
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
    """Make the node; only arguments that were given override params_file."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in OVERRIDES}
    overrides = {
        name: kind(given[name]) for name, kind, _ in OVERRIDES if given[name] != NOT_GIVEN
    }
    use_sim_time = LaunchConfiguration('use_sim_time').perform(context)
    if use_sim_time != NOT_GIVEN:
        overrides['use_sim_time'] = use_sim_time == 'true'
    node = Node(
        package=PACKAGE,
        executable='tracker_node',
        name='tracker_node',
        namespace=LaunchConfiguration('namespace'),
        # an empty dictionary would become a parameter file that rcl does not read
        parameters=[LaunchConfiguration('params_file'), *([overrides] if overrides else [])],
        remappings=[(topic, LaunchConfiguration(f'{topic}_topic')) for topic in TOPICS],
        output='screen',
    )
    return [node]
