"""Warp kernels between the matrix products of the heads: what lies there is read once.

Rows are tokens, one head's after the other's: of G * rows, row r is of head r // rows. On CUDA the
lanes of a warp share a row, on a CPU one thread has it. All is summed in float32. No
`annotations` from the future: Warp evaluates those of closures at once.
"""

import functools
from dataclasses import dataclass
from typing import Any

import warp as wp

from ..datatypes import require

LANES = 32  # of a warp, CUDA C++ Programming Guide, "SIMT Architecture"
TOKENS_AT_ONCE = 4  # of a crop's 400, summed up by one warp


@dataclass(frozen=True)
class HeadKernels:
    """Kernels for tokens of so many channels d; dim of a launch: rows, lanes.

    add_norm: layer norm of tokens (rows, d) + product (G * rows, d) + bias; norm (3, G, d): these
    biases, and the norm's scales and shifts. add_relu: of a product and a bias, in its place.
    norm_sums: of the layer norm of tokens (G * rows, d) + product + bias, without scale and
    shift, products with the rows of weight (G, 3, d), summed over TOKENS_AT_ONCE tokens, for
    which a launch has one row. last: of one head and crop a row, from these sums
    (G * N, 3, 400 / TOKENS_AT_ONCE) their mean and the bias, of the first head to trans, of the
    second to rot.
    """

    lanes: int
    add_norm: wp.Kernel
    add_relu: wp.Kernel
    norm_sums: wp.Kernel
    last: wp.Kernel


@wp.func_native(
    """
#if defined(__CUDA_ARCH__)
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffff, value, offset);
#endif
    return value;
"""
)
def warp_sum(value: float) -> float:
    """Sum over the lanes of a warp, in each of them; on a CPU the value itself."""
    return value  # what the snippet does is not this


@functools.cache
def head_kernels(channels: int, dtype: Any, on_cuda: bool) -> HeadKernels:
    """Make the kernels for a number of channels and a type, wp.float16 or wp.float32.

    What a lane keeps in registers is a constant of its kernel. Nothing is compiled before the
    first launch. Raises ValueError where the lanes cannot share the channels evenly.
    """
    lanes = LANES if on_cuda else 1
    require(
        channels % lanes == 0,
        f'{channels} channels cannot be shared evenly by {lanes} lanes: use backend torch',
    )
    add_norm, norm_sums = _norms(channels, dtype, lanes)
    add_relu = _add_relu(channels, dtype, lanes)
    return HeadKernels(lanes, add_norm, add_relu, norm_sums, _last(lanes))


def _normalized(channels: int, dtype: Any, lanes: int) -> tuple[wp.Function, Any]:
    """Make what normalizes a row, and the type of what a lane has of it."""
    stride = wp.constant(lanes)
    own = wp.constant(channels // lanes)
    per_channel = wp.constant(1.0 / channels)
    values = wp.types.vector(length=channels // lanes, dtype=float)

    @wp.func
    def normalized(
        one: wp.array(dtype=dtype),
        other: wp.array(dtype=dtype),
        bias: wp.array(dtype=float),
        lane: int,
        eps: float,
    ) -> values:
        total = values()
        whole = float(0.0)
        for i in range(own):
            c = lane + i * stride
            total[i] = float(one[c]) + float(other[c]) + bias[c]
            whole += total[i]
        mean = warp_sum(whole) * per_channel
        squares = float(0.0)
        for i in range(own):
            total[i] = total[i] - mean
            squares += total[i] * total[i]
        return total * (1.0 / wp.sqrt(warp_sum(squares) * per_channel + eps))

    return normalized, values


def _norms(channels: int, dtype: Any, lanes: int) -> tuple[wp.Kernel, wp.Kernel]:
    stride = wp.constant(lanes)
    own = wp.constant(channels // lanes)
    at_once = wp.constant(TOKENS_AT_ONCE)
    normalized, values = _normalized(channels, dtype, lanes)

    @wp.kernel(module='unique', enable_backward=False)
    def add_norm(
        tokens: wp.array2d(dtype=dtype),
        product: wp.array2d(dtype=dtype),
        norm: wp.array3d(dtype=float),
        eps: float,
        out: wp.array2d(dtype=dtype),
    ):
        row, lane = wp.tid()
        head = row // tokens.shape[0]
        token = row - head * tokens.shape[0]
        unit = normalized(tokens[token], product[row], norm[0, head], lane, eps)
        for i in range(own):
            c = lane + i * stride
            out[row, c] = dtype(unit[i] * norm[1, head, c] + norm[2, head, c])

    @wp.kernel(module='unique', enable_backward=False)
    def norm_sums(
        tokens: wp.array2d(dtype=dtype),
        product: wp.array2d(dtype=dtype),
        bias: wp.array2d(dtype=float),
        weight: wp.array3d(dtype=float),
        eps: float,
        out: wp.array3d(dtype=float),
    ):
        group, lane = wp.tid()
        crop = group // out.shape[2]
        head = crop // (out.shape[0] // bias.shape[0])
        total = values()
        for k in range(at_once):
            row = group * at_once + k
            total += normalized(tokens[row], product[row], bias[head], lane, eps)
        for k in range(3):
            product_of_lane = float(0.0)
            for i in range(own):
                product_of_lane += total[i] * weight[head, k, lane + i * stride]
            whole = warp_sum(product_of_lane)
            if lane == 0:
                out[crop, k, group - crop * out.shape[2]] = whole

    return add_norm, norm_sums


def _add_relu(channels: int, dtype: Any, lanes: int) -> wp.Kernel:
    stride = wp.constant(lanes)
    own = wp.constant(channels // lanes)

    @wp.kernel(module='unique', enable_backward=False)
    def add_relu(product: wp.array2d(dtype=dtype), bias: wp.array2d(dtype=float)):
        row, lane = wp.tid()
        head = row // (product.shape[0] // bias.shape[0])
        for i in range(own):
            c = lane + i * stride
            total = float(product[row, c]) + bias[head, c]
            if total < 0.0:  # what is not a number passes, as in torch's ReLU
                total = 0.0
            product[row, c] = dtype(total)

    return add_relu


def _last(lanes: int) -> wp.Kernel:
    stride = wp.constant(lanes)

    @wp.kernel(module='unique', enable_backward=False)
    def last(
        sums: wp.array3d(dtype=float),
        bias: wp.array2d(dtype=float),
        per_token: float,
        trans: wp.array2d(dtype=float),
        rot: wp.array2d(dtype=float),
    ):
        crop, lane = wp.tid()
        crops = trans.shape[0]
        for k in range(3):
            total = float(0.0)
            for part in range(lane, sums.shape[2], stride):
                total += sums[crop, k, part]
            total = warp_sum(total) * per_token
            if lane == 0:
                if crop < crops:
                    trans[crop, k] = total + bias[0, k]
                else:
                    rot[crop - crops, k] = total + bias[1, k]

    return last
