"""The demo's figures: errors against truth, frames and latencies, as table, JSON, plot, video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..latency import summarize_ms
from ..pose.mesh import ObjectMesh
from ..scenes.bop import BopScene
from ..scenes.metrics import NO_POSE, PoseErrors, pose_errors, summarize_errors, surface_points
from . import report
from .demo_recording import NS_PER_S, PER_FRAME, PER_POSE, DemoFailed, PoseRecord, Recording
from .overlay import draw_overlay, write_video

SUMMARY_LABELS = {
    'frames': 'frames played',
    'tracked': 'frames tracked',
    'dropped': 'frames dropped (a newer one was there)',
    'lost': 'times lost',
    'track_hz': 'poses per second, Hz',
    'add_s_auc': 'ADD-S AUC (0..10 cm), %',
    'rotation_deg_median': 'rotation error, median, degrees',
    'translation_mm_median': 'translation error, median, mm',
}


@dataclass(frozen=True)
class PlayedFrame:
    """One image of the scene, its pose (None: dropped or failed) and the errors of that."""

    frame_id: int
    pose: PoseRecord | None
    errors: PoseErrors


def played_frames(recording: Recording, scene: BopScene, mesh: ObjectMesh) -> list[PlayedFrame]:
    """Match poses with images by stamp; raises DemoFailed when no pose has a played stamp."""
    by_stamp = {pose.stamp_ns: pose for pose in recording.poses()}
    points = surface_points(mesh)
    frames = []
    for frame_id, (stamp_ns, truth) in zip(
        scene.frame_ids, recording.truths(len(scene.frame_ids)), strict=True
    ):
        pose = by_stamp.get(stamp_ns)
        found = pose.camera_from_object if pose is not None else None
        frames.append(PlayedFrame(frame_id, pose, pose_errors(points, found, truth)))
    if all(frame.pose is None for frame in frames):
        raise DemoFailed(
            f'{len(by_stamp)} poses came, none with the stamp of a played image: the object was'
            ' lost right after it was found'
        )
    return frames


def summarize(
    recording: Recording, frames: list[PlayedFrame], diameter_m: float
) -> dict[str, Any]:
    """Return the demo's summary.

    Frames that the tracker worked on and gave no pose count as infinitely wrong in add_s_auc;
    dropped ones (never worked on) do not count there.
    """
    poses = [frame.pose for frame in frames if frame.pose is not None]
    failures = min(recording.failures(), len(frames) - len(poses))
    errors = [frame.errors for frame in frames if frame.pose is not None]
    totals = summarize_errors(errors + failures * [NO_POSE], diameter_m)
    return {
        'frames': len(frames),
        'tracked': len(poses),
        'dropped': len(frames) - len(poses) - failures,
        'lost': recording.losses(),
        'add_s_auc': totals['add_s_auc'],
        'rotation_deg_median': totals['rotation_deg_median'],
        'translation_mm_median': totals['translation_mm_median'],
        'track_hz': rate_hz([pose.received_ns for pose in poses]),
        'latency_ms': latency_summary(recording, poses),
    }


def rate_hz(times_ns: list[int]) -> float:
    """Return events per second over their whole span, 0 for fewer than two."""
    if len(times_ns) < 2:
        return 0.0
    return (len(times_ns) - 1) * NS_PER_S / (times_ns[-1] - times_ns[0])


def latency_summary(recording: Recording, poses: list[PoseRecord]) -> dict[str, dict[str, float]]:
    """Return p50, p95 and max per stage in milliseconds; what came with a pose, of these poses.

    So the age of the standing image on which the tracker registered is left out.
    """
    samples = {name: recording.data(f'latency/{name}') for name in PER_FRAME}
    for name in PER_POSE:
        samples[name] = [p.latency_ms[name] for p in poses if name in p.latency_ms]
    return {
        name.removesuffix('_ms'): summarize_ms(values)
        for name, values in samples.items()
        if values
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Print the figures and the latencies as tables."""
    rows = [[label, summary[key]] for key, label in SUMMARY_LABELS.items()]
    report.print_table('demo: player and tracker over ROS 2', ['', 'value'], rows)
    stages = [[n, v['p50'], v['p95'], v['max']] for n, v in summary['latency_ms'].items()]
    report.print_table('latency, ms', ['stage', 'p50', 'p95', 'max'], stages)


def save_latency_plot(path: Path, recording: Recording, frames: list[PlayedFrame]) -> None:
    """Plot errors and the age of every pose over the played frames, and times of tracking."""
    figure, axes = report.new_axes(3, 'demo')
    ids = [frame.frame_id for frame in frames]
    found = [frame.errors if frame.pose else None for frame in frames]
    degrees = [None if e is None else float(np.degrees(e.rotation_rad)) for e in found]
    millimetres = [None if e is None else 1e3 * e.translation_m for e in found]
    report.draw_series(
        axes[0], ids, {'rotation, degrees': degrees, 'translation, mm': millimetres}
    )
    axes[0].set_ylabel('error against ground truth')
    ages = [frame.pose.latency_ms.get('age_ms') if frame.pose else None for frame in frames]
    report.draw_series(axes[1], ids, {'image taken to pose published': ages})
    axes[1].set_ylabel('age, ms')
    track_ms = recording.data('latency/track_ms')
    report.draw_series(axes[2], range(len(track_ms)), {'track': track_ms})
    axes[2].set(xlabel='tracked frame', ylabel='latency, ms')
    report.save_plot(path, figure)


def save_video(
    path: Path, scene: BopScene, frames: list[PlayedFrame], mesh: ObjectMesh, rate: float
) -> None:
    """Write every played image with the pose drawn that was published for it, if any."""
    write_video(path, _overlays(scene, frames, mesh), rate)


def _overlays(
    scene: BopScene, frames: list[PlayedFrame], mesh: ObjectMesh
) -> Iterator[np.ndarray]:
    for played in tqdm(frames, 'video', unit='frame'):
        frame = scene.frame(played.frame_id)
        pose = played.pose.camera_from_object if played.pose else None
        text = f'{played.frame_id}  no pose'
        if played.pose:
            degrees, mm = np.degrees(played.errors.rotation_rad), 1e3 * played.errors.translation_m
            text = f'{played.frame_id}  {degrees:.1f} deg  {mm:.1f} mm'
        yield draw_overlay(frame.rgb, frame.intrinsics, mesh, pose, text)
