"""`foundationpose-trt replay`: run the estimator over a BOP scene, without ROS."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ..datatypes import Frame, Outcome, PoseEstimate, TrackingState, require
from ..latency import StageTimes
from ..pose.estimator import PoseEstimator
from ..pose.mesh import ObjectMesh, load_mesh
from ..pose.tracker import ObjectTracker
from ..scenes.bop import BopScene
from ..scenes.metrics import PoseErrors, pose_errors, summarize_errors, surface_points
from . import report
from .estimator_options import add_estimator_arguments, chosen_estimator
from .overlay import check_video, draw_overlay, write_video

HELP = 'register or track an object over a BOP scene and compare with its ground truth'
VIDEO_RATE_HZ = 30.0


@dataclass(frozen=True)
class FrameRecord:
    """What happened to one frame; errors is None where the scene has no truth."""

    frame_id: int
    stage: str
    estimate: PoseEstimate
    latency_ms: float
    errors: PoseErrors | None


@dataclass(frozen=True)
class Replay:
    """One run over a scene."""

    records: list[FrameRecord]
    times: StageTimes
    warm_up_ms: float
    losses: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('scene', type=Path, metavar='SCENE', help='a BOP scene folder')
    parser.add_argument('--models', type=Path, metavar='DIR', help='default: SCENE/models')
    parser.add_argument('--object', type=int, metavar='ID', help='default: the only one there')
    parser.add_argument(
        '--mode',
        choices=['register', 'track'],
        default='track',
        help='register: every frame from its mask. track (default): the first frame from its mask,'
        ' then from frame to frame; a mask is used again only after a loss',
    )
    parser.add_argument(
        '--gt-init', action='store_true', help='start tracking from the true pose of frame one'
    )
    parser.add_argument(
        '--scale', type=float, default=0.001, help='metres per unit of the model (0.001: mm)'
    )
    parser.add_argument(
        '--frames', metavar='A:B', type=frame_range, default=(None, None),
        help='frame ids from A to before B; either may be left out',
    )  # fmt: skip
    parser.add_argument('--json', type=Path, metavar='FILE', help='write poses, errors and totals')
    parser.add_argument('--video', type=Path, metavar='FILE', help='write the poses drawn, as mp4')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='write errors and latency')
    add_estimator_arguments(parser)


def frame_range(text: str) -> tuple[int | None, int | None]:
    """Parse 'A:B', 'A:' or ':B'; raises argparse's error for anything else."""
    first, colon, end = text.partition(':')
    try:
        bounds = (int(first) if first else None, int(end) if end else None)
    except ValueError:
        colon = ''
    if not colon:
        raise argparse.ArgumentTypeError(f'"{text}" is no range A:B, e.g. 0:50 or 100:')
    return bounds


def run(options: argparse.Namespace) -> int:
    """Replay the scene, print the figures and write what was asked for."""
    require(
        not (options.gt_init and options.mode == 'register'),
        '--gt-init is for --mode track: registration starts from the mask alone',
    )
    if options.plot:
        report.check_plot(options.plot)
    if options.video:
        check_video(options.video)
    scene = BopScene.open(options.scene, options.models, options.frames)
    object_id = _object_id(scene, options.object)
    mesh = load_mesh(scene.model_path(object_id), options.scale)
    choice = chosen_estimator(options)
    estimator = choice.estimator(mesh)
    replay = replay_scene(scene, object_id, estimator, options.mode, options.gt_init)
    content = {
        'scene': str(options.scene),
        'object': object_id,
        'mode': options.mode,
        'weights': choice.weights,
        'device': choice.device,
        **replay_content(replay, mesh.diameter_m),
    }
    if options.json:
        report.write_json(options.json, content)
    if options.plot:
        report.save_plot(options.plot, _plot(replay, f'{options.scene.name}: {options.mode}'))
    if options.video:
        write_video(options.video, _overlays(scene, replay, mesh), VIDEO_RATE_HZ)
    _print(content, f'{options.scene.name}, object {object_id}: {options.mode}')
    return 0


def _object_id(scene: BopScene, wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    ids = scene.object_ids
    require(len(ids) == 1, f'{scene.folder} holds objects {ids}: choose one with --object ID')
    return ids[0]


def replay_scene(
    scene: BopScene, object_id: int, estimator: PoseEstimator, mode: str, gt_init: bool = False
) -> Replay:
    """Run register or track over the scene's frames.

    register leaves out frames in which the object is not annotated. Raises ValueError when there
    is nothing to start from.
    """
    times = StageTimes()
    points = surface_points(estimator.mesh)
    first = scene.frame(scene.frame_ids[0])
    start = time.perf_counter()
    estimator.warm_up(first.intrinsics)
    warm_up_ms = 1e3 * (time.perf_counter() - start)
    if mode == 'register':
        stepper: _Registering | _Tracking = _Registering(estimator)
        ids = [i for i in scene.frame_ids if scene.camera_from_object(i, object_id) is not None]
        require(bool(ids), f'{scene.folder}: scene_gt.json names object {object_id} in no frame')
    else:
        stepper, ids = _Tracking(estimator), scene.frame_ids
    _require_start(scene, object_id, ids, gt_init)
    known = scene.camera_from_object(ids[0], object_id) if gt_init else None
    if known is not None and isinstance(stepper, _Tracking):
        stepper.start_from(known)
    records = []
    for frame_id in tqdm(ids, mode, unit='frame'):
        with times.measure('read'):
            frame, mask = scene.frame(frame_id), scene.mask(frame_id, object_id)
        stage, estimate, elapsed_ms = stepper.step(frame, mask)
        if stage != 'idle':
            times.add(stage, elapsed_ms)
        truth = scene.camera_from_object(frame_id, object_id)
        errors = None if truth is None else pose_errors(points, estimate.camera_from_object, truth)
        records.append(FrameRecord(frame_id, stage, estimate, elapsed_ms, errors))
    return Replay(records, times, warm_up_ms, stepper.losses)


def _require_start(scene: BopScene, object_id: int, ids: list[int], gt_init: bool) -> None:
    """Refuse a scene that gives nothing to begin with, before minutes are spent on it."""
    if gt_init:
        require(
            scene.camera_from_object(ids[0], object_id) is not None,
            f'--gt-init: scene_gt.json has no pose of object {object_id} in frame {ids[0]}',
        )
        return
    require(
        any(scene.mask(i, object_id) is not None for i in ids),
        f'{scene.folder / "mask_visib"} holds no mask of object {object_id} (objects with ground'
        f' truth: {scene.object_ids}): registration needs one; add masks, choose another --object,'
        ' or track with --gt-init',
    )


class _Registering:
    """Registers every frame anew."""

    def __init__(self, estimator: PoseEstimator) -> None:
        self.losses = 0
        self._estimator = estimator

    def step(self, frame: Frame, mask: np.ndarray | None) -> tuple[str, PoseEstimate, float]:
        """Return stage, estimate and milliseconds."""
        if mask is None:
            self.losses += 1
            return 'idle', PoseEstimate(Outcome.NO_MASK), 0.0
        start = time.perf_counter()
        estimate = self._estimator.register(frame, mask)
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        self.losses += estimate.outcome is not Outcome.OK
        return 'register', estimate, elapsed_ms


class _Tracking:
    """Steps an ObjectTracker and counts how often it loses the object."""

    def __init__(self, estimator: PoseEstimator) -> None:
        self.losses = 0
        self._tracker = ObjectTracker(estimator)

    def start_from(self, camera_from_object: np.ndarray) -> None:
        """Track from a known pose instead of registering."""
        self._tracker.start_from(camera_from_object)

    def step(self, frame: Frame, mask: np.ndarray | None) -> tuple[str, PoseEstimate, float]:
        """Return stage, estimate and milliseconds."""
        before = self._tracker.state
        offered = None if before is TrackingState.TRACKING else mask
        step = self._tracker.step(frame, offered)
        self.losses += before is TrackingState.TRACKING and step.state is TrackingState.LOST
        return step.stage, step.estimate, step.elapsed_ms


def replay_content(replay: Replay, diameter_m: float) -> dict[str, Any]:
    """Return frames, totals and latency as written to JSON."""
    errors = [record.errors for record in replay.records if record.errors is not None]
    totals: dict[str, Any] = summarize_errors(errors, diameter_m) if errors else {}
    totals['lost'] = replay.losses
    totals['registrations'] = sum(record.stage == 'register' for record in replay.records)
    return {
        'frames': [_frame_content(record) for record in replay.records],
        'totals': totals,
        'latency_ms': replay.times.summary(),
        'warm_up_ms': replay.warm_up_ms,
    }


def _frame_content(record: FrameRecord) -> dict[str, Any]:
    pose, errors = record.estimate.camera_from_object, record.errors
    return {
        'id': record.frame_id,
        'outcome': record.estimate.outcome.value,
        'pose': None if pose is None else {'R': pose[:3, :3].ravel(), 't': 1e3 * pose[:3, 3]},
        'score': record.estimate.score,
        'add_mm': None if errors is None else 1e3 * errors.add_m,
        'add_s_mm': None if errors is None else 1e3 * errors.add_s_m,
        'rotation_deg': None if errors is None else float(np.degrees(errors.rotation_rad)),
        'translation_mm': None if errors is None else 1e3 * errors.translation_m,
        'latency_ms': record.latency_ms,
    }


def _print(content: dict[str, Any], title: str) -> None:
    report.print_totals(title, {'value': content['totals']})
    if 'add_auc' not in content['totals']:
        print('no ground truth in the scene: poses without errors')
    report.print_latency(content['latency_ms'], content['warm_up_ms'])


def _plot(replay: Replay, title: str) -> Figure:
    figure, axes = report.new_axes(2, title)
    frames = [_frame_content(record) for record in replay.records]
    ids = [frame['id'] for frame in frames]
    keys = {
        'rotation, degrees': 'rotation_deg',
        'translation, mm': 'translation_mm',
        'ADD-S, mm': 'add_s_mm',
    }
    report.draw_series(
        axes[0], ids, {name: [frame[key] for frame in frames] for name, key in keys.items()}
    )
    axes[0].set_ylabel('error')
    stages = sorted({record.stage for record in replay.records} - {'idle'})
    latencies = {
        stage: [r.latency_ms if r.stage == stage else None for r in replay.records]
        for stage in stages
    }
    report.draw_series(axes[1], ids, latencies)
    axes[1].set_ylabel('latency, ms')
    return figure


def _overlays(scene: BopScene, replay: Replay, mesh: ObjectMesh) -> Iterator[np.ndarray]:
    for record in tqdm(replay.records, 'video', unit='frame'):
        frame = scene.frame(record.frame_id)
        pose = record.estimate.camera_from_object
        text = f'{record.frame_id}  {record.stage}  {record.estimate.outcome.value}'
        yield draw_overlay(frame.rgb, frame.intrinsics, mesh, pose, text)
