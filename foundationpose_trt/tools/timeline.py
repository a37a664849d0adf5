"""What the GPU does during a call, kernel by kernel, from torch's profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..pose import bus_kernels, track_kernels
from ..pose.crops import sample_observed
from ..pose.depth import erode, smooth
from ..pose.raster_kernels import rasterize, shade_network_input

OURS = [
    track_kernels.start,
    track_kernels.place,
    track_kernels.move,
    track_kernels.write_crops,
    track_kernels.count_evidence,
    bus_kernels.fetch,
    bus_kernels.fetch_in_place,
    bus_kernels.give_back,
    erode,
    smooth,
    rasterize,
    shade_network_input,
    sample_observed,
]
COPIES = {'Memcpy HtoD': 'copy to the GPU', 'Memcpy DtoH': 'copy back', 'Memset': 'fill'}
NETWORKS = 'networks and torch'


def timeline(call: Callable[[], object], calls: int) -> list[dict[str, Any]]:
    """Microseconds of the GPU per call, by kernel of ours, copies and all else; longest first.

    Rows: name, us, launches. Under the profiler launches take longer, GPU times do not.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in profiled.key_averages():
        row = spent[stage_of(event.key)]
        row[0] += event.self_device_time_total / calls
        row[1] += event.count / calls if event.self_device_time_total else 0.0
    rows = [
        {'name': name, 'us': us, 'launches': launches}
        for name, (us, launches) in spent.items()
        if launches
    ]
    return sorted(rows, key=lambda row: -row['us'])


def stage_of(key: str) -> str:
    """Name what an event of the profiler belongs to."""
    for start, name in COPIES.items():
        if key.startswith(start):
            return name
    # Warp's kernels are called after the functions, with a hash behind
    names = [k.func.__name__ for k in OURS if key.startswith(k.func.__name__)]
    return max(names, key=len, default=NETWORKS)
