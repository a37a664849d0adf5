"""Quantized layers written down to be exported: ONNX's QuantizeLinear before each convolution.

A residual block adds what its first convolution reads, quantized, so that all of it can stay in
integers between blocks. Biases, sums and ReLU are not quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..datatypes import require
from .networks import ConvBNReLU, ResBlock
from .quantization import LARGEST, convolutions_of

SMALLEST = 2.0**-14  # normal number of half precision: a scale below would lose its digits


class _Rounded(torch.autograd.Function):
    """Round to multiples of a scale, as QuantizeLinear and DequantizeLinear do."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> torch.Tensor:
        each = scale.reshape(-1, *[1] * (x.dim() - 1)) if scale.dim() else scale
        return (x / each).round().clamp(-LARGEST - 1, LARGEST) * each

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero: Any) -> Any:
        """Write both operators; of weights with the axis of their output channels."""
        axis = {} if scale.type().dim() == 0 else {'axis_i': 0}
        integers = g.op('QuantizeLinear', x, scale, zero, **axis)
        rounded = g.op('DequantizeLinear', integers, scale, zero, **axis)
        rounded.setType(x.type())
        return rounded


class _Rounding(nn.Module):
    """Rounds what a convolution reads."""

    scale: torch.Tensor
    zero: torch.Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer('scale', torch.tensor(max(scale, SMALLEST)))
        self.register_buffer('zero', torch.zeros((), dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Rounded.apply(x, self.scale, self.zero)


class _RoundedConvolution(nn.Module):
    """A convolution, of what is rounded already, with rounded weights."""

    scale: torch.Tensor
    zero: torch.Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        scale = layer.weight.detach().abs().amax((1, 2, 3)) / LARGEST
        self.register_buffer('scale', scale.clamp_min(SMALLEST))
        self.register_buffer('zero', torch.zeros(len(scale), dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = _Rounded.apply(self.layer.weight, self.scale, self.zero)
        return nn.functional.conv2d(
            x, weight, self.layer.bias, self.layer.stride, self.layer.padding
        )


class _QuantizedBlock(nn.Module):
    """A residual block, of which also what it skips is rounded."""

    def __init__(self, block: ResBlock, scales: tuple[float, float]) -> None:
        super().__init__()
        self.round1, self.round2 = map(_Rounding, scales)
        self.conv1, self.conv2 = map(_RoundedConvolution, convolutions_of(block).values())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = self.round1(x)
        hidden = self.round2(torch.relu(self.conv1(rounded)))
        return torch.relu(self.conv2(hidden) + rounded)


def quantized_stage(stage: nn.Sequential, scales: Mapping[str, float]) -> nn.Sequential:
    """Return the stage over both images with its convolutions quantized; takes its layers over.

    Its batch norms must be folded. scales: by name, as quantization.quantized_convolutions names
    them. Raises ValueError where these are other names.
    """
    wanted = convolutions_of(stage)
    require(
        sorted(wanted) == sorted(scales),
        f'scales are of {sorted(scales)}, must be of {sorted(wanted)}: calibrate again',
    )

    def quantized(place: int, module: nn.Module) -> nn.Module:
        if isinstance(module, ResBlock):
            return _QuantizedBlock(module, (scales[f'{place}.conv1'], scales[f'{place}.conv2']))
        assert isinstance(module, ConvBNReLU)
        (layer,) = convolutions_of(module).values()
        return nn.Sequential(
            _Rounding(scales[f'{place}.net.0']), _RoundedConvolution(layer), nn.ReLU()
        )

    return nn.Sequential(*(quantized(*item) for item in enumerate(stage)))
