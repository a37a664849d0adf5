"""The whole of FoundationPose in plain eager PyTorch: slow, and independent of our kernels.

The published sequence (foundationpose.md §3) over a plain renderer and plain crops, without
Warp, buffers or graphs: what the fused path is checked against and measured by. From pose/ come
only what it is given (mesh, networks, settings) and the grid of start rotations.
"""

from __future__ import annotations

import numpy as np
import torch

from ..datatypes import Frame, require
from ..pose.estimator_settings import EstimatorSettings
from ..pose.hypotheses import rotation_grid
from ..pose.mesh import ObjectMesh
from ..pose.weights import PoseNetworks
from .eager_crops import (
    REFINER_RULE,
    SCORER_RULE,
    VALID_M,
    CropRule,
    Seen,
    crop_windows,
    observe,
    observed_crops,
    rendered_intrinsics,
)
from .eager_renderer import EagerRenderer

CPU_CHUNK = 16
ROTATION_STEP_RAD = 0.3490658503988659  # 20 degrees
LEAST_SQUARED_ANGLE = 1e-4  # as the published exponential map clamps it, §3.7


class EagerPipeline:
    """Finds and follows one object in RGB-D frames; stateless between calls.

    Everything runs on the networks' device, the networks in their own precision, all else in
    float32 and float64. Of the settings it takes schedule, track_iterations, chunk, symmetries
    and min_mask_depth_px; it has no gate on depth or quality, as the published program has none.
    """

    def __init__(
        self, mesh: ObjectMesh, networks: PoseNetworks, settings: EstimatorSettings | None = None
    ) -> None:
        self.mesh, self.networks = mesh, networks
        self.settings = settings or EstimatorSettings()
        self.device = networks.device
        self.renderer = EagerRenderer(mesh, self.device)
        symmetries = np.array([np.eye(3).ravel(), *self.settings.symmetries]).reshape(-1, 3, 3)
        self._rotations = torch.from_numpy(rotation_grid(symmetries)).float().to(self.device)

    @torch.inference_mode()
    def register(self, frame: Frame, mask: np.ndarray) -> np.ndarray:
        """Find camera_from_object (4, 4) float64 from a mask (H, W), non-zero = object.

        Raises ValueError for a mask of another size, an empty one, and one without depth.
        """
        require(
            mask.shape == frame.depth_m.shape,
            f'mask is {mask.shape}, the image {frame.depth_m.shape}',
        )
        seen = observe(frame, self.device)
        poses = torch.eye(4, device=self.device).repeat(len(self._rotations), 1, 1)
        poses[:, :3, :3] = self._rotations
        marked = torch.from_numpy(mask != 0).to(self.device)
        poses[:, :3, 3] = start_translation(seen, marked, self.settings.min_mask_depth_px)
        for stage in self.settings.schedule:
            for _ in range(stage.iterations):
                poses = self.refine(poses, seen)
            order = self.score(poses, seen).argsort(descending=True)
            poses = poses[order[: stage.keep]]
        return self._of_file(poses[0])

    @torch.inference_mode()
    def track(self, frame: Frame, camera_from_object: np.ndarray) -> np.ndarray:
        """Refine the last camera_from_object (4, 4) on a new frame; float64, metres."""
        last = camera_from_object @ self.mesh.object_from_centered
        poses = torch.from_numpy(last).float().to(self.device)[None]
        seen = observe(frame, self.device)
        for _ in range(self.settings.track_iterations):
            poses = self.refine(poses, seen)
        return self._of_file(poses[0])

    def refine(self, poses: torch.Tensor, seen: Seen) -> torch.Tensor:
        """Take one step from camera_from_centered (N, 4, 4) float32 on the device."""
        refined = []
        for part in poses.split(self._at_once(poses)):
            update = self.networks.refiner(*self.crops(part, seen, REFINER_RULE))
            refined.append(updated(part, update, self.mesh.diameter_m / 2))
        return torch.cat(refined)

    def score(self, poses: torch.Tensor, seen: Seen) -> torch.Tensor:
        """Rank all of camera_from_centered (N, 4, 4) against each other: logits (N,) float32."""
        features = [
            self.networks.scorer.extract(*self.crops(part, seen, SCORER_RULE))
            for part in poses.split(self._at_once(poses))
        ]
        return self.networks.scorer.rank(torch.cat(features)[None])[0].float()

    def crops(
        self, poses: torch.Tensor, seen: Seen, rule: CropRule
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B (N, 6, 160, 160) in the networks' precision."""
        translations, diameter_m = poses[:, :3, 3], self.mesh.diameter_m
        windows = crop_windows(translations, seen.intrinsics, diameter_m, rule.ratio)
        view = rendered_intrinsics(windows, seen.intrinsics)
        rendered = self.renderer.render(poses, view, rule.near_m)
        observed = observed_crops(seen, windows, translations, diameter_m / 2, rule)
        return rendered.to(self.networks.dtype), observed.to(self.networks.dtype)

    def _at_once(self, poses: torch.Tensor) -> int:
        by_device = CPU_CHUNK if self.device.type == 'cpu' else len(poses)
        return self.settings.chunk or by_device

    def _of_file(self, camera_from_centered: torch.Tensor) -> np.ndarray:
        pose = camera_from_centered.double().cpu().numpy()
        return pose @ self.mesh.centered_from_object


def start_translation(seen: Seen, mask: torch.Tensor, fewest_px: int) -> torch.Tensor:
    """First guess of the object's middle (3,) float64 metres from a mask (H, W) bool (§3.4).

    Raises ValueError for an empty mask, and for fewer pixels with depth in it than fewest_px.
    """
    rows, columns = mask.nonzero(as_tuple=True)
    require(len(rows) > 0, 'the mask is empty: it marks no pixel of the object')
    depth_m = seen.depth_m[mask & (seen.depth_m >= VALID_M)]
    require(
        len(depth_m) >= max(1, fewest_px),
        f'the mask marks {len(rows)} pixels, {len(depth_m)} of them with depth: {fewest_px} are'
        ' needed to place the object',
    )
    pixel = torch.stack([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
    ray = (pixel - seen.intrinsics[2:]) / seen.intrinsics[:2]
    return torch.cat([ray, ray.new_ones(1)]) * median(depth_m)


def median(values: torch.Tensor) -> torch.Tensor:
    """Median () of (n,) as numpy has it: the mean of the middle two of an even number."""
    ordered, count = values.sort().values, len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def updated(poses: torch.Tensor, update: dict[str, torch.Tensor], radius_m: float) -> torch.Tensor:
    """Move poses (N, 4, 4) by the refiner's output, trans and rot (N, 3) each (§3.7).

    trans is in radii; rot is squashed by tanh to 20 degrees per axis and turns by the transposed
    exponential (traps 1 and 2).
    """
    turn = exponential(torch.tanh(update['rot'].float()) * ROTATION_STEP_RAD)
    moved = poses.clone()
    moved[:, :3, :3] = turn.mT @ poses[:, :3, :3]
    moved[:, :3, 3] += update['trans'].float() * radius_m
    return moved


def exponential(vectors: torch.Tensor) -> torch.Tensor:
    """Rotations (N, 3, 3) by the angles and about the axes of vectors (N, 3), radians."""
    axes = torch.eye(3).to(vectors).expand(len(vectors), 3, 3)
    cross = torch.linalg.cross(vectors[:, None], axes).mT
    angle = (vectors**2).sum(1).clamp_min(LEAST_SQUARED_ANGLE).sqrt()[:, None, None]
    once, twice = angle.sin() / angle, (1 - angle.cos()) / angle**2
    return axes + once * cross + twice * (cross @ cross)
