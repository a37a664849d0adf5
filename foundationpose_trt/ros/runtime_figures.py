"""What the runtime of a node says of itself, for the summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from foundationpose_trt.runtime.graph_cache import CacheStats


def graph_figures(stats: Sequence[CacheStats]) -> dict[str, Any]:
    """Return hits, misses, graphs and capacity of some graph caches together, {} of none."""
    if not stats:
        return {}
    return {
        'graph_hits': sum(one.hits for one in stats),
        'graph_misses': sum(one.misses for one in stats),
        'graph_size': sum(len(one.entry_bytes) for one in stats),
        'graph_capacity': sum(one.capacity for one in stats),
    }


def gpu_memory(device: torch.device) -> dict[str, str]:
    """Return what torch has taken of the GPU's memory in MiB, {} on a CPU."""
    if device.type != 'cuda':
        return {}
    return {'gpu_memory_mb': f'{torch.cuda.memory_reserved(device) / 2**20:.0f}'}
