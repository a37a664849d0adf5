"""Where the values of a crop's pixel go: Warp functions of every kernel that writes crops."""

from __future__ import annotations

from typing import Any

import warp as wp

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

CHANNELS = wp.constant(6)  # of a crop: R, G, B and x, y, z
BLOCK_PX = wp.constant(4)  # side of a block: what the networks' first convolutions step over


@wp.func
def bounded(value: float) -> float:
    """Zero a normalised coordinate at two mesh radii or more, per channel (trap 5)."""
    if wp.abs(value) >= 2.0:
        return 0.0
    return value


@wp.func_native(
    """
    return wp::uint32(wp::float_to_half(low).u) | wp::uint32(wp::float_to_half(high).u) << 16;
"""
)
def half_pair(low: float, high: float) -> wp.uint32:
    """Round two numbers to half precision, into a word."""
    return wp.uint32(0)  # as above


@wp.func
def put(out: wp.array4d(dtype=wp.uint32), n: int, y: int, x: int, color: wp.vec3, xyz: wp.vec3):
    """Set a pixel of a crop of halves, two to a word (crop_blocks.crops_as_warp)."""
    word = ((y % BLOCK_PX) * BLOCK_PX + x % BLOCK_PX) * (CHANNELS // 2)
    row = y // BLOCK_PX
    column = x // BLOCK_PX
    out[n, row, column, word] = half_pair(color[0], color[1])
    out[n, row, column, word + 1] = half_pair(color[2], bounded(xyz[0]))
    out[n, row, column, word + 2] = half_pair(bounded(xyz[1]), bounded(xyz[2]))


@wp.func  # type: ignore[no-redef]  # Warp takes the one that fits the array
def put(out: wp.array4d(dtype=Any), n: int, y: int, x: int, color: wp.vec3, xyz: wp.vec3):  # noqa: F811
    """Set a pixel of a crop: in (N, 6, H, W), or in blocks (crop_blocks.in_blocks)."""
    row = y
    column = x
    first = int(0)
    if out.shape[1] != CHANNELS:
        first = ((y % BLOCK_PX) * BLOCK_PX + x % BLOCK_PX) * CHANNELS
        row = y // BLOCK_PX
        column = x // BLOCK_PX
    for c in range(3):
        out[n, first + c, row, column] = out.dtype(color[c])
        out[n, first + c + 3, row, column] = out.dtype(bounded(xyz[c]))


@wp.func
def pixel_of(out: wp.array4d(dtype=Any), y: int, x: int, width: int) -> wp.vec2i:
    """Row and column of the pixel that a thread writes: its own, or, of crops in blocks, one after
    the other as they lie in memory, so that neighbouring threads write neighbouring words."""
    if out.shape[1] == CHANNELS:
        return wp.vec2i(y, x)
    at = y * width + x
    pixels = BLOCK_PX * BLOCK_PX
    block = at // pixels
    across = width // BLOCK_PX
    pixel = at - block * pixels
    row = block // across
    return wp.vec2i(
        row * BLOCK_PX + pixel // BLOCK_PX,
        (block - row * across) * BLOCK_PX + pixel % BLOCK_PX,
    )
