"""The rule of depth evidence in plain torch: what the kernels count by."""

from __future__ import annotations

import torch

MIN_TOLERANCE_M, OF_DIAMETER, OF_DEPTH_SQUARED = 0.006, 0.04, 0.004


def depth_evidence(
    rendered: torch.Tensor,
    observed_depth_m: torch.Tensor,
    translations: torch.Tensor,
    radius_m: torch.Tensor,
) -> torch.Tensor:
    """Count pixels of each crop: (N, 4) int64 rendered, agreeing, in front, behind.

    rendered: (N, 6, 160, 160) network input whose channel 5 is (z - t_z) / radius; observed:
    (N, 160, 160) at the same pixels, metres, 0 = invalid; translations: (N, 3) metres; radius_m:
    (1,) or (N,).
    """
    drawn = (rendered != 0).any(1)
    known = (observed_depth_m > 0) & drawn
    center_m = translations[:, 2, None, None]
    gap_m = observed_depth_m - rendered[:, 5].float() * radius_m[:, None, None] - center_m
    tolerance = MIN_TOLERANCE_M + OF_DEPTH_SQUARED * center_m.clamp_min(0.0).square()
    tolerance = torch.maximum(tolerance, 2 * radius_m[:, None, None] * OF_DIAMETER)
    agreeing = known & (gap_m.abs() <= tolerance)
    masks = (drawn, agreeing, known & (gap_m < -tolerance), known & (gap_m > tolerance))
    return torch.stack([mask.sum((1, 2)) for mask in masks], dim=1)
