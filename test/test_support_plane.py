"""What lies on a table is told from the table; scenes are planes of a pinhole camera."""

from __future__ import annotations

import numpy as np
import pytest

from foundationpose_trt.detection.label_image import label_image, standing_in_box
from foundationpose_trt.detection.postprocess import Detections
from foundationpose_trt.detection.support_plane import find_support, off_support

HEIGHT, WIDTH, FOCAL_PX, BAND_M = 240, 320, 300.0, 0.15
ROWS, COLUMNS = slice(90, 150), slice(120, 200)
ON_IT = slice(100, 140), slice(130, 190)
TIGHT = slice(97, 143), slice(126, 194)  # as detectors draw them
TABLE = (0.1, -0.6, -0.8, 0.6)  # normal and distance: seen from above, 0.5 to 1.2 m away


def without_support(depth_m: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    return off_support(depth_m, find_support(depth_m, rows, columns), rows, columns)


def plane_depth_m(normal_x: float, normal_y: float, normal_z: float, off_m: float) -> np.ndarray:
    """Depth of the plane normal * point = -off_m, of every pixel."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    along = normal_x * (u - WIDTH / 2) / FOCAL_PX + normal_y * (v - HEIGHT / 2) / FOCAL_PX
    return -off_m / (along + normal_z)


@pytest.fixture
def table() -> np.ndarray:
    depth = plane_depth_m(*TABLE)
    assert depth.min() > 0.5 and depth.max() < 1.2
    return depth


def noisy(depth_m: np.ndarray, deviation_m: float) -> np.ndarray:
    return depth_m + np.random.default_rng(1).normal(0, deviation_m, depth_m.shape)


def expected_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[ON_IT] = True
    return mask


@pytest.mark.parametrize('deviation_m', [0.0, 0.001, 0.003])
def test_what_stands_on_a_table_is_left(table, deviation_m):
    table[ON_IT] -= 0.04
    depth = noisy(table, deviation_m)
    left = without_support(depth, ROWS, COLUMNS)
    wrong = (left > 0) != expected_mask()[ROWS, COLUMNS]
    assert wrong.mean() < 0.01
    kept = left > 0
    np.testing.assert_array_equal(left[kept], depth[ROWS, COLUMNS][kept])


@pytest.mark.parametrize('tilt', [(0.0, 0.0, -1.0), (0.5, 0.2, -1.0), (-0.3, -0.6, -0.7)])
def test_a_wall_behind_goes_too(tilt):
    depth = plane_depth_m(*tilt, 1.0)
    depth[ON_IT] = 0.6
    left = without_support(depth, ROWS, COLUMNS)
    np.testing.assert_array_equal(left > 0, expected_mask()[ROWS, COLUMNS])


def test_half_of_the_surroundings_may_be_something_else(table):
    table[:, :160] -= np.random.default_rng(2).uniform(0.05, 0.4, (HEIGHT, 160))
    table[ON_IT] = 0.5
    left = without_support(table, ROWS, COLUMNS)
    beside = slice(0, 60), slice(75, 80)
    assert (left[beside] == 0).all() and (left > 0)[10:50, 10:70].all()


def test_what_lies_behind_an_edge_of_the_table_stays(table):
    table[:110] = 3.0
    table[ON_IT] = 0.5
    left = without_support(table, ROWS, COLUMNS)
    assert (left[:10] == 3.0).all() and (left[55:] == 0).all()


def unchanged(depth: np.ndarray, rows: slice = ROWS, columns: slice = COLUMNS) -> bool:
    return np.array_equal(
        without_support(depth, rows, columns), depth[rows, columns], equal_nan=True
    )


def test_a_flat_thing_is_not_lost_with_its_table(table):
    table[ON_IT] -= 0.002
    assert unchanged(table)


def test_what_stands_behind_something_flat_is_not_lost_with_it(table):
    """Below the object's upper half a wall is nearer than all that is seen; above all is rough."""
    table[:110] = np.random.default_rng(4).uniform(0.8, 2.0, (110, WIDTH))
    table[ON_IT] = 0.45
    table[110:] = 0.3
    assert unchanged(table)


def test_without_a_plane_around_nothing_changes(table):
    rough = np.random.default_rng(3).uniform(0.5, 2.0, table.shape)
    rough[ROWS, COLUMNS] = table[ROWS, COLUMNS]
    assert unchanged(rough)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('nothing', [0.0, np.inf, np.nan])
def test_where_the_camera_saw_nothing(table, nothing):
    blind = np.full_like(table, nothing)
    blind[ROWS, COLUMNS] = table[ROWS, COLUMNS]
    assert unchanged(blind)
    table[ON_IT] = 0.5
    table[::3] = nothing
    left = without_support(table, ROWS, COLUMNS)
    seen = np.isfinite(left) & (left > 0)
    np.testing.assert_array_equal(seen[1::3], expected_mask()[ROWS, COLUMNS][1::3])


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
    ('rows', 'columns'),
    [
        (slice(0, 60), slice(0, 80)),
        (slice(180, 240), slice(240, 320)),
        (slice(0, 240), slice(0, 320)),
        (slice(5, 5), slice(7, 7)),
        (slice(240, 240), slice(100, 200)),
        (slice(50, 100), slice(60, 60)),
    ],
)
def test_boxes_at_the_edges(table, rows, columns):
    table[rows, columns][5:40, 5:50] = 0.4
    left = without_support(table, rows, columns)
    assert left.shape == table[rows, columns].shape
    alone = left.size == 0 or left.shape == table.shape  # nothing around such a box
    assert alone == unchanged(table, rows, columns)


def test_a_line_of_pixels_is_no_plane(table):
    """All around that has depth lies on one row: any plane through it would do."""
    line = np.zeros_like(table)
    line[80] = table[80]
    line[ROWS, COLUMNS] = table[ROWS, COLUMNS]
    assert unchanged(line)


DISC_PX = np.hypot(*(np.indices((HEIGHT, WIDTH)) - np.array([120, 160])[:, None, None]))


@pytest.mark.parametrize('height_m', [0.04, 0.15])
def test_through_the_middle_of_a_ring_the_table_is_seen(table, height_m):
    ring = (DISC_PX < 40) & (DISC_PX > 28)
    table[ring] -= height_m
    rows, columns = slice(80, 161), slice(120, 201)
    found = standing_in_box(table, rows, columns, 2 * BAND_M)
    np.testing.assert_array_equal(found, ring[rows, columns])


def test_a_thing_of_glass_without_depth_is_not_the_table_around_it(table):
    table[102:138, 132:188] = 0.0
    assert not standing_in_box(table, ROWS, COLUMNS, BAND_M).any()


def test_one_of_a_row_of_cartons_is_not_what_passes_before_it():
    depth = np.full((HEIGHT, WIDTH), 0.8)
    gripper = slice(92, 112), slice(125, 165)
    depth[gripper] = 0.6
    found = standing_in_box(depth, ROWS, COLUMNS, BAND_M)
    np.testing.assert_array_equal(found, depth[ROWS, COLUMNS] == 0.8)


def test_the_size_of_the_image_does_not_matter(table):
    """Three times as many pixels a side: the same pixels are the table's."""
    table[ON_IT] -= 0.05
    large = np.kron(table, np.ones((3, 3)))
    rows, columns = (slice(3 * part.start, 3 * part.stop) for part in TIGHT)
    found = standing_in_box(large, rows, columns, BAND_M)
    expected = np.kron(expected_mask(), np.ones((3, 3), bool))[rows, columns]
    assert (found != expected).mean() < 0.001


def test_the_label_of_a_box_is_what_stands_on_the_table(table):
    """The table under it lies in its band of depth and is not labelled."""
    table[ON_IT] -= 0.05
    rows, columns = TIGHT
    box = np.array([[columns.start, rows.start, columns.stop, rows.stop]], np.float32)
    found = Detections(box, np.array([0.9], np.float32), np.array([0]), np.array([0]))
    labels = label_image(found, [0], table.shape, table)
    np.testing.assert_array_equal(labels == 1, expected_mask())
