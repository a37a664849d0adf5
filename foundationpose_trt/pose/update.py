"""What the refiner's two outputs mean, and the inverse for training (foundationpose.md §3.7)."""

from __future__ import annotations

import torch

from ..geometry import exp_so3, log_so3

ROT_NORMALIZER_RAD = 0.3490658503988659  # 20 degrees, released configuration, §1.7


def apply_update(
    poses: torch.Tensor, update: dict[str, torch.Tensor], radius_m: torch.Tensor
) -> torch.Tensor:
    """Apply the refiner's output to camera_from_centered (N, 4, 4); returns new float32 poses.

    trans (N, 3) is in units of the mesh radius (half the diameter, (N,) or (1,) metres) and is
    not squashed (trap 2). rot (N, 3) goes through tanh, times 20 degrees, and rotates with the
    transposed exponential: R' = exp([w]x)^T R (trap 1).
    """
    rotation = exp_so3(torch.tanh(update['rot'].float()) * ROT_NORMALIZER_RAD)
    out = poses.clone()
    out[:, :3, :3] = rotation.transpose(1, 2) @ poses[:, :3, :3]
    out[:, :3, 3] = poses[:, :3, 3] + update['trans'].float() * radius_m[:, None]
    return out


def target_update(
    poses: torch.Tensor, goal: torch.Tensor, radius_m: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Outputs that would move poses to goal in one step, with rot already squashed (tanh).

    Rotations beyond what tanh can reach keep their direction: the largest component becomes 0.95.
    """
    relative = goal[:, :3, :3] @ poses[:, :3, :3].transpose(1, 2)
    squashed = -log_so3(relative) / ROT_NORMALIZER_RAD
    largest = squashed.abs().amax(1, keepdim=True)
    squashed = squashed * (0.95 / largest.clamp_min(0.95))
    return {'trans': (goal[:, :3, 3] - poses[:, :3, 3]) / radius_m[:, None], 'rot': squashed}
