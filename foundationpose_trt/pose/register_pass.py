"""Hypotheses of one object on one image: refined and judged without leaving the device."""

from __future__ import annotations

import torch

from .crop_pass import POSE, CropPass, Refine


class RegisterPass:
    """Runs poses through a CropPass over whole images of one size, as many at once as it holds."""

    def __init__(self, crops: CropPass, capacity: int, size: tuple[int, int]) -> None:
        """size: height, width of the images that `crops` reads."""
        self._pass, self._capacity = crops, capacity
        height, width = size
        self._pass.patch.copy_(torch.tensor([[0, 0, width, height]], dtype=torch.int32))
        self._pass.camera[4:].copy_(torch.tensor([width, height], dtype=torch.float32))

    def look(self, intrinsics: torch.Tensor) -> None:
        """Go on to the image that has come to the device; intrinsics: (4,) fx, fy, cx, cy."""
        self._pass.use_current_stream()
        self._pass.camera[:4].copy_(intrinsics)

    def refined(
        self, poses: torch.Tensor, mesh: int, iterations: int, refine: Refine
    ) -> torch.Tensor:
        """Return camera_from_centered (N, 4, 4) of a mesh, refined so many times. No host sync."""
        moved = []
        for part in poses.split(self._capacity):
            self._pass.place(part, mesh)
            for done in range(1, iterations + 1):
                self._pass.move(refine(self._pass.write(len(part))), len(part))
                if done < iterations:
                    self._pass.draw(len(part))
            moved.append(self._pass.poses[: len(part)].clone())
        return torch.cat(moved)

    def evidence(self, poses: torch.Tensor, mesh: int) -> torch.Tensor:
        """Count, per pose, what speaks for it: (N, 4) float32 as track_kernels.count_evidence."""
        counts = []
        for part in poses.split(self._capacity):
            self._pass.place(part, mesh)
            self._pass.count(len(part))
            counts.append(self._pass.results[: len(part), POSE:].clone())
        return torch.cat(counts)
