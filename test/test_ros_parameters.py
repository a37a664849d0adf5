"""Parameters as declared by rclpy, against the dataclasses, the YAML files and the pose core."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_contexts import begin_context, end_context

from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.managed_node import OWN_PARAMETERS
from foundationpose_trt.ros.parameters import (
    check_values,
    declare,
    given_parameters,
    parameter,
    unknown_parameters,
)
from foundationpose_trt.ros.player_parameters import PlayerParameters
from foundationpose_trt.ros.tracker_parameters import TrackerParameters

pytestmark = pytest.mark.ros
CONFIG = Path(__file__).parents[1] / 'config'
REQUIRED = {
    TrackerParameters: 'mesh_file_path',
    PlayerParameters: 'scene',
    DetectorParameters: 'model',
}
MANAGED = (TrackerParameters, DetectorParameters)  # the nodes that have OWN_PARAMETERS too


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    context = begin_context()
    yield context
    end_context(context)


def node_with(context, overrides=(), arguments=()):
    return Node(
        'probe', context=context, parameter_overrides=list(overrides),
        cli_args=['--ros-args', *arguments], enable_rosout=False, start_parameter_services=False,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sample:
    rate_hz: float = parameter(2.0, 'how often', 'Hz', (0.5, 10.0))
    count: int = parameter(3, 'how many', limits=(1, 5))
    mode: str = parameter('a', 'which', choices=('a', 'b'))
    on: bool = parameter(True, 'whether')
    level: int = parameter(0, 'how deep', limits=(0, 9), live=True)

    def __post_init__(self):
        check_values(self)


@dataclasses.dataclass(frozen=True)
class Listed:
    classes: tuple[str, ...] = parameter((), 'which')


def test_declares_described_ranged_read_only_parameters(context):
    node = node_with(context, [Parameter('rate_hz', value=4.0), Parameter('mode', value='b')])
    assert declare(node, Sample) == Sample(rate_hz=4.0, mode='b')
    rate, count, mode = (node.describe_parameter(n) for n in ('rate_hz', 'count', 'mode'))
    assert rate.description == 'how often [Hz]' and rate.read_only
    assert rate.floating_point_range[0].from_value == 0.5
    assert rate.floating_point_range[0].to_value == 10.0
    assert (count.integer_range[0].from_value, count.integer_range[0].to_value) == (1, 5)
    assert mode.additional_constraints == 'one of a, b'
    assert not node.set_parameters([Parameter('count', value=4)])[0].successful
    assert not node.describe_parameter('level').read_only
    assert node.set_parameters([Parameter('level', value=9)])[0].successful
    assert not node.set_parameters([Parameter('level', value=10)])[0].successful


@pytest.mark.parametrize(
    ('argument', 'words'),
    [
        ('rate_hz:=20.0', 'rate_hz.*0.5..10'),
        ('rate_hz:=3', r'rate_hz.*write 1\.0, not 1'),
        ('rate_hz:=.nan', 'rate_hz'),
        ('count:=9', 'count.*1..5'),
        ('count:=many', 'count.*must be int'),
        ('mode:=c', "mode is 'c', must be one of a, b"),
        ('on:=3', 'on.*must be bool'),
    ],
)
def test_bad_values_name_parameter_and_what_is_allowed(context, argument, words):
    node = node_with(context, arguments=['-p', argument])
    with pytest.raises(ValueError, match=words):
        declare(node, Sample)


@pytest.mark.parametrize(('words', 'expected'), [('[]', ()), ('[a, b]', ('a', 'b')), (None, ())])
def test_lists_of_strings_may_be_empty_or_absent(context, words, expected):
    node = node_with(context, arguments=['-p', f'classes:={words}'] if words else [])
    assert declare(node, Listed).classes == expected


def test_a_list_that_is_none_is_refused(context):
    node = node_with(context, arguments=['-p', 'classes:=mug'])
    with pytest.raises(ValueError, match='classes.*must be a list of strings'):
        declare(node, Listed)


def test_parameters_of_nodes_in_the_same_process_are_not_unknown(context):
    node = node_with(context, arguments=['-p', 'classes:=[a]', '-p', 'colour:=red'])
    (line,) = unknown_parameters(given_parameters(node), Sample, [Listed])
    assert line.startswith('parameter colour is unknown')


def test_misspelt_parameters_are_pointed_out(context):
    node = node_with(context, arguments=['-p', 'rate_hs:=1.0', '-p', 'use_sim_time:=false'])
    lines = unknown_parameters(given_parameters(node), Sample)
    assert lines == ['parameter rate_hs is unknown and has no effect: did you mean rate_hz?']


def yaml_path(kind):
    return CONFIG / f'{kind.__name__.removesuffix("Parameters").lower()}.yaml'


def yaml_remarks(path):
    """The comment of each parameter, by its name: beside it and on the lines below it."""
    remarks, name = {}, ''
    for line in path.read_text().splitlines():
        begins = re.match(r' {4}(?:# )?(\w+): .*?  # (.*)', line)
        goes_on = re.match(r' {20,}# (.*)', line)
        if begins:
            name = begins[1]
            remarks[name] = begins[2]
        elif goes_on and name:
            remarks[name] += f' {goes_on[1]}'
        else:
            name = ''
    return remarks


@pytest.mark.parametrize('kind', REQUIRED)
def test_yaml_holds_every_parameter_with_its_default(context, kind):
    node = node_with(context, arguments=['--params-file', str(yaml_path(kind))])
    # an empty list has no type in YAML: lists stand there as comments
    defaults = {s.name: s.default for s in dataclasses.fields(kind) if s.default != ()}
    if kind in MANAGED:
        defaults |= {name: default for name, default, _ in OWN_PARAMETERS}
    given = {key: node._parameter_overrides[key].value for key in given_parameters(node)}
    given.pop('use_sim_time', None)
    assert given == defaults
    assert [type(given[key]) for key in defaults] == [type(v) for v in defaults.values()]


@pytest.mark.parametrize('kind', REQUIRED)
def test_yaml_comments_state_what_is_declared(kind):
    remarks = yaml_remarks(yaml_path(kind))
    for spec in dataclasses.fields(kind):
        remark, metadata = remarks[spec.name], spec.metadata
        assert metadata['description'] and remark.startswith(metadata['description'])
        assert remark.endswith(' (live)') == metadata['live'], remark
        told = remark.removesuffix(' (live)').removeprefix(metadata['description'])
        written = re.search(r'([0-9.e+-]+)\.\.([0-9.e+-]+)\]$', told)
        assert (written and (float(written[1]), float(written[2]))) == metadata['limits'], remark
        assert metadata['unit'] in told
        assert all((choice or '""') in told for choice in metadata['choices']), remark


@pytest.mark.parametrize('kind', REQUIRED)
def test_required_parameters_are_asked_for_by_name(kind):
    with pytest.raises(ValueError, match=f'{REQUIRED[kind]} is empty: set it'):
        kind()


@pytest.mark.parametrize('name', ['debug', 'latency', 'qos_overrides'])
def test_objects_must_not_be_called_as_topics_of_the_node(name):
    with pytest.raises(ValueError, match=f"objects has '{name}'.*choose a name other than"):
        TrackerParameters(objects=('mug', name))


def test_a_single_object_needs_a_frame():
    with pytest.raises(ValueError, match='tf_frame_name is empty'):
        TrackerParameters(mesh_file_path='mug.obj', tf_frame_name='')
    TrackerParameters(objects=('mug',), tf_frame_name='')  # named after the object there


def test_an_empty_choice_is_shown():
    with pytest.raises(ValueError, match=r"must be one of '' \(empty\), SEARCHING"):
        PlayerParameters(scene='x', wait_for_state='TRACKIN')


def test_depth_range_must_not_be_empty():
    with pytest.raises(ValueError, match='min_depth_m is 3.0 m and max_depth_m 2.0 m'):
        TrackerParameters(mesh_file_path='x.obj', min_depth_m=3.0, max_depth_m=2.0)


def test_defaults_are_those_of_the_pose_core():
    from foundationpose_trt.pose.estimator import EstimatorSettings
    from foundationpose_trt.pose.tracker import TrackerSettings
    from foundationpose_trt.ros.tracker_factory import estimator_settings, tracker_settings

    parameters = TrackerParameters(mesh_file_path='x.obj')
    assert tracker_settings(parameters) == TrackerSettings()
    assert estimator_settings(parameters, {}, 'cuda') == [EstimatorSettings()]
    (on_cpu,) = estimator_settings(parameters, {}, 'cpu')
    assert on_cpu.schedule != EstimatorSettings().schedule
