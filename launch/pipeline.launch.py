"""Start detector_node and tracker_node on the topics of a camera, in one process or in two.

ros2 launch foundationpose_trt pipeline.launch.py model:=/path/to/detector objects:=mug
    mesh_file_path:=/path/to/mug.obj image_topic:=/camera/color/image_raw
    depth_topic:=/camera/aligned_depth_to_color/image_raw
    camera_info_topic:=/camera/color/camera_info
"""

import os

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from foundationpose_trt.ros.dds import node_environment
from foundationpose_trt.ros.launch_arguments import NOT_GIVEN, override_files, switch
from launch import LaunchContext, LaunchDescription

PACKAGE = 'foundationpose_trt'
DETECTOR, TRACKER = 'detector', 'tracker'
TOPICS = {
    'image': 'colour image',
    'depth': 'depth image, registered to the colour image',
    'camera_info': 'calibration of the colour camera',
    'segmentation': 'label image, from the detector to the tracker',
}


def names(text: str) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in text.split(',')]


# launch argument, type, nodes, description; what is not given is left to the parameter files
OVERRIDES = (
    ('model', str, (DETECTOR,), 'folder of a detector'),
    ('objects', names, (DETECTOR,), 'classes to detect, separated by commas'),
    ('confidence_threshold', float, (DETECTOR,), 'scores must be above this'),
    ('max_rate_hz', float, (DETECTOR,), 'detect at most so many images per second'),
    ('publish_debug', switch, (DETECTOR, TRACKER), 'draw on debug/image and debug/pose'),
    ('mesh_file_path', str, (TRACKER,), 'mesh of the object: obj, ply, glb or stl'),
    ('mesh_scale', float, (TRACKER,), 'factor from file units to metres: 0.001 for a mesh in mm'),
    ('mask_label', int, (TRACKER,), 'place of the object among objects, from 1; 0: any'),
    ('weights', str, (TRACKER,), 'weight set: small, base, auto or a folder'),
    ('device', str, (DETECTOR, TRACKER), 'auto, cpu or cuda'),
    ('build_engines', switch, (DETECTOR, TRACKER), 'build TensorRT engines that are missing'),
    ('cuda_graph_cache_capacity', int, (DETECTOR, TRACKER), 'CUDA graphs kept per network'),
)


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; the nodes are made once their values are known."""
    arguments = [
        DeclareLaunchArgument(
            'one_process', default_value='true', choices=['true', 'false'],
            description='both nodes in one process, which shares the CUDA context',
        ),
        DeclareLaunchArgument('namespace', default_value='', description='namespace of the nodes'),
        DeclareLaunchArgument(
            'use_sim_time', default_value=NOT_GIVEN, choices=['true', 'false', NOT_GIVEN],
            description='take the time from /clock; empty: as the parameter file',
        ),
    ]  # fmt: skip
    for node in (DETECTOR, TRACKER):
        default_file = PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', f'{node}.yaml'])
        arguments.append(
            DeclareLaunchArgument(
                f'{node}_params_file', default_value=default_file,
                description=f'parameters of {node}_node',
            )
        )  # fmt: skip
    for name, _, _, description in OVERRIDES:
        arguments.append(
            DeclareLaunchArgument(
                name, default_value=NOT_GIVEN, description=f'{description}; empty: as the file'
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
    return LaunchDescription([*arguments, *variables, OpaqueFunction(function=make_nodes)])


def make_nodes(context: LaunchContext) -> list[Action]:
    """Make one process or two; only arguments that were given override the parameter files."""
    files = {}
    for part in (DETECTOR, TRACKER):
        kinds = {name: kind for name, kind, parts, _ in OVERRIDES if part in parts}
        given = override_files(
            f'{part}_node', kinds, lambda name: LaunchConfiguration(name).perform(context)
        )
        files[part] = [LaunchConfiguration(f'{part}_params_file'), *given]
    shared = {
        'package': PACKAGE,
        'namespace': LaunchConfiguration('namespace'),
        'remappings': [(topic, LaunchConfiguration(f'{topic}_topic')) for topic in TOPICS],
        'output': 'screen',
    }
    if LaunchConfiguration('one_process').perform(context) != 'true':
        return [
            Node(
                executable=f'{part}_node',
                name=f'{part}_node',
                parameters=own,
                **shared,
            )
            for part, own in files.items()
        ]
    arguments = []
    for part, own in files.items():
        arguments.append(f'--{part}')
        for file in own:
            arguments += ['--params-file', file]
    # without a name: it would go to both nodes
    return [Node(executable='pipeline_node', arguments=arguments, **shared)]
