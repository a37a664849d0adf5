"""Crops in blocks of 4x4 pixels, and convolutions on them: the same numbers, other shapes.

Six channels are a bad number for a GPU's matrix units, which take eight at a time and many of
them. With the pixels of a block side by side in the channels (space to depth) a crop is 96
channels of 40x40, and the first two convolutions, both of stride 2, read and give whole blocks.
Their weights are zero where a pixel of a block is out of reach, which is more to multiply and
still faster (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import warp as wp
from torch import nn

from ..datatypes import require
from ..warp_launch import as_warp
from .networks import ConvBNReLU
from .pixel_kernels import BLOCK_PX, CHANNELS


def in_blocks(image: torch.Tensor, side: int = BLOCK_PX) -> torch.Tensor:
    """Return images (N, C, H, W) as (N, side * side * C, H / side, W / side), channels last.

    A block's channels are those of its pixels, row by row. pixel_kernels.put() writes so.
    """
    count, channels, height, width = image.shape
    rows, columns = height // side, width // side
    split = image.reshape(count, channels, rows, side, columns, side)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(count, rows, columns, -1).permute(0, 3, 1, 2)


def shape_in_blocks(height: int, width: int) -> tuple[int, int, int]:
    """Return the shape of a crop of whole blocks, as in_blocks() gives it."""
    return CHANNELS * BLOCK_PX**2, height // BLOCK_PX, width // BLOCK_PX


def is_crop_shape(shape: Sequence[int], count: int, size: tuple[int, int]) -> bool:
    """Whether a tensor's shape is that of so many crops of size (H, W), in blocks or not."""
    whole = all(length % BLOCK_PX == 0 for length in size)
    plain = tuple(shape) == (count, CHANNELS, *size)
    return plain or (whole and tuple(shape) == (count, *shape_in_blocks(*size)))


def crops_as_warp(crops: torch.Tensor) -> wp.array:
    """View crops (N, 6, H, W), or in blocks, as the array that pixel_kernels.put() takes.

    Blocks of halves whose channels are contiguous it takes as words (N, H / 4, W / 4, 48), two
    halves in each.
    """
    in_words = crops.dtype == torch.float16 and crops.shape[1] != CHANNELS
    if in_words and crops.is_contiguous(memory_format=torch.channels_last):
        return as_warp(crops.permute(0, 2, 3, 1).view(torch.int32), wp.uint32)
    return as_warp(crops)


class _PaddedConvolution(torch.autograd.Function):
    """A convolution padded by zeros, more on one side than on the other, as ONNX has it.

    pads: top, left, bottom, right. What torch exports instead is padding by itself, of a size that
    the graph computes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, pads: Sequence[int]
    ) -> torch.Tensor:
        top, left, bottom, right = pads
        return nn.functional.conv2d(nn.functional.pad(x, (left, right, top, bottom)), weight, bias)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, pads: Sequence[int]) -> Any:
        """Write ONNX's Conv."""
        size = weight.type().sizes()[2:]
        return g.op('Conv', x, weight, bias, kernel_shape_i=size, pads_i=pads)


class BlockConvolution(nn.Module):
    """A convolution on blocks: gives its outputs in blocks, too, as many as it reads.

    side: of the blocks that it reads; of those that it gives it is side / stride. Takes what it
    needs of `conv`, which must be square, of one group, with a bias and padded by zeros. Raises
    ValueError for another.
    """

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        super().__init__()
        size, stride, pad = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        require(
            side % stride == 0
            and (conv.groups, conv.dilation) == (1, (1, 1))
            and (conv.kernel_size, conv.stride, conv.padding)
            == ((size, size), (stride, stride), (pad, pad))
            and conv.padding_mode == 'zeros'
            and conv.bias is not None,
            f'{conv} cannot be written for blocks of {side}x{side} pixels',
        )
        reach, before, behind = _reach(size, stride, pad, side)
        reach = reach.to(conv.weight)
        # output's pixel of a block (o, p), tap (k, l), block (b, e), input's pixel of it (i, j)
        weight = torch.einsum('cdkl,okbi,plej->opcijdbe', conv.weight.detach(), reach, reach)
        self.weight = nn.Parameter(weight.flatten(3, 5).flatten(0, 2))
        assert conv.bias is not None
        self.bias = nn.Parameter(conv.bias.detach().repeat((side // stride) ** 2))
        self.pads = (before, before, behind, behind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _PaddedConvolution.apply(x, self.weight, self.bias, self.pads)


def _reach(size: int, stride: int, pad: int, side: int) -> tuple[torch.Tensor, int, int]:
    """Where along one axis taps read: (outputs of a block, taps, blocks, pixels of a block).

    With the number of blocks that are read before and behind the output's own.
    """
    before = -(-pad // side)
    behind = (side - stride + size - 1 - pad) // side
    reach = torch.zeros(side // stride, size, before + 1 + behind, side)
    for out in range(side // stride):
        for tap in range(size):
            block, pixel = divmod(out * stride + tap - pad, side)
            reach[out, tap, block + before, pixel] = 1
    return reach, before, behind


def stage_on_blocks(stage: nn.Sequential) -> nn.Sequential:
    """Return the stage of one crop, its batch norms folded, for crops in blocks.

    Takes its layers over. Raises ValueError where the first two are not what steps over a block.
    """
    side, layers = BLOCK_PX, list(stage)
    for place in range(2):
        layer = layers[place]
        assert isinstance(layer, ConvBNReLU)
        conv = layer.net[0]
        assert isinstance(conv, nn.Conv2d)
        layers[place] = nn.Sequential(BlockConvolution(conv, side), nn.ReLU())
        side //= conv.stride[0]
    require(side == 1, f'the first two convolutions leave blocks of {side}x{side} pixels')
    return nn.Sequential(*layers)
