"""Play a BOP scene and track one of its objects; ends when the scene ends.

ros2 launch foundationpose_trt demo.launch.py scene:=/path/to/scene
    mesh_file_path:=/path/to/scene/models/obj_000001.ply
"""

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

PACKAGE = 'foundationpose_trt'
# launch argument, default, type of the player's parameter (None: not the player's), description
ARGUMENTS = (
    ('scene', None, str, 'folder of one BOP scene'),
    ('object_id', '0', int, 'object to track; 0: the first one of the scene'),
    ('rate_hz', '10.0', float, 'images per second'),
    ('loop', 'false', bool, 'start over at the end'),
    ('wait_for_state', 'TRACKING', str, 'repeat the first image until the tracker says this'),
    ('wait_timeout_s', '480.0', float, 'how long: imports, warm-up, perhaps an engine are built'),
    ('mesh_file_path', None, None, 'mesh of the object'),
    ('mesh_scale', '0.001', None, 'factor from file units to metres; BOP models are in mm'),
    ('weights', 'auto', None, 'weight set: small, base, auto or a folder'),
    ('device', 'auto', None, 'auto, cpu or cuda'),
    ('namespace', '', None, 'namespace of both nodes'),
)


def generate_launch_description() -> LaunchDescription:
    """Start the player and, through tracker.launch.py, the tracker."""
    share = FindPackageShare(PACKAGE)
    forwarded = [name for name, _, kind, _ in ARGUMENTS if kind is None]
    tracker_launch = PathJoinSubstitution([share, 'launch', 'tracker.launch.py'])
    tracker = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(tracker_launch),
        launch_arguments=[(name, LaunchConfiguration(name)) for name in forwarded],
    )
    own = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, _, kind, _ in ARGUMENTS
        if kind is not None
    }
    player = Node(
        package=PACKAGE,
        executable='player_node',
        name='player_node',
        namespace=LaunchConfiguration('namespace'),
        parameters=[PathJoinSubstitution([share, 'config', 'player.yaml']), own],
        output='screen',
        on_exit=Shutdown(),
    )
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, _, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, tracker, player])
