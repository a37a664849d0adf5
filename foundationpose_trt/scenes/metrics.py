"""Pose errors of an estimate against ground truth, and what a list of them amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from ..datatypes import require
from ..pose.mesh import ObjectMesh

AUC_MAX_M = 0.1  # the 10 cm protocol of PoseCNN (arXiv 1711.00199, section V)
AUC_STEPS = 100  # thresholds every millimetre, 101 with zero
RECALL_DIAMETER_SHARE = 0.1  # ADD-0.1d: correct below a tenth of the diameter
SURFACE_POINTS = 1000


@dataclass(frozen=True)
class PoseErrors:
    """Errors of one frame; all infinite where the frame ended without a pose."""

    add_m: float
    add_s_m: float
    rotation_rad: float
    translation_m: float

    @property
    def found(self) -> bool:
        """True where there was a pose to compare."""
        return bool(np.isfinite(self.add_m))


NO_POSE = PoseErrors(np.inf, np.inf, np.inf, np.inf)


def surface_points(mesh: ObjectMesh, count: int = SURFACE_POINTS) -> np.ndarray:
    """Sample (count, 3) float64 points on the surface, metres, in the frame of the mesh file.

    Uniform by area instead of the file's vertices: vertices crowd where the modeller put detail,
    so the same pose error would score differently after decimation. A thousand points keep the
    mean distance within about 2 % of the dense one and one ADD-S query near a millisecond. The
    sampling is seeded: two runs score alike.
    """
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    points, _ = trimesh.sample.sample_surface(surface, count, seed=0)
    return np.asarray(points, dtype=np.float64) + mesh.center_m


def transform_points(b_from_a: np.ndarray, points_a: np.ndarray) -> np.ndarray:
    """Map (N, 3) points by a rigid (4, 4) matrix."""
    return points_a @ b_from_a[:3, :3].T + b_from_a[:3, 3]


def add_m(
    points_m: np.ndarray, camera_from_predicted: np.ndarray, camera_from_true: np.ndarray
) -> float:
    """Mean distance between corresponding points under both poses, metres.

    points_m: (N, 3) in the object's frame; poses (4, 4), metres.
    """
    predicted = transform_points(camera_from_predicted, points_m)
    true = transform_points(camera_from_true, points_m)
    return float(np.linalg.norm(predicted - true, axis=1).mean())


def add_s_m(
    points_m: np.ndarray, camera_from_predicted: np.ndarray, camera_from_true: np.ndarray
) -> float:
    """Mean distance from each truly posed point to the nearest predicted one, metres.

    Blind to a symmetry of the shape and, unlike the symmetric Chamfer distance, asked from the
    truth's side only, as the published tables do.
    """
    predicted = transform_points(camera_from_predicted, points_m)
    true = transform_points(camera_from_true, points_m)
    distances, _ = cKDTree(predicted).query(true)
    return float(np.mean(distances))


def rotation_error_rad(camera_from_predicted: np.ndarray, camera_from_true: np.ndarray) -> float:
    """Angle between the rotations of two (4, 4) or (3, 3) matrices, radians, 0..pi."""
    relative = camera_from_predicted[:3, :3].T @ camera_from_true[:3, :3]
    # the arc cosine alone loses half the digits near zero, so the sine decides there
    skew = relative - relative.T
    double_sine = np.linalg.norm([skew[2, 1], skew[0, 2], skew[1, 0]])
    return float(np.arctan2(double_sine, np.trace(relative) - 1))


def translation_error_m(camera_from_predicted: np.ndarray, camera_from_true: np.ndarray) -> float:
    """Distance between the origins of two (4, 4) poses, metres."""
    return float(np.linalg.norm(camera_from_predicted[:3, 3] - camera_from_true[:3, 3]))


def pose_errors(
    points_m: np.ndarray, camera_from_predicted: np.ndarray | None, camera_from_true: np.ndarray
) -> PoseErrors:
    """Return all errors of one frame; NO_POSE where the prediction is None.

    The translation error is that of the file's origin, as the BOP toolkit defines it; for a mesh
    modelled far from its origin it also grows with the rotation error, which ADD does not.
    """
    if camera_from_predicted is None:
        return NO_POSE
    return PoseErrors(
        add_m(points_m, camera_from_predicted, camera_from_true),
        add_s_m(points_m, camera_from_predicted, camera_from_true),
        rotation_error_rad(camera_from_predicted, camera_from_true),
        translation_error_m(camera_from_predicted, camera_from_true),
    )


def auc(errors_m: Sequence[float] | np.ndarray, max_m: float = AUC_MAX_M) -> float:
    """Area under the accuracy-threshold curve, 0..1.

    Accuracy at x is the share of errors <= x, at 101 thresholds from 0 to max_m, joined by
    trapezoids and divided by max_m. One error e in ((k - 1) mm, k mm] therefore scores
    (100.5 - k) / 100, zero error 1, and an infinite error (a frame without a pose) 0.
    Raises ValueError on no errors or a NaN.
    """
    errors = _checked(errors_m)
    thresholds = np.arange(AUC_STEPS + 1) * (max_m / AUC_STEPS)
    accuracy = (errors[:, None] <= thresholds).mean(axis=0)
    return float((accuracy[1:] + accuracy[:-1]).sum() / 2 / AUC_STEPS)


def recall(
    errors_m: Sequence[float] | np.ndarray, threshold_m: float | Sequence[float] | np.ndarray
) -> float:
    """Share of errors strictly below a threshold (one, or one per error), 0..1."""
    errors = _checked(errors_m)
    return float((errors < np.asarray(threshold_m, dtype=np.float64)).mean())


def _checked(errors_m: Sequence[float] | np.ndarray) -> np.ndarray:
    errors = np.asarray(errors_m, dtype=np.float64)
    require(errors.size > 0, 'no errors to summarise: no frame had both a truth and a mask')
    require(not np.isnan(errors).any(), 'errors hold NaN: use infinity for a frame without pose')
    return errors


def summarize_errors(
    errors: Sequence[PoseErrors], diameters_m: float | Sequence[float] | np.ndarray
) -> dict[str, float | None]:
    """Return the totals of many frames: AUCs and recalls in percent, frames without a pose missed.

    diameters_m: one, or one per frame. Medians, maxima and add_s_auc_with_pose are over the
    frames with a pose and None where there is none.
    """
    limits = RECALL_DIAMETER_SHARE * np.asarray(diameters_m, dtype=np.float64)
    add, add_s = [e.add_m for e in errors], [e.add_s_m for e in errors]
    found = [e for e in errors if e.found]
    return {
        'frames': len(errors),
        'without_pose': len(errors) - len(found),
        'add_auc': 100 * auc(add),
        'add_s_auc': 100 * auc(add_s),
        'add_s_auc_with_pose': 100 * auc([e.add_s_m for e in found]) if found else None,
        'recall_0_1d': 100 * recall(add, limits),
        'recall_s_0_1d': 100 * recall(add_s, limits),
        **_spread('add_mm', [1e3 * e.add_m for e in found]),
        **_spread('add_s_mm', [1e3 * e.add_s_m for e in found]),
        **_spread('rotation_deg', [float(np.degrees(e.rotation_rad)) for e in found]),
        **_spread('translation_mm', [1e3 * e.translation_m for e in found]),
    }


def _spread(name: str, values: list[float]) -> dict[str, float | None]:
    median = float(np.median(values)) if values else None
    return {f'{name}_median': median, f'{name}_max': max(values, default=None)}


def is_lost(errors: Sequence[PoseErrors], diameter_m: float, run: int = 5) -> bool:
    """Tell whether a track was lost: its last `run` frames all lack a good pose.

    Good means ADD-S below half the diameter: past that the crop of the next frame no longer
    holds the object and tracking cannot come back on its own. A moment behind an occluder that
    ends well is no loss.
    """
    tail = list(errors)[-run:]
    return bool(tail) and all(e.add_s_m > 0.5 * diameter_m for e in tail)
