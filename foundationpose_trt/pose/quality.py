"""Does the observed depth agree with the rendered pose? The evidence behind the quality gate."""

from __future__ import annotations

import torch

MIN_TOLERANCE_M = 0.006
TOLERANCE_OF_DIAMETER = 0.04  # surface error of a pose that is still useful
TOLERANCE_OF_DEPTH_SQUARED = 0.004  # metres at 1 m; sensor noise grows with z squared


def depth_evidence(
    rendered: torch.Tensor,
    observed_depth_m: torch.Tensor,
    translations: torch.Tensor,
    radius_m: torch.Tensor,
) -> torch.Tensor:
    """Count pixels of each crop: (N, 4) int64 rendered, agreeing, in front, behind.

    rendered: (N, 6, 160, 160) network input whose channel 5 is (z - t_z) / radius, never zeroed
    on the object itself; observed_depth_m: (N, 160, 160) at the same pixels, 0 = invalid, from
    the image rather than the other network input, which zeroes what stands two radii away;
    translations: (N, 3) metres; radius_m: (1,) or (N,). A pixel counts as rendered where colour
    or xyz is not 0. No sync.
    """
    drawn = (rendered != 0).any(1)
    known = (observed_depth_m > 0) & drawn
    center_m = translations[:, 2, None, None]
    surface_m = rendered[:, 5].float() * radius_m[:, None, None] + center_m
    gap_m = observed_depth_m - surface_m
    tolerance = MIN_TOLERANCE_M + TOLERANCE_OF_DEPTH_SQUARED * center_m.clamp_min(0.0).square()
    tolerance = torch.maximum(tolerance, 2 * radius_m[:, None, None] * TOLERANCE_OF_DIAMETER)
    agreeing = known & (gap_m.abs() <= tolerance)
    masks = (drawn, agreeing, known & (gap_m < -tolerance), known & (gap_m > tolerance))
    return torch.stack([mask.sum((1, 2)) for mask in masks], dim=1)


def confirmed(evidence: torch.Tensor) -> torch.Tensor:
    """How much the observed depth confirms of what each pose shows: (N,) float32, 0..1.

    evidence: (N, 4) as depth_evidence. Agreeing over rendered and contradicted pixels, so that
    occluded and unseen ones count against a pose, and those that should hide others twice.
    """
    rendered, agreeing, _, behind = evidence.float().unbind(1)
    return agreeing / (rendered + behind).clamp_min(1.0)
