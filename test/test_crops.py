"""Crop windows, rendered grid and observed sampling against float64 re-derivations.

The oracle of the observed half is the chain of the published program in float64: normalise the
homography with W - 1 (kornia <= 0.8.2), then torch's grid_sample with align_corners=False.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from raster_rig import drawn, mesh, network_input, on_devices, pose, sheet

from foundationpose_trt.pose.crops import (
    REFINER_CROP,
    SCORER_CROP,
    CropGeometry,
    CropSpec,
    ObservedImages,
    crop_windows,
    observed_grid,
    rendered_intrinsics,
    write_observed_input,
)

WIDTH, HEIGHT = 210, 150
CAMERA = np.array([240.0, 236.0, 104.3, 72.9])
CROP = 160


# --- the window ----------------------------------------------------------------------------------
def window_oracle(t: np.ndarray, k: np.ndarray, diameter: float, ratio: float) -> np.ndarray:
    """Project the centre and four points around it; round the extremes in float64."""
    reach = ratio * diameter / 2
    steps = np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]) * reach
    points = t.astype(np.float64) + steps
    pixels = points[:, :2] / points[:, 2:] * k[:2] + k[2:]
    radius = np.abs(pixels - pixels[0]).max()
    low, high = np.rint(pixels[0] - radius), np.rint(pixels[0] + radius)
    return np.concatenate([low, high - low])


def windows_of(t: np.ndarray, k: np.ndarray, diameter: float, ratio: float) -> np.ndarray:
    translations = torch.tensor(np.atleast_2d(t))
    intrinsics = torch.tensor(np.atleast_2d(k))
    size = torch.tensor([diameter], dtype=torch.float64)
    return crop_windows(translations, intrinsics, size, ratio).numpy()


@pytest.mark.parametrize('ratio', [1.1, 1.2])
def test_windows_follow_the_published_rule(ratio):
    rng = np.random.default_rng(0)
    t = (rng.uniform(-0.3, 0.3, (500, 3)) + (0, 0, 0.8)).astype(np.float32)
    found = windows_of(t, CAMERA, 0.173, ratio)
    expected = np.stack([window_oracle(at, CAMERA, 0.173, ratio) for at in t])
    np.testing.assert_array_equal(found, expected)
    # trap 7: corners are rounded one by one
    assert 50 < (expected[:, 2] != expected[:, 3]).sum() < 450
    assert np.abs(expected[:, 2] - expected[:, 3]).max() == 1


def test_every_crop_may_have_its_own_camera_and_diameter():
    rng = np.random.default_rng(1)
    t = rng.uniform(-0.1, 0.1, (9, 3)) + (0, 0, 0.6)
    k = CAMERA + rng.uniform(-20, 20, (9, 4))
    diameters = rng.uniform(0.05, 0.3, 9)
    found = crop_windows(torch.tensor(t), torch.tensor(k), torch.tensor(diameters), 1.2).numpy()
    expected = [window_oracle(*each, 1.2) for each in zip(t, k, diameters, strict=True)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ('center', 'expected'),
    [(100.5, (36, 128)), (101.5, (38, 128)), (100.0, (36, 128)), (100.75, (37, 128))],
)
def test_halves_are_rounded_to_even(center, expected):
    # radius 64 px exactly: 36.5 -> 36 and 164.5 -> 164, but 37.5 -> 38 and 165.5 -> 166
    k = np.array([512.0, 512.0, center, center])
    left, top, width, height = windows_of(np.array([0, 0, 1.0]), k, 0.25, 1.0)[0]
    assert (left, width) == (top, height) == expected


def test_rounding_happens_in_float64():
    # 500.5 + 2e-5 px: float32 (spacing 3e-5 there) cannot tell it from the tie that rounds down
    k = np.array([512.0, 512.0, 564.5 + 1e-5, 300.0])
    assert windows_of(np.array([0, 0, 1.0]), k, 0.25, 1.0)[0, 0] == 501
    assert windows_of(np.array([0, 0, 1.0]), k - 2e-5, 0.25, 1.0)[0, 0] == 500


def test_crop_ratios_and_depth_limits_of_both_networks():
    # traps 3 and 4
    assert (REFINER_CROP.ratio, REFINER_CROP.near_m, REFINER_CROP.two_step) == (1.2, 0.001, False)
    assert (SCORER_CROP.ratio, SCORER_CROP.near_m, SCORER_CROP.two_step) == (1.1, 0.1, True)


@pytest.mark.parametrize('z', [0.0, -1.0, 1e-9])
def test_windows_stay_finite_behind_the_camera(z):
    found = windows_of(np.array([[0.1, -0.2, z]]), CAMERA, 0.2, 1.2)
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1e6).all() and (found[:, 2:] >= 1).all()


# --- the rendered grid ---------------------------------------------------------------------------
WINDOWS = np.array([[40, 30, 77, 78], [-25, -13, 120, 119], [130, 60, 160, 161], [61, 35, 23, 23]])


@pytest.mark.parametrize('window', WINDOWS, ids=str)
def test_rendered_pixels_lie_where_the_published_program_puts_them(window):
    # a wall facing the camera shows, in its xyz, the ray of every crop pixel (traps 8 and 9)
    tensors = torch.tensor(window[None]).double(), torch.tensor(CAMERA[None])
    view = rendered_intrinsics(*tensors).numpy()
    wall = mesh(*sheet(np.array([-3.0, 3.0]), np.array([-3.0, 3.0])))
    raster = drawn([wall], [pose(at=(0, 0, 0.8))], camera=view, size=(CROP, CROP))
    xyz = network_input(raster, torch.empty(1, 6, CROP, CROP), 0.5, 0.001)[0, 3:]
    u = CAMERA[2] + CAMERA[0] * xyz[0] / 0.5 / 0.8
    v = CAMERA[3] + CAMERA[1] * xyz[1] / 0.5 / 0.8
    left, top, width, height = window
    at = (np.arange(CROP) + 0.5) * (159 / 160) / 160
    np.testing.assert_allclose(u, np.tile(left + at * width, (CROP, 1)), atol=2e-3)
    np.testing.assert_allclose(v, np.tile(top + at * height, (CROP, 1)).T, atol=2e-3)


# --- the observed half ---------------------------------------------------------------------------
def warp(image: np.ndarray, to_source: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Sample (C, h, w) at `to_source` (offset, step of x and of y), as kornia <= 0.8.2 does."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    (x0, step_x), (y0, step_y) = to_source
    normal_x = 2 * (x0 + x * step_x) / (image.shape[2] - 1) - 1
    normal_y = 2 * (y0 + y * step_y) / (image.shape[1] - 1) - 1
    grid = torch.tensor(np.stack([normal_x, normal_y], -1))[None]
    source = torch.tensor(np.asarray(image, np.float64))[None]
    return torch.nn.functional.grid_sample(
        source, grid, mode=mode, padding_mode='zeros', align_corners=False
    )[0].numpy()


def to_image(window: np.ndarray) -> np.ndarray:
    """Offset and step that lead from crop pixels to image pixels."""
    return np.array([[window[0], window[2] / CROP], [window[1], window[3] / CROP]])


def to_crop(window: np.ndarray) -> np.ndarray:
    return np.array(
        [[-window[0] * CROP / window[2], CROP / window[2]],
         [-window[1] * CROP / window[3], CROP / window[3]]]
    )  # fmt: skip


def unproject(depth: np.ndarray) -> np.ndarray:
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float64)
    xyz = np.stack(
        [(u - CAMERA[2]) / CAMERA[0] * depth, (v - CAMERA[3]) / CAMERA[1] * depth, depth]
    )
    return np.where(depth >= 0.001, xyz, 0)


def crop_xyz(depth: np.ndarray, window: np.ndarray, two_step: bool) -> np.ndarray:
    """Nearest xyz (3, 160, 160); the scorer's depth goes to the crop and back first."""
    if two_step:
        small = warp(depth[None], to_image(window), (CROP, CROP), 'nearest')
        depth = warp(small, to_crop(window), depth.shape, 'nearest')[0]
    return warp(unproject(depth), to_image(window), (CROP, CROP), 'nearest')


def normalised(xyz: np.ndarray, t: np.ndarray, scale: float, near_m: float) -> np.ndarray:
    out = (xyz - t[:, None, None]) * scale
    flagged = (np.abs(out) >= 2) | (xyz[2] < near_m)
    return np.where(flagged, 0, out)


def tie_free(window: np.ndarray, two_step: bool) -> np.ndarray:
    """Crop pixels (160, 160) whose roundings float32 cannot turn the other way."""
    sides = []
    for axis, length in ((0, WIDTH), (1, HEIGHT)):
        low, size = window[axis], window[2 + axis]
        at = np.arange(CROP)
        places = [(low + at * size / CROP) * length / (length - 1) - 0.5]
        if two_step:
            places.append((np.rint(places[0]) - low) * CROP / size * CROP / (CROP - 1) - 0.5)
            places.append((low + np.rint(places[1]) * size / CROP) * length / (length - 1) - 0.5)
        sides.append(np.all([np.abs(p % 1 - 0.5) > 2e-4 for p in places], axis=0))
    return np.outer(sides[1], sides[0])


def scene(seed: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    depth = rng.uniform(0.4, 0.9, (count, HEIGHT, WIDTH)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = 0
    return rgb, depth


def observed(images: tuple, windows: np.ndarray, t: np.ndarray, **call) -> np.ndarray:
    device = call.get('device', 'cpu')
    rgb, depth = (torch.tensor(array, device=device) for array in images)
    k = torch.tensor(np.tile(CAMERA, (len(rgb), 1)), dtype=torch.float32, device=device)
    placed = torch.tensor(windows, dtype=torch.float64, device=device)
    n = len(windows)
    scale = torch.full((n,), call.get('scale', 4.0), device=device)
    at = torch.tensor(t, dtype=torch.float32, device=device).expand(n, 3)
    geometry = CropGeometry(placed, observed_grid(placed, WIDTH, HEIGHT), at, scale)
    out = call.get('out', torch.full((n, 6, CROP, CROP), 9.0, device=device))
    spec = call.get('spec', REFINER_CROP)
    write_observed_input(out, ObservedImages(rgb, depth, k), geometry, spec)
    return out.float().cpu().numpy()


CENTER = np.float32([0.05, -0.02, 0.6]).astype(np.float64)


@on_devices
@pytest.mark.parametrize('spec', [REFINER_CROP, SCORER_CROP], ids=['refiner', 'scorer'])
def test_observed_input_is_the_published_chain(device, spec):
    rgb, depth = scene(0)
    written = observed((rgb, depth), WINDOWS, CENTER, spec=spec, device=device)
    for window, out in zip(WINDOWS, written, strict=True):
        color = warp(rgb[0].transpose(2, 0, 1), to_image(window), (CROP, CROP), 'bilinear') / 255
        np.testing.assert_allclose(out[:3], color, atol=1e-4)
        xyz = normalised(crop_xyz(depth[0], window, spec.two_step), CENTER, 4.0, spec.near_m)
        clear = tie_free(window, spec.two_step)
        assert clear.mean() > 0.8
        np.testing.assert_allclose(out[3:, clear], xyz[:, clear], atol=1e-5)
        assert (out[3:, clear] != 0).mean() > 0.2


def test_the_second_lookup_of_the_scorer_matters():
    # else the test above would pass without it; 0-35 % of the pixels differ (§2.3)
    _, depth = scene(0)
    once, twice = (crop_xyz(depth[0], WINDOWS[0], two_step) for two_step in (False, True))
    assert 0.05 < (once[2] != twice[2]).mean() < 0.5


@pytest.mark.parametrize(('x', 'shift'), [(1, -0.5), (WIDTH // 2, 0.0), (WIDTH - 2, 0.5)])
def test_sampling_shift_of_old_kornia(x, shift):
    # trap 8: -0.5 px at the left border, 0 in the middle, +0.5 at the right
    ramp = np.tile(np.arange(WIDTH, dtype=np.float32), (1, HEIGHT, 1))
    rgb = np.repeat(ramp[..., None], 3, -1) / 255
    window = np.array([[x - 80.0, 0.0, 160.0, 160.0]])
    out = observed((rgb, ramp), window, CENTER)[0, 0] * 255
    assert out[80, 80] == pytest.approx(x + shift, abs=0.02)


def test_colour_blends_with_black_at_the_border():
    white = np.full((1, HEIGHT, WIDTH, 3), 255, np.uint8)
    out = observed((white, scene(0)[1]), np.array([[-4.0, -4.0, 160.0, 160.0]]), CENTER)[0]
    # source x = 0 is read at -0.5: half of it is outside
    assert out[0, 80, 3] == 0
    np.testing.assert_allclose(out[:3, 80, 4], 0.5, atol=0.01)
    np.testing.assert_allclose(out[:3, 80, 5:], 1.0, atol=1e-6)
    np.testing.assert_allclose(out[:3, 4, 4], 0.25, atol=0.01)


def test_colour_is_kept_where_depth_is_missing():
    rgb, depth = scene(1)
    out = observed((rgb, depth * 0), WINDOWS, CENTER)
    assert (out[:, 3:] == 0).all()
    assert out[:, :3].mean() > 0.2


@pytest.mark.parametrize(('spec', 'limit'), [(REFINER_CROP, 0.001), (SCORER_CROP, 0.1)])
def test_depth_is_valid_from_the_networks_limit_on(spec, limit):
    rgb, _ = scene(2)
    window = np.array([[20.0, 10.0, 80.0, 80.0]])
    just_below = np.nextafter(np.float32(limit), np.float32(0))
    for z, kept in ((np.float32(limit), True), (just_below, False)):
        depth = np.full((1, HEIGHT, WIDTH), z, np.float32)
        out = observed((rgb, depth), window, np.array([0, 0, 0.5]), spec=spec, scale=1.0)
        # the scorer's way back from the crop misses the last row and column
        assert (out[0, 5, :150, :150] != 0).all() == kept
        assert (out[0, 3:] != 0).any() == kept


def test_coordinates_of_two_radii_are_zeroed_one_by_one():
    # trap 5; 0.25 m * 8 is exactly 2
    rgb, _ = scene(3)
    window = np.array([[20.0, 10.0, 80.0, 80.0]])
    for z, kept in ((1.25, False), (np.nextafter(np.float32(1.25), np.float32(1)), True)):
        depth = np.full((1, HEIGHT, WIDTH), z, np.float32)
        out = observed((rgb, depth), window, np.array([-0.2, 0, 1.0]), scale=8.0)
        assert (out[0, 5] != 0).all() == kept
        assert (out[0, 3:5] != 0).any()


@on_devices
def test_crops_are_shared_out_among_the_images(device):
    images = scene(4, count=3)
    windows = np.repeat(WINDOWS[:1], 6, axis=0)
    written = observed(images, windows, CENTER, device=device)
    for n in range(6):
        one = tuple(array[n // 2 : n // 2 + 1] for array in images)
        np.testing.assert_array_equal(
            written[n], observed(one, windows[:1], CENTER, device=device)[0]
        )
    assert (written[1] != written[2]).mean() > 0.5


def test_float_colours_are_read_as_zero_to_one():
    rgb, depth = scene(5)
    whole = observed((rgb, depth), WINDOWS, CENTER)
    fraction = observed((rgb.astype(np.float32) / 255, depth), WINDOWS, CENTER)
    np.testing.assert_allclose(fraction, whole, atol=1e-5)


@on_devices
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_any_precision_and_strides_hold_the_same_input(device, dtype):
    images = scene(6)
    full = observed(images, WINDOWS, CENTER, device=device)
    plain = torch.empty(4, 6, CROP, CROP, dtype=dtype, device=device)
    last = torch.empty_like(plain, memory_format=torch.channels_last)
    expected = torch.tensor(full).to(dtype).float().numpy()
    for out in (plain, last):
        np.testing.assert_array_equal(
            observed(images, WINDOWS, CENTER, out=out, device=device), expected
        )


@pytest.mark.parametrize('shape', [(4, 6, 160, 160), (6, 6, 128, 160), (6, 3, 160, 160)], ids=str)
def test_outputs_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r'for 3 images, must be \(a multiple of them, 6, 160'):
        windows = np.repeat(WINDOWS[:1], shape[0], axis=0)
        observed(
            scene(7, 3), windows, CENTER, out=torch.empty(shape), spec=CropSpec(1.2, 0.001, False)
        )
