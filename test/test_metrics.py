"""Metrics against closed forms, brute force and scipy's rotations."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from foundationpose_trt.geometry import transform
from foundationpose_trt.pose.mesh import MeshLimits, build_mesh
from foundationpose_trt.scenes import metrics

RNG = np.random.default_rng(5)


def random_pose(rng: np.random.Generator) -> np.ndarray:
    return transform(Rotation.random(random_state=rng).as_matrix(), rng.normal(size=3))


def test_add_of_a_pure_shift_is_its_length():
    pose = random_pose(RNG)
    shifted = pose.copy()
    shifted[:3, 3] += [0.003, -0.004, 0.012]
    points = RNG.normal(size=(200, 3))
    assert metrics.add_m(points, shifted, pose) == pytest.approx(0.013, abs=1e-12)
    assert metrics.translation_error_m(shifted, pose) == pytest.approx(0.013, abs=1e-12)


def test_add_and_add_s_match_brute_force():
    for _ in range(5):
        points = RNG.normal(size=(150, 3)) * [0.1, 0.05, 0.02]
        predicted, true = random_pose(RNG), random_pose(RNG)
        a = np.array([predicted[:3, :3] @ p + predicted[:3, 3] for p in points])
        b = np.array([true[:3, :3] @ p + true[:3, 3] for p in points])
        distances = cdist(b, a)
        assert metrics.add_m(points, predicted, true) == pytest.approx(np.diag(distances).mean())
        assert metrics.add_s_m(points, predicted, true) == pytest.approx(distances.min(1).mean())


def test_add_s_queries_from_the_truth_not_from_the_prediction():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [10, 0, 0]])
    predicted = np.eye(4)
    true = transform(np.eye(3), np.array([1.0, 0, 0]))
    # truth 1, 2, 11 against prediction 0, 1, 10: nearest 0, 1, 1; the reverse would give 1, 0, 1
    flipped = transform(np.diag([-1.0, -1, 1]), np.zeros(3))
    assert metrics.add_s_m(points, predicted, true) == pytest.approx(2 / 3)
    assert metrics.add_s_m(points, flipped, np.eye(4)) == pytest.approx((0 + 1 + 10) / 3)
    assert metrics.add_s_m(points, flipped @ true, np.eye(4)) == pytest.approx((1 + 2 + 11) / 3)


def test_add_s_ignores_a_symmetry_that_add_sees():
    angles = np.arange(36) * (2 * np.pi / 36)
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    turned = transform(Rotation.from_euler('z', 90, degrees=True).as_matrix(), np.zeros(3))
    assert metrics.add_s_m(ring, turned, np.eye(4)) == pytest.approx(0, abs=1e-9)
    assert metrics.add_m(ring, turned, np.eye(4)) == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize('angle', [0.0, 1e-9, 1e-4, 0.5, np.pi / 2, 3.0, np.pi])
def test_rotation_error_matches_scipy(angle):
    base = Rotation.random(random_state=np.random.default_rng(1))
    axis = np.array([0.6, 0.0, 0.8])
    turned = base * Rotation.from_rotvec(angle * axis)
    measured = metrics.rotation_error_rad(turned.as_matrix(), base.as_matrix())
    assert measured == pytest.approx(angle, abs=1e-12 if angle < 1 else 1e-7)


def test_auc_closed_forms():
    assert metrics.auc([0.0]) == pytest.approx(1.0)
    assert metrics.auc([np.inf, 0.2, 0.1001]) == 0.0
    for millimetres, k in [(0.4, 1), (1.0, 1), (12.3, 13), (99.5, 100)]:
        assert metrics.auc([millimetres * 1e-3]) == pytest.approx((100.5 - k) / 100)
    assert metrics.auc([0.0, np.inf, 0.0123]) == pytest.approx((1 + 0 + 0.875) / 3)


def test_auc_follows_the_exact_integral_within_one_step():
    errors = RNG.uniform(0, 0.15, size=4000)
    exact = np.clip(0.1 - errors, 0, None).mean() / 0.1
    assert metrics.auc(errors) == pytest.approx(exact, abs=1e-3)
    assert metrics.auc(errors, max_m=0.2) > metrics.auc(errors, max_m=0.1)


def test_auc_refuses_nothing_and_nan():
    with pytest.raises(ValueError, match='no errors'):
        metrics.auc([])
    with pytest.raises(ValueError, match='NaN'):
        metrics.auc([0.01, np.nan])


def test_recall_counts_with_one_limit_or_one_each():
    assert metrics.recall([0.001, 0.01, np.inf, 0.02], 0.015) == 0.5
    assert metrics.recall([0.01, 0.01, 0.01], [0.005, 0.02, 0.011]) == pytest.approx(2 / 3)


def test_surface_points_lie_on_the_surface_by_area_and_repeat():
    box = trimesh.creation.box(extents=(0.2, 0.1, 0.05))
    box.apply_translation([0.3, -0.2, 0.1])
    mesh = build_mesh('box', box, MeshLimits())
    points = metrics.surface_points(mesh)
    assert points.shape == (1000, 3)
    np.testing.assert_array_equal(points, metrics.surface_points(mesh))
    inside = np.abs(points - [0.3, -0.2, 0.1]) - [0.1, 0.05, 0.025]
    assert np.abs(inside.max(axis=1)).max() < 1e-6
    on_large_faces = np.isclose(np.abs(points[:, 2] - 0.1), 0.025, atol=1e-6).mean()
    assert on_large_faces == pytest.approx(0.04 / 0.07, abs=0.06)


def test_pose_errors_of_a_turn_about_a_distant_centre():
    points = RNG.uniform(-0.05, 0.05, size=(300, 3)) + [1.0, 0, 0]
    turn = Rotation.from_euler('z', 2, degrees=True).as_matrix()
    center = np.array([1.0, 0, 0])
    errors = metrics.pose_errors(points, transform(turn, center - turn @ center), np.eye(4))
    assert np.degrees(errors.rotation_rad) == pytest.approx(2)
    assert errors.translation_m == pytest.approx(2 * np.sin(np.radians(1)))
    assert errors.add_m < 0.003
    assert errors.found and not metrics.pose_errors(points, None, np.eye(4)).found


def test_summary_counts_missing_poses_as_misses():
    good = metrics.PoseErrors(0.004, 0.002, np.radians(1), 0.003)
    poor = metrics.PoseErrors(0.03, 0.012, np.radians(9), 0.02)
    totals = metrics.summarize_errors([good, poor, metrics.NO_POSE, good], 0.15)
    assert totals['frames'] == 4 and totals['without_pose'] == 1
    assert totals['add_auc'] == pytest.approx(100 * (0.965 * 2 + 0.705) / 4)
    assert totals['recall_0_1d'] == 50 and totals['recall_s_0_1d'] == 75
    assert totals['rotation_deg_median'] == pytest.approx(1)
    assert totals['rotation_deg_max'] == pytest.approx(9)
    assert totals['add_s_auc_with_pose'] == pytest.approx(100 * (0.985 * 2 + 0.885) / 3)
    empty = metrics.summarize_errors([metrics.NO_POSE], 0.15)
    assert empty['rotation_deg_median'] is None and empty['add_s_auc_with_pose'] is None
    assert empty['add_s_auc'] == 0


def test_a_track_is_lost_by_its_end_not_by_a_moment():
    good = metrics.PoseErrors(0.004, 0.002, 0.1, 0.003)
    far = metrics.PoseErrors(0.2, 0.2, 0.1, 0.2)
    assert not metrics.is_lost([good, metrics.NO_POSE, far, far, far, far, good], 0.1)
    assert metrics.is_lost([good] * 5 + [far, far, metrics.NO_POSE, far, far], 0.1)
    assert not metrics.is_lost([], 0.1)
