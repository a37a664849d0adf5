"""From a call's numbers to a pose: against SciPy and the singular values."""

from __future__ import annotations

import numpy as np
import pytest
from raster_rig import box_parts, mesh
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import Outcome
from foundationpose_trt.pose.estimator_settings import EstimatorSettings
from foundationpose_trt.pose.readout import MOST_DRIFT, Readout, Readouts, nearest_rotation

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


CENTER_M = np.array([0.4, -0.2, 0.1])


def readout(center: np.ndarray = CENTER_M, **settings: float) -> tuple[Readout, np.ndarray]:
    vertices, faces, normals = box_parts(np.array([0.05, 0.03, 0.02]))
    one = mesh(vertices, faces, normals=normals)
    object.__setattr__(one, 'center_m', center)
    return Readout(one, EstimatorSettings(**settings)), center


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


PLACES = [2, 0, 4, 1, 3]  # in which order the objects are asked for


def several() -> tuple[Readouts, np.ndarray, np.ndarray]:
    """Readouts of five objects, their centres, and a row of results of each in PLACES' order."""
    rng = np.random.default_rng(8)
    centers = rng.uniform(-0.5, 0.5, (5, 3))
    rows = np.zeros((5, 20), np.float32)
    for row in rows:
        pose = np.eye(4)
        pose[:3, :3] = Rotation.random(random_state=rng.integers(1 << 30)).as_matrix()
        pose[:3, :3] += 0.1 * MOST_DRIFT * rng.uniform(-1, 1, (3, 3))
        pose[:3, 3] = *rng.uniform(-0.3, 0.3, 2), rng.uniform(0.4, 2.0)
        row[:16], row[16:] = pose.ravel(), rng.integers(0, 9000, 4)
    readers = [readout(center, max_depth_m=3.0 + k)[0] for k, center in enumerate(centers)]
    return Readouts(readers), centers, rows


@pytest.mark.parametrize('count', [1, 3, 4, 5])
def test_several_are_read_as_each_is(count):
    """Few one by one, many at once; each with its own object's origin."""
    readers, centers, rows = several()
    found = readers.estimates(PLACES[:count], rows[:count])
    assert len(found) == count
    for estimate, index, row in zip(found, PLACES, rows, strict=False):
        assert estimate.outcome is Outcome.OK
        given, pose = row[:16].reshape(4, 4).astype(float), estimate.camera_from_object
        assert pose.shape == (4, 4) and pose.dtype == np.float64
        np.testing.assert_allclose(pose[:3, :3], polar(given[:3, :3])[0], atol=1e-9)
        np.testing.assert_allclose(pose[:3, :3] @ centers[index] + pose[:3, 3], given[:3, 3])
        np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])
        quality = estimate.quality
        counts = [quality.rendered, quality.agreeing, quality.in_front, quality.behind]
        assert counts == row[16:].tolist() and all(type(one) is int for one in counts)


@pytest.mark.parametrize(
    ('place', 'value', 'outcome'),
    [
        (0, np.nan, Outcome.NOT_FINITE),
        (7, np.inf, Outcome.NOT_FINITE),
        (11, -np.inf, Outcome.NOT_FINITE),
        (17, np.nan, Outcome.NOT_FINITE),
        (11, 0.05, Outcome.OUT_OF_RANGE),
        (11, 4.5, Outcome.OUT_OF_RANGE),  # of the object at place 1 alone: the others see farther
    ],
)
def test_one_that_is_no_pose_leaves_the_others_alone(place, value, outcome):
    readers, _, rows = several()
    good = readers.estimates(PLACES, rows)
    at = PLACES.index(1)
    rows[at, place] = value
    found = readers.estimates(PLACES, rows)
    assert found[at].outcome is outcome and found[at].camera_from_object is None
    for k in set(range(5)) - {at}:
        assert found[k].outcome is Outcome.OK and found[k].quality == good[k].quality
        np.testing.assert_allclose(
            found[k].camera_from_object, good[k].camera_from_object, atol=1e-12
        )


@pytest.mark.parametrize('size', [1e-3, 0.2])
def test_one_that_is_hardly_a_rotation_becomes_the_nearest(size):
    readers, _, rows = several()
    rows[2, :3] += np.float32(size)
    wanted = polar(rows[2, :16].reshape(4, 4)[:3, :3].astype(float))[0]
    found = readers.estimates(PLACES, rows)[2].camera_from_object
    np.testing.assert_allclose(found[:3, :3], wanted, atol=1e-7)


def test_a_mirror_among_several_becomes_a_rotation():
    readers, _, rows = several()
    rows[3, :3] *= -1
    found = readers.estimates(PLACES, rows)
    assert all(np.linalg.det(one.camera_from_object[:3, :3]) > 0.99 for one in found)
