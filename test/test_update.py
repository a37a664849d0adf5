"""What the refiner's outputs do to a pose: traps 1 and 2, and the inverse used in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from foundationpose_trt.pose.update import apply_update, target_update

LIMIT_RAD = np.deg2rad(20.0)


def random_poses(count: int, seed: int) -> np.ndarray:
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    poses[:, :3, 3] = np.random.default_rng(seed).uniform(
        (-0.3, -0.3, 0.4), (0.3, 0.3, 1.5), (count, 3)
    )
    return poses


def updated(
    poses: np.ndarray, trans: np.ndarray, rot: np.ndarray, radius: np.ndarray
) -> np.ndarray:
    update = {'trans': torch.from_numpy(trans).float(), 'rot': torch.from_numpy(rot).float()}
    result = apply_update(
        torch.from_numpy(poses).float(), update, torch.from_numpy(radius).float()
    )
    assert result.dtype == torch.float32
    return result.double().numpy()


def test_rotation_is_squashed_and_transposed():
    """Trap 1: R' = exp([w]x)^T R with w = 20 degrees * tanh(rot), elementwise."""
    rng = np.random.default_rng(1)
    poses, rot = random_poses(50, 1), rng.normal(0, 1.5, (50, 3))
    result = updated(poses, np.zeros((50, 3)), rot, np.full(50, 0.1))
    turn = Rotation.from_rotvec(LIMIT_RAD * np.tanh(rot)).as_matrix()
    expected = np.transpose(turn, (0, 2, 1)) @ poses[:, :3, :3]
    np.testing.assert_allclose(result[:, :3, :3], expected, atol=2e-6)
    not_transposed = turn @ poses[:, :3, :3]
    assert np.abs(result[:, :3, :3] - not_transposed).max() > 0.3


def test_a_positive_turn_about_the_optical_axis_turns_back():
    rot = np.array([[0.0, 0.0, 50.0]])  # tanh -> 1
    result = updated(np.eye(4)[None], np.zeros((1, 3)), rot, np.ones(1))
    c, s = np.cos(LIMIT_RAD), np.sin(LIMIT_RAD)
    np.testing.assert_allclose(result[0, :3, :3], [[c, s, 0], [-s, c, 0], [0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize('radius', [[0.02], [0.5], [0.1, 0.2, 0.3, 0.4]])
def test_translation_is_in_radii_and_not_squashed(radius):
    """Trap 2: t' = t + trans * diameter / 2, whatever the size of trans."""
    trans = np.array([[3.0, -2.5, 10.0], [0.1, 0, 0], [0, -0.01, 0], [0, 0, 1.5]])
    poses = random_poses(4, 2)
    result = updated(poses, trans, np.zeros((4, 3)), np.array(radius))
    expected = poses[:, :3, 3] + trans * np.array(radius)[:, None]
    np.testing.assert_allclose(result[:, :3, 3], expected, atol=2e-6)
    np.testing.assert_allclose(result[:, :3, :3], poses[:, :3, :3], atol=2e-6)


def test_translation_does_not_depend_on_the_rotation():
    """The update is given in the camera frame, not in the object's."""
    trans, rot = np.tile([0.5, 0.25, -0.5], (9, 1)), np.random.default_rng(3).normal(size=(9, 3))
    poses = random_poses(9, 3)
    moved = updated(poses, trans, rot, np.full(9, 0.08))[:, :3, 3] - poses[:, :3, 3]
    np.testing.assert_allclose(moved, 0.08 * trans, atol=1e-6)


def test_the_input_is_left_alone_and_the_last_row_kept():
    poses = torch.from_numpy(random_poses(3, 4)).float()
    before = poses.clone()
    result = apply_update(
        poses, {'trans': torch.ones(3, 3), 'rot': torch.ones(3, 3)}, torch.ones(1)
    )
    assert torch.equal(poses, before)
    assert torch.equal(result[:, 3], torch.tensor([[0.0, 0, 0, 1]]).repeat(3, 1))


def test_half_precision_outputs_do_not_degrade_the_pose():
    """The networks may run in fp16; the pose of 1.5 m must not be rounded to it (1 mm)."""
    poses = random_poses(20, 5)
    update = {key: torch.full((20, 3), 0.125, dtype=torch.float16) for key in ('trans', 'rot')}
    result = apply_update(torch.from_numpy(poses).float(), update, torch.tensor([0.1]))
    assert result.dtype == torch.float32
    shift = result.double().numpy()[:, :3, 3] - poses[:, :3, 3]
    np.testing.assert_allclose(shift, 0.0125, atol=1e-6)


def unsquashed(target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {'trans': target['trans'], 'rot': torch.atanh(target['rot'])}


def near(poses: np.ndarray, largest_rad: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn = Rotation.from_rotvec(rng.uniform(-largest_rad, largest_rad, (len(poses), 3)))
    goal = poses.copy()
    goal[:, :3, :3] = turn.as_matrix() @ poses[:, :3, :3]
    goal[:, :3, 3] += rng.uniform(-0.1, 0.1, (len(poses), 3))
    return goal


def test_target_is_the_inverse_of_the_update_within_reach():
    poses = random_poses(60, 6)
    goal = near(poses, 0.9 * LIMIT_RAD, 6)
    start, end = (torch.from_numpy(p).float() for p in (poses, goal))
    radius = torch.linspace(0.03, 0.2, 60)
    target = target_update(start, end, radius)
    assert target['rot'].abs().max() < 0.95
    reached = apply_update(start, unsquashed(target), radius)
    np.testing.assert_allclose(reached.numpy(), goal, atol=3e-6)


def test_the_target_of_a_reached_goal_is_zero():
    poses = torch.from_numpy(random_poses(5, 7)).float()
    target = target_update(poses, poses, torch.tensor([0.1]))
    for value in target.values():
        assert value.shape == (5, 3) and value.abs().max() < 1e-5


@pytest.mark.parametrize('degrees', [25.0, 60.0, 120.0, 170.0])
def test_beyond_reach_the_target_keeps_its_direction(degrees):
    rng = np.random.default_rng(8)
    axes = rng.normal(size=(40, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    poses = random_poses(40, 8)
    goal = poses.copy()
    turn = Rotation.from_rotvec(-np.deg2rad(degrees) * axes).as_matrix()
    goal[:, :3, :3] = turn @ poses[:, :3, :3]
    start, end = (torch.from_numpy(p).float() for p in (poses, goal))
    rot = target_update(start, end, torch.tensor([0.1]))['rot'].double().numpy()
    np.testing.assert_allclose(rot / np.linalg.norm(rot, axis=1, keepdims=True), axes, atol=2e-3)
    beyond = np.abs(degrees / 20.0 * axes).max(1) > 0.95
    np.testing.assert_allclose(np.abs(rot).max(1)[beyond], 0.95, atol=1e-4)
    np.testing.assert_allclose(rot[~beyond], degrees / 20.0 * axes[~beyond], atol=1e-4)


def test_iterating_the_clipped_target_converges():
    poses = random_poses(30, 9)
    goal = random_poses(30, 10)
    current, end = (torch.from_numpy(p).float() for p in (poses, goal))
    for _ in range(14):
        target = target_update(current, end, torch.tensor([0.1]))
        current = apply_update(current, unsquashed(target), torch.tensor([0.1]))
    np.testing.assert_allclose(current.numpy(), goal, atol=1e-5)
