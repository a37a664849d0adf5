"""What lies on a table is told from the table; scenes are planes of a pinhole camera."""

from __future__ import annotations

import numpy as np
import pytest

from foundationpose_trt.detection.label_image import label_image
from foundationpose_trt.detection.postprocess import Detections
from foundationpose_trt.detection.support_plane import without_support

HEIGHT, WIDTH, FOCAL_PX = 240, 320, 300.0
ROWS, COLUMNS = slice(90, 150), slice(120, 200)
ON_IT = slice(100, 140), slice(130, 190)
TABLE = (0.1, -0.6, -0.8, 0.6)  # normal and distance: seen from above, 0.5 to 1.2 m away


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
    """Below the object's upper half a wall is nearer than all that is seen of it."""
    table[ON_IT] = 0.45
    table[120:] = 0.3
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


@pytest.mark.parametrize(
    ('rows', 'columns'),
    [
        (slice(0, 60), slice(0, 80)),
        (slice(180, 240), slice(240, 320)),
        (slice(0, 240), slice(0, 320)),
        (slice(5, 5), slice(7, 7)),
    ],
)
def test_boxes_at_the_edges(table, rows, columns):
    table[rows, columns][5:40, 5:50] = 0.4
    left = without_support(table, rows, columns)
    assert left.shape == table[rows, columns].shape
    alone = left.shape in ((0, 0), table.shape)  # nothing around such a box
    assert alone == unchanged(table, rows, columns)


def test_a_line_of_pixels_is_no_plane(table):
    """All around that has depth lies on one row: any plane through it would do."""
    line = np.zeros_like(table)
    line[80] = table[80]
    line[ROWS, COLUMNS] = table[ROWS, COLUMNS]
    assert unchanged(line)


def test_the_label_of_a_box_is_what_stands_on_the_table(table):
    """The table under it lies in its band of depth and is not labelled."""
    table[ON_IT] -= 0.05
    box = np.array([[COLUMNS.start, ROWS.start, COLUMNS.stop, ROWS.stop]], np.float32)
    found = Detections(box, np.array([0.9], np.float32), np.array([0]), np.array([0]))
    labels = label_image(found, [0], table.shape, table)
    np.testing.assert_array_equal(labels == 1, expected_mask())
