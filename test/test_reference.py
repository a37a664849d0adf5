"""config/*.yaml and docs/reference.md against the code, the ROS graph and their generator."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_contexts import begin_context, end_context
from ros_rig import Bench, Rig, ScriptedGroup
from std_msgs.msg import String

from foundationpose_trt.ros import reference, reference_descriptions, reference_document
from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.managed_node import OWN_PARAMETERS
from foundationpose_trt.ros.player_parameters import PlayerParameters
from foundationpose_trt.ros.reference_interfaces import PUBLISHES, SERVES, Endpoint
from foundationpose_trt.ros.reference_parameters import number, yaml_value
from foundationpose_trt.ros.runtime_figures import graph_figures
from foundationpose_trt.ros.tracker_factory import BuiltTracker, NamedObject
from foundationpose_trt.ros.tracker_node import TrackerNode
from foundationpose_trt.ros.tracker_parameters import ObjectParameters, TrackerParameters

pytestmark = pytest.mark.ros
ROOT = Path(__file__).parents[1]
FILES = {'config/tracker.yaml', 'config/detector.yaml', 'config/player.yaml', 'docs/reference.md'}
SPACE = f'/graph_{os.getpid()}'
OF_ROS = re.compile('/rosout|/parameter_events|.*/transition_event')
KINDS = {
    'tracker_node': TrackerParameters,
    'detector_node': DetectorParameters,
    'player_node': PlayerParameters,
}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_LOG_DIR', str(tmp_path_factory.mktemp('log')))
        yield reference.generated()


@pytest.fixture
def rig(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    rig = Rig(connect=False)
    yield rig
    rig.close()


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    context = begin_context()
    yield context
    end_context(context)


@pytest.fixture
def checkout(files, tmp_path, monkeypatch):
    """A checkout in which everything is current."""
    (tmp_path / 'package.xml').touch()
    reference.write(tmp_path, files)
    monkeypatch.setattr(reference, 'generated', lambda: files)
    return tmp_path


def section(text, title):
    """What stands below a heading, up to the next of the same or a higher rank."""
    rank, _, _ = title.partition(' ')
    rest = text.partition(f'\n{title}\n')[2]
    assert rest, f'no heading {title}'
    return re.split(rf'^#{{1,{len(rank)}}} ', rest, maxsplit=1, flags=re.M)[0]


def rows(text, head):
    """The rows of the tables whose first column has this heading, by their first cell."""
    found, inside = {}, False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split(' | ')]
        if not line.startswith('|'):
            inside = False
        elif inside and not line.startswith('|---'):
            found[cells[0].strip('`')] = cells[1:]
        elif not inside:
            inside = cells[0] == head
    return found


def test_the_files_are_those_that_the_code_gives(files):
    assert files.keys() == FILES
    stale = reference.stale(ROOT, files)
    assert not stale, f'run {reference.COMMAND} --write'


def test_a_current_checkout_passes(checkout, capsys):
    assert reference.main(['--root', str(checkout)]) == 0
    assert reference.main(['--check', '--root', str(checkout)]) == 0
    assert not capsys.readouterr().err


def spoil(path):
    path.write_text(path.read_text().replace('the', 'teh', 1))


@pytest.mark.parametrize('name', sorted(FILES))
@pytest.mark.parametrize('harm', [spoil, Path.unlink])
def test_a_stale_or_missing_file_is_named_and_written_again(checkout, capsys, name, harm):
    before = {each: (checkout / each).read_text() for each in FILES}
    harm(checkout / name)
    assert reference.main(['--root', str(checkout)]) == 1
    said = capsys.readouterr().err
    assert name in said and not [other for other in FILES - {name} if other in said]
    assert reference.main(['--write', '--root', str(checkout)]) == 0
    assert {each: (checkout / each).read_text() for each in FILES} == before


def test_a_folder_that_is_no_checkout_is_left_alone(tmp_path, capsys):
    assert reference.main(['--write', '--root', str(tmp_path)]) == 2
    assert '--root' in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_topic_without_description_is_an_error(monkeypatch):
    told = reference_descriptions.DESCRIPTIONS
    fewer = {
        name: text for name, text in told['tracker_node'][PUBLISHES].items() if name != 'pose'
    }
    monkeypatch.setitem(told, 'tracker_node', {**told['tracker_node'], PUBLISHES: fewer})
    with pytest.raises(ValueError, match='publishes pose: no description'):
        reference_document.document()


def test_a_description_without_topic_is_an_error(monkeypatch):
    services = reference_descriptions.DESCRIPTIONS['player_node'][SERVES]
    monkeypatch.setitem(services, '~/rewind', 'to the beginning')
    with pytest.raises(ValueError, match='serves ~/rewind: described, not there'):
        reference_document.document()


def test_an_outcome_without_description_is_an_error(monkeypatch):
    told = reference_descriptions.OUTCOMES
    fewer = {word: text for word, text in told['tracker_node'].items() if word != 'EXPIRED'}
    monkeypatch.setitem(told, 'tracker_node', fewer)
    with pytest.raises(ValueError, match='tracker_node.*EXPIRED'):
        reference_document.document()


def stand_in(package, name):
    """A message class of a package that may not be installed here."""
    return type(String)(name, (String,), {'__module__': f'{package}.msg._{name}', '__slots__': []})


def install(monkeypatch, depth):
    """Have vision_msgs and tf2_ros installed, so far as publishers are concerned."""
    names = ('Detection2DArray', 'Detection3DArray')
    messages = SimpleNamespace(**{name: stand_in('vision_msgs', name) for name in names})

    class Broadcaster:
        def __init__(self, node):
            node.create_publisher(
                stand_in('tf2_msgs', 'TFMessage'), '/tf', QoSProfile(depth=depth)
            )

    monkeypatch.setitem(sys.modules, 'vision_msgs.msg', messages)
    monkeypatch.setitem(sys.modules, 'tf2_ros', SimpleNamespace(TransformBroadcaster=Broadcaster))


def test_the_document_is_the_same_with_vision_msgs_and_tf2_ros(monkeypatch, files):
    install(monkeypatch, depth=100)
    found = reference_document.tracker_endpoints()
    assert {'output', '/tf'} < {one.name for one in found}, 'the stand-ins were not used'
    assert reference_document.document() == files['docs/reference.md']


def test_an_optional_topic_that_is_not_as_declared_is_an_error(monkeypatch):
    install(monkeypatch, depth=7)
    with pytest.raises(ValueError, match="'/tf'.*reliable, volatile, 7"):
        reference_document.document()


def test_optional_topics_are_documented(files):
    text = files['docs/reference.md']
    tracker = rows(section(text, '## tracker_node'), 'publishes')
    assert tracker['output'][0] == 'vision_msgs/Detection3DArray'
    assert tracker['/tf'][0] == 'tf2_msgs/TFMessage'
    detector = rows(section(text, '## detector_node'), 'publishes')
    assert detector['detections'][0] == 'vision_msgs/Detection2DArray'


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
    """An active tracker_node in a namespace of its own: others of its name may linger."""
    group = ScriptedGroup()
    built = BuiltTracker(group, (NamedObject('thing', '', ''),), group.warm_up, 'scripted')
    mesh = Parameter('mesh_file_path', value='unused.obj')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_LOG_DIR', str(tmp_path_factory.mktemp('log')))
        bench = Bench(
            lambda context: TrackerNode(
                lambda *_: built, context=context, namespace=SPACE, parameter_overrides=[mesh]
            )
        )
        assert bench.node.start()
        yield bench
        bench.close()


def on_graph(bench, ask, names):
    """What the ROS graph says of tracker_node: package/Name by name.

    names: what it must know before it is believed; it hears of a new node bit by bit.
    """

    def listed():
        found = ask('tracker_node', SPACE)
        return {n: kinds[0].replace('/msg/', '/').replace('/srv/', '/') for n, kinds in found}

    bench.until(lambda: set(names) <= listed().keys())
    return listed()


def resolved(name):
    """A documented name as it is on the graph."""
    return name if name.startswith('/') else f'{SPACE}/{name.replace("~", "tracker_node")}'


def test_topics_of_tracker_node_are_those_of_the_ros_graph(files, bench):
    node, text = bench.node, section(files['docs/reference.md'], '## tracker_node')
    told = {resolved(name): cells for name, cells in rows(text, 'publishes').items()}
    for name, cells in rows(text, 'topic').items():
        told[resolved(name)] = ['std_msgs/Float32', *cells]
    for name, package in (('output', 'vision_msgs'), ('/tf', 'tf2_ros')):
        if importlib.util.find_spec(package) is None:
            told.pop(resolved(name))
    published = on_graph(bench, node.get_publisher_names_and_types_by_node, told)
    own = {name: kind for name, kind in published.items() if not OF_ROS.fullmatch(name)}
    assert own == {name: cells[0] for name, cells in told.items()}
    infos = node.get_publishers_info_by_topic
    bench.until(lambda: all(infos(name) for name in told))
    for name, cells in told.items():
        for profile in [one.qos_profile for one in infos(name) if one.node_namespace == SPACE]:
            latched = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
            assert profile.reliability == ReliabilityPolicy.RELIABLE
            durability = 'transient local' if latched else 'volatile'
            assert cells[1].startswith(f'reliable, {durability}, '), name


def test_inputs_of_tracker_node_are_those_of_the_ros_graph(files, bench):
    text = section(files['docs/reference.md'], '## tracker_node')
    told = {resolved(name): cells[0] for name, cells in rows(text, 'subscribes').items()}
    found = on_graph(bench, bench.node.get_subscriber_names_and_types_by_node, told)
    assert {name: kind for name, kind in found.items() if not OF_ROS.fullmatch(name)} == told
    assert len(told) == 4


def test_services_of_tracker_node_are_those_of_the_ros_graph(files, bench):
    text = section(files['docs/reference.md'], '## tracker_node')
    told = {resolved(name): cells[0] for name, cells in rows(text, 'serves').items()}
    served = on_graph(bench, bench.node.get_service_names_and_types_by_node, told)
    own = {name: kind for name, kind in served.items() if kind.startswith('std_srvs/')}
    assert own == told and len(own) == 3


@pytest.mark.parametrize(
    ('node', 'head', 'topic', 'cells'),
    [
        ('detector_node', 'subscribes', 'image', 'sensor_msgs/Image best effort, volatile, 1'),
        ('detector_node', 'publishes', 'segmentation', 'sensor_msgs/Image reliable, volatile, 1'),
        (
            'detector_node', 'topic', 'latency/detector_ms',
            'reliable, volatile, 10 `budget_detector_ms`',
        ),
        ('player_node', 'subscribes', 'state', 'std_msgs/String reliable, transient local, 1'),
        ('player_node', 'publishes', 'image', 'sensor_msgs/Image reliable, volatile, 5'),
    ],
)  # fmt: skip
def test_topics_of_the_other_nodes(files, node, head, topic, cells):
    text = section(files['docs/reference.md'], f'## {node}')
    assert ' '.join(rows(text, head)[topic][:2]) == cells


@pytest.mark.parametrize('node', KINDS)
def test_the_document_has_every_parameter(files, node):
    told = rows(section(files['docs/reference.md'], f'## {node}'), 'parameter')
    specs = {spec.name: spec for spec in dataclasses.fields(KINDS[node])}
    own = {name: text for name, _, text in OWN_PARAMETERS} if node != 'player_node' else {}
    of_objects = {spec.name for spec in dataclasses.fields(ObjectParameters)}
    assert told.keys() == specs.keys() | own.keys()
    for name, spec in specs.items():
        if node == 'tracker_node' and name in of_objects:
            continue  # a second row, of the objects'
        metadata, (_, allowed, change, text) = spec.metadata, told[name]
        assert text == metadata['description'] and metadata['unit'] in allowed
        assert change == ('live' if metadata['live'] else 'fixed')
        assert all((choice or '""') in allowed for choice in metadata['choices'])
    stages = rows(section(files['docs/reference.md'], f'## {node}'), 'topic')
    budgets = {name for name in specs if name.startswith('budget_')}
    assert budgets == {cells[1].strip('`') for cells in stages.values()} - {''}
    for name, text in own.items():
        assert told[name][2:] == ['start', text]


def test_parameters_are_as_the_running_node_declares_them(files, rig):
    told = rows(section(files['docs/reference.md'], '## tracker_node'), 'parameter')
    declared = [name for name in rig.node._parameters if not name.startswith('qos_overrides.')]
    assert set(declared) - {'use_sim_time', 'start_type_description_service'} == told.keys()
    for name in told.keys() - {spec.name for spec in dataclasses.fields(ObjectParameters)}:
        descriptor, (_, allowed, change, text) = rig.node.describe_parameter(name), told[name]
        assert descriptor.description.startswith(text)
        assert descriptor.read_only == (change == 'start')
        for limits in (*descriptor.integer_range, *descriptor.floating_point_range):
            low, _, high = allowed.rpartition(', ')[2].partition('..')
            assert (float(low), float(high)) == (limits.from_value, limits.to_value)


def test_the_summary_names_everything_that_a_node_reports(files, rig):
    text = section(files['docs/reference.md'], '## Summary')
    rig.node.note('track_ms', 5.0)
    rig.node.outcomes['LOW_QUALITY'] += 1
    statuses = rig.node._statuses()
    tasks = {status.name.partition(': ')[2].split()[0] for status in statuses}
    assert tasks == {'latency', 'flow', 'runtime', 'object'}
    keys = {pair.key for status in statuses for pair in status.values}
    cache = SimpleNamespace(hits=1, misses=1, entry_bytes={}, capacity=1)
    keys |= graph_figures([cache]).keys()
    keys = {re.sub('outcome_.*', 'outcome_WORD', key) for key in keys}
    assert 'outcome_WORD' in keys and 'budget_ms' in keys
    assert not [word for word in (*tasks, *keys) if not re.search(rf'`{word}[ `]', text)]


def test_the_document_knows_the_names_of_isaac_ros(files):
    text = section(files['docs/reference.md'], '## tracker_node')
    assert rows(text, 'Isaac ROS') == {
        'min_depth': ['`min_depth_m`'], 'max_depth': ['`max_depth_m`'],
    }  # fmt: skip


def test_topics_of_several_objects_are_named(files):
    text = section(files['docs/reference.md'], '## tracker_node')
    assert re.search(r'With several objects .*`NAME/outcome`, `NAME/pose`,\s`NAME/state`', text)


def test_the_example_of_several_objects_is_what_the_node_reads(files, context, tmp_path):
    text = files['config/tracker.yaml']
    head, _, example = text.partition('# Several objects')
    lines = [re.sub('^    # ', '    ', line) for line in example.splitlines()[1:]]
    path = tmp_path / 'example.yaml'
    path.write_text('\n'.join([head, *lines]))
    node = Node('probe', context=context, cli_args=['--ros-args', '--params-file', str(path)])
    given = {name: one.value for name, one in node._parameter_overrides.items()}
    assert given['objects'] == ['mug', 'drill']
    assert given['drill.mesh_file_path'] == '/path/to/drill.obj'
    for spec in dataclasses.fields(ObjectParameters):
        if spec.default != () and spec.name != 'mesh_file_path':
            assert given[f'mug.{spec.name}'] == spec.default
    assert '# symmetry_axes: []' in example


@pytest.mark.parametrize(
    'value',
    ['', 'auto', 'true', 'no', '1', '1e6', '16UC1', 'a: b # c', True, 3, 0.5, 2.0, 1e-7, 1e22],
)
def test_defaults_survive_yaml(context, tmp_path, value):
    path = tmp_path / 'one.yaml'
    path.write_text(f'/**:\n  ros__parameters:\n    one: {yaml_value(value)}\n')
    node = Node('probe', context=context, cli_args=['--ros-args', '--params-file', str(path)])
    read = node._parameter_overrides['one'].value
    assert read == value and type(read) is type(value)


def test_limits_are_written_short():
    limits = [0, 1_000_000, 0.0, 0.5, 1e-6, 1e6, 60000.0, 16384]
    written = ['0', '1000000', '0', '0.5', '1e-6', '1e6', '60000', '16384']
    assert [number(limit) for limit in limits] == written


def test_endpoints_of_ros_itself_are_left_out(files):
    for name in ('`/rosout`', 'get_parameters', 'change_state'):
        assert not re.search(rf'^\|.*{name}', files['docs/reference.md'], re.M)
    assert Endpoint('publishes', 'a', 'b') < Endpoint('subscribes', 'a', 'b')
