"""Both halves of a network input together: the crop's scale and near limit per network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle_rig import CAMERA, RADIUS_M, SEMI_AXES_M, ellipsoid, frame_of, pose_of

from foundationpose_trt.pose.crops import (
    REFINER_CROP,
    SCORER_CROP,
    CropSpec,
    ObservedImages,
    pairs_spec,
)
from foundationpose_trt.pose.views import ViewWriter

SIZE = (CAMERA.height, CAMERA.width)
K = torch.tensor([[CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]])


def writer_of(dtype: torch.dtype = torch.float32, capacity: int = 4) -> ViewWriter:
    return ViewWriter(ellipsoid(np.zeros(3)), capacity, pairs_spec(dtype), torch.device('cpu'))


def poses_at(*places_m: tuple[float, float, float]) -> torch.Tensor:
    poses = torch.eye(4).repeat(len(places_m), 1, 1)
    poses[:, :3, 3] = torch.tensor(places_m)
    return poses


def images_of(depth_m: np.ndarray, rgb: np.ndarray | None = None) -> ObservedImages:
    rgb = np.full((*SIZE, 3), 100, np.uint8) if rgb is None else rgb
    return ObservedImages(torch.from_numpy(rgb)[None], torch.from_numpy(depth_m)[None], K)


def extent(shown: torch.Tensor) -> tuple[int, int]:
    """Columns and rows that show anything."""
    return int(shown.any(0).sum()), int(shown.any(1).sum())


@pytest.mark.parametrize(('spec', 'ratio'), [(REFINER_CROP, 1.2), (SCORER_CROP, 1.1)])
def test_the_crop_is_as_wide_as_the_networks_ratio_says(spec, ratio):
    """Trap 3. The outline of an ellipsoid along the axes, seen from 0.7 m: no perspective yet."""
    truth = poses_at((0.0, 0.0, 0.7))
    frame, _ = frame_of(truth[0].double().numpy(), center_m=np.zeros(3))
    images = images_of(frame.depth_m, frame.rgb)
    rendered, observed = writer_of().write(truth, images, spec, SIZE).chunk(2)
    across = 160 / (ratio * 2 * RADIUS_M)  # crop pixels per metre; fx is the larger focal length
    width = 2 * SEMI_AXES_M[0] * across
    height = 2 * SEMI_AXES_M[1] * across * CAMERA.fy / CAMERA.fx
    for half in (rendered[0], observed[0]):
        columns, rows = extent((half[3:] != 0).any(0))
        assert columns == pytest.approx(width, abs=3) and rows == pytest.approx(height, abs=3)


@pytest.mark.parametrize(('spec', 'near_m'), [(REFINER_CROP, 0.001), (SCORER_CROP, 0.1)])
def test_near_depth_is_dropped_as_the_network_wants(spec, near_m):
    """Trap 4, in both halves; colour stays."""
    rows = np.full(SIZE, 0.09, np.float32)
    rows[SIZE[0] // 2 :] = 0.11
    at = poses_at((0.0, 0.0, 0.12))
    rendered, observed = writer_of().write(at, images_of(rows), spec, SIZE).chunk(2)
    has_xyz, drawn = (rendered[0, 3:] != 0).any(0), (rendered[0, :3] != 0).any(0)
    z = 0.12 + rendered[0, 5] * RADIUS_M
    assert drawn[80, 80] and bool(has_xyz[80, 80]) == (near_m < 0.09)  # 0.03 m before the centre
    assert z[has_xyz].min() >= near_m
    seen = (observed[0, 3:] != 0).any(0)
    far, near = seen[110, 60:100], seen[40, 60:100]  # 2.75 image pixels per crop pixel
    assert far.all() and near.all() == near.any() == (near_m < 0.09)
    assert (observed[0, :3, 40, 60:100] > 0).all()


def test_fewer_poses_than_rows_give_as_many_crops():
    writer = writer_of(capacity=4)
    images = images_of(np.full(SIZE, 0.5, np.float32))
    many = poses_at((0.0, 0.0, 0.5), (0.05, 0.0, 0.6), (0.0, 0.05, 0.7), (-0.05, 0.0, 0.8))
    whole = writer.write(many, images, REFINER_CROP, SIZE).clone().chunk(2)
    assert whole[0].shape == whole[1].shape == (4, 6, 160, 160)
    for k in range(4):
        pair = writer.write(many[k : k + 1], images, REFINER_CROP, SIZE).chunk(2)
        for half, expected in zip(pair, whole, strict=True):
            assert half.shape == (1, 6, 160, 160)
            torch.testing.assert_close(half[0], expected[k], atol=0, rtol=0)


def test_half_precision_is_the_rounded_full_precision():
    frame, _ = frame_of(pose_of(3, np.zeros(3)), center_m=np.zeros(3), wall_m=0.7)
    images = images_of(frame.depth_m, frame.rgb)
    pose = torch.from_numpy(pose_of(3, np.zeros(3))).float()[None]
    full = writer_of().write(pose, images, REFINER_CROP, SIZE)
    half = writer_of(torch.float16).write(pose, images, REFINER_CROP, SIZE)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.float16
        torch.testing.assert_close(a.float(), b.half().float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('spec', [REFINER_CROP, SCORER_CROP])
@pytest.mark.parametrize('z_m', [-0.5, 0.0, 1e-4, 0.01])
def test_hypotheses_at_or_behind_the_camera_give_finite_inputs(spec: CropSpec, z_m):
    images = images_of(np.full(SIZE, 0.5, np.float32))
    for half in writer_of().write(poses_at((0.01, 0.0, z_m)), images, spec, SIZE):
        assert half.isfinite().all() and half.abs().max() <= 2


def test_meshes_of_other_size_scale_with_their_diameter():
    """Twice the object at twice the distance fills the crop alike."""
    small = ellipsoid(np.zeros(3))
    big = replace(small, vertices=small.vertices * 2, diameter_m=small.diameter_m * 2)
    images = images_of(np.full(SIZE, 5.0, np.float32))
    halves = [
        ViewWriter(mesh, 1, pairs_spec(torch.float32), torch.device('cpu')).write(
            poses_at((0.0, 0.0, z)), images, REFINER_CROP, SIZE
        )[0]
        for mesh, z in ((small, 0.5), (big, 1.0))
    ]
    torch.testing.assert_close(halves[0], halves[1], atol=2e-3, rtol=0)
