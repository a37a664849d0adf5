"""Warp kernels between the matrix products of the heads: what lies there is read once.

Rows are tokens, one head's after the other's: of G * rows, row r is of head r // rows. All is
summed in float32. No `annotations` from the future: Warp evaluates those of closures at once.
"""

import functools
from dataclasses import dataclass
from typing import Any

import warp as wp

THREADS = 64  # that share a row
TOKENS_AT_ONCE = 20  # of a crop's 400, summed up by one block


@dataclass(frozen=True)
class HeadKernels:
    """Kernels for tokens of so many channels d, each a tiled launch (warp_launch.launch_tiled).

    add_norm: layer norm of tokens (rows, d) + product (G * rows, d) + bias, a row a block; norm
    (3, G, d): these biases, and the norm's scales and shifts.
    add_relu: of a product and a bias, in its place, a row a block. norm_sums: the layer norm of
    tokens (G * rows, d) + product + bias without its scale and shift, summed over TOKENS_AT_ONCE
    rows, these a block. last: from such sums, of one head and crop a block, the mean over the
    tokens and the linear layer behind it, of the first head to trans, of the second to rot.
    """

    add_norm: wp.Kernel
    add_relu: wp.Kernel
    norm_sums: wp.Kernel
    last: wp.Kernel


@wp.func
def rectified(value: float) -> float:
    """ReLU that lets pass what is not a number, as torch's does."""
    return wp.where(value < 0.0, 0.0, value)


@functools.cache
def head_kernels(channels: int, dtype: Any) -> HeadKernels:
    """Make the kernels for a number of channels and a type, wp.float16 or wp.float32.

    A tile's size is a constant of its kernel. Nothing is compiled before the first launch.
    """
    add_norm, norm_sums = _norms(channels, dtype)
    return HeadKernels(add_norm, _add_relu(channels, dtype), norm_sums, _last(channels))


def _norms(channels: int, dtype: Any) -> tuple[wp.Kernel, wp.Kernel]:
    size = wp.constant(channels)
    at_once = wp.constant(TOKENS_AT_ONCE)
    per_channel = wp.constant(1.0 / channels)

    @wp.func
    def normalized(total: Any, eps: float):
        mean = wp.tile_sum(total)[0] * per_channel
        off = total - wp.tile_full(shape=size, value=mean, dtype=float)
        variance = wp.tile_sum(wp.tile_map(wp.mul, off, off))[0] * per_channel
        return off * (1.0 / wp.sqrt(variance + eps))

    @wp.kernel(module='unique', enable_backward=False)
    def add_norm(
        tokens: wp.array2d(dtype=dtype),
        product: wp.array2d(dtype=dtype),
        norm: wp.array3d(dtype=float),
        eps: float,
        out: wp.array2d(dtype=dtype),
    ):
        row = wp.tid()
        rows = tokens.shape[0]
        head = row // rows
        total = wp.tile_astype(wp.tile_load(tokens[row - head * rows], shape=size), float)
        total += wp.tile_astype(wp.tile_load(product[row], shape=size), float)
        total += wp.tile_load(norm[0, head], shape=size)
        unit = normalized(total, eps)
        scaled = wp.tile_map(wp.mul, unit, wp.tile_load(norm[1, head], shape=size))
        scaled += wp.tile_load(norm[2, head], shape=size)
        wp.tile_store(out[row], wp.tile_astype(scaled, dtype))

    @wp.kernel(module='unique', enable_backward=False)
    def norm_sums(
        tokens: wp.array2d(dtype=dtype),
        product: wp.array2d(dtype=dtype),
        bias: wp.array2d(dtype=float),
        eps: float,
        out: wp.array2d(dtype=float),
    ):
        block = wp.tid()
        first = block * at_once
        head = first // (tokens.shape[0] // bias.shape[0])
        offset = wp.tile_load(bias[head], shape=size)
        total = wp.tile_zeros(shape=size, dtype=float)
        for row in range(first, first + at_once):
            added = wp.tile_astype(wp.tile_load(tokens[row], shape=size), float)
            added += wp.tile_astype(wp.tile_load(product[row], shape=size), float)
            total += normalized(added + offset, eps)
        wp.tile_store(out[block], total)

    return add_norm, norm_sums


def _add_relu(channels: int, dtype: Any) -> wp.Kernel:
    size = wp.constant(channels)

    @wp.kernel(module='unique', enable_backward=False)
    def add_relu(product: wp.array2d(dtype=dtype), bias: wp.array2d(dtype=float)):
        row = wp.tid()
        head = row // (product.shape[0] // bias.shape[0])
        total = wp.tile_astype(wp.tile_load(product[row], shape=size), float)
        total += wp.tile_load(bias[head], shape=size)
        wp.tile_store(product[row], wp.tile_astype(wp.tile_map(rectified, total), dtype))

    return add_relu


def _last(channels: int) -> wp.Kernel:
    size = wp.constant(channels)

    @wp.kernel(module='unique', enable_backward=False)
    def last(
        sums: wp.array3d(dtype=float),
        weight: wp.array3d(dtype=float),
        bias: wp.array2d(dtype=float),
        per_token: float,
        trans: wp.array2d(dtype=float),
        rot: wp.array2d(dtype=float),
    ):
        block = wp.tid()
        crops = trans.shape[0]
        head = block // crops
        total = wp.tile_zeros(shape=size, dtype=float)
        for part in range(sums.shape[1]):
            total += wp.tile_load(sums[block, part], shape=size)
        for k in range(bias.shape[1]):
            products = wp.tile_map(wp.mul, total, wp.tile_load(weight[head, k], shape=size))
            value = wp.tile_sum(products)[0] * per_token + bias[head, k]
            if head == 0:
                trans[block, k] = value
            else:
                rot[block - crops, k] = value

    return last
