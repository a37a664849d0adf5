"""Camera, detector and tracker: pipeline_node beside a player, over real topics.

The detector's network always gives the box where the object of the first image is; everything
from the image to the pose is real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
import rclpy
from geometry_msgs.msg import PoseStamped
from played_rig import render_scene, write_finder
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, String

from foundationpose_trt.ros.conversions import pose_matrix, stamp_ns
from foundationpose_trt.ros.dds import use_shared_memory_profile
from foundationpose_trt.scenes.metrics import rotation_error_rad, translation_error_m

pytestmark = pytest.mark.ros
FRAMES, RATE_HZ, TIMEOUT_S = 30, 5.0, 240.0
QOS = QoSProfile(depth=100)


class Listener:
    """Notes what the nodes publish."""

    def __init__(self):
        self.node = rclpy.create_node('listener')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.truth, self.heard = {}, {}
        self._listen(PoseStamped, 'ground_truth/pose', self._on_truth)
        for kind, topic in (
            (PoseStamped, 'pose'), (String, 'outcome'), (String, 'detector_outcome'),
            (Image, 'segmentation'), (Float32, 'latency/detector_ms'),
        ):  # fmt: skip
            self.heard[topic] = []
            self._listen(kind, topic, self.heard[topic].append)

    def _listen(self, kind, topic, callback):
        self.node.create_subscription(kind, topic, callback, QOS)

    def _on_truth(self, message):
        self.truth[stamp_ns(message.header.stamp)] = pose_matrix(message.pose)

    def spin_until(self, holds, timeout_s):
        end_s = time.monotonic() + timeout_s
        while not holds() and time.monotonic() < end_s:
            self.executor.spin_once(timeout_sec=0.1)


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    return render_scene(tmp_path_factory.mktemp('pipeline') / 'scene', FRAMES, 0.3)


@pytest.fixture(scope='module')
def model(scene, tmp_path_factory):
    return write_finder(scene, tmp_path_factory.mktemp('model') / 'm')


def start(module, log, *arguments):
    command = [sys.executable, '-m', f'foundationpose_trt.ros.{module}', *arguments]
    with log.open('wb') as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


@pytest.fixture(scope='module')
def run(scene, model, tmp_path_factory):
    logs = tmp_path_factory.mktemp('logs')
    os.environ['ROS_LOG_DIR'] = str(logs)
    use_shared_memory_profile()
    rclpy.init()
    listener = Listener()
    pipeline = start(
        'pipeline_node', logs / 'pipeline.log', '--detector', '-p', f'model:={model}',
        '-p', 'objects:=[can]', '--tracker', '-p', 'mask_label:=1', '-p', 'mesh_scale:=0.001',
        '-p', f'mesh_file_path:={scene}/models/obj_000001.ply', '--ros-args', '-p', 'device:=cpu',
    )  # fmt: skip
    player = start(
        'player_node', logs / 'player.log', '--ros-args', '-r', 'segmentation:=true_segmentation',
        '-p', f'scene:={scene}', '-p', f'rate_hz:={RATE_HZ}', '-p', 'wait_for_state:=TRACKING',
        '-p', f'wait_timeout_s:={TIMEOUT_S}',
    )  # fmt: skip
    try:
        both = (player, pipeline)
        listener.spin_until(lambda: any(p.poll() is not None for p in both), TIMEOUT_S)
        listener.spin_until(lambda: False, 1.0)
        assert player.poll() == 0, (logs / 'player.log').read_text()
        pipeline.send_signal(signal.SIGINT)
        listener.status = pipeline.wait(20)
        listener.log = (logs / 'pipeline.log').read_text()
        yield listener
    finally:
        for process in (pipeline, player):
            process.kill()
            process.wait()
        listener.node.destroy_node()
        rclpy.try_shutdown()


def test_the_pose_of_a_detected_object_agrees_with_the_truth(run):
    poses = run.heard['pose']
    assert len(poses) >= 15, run.log
    errors = [
        (np.degrees(rotation_error_rad(pose, truth)), 1e3 * translation_error_m(pose, truth))
        for message in poses
        for pose, truth in [(pose_matrix(message.pose), run.truth[stamp_ns(message.header.stamp)])]
    ]
    degrees, millimetres = np.median(errors, axis=0)
    assert degrees < 4.0 and millimetres < 8.0, errors


def test_the_detector_looks_at_images_while_the_tracker_tracks(run):
    outcomes = {message.data for message in run.heard['detector_outcome']}
    assert outcomes == {'OK'} and len(run.heard['detector_outcome']) >= FRAMES
    stamps = [stamp_ns(message.header.stamp) for message in run.heard['segmentation']]
    assert stamps == sorted(set(stamps))
    seen = [stamp for stamp in stamps if stamp >= min(run.truth)]  # before: not yet discovered
    assert len(seen) >= FRAMES and set(seen) <= set(run.truth)
    assert min(message.data for message in run.heard['latency/detector_ms']) > 0


def test_the_segmentation_is_the_near_part_of_the_box(run):
    message = run.heard['segmentation'][0]
    labels = np.frombuffer(message.data, np.uint8)
    assert set(np.unique(labels)) == {0, 1}


def test_both_nodes_end_cleanly(run):
    assert run.status == 0 and 'Traceback' not in run.log, run.log
    assert run.log.count('frames by outcome') == 2
    assert 'unknown' not in run.log


def test_a_pipeline_without_a_mesh_ends_with_status_2(model, tmp_path):
    process = start(
        'pipeline_node', tmp_path / 'log', '--detector', '-p', f'model:={model}', '--tracker',
        '--ros-args', '-p', 'device:=cpu', '-p', 'exit_on_failure:=true',
    )  # fmt: skip
    assert process.wait(60) == 2
    text = (tmp_path / 'log').read_text()
    assert 'mesh_file_path is empty' in text and 'Traceback' not in text


@pytest.mark.parametrize('words', [['--tracker'], ['--tracker', '--ros-args']])
def test_a_parameter_file_that_is_not_there_is_status_2(tmp_path, words):
    process = start('pipeline_node', tmp_path / 'log', *words, '--params-file', '/no/such.yaml')
    assert process.wait(60) == 2
    text = (tmp_path / 'log').read_text()
    assert 'cannot start' in text and '/no/such.yaml' in text and 'Traceback' not in text
