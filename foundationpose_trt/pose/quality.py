"""Does the observed depth agree with the rendered pose? The evidence behind the quality gate."""

from __future__ import annotations

import torch

MIN_TOLERANCE_M = 0.006
TOLERANCE_OF_DIAMETER = 0.04  # surface error of a pose that is still useful
TOLERANCE_OF_DEPTH_SQUARED = 0.004  # metres at 1 m; sensor noise grows with z squared


def depth_evidence(
    rendered: torch.Tensor,
    observed: torch.Tensor,
    translations: torch.Tensor,
    radius_m: torch.Tensor,
) -> torch.Tensor:
    """Count pixels of each crop: (N, 4) int64 rendered, agreeing, in front, behind.

    rendered, observed: (N, 6, 160, 160) network inputs of the same poses, whose channel 5 is
    (z - t_z) / radius; translations: (N, 3) metres; radius_m: (1,) or (N,). A pixel counts as
    rendered where colour or xyz is not 0. Beyond two radii the crop has z zeroed: what stands
    there, an occluder or a surface behind, is unknown and counts as no valid depth. No sync.
    """
    drawn = (rendered != 0).any(1)
    known = (observed[:, 5] != 0) & drawn
    gap_m = (observed[:, 5] - rendered[:, 5]).float() * radius_m[:, None, None]
    z = translations[:, 2].clamp_min(0.0)
    tolerance = MIN_TOLERANCE_M + TOLERANCE_OF_DEPTH_SQUARED * z * z
    tolerance = torch.maximum(tolerance, 2 * radius_m * TOLERANCE_OF_DIAMETER)[:, None, None]
    agreeing = known & (gap_m.abs() <= tolerance)
    masks = (drawn, agreeing, known & (gap_m < -tolerance), known & (gap_m > tolerance))
    return torch.stack([mask.sum((1, 2)) for mask in masks], dim=1)
