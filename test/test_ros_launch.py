"""The launch files against the package they start; launch itself is not on PyPI.

Stand-ins note what the files build, so names of executables, parameters, topics and files are
compared with the real ones. That launch accepts it is seen on a ROS installation only.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
import rclpy
from ros_contexts import begin_context, end_context

from foundationpose_trt.ros.dds import PROFILE_PATH, profile_variables
from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.parameters import declare
from foundationpose_trt.ros.pipeline_node import DETECTOR, TRACKER, common, sections
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


def overridden(path, node):
    """What a file of ours overrides, of this node and no other."""
    content = json.loads(Path(path).read_text())
    assert set(content) == {f'/**/{node}'}
    return content[f'/**/{node}']['ros__parameters']


def field_names(kind):
    return {spec.name for spec in dataclasses.fields(kind)}


def test_tracker_launch_starts_the_node_with_only_what_was_given(launch_file):
    module, entities = launch_file('tracker')
    given = {**defaults(entities), 'mesh_file_path': '/m.obj', 'mesh_scale': '1'}
    (node,) = module.make_node(given)
    assert node.kwargs['executable'] == 'tracker_node'
    file, own = node.kwargs['parameters']
    assert file.args == ('params_file',)
    overrides = overridden(own, 'tracker_node')
    expected = {'mesh_file_path': '/m.obj', 'mesh_scale': 1.0}
    assert overrides == expected and isinstance(overrides['mesh_scale'], float)
    assert {name for name, *_ in module.OVERRIDES} <= field_names(TrackerParameters)


def test_nothing_is_overridden_where_nothing_was_given(launch_file):
    module, entities = launch_file('tracker')
    (node,) = module.make_node(defaults(entities))
    assert [file.args for file in node.kwargs['parameters']] == [('params_file',)]
    for node in pipeline_nodes(launch_file, one_process='false'):
        assert len(node.kwargs['parameters']) == 1


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


@pytest.mark.parametrize('name', ['tracker', 'demo', 'pipeline'])
def test_files_and_executables_that_launch_names_are_installed(launch_file, name):
    module, entities = launch_file(name)
    setup = (ROOT / 'setup.py').read_text()
    make = getattr(module, 'make_nodes', getattr(module, 'make_node', None))
    nodes = of_kind(entities, 'Node') or make(defaults(entities))
    for node in nodes:
        assert f'{node.kwargs["executable"]} = ' in setup
    source = Path(module.__file__).read_text()
    for folder, file in re.findall(r"'(config|launch)', '([\w.]+)'", source):
        assert (ROOT / folder / file).is_file()


PIPELINE = {
    'model': '/m', 'objects': 'mug, drill', 'confidence_threshold': '1', 'max_rate_hz': '15',
    'publish_debug': 'true', 'mesh_file_path': '/m.obj', 'mesh_scale': '0.001', 'mask_label': '2',
    'weights': 'small', 'device': 'cpu', 'build_engines': 'false',
    'cuda_graph_cache_capacity': '4',
}  # fmt: skip
OF_DETECTOR = DetectorParameters(
    model='/m', objects=('mug', 'drill'), confidence_threshold=1.0, max_rate_hz=15.0,
    publish_debug=True, device='cpu', cuda_graph_cache_capacity=4,
)  # fmt: skip
OF_TRACKER = TrackerParameters(
    mesh_file_path='/m.obj', mesh_scale=0.001, mask_label=2, weights='small', device='cpu',
    cuda_graph_cache_capacity=4, publish_debug=True,
)  # fmt: skip


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    context = begin_context()
    yield context
    end_context(context)


def pipeline_nodes(launch_file, **given):
    module, entities = launch_file('pipeline')
    assert set(PIPELINE) == {name for name, *_ in module.OVERRIDES}
    return module.make_nodes({**defaults(entities), **given})


def test_pipeline_launch_gives_each_node_of_one_process_its_parameters(launch_file, context):
    (node,) = pipeline_nodes(launch_file, **PIPELINE)
    assert node.kwargs['executable'] == 'pipeline_node' and 'name' not in node.kwargs
    folder = ROOT / 'config'
    words = [
        word if isinstance(word, str) else str(folder / f'{word.args[0].split("_")[0]}.yaml')
        for word in node.kwargs['arguments']
    ]
    words = ['pipeline_node', *words, '--ros-args', '-r', '__ns:=/a/b']  # as launch starts it
    expected = {DETECTOR: OF_DETECTOR, TRACKER: OF_TRACKER}
    for part, values in expected.items():
        probe = rclpy.create_node(
            f'{part[2:]}_node', context=context, cli_args=dict(sections(words))[part],
            namespace='a/b',
        )  # fmt: skip
        assert declare(probe, type(values)) == values
        assert probe.get_namespace() == '/a/b'


def test_pipeline_launch_starts_two_processes_on_request(launch_file):
    nodes = pipeline_nodes(launch_file, **PIPELINE, one_process='false', use_sim_time='true')
    for node, expected in zip(nodes, (OF_DETECTOR, OF_TRACKER), strict=True):
        part = type(expected).__name__.removesuffix('Parameters').lower()
        assert node.kwargs['executable'] == node.kwargs['name'] == f'{part}_node'
        file, own = node.kwargs['parameters']
        assert file.args == (f'{part}_params_file',)
        overrides = overridden(own, f'{part}_node')
        assert overrides.pop('use_sim_time') is True
        values = dataclasses.asdict(expected)
        assert overrides == {
            name: list(values[name]) if isinstance(values[name], tuple) else values[name]
            for name in overrides
        }


def test_pipeline_launch_overrides_nothing_that_was_not_given(launch_file):
    (node,) = pipeline_nodes(launch_file)
    words = [word for word in node.kwargs['arguments'] if isinstance(word, str)]
    assert words == ['--detector', '--params-file', '--tracker', '--params-file']
    remapped = {topic: target.args[0] for topic, target in node.kwargs['remappings']}
    expected = ('image', 'depth', 'camera_info', 'segmentation')
    assert remapped == {topic: f'{topic}_topic' for topic in expected}


@pytest.mark.parametrize(
    ('name', 'value'), [('max_rate_hz', 'fast'), ('publish_debug', 'yes'), ('mask_label', '1.5')]
)
def test_pipeline_launch_names_a_bad_argument(launch_file, name, value):
    with pytest.raises(ValueError, match=f'launch argument {name}:={value}'):
        pipeline_nodes(launch_file, **{name: value})


def test_tracker_launch_names_a_bad_argument(launch_file):
    with pytest.raises(ValueError, match='launch argument mesh_scale:=abc'):
        trackers_words(launch_file, mesh_scale='abc')


OWN_FILE = """
/**:
  ros__parameters: {mesh_file_path: /for_all.obj, use_sim_time: true, min_support_px: 41}
/left/tracker_node:
  ros__parameters: {mesh_file_path: /for_left.obj, use_sim_time: true, mask_label: 7}
"""


@pytest.mark.parametrize('several', [True, False])
def test_an_argument_wins_over_every_section_of_a_parameter_file(
    launch_file, context, tmp_path, several
):
    file = tmp_path / 'own.yaml'
    file.write_text(OWN_FILE)
    given = {'mesh_file_path': '/given.obj', 'use_sim_time': 'false'}
    if several:
        words, _ = trackers_words(launch_file, file, namespaces='left', **given)
        arguments = dict(sections(words))[TRACKER]
    else:  # as launch writes what is in `parameters`
        module, entities = launch_file('tracker')
        (node,) = module.make_node({**defaults(entities), **given})
        own = node.kwargs['parameters'][1]
        arguments = ['--ros-args', '-r', '__ns:=/left', '--params-file', str(file)]
        arguments += ['--params-file', own]
    probe = rclpy.create_node('tracker_node', context=context, cli_args=arguments)
    found = declare(probe, TrackerParameters)
    assert found.mesh_file_path == '/given.obj'
    assert probe.get_parameter('use_sim_time').value is False
    assert (found.mask_label, found.min_support_px) == (7, 41)  # what was not given is the file's


def trackers_words(launch_file, file=ROOT / 'config' / 'tracker.yaml', **given):
    """The words of the one process, as launch would start it."""
    module, entities = launch_file('tracker')
    (node,) = module.make_node({**defaults(entities), **given})
    assert node.kwargs['executable'] == 'pipeline_node' and 'name' not in node.kwargs
    words = [word if isinstance(word, str) else str(file) for word in node.kwargs['arguments']]
    return ['pipeline_node', *words, '--ros-args'], node


def test_several_cameras_have_a_tracker_each_in_one_process(launch_file, context):
    words, _ = trackers_words(
        launch_file, namespaces='left, /arm/right', mesh_file_path='/m.obj', mesh_scale='0.001',
        image_topic='color/image_raw', depth_topic='/depth', use_sim_time='true',
    )  # fmt: skip
    found = sections(words)
    assert [part for part, _ in found] == [TRACKER, TRACKER]
    for (_, arguments), namespace in zip(found, ('/left', '/arm/right'), strict=True):
        probe = rclpy.create_node('tracker_node', context=context, cli_args=arguments)
        assert probe.get_namespace() == namespace
        assert probe.get_parameter('use_sim_time').value is True
        expected = TrackerParameters(mesh_file_path='/m.obj', mesh_scale=0.001)
        assert declare(probe, TrackerParameters) == expected
        assert probe.resolve_topic_name('image') == f'{namespace}/color/image_raw'
        assert probe.resolve_topic_name('depth') == '/depth'
        assert probe.resolve_topic_name('camera_info') == f'{namespace}/camera_info'
        probe.destroy_node()


@pytest.mark.parametrize('text', ['left,left', 'left,', ',', '/'])
def test_cameras_need_names_of_their_own(launch_file, text):
    with pytest.raises(ValueError, match=f'launch argument namespaces:={text}: each camera'):
        trackers_words(launch_file, namespaces=text)


def test_every_node_named_is_one_with_arguments_of_its_own():
    words = [
        'exe', '--detector', '-p', 'a:=1', '--tracker', '-r', '__ns:=/left', '-p', 'c:=3',
        '--tracker', '-r', '__ns:=/right', '--ros-args', '-p', 'd:=4',
    ]  # fmt: skip
    assert sections(words) == [
        (DETECTOR, ['--ros-args', '-p', 'a:=1']),
        (TRACKER, ['--ros-args', '-r', '__ns:=/left', '-p', 'c:=3']),
        (TRACKER, ['--ros-args', '-r', '__ns:=/right']),
    ]
    assert common(words) == ['exe', '--ros-args', '-p', 'd:=4']
    assert common(['exe', '-r', 'a:=b']) == ['exe', '-r', 'a:=b']
    both = [(DETECTOR, ['--ros-args']), (TRACKER, ['--ros-args'])]
    assert sections(['exe', '--ros-args', '-p', 'd:=4']) == sections(['exe']) == both
