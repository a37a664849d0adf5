"""Start poses of a registration: rotation grid and initial translation (foundationpose.md §3)."""

from __future__ import annotations

import numpy as np
import torch
import trimesh

MIN_VIEWPOINTS = 40  # -> icosphere subdivision 1, 42 vertices, foundationpose.md §3.2
IN_PLANE_STEP_DEG = 60.0
CLUSTER_ANGLE_DEG = 30.0
NEAR_VALID_M = 0.001


def viewpoints() -> np.ndarray:
    """Unit vectors (42, 3) float64: the smallest icosphere with at least 40 vertices."""
    subdivisions = 0
    while len(sphere := trimesh.creation.icosphere(subdivisions).vertices) < MIN_VIEWPOINTS:
        subdivisions += 1
    return np.asarray(sphere, dtype=np.float64)


def look_at_origin(position: np.ndarray) -> np.ndarray:
    """object_from_camera rotation (3, 3) of a camera at `position` looking at the origin.

    z points to the origin, x = up x z with up = +z of the object ([1, 0, 0] at the poles).
    """
    z = -position / np.linalg.norm(position)
    x = np.cross([0.0, 0.0, 1.0], z)
    length = np.linalg.norm(x)
    x = np.array([1.0, 0.0, 0.0]) if length < 1e-9 else x / length
    return np.stack([x, np.cross(z, x), z], axis=1)


def rotate_z(angle_rad: float) -> np.ndarray:
    """Rotation (3, 3) about z."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_grid(symmetries: np.ndarray | None = None) -> np.ndarray:
    """camera_from_object rotations (N, 3, 3) float64 to start from; N = 252 without symmetry.

    symmetries: (S, 3, 3) rotations that map the object onto itself, identity included. A pose is
    dropped when it lies less than 30 degrees from a kept one under some symmetry.
    """
    steps = np.deg2rad(np.arange(0.0, 360.0, IN_PLANE_STEP_DEG))
    grid = np.stack(
        [(look_at_origin(v) @ rotate_z(step)).T for v in viewpoints() for step in steps]
    )
    symmetries = np.eye(3)[None] if symmetries is None else np.asarray(symmetries, np.float64)
    return grid[_cluster(grid, symmetries)]


def _cluster(rotations: np.ndarray, symmetries: np.ndarray) -> list[int]:
    """Greedy choice in order; the cosine of the angle decides."""
    # The trace of a 30 degree rotation. Grid and quarter turns make angles of exactly 30, which
    # the reference keeps ("below 30 is dropped"): rounding must not decide on them.
    limit = 1 + 2 * np.cos(np.deg2rad(CLUSTER_ANGLE_DEG)) + 1e-6
    kept: list[int] = []
    for index, rotation in enumerate(rotations):
        equivalents = rotation @ symmetries
        traces = np.einsum('sij,kij->sk', equivalents, rotations[kept]) if kept else np.zeros(1)
        if traces.max() < limit:
            kept.append(index)
    return kept


def initial_translation(
    depth_m: torch.Tensor, mask: torch.Tensor, box: torch.Tensor, intrinsics: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """First guess of the object's centre (3,) float32 metres, and the valid pixel count ().

    depth_m: (H, W) filtered, metres; mask: (H, W) bool; box: (4,) float32 x_first, y_first,
    x_last, y_last of the mask; intrinsics: (4,). The box centre is back-projected at the median
    valid depth (§3.4). No host sync: with too few pixels the depth is NaN -> 0 and the caller
    reads the count with the result.
    """
    valid = mask & (depth_m >= NEAR_VALID_M)
    inside = torch.where(valid, depth_m, torch.full_like(depth_m, torch.nan)).flatten()
    z = torch.nan_to_num(_median(inside))
    u, v = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    x = (u - intrinsics[2]) / intrinsics[0] * z
    y = (v - intrinsics[3]) / intrinsics[1] * z
    return torch.stack([x, y, z]), valid.sum()


def _median(values: torch.Tensor) -> torch.Tensor:
    """Median as numpy defines it (mean of the middle two), ignoring NaN, without a host sync."""
    ordered = values.sort().values  # NaN goes last
    count = (~values.isnan()).sum()
    low = ordered.gather(0, ((count - 1) // 2).clamp_min(0).view(1))
    high = ordered.gather(0, (count // 2).clamp_max(len(values) - 1).view(1))
    return ((low + high) / 2)[0]
