"""register() and track(): the FoundationPose sequence on one device, one result copy per call.

Order of one refinement (foundationpose.md §3.7): crop window and rendering at the current pose,
network, update. Poses stay on the device from the first hypothesis to the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ..datatypes import CameraIntrinsics, Frame, Outcome, PoseEstimate, PoseQuality, require
from ..runtime.choice import BackendChoice
from ..runtime.graph_cache import capacity_by_environment
from .backends import NetworkEngines, open_engines
from .crops import REFINER_CROP, SCORER_CROP, ObservedImages
from .hypotheses import initial_translation, rotation_grid
from .inference import PoseInference
from .mesh import ObjectMesh
from .observation import Uploader
from .quality import depth_evidence
from .update import apply_update
from .views import ViewWriter
from .weights import PoseNetworks


@dataclass(frozen=True)
class RegisterStage:
    """Refine all remaining hypotheses `iterations` times, then keep the `keep` best-scored."""

    iterations: int
    keep: int


# The published schedule: five refinements of all 252, one scoring (foundationpose.md §3.5).
FULL_SCHEDULE = (RegisterStage(5, 252),)
# For slow devices: most hypotheses betray themselves after one refinement.
PRUNED_SCHEDULE = (RegisterStage(1, 48), RegisterStage(2, 12), RegisterStage(2, 12))

CPU_CHUNK = 16


@dataclass(frozen=True)
class EstimatorSettings:
    """Choices of one estimator. Depths in metres; chunk = crops per network call.

    chunk 0 takes all at once on CUDA and 16 on a CPU, where larger batches leave the cache.
    """

    schedule: tuple[RegisterStage, ...] = FULL_SCHEDULE
    track_iterations: int = 2
    min_depth_m: float = 0.1
    max_depth_m: float = 10.0
    min_mask_depth_px: int = 4  # foundationpose.md §3.4
    chunk: int = 0
    symmetries: tuple[tuple[float, ...], ...] = ()  # row-major 3x3 rotations besides identity
    # graphs kept per network, one per number of crops; 0: none
    cuda_graph_cache_capacity: int = field(default_factory=capacity_by_environment)

    def __post_init__(self) -> None:
        require(len(self.schedule) > 0, 'schedule is empty: give at least one RegisterStage')
        for stage in self.schedule:
            require(
                stage.iterations >= 0 and stage.keep >= 1,
                f'{stage}: iterations must be >= 0 and keep >= 1',
            )
        require(
            self.track_iterations >= 1,
            f'track_iterations is {self.track_iterations}, must be at least 1',
        )
        require(
            0 <= self.min_depth_m < self.max_depth_m,
            f'depth range {self.min_depth_m}..{self.max_depth_m} m: min must be below max',
        )
        require(
            self.cuda_graph_cache_capacity >= 0,
            f'cuda_graph_cache_capacity is {self.cuda_graph_cache_capacity}, must be 0 (no CUDA'
            ' graphs) or more',
        )
        require(self.chunk >= 0, f'chunk is {self.chunk}, must be 0 (by device) or more')
        for symmetry in self.symmetries:
            require(
                is_rotation(symmetry),
                f'symmetry {symmetry} is no rotation matrix: give nine numbers, row by row',
            )


class PoseEstimator:
    """Finds and follows one object in RGB-D frames.

    mesh: the object. networks: both on one device, which is where everything runs. engines: what
    runs them (backends.open_engines), by default torch. All buffers are allocated here or, per
    image size, on the first frame of that size (see warm_up).
    """

    def __init__(
        self,
        mesh: ObjectMesh,
        networks: PoseNetworks,
        settings: EstimatorSettings | None = None,
        engines: NetworkEngines | None = None,
    ) -> None:
        self.mesh = mesh
        self.networks = networks
        self.settings = settings or EstimatorSettings()
        self.device = networks.device
        symmetries = np.array([np.eye(3).ravel(), *self.settings.symmetries]).reshape(-1, 3, 3)
        rotations = rotation_grid(symmetries)
        self._rotations = torch.from_numpy(rotations).float().to(self.device)
        self._radius_m = torch.tensor([mesh.diameter_m / 2], device=self.device)
        by_device = CPU_CHUNK if self.device.type == 'cpu' else len(rotations)
        chunk = min(self.settings.chunk or by_device, len(rotations))
        engines = engines or open_engines(networks, BackendChoice('torch'))
        crop = engines.crop
        self._views = ViewWriter(mesh, chunk, crop.dtype, self.device, crop.layout)
        capacity = self.settings.cuda_graph_cache_capacity
        self.inference = PoseInference(engines, networks, self._views.crops, capacity)
        self._uploader: Uploader | None = None

    def warm_up(self, intrinsics: CameraIntrinsics) -> None:
        """Run the real register and track once on a blank frame of the camera's size.

        Compiles kernels and fills every buffer. A CPU, where batches come in equal chunks and a
        whole registration takes seconds, warms up with one chunk of hypotheses.
        """
        size = (intrinsics.height, intrinsics.width)
        depth = np.full(size, self.mesh.diameter_m * 3, np.float32)
        frame = Frame(np.zeros((*size, 3), np.uint8), depth, intrinsics)
        mask = np.zeros(size, bool)
        mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
        on_cpu = self.device.type == 'cpu'
        self._find(frame, mask, self._rotations[: self._views.capacity if on_cpu else None])
        pose = np.eye(4)
        pose[2, 3] = self.mesh.diameter_m * 3
        self.track(frame, pose)

    def register(self, frame: Frame, mask: np.ndarray) -> PoseEstimate:
        """Find the pose from nothing but the object's mask.

        mask: (H, W), non-zero = object; raises ValueError on another size. Outcomes: OK,
        EMPTY_MASK, NO_DEPTH_IN_MASK, OUT_OF_RANGE, NOT_FINITE.
        """
        require(
            mask.shape == frame.depth_m.shape,
            f'mask is {mask.shape}, the image {frame.depth_m.shape}: publish the mask at the image'
            ' size',
        )
        return self._find(frame, mask, self._rotations)

    @torch.inference_mode()
    def _find(self, frame: Frame, mask: np.ndarray, rotations: torch.Tensor) -> PoseEstimate:
        """Register from the given start rotations (N, 3, 3)."""
        size = frame.depth_m.shape
        box = mask_box(mask)
        if box is None:
            return PoseEstimate(Outcome.EMPTY_MASK)
        uploader = self._uploader_for(size)
        observed = uploader.upload(frame, mask, box)
        depth = uploader.filtered_depth(observed)
        center, count = initial_translation(
            depth, observed.mask, observed.box, observed.intrinsics[0]
        )
        if self.device.type == 'cpu' and count < self.settings.min_mask_depth_px:
            return PoseEstimate(Outcome.NO_DEPTH_IN_MASK)  # on CUDA, asking would be a host sync
        poses = torch.eye(4, device=self.device).repeat(len(rotations), 1, 1)
        poses[:, :3, :3] = rotations
        poses[:, :3, 3] = center
        images = ObservedImages(observed.rgb, depth[None], observed.intrinsics)
        ranked, scores = self._run_schedule(poses, images, size)
        evidence = self._evidence(ranked[:1], images, size)
        parts = [ranked.flatten(), scores, evidence.float().flatten(), center, count.float()[None]]
        return self._read_registration(uploader.download(torch.cat(parts)), len(ranked))

    @torch.inference_mode()
    def track(self, frame: Frame, camera_from_object: np.ndarray) -> PoseEstimate:
        """Refine the last pose on a new frame.

        camera_from_object: (4, 4), as register or track returned it. Outcomes: OK with quality,
        OUT_OF_RANGE, NOT_FINITE. Whether the quality is good enough is the tracker's decision.
        """
        last = camera_from_object @ self.mesh.object_from_centered
        require(bool(np.isfinite(last).all()), f'the pose to track from is not finite: {last}')
        if last[2, 3] < 1e-3:
            return PoseEstimate(Outcome.OUT_OF_RANGE)
        size = frame.depth_m.shape
        uploader = self._uploader_for(size)
        observed = uploader.upload(frame, None, None, last)
        region = self._views.neighbourhood(observed.pose, observed.intrinsics, size)
        depth = uploader.filtered_depth(observed, region)
        images = ObservedImages(observed.rgb, depth[None], observed.intrinsics)
        poses = observed.pose
        for _ in range(self.settings.track_iterations):
            poses = self._refine(poses, images, size)
        evidence = self._evidence(poses, images, size)
        values = uploader.download(torch.cat([poses.flatten(), evidence.float().flatten()]))
        return self._estimate(values[:16].reshape(4, 4), values[16:20])

    @torch.inference_mode()
    def score(self, frame: Frame, camera_from_object: np.ndarray) -> np.ndarray:
        """Rank given poses (N, 4, 4) against each other on a frame: logits (N,) float32."""
        uploader = self._uploader_for(frame.depth_m.shape)
        observed = uploader.upload(frame, None, None)
        depth = uploader.filtered_depth(observed)
        images = ObservedImages(observed.rgb, depth[None], observed.intrinsics)
        centered = torch.from_numpy(camera_from_object @ self.mesh.object_from_centered).float()
        if self.device.type == 'cuda':
            centered = centered.pin_memory()  # from pageable memory the copy would wait
        poses = centered.to(self.device, non_blocking=True)
        return uploader.download(self._score(poses, images, frame.depth_m.shape))

    def _uploader_for(self, size: tuple[int, ...]) -> Uploader:
        if self._uploader is None or self._uploader.size != size:
            self._uploader = Uploader(size[0], size[1], self.device)
        return self._uploader

    def _run_schedule(
        self, poses: torch.Tensor, images: ObservedImages, size: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Refine, score and prune by the schedule; poses best first and their logits."""
        scores = torch.zeros(len(poses), device=self.device)
        for stage in self.settings.schedule:
            for _ in range(stage.iterations):
                poses = self._refine(poses, images, size)
            scores = self._score(poses, images, size)
            best = scores.topk(min(stage.keep, len(poses)))  # sorted, fixed size: no host sync
            poses, scores = poses[best.indices], best.values
        return poses, scores

    def _refine(
        self, poses: torch.Tensor, images: ObservedImages, size: tuple[int, ...]
    ) -> torch.Tensor:
        refined = []
        for part in poses.split(self._views.capacity):
            rendered, observed = self._views.write(part, images, REFINER_CROP, size)
            update = self.inference.refine(rendered, observed)
            refined.append(apply_update(part, update, self._radius_m))
        return torch.cat(refined)

    def _score(
        self, poses: torch.Tensor, images: ObservedImages, size: tuple[int, ...]
    ) -> torch.Tensor:
        """Logits (N,) of all poses against each other; features in chunks, ranking at once."""
        features = [
            self.inference.features(*self._views.write(part, images, SCORER_CROP, size))
            for part in poses.split(self._views.capacity)
        ]
        return self.inference.rank(torch.cat(features)[None])[0].float()

    def _evidence(
        self, poses: torch.Tensor, images: ObservedImages, size: tuple[int, ...]
    ) -> torch.Tensor:
        rendered, depth_m = self._views.write_with_depth(poses, images, REFINER_CROP, size)
        return depth_evidence(rendered, depth_m, poses[:, :3, 3], self._radius_m)

    def _read_registration(self, values: np.ndarray, count: int) -> PoseEstimate:
        """Split the one downloaded vector again and name the outcome."""
        poses = values[: 16 * count].reshape(count, 4, 4)
        scores = values[16 * count : 17 * count]
        evidence, center, valid_px = values[17 * count :][:4], values[-4:-1], values[-1]
        if valid_px < self.settings.min_mask_depth_px:
            return PoseEstimate(Outcome.NO_DEPTH_IN_MASK)
        if not self._in_range(float(center[2])):
            return PoseEstimate(Outcome.OUT_OF_RANGE)
        if not (np.isfinite(scores).all() and np.isfinite(poses).all()):
            return PoseEstimate(Outcome.NOT_FINITE)
        best = self._estimate(poses[0], evidence)
        if best.outcome is not Outcome.OK:
            return best
        ranked = poses.astype(np.float64) @ self.mesh.centered_from_object
        return PoseEstimate(
            Outcome.OK, best.camera_from_object, float(scores[0]), best.quality, ranked, scores
        )

    def _estimate(self, camera_from_centered: np.ndarray, evidence: np.ndarray) -> PoseEstimate:
        if not np.isfinite(camera_from_centered).all():
            return PoseEstimate(Outcome.NOT_FINITE)
        if not self._in_range(float(camera_from_centered[2, 3])):
            return PoseEstimate(Outcome.OUT_OF_RANGE)
        pose = (
            orthonormal(camera_from_centered.astype(np.float64)) @ self.mesh.centered_from_object
        )
        quality = PoseQuality(*(int(count) for count in evidence))
        return PoseEstimate(Outcome.OK, pose, quality=quality)

    def _in_range(self, depth_m: float) -> bool:
        return self.settings.min_depth_m <= depth_m <= self.settings.max_depth_m


def is_rotation(numbers: tuple[float, ...]) -> bool:
    """Whether the numbers are a 3x3 rotation matrix, row by row."""
    if len(numbers) != 9:
        return False
    matrix = np.array(numbers, np.float64).reshape(3, 3)
    return np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-4) and np.linalg.det(matrix) > 0


def mask_box(mask: np.ndarray) -> np.ndarray | None:
    """Inclusive box (4,) float32 x_first, y_first, x_last, y_last of a mask; None if empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def orthonormal(matrix: np.ndarray) -> np.ndarray:
    """Project the rotation part of a (4, 4) float64 pose onto SO(3) (float32 drift)."""
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    out = matrix.copy()
    out[:3, :3] = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return out
