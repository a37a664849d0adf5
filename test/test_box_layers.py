"""Which layer of depth a box is drawn around, on scenes drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest

from foundationpose_trt.detection.box_layers import (
    MOST_PX,
    BoxView,
    better_layer,
    fit_of,
    grid_of_view,
    sides_met,
)
from foundationpose_trt.detection.label_image import standing_in_box

SIZE = 160  # of the image; the box is its middle, 100 pixels
ROWS, COLUMNS = slice(30, 130), slice(30, 130)
V, U = np.indices((SIZE, SIZE))
DISC = np.hypot(V - 79.5, U - 79.5) <= 49.5
BAND_M = 0.15


def scene(*parts: tuple[np.ndarray, float], table_m: float = 1.0) -> np.ndarray:
    """Depth of an upright table with these parts before it, later ones in front, and noise."""
    depth = np.full((SIZE, SIZE), table_m)
    for inside, depth_m in parts:
        depth[inside] = depth_m
    return depth + np.random.default_rng(0).uniform(-0.002, 0.002, depth.shape)


def in_box(mask: np.ndarray) -> np.ndarray:
    return mask[ROWS, COLUMNS]


@pytest.mark.parametrize('turns', range(4))
def test_what_passes_in_front_and_goes_on_is_not_the_object(turns):
    """A bar from corner to corner, through all sides of the box and most of its middle."""
    bar = np.rot90(abs(V - U) < 30, turns)
    depth = scene((DISC, 0.7), (bar, 0.5))
    found = standing_in_box(depth, ROWS, COLUMNS, BAND_M)
    np.testing.assert_array_equal(found, in_box(DISC & ~bar))


@pytest.mark.parametrize('turns', range(4))
def test_a_shelf_that_goes_on_behind_is_not_the_object(turns):
    """A ring, through which the larger part of the middle shows what lies behind it."""
    ring = DISC & (np.hypot(V - 79.5, U - 79.5) > 30)
    shelf = np.rot90((V > 20) & (U > 10), turns)
    depth = scene((shelf, 0.8), (ring, 0.6), table_m=1.4)
    found = standing_in_box(depth, ROWS, COLUMNS, BAND_M)
    np.testing.assert_array_equal(found, in_box(ring))


def test_both_layers_of_one_object_stay_with_the_chosen_one():
    """A body in two steps: the far one alone meets all sides, but the near one ends at the box."""
    near = DISC & (abs(V - 79.5) < 30)
    view = BoxView(scene((DISC, 0.8), (near, 0.7)) * DISC, ROWS, COLUMNS)
    own, far = fit_of(view, 0.69, 0.71), fit_of(view, 0.79, 0.81)
    assert (own.leak, own.sides, far.value) == (0, 2, 1)
    assert better_layer(view, in_box(near), BAND_M) is None


@pytest.mark.parametrize('gap_m', [0.05, 0.15, 0.3])
@pytest.mark.parametrize('bumpy', [False, True])
def test_a_can_in_the_cell_of_a_tray_is_not_what_shows_around_it(gap_m, bumpy):
    """What surrounds the box is as deep as the object: its layer goes on; the gaps do not."""
    cell = (V >= 30) & (V < 130) & (U >= 30) & (U < 130) & ~DISC
    depth = scene((cell, 0.7 + gap_m), table_m=0.7)
    if bumpy:  # no plane
        depth = np.where(cell | DISC, depth, depth + 0.03 * np.sin(V / 9) * np.sin(U / 7))
    found = standing_in_box(depth, ROWS, COLUMNS, BAND_M)
    assert found[in_box(DISC)].mean() > 0.99
    assert not (found & in_box(cell)).any() or gap_m < BAND_M / 2


def test_where_nothing_else_fits_better_the_choice_stays():
    """The neighbour in a row stands as deep: its layer goes on beyond, and is all there is."""
    row = (V > 35) & (V < 125)
    depth = scene((row, 0.7))
    chosen = in_box(row)
    view = BoxView(np.where(row, depth, 0), ROWS, COLUMNS)
    assert fit_of(view, 0.69, 0.71).leak > 0.3
    assert better_layer(view, chosen, BAND_M) is None


def test_nothing_chosen_stays_nothing():
    view = BoxView(scene(), ROWS, COLUMNS)
    assert better_layer(view, np.zeros((100, 100), bool), BAND_M) is None


@pytest.mark.parametrize(
    ('rows', 'columns', 'sides'),
    [
        (slice(0, 100), slice(0, 100), 4),
        (slice(14, 100), slice(40, 60), 2),
        (slice(16, 80), slice(40, 60), 0),
        (slice(16, 90), slice(40, 60), 1),
        (slice(16, 80), slice(0, 90), 2),
        (slice(0, 0), slice(0, 0), 0),
    ],
)
def test_sides_are_met_within_a_share_of_them(rows, columns, sides):
    inside = np.zeros((100, 100), bool)
    inside[rows, columns] = True
    assert sides_met(inside) == sides
    assert sides_met(inside.T) == sides


def test_a_leak_is_what_lies_beyond_over_what_lies_within():
    layer = (V >= 30) & (V < 130) & (U >= 50) & (U < 150)  # 20 columns beyond, 4 of them slack
    fit = fit_of(BoxView(np.where(layer, 0.7, 0.0), ROWS, COLUMNS), 0.6, 0.8)
    assert fit.leak == pytest.approx(16 / 80)
    assert fit.sides == 3 and fit.value == pytest.approx(0.75 - 0.2)


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize(
    ('part', 'expected', 'within'),
    [
        (slice(30, 130), slice(10, 150), slice(20, 120)),
        (slice(5, 25), slice(0, 45), slice(5, 25)),
        (slice(150, 160), slice(130, 160), slice(20, 30)),
    ],
)
def test_a_window_stays_in_the_image(part, expected, within, turned):
    """15 % of the longer side on either side: of 133 pixels, 20."""
    box = (part, slice(20, 153))
    grid = grid_of_view(*(reversed(box) if turned else box), (SIZE, SIZE))
    rows, box_rows = grid.rows, grid.box_rows
    if turned:
        rows, box_rows = grid.columns, grid.box_columns
    assert grid.step == rows.step == 1
    assert (rows.start, rows.stop) == (expected.start, expected.stop) and box_rows == within


@pytest.mark.parametrize(
    'box',
    [
        (slice(90, 990), slice(510, 1410)),
        (slice(0, 1080), slice(0, 1920)),
        (slice(1, 1075), slice(3, 700)),
    ],
)
def test_a_grid_of_a_large_box_has_its_pixels_where_it_says(box):
    size = (1080, 1920)
    grid = grid_of_view(*box, size)
    at = np.stack(np.indices(size))[:, grid.rows, grid.columns]
    assert grid.step > 1 and at[0].size < 1.1 * MOST_PX
    own = at[:, grid.box_rows, grid.box_columns]
    alone = np.stack(np.indices(size))[:, box[0], box[1]][(slice(None), *grid.within(*box))]
    np.testing.assert_array_equal(own, alone)


@pytest.mark.parametrize('scale', [4, 7])
def test_a_large_box_is_judged_as_a_small_one(scale):
    bar = abs(V - U) < 30
    depth = np.kron(scene((DISC, 0.7), (bar, 0.5)), np.ones((scale, scale)))
    rows = slice(ROWS.start * scale, ROWS.stop * scale)
    found = standing_in_box(depth, rows, rows, BAND_M)
    wanted = np.kron(in_box(DISC & ~bar), np.ones((scale, scale), bool))
    np.testing.assert_array_equal(found, wanted)
