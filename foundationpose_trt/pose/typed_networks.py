"""Refiner and scorer written down once more, with every type spelled out, to be exported.

A strongly typed network needs its casts in the graph, and nn.MultiheadAttention exports as shape
arithmetic that hides the attention from who would fuse it. The arithmetic is that of networks.py;
the mean over the tokens is taken before the linear layer it commutes with, which saves 399 of 400
products. Whole networks are for ONNX Runtime and for who builds engines of their files; the
engines of `build --weights` are of the trunks (heads.py has the rest).

fp16: inputs, weights and activations are half; what computes them sums up in float32, as the
kernels of softmax and LayerNorm do. float32 are the mean over the tokens and all after it: the
refiner's last layer, the whole ranking of the scorer, and the outputs. (With float32 around
softmax and LayerNorm too, the results are as near, and TensorRT cannot fuse the attention.)

Of a trunk alone, the residual blocks over both images may add what they skip apart from their
convolutions. TensorRT 8.6 fuses convolution, addition and ReLU otherwise, for which it has no
kernels that were made for compute capability 9.0: there, those that it has are slower than
newer ones and a pass for the addition (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .crop_blocks import stage_on_blocks
from .networks import HEADS, TOKENS, RefineNet, ResBlock, ScoreNet, input_projections


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert unless it is so already: the tracer would write a Cast that does nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


class _Trunk(nn.Module):
    """Both crops (N, 6, 160, 160) to tokens (N, 400, d), in the type of its weights."""

    code: torch.Tensor

    def __init__(
        self, encode_one: nn.Sequential, encode_both: nn.Sequential, code: torch.Tensor
    ) -> None:
        super().__init__()
        self.encode_one, self.encode_both = encode_one, encode_both
        self.channels = code.shape[-1]
        self.register_buffer('code', code)

    def image(self, crops: torch.Tensor, count: int, second: int) -> torch.Tensor:
        """Return what the convolutions give, (count, d, 20, 20).

        crops: rendered ones, then, from the place `second` on, as many observed ones.
        """
        each = self.encode_one(crops)
        return self.encode_both(torch.cat([each[:count], each[second:]], 1))

    def forward(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        count = rendered.shape[0]
        joined = self.image(torch.cat([rendered, observed]), count, count)
        return joined.reshape(-1, self.channels, TOKENS).transpose(1, 2) + self.code


def _trunk_of(network: RefineNet | ScoreNet) -> _Trunk:
    """Make the trunk of a network, of whose parts it is."""
    is_refiner = isinstance(network, RefineNet)
    stages = ('encodeA', 'encodeAB') if is_refiner else ('encoderA', 'encoderAB')
    one, both = (getattr(network, name) for name in stages)
    return _Trunk(one, both, network.pos_embed.pe)


class _SumApart(nn.Module):
    """A residual block that writes the ReLU of the sum as max(y, -x) + x = max(y + x, 0)."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.first = nn.Sequential(block.conv1, block.bn1, nn.ReLU())
        self.second = nn.Sequential(block.conv2, block.bn2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(self.second(self.first(x)), -x) + x


def sums_apart(stage: nn.Sequential) -> nn.Sequential:
    """Return a stage with the sums of its residual blocks apart from the convolutions."""
    return nn.Sequential(*(_SumApart(m) if isinstance(m, ResBlock) else m for m in stage))


Rewrite = Callable[[nn.Sequential], nn.Sequential]


class TypedTrunk(nn.Module):
    """The convolutions of both networks: crops (2 N, ...) of dtype -> (N, d, 20, 20) of it.

    crops: N rendered ones, then N observed ones, in one tensor. Without the positional code, which
    heads.py adds. rewrite: makes another stage over both images of the network's (sums_apart,
    quantized_networks.quantized_stage). on_blocks: crops come in blocks (crop_blocks.py). Takes
    parts of the network over.
    """

    def __init__(
        self,
        network: RefineNet | ScoreNet,
        dtype: torch.dtype,
        rewrite: Rewrite | None = None,
        on_blocks: bool = False,
    ) -> None:
        super().__init__()
        trunk = _trunk_of(network)
        if on_blocks:
            trunk.encode_one = stage_on_blocks(trunk.encode_one)
        if rewrite is not None:
            trunk.encode_both = rewrite(trunk.encode_both)
        self.trunk = trunk.to(dtype)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        # an odd number is no pairs, but TensorRT asks for the shapes of every number
        count = (crops.shape[0] + 1) // 2
        return self.trunk.image(crops, count, crops.shape[0] - count)


class _Attention(nn.Module):
    """Self-attentions of x (B, L, d), side by side, up to, without, their output projections.

    shape: (B, L), one of them -1 where it is free. Gives (B, L, d * number of sources).
    """

    def __init__(self, sources: Sequence[nn.MultiheadAttention], shape: tuple[int, int]) -> None:
        super().__init__()
        width = sources[0].embed_dim
        self.heads, self.channels = HEADS * len(sources), width * len(sources)
        self.shape = shape
        scale = (width // HEADS) ** -0.5
        query, key, value = zip(*input_projections(sources), strict=True)
        # Apart: from the three packed into one product TensorRT 8.6 made an engine that computed
        # something else (on an H100; the self-check refused it).
        self.query = _linear(*(part * scale for part in query))
        self.key = _linear(*key)
        self.value = _linear(*value)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*self.shape, self.heads, self.channels // self.heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self._split(self.query(x)).permute(0, 2, 1, 3)
        key = self._split(self.key(x)).permute(0, 2, 3, 1)
        value = self._split(self.value(x)).permute(0, 2, 1, 3)
        mixed = torch.softmax(query @ key, -1) @ value
        return mixed.permute(0, 2, 1, 3).reshape(*self.shape, self.channels)


class _Grouped(nn.Module):
    """Linear layers side by side: (G, R, in) -> (G, R, out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias for layer in layers])[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class _GroupedNorm(nn.Module):
    """Layer norms side by side over the last dimension of (G, R, d)."""

    unit: torch.Tensor
    zero: torch.Tensor

    def __init__(self, layers: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.stack([layer.weight for layer in layers])[:, None])
        self.shift = nn.Parameter(torch.stack([layer.bias for layer in layers])[:, None])
        self.register_buffer('unit', torch.ones_like(layers[0].weight))
        self.register_buffer('zero', torch.zeros_like(layers[0].weight))
        self.eps = layers[0].eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal = nn.functional.layer_norm(x, self.unit.shape, self.unit, self.zero, self.eps)
        return normal * self.scale + self.shift


class _Heads(nn.Module):
    """Heads side by side: encoder layer (post-norm, ReLU), mean over the tokens, linear.

    (N, 400, d) -> (G, N, 3). One after the other they launch more kernels.
    """

    def __init__(self, heads: Sequence[nn.Sequential]) -> None:
        super().__init__()
        layers: list[Any] = [head[0] for head in heads]
        self.groups = len(layers)
        sources = [layer.self_attn for layer in layers]
        self.attention = _Attention(sources, (-1, TOKENS))
        self.channels = self.attention.channels // self.groups
        self.out = _Grouped([source.out_proj for source in sources])
        self.linear1 = _Grouped([layer.linear1 for layer in layers])
        self.linear2 = _Grouped([layer.linear2 for layer in layers])
        self.norm1 = _GroupedNorm([layer.norm1 for layer in layers])
        self.norm2 = _GroupedNorm([layer.norm2 for layer in layers])
        lasts: list[Any] = [head[1] for head in heads]
        self.last = _Grouped(lasts)

    def typed(self, dtype: torch.dtype) -> _Heads:
        """Set the types: dtype, but the last layer float32."""
        self.to(dtype)
        self.last.to(torch.float32)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.attention(x).reshape(-1, self.groups, self.channels).permute(1, 0, 2)
        y = self.norm1(x.reshape(1, -1, self.channels) + self.out(mixed))
        z = self.norm2(y + self.linear2(torch.relu(self.linear1(y))))
        tokens = z.reshape(self.groups, -1, TOKENS, self.channels)
        return self.last(_cast(tokens, torch.float32).mean(2))


class TypedRefiner(nn.Module):
    """RefineNet with its types spelled out: two crops (N, 6, 160, 160) of dtype -> trans, rot.

    Both outputs (N, 3) float32, with the meaning RefineNet gives them.
    """

    def __init__(self, network: RefineNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.trunk = _trunk_of(network).to(dtype)
        self.heads = _Heads([network.trans_head, network.rot_head]).typed(dtype)

    def forward(
        self, rendered: torch.Tensor, observed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        both = self.heads(self.trunk(rendered, observed))
        return both[0], both[1]


class TypedExtractor(nn.Module):
    """ScoreNet.extract with its types spelled out: two crops of dtype -> (N, d) float32."""

    def __init__(self, network: ScoreNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.trunk = _trunk_of(network).to(dtype)
        self.attention = _Attention([network.att], (-1, TOKENS)).to(dtype)
        self.out = network.att.out_proj

    def forward(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        mixed = self.attention(self.trunk(rendered, observed))
        return self.out(_cast(mixed, torch.float32).mean(1))


class TypedScorer(nn.Module):
    """ScoreNet with its types spelled out: two crops (N, 6, 160, 160) of dtype -> (N,) float32."""

    def __init__(self, network: ScoreNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.extract = TypedExtractor(network, dtype)
        self.across = _Attention([network.att_cross], (1, -1))
        self.out, self.last = network.att_cross.out_proj, network.linear

    def forward(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        features = self.extract(rendered, observed)[None]
        return self.last(self.out(self.across(features))).reshape(-1)
