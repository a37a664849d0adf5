"""The threads of a warp together, for Warp kernels that a CPU runs as well, thread by thread."""

from __future__ import annotations

import warp as wp

LANES = 32  # of a warp, CUDA C++ Programming Guide, "SIMT Architecture"


@wp.func_native(
    """
#if defined(__CUDA_ARCH__)
    // the lanes that share the row, of whatever warps are made of besides
    unsigned mask = 0xffffffffu;
    if (lanes < 32)
        mask = ((1u << lanes) - 1u) << (threadIdx.x & 31 & ~(lanes - 1));
    for (int offset = lanes / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(mask, value, offset);
#endif
    return value;
"""
)
def lanes_sum(value: float, lanes: int) -> float:
    """Sum over neighbouring lanes, in each of them; on a CPU the value itself."""
    return value  # what the snippet does is not this


@wp.func_native(
    """
#if defined(__CUDA_ARCH__)
    return (threadIdx.x & 31) == 0;
#else
    return true;
#endif
"""
)
def is_first_lane() -> bool:
    """Whether a thread speaks for its warp, all of whose lanes run: one does, on a CPU each."""
    return True  # as above
