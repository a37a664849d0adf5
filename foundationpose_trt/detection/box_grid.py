"""A grid of pixels over a box and what is around it: as few as tell enough, whatever its size."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BoxGrid:
    """Rows and columns of an image, step pixels apart, from beyond one side of a box to the other.

    box_rows, box_columns: which of them are the box's.
    """

    rows: slice
    columns: slice
    box_rows: slice
    box_columns: slice
    step: int

    def within(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Which rows and columns of the box are in the grid, counted from its own first ones."""
        own = (self.rows, rows), (self.columns, columns)
        first, second = ((grid.start - part.start) % self.step for grid, part in own)
        return slice(first, None, self.step), slice(second, None, self.step)


def longer_side(rows: slice, columns: slice) -> int:
    """Pixels of the longer side of a box."""
    return max(rows.stop - rows.start, columns.stop - columns.start)


def grid_around(
    rows: slice, columns: slice, size: tuple[int, ...], reach: int, most_px: int
) -> BoxGrid:
    """Lay a grid over a box and reach pixels beyond each of its sides, as far as the image goes.

    size: height and width of the image. Of most_px or hardly more.
    """
    area = math.prod(part.stop - part.start + 2 * reach for part in (rows, columns))
    step = max(1, math.ceil(math.sqrt(area / most_px)))
    grid, places = [], []
    for part, limit in zip((rows, columns), size, strict=True):
        first = max(part.start - reach, 0)
        grid.append(slice(first, min(part.stop + reach, limit), step))
        places.append(slice(-((first - part.start) // step), -((first - part.stop) // step)))
    return BoxGrid(grid[0], grid[1], places[0], places[1], step)
