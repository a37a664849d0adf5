"""The rectangle around what is tracked: by its definition, and by what the crops read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foundationpose_trt.datatypes import CameraIntrinsics
from foundationpose_trt.pose.crops import crop_windows
from foundationpose_trt.pose.patch import FILTER_REACH_PX, Patch, first_read, neighbourhood

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


@pytest.mark.parametrize(
    'part',
    [
        Patch(3, 4, 5, 6),
        Patch(2, 3, 10, 9),
        Patch(2, 5, 10, 2),
        Patch(6, 3, 6, 9),
        Patch(2, 3, 1, 1),
    ],
)
def test_what_is_around_a_part_is_all_else_once(part):
    whole = Patch(2, 3, 10, 9)
    painted = np.zeros((20, 20), int)
    for each in whole.around(part):
        assert each.pixels > 0
        each.of(painted)[...] += 1
    part.of(painted)[...] += 1
    assert (whole.of(painted) == 1).all() and painted.sum() == whole.pixels


def test_a_part_of_a_patch_where_the_patch_has_it():
    whole, part = Patch(2, 3, 10, 9), Patch(4, 7, 3, 2)
    image = np.arange(400).reshape(20, 20)
    np.testing.assert_array_equal(part.of(whole.of(image), whole), part.of(image))


def test_a_patch_is_cut_to_what_two_have_in_common():
    assert Patch(2, 3, 10, 9).cut_to(Patch(5, 0, 30, 6)) == Patch(5, 3, 7, 3)
    assert Patch(4, 4, 2, 2).cut_to(Patch(0, 0, 20, 20)) == Patch(4, 4, 2, 2)


def test_what_is_read_first_is_part_of_the_whole():
    rng = np.random.default_rng(1)
    for _ in range(300):
        places = rng.uniform((-1.5, -1.2, 0.05), (1.5, 1.2, 3), (rng.integers(1, 4), 3))
        rows = at(*places).reshape(-1, 16).tolist()
        whole = neighbourhood(rows, CAMERA, [DIAMETER_M] * len(rows))
        part = first_read(rows, CAMERA, [DIAMETER_M] * len(rows), 1.2).cut_to(whole)
        assert part.width >= 1 and part.height >= 1
        assert part.cut_to(whole) == part
