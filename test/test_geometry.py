"""Rotations and transforms against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from foundationpose_trt.geometry import (
    exp_so3,
    invert_transform,
    log_so3,
    quaternion_xyzw,
    random_rotations,
    rotation_angle,
    skew,
    transform,
)

ANGLES = [0.0, 1e-12, 1e-7, 9e-5, 1.1e-4, 1e-3, 0.1, 1.0, 2.0, 3.0, 3.1]


def rotation_vectors(angle: float, count: int = 50, seed: int = 0) -> np.ndarray:
    axes = np.random.default_rng(seed).normal(size=(count, 3))
    return angle * axes / np.linalg.norm(axes, axis=1, keepdims=True)


def test_skew_is_the_cross_product():
    a, b = np.random.default_rng(1).normal(size=(2, 4, 5, 3))
    product = (skew(torch.tensor(a)) @ torch.tensor(b)[..., None])[..., 0]
    np.testing.assert_allclose(product, np.cross(a, b), atol=1e-14)


@pytest.mark.parametrize('angle', [*ANGLES, np.pi, 5.0])
def test_exp_is_scipys_rotation(angle):
    vectors = rotation_vectors(angle)
    expected = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(exp_so3(torch.tensor(vectors)), expected, atol=1e-13)
    single = exp_so3(torch.tensor(vectors, dtype=torch.float32))
    np.testing.assert_allclose(single, expected, atol=1e-6)


def test_exp_keeps_the_leading_dimensions():
    vectors = np.random.default_rng(2).normal(size=(2, 3, 4, 3))
    expected = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(2, 3, 4, 3, 3)
    np.testing.assert_allclose(exp_so3(torch.tensor(vectors)), expected, atol=1e-13)


@pytest.mark.parametrize('angle', ANGLES)
def test_log_is_scipys_rotation_vector(angle):
    vectors = rotation_vectors(angle)
    matrices = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(log_so3(torch.tensor(matrices)), vectors, atol=1e-9)


@pytest.mark.parametrize('angle', ANGLES)
def test_exp_of_log_gives_the_rotation_back(angle):
    matrices = Rotation.from_rotvec(rotation_vectors(angle, seed=3)).as_matrix()
    back = exp_so3(log_so3(torch.tensor(matrices)))
    np.testing.assert_allclose(back, matrices, atol=1e-9)


def test_exp_has_finite_gradients_at_zero():
    vectors = torch.zeros(2, 3, requires_grad=True)
    exp_so3(vectors).sum().backward()
    assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize('angle', [*ANGLES, np.pi - 1e-6, np.pi - 1e-9, np.pi])
def test_rotation_angle_is_scipys_magnitude(angle):
    first = Rotation.random(50, random_state=4)
    second = first * Rotation.from_rotvec(rotation_vectors(angle))
    measured = rotation_angle(torch.tensor(first.as_matrix()), torch.tensor(second.as_matrix()))
    np.testing.assert_allclose(measured, angle, atol=1e-12)


def test_rotation_angle_resolves_small_angles_in_float32():
    # an arc cosine of the trace would return 0 or 5e-4 here
    first = Rotation.random(50, random_state=5)
    second = first * Rotation.from_rotvec(rotation_vectors(1e-4))
    pair = [torch.tensor(r.as_matrix(), dtype=torch.float32) for r in (first, second)]
    np.testing.assert_allclose(rotation_angle(*pair), 1e-4, atol=3e-7)


def test_random_rotations_are_uniform_and_repeatable():
    drawn = random_rotations(20000, torch.Generator().manual_seed(3))
    again = random_rotations(20000, torch.Generator().manual_seed(3))
    matrices = drawn.double().numpy()
    np.testing.assert_array_equal(drawn, again)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-5)
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-5)
    # every entry is uniform in -1..1 (Archimedes): mean 0, variance 1/3, a quarter below -0.5
    np.testing.assert_allclose(matrices.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(matrices.var(0), 1 / 3, atol=0.01)
    np.testing.assert_allclose((matrices < -0.5).mean(0), 0.25, atol=0.015)
    # the angle of a uniform rotation has density (1 - cos a) / pi
    angles = Rotation.from_matrix(matrices).magnitude()
    for limit in (0.5, 1.0, 2.0, 3.0):
        expected = (limit - np.sin(limit)) / np.pi
        assert np.mean(angles < limit) == pytest.approx(expected, abs=0.012)


def test_transforms_are_built_and_inverted():
    turn = Rotation.random(random_state=6).as_matrix()
    matrix = transform(turn, np.array([1.0, -2.0, 3.0]))
    points = np.random.default_rng(0).normal(size=(5, 3))
    moved = np.column_stack([points, np.ones(5)]) @ matrix.T
    np.testing.assert_allclose(moved[:, :3], points @ turn.T + (1, -2, 3), atol=1e-14)
    np.testing.assert_array_equal(matrix[3], (0, 0, 0, 1))
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(invert_transform(matrix), np.linalg.inv(matrix), atol=1e-14)


def quaternion_cases() -> Rotation:
    half_turns = Rotation.from_rotvec(rotation_vectors(np.pi, 40))
    nearly = Rotation.from_rotvec(rotation_vectors(np.pi - 1e-7, 40))
    axes = Rotation.from_rotvec(np.pi * np.concatenate([np.eye(3), -np.eye(3)]))
    tiny = Rotation.from_rotvec(rotation_vectors(1e-9, 20))
    anything = Rotation.random(300, random_state=7)
    return Rotation.concatenate([half_turns, nearly, axes, tiny, anything, Rotation.identity(1)])


def test_quaternions_are_scipys():
    for rotation in quaternion_cases():
        q = quaternion_xyzw(rotation.as_matrix())
        expected = rotation.as_quat()
        assert q[3] >= 0
        assert np.linalg.norm(q) == pytest.approx(1, abs=1e-15)
        # q and -q are the same rotation
        error = min(np.abs(q - expected).max(), np.abs(q + expected).max())
        assert error < 1e-12


def test_quaternion_order_is_x_y_z_w():
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(quaternion_xyzw(quarter), (0, 0, 0.5**0.5, 0.5**0.5), atol=1e-15)
