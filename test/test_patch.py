"""The rectangle around what is tracked: by its definition, and by what the crops read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foundationpose_trt.datatypes import CameraIntrinsics
from foundationpose_trt.pose.crops import crop_windows
from foundationpose_trt.pose.patch import FILTER_REACH_PX, Patch, neighbourhood

CAMERA = CameraIntrinsics(580.0, 575.0, 321.5, 243.25, 640, 480)
DIAMETER_M = 0.2


def at(*places_m: tuple[float, float, float]) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(places_m), 1, 1))
    poses[:, :3, 3] = places_m
    return poses


def patch_of(*places_m: tuple[float, float, float]) -> Patch:
    numbers = at(*places_m).reshape(-1, 16).tolist()
    return neighbourhood(numbers, CAMERA, [DIAMETER_M] * len(places_m))


def test_it_is_1_6_diameters_wide_and_what_the_filters_read():
    x, y, z = 0.05, -0.02, 0.8
    patch = patch_of((x, y, z))
    u, v = 580.0 * x / z + 321.5, 575.0 * y / z + 243.25
    reach = 580.0 * 0.8 * DIAMETER_M / z
    assert patch.x == round(u - reach) - 4 and patch.y == round(v - reach) - 4
    assert patch.x + patch.width == round(u + reach) + 5
    assert patch.y + patch.height == round(v + reach) + 5
    assert patch.pixels == patch.width * patch.height


def test_of_several_it_is_the_rectangle_around_all():
    alone = [patch_of(place) for place in ((0.1, 0.0, 0.9), (-0.2, 0.1, 1.1))]
    both = patch_of((0.1, 0.0, 0.9), (-0.2, 0.1, 1.1))
    assert both.x == min(p.x for p in alone) and both.y == min(p.y for p in alone)
    assert both.x + both.width == max(p.x + p.width for p in alone)
    assert both.y + both.height == max(p.y + p.height for p in alone)


@pytest.mark.parametrize(
    'place_m',
    [(3.0, 0, 0.5), (-3.0, -3.0, 0.5), (0, 0, 0.01), (0, 0, -1.0), (0, 2.0, 1e-9), (1e30, 0, 1)],
)
def test_of_what_is_not_in_the_image_it_is_in_the_image(place_m):
    patch = patch_of(place_m)
    assert patch.width >= 1 and patch.height >= 1
    assert patch.x >= 0 and patch.x + patch.width <= CAMERA.width
    assert patch.y >= 0 and patch.y + patch.height <= CAMERA.height
    seen = patch.of(np.zeros((CAMERA.height, CAMERA.width, 3)))
    assert seen.shape == (patch.height, patch.width, 3)


@pytest.mark.parametrize(
    ('ratio', 'moved_diameters'), [(1.2, 0.18), (1.0, 0.28)], ids=['refiner', 'object']
)
def test_a_window_stays_inside_after_a_move(ratio, moved_diameters):
    rng = np.random.default_rng(0)
    for _ in range(200):
        place = rng.uniform((-0.3, -0.2, 0.5), (0.3, 0.2, 1.5))
        patch = patch_of(place)
        moved = torch.tensor(place[None])
        moved[0, :2] += torch.tensor(rng.choice([-1, 1], 2) * moved_diameters * DIAMETER_M)
        k = torch.tensor([[CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]])
        left, top, width, height = crop_windows(moved, k, torch.tensor([DIAMETER_M]), ratio)[0]
        low = np.maximum([left - 1, top - 1], 0)  # old kornia's shift is half a pixel
        high = np.minimum([left + width, top + height], [CAMERA.width - 1, CAMERA.height - 1])
        first = np.array([patch.x, patch.y])
        last = first + (patch.width, patch.height) - 1
        cut = FILTER_REACH_PX * (first > 0)
        assert (low >= first + cut).all()
        cut = FILTER_REACH_PX * (last < [CAMERA.width - 1, CAMERA.height - 1])
        assert (high <= last - cut).all()
