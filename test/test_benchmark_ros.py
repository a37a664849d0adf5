"""`benchmark ros`: real processes for one case, and what the table and JSON say of it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from foundationpose_trt.ros.pattern_camera_node import restamped
from foundationpose_trt.tools import benchmark_ros, cli
from foundationpose_trt.tools.benchmark_ros import Case, cases, ros_tables, tracker_parameters

pytestmark = pytest.mark.ros


def test_every_size_is_measured_with_and_without_viewer_and_the_first_with_the_other_executor(
    monkeypatch,
):
    monkeypatch.setattr(benchmark_ros, 'has_events_executor', lambda: True)
    rows = cases([480, 720], [1, 4])
    assert len(rows) == 2 * 2 * 2 + 1 and rows[-1] == Case(480, 1, False, 'single')
    assert [(c.width, c.height) for c in rows[::4][:2]] == [(640, 480), (1280, 720)]
    monkeypatch.setattr(benchmark_ros, 'has_events_executor', lambda: False)
    assert len(cases([480], [1])) == 2


def test_several_objects_are_named_one_is_not():
    assert 'objects' not in tracker_parameters(Case(480, 1, True))
    assert tracker_parameters(Case(480, 2, True))['objects'] == ['object0', 'object1']


def test_overhead_is_measured_in_real_processes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_ros, 'cases', lambda heights, objects: [Case(480, 2, True)])
    path = tmp_path / 'ros.json'
    words = ['benchmark', 'ros', '--frames', '30', '--compute-ms', '100', '--json', str(path)]
    assert cli.main(words) == 0
    content = json.loads(path.read_text())
    (row,) = content['rows']
    assert (row['size'], row['objects'], row['viewed'], row['frames']) == ('640x480', 2, True, 30)
    # the 100 ms of compute, three periods of the camera, are no part of it
    assert 0 < row['overhead_ms']['p50'] < 100 and content['compute_ms'] == 100
    assert row['drops']['busy'] > 0, '30 Hz is more than 10 frames a second'
    assert '640x480' in capsys.readouterr().out


def test_impossible_options_are_refused(capsys):
    assert cli.main(['benchmark', 'ros', '--frames', '3']) == 2
    assert '--frames 3' in capsys.readouterr().err


def test_the_table_has_a_row_per_case():
    row = {
        'size': '640x480', 'objects': 1, 'viewed': False, 'executor': 'single', 'frames': 9,
        'overhead_ms': {'p50': 1.0, 'p90': 2.0, 'p99': 3.0, 'max': 4.0},
        'drops': {'busy': 2, 'stale': 1},
    }  # fmt: skip
    ((title, columns, rows),) = ros_tables({'rate_hz': 30.0, 'compute_ms': 5.0, 'rows': [row]})
    assert 'less compute (5 ms' in title and len(columns) == len(rows[0])
    assert rows == [['640x480', 1, 'no', 'single', 1.0, 2.0, 3.0, 4.0, 3]]


@pytest.mark.parametrize('kind', [Image, CameraInfo])
def test_a_serialised_message_gets_another_stamp_and_no_other_change(kind):
    message = kind(header=Header(stamp=Time(sec=1, nanosec=2), frame_id='optical'), height=3)
    sent = restamped(serialize_message(message), Time(sec=1_795_000_000, nanosec=999_999_999))
    message.header.stamp = Time(sec=1_795_000_000, nanosec=999_999_999)
    assert deserialize_message(sent, kind) == message
