"""`foundationpose-trt demo`: a camera and the tracker as ROS 2 processes, judged at the end."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..datatypes import require
from ..detection.backends import serving_backend
from ..detection.manifest import SHIPPED, detector_folder, read_manifest
from ..pose.mesh import load_mesh
from ..runtime.choice import TENSORRT, BackendChoice
from ..scenes.bop import BopScene
from . import demo_report, make_scene, report
from .demo_processes import Nodes, parameter_words, running_nodes
from .demo_recording import DemoFailed, Recording, RecordingFollower

HELP = 'play a rendered scene over ROS 2, register and track its object, report the errors'
FAILED = 1
DETECTING, TRACKING = 'pipeline_node', 'tracker_node'  # what tracks, with and without a detector
OWN_SCENE = '.rendered_by_demo'  # in a scene that may be replaced
POLL_S = 0.2
LOOKING_HZ = 2.0  # of the detector: a CPU has to track as well
# F1 of the detector that ships is highest, and the same, from 0.35 to 0.45 (`evaluate-detector
# --first-stage 200`, views that no other figure is reported of): the one that misses least, since
# the tracker refuses what it registers from a wrong mask
DETECTOR_THRESHOLD = 0.35
START_TIMEOUT_S = 480.0  # imports, warm-up, perhaps an engine; registration on two busy cores
STALL_TIMEOUT_S = 30.0  # while playing, something arrives many times a second


@dataclass(frozen=True)
class Scenario:
    """What is played and tracked."""

    scene: BopScene
    object_id: int
    mesh_scale: float
    rate_hz: float
    weights: str
    device: str
    detector: Path | None = None
    found_class: str = ''

    @property
    def tracker(self) -> str:
        """The node that tracks."""
        return TRACKING if self.detector is None else DETECTING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        '--scene', type=Path, metavar='DIR', help='a BOP scene; default: one is rendered once'
    )
    parser.add_argument('--object', type=int, metavar='ID', help='default: the first of the scene')
    parser.add_argument(
        '--scale', type=float, default=0.001, help='metres per unit of the model (0.001: mm)'
    )
    parser.add_argument(
        '--frames', type=int, default=150, help='length of the rendered scene (default 150)'
    )
    parser.add_argument('--rate', type=float, default=10.0, metavar='HZ', help='images per second')
    parser.add_argument('--weights', default='small', metavar='NAME|DIR', help='default: small')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda'])
    parser.add_argument(
        '--detector', metavar='NAME|DIR|none',
        help=f"the detector that finds the object; none: the scene's true masks do; default:"
        f' {SHIPPED}, which knows what is rendered here, none with a --scene',
    )  # fmt: skip
    parser.add_argument(
        '--class', dest='found_class', metavar='NAME',
        help="what the detector calls the object; default: its first class",
    )  # fmt: skip
    parser.add_argument(
        '--output', type=Path, default=Path('demo_output'), metavar='DIR',
        help='gets overlay.mp4, latency.png, summary.json, logs and the rendered scene',
    )  # fmt: skip
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the summary here as well')


def run(options: argparse.Namespace) -> int:
    """Run the demo; 0 when the object was found and followed."""
    require(options.rate > 0, f'--rate is {options.rate} Hz, must be positive')
    if importlib.util.find_spec('rclpy') is None:
        raise ModuleNotFoundError('ROS 2 (rclpy) is not installed', name='rclpy')
    options.output.mkdir(parents=True, exist_ok=True)
    scenario = choose_scenario(options)
    try:
        summary = play_and_judge(options, scenario)
    except DemoFailed as error:
        print(f'demo failed: {error}', file=sys.stderr)
        return FAILED
    demo_report.print_summary(summary)
    print(f'written: {options.output}/overlay.mp4, latency.png, summary.json')
    return 0


def play_and_judge(options: argparse.Namespace, scenario: Scenario) -> dict[str, Any]:
    """Run the processes and write the results; raises DemoFailed when there are none."""
    recording = Recording()
    path = options.output / 'recording.jsonl'
    try:
        with running_nodes(options.output / 'logs') as nodes:
            start(nodes, scenario, path)
            follow(nodes, scenario, path, recording)
    except DemoFailed as error:
        outcomes = dict(Counter(recording.data('outcome')))
        raise DemoFailed(f'{error}\nframes by outcome: {outcomes or "none processed"}') from error
    return write_results(options, scenario, recording)


def choose_scenario(options: argparse.Namespace) -> Scenario:
    """Open the scene, rendering it first where none is given; refuses one without truth."""
    folder = options.scene or rendered_scene(options.output / 'scene', options.frames)
    scene = BopScene.open(folder)
    object_id = options.object if options.object is not None else min(scene.object_ids, default=0)
    detector = chosen_detector(options)
    _require_truth(scene, object_id, with_mask=detector is None)
    scene.model_path(object_id)
    return Scenario(
        scene, object_id, options.scale, options.rate, options.weights, options.device, detector,
        detected_class(detector, options.found_class),
    )  # fmt: skip


def _require_truth(scene: BopScene, object_id: int, with_mask: bool) -> None:
    """Refuse a scene without the poses that are judged against, or the mask to begin from."""
    first, known = scene.frame_ids[0], f'(objects: {scene.object_ids})'
    require(
        not with_mask or scene.mask(first, object_id) is not None,
        f'{scene.folder}: frame {first} has no mask of object {object_id} {known};'
        ' registration needs one on the first frame',
    )
    without = [i for i in scene.frame_ids if scene.camera_from_object(i, object_id) is None]
    require(
        not without,
        f'{scene.folder}: {len(without)} frames have no true pose of object {object_id} {known},'
        f' the first of them {without[:1]}: the demo judges every frame; replay tracks without',
    )


def chosen_detector(options: argparse.Namespace) -> Path | None:
    """Return the detector's folder, None where the true masks serve."""
    asked = options.detector or ('none' if options.scene else SHIPPED)
    return None if asked == 'none' else detector_folder(asked)


def detected_class(detector: Path | None, asked: str | None) -> str:
    """Return what the detector calls the object, '' without one; refuses what it does not know."""
    if detector is None:
        require(asked is None, '--class is for a --detector: give one')
        return ''
    classes = read_manifest(detector).class_names
    name = asked or classes[0]
    require(name in classes, f'--class {name}: {detector} knows {", ".join(classes)}')
    return name


def rendered_scene(folder: Path, frames: int) -> Path:
    """Return a rendered scene of this length, making it unless an earlier run did."""
    is_own = (folder / OWN_SCENE).exists()
    if is_own and len(BopScene.open(folder).frame_ids) == frames:
        return folder
    require(
        is_own or not folder.exists(),
        f'{folder} is there without the mark {OWN_SCENE} of what the demo rendered, so it stays:'
        ' give another --output, name a scene of your own by --scene, or delete it (before'
        ' 2026-11-26 the demo left no mark)',
    )
    # a scene under its final name is complete, also after Ctrl-C, and so is the one before it
    partial = folder.with_name(f'.{folder.name}.rendering')
    shutil.rmtree(partial, ignore_errors=True)
    if is_own:
        shutil.rmtree(folder.rename(partial))
    parser = argparse.ArgumentParser()
    make_scene.add_arguments(parser)
    make_scene.run(parser.parse_args([str(partial), '--frames', str(frames)]))
    (partial / OWN_SCENE).touch()
    return partial.rename(folder)


def start(nodes: Nodes, scenario: Scenario, recording_path: Path) -> None:
    """Start recorder, tracker and player; the player repeats its first image until TRACKING."""
    recording_path.unlink(missing_ok=True)
    nodes.start('recorder_node', {'output': str(recording_path)})
    nodes.start(scenario.tracker, *tracking(scenario))
    # with a detector the true masks are nobody's
    hidden = ('--ros-args', '-r', 'segmentation:=true_segmentation', '--')
    nodes.start(
        'player_node',
        {
            'scene': str(scenario.scene.folder),
            'object_id': scenario.object_id,
            'rate_hz': scenario.rate_hz,
            'wait_for_state': 'TRACKING',
            'wait_timeout_s': START_TIMEOUT_S,
            'start_subscribers': 1 if scenario.detector is None else 2,
            'max_images': len(scenario.scene.frame_ids),
        },
        () if scenario.detector is None else hidden,
    )


def tracking(scenario: Scenario) -> tuple[dict[str, Any], list[str]]:
    """Parameters and arguments of the node that tracks."""
    common = {'exit_on_failure': True}
    tracker = {
        'device': scenario.device,
        'mesh_file_path': str(scenario.scene.model_path(scenario.object_id)),
        'mesh_scale': scenario.mesh_scale,
        'weights': scenario.weights,
    }
    if scenario.detector is None:
        return {**tracker, **common}, []
    detector = {
        'model': str(scenario.detector),
        'objects': [scenario.found_class],
        'max_rate_hz': LOOKING_HZ,
        'confidence_threshold': DETECTOR_THRESHOLD,
        **detector_device(scenario.detector, scenario.device),
    }
    words = ['--detector', *parameter_words(detector)]
    return common, [*words, '--tracker', *parameter_words({**tracker, 'mask_label': 1})]


def detector_device(folder: Path, device: str) -> dict[str, Any]:
    """Parameters that run a detector on the GPU, its engine built if it must, or on the CPU.

    Raises ValueError where neither can.
    """
    read_manifest(folder)  # what is wrong with it is no reason to run elsewhere
    if device != 'cpu' and torch.cuda.is_available():
        try:
            backend = serving_backend(folder, 'cuda', BackendChoice(build=True))
            return {'device': device, 'build_engines': backend in TENSORRT}
        except ValueError as error:
            print(f'the detector runs on the CPU: {error}')
    serving_backend(folder, 'cpu', BackendChoice())
    return {'device': 'cpu'}


def follow(nodes: Nodes, scenario: Scenario, path: Path, recording: Recording) -> None:
    """Show progress until the recorder ends, then end the tracker.

    Raises DemoFailed when a node ends with an error or nothing moves any more.
    """
    reader = RecordingFollower(path)
    last_s = time.monotonic()
    with _progress(len(scenario.scene.frame_ids)) as bar:
        while not nodes.ended('recorder_node'):
            lines = reader.new_lines()
            for line in lines:
                recording.add(line)
            show(bar, recording, lines)
            if lines:
                last_s = time.monotonic()
            _require_alive(nodes, scenario.tracker, recording, time.monotonic() - last_s)
            time.sleep(POLL_S)
        for line in reader.new_lines():
            recording.add(line)
    nodes.stop(scenario.tracker)


@contextmanager
def _progress(total: int) -> Iterator[tqdm]:
    with tqdm(total=total, desc='starting', unit='frame') as bar:
        yield bar


def show(bar: tqdm, recording: Recording, lines: list[dict[str, Any]]) -> None:
    """Advance the bar by the images played and name the phase."""
    playing = recording.event('playing')
    phase = 'playing' if playing else 'registering' if recording.data('state') else 'starting'
    if bar.desc != f'{phase}: ':
        bar.set_description(phase)
    if playing:
        bar.update(sum(line['topic'] == 'ground_truth/pose' for line in lines))


def _require_alive(nodes: Nodes, tracker: str, recording: Recording, silent_s: float) -> None:
    for name in ('recorder_node', tracker, 'player_node'):
        if nodes.ended(name) and name == tracker:
            raise DemoFailed(f'{tracker} ended early; see {nodes.log_path(name)}')
    limit_s = STALL_TIMEOUT_S if recording.event('playing') else START_TIMEOUT_S
    if silent_s > limit_s:
        raise DemoFailed(
            f"nothing arrived for {silent_s:.0f} s; the end of the tracker's log:\n"
            + nodes.last_lines(tracker)
        )


def write_results(
    options: argparse.Namespace, scenario: Scenario, recording: Recording
) -> dict[str, Any]:
    """Write summary.json, latency.png and overlay.mp4; return the summary."""
    mesh = load_mesh(scenario.scene.model_path(scenario.object_id), scenario.mesh_scale)
    frames = demo_report.played_frames(recording, scenario.scene, mesh)
    summary = demo_report.summarize(recording, frames, mesh.diameter_m)
    for path in (options.output / 'summary.json', options.json):
        if path is not None:
            report.write_json(path, summary)
    demo_report.save_latency_plot(options.output / 'latency.png', recording, frames)
    demo_report.save_video(
        options.output / 'overlay.mp4', scenario.scene, frames, mesh, scenario.rate_hz
    )
    return summary
