"""The depth filters against a brute-force float64 computation of foundationpose.md §3.3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from raster_rig import on_devices

from foundationpose_trt.pose.depth import DepthFilter

SIZE = (37, 46)


def windows(depth: np.ndarray) -> np.ndarray:
    """The 25 neighbours (H, W, 25) of every pixel, NaN beyond the border."""
    padded = np.pad(depth.astype(np.float64), 2, constant_values=np.nan)
    view = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    return view.reshape(*depth.shape, 25)


def valid(depth: np.ndarray) -> np.ndarray:
    return (depth >= 0.001) & (depth < 100)


def eroded(depth: np.ndarray) -> np.ndarray:
    around = windows(depth)
    in_bounds = ~np.isnan(around)
    center = depth[..., None].astype(np.float64)
    good = valid(around) & (np.abs(around - center) <= 0.001)
    bad = in_bounds.sum(-1) - good.sum(-1)
    # whole numbers: bad / all > 0.8 without a rounded quotient
    keep = valid(depth) & ~(5 * bad > 4 * in_bounds.sum(-1))
    return np.where(keep, depth, 0)


def smoothed(depth: np.ndarray) -> np.ndarray:
    around = windows(depth)
    usable = valid(around)
    v, u = np.mgrid[-2:3, -2:3].reshape(2, 25)
    gaussian = np.exp(-(u**2 + v**2) / (2 * 2.0**2))
    count = usable.sum(-1)
    mean = np.where(usable, around, 0).sum(-1) / np.maximum(count, 1)
    near = usable & (np.abs(around - mean[..., None]) < 0.01)
    weights = near * gaussian
    total = weights.sum(-1)
    weighted = np.where(near, around, 0) @ gaussian
    return np.where(total > 0, weighted / np.maximum(total, 1e-9), 0)


def expected(depth: np.ndarray) -> np.ndarray:
    return smoothed(eroded(depth))


def rough_scene(seed: int, holes: float) -> np.ndarray:
    """A slope with steps of 3 cm and 6 mm, noise, holes, and values out of range."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    depth = 0.6 + 1e-4 * u - 2e-4 * v + 0.03 * (u > 20) + 0.006 * (v > 15)
    depth = depth + rng.normal(0, rng.choice([1e-4, 8e-4]), SIZE)
    depth[rng.random(SIZE) < 0.02] = rng.choice([0.0005, 100.0, 150.0, 3.0])
    depth[rng.random(SIZE) < holes] = 0
    return depth.astype(np.float32)


def filtered(depth: np.ndarray, device: str = 'cpu') -> np.ndarray:
    stack = depth.reshape(-1, *depth.shape[-2:])
    images = torch.tensor(stack, device=device)
    return DepthFilter(*stack.shape, torch.device(device))(images).cpu().numpy().copy()


@on_devices
@pytest.mark.parametrize('holes', [0.0, 0.1, 0.5, 0.8])
def test_filter_is_the_brute_force_one_everywhere(device, holes):
    scenes = np.stack([rough_scene(seed, holes) for seed in range(6)])
    result = filtered(scenes, device)
    for depth, out in zip(scenes, result, strict=True):
        truth = expected(depth)
        assert (truth > 0).any()
        np.testing.assert_allclose(out, truth, atol=2e-6)


def test_the_scenes_exercise_both_filters():
    scene = rough_scene(0, 0.5)
    assert 20 < (valid(scene) & (eroded(scene) == 0)).sum() < scene.size / 2
    assert ((scene == 0) & (expected(scene) > 0)).sum() > 100
    assert (expected(scene) == 0).sum() > 0


def test_a_flat_wall_stays_and_its_small_holes_are_filled():
    wall = np.full(SIZE, 0.8, np.float32)
    wall[10:12, 20:22] = 0
    np.testing.assert_allclose(filtered(wall)[0], 0.8, atol=1e-6)


def test_large_holes_keep_their_inside():
    wall = np.full(SIZE, 0.8, np.float32)
    wall[8:20, 8:20] = 0
    # one pixel is reached by the 5x5 window from two pixels away
    assert (filtered(wall)[0][10:18, 10:18] == 0).all()
    assert (filtered(wall)[0][8:10, 8:20] > 0).all()


def test_lonely_pixels_and_flying_pixels_are_dropped():
    wall = np.full(SIZE, 0.8, np.float32)
    wall[10, 10] = 0.75
    assert filtered(wall)[0, 10, 10] == pytest.approx(0.8, abs=1e-6)
    lonely = np.zeros(SIZE, np.float32)
    lonely[10, 10] = 0.75
    assert (filtered(lonely) == 0).all()


def test_erosion_keeps_a_fifth_and_not_less():
    # 5 good pixels of 25 are bad / all = 0.8: kept; 4 are not. The corners see but themselves
    # and the middle, so that nothing else survives and fills it.
    depth = np.zeros((11, 11), np.float32)
    depth[3:8:4, 3:8:4] = depth[5, 5] = 0.5
    assert (filtered(depth)[0, 3:8, 3:8] == 0.5).all()
    depth[3, 3] = 0
    assert (filtered(depth) == 0).all()


@pytest.mark.parametrize(
    'value', [0.0, 0.0009, 100.0, np.float32(1e6), -1.0, np.nan, np.inf, -np.inf]
)
def test_an_image_without_valid_depth_gives_none(value):
    assert (filtered(np.full(SIZE, value, np.float32)) == 0).all()


def test_depth_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'depth is \(1, 8, 8\), this filter is for \(1, 6, 8\)'):
        DepthFilter(1, 6, 8, torch.device('cpu'))(torch.zeros(1, 8, 8))


def test_the_source_is_left_alone():
    scene = rough_scene(3, 0.2)
    kept = scene.copy()
    filtered(scene)
    np.testing.assert_array_equal(scene, kept)
