"""What a back end does to poses: one tracking step from fixed starts on rendered views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ..datatypes import Frame
from ..pose.estimator import PoseEstimator
from ..pose.mesh import ObjectMesh
from ..scenes.metrics import (
    pose_errors,
    rotation_error_rad,
    surface_points,
    translation_error_m,
)
from ..synthesis.objects import make_object
from ..synthesis.tabletop import compose_views
from ..synthesis.tabletop_images import TabletopRenderer
from .synthetic_trials import FIRST_VIEW_SEED, MIN_VISIBLE, SETTINGS, clutter

START_ROTATION_RAD = 0.15  # as far off as a fast camera leaves the last frame's pose
START_SHARE = 0.05  # of the diameter, per axis


@dataclass(frozen=True)
class PoseTask:
    """One object, one view, the true pose and a start off it; both camera_from_object (4, 4).

    points: (P, 3) metres on the surface, to measure errors by. mask: (H, W) bool, what is visible.
    """

    mesh: ObjectMesh
    points: np.ndarray
    frame: Frame
    truth: np.ndarray
    start: np.ndarray
    mask: np.ndarray


def make_tasks(
    objects: int, views: int, device: str, first_seed: int = FIRST_VIEW_SEED
) -> list[PoseTask]:
    """Render views of objects, by default held-out ones, that show enough of them.

    The same on every call.
    """
    tasks = []
    for seed in range(first_seed, first_seed + objects):
        rng = np.random.default_rng(seed)
        mesh = make_object(seed)
        scene = compose_views(mesh, clutter(rng), 3 * views, rng, SETTINGS)
        images = TabletopRenderer(scene, device, 3 * views).images(seed)
        points = surface_points(mesh)
        seen = [image for image in images if image.visible_share >= MIN_VISIBLE][:views]
        for image in seen:
            truth = image.camera_from_object
            start = _start(truth, mesh, rng)
            tasks.append(PoseTask(mesh, points, image.frame, truth, start, image.mask))
    return tasks


def _start(truth: np.ndarray, mesh: ObjectMesh, rng: np.random.Generator) -> np.ndarray:
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(START_ROTATION_RAD * axis / np.linalg.norm(axis)).as_matrix()
    start = truth.copy()
    start[:3, :3] = turn @ truth[:3, :3]
    start[:3, 3] += rng.uniform(-1, 1, 3) * START_SHARE * mesh.diameter_m
    return start


def run_tasks(
    tasks: list[PoseTask], make: Callable[[ObjectMesh], PoseEstimator]
) -> list[np.ndarray | None]:
    """Track one frame per task; poses camera_from_object, None where there is none."""
    poses: list[np.ndarray | None] = []
    estimator: PoseEstimator | None = None
    for task in tasks:
        if estimator is None or estimator.mesh is not task.mesh:
            estimator = make(task.mesh)
        poses.append(estimator.track(task.frame, task.start).camera_from_object)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return poses


def compare(
    tasks: list[PoseTask], poses: list[np.ndarray | None], reference: list[np.ndarray | None]
) -> dict[str, float]:
    """Medians of the errors against the truth, and the largest distance from the reference.

    Degrees and millimetres; infinite where one of the two has no pose and the other has.
    """
    errors = [
        pose_errors(task.points, pose, task.truth) for task, pose in zip(tasks, poses, strict=True)
    ]
    away = [_distance(*pair) for pair in zip(poses, reference, strict=True)]
    return {
        'rotation_deg': float(np.degrees(np.median([e.rotation_rad for e in errors]))),
        'translation_mm': 1e3 * float(np.median([e.translation_m for e in errors])),
        'add_s_mm': 1e3 * float(np.median([e.add_s_m for e in errors])),
        'from_reference_deg': float(np.max([a[0] for a in away])),
        'from_reference_mm': float(np.max([a[1] for a in away])),
    }


def _distance(pose: np.ndarray | None, reference: np.ndarray | None) -> tuple[float, float]:
    if pose is None or reference is None:
        same = pose is reference
        return (0.0, 0.0) if same else (np.inf, np.inf)
    turn, shift_m = rotation_error_rad(pose, reference), translation_error_m(pose, reference)
    return float(np.degrees(turn)), 1e3 * shift_m
