"""Warp kernels that cross the bus: images from the host's memory, results back into it."""

from __future__ import annotations

import warp as wp

from .track_kernels import Tracked

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

FETCHED_PX = wp.constant(8)  # pixels that are whole words of 8 bytes in both
RGB, DEPTH = wp.constant(0), wp.constant(1)  # places in Tracked.sources
RGB_WORDS, DEPTH_WORDS = wp.constant(3), wp.constant(4)  # of FETCHED_PX pixels


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


@wp.kernel
def fetch_in_place(tracked: Tracked, image: int, words: int, target: wp.array(dtype=wp.uint64)):
    """Copy the patch out of an image in the host's memory, over the bus.

    image: its place in tracked.sources. words: that FETCHED_PX pixels of it take; the patch's
    columns and the image's are whole FETCHED_PX.
    """
    i = wp.tid()
    patch = tracked.patch[0]
    along = patch[2] // FETCHED_PX * words
    row = i // along
    if row < patch[3]:
        pitch = int(tracked.camera[4]) // FETCHED_PX * words
        first = (patch[1] + row) * pitch + patch[0] // FETCHED_PX * words
        target[i] = word_at(tracked.sources[image], first + i - row * along)


@wp.kernel
def give_back(source: wp.array(dtype=float), target: wp.array(dtype=float)):
    """Copy to the host's memory, over the bus: begun sooner than a copy of CUDA's."""
    i = wp.tid()
    target[i] = source[i]
