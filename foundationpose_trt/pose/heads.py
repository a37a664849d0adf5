"""What comes behind the convolutions of the two networks, for a trunk that another engine runs.

Products and attention are torch's (cuBLAS; cuDNN's attention or another), what lies between them
is Warp's. TensorRT 8.6 takes longer for it (docs/performance.md).

The types are those of typed_networks.py: norms, the mean over the tokens and all after it are
float32, the rest is of the trunk's type; products sum up as torch has them do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import warp as wp
from torch import nn
from torch.nn import functional

from ..datatypes import require
from ..warp_launch import as_warp, launch
from .head_kernels import ROWS, head_kernels
from .networks import (
    HEADS,
    TOKENS,
    PositionalEmbedding,
    RefineNet,
    ScoreNet,
    input_projections,
)

FORM = 2  # rises with what is computed here: engines are compared with the networks again
MOST_CROPS = 48  # at once: more take memory, and hardly less time


def tokens_of_image(trunk: torch.Tensor) -> torch.Tensor:
    """Tokens (N, 400, d) of a trunk's output (N, d, 20, 20); no copy where channels come last."""
    return trunk.flatten(2).transpose(1, 2).contiguous()


class PositionalCode:
    """Tokens (N, 400, d) of a trunk's output (N, d, 20, 20), with the code of their places.

    TensorRT 8.6 would add it in a kernel of its own, too, which takes longer.
    """

    def __init__(self, code: PositionalEmbedding, dtype: torch.dtype) -> None:
        values = code.pe.detach()[0].to(dtype)
        self._code, is_half = words(values.reshape(1, -1)), dtype == torch.float16
        self._kernel = head_kernels(values.shape[1], is_half, values.is_cuda).add_code

    def __call__(self, trunk: torch.Tensor) -> torch.Tensor:
        """Return a new tensor, asynchronously."""
        tokens = tokens_of_image(trunk)
        out = torch.empty_like(tokens)
        read, written = words(tokens.flatten(1)), words(out.flatten(1))
        launch(self._kernel, read.shape, (read, self._code, written), out.device)
        return out


def fours(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor's last dimension four by four."""
    return tensor.unflatten(-1, (-1, 4))


def words(rows: torch.Tensor) -> wp.array:
    """Rows (..., d) of half or single precision as head_kernels take them, (R, d / 4)."""
    flat = rows.flatten(0, -2)
    if rows.dtype == torch.float16:
        return as_warp(flat.view(torch.int64), wp.uint64)
    return as_warp(fours(flat), wp.vec4)


def parts_of(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Give tensors (N, ...) in equal parts, the last perhaps smaller, of MOST_CROPS at most."""
    parts = -(-len(tensors[0]) // MOST_CROPS)
    return zip(*(tensor.chunk(parts) for tensor in tensors), strict=True)


class SelfAttentions:
    """Self-attentions of the same tokens side by side, without their output projections.

    Takes tokens (N, 400, d), gives (N, 400, G, d), of the dtype and on the weights' device.
    """

    def __init__(self, sources: Sequence[nn.MultiheadAttention], dtype: torch.dtype) -> None:
        self._groups = len(sources)
        self._weight, self._bias = (
            part.detach().flatten(0, 1).to(dtype) for part in input_projections(sources)
        )

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mix the tokens."""
        count, _, channels = tokens.shape
        packed = functional.linear(tokens, self._weight, self._bias)
        heads = packed.view(count, TOKENS, 3, self._groups * HEADS, channels // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).reshape(count, TOKENS, self._groups, channels)


def _products(layers: Sequence[nn.Linear], dtype: torch.dtype) -> torch.Tensor:
    """Weights of layers side by side, for torch.bmm: (G, in, out)."""
    return torch.stack([layer.weight.detach().T for layer in layers]).to(dtype).contiguous()


def _side_by_side(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([value.detach().float() for value in values])


def _common_eps(layers: Sequence[nn.TransformerEncoderLayer]) -> float:
    found = {norm.eps for layer in layers for norm in (layer.norm1, layer.norm2)}
    require(len(found) == 1, f'the layer norms of the heads differ in eps: {sorted(found)}')
    return float(found.pop())


def _folded(last: nn.Linear, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a linear layer behind a norm's scale and shift, for values without."""
    weight = last.weight.detach().float()
    shifted = weight @ norm.bias.detach().float()
    return weight * norm.weight.detach().float(), last.bias.detach().float() + shifted


class RefinerHeads:
    """Both heads of a refiner: of a trunk's output (N, d, 20, 20) trans and rot, (N, 3) float32.

    With the meaning RefineNet gives them; on the network's device, with its weights as they were
    when this was made. dtype: of the trunk's output, float16 or float32. No host sync.
    """

    def __init__(self, network: RefineNet, dtype: torch.dtype) -> None:
        heads: list[Any] = [network.trans_head, network.rot_head]
        layers, lasts = [head[0] for head in heads], [head[1] for head in heads]
        self._eps = _common_eps(layers)
        self._tokens = PositionalCode(network.pos_embed, dtype)
        self._attention = SelfAttentions([layer.self_attn for layer in layers], dtype)
        projections = [layer.self_attn.out_proj for layer in layers]
        parts = [projections, [one.linear1 for one in layers], [one.linear2 for one in layers]]
        self._weights = [_products(part, dtype) for part in parts]
        self._biases = [_side_by_side([layer.bias for layer in part]) for part in parts]
        norms = [[layer.norm1.weight for layer in layers], [layer.norm1.bias for layer in layers]]
        self._norm = torch.stack([self._biases[0], *map(_side_by_side, norms)])
        folded = [_folded(last, one.norm2) for last, one in zip(lasts, layers, strict=True)]
        self._last, self._last_bias = (_side_by_side(part) for part in zip(*folded, strict=True))
        is_half, on_cuda = dtype == torch.float16, self._norm.device.type == 'cuda'
        self._kernels = head_kernels(self._norm.shape[2], is_half, on_cuda)

    @torch.inference_mode()
    def __call__(self, trunk: torch.Tensor, trans: torch.Tensor, rot: torch.Tensor) -> None:
        """Write trans and rot, asynchronously on the current stream."""
        for part in parts_of(trunk, trans, rot):
            self._run(*part)

    def _run(self, trunk: torch.Tensor, trans: torch.Tensor, rot: torch.Tensor) -> None:
        tokens = self._tokens(trunk)
        _, groups, channels = self._norm.shape
        rows = tokens.view(-1, channels)
        mixed = self._attention(tokens).view(len(rows), groups, channels)
        product = torch.bmm(mixed.transpose(0, 1), self._weights[0])
        normed = self._normed(rows, product)
        hidden = torch.bmm(normed, self._weights[1])
        given = words(hidden), words(self._biases[1])
        self._launch('add_relu', groups * len(rows) // ROWS, *given)
        sums = self._sums(normed, torch.bmm(hidden, self._weights[2]))
        read, written = map(as_warp, (sums, self._last_bias)), map(as_warp, (trans, rot))
        self._launch('last', len(sums), *read, 1 / TOKENS, *written)

    def _launch(self, name: str, rows: int, *arguments: Any) -> None:
        """Launch a kernel with so many rows of lanes."""
        kernels = self._kernels
        launch(getattr(kernels, name), (rows, kernels.lanes), arguments, self._norm.device)

    def _normed(self, rows: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        """First norm of the tokens (rows, d) and what attention adds to them, (G, rows, d)."""
        out = torch.empty_like(product)
        given = (words(rows), words(product), as_warp(fours(self._norm), wp.vec4), self._eps)
        self._launch('add_norm', product.shape[0] * len(rows) // ROWS, *given, words(out))
        return out

    def _sums(self, normed: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        """Last layer on the second norm of both (G, rows, d) added, summed by parts of a crop."""
        crops, parts = normed.shape[0] * normed.shape[1] // TOKENS, TOKENS // ROWS
        sums = torch.empty(crops, self._last_bias.shape[1], parts, device=normed.device)
        last = (as_warp(fours(self._last), wp.vec4), self._eps, as_warp(sums))
        given = (words(normed), words(product), words(self._biases[2]))
        self._launch('norm_sums', crops * parts, *given, *last)
        return sums


class ExtractorHead:
    """The end of ScoreNet.extract: of a trunk's output (N, d, 20, 20) features (N, d) float32.

    As RefinerHeads in all else.
    """

    def __init__(self, network: ScoreNet, dtype: torch.dtype) -> None:
        self._tokens = PositionalCode(network.pos_embed, dtype)
        self._attention = SelfAttentions([network.att], dtype)
        out = network.att.out_proj
        self._weight, self._bias = out.weight.detach().float().T, out.bias.detach().float()

    @torch.inference_mode()
    def __call__(self, trunk: torch.Tensor, features: torch.Tensor) -> None:
        """Write the features, asynchronously on the current stream."""
        parts = (self._attention(self._tokens(part)) for (part,) in parts_of(trunk))
        means = [part[:, :, 0].mean(1, dtype=torch.float32) for part in parts]
        torch.addmm(self._bias, torch.cat(means), self._weight, out=features)
