"""The pose that a tracked frame ends with, made on the device: against the singular values."""

from __future__ import annotations

import numpy as np
import torch
from raster_rig import on_devices
from scene_rig import STARTS
from scipy.linalg import polar
from test_track_pass import MESHES, ORDER, centered, frame, rows_of, track_of

from foundationpose_trt.pose.mesh import ObjectMesh

__all__ = ['frame']  # a fixture
OUTPUTS = ('trans', 'rot')


def origin_of(centered: np.ndarray, mesh: ObjectMesh) -> np.ndarray:
    """The nearest rotation by singular values, and where it takes the mesh file's origin."""
    pose = np.eye(4)
    pose[:3, :3] = polar(centered[:3, :3])[0]
    pose[:3, 3] = centered[:3, 3] - pose[:3, :3] @ mesh.center_m
    return pose


@on_devices
def test_the_pose_of_the_origin_is_made_in_double_precision(device, frame):
    """At the start, and after a move."""
    poses = centered(STARTS)
    poses[:, :3, :3] += 1e-6 * np.random.default_rng(4).uniform(-1, 1, (3, 3, 3))
    assert min(np.abs(mesh.center_m).max() for mesh in MESHES) > 1e-3
    track = track_of(device, frame.depth_m.shape)
    for moves in (0, 1):
        track.begin(frame, rows_of(poses), ORDER)
        for _ in range(moves):
            track.write(3)
            track.move({name: torch.full((3, 3), 0.3, device=device) for name in OUTPUTS}, 3)
        rows, found = track.end(3)
        assert found.shape == (3, 4, 4) and found.dtype == np.float64
        for row, pose, index in zip(rows, found, ORDER, strict=True):
            wanted = origin_of(row[:16].reshape(4, 4).astype(float), MESHES[index])
            np.testing.assert_allclose(pose, wanted, atol=1e-10)


@on_devices
def test_what_is_no_rotation_is_left_to_the_host(device, frame):
    for spoil in (1.01, -1.0, np.nan, 0.0):
        poses = centered(STARTS)
        poses[1, :3, :3] *= spoil  # larger, a mirror, not a number, nothing
        track = track_of(device, frame.depth_m.shape)
        track.begin(frame, rows_of(poses), ORDER)
        assert track.end(3).camera_from_object[:, 3, 3].tolist() == [1, 0, 1]
