"""monitor as a command beside real publishers, over DDS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
pytest.importorskip('diagnostic_msgs', reason='diagnostic_msgs is not installed')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_contexts import begin_context, end_context
from std_msgs.msg import String

pytestmark = pytest.mark.ros
QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
PERIOD_S, TIMEOUT_S = 1.0, 90.0
WAIT = ('--wait', '40')  # ends before that, once all were heard


class Fleet:
    """Nodes that report each second as ours do, until the block ends."""

    def __init__(self):
        self._context = begin_context()
        self._executor = SingleThreadedExecutor(context=self._context)
        self.nodes = []

    def node(self, name, namespace=''):
        node = Node(name, namespace=namespace, context=self._context)
        self._executor.add_node(node)
        self.nodes.append(node)
        return node

    def reporter(self, name, namespace, level=DiagnosticStatus.OK, speaks=True):
        """Add a node with one stage; p50 is the number of its node, so that each can be told."""
        node = self.node(name, namespace)
        publisher = node.create_publisher(DiagnosticArray, 'latency/summary', QOS)
        full, p50_ms = f'{namespace}/{name}', str(float(len(self.nodes)))
        values = {'p50_ms': p50_ms, 'p95_ms': '40.5', 'count': '9', 'budget_ms': '33'}

        def report():
            array = DiagnosticArray()
            array.header.stamp.sec, array.header.stamp.nanosec = 1234, 500_000_000
            array.status = [
                DiagnosticStatus(
                    name=f'{full}: latency track_ms', level=level, message='as told',
                    values=[KeyValue(key=key, value=value) for key, value in values.items()],
                ),
                DiagnosticStatus(
                    name=f'{full}: flow', values=[KeyValue(key='dropped_busy', value='4')]
                ),
            ]  # fmt: skip
            publisher.publish(array)

        if speaks:
            node.create_timer(PERIOD_S, report)

    def spin(self, done):
        while not done.is_set():
            self._executor.spin_once(timeout_sec=0.1)
        for node in self.nodes:
            node.destroy_node()
        self._executor.shutdown()
        end_context(self._context)


@contextmanager
def fleet(*reporters):
    """Run reporters, given as arguments of Fleet.reporter or functions of a Fleet."""
    ours = Fleet()
    for one in reporters:
        one(ours) if callable(one) else ours.reporter(*one)
    done = threading.Event()
    thread = threading.Thread(target=ours.spin, args=(done,))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)


def command(*words):
    return [sys.executable, '-m', 'foundationpose_trt', 'monitor', *words]


def run(*words, **environment):
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **environment},
    )


def bystanders(ours):
    """Add topics that only look like summaries."""
    node = ours.node('bystander', '/c')
    node.create_publisher(String, 'latency/summary', QOS)
    node.create_publisher(DiagnosticArray, '/diagnostics', QOS)
    node.create_publisher(DiagnosticArray, 'mylatency/summary', QOS)


def test_once_finds_every_node_of_every_namespace():
    nodes = [('tracker_node', '/a'), ('detector_node', '/a'), ('tracker_node', '/b/c')]
    with fleet(*nodes, bystanders):
        everywhere = run('--once', '--json', *WAIT)
        inside = run('--once', '--namespace', 'b', *WAIT)
    assert everywhere.returncode == 0, everywhere.stderr
    document = json.loads(everywhere.stdout)
    found = document['nodes']
    assert {name: node['stages']['track_ms']['p50_ms'] for name, node in found.items()} == {
        '/a/tracker_node': 1.0, '/a/detector_node': 2.0, '/b/c/tracker_node': 3.0,
    }  # fmt: skip
    assert document['budgets_held'] is True and document['unheard'] == []
    detector = found['/a/detector_node']
    assert detector['topic'] == '/a/latency/summary' and detector['stamp_s'] == 1234.5
    assert detector['flow']['dropped'] == {'busy': 4} and detector['on_graph'] is True
    assert detector['stages']['track_ms'] == {
        'level': 'OK', 'message': 'as told', 'p50_ms': 2.0, 'p95_ms': 40.5, 'p99_ms': None,
        'max_ms': None, 'count': 9, 'budget_ms': 33.0,
    }  # fmt: skip
    assert inside.returncode == 0, inside.stderr
    assert '/b/c/tracker_node' in inside.stdout and '/a/' not in inside.stdout


def test_a_broken_budget_is_status_1_recorded_and_drawn(tmp_path):
    record, plot = tmp_path / 'run.csv', tmp_path / 'run.png'
    with fleet(('tracker_node', '/a'), ('tracker_node', '/b', DiagnosticStatus.WARN)):
        result = run('--seconds', '7', '--record', str(record), '--plot', str(plot))
    assert result.returncode == 1, result.stderr
    assert '/b/tracker_node track_ms: WARN' in result.stdout
    assert '/a/tracker_node track_ms: ' not in result.stdout
    rows = [line.split(',') for line in record.read_text().splitlines()[1:]]
    levels = {(row[0], row[1], row[2], row[-1]) for row in rows}
    assert levels == {
        ('1234.500', '/a/tracker_node', 'track_ms', 'OK'),
        ('1234.500', '/b/tracker_node', 'track_ms', 'WARN'),
    }
    assert 2 <= len(rows) <= 16, 'a row for each node and second, less the discovery'
    assert plot.read_bytes().startswith(b'\x89PNG')


def test_nothing_found_is_status_2_and_says_where():
    namespace = f'/nobody_{os.getpid()}'
    result = run('--once', '--json', '--wait', '1', '--namespace', namespace, ROS_DOMAIN_ID='101')
    assert result.returncode == 2 and not result.stdout
    assert 'no node found' in result.stderr and result.stderr.count('\n') == 1
    assert f'namespace {namespace}, ROS_DOMAIN_ID 101' in result.stderr


def test_an_announced_node_that_says_nothing_is_status_2():
    nodes = [('tracker_node', '/a'), ('hung_node', '/a', DiagnosticStatus.OK, False)]
    with fleet(*nodes):
        result = run('--once', '--json', '--wait', '5')
    assert result.returncode == 2
    assert 'never heard: /a/hung_node' in result.stderr
    assert json.loads(result.stdout)['unheard'] == ['/a/hung_node']


def children_of(pid):
    return Path(f'/proc/{pid}/task/{pid}/children').read_text().split()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_live_view_and_its_node(number, tmp_path):
    record = tmp_path / 'run.csv'
    with fleet(('tracker_node', '/a')):
        process = subprocess.Popen(
            command('--record', str(record)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end_s = time.monotonic() + TIMEOUT_S
        while not (record.exists() and record.read_text().count('\n') > 1):
            assert process.poll() is None and time.monotonic() < end_s
            time.sleep(0.1)
        (child,) = children_of(process.pid)
        assert 'monitor_node' in Path(f'/proc/{child}/cmdline').read_text()
        process.send_signal(number)
        output, error = process.communicate(timeout=20)
    assert process.returncode == 0 and not error
    assert '/a/tracker_node' in output and '1.00' in output
    assert not Path(f'/proc/{child}').exists()


def test_a_node_that_cannot_start_is_told_in_one_line():
    result = run('--once', RMW_IMPLEMENTATION='rmw_of_nowhere')
    assert result.returncode == 2
    assert result.stderr.startswith('foundationpose-trt: error: foundationpose_trt.ros.monitor')
    assert 'ended with status' in result.stderr and result.stderr.count('\n') == 1


def test_the_node_ends_when_nobody_reads_it_any_more():
    node = [sys.executable, '-m', 'foundationpose_trt.ros.monitor_node']
    with fleet(('tracker_node', '/a')):
        process = subprocess.Popen(node, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert 'graph' in json.loads(process.stdout.readline())
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(TIMEOUT_S) == 0 and 'Traceback' not in error
        assert 'BrokenPipe' not in error
