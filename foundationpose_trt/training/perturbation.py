"""Start errors as the hypothesis grid, the mask and the last frame leave them."""

from __future__ import annotations

import math

import torch

from ..geometry import exp_so3, random_rotations
from ..synthesis.sensor import uniform


def random_turns(count: int, limits_rad: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Rotations (N, 3, 3) about random axes by angles uniform in 0..limit."""
    axes = torch.nn.functional.normalize(
        torch.randn(count, 3, generator=g, device=g.device), dim=1
    )
    return exp_so3(axes * (uniform((count,), 0, 1, g) * limits_rad)[:, None])


def moved(poses: torch.Tensor, turns: torch.Tensor, shifts_m: torch.Tensor) -> torch.Tensor:
    """Turn (N, 4, 4) poses about their own centre in the camera frame and shift them."""
    out = poses.clone()
    out[:, :3, :3] = turns @ poses[:, :3, :3]
    out[:, :3, 3] = poses[:, :3, 3] + shifts_m
    return out


def perturb(poses: torch.Tensor, radius_m: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Draw the refiner's starts: half grid-like (to 40 degrees), the rest near as in tracking.

    The grid leaves 30 degrees; the median depth of a mask lies on the near surface, up to one
    radius before the centre, hence the biased depth of a third of the draws.
    """
    n = len(poses)
    kind = torch.rand(n, generator=g, device=g.device)
    degrees = torch.where(kind < 0.55, 40.0, torch.where(kind < 0.8, 15.0, 5.0))
    reach = torch.where(kind < 0.55, 0.4, torch.where(kind < 0.8, 0.2, 0.06))
    shift = uniform((n, 3), -1, 1, g) * reach[:, None]
    shift[:, 2] = shift[:, 2] * 1.5
    biased = (torch.rand(n, generator=g, device=g.device) < 0.5) & (kind < 0.55)
    shift[:, 2] = shift[:, 2] - torch.where(biased, uniform((n,), 0.0, 0.9, g), 0.0)
    return moved(poses, random_turns(n, torch.deg2rad(degrees), g), shift * radius_m[:, None])


def spread(
    poses: torch.Tensor, radius_m: torch.Tensor, times: int, g: torch.Generator
) -> torch.Tensor:
    """Draw L = times hypotheses per pose for the scorer, (N * L, 4, 4), scene-major.

    An eighth is nearly right, a quarter within 15 degrees, a quarter half turns about an axis of
    the object (what refinement leaves on nearly symmetric things), the rest anything.
    """
    n = len(poses)
    base = poses.repeat_interleave(times, 0)
    share = (torch.arange(times, device=poses.device) / times).repeat(n)
    degrees = torch.where(share < 0.125, 2.5, torch.where(share < 0.375, 15.0, 6.0))
    reach = torch.where(share < 0.125, 0.02, torch.where(share < 0.375, 0.1, 0.06))
    shifts = (
        uniform((n * times, 3), -1, 1, g) * (reach * radius_m.repeat_interleave(times))[:, None]
    )
    out = moved(base, random_turns(n * times, torch.deg2rad(degrees), g), shifts)
    flips = _half_turns(n * times, g)
    out[:, :3, :3] = torch.where(
        ((share >= 0.375) & (share < 0.625))[:, None, None], out[:, :3, :3] @ flips, out[:, :3, :3]
    )
    anything = random_rotations(n * times, g)
    out[:, :3, :3] = torch.where((share >= 0.625)[:, None, None], anything, out[:, :3, :3])
    return out


def _half_turns(count: int, g: torch.Generator) -> torch.Tensor:
    """Quarter and half turns about the object's own axes."""
    axis = torch.randint(0, 3, (count,), generator=g, device=g.device)
    quarters = torch.randint(1, 4, (count,), generator=g, device=g.device)
    vectors = torch.nn.functional.one_hot(axis, 3).float() * (quarters * math.pi / 2)[:, None]
    return exp_so3(vectors)
