"""A network of twice the width that begins where a trained one ended (Net2Net, Chen et al., 2016).

Every channel is doubled; what reads a doubled channel shares its weight between the two copies,
unequally, so that they learn apart. Channels go in pairs, old (2m, 2m + 1) -> new (4m, 4m + 1) and
(4m + 2, 4m + 3): the position code of new pair 2m is that of old pair m, so the first copy keeps
its meaning where tokens carry positions, and there only the first copy is read at the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

POSITION_CODE = 'pos_embed.pe'
# reads tokens or the residual stream of a transformer layer, where the copies differ by position
READS_TOKENS = (
    'self_attn.in_proj_weight',
    'linear1.weight',
    'head.1.weight',
    'att.in_proj_weight',
)


def is_half_width(source: Mapping[str, torch.Tensor], goal: Mapping[str, torch.Tensor]) -> bool:
    """Whether the first convolution of `source` has half the output channels of `goal`'s."""
    key = next((key for key, value in source.items() if value.dim() == 4), '')
    return key in goal and 2 * source[key].shape[0] == goal[key].shape[0]


def widened(
    source: Mapping[str, torch.Tensor], goal: Mapping[str, torch.Tensor], seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return weights for the network of state_dict `goal` from those of half its width.

    All tensors float32 on the CPU. The new network gives what the old one gave, up to the layer
    norms, which see the positions of the second copies too. Raises RuntimeError where a shape is
    not that of a doubled network.
    """
    g = torch.Generator().manual_seed(seed)
    out = {}
    for key, value in source.items():
        new = goal[key].cpu() if key == POSITION_CODE else _doubled(key, value, goal[key].shape, g)
        if new.shape != goal[key].shape:
            raise RuntimeError(f'{key} is {tuple(value.shape)}, not half of {goal[key].shape}')
        out[key] = new
    return out


def _doubled(key: str, value: torch.Tensor, shape: torch.Size, g: torch.Generator) -> torch.Tensor:
    if value.dim() == 0:  # BatchNorm's counter
        return value
    if 'in_proj' in key:
        query, *others = (_grown(key, part, True, g) for part in value.chunk(3))
        # twice the products of queries and keys, scaled by the root of twice the channels
        return torch.cat([query / math.sqrt(2), *others])
    return _grown(key, value, shape[0] != value.shape[0], g)


def _grown(key: str, value: torch.Tensor, rows: bool, g: torch.Generator) -> torch.Tensor:
    """Copy the rows (outputs) and share out the columns (inputs), except a crop's 6 channels."""
    if value.dim() > 1 and value.shape[1] != 6:
        value = _shared(value, key.endswith(READS_TOKENS), g)
    return _copied(value) if rows else value


def _copied(value: torch.Tensor) -> torch.Tensor:
    return value.unflatten(0, (-1, 2)).repeat_interleave(2, 0).flatten(0, 1)


def _shared(weight: torch.Tensor, first_only: bool, g: torch.Generator) -> torch.Tensor:
    """Columns c -> two copies whose weights add up to the old one."""
    share = torch.ones_like(weight)
    if not first_only:
        share = 0.3 + 0.4 * torch.rand(weight.shape, generator=g)
    pairs = [(weight * s).unflatten(1, (-1, 2)) for s in (share, 1 - share)]
    return torch.stack(pairs, 2).flatten(1, 3)
