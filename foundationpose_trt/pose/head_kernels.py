"""Warp kernels between the matrix products of the heads: what lies there is read once.

Rows are tokens, one head's after the other's: of G * rows, row r is of head r // rows. On CUDA the
lanes of a warp share a row, on a CPU one thread has it; a lane has every so manieth four channels,
of half precision in one word of 64 bits, and ROWS rows one after the other, for which it keeps
what is the same for all. All is summed in float32. No `annotations` from the future: Warp
evaluates those of closures at once.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import warp as wp

from ..datatypes import require
from .lanes import LANES, lanes_sum

ROWS = wp.constant(4)  # one after the other; 400 tokens are a multiple


@dataclass(frozen=True)
class HeadKernels:
    """Kernels for tokens of d channels; a launch has a ROWSth of the rows, and lanes.

    Rows (R, d / 4) are of words: uint64 of half precision, vec4 of single; parameters are of vec4.
    add_code: of crops (N, 400 * d / 4) and a code (1, 400 * d / 4), in words, their sum; a launch
    has all words. add_norm: layer norm of tokens (R, d) + product (G * R, d) + bias; norm
    (3, G, d): these biases, and the norm's scales and shifts. add_relu: of a product and a bias
    (G, d), in its place. norm_sums: of the layer norm of tokens (G * R, d) + product + bias,
    without scale and shift, products with the rows of weight (G, 3, d), summed over ROWS tokens.
    last: with one row per head and crop, from these sums (G * N, 3, 400 / ROWS) their mean and the
    bias, of the first head to trans, of the second to rot.
    """

    lanes: int
    add_code: wp.Kernel
    add_norm: wp.Kernel
    add_relu: wp.Kernel
    norm_sums: wp.Kernel
    last: wp.Kernel


@wp.func_native(
    """
    wp::vec_t<4, wp::float32> out;
    for (int i = 0; i < 4; ++i) {
        wp::half one;
        one.u = (unsigned short)(word >> (16 * i));
        out[i] = wp::half_to_float(one);
    }
    return out;
"""
)
def unpacked(word: wp.uint64) -> wp.vec4:
    """Four numbers of half precision in a word, the first in its lowest bits."""
    return wp.vec4()  # as above


@wp.func_native(
    """
    wp::uint64 word = 0;
    for (int i = 0; i < 4; ++i)
        word |= (wp::uint64)(wp::float_to_half(values[i]).u) << (16 * i);
    return word;
"""
)
def packed(values: wp.vec4) -> wp.uint64:
    """Round four numbers to half precision, into a word."""
    return wp.uint64(0)  # as above


@wp.func
def as_it_is(values: wp.vec4) -> wp.vec4:
    """Single precision is stored as it is computed with."""
    return values


@functools.cache
def head_kernels(channels: int, is_half: bool, on_cuda: bool) -> HeadKernels:
    """Make the kernels for a number of channels, of half or single precision.

    What a lane keeps in registers is a constant of its kernel. Nothing is compiled before the
    first launch. Raises ValueError for channels that are not a multiple of four.
    """
    require(
        channels > 0 and channels % 4 == 0,
        f'{channels} channels cannot be taken four at a time: use backend torch',
    )
    lanes = math.gcd(LANES, channels // 4) if on_cuda else 1
    parts = _parts(channels, is_half, lanes)
    return HeadKernels(
        lanes, _add_code(is_half), _add_norm(parts), _add_relu(parts), _norm_sums(parts, lanes),
        _last(lanes),
    )  # fmt: skip


@dataclass(frozen=True)
class _Parts:
    """What a lane does with its channels of a row: the functions that the kernels are made of.

    word: in which four channels are stored; values: all of a lane, in registers. load gives
    those of a row, numbers those of a row of parameters, store writes them, normalized is of
    all lanes' values together.
    """

    word: Any
    values: Any
    load: wp.Function
    numbers: wp.Function
    store: wp.Function
    normalized: wp.Function


def _storage(is_half: bool) -> tuple[Any, wp.Function, wp.Function]:
    """Word of four channels, and the functions from and to their values."""
    return (wp.uint64, unpacked, packed) if is_half else (wp.vec4, as_it_is, as_it_is)


def _parts(channels: int, is_half: bool, lanes: int) -> _Parts:
    word, unpack, pack = _storage(is_half)
    stride, words = wp.constant(lanes), wp.constant(channels // lanes // 4)
    values = wp.types.vector(length=channels // lanes, dtype=float)

    @wp.func
    def load(row: wp.array(dtype=word), lane: int) -> values:
        out = values()
        for i in range(words):
            four = unpack(row[lane + i * stride])
            for k in range(4):
                out[4 * i + k] = four[k]
        return out

    @wp.func
    def numbers(row: wp.array(dtype=wp.vec4), lane: int) -> values:
        out = values()
        for i in range(words):
            four = row[lane + i * stride]
            for k in range(4):
                out[4 * i + k] = four[k]
        return out

    @wp.func
    def store(row: wp.array(dtype=word), lane: int, given: Any):
        for i in range(words):
            four = wp.vec4(given[4 * i], given[4 * i + 1], given[4 * i + 2], given[4 * i + 3])
            row[lane + i * stride] = pack(four)

    normalized = _normalized(values, channels, lanes)
    return _Parts(word, values, load, numbers, store, normalized)


def _normalized(values: Any, channels: int, lanes: int) -> wp.Function:
    together = wp.constant(lanes)
    own = wp.constant(channels // lanes)
    per_channel = wp.constant(1.0 / channels)

    @wp.func
    def normalized(total: values, eps: float) -> values:
        whole = float(0.0)
        for i in range(own):
            whole += total[i]
        mean = lanes_sum(whole, together) * per_channel
        off = values()
        for i in range(own):
            off[i] = total[i] - mean
        variance = lanes_sum(wp.dot(off, off), together) * per_channel
        return off * (1.0 / wp.sqrt(variance + eps))

    return normalized


def _add_code(is_half: bool) -> wp.Kernel:
    word, unpack, pack = _storage(is_half)

    @wp.kernel(module='unique', enable_backward=False)
    def add_code(
        tokens: wp.array2d(dtype=word), code: wp.array2d(dtype=word), out: wp.array2d(dtype=word)
    ):
        crop, i = wp.tid()
        out[crop, i] = pack(unpack(tokens[crop, i]) + unpack(code[0, i]))

    return add_code


def _add_norm(parts: _Parts) -> wp.Kernel:
    word, load, numbers, store = parts.word, parts.load, parts.numbers, parts.store
    normalized = parts.normalized

    @wp.kernel(module='unique', enable_backward=False)
    def add_norm(
        tokens: wp.array2d(dtype=word),
        product: wp.array2d(dtype=word),
        norm: wp.array3d(dtype=wp.vec4),
        eps: float,
        out: wp.array2d(dtype=word),
    ):
        group, lane = wp.tid()
        head = group * ROWS // tokens.shape[0]
        bias = numbers(norm[0, head], lane)
        scale = numbers(norm[1, head], lane)
        shift = numbers(norm[2, head], lane)
        for k in range(ROWS):
            row = group * ROWS + k
            token = row - head * tokens.shape[0]
            total = load(tokens[token], lane) + load(product[row], lane) + bias
            store(out[row], lane, wp.cw_mul(normalized(total, eps), scale) + shift)

    return add_norm


def _add_relu(parts: _Parts) -> wp.Kernel:
    word, load, numbers, store = parts.word, parts.load, parts.numbers, parts.store
    own = wp.constant(parts.values._length_)

    @wp.kernel(module='unique', enable_backward=False)
    def add_relu(product: wp.array2d(dtype=word), bias: wp.array2d(dtype=wp.vec4)):
        group, lane = wp.tid()
        head = group * ROWS // (product.shape[0] // bias.shape[0])
        added = numbers(bias[head], lane)
        for k in range(ROWS):
            row = group * ROWS + k
            total = load(product[row], lane) + added
            for i in range(own):
                if total[i] < 0.0:  # what is not a number passes, as in torch's ReLU
                    total[i] = 0.0
            store(product[row], lane, total)

    return add_relu


def _norm_sums(parts: _Parts, lanes: int) -> wp.Kernel:
    word, load, numbers = parts.word, parts.load, parts.numbers
    values, normalized = parts.values, parts.normalized
    together = wp.constant(lanes)

    @wp.kernel(module='unique', enable_backward=False)
    def norm_sums(
        tokens: wp.array2d(dtype=word),
        product: wp.array2d(dtype=word),
        bias: wp.array2d(dtype=wp.vec4),
        weight: wp.array3d(dtype=wp.vec4),
        eps: float,
        out: wp.array3d(dtype=float),
    ):
        group, lane = wp.tid()
        crop = group // out.shape[2]
        head = crop // (out.shape[0] // bias.shape[0])
        added = numbers(bias[head], lane)
        total = values()
        for k in range(ROWS):
            row = group * ROWS + k
            whole = load(tokens[row], lane) + load(product[row], lane) + added
            total += normalized(whole, eps)
        for k in range(3):
            whole_product = lanes_sum(wp.dot(total, numbers(weight[head, k], lane)), together)
            if lane == 0:
                out[crop, k, group - crop * out.shape[2]] = whole_product

    return norm_sums


def _last(lanes: int) -> wp.Kernel:
    together = wp.constant(lanes)

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
            for part in range(lane, sums.shape[2], together):
                total += sums[crop, k, part]
            mean = lanes_sum(total, together) * per_token
            if lane == 0:
                if crop < crops:
                    trans[crop, k] = mean + bias[0, k]
                else:
                    rot[crop - crops, k] = mean + bias[1, k]

    return last
