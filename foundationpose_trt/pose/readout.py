"""From the numbers that come back of a call to a named outcome and the public pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datatypes import Outcome, PoseEstimate, PoseQuality
from .estimator_settings import EstimatorSettings
from .mesh import ObjectMesh

IDENTITY = np.eye(3)
MOST_DRIFT = 1e-4  # of R^T R from the identity; one step leaves less than its square


@dataclass(frozen=True)
class Readout:
    """Reads the results of one object: settings' limits decide, poses get the mesh file's origin.

    Numbers are float32 on the host, metres; the poses in them are camera_from_centered.
    """

    mesh: ObjectMesh
    settings: EstimatorSettings

    def estimate(self, camera_from_centered: np.ndarray, evidence: np.ndarray) -> PoseEstimate:
        """Name the outcome of a pose (4, 4) and the four counts of quality.depth_evidence."""
        if not np.isfinite(camera_from_centered).all():
            return PoseEstimate(Outcome.NOT_FINITE)
        if not self._in_range(float(camera_from_centered[2, 3])):
            return PoseEstimate(Outcome.OUT_OF_RANGE)
        centered = camera_from_centered.astype(np.float64)
        centered[:3, :3] = nearest_rotation(centered[:3, :3])
        pose = centered @ self.mesh.centered_from_object
        quality = PoseQuality(*(int(count) for count in evidence))
        return PoseEstimate(Outcome.OK, pose, quality=quality)

    def registration(self, values: np.ndarray, count: int) -> PoseEstimate:
        """Name the outcome of a registration that ended with `count` hypotheses, best first.

        values: their poses and logits, the evidence of the best, the mask's middle (3), and the
        mask's number of pixels with depth, flat in this order.
        """
        poses = values[: 16 * count].reshape(count, 4, 4)
        scores = values[16 * count : 17 * count]
        evidence, center, valid_px = values[17 * count :][:4], values[-4:-1], values[-1]
        if valid_px < self.settings.min_mask_depth_px:
            return PoseEstimate(Outcome.NO_DEPTH_IN_MASK)
        if not self._in_range(float(center[2])):
            return PoseEstimate(Outcome.OUT_OF_RANGE)
        if not (np.isfinite(scores).all() and np.isfinite(poses).all()):
            return PoseEstimate(Outcome.NOT_FINITE)
        best = self.estimate(poses[0], evidence)
        if best.outcome is not Outcome.OK:
            return best
        ranked = poses.astype(np.float64) @ self.mesh.centered_from_object
        return PoseEstimate(
            Outcome.OK, best.camera_from_object, float(scores[0]), best.quality, ranked, scores
        )

    def _in_range(self, depth_m: float) -> bool:
        return self.settings.min_depth_m <= depth_m <= self.settings.max_depth_m


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """Project a (3, 3) float64 matrix onto SO(3): a new matrix.

    What has only drifted, by float32's rounding, needs one step of Newton and Schulz for the polar
    factor (Higham, Functions of Matrices, 8.3: the error is squared), a third of the cost of the
    singular values that others take.
    """
    gram = matrix.T @ matrix
    gram -= IDENTITY
    drift = max(abs(gram.max()), abs(gram.min()))
    if drift < MOST_DRIFT and np.linalg.det(matrix) > 0:
        return matrix - 0.5 * (matrix @ gram)
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)
