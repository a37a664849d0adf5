"""The way of a frame to the device and back, and the two halves of a view."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from raster_rig import (
    box_parts,
    mesh,
    on_devices,
    plane_depth,
    pose,
    random_poses,
    rays,
    render,
)
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.pose.crops import REFINER_CROP, SCORER_CROP, ObservedImages, pairs_spec
from foundationpose_trt.pose.observation import Uploader
from foundationpose_trt.pose.views import ViewWriter

SIZE = (90, 110)
CAMERA = CameraIntrinsics(130.0, 128.0, 54.2, 43.9, SIZE[1], SIZE[0])
NUMBERS = (CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy)


def frame(seed: int) -> Frame:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Frame(rgb, rng.uniform(0.3, 0.9, SIZE).astype(np.float32), CAMERA)


# --- upload and download -------------------------------------------------------------------------
@on_devices
def test_everything_of_a_call_arrives_on_the_device(device):
    uploader = Uploader(*SIZE, torch.device(device))
    mask = np.random.default_rng(1).integers(0, 2, SIZE, dtype=np.uint8) * 255
    box = np.array([3, 4, 50, 60], np.float32)
    for seed in (3, 4):  # the second overwrites the first
        sent = frame(seed)
        there = uploader.upload(sent, mask, box)
        assert all(value.device.type == device for value in vars(there).values())
        np.testing.assert_array_equal(there.rgb[0].cpu(), sent.rgb)
        np.testing.assert_array_equal(there.depth_m[0].cpu(), sent.depth_m)
        np.testing.assert_array_equal(there.mask.cpu(), mask == 255)
        np.testing.assert_array_equal(there.box.cpu(), box)
        np.testing.assert_allclose(there.intrinsics[0].cpu(), NUMBERS, rtol=1e-7)
        back = uploader.download(torch.cat([there.intrinsics.flatten(), there.box]))
        np.testing.assert_array_equal(back, np.float32([*NUMBERS, *box]))


@on_devices
def test_downloads_are_the_callers_own(device):
    uploader = Uploader(*SIZE, torch.device(device))
    values = torch.arange(5.0, device=device)
    first = uploader.download(values)
    values += 10
    second = uploader.download(values[:3])
    third = uploader.download(torch.arange(9.0, device=device))
    np.testing.assert_array_equal(first, np.arange(5.0))
    np.testing.assert_array_equal(second, np.arange(3.0) + 10)
    np.testing.assert_array_equal(third, np.arange(9.0))


def test_the_frame_is_not_written_to():
    sent = frame(5)
    rgb, depth = sent.rgb.copy(), sent.depth_m.copy()
    uploader = Uploader(*SIZE, torch.device('cpu'))
    there = uploader.upload(sent, None, None)
    there.rgb.zero_()
    there.depth_m.zero_()
    np.testing.assert_array_equal(sent.rgb, rgb)
    np.testing.assert_array_equal(sent.depth_m, depth)


def test_strided_arrays_are_taken():
    # a cropped or flipped view of a larger image
    large = np.random.default_rng(6).integers(0, 256, (2 * SIZE[0], SIZE[1], 3), dtype=np.uint8)
    depth = np.random.default_rng(6).uniform(0.3, 1, (2 * SIZE[0], SIZE[1])).astype(np.float32)
    sent = Frame(large[::-2], depth[::2], CAMERA)
    there = Uploader(*SIZE, torch.device('cpu')).upload(sent, None, None)
    np.testing.assert_array_equal(there.rgb[0], large[::-2])
    np.testing.assert_array_equal(there.depth_m[0], depth[::2])


def test_filtered_depth_of_a_plane_is_the_plane():
    at = pose(Rotation.from_euler('x', 0.1), (0, 0, 0.6))
    depth = plane_depth(at, rays(NUMBERS, SIZE)).astype(np.float32)
    sent = Frame(np.zeros((*SIZE, 3), np.uint8), depth, CAMERA)
    uploader = Uploader(*SIZE, torch.device('cpu'))
    filtered = uploader.filtered_depth(uploader.upload(sent, None, None))
    assert filtered.shape == SIZE
    np.testing.assert_allclose(filtered[2:-2, 2:-2], depth[2:-2, 2:-2], atol=2e-5)


# --- both halves of a view -----------------------------------------------------------------------
HALF = np.array([0.05, 0.04, 0.03])


def painted_box():
    vertices, faces, normals = box_parts(HALF)
    colors = np.random.default_rng(0).uniform(0.1, 0.7, (6, 3)).repeat(4, axis=0)
    return mesh(vertices, faces, normals=normals, colors=colors)


def seen_images(at: np.ndarray, device: str = 'cpu') -> ObservedImages:
    """What a perfect camera sees of the box at a pose."""
    picture = render([painted_box()], [at], camera=NUMBERS, size=SIZE)
    return ObservedImages(
        torch.tensor(picture.color, device=device),
        torch.tensor(picture.depth_m, device=device),
        torch.tensor([NUMBERS], device=device),
    )


def written(poses: np.ndarray, images: ObservedImages, spec, device: str = 'cpu') -> tuple:
    writer = ViewWriter(
        painted_box(), len(poses) + 2, pairs_spec(torch.float32), torch.device(device)
    )
    at = torch.tensor(poses, dtype=torch.float32, device=device)
    halves = writer.write(at, images, spec, SIZE).chunk(2)
    return tuple(half.cpu().numpy().copy() for half in halves)


@on_devices
@pytest.mark.parametrize('spec', [REFINER_CROP, SCORER_CROP], ids=['refiner', 'scorer'])
def test_at_the_true_pose_both_halves_show_the_same(device, spec):
    at = random_poses(1, 7, 0.01)[0]
    rendered, observed = written(at[None], seen_images(at, device), spec, device)
    assert rendered.shape == observed.shape == (1, 6, 160, 160)
    covered = (rendered[0, 3:] != 0).any(0) & (observed[0, 3:] != 0).any(0)
    either = (rendered[0, 3:] != 0).any(0) | (observed[0, 3:] != 0).any(0)
    # the grids differ by up to half a crop pixel, and the image has larger pixels than the crop
    assert covered.sum() > 0.9 * either.sum() > 3000
    gap = np.abs(rendered - observed)[0][:, covered]
    assert np.median(gap[3:]) < 0.02 and np.median(gap[:3]) < 0.01
    # the box fills the crop by 1 / ratio: normalised by the same half diameter
    assert np.abs(rendered[0, 3:]).max() <= 1.001
    assert 0.5 < np.ptp(np.flatnonzero(either.any(0))) / 160 < 1 / spec.ratio + 0.05


def test_views_are_independent_of_each_other_and_of_the_capacity():
    poses = random_poses(3, 8, 0.01)
    images = seen_images(poses[0])
    together = written(poses, images, REFINER_CROP)
    for k in range(3):
        alone = written(poses[k : k + 1], images, REFINER_CROP)
        for half, own in zip(together, alone, strict=True):
            np.testing.assert_array_equal(half[k], own[0])


def test_width_and_height_keep_their_places():
    # in a flat strip the sampling quirk x W / (W - 1) - 0.5 differs by pixels between the sides
    size = (24, 300)
    ramp = np.tile(np.arange(300, dtype=np.float32) / 300, (24, 1))
    images = ObservedImages(
        torch.tensor(np.repeat(ramp[None, ..., None], 3, -1)),
        torch.full((1, *size), 0.5),
        torch.tensor([(130.0, 130.0, 240.0, 12.0)]),
    )
    writer = ViewWriter(painted_box(), 1, pairs_spec(torch.float32), torch.device('cpu'))
    at = torch.tensor(pose(at=(0, 0, 0.5))[None]).float()
    _, observed = writer.write(at, images, REFINER_CROP, size)
    read = observed[0, 80].numpy() * 300
    reach = 130 * 1.2 * np.linalg.norm(HALF) / 0.5
    low, high = round(240 - reach), round(240 + reach)
    source = (low + np.arange(160) * (high - low) / 160) * 300 / 299 - 0.5
    np.testing.assert_allclose(read, source, atol=1e-3)


def test_a_wall_is_observed_at_its_place():
    # independent of the rasterizer: xyz of a flat wall is its depth minus the pose's
    wall = np.full((1, *SIZE), 0.5, np.float32)
    images = ObservedImages(torch.zeros(1, *SIZE, 3), torch.tensor(wall), torch.tensor([NUMBERS]))
    at = pose(at=(0, 0, 0.48))
    _, observed = written(at[None], images, REFINER_CROP)
    inside = observed[0, 5] != 0
    assert inside.mean() > 0.9
    radius = np.linalg.norm(HALF)
    np.testing.assert_allclose(observed[0, 5][inside], 0.02 / radius, atol=1e-5)
