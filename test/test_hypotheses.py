"""The rotation grid and the first translation against scipy, numpy and the published counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from raster_rig import on_devices
from scipy.spatial.distance import pdist, squareform
from scipy.spatial.transform import Rotation

from foundationpose_trt.pose.hypotheses import (
    initial_translation,
    look_at_origin,
    rotate_z,
    rotation_grid,
    viewpoints,
)

CAMERA = np.array([600.0, 590.0, 21.3, 14.8])


def turns(axis: str, step_deg: float) -> np.ndarray:
    """All rotations about an axis in steps, identity first."""
    angles = np.arange(0, 360, step_deg)[:, None]
    return Rotation.from_euler(axis, angles, degrees=True).as_matrix()


def products(*groups: np.ndarray) -> np.ndarray:
    out = np.eye(3)[None]
    for group in groups:
        out = (out[:, None] @ group[None]).reshape(-1, 3, 3)
    return out


def angles_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    relative = Rotation.from_matrix(first).inv() * Rotation.from_matrix(second)
    return np.rad2deg(relative.magnitude())


# --- viewpoints ----------------------------------------------------------------------------------
def test_viewpoints_are_the_once_divided_icosahedron():
    points = viewpoints()
    assert points.shape == (42, 3)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-12)
    nearest = np.sort(squareform(pdist(points)), axis=1)[:, 1]
    # 12 corners and 30 edge middles: an edge spans 63.43 degrees, half of it 31.72
    np.testing.assert_allclose(2 * np.arcsin(nearest / 2), np.deg2rad(31.7175), atol=1e-4)
    np.testing.assert_allclose(points.sum(0), 0, atol=1e-9)


@pytest.mark.parametrize('position', [*np.eye(3), *-np.eye(3), [0.3, -2.0, 0.7], [1e-12, 0, 2]])
def test_cameras_look_at_the_origin_with_a_level_x_axis(position):
    position = np.array(position)
    turn = look_at_origin(position)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(turn[:, 2], -position / np.linalg.norm(position), atol=1e-12)
    assert turn[2, 0] == 0
    if np.hypot(*position[:2]) < 1e-9:
        np.testing.assert_array_equal(turn[:, 0], (1, 0, 0))
    else:
        # x = up x z: for a camera that looks level, y is then up
        expected = np.array([position[1], -position[0], 0])
        np.testing.assert_allclose(turn[:, 0], expected / np.linalg.norm(expected), atol=1e-12)


def test_rotation_about_z():
    for angle in (-1.0, 0.0, 0.4, 3.0):
        expected = Rotation.from_rotvec([0, 0, angle]).as_matrix()
        np.testing.assert_allclose(rotate_z(angle), expected, atol=1e-15)


# --- the grid ------------------------------------------------------------------------------------
def test_grid_is_42_views_in_6_turns():
    grid = rotation_grid()
    assert grid.shape == (252, 3, 3)
    assert grid.dtype == np.float64
    np.testing.assert_allclose(grid @ grid.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(grid), 1, atol=1e-12)
    # camera_from_object: its last row is the viewing direction in the object's frame
    np.testing.assert_allclose(grid[::6, 2], -viewpoints(), atol=1e-12)
    for k in range(6):
        np.testing.assert_allclose(grid[k::6, 2], grid[::6, 2], atol=1e-12)
        relative = grid[k::6] @ grid[::6].transpose(0, 2, 1)
        expected = Rotation.from_euler('z', -60 * k, degrees=True).as_matrix()
        np.testing.assert_allclose(relative - expected, 0, atol=1e-12)


def test_neighbours_in_the_grid_are_31_72_degrees_apart():
    grid = rotation_grid()
    nearest = min(angles_between(grid[k], np.delete(grid, k, 0)).min() for k in range(252))
    assert nearest == pytest.approx(31.72, abs=0.005)


def test_every_rotation_is_near_a_hypothesis():
    grid = rotation_grid()
    anything = Rotation.random(400, random_state=1).as_matrix()
    gaps = np.array([angles_between(turn, grid).min() for turn in anything])
    assert gaps.max() < 40


SYMMETRIES = {
    'none': (np.eye(3)[None], 252),
    'z 180': (turns('z', 180), 126),
    'box': (products(turns('x', 180), turns('y', 180)), 63),
    'z 90': (turns('z', 90), 54),
    'z continuous': (turns('z', 5), 20),
    'z continuous and flip': (products(turns('z', 5), turns('x', 180)), 10),
    'y continuous': (turns('y', 5), 38),
    # not published: the turns of a pole's view come to 29.5 and 30.5 degrees of each other
    'z 30.5': (turns('z', 30.5)[[0, 1]], None),
}


@pytest.mark.parametrize('name', SYMMETRIES)
def test_symmetries_leave_the_published_number_of_hypotheses(name):
    symmetries, count = SYMMETRIES[name]
    kept = rotation_grid(symmetries)
    assert count is None or len(kept) == count
    # kept ones differ by 30 degrees under every symmetry, dropped ones do not
    for k in range(1, len(kept)):
        for symmetry in symmetries:
            assert angles_between(kept[k] @ symmetry, kept[:k]).min() > 30 - 1e-3
    for turn in rotation_grid()[::5]:
        equivalents = turn @ symmetries
        nearest = min(angles_between(other, kept).min() for other in equivalents)
        assert nearest < 30 - 1e-6 or np.abs(kept - turn).max((1, 2)).min() < 1e-12


# --- the first translation -----------------------------------------------------------------------
def translation(
    depth: np.ndarray, mask: np.ndarray, device: str = 'cpu'
) -> tuple[np.ndarray, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (columns[0], rows[0], columns[-1], rows[-1]) if len(rows) else (0, 0, 0, 0)
    at, count = initial_translation(
        torch.tensor(depth, dtype=torch.float32, device=device),
        torch.tensor(mask, device=device),
        torch.tensor(box, dtype=torch.float32, device=device),
        torch.tensor(CAMERA, dtype=torch.float32, device=device),
    )
    assert at.shape == (3,) and at.dtype == torch.float32
    return at.cpu().numpy(), int(count)


def random_view(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.3, 1.2, (30, 40))
    depth[rng.random(depth.shape) < 0.3] = 0
    depth[rng.random(depth.shape) < 0.1] = 0.0005
    mask = np.zeros(depth.shape, bool)
    x, y = rng.integers(0, 30), rng.integers(0, 20)
    mask[y : y + rng.integers(2, 10), x : x + rng.integers(2, 10)] = True
    return depth.astype(np.float32), mask & (rng.random(depth.shape) < 0.8)


@on_devices
def test_first_translation_is_the_box_centre_at_the_median_depth(device):
    parities = set()
    for seed in range(40):
        depth, mask = random_view(seed)
        usable = depth[mask & (depth >= 0.001)]
        rows, columns = np.nonzero(mask)
        u, v = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
        z = np.median(usable.astype(np.float64))
        matrix = np.array([[CAMERA[0], 0, CAMERA[2]], [0, CAMERA[1], CAMERA[3]], [0, 0, 1]])
        expected = z * np.linalg.solve(matrix, [u, v, 1])
        at, count = translation(depth, mask, device)
        assert count == len(usable)
        np.testing.assert_allclose(at, expected, atol=1e-6)
        parities.add(count % 2)
    assert parities == {0, 1}


@pytest.mark.parametrize('case', ['empty mask', 'no depth', 'depth too near'])
def test_without_usable_depth_the_translation_is_zero_and_never_nan(case):
    depth, mask = random_view(0)
    if case == 'empty mask':
        mask[:] = False
    else:
        depth[:] = 0.0 if case == 'no depth' else 0.0009
    at, count = translation(depth, mask)
    assert count == 0
    np.testing.assert_array_equal(at, 0)


def test_one_pixel_and_a_full_image_are_enough():
    depth = np.full((30, 40), 0.7, np.float32)
    one = np.zeros((30, 40), bool)
    one[4, 9] = True
    at, count = translation(depth, one)
    assert count == 1
    np.testing.assert_allclose(
        at[:2], 0.7 * (np.array([9, 4]) - CAMERA[2:]) / CAMERA[:2], atol=1e-6
    )
    at, count = translation(depth, np.ones((30, 40), bool))
    assert count == 1200
    assert at[2] == pytest.approx(0.7)
