"""Which depth in a detected box is the object's, where something passes in front of it."""

from __future__ import annotations

import numpy as np
import pytest

from foundationpose_trt.detection import box_layers
from foundationpose_trt.detection.label_image import (
    LAYER_SHARE,
    fills_corners,
    in_band,
    reaches_all_sides,
)

SIDE, BAND_M = 100, 0.15
ROWS, COLUMNS = np.indices((SIDE, SIDE))
DISC = np.hypot(ROWS - 49.5, COLUMNS - 49.5) <= 49.5


def layers(values_m: np.ndarray) -> list[np.ndarray]:
    return box_layers.layers(values_m, LAYER_SHARE)


def box_of(*parts: tuple[np.ndarray, float]) -> np.ndarray:
    """Depth of a table 0.5 m away with these parts on it, later ones in front, and some noise."""
    depth = np.full((SIDE, SIDE), 0.5)
    for inside, depth_m in parts:
        depth[inside] = depth_m
    return depth + np.random.default_rng(0).uniform(-0.004, 0.004, depth.shape)


@pytest.mark.parametrize('turns', range(4))
def test_behind_what_fills_the_middle_lies_the_object(turns):
    """Something comes in from one side and covers most of the middle of a disc."""
    before = np.rot90((ROWS < 58) & (COLUMNS > 15) & (COLUMNS < 85), turns)
    found = in_band(box_of((DISC, 0.33), (before, 0.2)), BAND_M)
    np.testing.assert_array_equal(found, DISC & ~before)


@pytest.mark.parametrize('arm_px', [9, 12])
@pytest.mark.parametrize('slope_m', [0.0, 0.06, 0.1, 0.2])
def test_a_table_behind_the_object_is_not_the_object(slope_m, arm_px):
    """A cross that does not reach the right side; a third of its middle shows the table."""
    cross = ((abs(ROWS - 50) < arm_px) | (abs(COLUMNS - 50) < arm_px)) & (COLUMNS < 80)
    table = 0.5 + slope_m * (0.5 - ROWS / SIDE)
    depth = np.where(cross, 0.3, table) + box_of() - 0.5
    assert 0.25 < (~cross[25:75, 25:75]).mean() < 0.5
    np.testing.assert_array_equal(in_band(depth, BAND_M), cross)


@pytest.mark.parametrize('sentinel_m', [1e5, 1e10, float(np.finfo(np.float32).max)])
def test_a_depth_that_means_nothing_costs_nothing(sentinel_m):
    depth = box_of((DISC, 0.33)).astype(np.float32)
    depth[50, 50] = sentinel_m
    found = in_band(depth, BAND_M)
    assert not found[50, 50] and found.sum() == DISC.sum() - 1


def test_small_layers_within_an_object_do_not_take_its_place():
    """A vase shows its far inside through the opening, and no more of its top."""
    front, opening = DISC & (ROWS > 25), DISC & (ROWS <= 38) & (ROWS > 25)
    found = in_band(box_of((front, 0.33), (opening, 0.45)), BAND_M)
    np.testing.assert_array_equal(found, front & ~opening)


def test_one_surface_is_one_layer_and_flying_pixels_are_none():
    near, far = np.full(600, 0.3), np.full(400, 0.6)
    flying = np.linspace(0.32, 0.58, 12)
    slope = np.linspace(0.3, 0.6, 1000)
    (part,) = layers(slope)
    assert len(part) > 990
    found = layers(np.sort(np.concatenate([near, far, flying])))
    assert [(part[0], part[-1]) for part in found] == [(0.3, 0.3), (0.6, 0.6)]
    assert [len(part) for part in layers(np.array([0.4]))] == [1]


def test_sides_and_corners():
    assert reaches_all_sides(DISC) and not fills_corners(DISC)
    assert reaches_all_sides(~DISC) and fills_corners(~DISC)
    assert not reaches_all_sides(DISC & (COLUMNS < 80)) and not reaches_all_sides(DISC & False)
    assert fills_corners(~DISC & ~((ROWS < 30) & (COLUMNS < 30)))
    assert not fills_corners(~DISC & (ROWS < 50))
