"""Warp kernels that cross the bus: images from the host's memory, results back into it."""

from __future__ import annotations

import warp as wp

from .track_kernels import Tracked

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

FETCHED_PX = wp.constant(8)  # pixels that are whole words of 8 bytes in both
RGB_WORDS, DEPTH_WORDS = wp.constant(3), wp.constant(4)  # that they take
NOWHERE = wp.constant(wp.uint64(0))


@wp.kernel
def fetch(source: wp.array(dtype=wp.uint64), target: wp.array(dtype=wp.uint64)):
    """Copy what lies in the host's memory, over the bus; whatever the words mean."""
    i = wp.tid()
    target[i] = source[i]


@wp.func_native(
    """
    return ((const wp::uint64*)address)[index];
"""
)
def word_at(address: wp.uint64, index: int) -> wp.uint64:
    """Read a word of 8 bytes behind an address."""
    return wp.uint64(0)  # as above


@wp.func
def patch_word(tracked: Tracked, address: wp.uint64, words: int, i: int) -> wp.uint64:
    """Read word i of the patch in an image whose FETCHED_PX pixels take so many words."""
    patch = tracked.patch[0]
    along = patch[2] // FETCHED_PX * words
    row = i // along
    pitch = int(tracked.camera[4]) // FETCHED_PX * words
    first = (patch[1] + row) * pitch + patch[0] // FETCHED_PX * words
    return word_at(address, first + i - row * along)


@wp.kernel
def fetch_in_place(
    tracked: Tracked, rgb: wp.array(dtype=wp.uint64), depth: wp.array(dtype=wp.uint64)
):
    """Copy the patch out of images in the host's memory, over the bus.

    Its columns and the image's are whole FETCHED_PX. An image without an address takes no thread.
    """
    i = wp.tid()
    patch = tracked.patch[0]
    runs = patch[2] // FETCHED_PX * patch[3]
    color = tracked.sources[0]
    colors = int(0)
    if color != NOWHERE:
        colors = runs * RGB_WORDS
    if i < colors:
        rgb[i] = patch_word(tracked, color, RGB_WORDS, i)
    elif tracked.sources[1] != NOWHERE and i - colors < runs * DEPTH_WORDS:
        depth[i - colors] = patch_word(tracked, tracked.sources[1], DEPTH_WORDS, i - colors)


@wp.kernel
def give_back(source: wp.array(dtype=float), target: wp.array(dtype=float)):
    """Copy to the host's memory, over the bus: begun sooner than a copy of CUDA's."""
    i = wp.tid()
    target[i] = source[i]
