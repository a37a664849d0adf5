"""From a call's numbers to a pose: against SciPy and the singular values."""

from __future__ import annotations

import numpy as np
import pytest
from raster_rig import box_parts, mesh
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import Outcome
from foundationpose_trt.pose.estimator_settings import EstimatorSettings
from foundationpose_trt.pose.readout import MOST_DRIFT, Readout, nearest_rotation

EVIDENCE = np.array([100.0, 80.0, 5.0, 10.0], np.float32)


def projected(matrix: np.ndarray) -> np.ndarray:
    return np.array(nearest_rotation(matrix.ravel().tolist())).reshape(3, 3)


@pytest.mark.parametrize('noise', [0.0, 1e-7, 1e-5, 0.3 * MOST_DRIFT, 1e-3, 0.05])
def test_it_is_the_polar_factor(noise):
    rng = np.random.default_rng(3)
    for seed in range(50):
        turned = Rotation.random(random_state=seed).as_matrix()
        drifted = turned + noise * rng.uniform(-1, 1, (3, 3))
        nearest = projected(drifted)
        # one step leaves the square of what the drift was, where it is taken
        left = 3 * min(noise, MOST_DRIFT) ** 2 + 1e-14
        np.testing.assert_allclose(nearest, polar(drifted)[0], atol=left)
        np.testing.assert_allclose(nearest @ nearest.T, np.eye(3), atol=2 * left)
        assert np.linalg.det(nearest) == pytest.approx(1)


def test_a_mirror_becomes_a_rotation():
    mirror = np.diag([1.0, 1.0, -1.0])
    nearest = projected(Rotation.from_rotvec([0.3, -1.0, 0.2]).as_matrix() @ mirror)
    np.testing.assert_allclose(nearest @ nearest.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(nearest) == pytest.approx(1)


def readout() -> tuple[Readout, np.ndarray]:
    vertices, faces, normals = box_parts(np.array([0.05, 0.03, 0.02]))
    one = mesh(vertices, faces, normals=normals)
    center = np.array([0.4, -0.2, 0.1])
    object.__setattr__(one, 'center_m', center)
    return Readout(one, EstimatorSettings()), center


def test_the_pose_is_of_the_mesh_files_origin():
    reader, center = readout()
    centered = np.eye(4, dtype=np.float32)
    centered[:3, :3] = Rotation.from_rotvec([0.5, 0.4, -2.0]).as_matrix()
    centered[:3, 3] = 0.1, -0.2, 0.9
    found = reader.estimate(centered, EVIDENCE)
    assert found.outcome is Outcome.OK and found.quality.agreeing == 80
    pose = found.camera_from_object
    assert pose.shape == (4, 4) and pose.dtype == np.float64
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])
    # where the camera sees the centre has nothing to do with the origin
    np.testing.assert_allclose(pose[:3, :3] @ center + pose[:3, 3], centered[:3, 3], atol=1e-12)
    np.testing.assert_allclose(pose[:3, :3], centered[:3, :3], atol=1e-6)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('place', [(0, 0), (1, 3), (2, 3), (2, 2)])
def test_what_is_not_finite_is_no_pose(place, value):
    centered = np.eye(4, dtype=np.float32)
    centered[2, 3] = 1.0
    centered[place] = value
    assert readout()[0].estimate(centered, EVIDENCE).outcome is Outcome.NOT_FINITE


@pytest.mark.parametrize('away_m', [0.05, 10.5, -1.0])
def test_what_is_too_near_or_far_is_out_of_range(away_m):
    centered = np.eye(4, dtype=np.float32)
    centered[2, 3] = away_m
    assert readout()[0].estimate(centered, EVIDENCE).outcome is Outcome.OUT_OF_RANGE
