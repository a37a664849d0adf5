"""What several objects in one call stand on: united regions, poses with objects, mixed crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_rig import CAMERA
from raster_rig import on_devices
from scene_rig import THINGS, scene_of

from foundationpose_trt.pose.crops import REFINER_CROP, SCORER_CROP, ObservedImages
from foundationpose_trt.pose.depth import DepthFilter
from foundationpose_trt.pose.observation import Uploader
from foundationpose_trt.pose.views import ViewWriter

SIZE = (48, 64)
REGIONS = {
    'apart': [[2, 3, 12, 14], [40, 20, 60, 44]],
    'overlapping': [[10, 10, 30, 30], [25, 5, 50, 20], [28, 28, 29, 47]],
    'one in another': [[5, 5, 50, 40], [10, 10, 20, 20]],
    'touching the border': [[0, 0, 5, 47], [60, 0, 63, 3]],
    'of one pixel, and twice the same': [[7, 9, 7, 9], [30, 30, 33, 33], [30, 30, 33, 33]],
}


def rough(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = 0.6 + 0.001 * np.arange(SIZE[1]) + rng.normal(0, 4e-4, SIZE)
    depth[rng.random(SIZE) < 0.15] = 0
    return depth.astype(np.float32)


# --- regions of the depth filter -------------------------------------------------------------
@on_devices
@pytest.mark.parametrize('name', REGIONS)
def test_a_union_is_the_whole_cut_to_its_regions(name, device):
    images = torch.tensor(np.stack([rough(1), rough(2)]), device=device)
    whole = DepthFilter(2, *SIZE, torch.device(device))(images).clone()
    # each image has regions of its own, as many as the other
    regions = torch.tensor([REGIONS[name], REGIONS[name][::-1]], dtype=torch.int32, device=device)
    regions[1, :, 0].clamp_(min=1)
    united = DepthFilter(2, *SIZE, torch.device(device))
    united(torch.full_like(images, 0.5))  # what an earlier frame leaves behind
    result = united(images, regions)
    for image in range(2):
        inside = torch.zeros(SIZE, dtype=torch.bool, device=device)
        for x0, y0, x1, y1 in regions[image].tolist():
            inside[y0 : y1 + 1, x0 : x1 + 1] = True
        assert 0 < int(inside.sum()) < inside.numel()
        torch.testing.assert_close(result[image], whole[image] * inside, atol=0, rtol=0)


def test_one_region_each_may_be_given_without_its_axis():
    images = torch.tensor(np.stack([rough(1), rough(2)]))
    regions = torch.tensor([[2, 3, 30, 20], [10, 0, 63, 47]], dtype=torch.int32)
    flat, deep = (DepthFilter(2, *SIZE, torch.device('cpu')) for _ in range(2))
    torch.testing.assert_close(
        flat(images, regions), deep(images, regions[:, None]), atol=0, rtol=0
    )


# --- the way to the device -------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize('objects', [(0,), (4, 0, 2), (1, 1, 0, 4, 3)])
def test_poses_arrive_with_the_objects_they_are_of(device, objects):
    uploader = Uploader(CAMERA.height, CAMERA.width, torch.device(device), poses=5)
    frame, _ = scene_of((), ())
    rng = np.random.default_rng(0)
    # more poses before: what they leave behind must not show
    uploader.upload(frame, None, None, rng.normal(size=(5, 4, 4)), range(5))
    poses = rng.normal(size=(len(objects), 4, 4))
    there = uploader.upload(frame, None, None, poses, objects)
    assert there.pose.device.type == there.objects.device.type == device
    assert there.objects.dtype == torch.int32 and there.objects.tolist() == list(objects)
    np.testing.assert_array_equal(there.pose.cpu(), poses.astype(np.float32))
    expected = [CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]
    np.testing.assert_allclose(there.intrinsics[0].cpu(), expected, rtol=1e-7)


# --- crops of several meshes -----------------------------------------------------------------
MESHES = [thing.mesh() for thing in THINGS]
ORDER = (2, 0, 1, 0)


def mixed(device: str) -> tuple[torch.Tensor, torch.Tensor, ObservedImages]:
    """Centred poses of the meshes in ORDER, a little apart, and what a camera sees."""
    poses = [thing.pose(seed) for seed, thing in enumerate(THINGS)]
    frame, _ = scene_of(THINGS, poses)
    centered = np.stack([poses[i] @ MESHES[i].object_from_centered for i in ORDER])
    centered[3, :3, 3] += 0.01, 0.0, 0.02
    images = ObservedImages(
        torch.tensor(frame.rgb[None], device=device),
        torch.tensor(frame.depth_m[None], device=device),
        torch.tensor([[CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]], device=device),
    )
    objects = torch.tensor(ORDER, dtype=torch.int32, device=device)
    return torch.tensor(centered, dtype=torch.float32, device=device), objects, images


@on_devices
@pytest.mark.parametrize('spec', [REFINER_CROP, SCORER_CROP], ids=['refiner', 'scorer'])
def test_crops_of_mixed_objects_are_those_of_writers_of_one(device, spec):
    poses, objects, images = mixed(device)
    where, size = torch.device(device), images.size
    writer = ViewWriter(MESHES, 6, torch.float32, where)
    together = [half.clone() for half in writer.write(poses, images, spec, size, objects)]
    seen = writer.write_with_depth(poses, images, spec, size, objects)[1].clone()
    regions = writer.neighbourhood(poses, images.intrinsics, size, objects)
    for row, index in enumerate(ORDER):
        alone = ViewWriter(MESHES[index], 1, torch.float32, where)
        own = poses[row : row + 1]
        for half, expected in zip(together, alone.write(own, images, spec, size), strict=True):
            assert expected.abs().mean() > 0.02
            torch.testing.assert_close(half[row], expected[0], atol=0, rtol=0)
        depth = alone.write_with_depth(own, images, spec, size)[1]
        torch.testing.assert_close(seen[row], depth[0], atol=0, rtol=0)
        region = alone.neighbourhood(own, images.intrinsics, size)
        torch.testing.assert_close(regions[row], region[0], atol=0, rtol=0)


def test_an_image_knows_its_size():
    assert mixed('cpu')[2].size == (CAMERA.height, CAMERA.width)
