"""Does the observed depth agree with the rendered pose? The evidence behind the quality gate.

Counted by track_kernels.count_evidence. A surface agrees within MIN_TOLERANCE_M and what grows
with depth, or within the share of the diameter where that is more.
"""

from __future__ import annotations

import torch

MIN_TOLERANCE_M = 0.006
TOLERANCE_OF_DIAMETER = 0.04  # surface error of a pose that is still useful
TOLERANCE_OF_DEPTH_SQUARED = 0.004  # metres at 1 m; sensor noise grows with z squared


def confirmed(evidence: torch.Tensor) -> torch.Tensor:
    """How much the observed depth confirms of what each pose shows: (N,) float32, 0..1.

    evidence: (N, 4) as track_kernels.count_evidence. Agreeing over rendered and contradicted
    pixels, so that occluded and unseen ones count against a pose, and those that should hide
    others twice.
    """
    rendered, agreeing, _, behind = evidence.float().unbind(1)
    return agreeing / (rendered + behind).clamp_min(1.0)
