"""From the numbers that come back of a call to a named outcome and the public pose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..datatypes import NO_POSES, NO_SCORES, Outcome, PoseEstimate, PoseQuality
from .estimator_settings import EstimatorSettings
from .mesh import ObjectMesh

MOST_DRIFT = 1e-4  # of R^T R from the identity; one step leaves less than its square


@dataclass(frozen=True)
class Readout:
    """Reads the results of one object: settings' limits decide, poses get the mesh file's origin.

    Numbers are float32 on the host, metres; the poses in them are camera_from_centered.
    """

    mesh: ObjectMesh
    settings: EstimatorSettings

    def estimate(self, camera_from_centered: np.ndarray, evidence: np.ndarray) -> PoseEstimate:
        """Name the outcome of a pose (4, 4) and its counts (kernel count_evidence)."""
        return self.estimate_row(camera_from_centered.ravel().tolist() + evidence.tolist())

    def estimate_row(
        self, numbers: list[float], camera_from_object: np.ndarray | None = None
    ) -> PoseEstimate:
        """Name the outcome of a pose's 16 numbers, row by row, and its counts: a result's row.

        camera_from_object: (4, 4) float64 of the same pose, where the device has made it.
        """
        if not math.isfinite(sum(numbers)):  # as all of them are: float32 sum up to less
            return PoseEstimate(Outcome.NOT_FINITE)
        if not self._in_range(numbers[11]):
            return PoseEstimate(Outcome.OUT_OF_RANGE)
        if camera_from_object is None:
            rotation = nearest_rotation(numbers[0:3] + numbers[4:7] + numbers[8:11])
            camera_from_object = self._uncentered(rotation, (numbers[3], numbers[7], numbers[11]))
        quality = PoseQuality(*map(int, numbers[16:]))
        # all fields: defaults that are made anew take as long as the rest
        return PoseEstimate(Outcome.OK, camera_from_object, None, quality, NO_POSES, NO_SCORES)

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

    def _uncentered(self, rotation: list[float], place_m: tuple[float, ...]) -> np.ndarray:
        """Return camera_from_object (4, 4) of the pose of the object's centre."""
        offset = self._offset_m
        rows = rotation[0:3], rotation[3:6], rotation[6:9]
        x, y, z = (_dot(row, offset) + at for row, at in zip(rows, place_m, strict=True))
        flat = [*rows[0], x, *rows[1], y, *rows[2], z, 0.0, 0.0, 0.0, 1.0]
        return np.array(flat).reshape(4, 4)

    @cached_property
    def _offset_m(self) -> list[float]:
        """Where the mesh file's origin is from the centre: centered_from_object turns nothing."""
        return list(self.mesh.centered_from_object[:3, 3].tolist())

    def _in_range(self, depth_m: float) -> bool:
        return self.settings.min_depth_m <= depth_m <= self.settings.max_depth_m


def nearest_rotation(matrix: Sequence[float]) -> list[float]:
    """Project a matrix onto SO(3): nine float64 numbers, row by row.

    What has only drifted, by float32's rounding, needs one step of Newton and Schulz for the polar
    factor (Higham, Functions of Matrices, 8.3: the error is squared). In plain numbers: arrays of
    this size cost several times as much.
    """
    a, b, c, d, e, f, g, h, i = matrix
    # how far the columns' products are from the identity
    xx, yy, zz = a * a + d * d + g * g - 1, b * b + e * e + h * h - 1, c * c + f * f + i * i - 1
    xy, xz, yz = a * b + d * e + g * h, a * c + d * f + g * i, b * c + e * f + h * i
    drift = max(abs(xx), abs(yy), abs(zz), abs(xy), abs(xz), abs(yz))
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if drift < MOST_DRIFT and volume > 0:
        step = []
        for p, q, r in ((a, b, c), (d, e, f), (g, h, i)):
            step += [
                p - 0.5 * (p * xx + q * xy + r * xz),
                q - 0.5 * (p * xy + q * yy + r * yz),
                r - 0.5 * (p * xz + q * yz + r * zz),
            ]
        return step
    rows = np.array(matrix).reshape(3, 3)
    u, _, vt = np.linalg.svd(rows)
    return list((u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt).ravel().tolist())


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]
