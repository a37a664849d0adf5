"""What several objects in one call stand on: crops of mixed meshes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_rig import CAMERA
from raster_rig import on_devices
from scene_rig import THINGS, scene_of

from foundationpose_trt.pose.crops import REFINER_CROP, SCORER_CROP, ObservedImages, pairs_spec
from foundationpose_trt.pose.views import ViewWriter

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
    writer = ViewWriter(MESHES, 6, pairs_spec(torch.float32), where)
    together = writer.write(poses, images, spec, size, objects).clone().chunk(2)
    for row, index in enumerate(ORDER):
        alone = ViewWriter(MESHES[index], 1, pairs_spec(torch.float32), where)
        own = poses[row : row + 1]
        pair = alone.write(own, images, spec, size).chunk(2)
        for half, expected in zip(together, pair, strict=True):
            assert expected.abs().mean() > 0.02
            torch.testing.assert_close(half[row], expected[0], atol=0, rtol=0)


def test_an_image_knows_its_size():
    assert mixed('cpu')[2].size == (CAMERA.height, CAMERA.width)
