"""monitor without ROS: what arrays of diagnostics say, by hand-written lines."""

from __future__ import annotations

import argparse
import json

import pytest
from monitor_rig import DETECTOR, TRACKER, array, stage, status, summary_graph

from foundationpose_trt.tools import cli, monitor, monitor_process
from foundationpose_trt.tools.monitor_model import (
    Board,
    Breach,
    Flow,
    NodeReport,
    ObjectState,
    OtherStatus,
    Runtime,
    Stage,
    node_reports,
)


def options(*words):
    parser = argparse.ArgumentParser()
    monitor.add_arguments(parser)
    return parser.parse_args(words)


def board_of(*lines):
    """Take lines a second apart, from 0 s."""
    board = Board()
    for second, line in enumerate(lines):
        board.take(line, float(second))
    return board


def strict(text):
    def refuse(constant):
        raise AssertionError(f'{constant} is no JSON')

    return json.loads(text, parse_constant=refuse)


def test_every_kind_of_status_is_read():
    line = array(
        stage(level=1, message='p95 is over'),
        status(
            f'{TRACKER}: flow', rate_hz='14.8', handled='120', dropped_busy='3',
            dropped_stale='0', outcome_OK='118', outcome_LOW_QUALITY='2',
        ),
        status(f'{TRACKER}: runtime', backend='tensorrt', graph_hits='7', gpu_memory_mb='811.5'),
        status(f'{TRACKER}: object drill', 2, 'too little', state='LOST', reason='hidden'),
    )  # fmt: skip
    assert node_reports(line, 'nobody') == [
        NodeReport(
            '/tracker_node',
            '/latency/summary',
            100.5,
            (Stage('track_ms', 'WARN', 'p95 is over', 12.5, 20.25, 30.0, 44.125, 150, 33.0),),
            Flow('OK', '', 14.8, 120, {'busy': 3, 'stale': 0}, {'OK': 118, 'LOW_QUALITY': 2}),
            Runtime('OK', '', 'tensorrt', 7, None, None, None, 811.5),
            (ObjectState('drill', 'ERROR', 'too little', 'LOST', 'hidden'),),
        )
    ]


@pytest.mark.parametrize('text', ['nan', 'inf', '-inf', '', 'soon', '1e999'])
def test_what_is_no_finite_number_is_missing(text):
    board = board_of(
        array(
            stage(p95_ms=text, count=text, budget_ms=text),
            status(f'{TRACKER}: flow', rate_hz=text, dropped_busy=text),
        )
    )
    (view,) = board.views(0.0)
    (found,) = view.report.stages
    assert (found.p50_ms, found.p95_ms, found.count, found.budget_ms) == (12.5, None, None, None)
    assert (view.report.flow.rate_hz, view.report.flow.dropped) == (None, {'busy': None})
    text = json.dumps(monitor.document(board, 0.0), allow_nan=False)
    assert strict(text)['nodes'][TRACKER]['stages']['track_ms']['p95_ms'] is None


def test_absent_values_are_missing():
    (report,) = node_reports(
        array(
            status(f'{TRACKER}: latency age_ms'), status(f'{TRACKER}: flow'),
            status(f'{TRACKER}: runtime'), status(f'{TRACKER}: object cup'),
        ),
        'nobody',
    )  # fmt: skip
    assert report.stages == (Stage('age_ms', 'OK', '', None, None, None, None, None, None),)
    assert report.flow == Flow('OK', '', None, None, {}, {})
    assert report.runtime == Runtime('OK', '', None, None, None, None, None, None)
    assert report.objects == (ObjectState('cup', 'OK', '', None, None),)


def test_unknown_statuses_are_kept_as_they_came():
    line = array(
        status(f'{TRACKER}: weather', 7, 'fine', sun='yes'),
        status('no node at all', 1),
        status('camera: temperature', celsius='41'),
        status(''),
    )
    by_node = {report.node: report for report in node_reports(line, '/latency/summary')}
    assert by_node[TRACKER].others == (OtherStatus('weather', 'LEVEL 7', 'fine', {'sun': 'yes'}),)
    assert [other.name for other in by_node['/latency/summary'].others] == [
        'no node at all', 'camera: temperature', '',
    ]  # fmt: skip
    assert by_node.keys() == {TRACKER, '/latency/summary'}


def test_several_nodes_on_one_topic_stay_apart():
    board = board_of(
        array(stage(TRACKER), stage('/b/tracker_node', p50_ms='1')),
        array(stage(DETECTOR, 'detector_ms', p50_ms='2')),
        array(stage(TRACKER, p50_ms='3')),
    )
    found = {view.name: view.report.stages[0] for view in board.views(2.0)}
    assert {name: s.p50_ms for name, s in found.items()} == {
        '/b/tracker_node': 1.0, '/detector_node': 2.0, '/tracker_node': 3.0,
    }  # fmt: skip
    assert found['/detector_node'].name == 'detector_ms'


@pytest.mark.parametrize(
    ('levels', 'expected'),
    [
        ([0, 0], 0),
        ([0, 3], 0),  # STALE: no samples, nothing broken
        ([0, 9], 0),
        ([0, 1], 1),
        ([2, 0], 1),
        ([1, 0, 0], 1),  # held again at the end: it was broken all the same
    ],
)
def test_exit_status_is_that_of_the_worst_second(levels, expected):
    board = board_of(*[array(stage(level=level)) for level in levels])
    assert monitor.status(board, 2.0, options('--once'), '') == expected


def test_only_stages_have_budgets():
    board = board_of(
        array(
            stage(), status(f'{TRACKER}: flow', 2), status(f'{TRACKER}: object cup', 1),
            status(f'{TRACKER}: runtime', 1), status(f'{TRACKER}: weather', 2),
        )
    )  # fmt: skip
    assert monitor.status(board, 0.0, options('--once'), '') == 0


def test_a_breach_keeps_its_worst_second_and_their_number():
    board = board_of(
        array(stage(level=1, p95_ms='40')),
        array(stage(level=1, p95_ms='50')),
        array(stage(level=1, p95_ms='nan')),
        array(stage()),
        array(stage(DETECTOR, level=2, p95_ms='1'), stage(DETECTOR, 'age_ms')),
        array(stage(DETECTOR, level=1, p95_ms='90')),
    )
    worst = {key: (b.times, b.worst.level, b.worst.p95_ms) for key, b in board.breaches.items()}
    assert worst == {
        (TRACKER, 'track_ms'): (3, 'WARN', 50.0),
        (DETECTOR, 'track_ms'): (2, 'ERROR', 1.0),
    }
    assert isinstance(board.breaches[TRACKER, 'track_ms'], Breach)


def test_a_node_is_silent_after_three_seconds_and_may_leave_the_graph():
    board = Board()
    board.take(summary_graph(TRACKER, DETECTOR), 10.0)
    board.take(array(stage()), 10.5)
    board.take(summary_graph(TRACKER, DETECTOR, None), 12.0)  # no news of those two
    states = {v.name: (v.silent, v.on_graph, v.report is None) for v in board.views(13.5)}
    assert states == {TRACKER: (False, True, False), DETECTOR: (True, True, True)}
    board.take(summary_graph(), 13.6)
    (view,) = board.views(13.6)  # what never spoke and is gone is forgotten
    assert (view.name, view.silent, view.on_graph) == (TRACKER, True, False)
    board.take(array(stage()), 14.0)
    assert not board.views(14.0)[0].silent


def test_the_set_is_full_when_all_were_heard_and_nothing_new_comes_up():
    board = Board()
    board.take(summary_graph(), 0.0)
    assert not board.settled(9.0), 'nothing found'
    board.take(summary_graph(None), 9.0)
    board.take(array(stage()), 9.5)
    assert not board.settled(12.0), 'a publisher without a name'
    board.take(summary_graph(TRACKER, DETECTOR), 12.0)
    assert not board.settled(15.0) and board.unheard(15.0) == [DETECTOR]
    board.take(array(stage(DETECTOR)), 15.0)
    assert board.settled(15.0) and not board.unheard(15.0)
    board.take({'graph': {'/latency/summary': [TRACKER, DETECTOR], '/x': ['/n']}}, 16.0)
    board.take(array(stage('/n'), topic='/x'), 16.1)
    assert not board.settled(17.9), 'the graph has just changed'
    assert board.settled(18.0)


def test_an_array_without_a_name_is_of_the_only_publisher():
    board = Board()
    board.take(summary_graph(TRACKER), 0.0)
    board.take(array(), 1.0)
    assert [view.report for view in board.views(1.0)] == [
        NodeReport(TRACKER, '/latency/summary', 100.5)
    ]
    assert not board.unheard(1.0)
    board.take(summary_graph(DETECTOR, TRACKER), 2.0)
    board.take(array(), 2.5)
    assert board.unheard(2.5) == [DETECTOR], 'either may have sent it'


def test_a_node_that_never_spoke_is_named_and_status_2(capsys):
    board = board_of(summary_graph(TRACKER, DETECTOR), array(stage()))
    assert monitor.status(board, 2.0, options('--once'), '') == 2
    assert f'never heard: {DETECTOR} (ROS_DOMAIN_ID' in capsys.readouterr().err
    # while live, three seconds are granted
    assert monitor.status(board, 2.0, options(), '') == 0
    assert monitor.status(board, 3.0, options(), '') == 2
    board.take(array(stage(level=2)), 3.0)
    assert monitor.status(board, 3.0, options(), '') == 1
    capsys.readouterr()
    # of nothing that was heard, the status does not go without a word
    assert monitor.status(board_of(summary_graph(TRACKER)), 1.0, options(), '') == 2
    assert f'never heard: {TRACKER}' in capsys.readouterr().err


def test_nothing_found_says_where_and_what_to_do(capsys, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '42')
    monkeypatch.setenv('ROS_LOCALHOST_ONLY', '1')
    assert monitor.status(board_of(summary_graph()), 5.0, options('--once'), '/left') == 2
    said = capsys.readouterr().err
    for word in ('/latency/summary', 'DiagnosticArray', 'namespace /left', 'ROS_DOMAIN_ID 42',
                 'ROS_LOCALHOST_ONLY 1', '--wait', 'Start tracker_node'):  # fmt: skip
        assert word in said
    assert said.count('\n') == 1


def test_the_document_is_whole():
    board = board_of(
        summary_graph(TRACKER, DETECTOR),
        array(
            stage(level=1, message='over', p99_ms='nan'),
            status(f'{TRACKER}: flow', rate_hz='5', dropped_busy='1'),
            status(f'{TRACKER}: object drill', 0, 'seen', state='TRACKING', reason='seen'),
        ),
    )
    document = strict(json.dumps(monitor.document(board, 1.5), allow_nan=False))
    track = {
        'level': 'WARN', 'message': 'over', 'p50_ms': 12.5, 'p95_ms': 20.25, 'p99_ms': None,
        'max_ms': 44.125, 'count': 150, 'budget_ms': 33.0,
    }  # fmt: skip
    assert document == {
        'budgets_held': False,
        'breaches': [{'node': TRACKER, 'worst': {'name': 'track_ms', **track}, 'times': 1}],
        'unheard': [DETECTOR],
        'nodes': {
            TRACKER: {
                'silent': False,
                'on_graph': True,
                'topic': '/latency/summary',
                'stamp_s': 100.5,
                'stages': {'track_ms': track},
                'flow': {
                    'level': 'OK', 'message': '', 'rate_hz': 5.0, 'handled': None,
                    'dropped': {'busy': 1}, 'outcomes': {},
                },
                'runtime': None,
                'objects': {
                    'drill': {
                        'level': 'OK', 'message': 'seen', 'state': 'TRACKING', 'reason': 'seen',
                    }
                },
                'others': [],
            }
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ('given', 'namespace'),
    [('', ''), ('/', ''), ('a', '/a'), ('/a/', '/a'), ('/left/camera_2', '/left/camera_2')],
)
def test_namespaces_are_read_as_ros_writes_them(given, namespace):
    assert monitor.checked_namespace(options('--namespace', given)) == namespace


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--namespace', 'a b'], "--namespace is 'a b', must be"),
        (['--namespace', '/1st'], "--namespace is '/1st', must be"),
        (['--seconds', '0'], '--seconds is 0.0, must be a positive'),
        (['--seconds', 'nan'], '--seconds is nan, must be a positive'),
        (['--wait', '-1'], '--wait is -1.0, must be a positive'),
        (['--json'], '--json prints one document and needs --once'),
        (['--once', '--seconds', '3'], 'does not go with --once'),
    ],
)
def test_bad_options_are_one_line_and_status_2(words, said, capsys):
    assert cli.main(['monitor', *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1


@pytest.mark.parametrize('missing', ['rclpy', 'diagnostic_msgs'])
def test_missing_ros_is_one_line_with_the_remedy(missing, monkeypatch, capsys):
    monkeypatch.setattr(
        monitor_process.importlib.util, 'find_spec', lambda name: None if name == missing else 1
    )
    assert cli.main(['monitor', '--once']) == 2
    error = capsys.readouterr().err
    assert f'({missing}) is not installed : pip install' in error and error.count('\n') == 1
