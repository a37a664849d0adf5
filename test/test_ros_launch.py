"""The launch files against the package they start; launch itself is not on PyPI.

Stand-ins note what the files build, so names of executables, parameters, topics and files are
compared with the real ones. That launch accepts it is seen on a ROS installation only.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from foundationpose_trt.ros.dds import PROFILE_PATH, profile_variables
from foundationpose_trt.ros.player_parameters import PlayerParameters
from foundationpose_trt.ros.tracker_parameters import TrackerParameters

ROOT = Path(__file__).parents[1]
NAMES = {  # module: what exists there in every release from Humble to Lyrical
    'launch': ['LaunchContext', 'LaunchDescription'],
    'launch.action': ['Action'],
    'launch.actions': [
        'DeclareLaunchArgument', 'IncludeLaunchDescription', 'OpaqueFunction',
        'SetEnvironmentVariable', 'Shutdown',
    ],
    'launch.launch_description_sources': ['PythonLaunchDescriptionSource'],
    'launch.substitutions': ['LaunchConfiguration', 'PathJoinSubstitution'],
    'launch_ros': [],
    'launch_ros.actions': ['Node'],
    'launch_ros.parameter_descriptions': ['ParameterValue'],
    'launch_ros.substitutions': ['FindPackageShare'],
}  # fmt: skip


class Built:
    """Stand-in for one launch class: keeps its arguments."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs

    def perform(self, context):
        return context[self.args[0]]


@pytest.fixture
def launch_file(monkeypatch):
    for name, classes in NAMES.items():
        module = types.ModuleType(name)
        for cls in classes:
            setattr(module, cls, type(cls, (Built,), {}))
        monkeypatch.setitem(sys.modules, name, module)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / 'launch' / f'{name}.launch.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module, module.generate_launch_description().args[0]

    return load


def of_kind(entities, name):
    return [entity for entity in entities if type(entity).__name__ == name]


def defaults(entities):
    declared = of_kind(entities, 'DeclareLaunchArgument')
    assert all(argument.kwargs['description'] for argument in declared)
    return {a.args[0]: a.kwargs['default_value'] for a in declared}


def field_names(kind):
    return {spec.name for spec in dataclasses.fields(kind)}


def test_tracker_launch_starts_the_node_with_only_what_was_given(launch_file):
    module, entities = launch_file('tracker')
    given = {**defaults(entities), 'mesh_file_path': '/m.obj', 'mesh_scale': '1'}
    (node,) = module.make_node(given)
    assert node.kwargs['executable'] == 'tracker_node'
    file, overrides = node.kwargs['parameters']
    assert file.args == ('params_file',)
    expected = {'mesh_file_path': '/m.obj', 'mesh_scale': 1.0, 'use_sim_time': False}
    assert overrides == expected and isinstance(overrides['mesh_scale'], float)
    assert {name for name, *_ in module.OVERRIDES} <= field_names(TrackerParameters)


def test_tracker_launch_remaps_every_input_by_argument(launch_file):
    module, entities = launch_file('tracker')
    (node,) = module.make_node(defaults(entities))
    remapped = {topic: target.args[0] for topic, target in node.kwargs['remappings']}
    assert {target for target in remapped.values()} <= set(defaults(entities))
    source = (ROOT / 'foundationpose_trt/ros/tracker_node.py').read_text()
    subscribed = re.findall(r"\((?:CameraInfo|Image), '(\w+)', self\._on", source)
    assert sorted(remapped) == sorted(subscribed)


def test_launch_keeps_idle_threads_from_spinning_unless_the_user_wants_that(
    launch_file, monkeypatch
):
    for own, expected in ((None, '3000'), ('10', '10')):
        monkeypatch.delenv('GOMP_SPINCOUNT', raising=False)
        if own:
            monkeypatch.setenv('GOMP_SPINCOUNT', own)
        assert environment_set(launch_file)['GOMP_SPINCOUNT'] == expected


def environment_set(launch_file) -> dict[str, str]:
    _, entities = launch_file('tracker')
    return {s.args[0]: s.args[1] for s in of_kind(entities, 'SetEnvironmentVariable')}


def test_launch_sets_the_profile_unless_the_user_did(launch_file, monkeypatch):
    for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
        monkeypatch.delenv(name, raising=False)
    profile = {name: str(PROFILE_PATH) for name in profile_variables()}
    assert environment_set(launch_file).items() >= profile.items()
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', '/own.xml')
    assert not [name for name in environment_set(launch_file) if 'PROFILES' in name]


def test_demo_launch_passes_on_what_tracker_launch_declares(launch_file):
    _, entities = launch_file('demo')
    _, tracker_entities = launch_file('tracker')
    (include,) = of_kind(entities, 'IncludeLaunchDescription')
    passed = {name for name, _ in include.kwargs['launch_arguments']}
    assert passed <= set(defaults(tracker_entities)) & set(defaults(entities))
    (player,) = of_kind(entities, 'Node')
    own = player.kwargs['parameters'][1]
    types_ = {spec.name: type(spec.default) for spec in dataclasses.fields(PlayerParameters)}
    assert {name: value.kwargs['value_type'] for name, value in own.items()} == {
        name: types_[name] for name in own
    }
    assert type(player.kwargs['on_exit']).__name__ == 'Shutdown'


@pytest.mark.parametrize('name', ['tracker', 'demo'])
def test_files_and_executables_that_launch_names_are_installed(launch_file, name):
    module, entities = launch_file(name)
    setup = (ROOT / 'setup.py').read_text()
    nodes = of_kind(entities, 'Node') or module.make_node(defaults(entities))
    for node in nodes:
        assert f'{node.kwargs["executable"]} = ' in setup
    source = Path(module.__file__).read_text()
    for folder, file in re.findall(r"'(config|launch)', '([\w.]+)'", source):
        assert (ROOT / folder / file).is_file()
