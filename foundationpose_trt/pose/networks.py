"""RefineNet and ScoreNet with the topology and key names of the published checkpoints.

Facts from foundationpose.md §1 (measured on the official modules). `width` scales every channel
count: 1.0 loads the official state_dicts strictly, our own sets use less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..datatypes import require

TOKENS = 400  # 20 x 20 map of a 160 x 160 crop
HEADS = 4


def scaled(channels: int, width: float) -> int:
    """Channel count at a width; refuses widths that do not divide evenly into the 4 heads."""
    value = channels * width
    require(
        value == int(value) and int(value) % HEADS == 0 and value > 0,
        f'network width {width} makes {value} of {channels} channels, must be a positive multiple'
        f' of {HEADS}: choose 1, 0.5, 0.25 or 0.125',
    )
    return int(value)


class ConvBNReLU(nn.Module):
    """Conv (with bias) -> BN -> ReLU; names net.0 and net.1."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        conv = nn.Conv2d(c_in, c_out, kernel, stride, (kernel - 1) // 2)
        self.net = nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with BN and an identity shortcut; names conv1, bn1, conv2, bn2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn1: nn.Module = nn.BatchNorm2d(channels)
        self.conv2: nn.Module = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn2: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class PositionalEmbedding(nn.Module):
    """Sine/cosine code of the token index, kept in the state_dict as `pe`, (1, 400, d)."""

    pe: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        position = torch.arange(TOKENS, dtype=torch.float32)[:, None]
        rate = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
        code = torch.zeros(TOKENS, channels)
        code[:, 0::2], code[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
        self.register_buffer('pe', code[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.pe


def stage_a(width: float) -> nn.Sequential:
    """Per-image stage (N, 6, 160, 160) -> (N, 128w, 40, 40)."""
    c64, c128 = scaled(64, width), scaled(128, width)
    return nn.Sequential(
        ConvBNReLU(6, c64, 7, 2), ConvBNReLU(c64, c128, 3, 2), ResBlock(c128), ResBlock(c128)
    )


def stage_ab(width: float) -> nn.Sequential:
    """Stage over both images (N, 256w, 40, 40) -> (N, 512w, 20, 20)."""
    c256, c512 = scaled(256, width), scaled(512, width)
    return nn.Sequential(
        ResBlock(c256),
        ResBlock(c256),
        ConvBNReLU(c256, c512, 3, 2),
        ResBlock(c512),
        ResBlock(c512),
    )


def tokens_of(
    stages: tuple[nn.Module, nn.Module, nn.Module], rendered: torch.Tensor, observed: torch.Tensor
) -> torch.Tensor:
    """Run the shared trunk: A and B through one encoder, rendered first -> (N, 400, d)."""
    encode_a, encode_ab, pos_embed = stages
    both = encode_a(torch.cat([rendered, observed]))
    joined = torch.cat(both.chunk(2), dim=1)
    return pos_embed(encode_ab(joined).flatten(2).transpose(1, 2))


class RefineNet(nn.Module):
    """Pose update between a rendered and an observed crop.

    forward(A, B), each (N, 6, 160, 160), returns {'trans': (N, 3) in units of half a diameter,
    'rot': (N, 3) before tanh}; see update.apply_update for their meaning (traps 1 and 2).
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.width = width
        d = scaled(512, width)
        self.encodeA = stage_a(width)
        self.encodeAB = stage_ab(width)
        self.pos_embed = PositionalEmbedding(d)
        self.trans_head = self._head(d)
        self.rot_head = self._head(d)

    @staticmethod
    def _head(d: int) -> nn.Sequential:
        # no dropout: it has no part in inference, and a regression of few steps learns less by it
        layer = nn.TransformerEncoderLayer(
            d, HEADS, dim_feedforward=d, dropout=0.0, batch_first=True
        )
        return nn.Sequential(layer, nn.Linear(d, 3))

    def forward(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = tokens_of((self.encodeA, self.encodeAB, self.pos_embed), rendered, observed)
        return {
            'trans': self.trans_head(tokens).mean(1),
            'rot': self.rot_head(tokens).mean(1),
        }


class ScoreNet(nn.Module):
    """Ranks hypotheses of one object against each other.

    extract(A, B) -> (N, d) features, independent per hypothesis; rank(features (B, L, d)) ->
    logits (B, L), comparable within a row only. forward is both for one row: (1, N).
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.width = width
        d = scaled(512, width)
        self.encoderA = stage_a(width)
        self.encoderAB = stage_ab(width)
        self.pos_embed = PositionalEmbedding(d)
        self.att = nn.MultiheadAttention(d, HEADS, batch_first=True)
        self.att_cross = nn.MultiheadAttention(d, HEADS, batch_first=True)
        self.linear = nn.Linear(d, 1)

    def extract(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """Return the features (N, d) of the hypotheses A, B, each (N, 6, 160, 160)."""
        tokens = tokens_of((self.encoderA, self.encoderAB, self.pos_embed), rendered, observed)
        return self.att(tokens, tokens, tokens, need_weights=False)[0].mean(1)

    def rank(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, L) of L hypotheses each of B objects, features (B, L, d)."""
        mixed = self.att_cross(features, features, features, need_weights=False)[0]
        return self.linear(mixed)[..., 0]

    def forward(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return self.rank(self.extract(rendered, observed)[None])


def input_projections(
    sources: Sequence[nn.MultiheadAttention],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (3, G * d, d), biases (3, G * d) of G attentions side by side: query, key, value."""
    weights = torch.stack([source.in_proj_weight for source in sources])
    biases = torch.stack([source.in_proj_bias for source in sources])
    weight, bias = (
        part.unflatten(1, (3, -1)).transpose(0, 1).flatten(1, 2) for part in (weights, biases)
    )
    return weight, bias


def fold_batch_norm(network: nn.Module) -> None:
    """Merge every BatchNorm into the convolution before it, in place; for inference only.

    The result equals the eval-mode network up to rounding and no longer has the BN keys. A
    network that is folded already stays as it is.
    """
    for module in list(network.modules()):
        if isinstance(module, ConvBNReLU):
            module.net[0], module.net[1] = _folded(module.net[0], module.net[1])
        elif isinstance(module, ResBlock):
            module.conv1, module.bn1 = _folded(module.conv1, module.bn1)
            module.conv2, module.bn2 = _folded(module.conv2, module.bn2)


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    if not isinstance(norm, nn.BatchNorm2d):
        return conv, norm
    assert isinstance(conv, nn.Conv2d)
    return nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval()), nn.Identity()
