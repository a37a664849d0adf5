"""The demo around its nodes: reading the recording, the figures, the processes, the scene."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
import yaml
from played_rig import render_scene, write_finder

from foundationpose_trt.detection.manifest import SHIPPED, detector_folder
from foundationpose_trt.pose.mesh import build_mesh
from foundationpose_trt.tools import demo, demo_report
from foundationpose_trt.tools.demo_processes import Nodes, parameter_text, private_environment
from foundationpose_trt.tools.demo_recording import DemoFailed, Recording, RecordingFollower

MS = 1_000_000
SUMMARY_KEYS = {
    'frames', 'tracked', 'dropped', 'lost', 'add_s_auc', 'rotation_deg_median',
    'translation_mm_median', 'track_hz', 'latency_ms',
}  # fmt: skip


def moved(x_m=0.0):
    pose = np.eye(4)
    pose[:3, 3] = [x_m, 0.0, 0.5]
    return pose.tolist()


def recording_of(lines):
    recording = Recording()
    for topic, content in lines:
        recording.add({'topic': topic, **content})
    return recording


def one_run():
    """Registered on a standing image (age 9 s), then five images: 10, 20 and 30 mm off, one
    dropped, one failed."""
    lines = [('ground_truth/pose', {'stamp_ns': 0, 'matrix': moved()})]
    lines += [('outcome', {'data': 'NO_MASK'}), ('outcome', {'data': 'OK'})]
    lines += [('pose', {'stamp_ns': 0, 'received_ns': 9000 * MS, 'matrix': moved()})]
    lines += [('latency/publish_ms', {'data': 1.0}), ('latency/age_ms', {'data': 9000.0})]
    lines += [('latency/register_ms', {'data': 4000.0})]
    lines += [
        ('state', {'data': 'SEARCHING: STARTED'}),
        ('state', {'data': 'TRACKING: REGISTERED'}),
    ]
    for k in range(1, 6):
        lines.append(('ground_truth/pose', {'stamp_ns': k * 100 * MS, 'matrix': moved()}))
    for k, outcome in ((1, 'OK'), (2, 'OK'), (4, 'LOW_QUALITY'), (5, 'OK')):
        lines += [('outcome', {'data': outcome}), ('latency/track_ms', {'data': 50.0 + k})]
        if outcome == 'OK':
            pose = {'stamp_ns': k * 100 * MS, 'received_ns': (9000 + k * 100) * MS}
            lines.append(('pose', {**pose, 'matrix': moved(0.01 * (k if k < 3 else 3))}))
            lines.append(('latency/age_ms', {'data': 60.0 + k}))
            lines.append(('latency/publish_ms', {'data': 1.0}))
    lines += [
        ('state', {'data': 'LOST: LOW_SUPPORT'}),
        ('state', {'data': 'TRACKING: REGISTERED'}),
    ]
    return recording_of(lines)


def test_the_end_of_the_images_is_no_loss():
    def said(word, seconds):
        return 'state', {'data': word, 'received_ns': seconds * 1000 * MS}

    end = ('player/event', {'data': 'finished', 'received_ns': 10_000 * MS})
    lines = [said('LOST: LOW_SUPPORT', 4), said('LOST: TIMEOUT', 8), end]
    assert recording_of(lines).losses() == 2
    assert recording_of([*lines, said('LOST: TIMEOUT', 11)]).losses() == 2
    assert recording_of([*lines, said('LOST: LOW_SUPPORT', 11)]).losses() == 3


@pytest.fixture(scope='module')
def box():
    return build_mesh('box', trimesh.creation.box([0.1, 0.1, 0.1]))


SCENE = SimpleNamespace(frame_ids=[10, 11, 12, 13, 14])


def test_summary_of_a_run_counted_by_hand(box):
    recording = one_run()
    frames = demo_report.played_frames(recording, SCENE, box)
    assert [f.frame_id for f in frames if f.pose] == [10, 11, 14]
    summary = demo_report.summarize(recording, frames, box.diameter_m)
    assert set(summary) == SUMMARY_KEYS
    counts = [summary[key] for key in ('frames', 'tracked', 'dropped', 'lost')]
    assert counts == [5, 3, 1, 1]
    assert summary['translation_mm_median'] == pytest.approx(20.0)
    assert summary['rotation_deg_median'] == pytest.approx(0.0, abs=1e-6)
    # poses at 0.1, 0.2 and 0.5 s: two intervals in 0.4 s
    assert summary['track_hz'] == pytest.approx(5.0)
    # ADD-S is at most the shift; a failed frame counts as infinite: at most 3/4 of the area
    assert 60.0 < summary['add_s_auc'] < 75.0
    assert summary['latency_ms']['age']['max'] == 65.0, 'the standing image does not count'
    assert summary['latency_ms']['register'] == {'p50': 4000.0, 'p95': 4000.0, 'max': 4000.0}
    assert summary['latency_ms']['track']['p50'] == pytest.approx(53.0)


def test_no_pose_of_a_played_image_is_a_failure(box):
    lines = [('ground_truth/pose', {'stamp_ns': k, 'matrix': moved()}) for k in range(5)]
    with pytest.raises(DemoFailed, match='0 poses came, none with the stamp of a played image'):
        demo_report.played_frames(recording_of(lines), SCENE, box)
    with pytest.raises(DemoFailed, match='4 of 5 true poses were recorded'):
        demo_report.played_frames(recording_of(lines[1:]), SCENE, box)


def test_follower_reads_whole_lines_only(tmp_path):
    path = tmp_path / 'recording.jsonl'
    follower = RecordingFollower(path)
    assert follower.new_lines() == []
    with path.open('w') as file:
        for text, expected in (
            ('{"a": 1}\n{"b"', [{'a': 1}]),
            (': 2}', []),
            ('\n{"c": 3}\n', [{'b': 2}, {'c': 3}]),
            ('', []),
        ):
            file.write(text)
            file.flush()
            assert follower.new_lines() == expected


@pytest.mark.parametrize('value', [1, 2.5, True, 'small', '12', 'on', "it's", '/a b/c', ''])
def test_parameters_survive_yaml(value):
    assert yaml.safe_load(parameter_text(value)) == value


def test_nodes_get_a_domain_of_their_own_on_this_host_only(tmp_path):
    env = private_environment({'PATH': '/bin', 'ROS_DOMAIN_ID': '0'}, tmp_path)
    assert 1 <= int(env['ROS_DOMAIN_ID']) <= 101 and env['PATH'] == '/bin'
    assert env['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert 'ROS_LOCALHOST_ONLY' not in env
    humble = private_environment({'ROS_DISTRO': 'humble'}, tmp_path)
    assert humble['ROS_LOCALHOST_ONLY'] == '1'


def wait_for(holds, seconds=20.0):
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s, 'waited in vain'
        time.sleep(0.05)


@pytest.mark.ros
def test_nodes_end_in_order_and_failures_show_their_log(tmp_path):
    nodes = Nodes(tmp_path)
    try:
        nodes.start('recorder_node', {'output': str(tmp_path / 'r.jsonl')})
        wait_for((tmp_path / 'r.jsonl').exists)
        assert not nodes.ended('recorder_node')
        nodes.stop('recorder_node')
        assert nodes.ended('recorder_node')
        nodes.start('recorder_node', {'output': ''})
        with pytest.raises(
            DemoFailed, match='(?s)recorder_node ended with status 2.*output is empty'
        ):
            wait_for(lambda: nodes.ended('recorder_node'))
    finally:
        nodes.end_all()


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.ros
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_no_node_outlives_a_demo_that_is_killed(tmp_path, number):
    if number is signal.SIGKILL and shutil.which('setpriv') is None:
        pytest.skip('setpriv (util-linux) is not installed')
    program = textwrap.dedent(f"""
        import pathlib, time
        from foundationpose_trt.tools.demo_processes import running_nodes
        folder = pathlib.Path({str(tmp_path)!r})
        with running_nodes(folder) as nodes:
            nodes.start('recorder_node', {{'output': str(folder / 'r.jsonl')}})
            while not (folder / 'r.jsonl').exists():
                time.sleep(0.05)
            print(nodes._processes['recorder_node'].pid, flush=True)
            time.sleep(60)
    """)
    parent = subprocess.Popen(
        [sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        child = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(20)
        wait_for(lambda: not running(child))
    finally:
        parent.kill()


def options(tmp_path, **changes):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    parsed = parser.parse_args(['--output', str(tmp_path / 'out'), '--frames', '3'])
    for name, value in changes.items():
        setattr(parsed, name, value)
    return parsed


@pytest.fixture
def rendered(monkeypatch):
    """Lengths of the scenes rendered so far, which hold empty files."""
    lengths = []

    def render(parsed):
        lengths.append(parsed.frames)
        (parsed.out / 'rgb').mkdir(parents=True)
        (parsed.out / 'depth').mkdir()
        cameras = {}
        for k in range(parsed.frames):
            for kind in ('rgb', 'depth'):
                (parsed.out / kind / f'{k:06d}.png').touch()
            cameras[str(k)] = {'cam_K': [9.0, 0, 1, 0, 9, 1, 0, 0, 1], 'depth_scale': 1.0}
        (parsed.out / 'scene_camera.json').write_text(json.dumps(cameras))

    monkeypatch.setattr(demo.make_scene, 'run', render)
    return lengths


def test_scene_is_rendered_once_and_again_for_another_length(tmp_path, rendered):
    (tmp_path / '.scene.rendering' / 'rgb').mkdir(parents=True)
    for frames in (3, 3, 5):
        assert demo.rendered_scene(tmp_path / 'scene', frames) == tmp_path / 'scene'
        assert len(list((tmp_path / 'scene' / 'rgb').iterdir())) == frames
    assert rendered == [3, 5]
    assert [path.name for path in tmp_path.iterdir()] == ['scene']


def test_a_scene_that_the_demo_did_not_render_stays(tmp_path, rendered):
    folder = demo.rendered_scene(tmp_path / 'scene', 3)
    (folder / demo.OWN_SCENE).unlink()
    before = sorted(folder.rglob('*'))
    for frames in (3, 5):
        with pytest.raises(
            ValueError, match='scene is there without the mark .* give another --ou'
        ):
            demo.rendered_scene(folder, frames)
    assert sorted(folder.rglob('*')) == before and rendered == [3]


@pytest.mark.parametrize(
    ('changes', 'words'), [({'rate': 0.0}, '--rate is 0.0 Hz'), ({'scene': 'absent'}, 'absent')]
)
def test_bad_options_are_refused_before_anything_starts(tmp_path, changes, words):
    with pytest.raises((ValueError, OSError), match=words):
        demo.run(options(tmp_path, **changes))


def test_without_ros_the_demo_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='rclpy') as caught:
        demo.run(options(tmp_path))
    assert caught.value.name == 'rclpy'


@pytest.fixture(scope='module')
def small_scene(tmp_path_factory):
    """Twenty frames that hardly move."""
    return render_scene(tmp_path_factory.mktemp('demo') / 'scene', 20, 0.3)


@pytest.fixture(scope='module')
def detector(small_scene, tmp_path_factory):
    return write_finder(small_scene, tmp_path_factory.mktemp('model') / 'm')


def test_frames_without_true_pose_are_counted_and_refused(small_scene, tmp_path):
    folder = shutil.copytree(small_scene, tmp_path / 'scene')
    truths = json.loads((folder / 'scene_gt.json').read_text())
    truths['3'], _ = [], truths.pop('7')
    (folder / 'scene_gt.json').write_text(json.dumps(truths))
    with pytest.raises(ValueError, match=r': 2 frames have no true pose .* the first .*\[3\]'):
        demo.choose_scenario(options(tmp_path, scene=folder))


def test_true_masks_are_needed_only_without_a_detector(detector, small_scene, tmp_path):
    folder = shutil.copytree(small_scene, tmp_path / 'scene')
    shutil.rmtree(folder / 'mask_visib')
    found = demo.choose_scenario(options(tmp_path, scene=folder, detector=str(detector)))
    assert (found.scene.folder, found.detector) == (folder, detector)
    with pytest.raises(ValueError, match='frame 0 has no mask of object'):
        demo.choose_scenario(options(tmp_path, scene=folder))


@pytest.mark.parametrize(
    ('asked', 'scene', 'folder'),
    [
        (None, None, detector_folder(SHIPPED)),
        (None, 'scene', None),
        ('none', None, None),
        (SHIPPED, 'scene', detector_folder(SHIPPED)),
        ('/own', None, Path('/own')),
    ],
)
def test_the_shipped_detector_finds_what_is_rendered_here(tmp_path, asked, scene, folder):
    given = options(tmp_path, detector=asked, scene=scene and tmp_path / scene)
    assert demo.chosen_detector(given) == folder


@pytest.mark.parametrize(
    ('device', 'on_cuda', 'served_by', 'chosen'),
    [
        ('cpu', True, 'tensorrt', {'device': 'cpu'}),
        ('auto', False, 'tensorrt', {'device': 'cpu'}),
        ('auto', True, '', {'device': 'cpu'}),
        ('cuda', True, 'tensorrt', {'device': 'cuda', 'build_engines': True}),
        ('auto', True, 'torchscript', {'device': 'auto', 'build_engines': False}),
    ],
)
def test_the_detector_runs_where_it_can(device, on_cuda, served_by, chosen, monkeypatch, capsys):
    def serving(folder, where, choice):
        if where == 'cuda' and not served_by:
            raise ValueError('no TensorRT here')
        return served_by if where == 'cuda' else 'onnxruntime'

    monkeypatch.setattr(demo.torch.cuda, 'is_available', lambda: on_cuda)
    monkeypatch.setattr(demo, 'serving_backend', serving)
    assert demo.detector_device(detector_folder(SHIPPED), device) == chosen
    assert ('on the CPU: no TensorRT here' in capsys.readouterr().out) == (not served_by)


def test_a_detector_that_nothing_runs_is_refused(monkeypatch):
    def refuse(*_):
        raise ValueError('pip install onnx onnxruntime to run its ONNX file')

    monkeypatch.setattr(demo, 'serving_backend', refuse)
    with pytest.raises(ValueError, match='to run its ONNX file'):
        demo.detector_device(detector_folder(SHIPPED), 'cpu')


@pytest.mark.parametrize(
    ('detector_at', 'name', 'words'),
    [
        (None, 'can', '--class is for a --detector'),
        ('m', 'cow', r'--class cow: .* knows .*can'),
        ('nowhere', None, 'holds no detector.json'),
    ],
)
def test_a_detector_must_know_the_object(
    detector, small_scene, tmp_path, detector_at, name, words
):
    folder = None if detector_at is None else str(detector.with_name(detector_at))
    with pytest.raises(ValueError, match=words):
        demo.run(options(tmp_path, detector=folder, found_class=name, scene=small_scene))


@pytest.mark.ros
def test_the_object_is_found_by_a_detector(detector, small_scene, tmp_path):
    parsed = options(
        tmp_path,
        detector=str(detector),
        found_class='can',
        scene=small_scene,
        rate=5.0,
        device='cpu',
    )
    assert demo.run(parsed) == 0
    summary = json.loads((parsed.output / 'summary.json').read_text())
    assert summary['frames'] == 20 and summary['tracked'] >= 10
    assert summary['rotation_deg_median'] < 4.0 and summary['translation_mm_median'] < 8.0
    assert summary['latency_ms']['detector']['p50'] > 0
    logs = parsed.output / 'logs'
    assert not (logs / 'tracker_node.log').exists()
    assert 'frames by outcome' in (logs / 'pipeline_node.log').read_text()
