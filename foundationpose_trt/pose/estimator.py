"""register() and track(): the FoundationPose sequence on one device, one result copy per call.

Order of one refinement (foundationpose.md §3.7): crop window and rendering at the current pose,
network, update. Poses stay on the device from the first hypothesis to the result. Objects that
are tracked together go through it as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..datatypes import CameraIntrinsics, Frame, Outcome, PoseEstimate, require
from ..runtime.choice import BackendChoice
from .backends import NetworkEngines, open_engines
from .crops import SCORER_CROP, ObservedImages
from .estimator_settings import FULL_SCHEDULE as FULL_SCHEDULE
from .estimator_settings import PRUNED_SCHEDULE as PRUNED_SCHEDULE
from .estimator_settings import EstimatorSettings as EstimatorSettings
from .estimator_settings import RegisterStage as RegisterStage
from .estimator_settings import settings_by_object
from .hypotheses import initial_translation, rotation_grid
from .inference import PoseInference
from .mesh import ObjectMesh
from .observation import Uploader
from .page_locked import page_locked_empty
from .patch import PoseNumbers
from .quality import confirmed
from .readout import Readout
from .register_pass import RegisterPass
from .track_pass import TrackPass, run_pass
from .views import ViewWriter
from .weights import PoseNetworks

CPU_CHUNK, CUDA_CHUNK = 16, 126  # larger batches leave a CPU's cache, or only take memory
NEAREST_M = 1e-3  # a pose nearer to the camera's plane cannot be drawn
FRAMES_ALIVE = 3  # of a node: converted, tracked in, drawn on
BLANK_DIAMETERS = 3.0  # how far away warm_up() puts an object


class PoseEstimator:
    """Finds and follows one or more objects in RGB-D frames.

    meshes: the object, or several; methods name one by its place. networks: both on one device,
    which is where everything runs. settings: one for all objects, or one for each. engines: what
    runs the networks (backends.open_engines), by default torch. All buffers are allocated here
    or, per image size, on the first frame of that size (see warm_up). Raises ValueError for
    settings that do not fit the objects or each other.
    """

    def __init__(
        self,
        meshes: ObjectMesh | Sequence[ObjectMesh],
        networks: PoseNetworks,
        settings: EstimatorSettings | Sequence[EstimatorSettings] | None = None,
        engines: NetworkEngines | None = None,
    ) -> None:
        self.meshes = (meshes,) if isinstance(meshes, ObjectMesh) else tuple(meshes)
        require(len(self.meshes) > 0, 'no mesh: an estimator needs at least one object')
        self.networks = networks
        self.device = networks.device
        self._centers_m = [mesh.center_m.tolist() for mesh in self.meshes]
        self._use(settings_by_object(settings, len(self.meshes)))
        engines = engines or open_engines(networks, BackendChoice('torch'))
        self._largest = engines.largest
        capacity = self._crops_at_once(self._settings)
        self._views = ViewWriter(self.meshes, capacity, engines.crops, self.device)
        graphs = self.settings[0].cuda_graph_cache_capacity
        self.inference = PoseInference(engines, networks, self._views.crops, graphs)
        self._uploader: Uploader | None = None
        self._track_pass: TrackPass | None = None
        self._register_pass: RegisterPass | None = None
        self._is_warm = False

    @property
    def mesh(self) -> ObjectMesh:
        """The first object's mesh."""
        return self.meshes[0]

    @property
    def center_m(self) -> np.ndarray:
        """The first object's centre in the frame of its mesh file, (3,) metres."""
        return self.mesh.center_m

    @property
    def settings(self) -> tuple[EstimatorSettings, ...]:
        """The settings in force, by object; set_settings() changes them."""
        return self._settings

    def set_settings(self, settings: Sequence[EstimatorSettings]) -> None:
        """Use other settings, one per object, from the next call on; not while one runs.

        Raises ValueError, with the old ones still in force, for another chunk and for symmetries
        that leave more hypotheses at once than the buffers hold.
        """
        new, old = settings_by_object(settings, len(self.meshes)), self._settings
        require(
            new[0].chunk == old[0].chunk,
            f'chunk is {new[0].chunk} and was {old[0].chunk}: it is the size of the buffers, make'
            ' a new PoseEstimator to change it',
        )
        needed, held = self._crops_at_once(new), self._views.capacity
        require(
            needed <= held,
            f'symmetries leave {needed} crops at once, the buffers hold {held}: keep as much'
            ' symmetry as there was, or make a new PoseEstimator',
        )
        self._use(new)
        graphs = new[0].cuda_graph_cache_capacity
        if graphs != old[0].cuda_graph_cache_capacity:
            self.inference.set_cuda_graph_cache_capacity(graphs)

    def _use(self, settings: tuple[EstimatorSettings, ...]) -> None:
        self._settings = settings
        self._readouts = [Readout(*pair) for pair in zip(self.meshes, settings, strict=True)]
        grids = [torch.from_numpy(start_rotations(one.symmetries)) for one in settings]
        self._rotations = [grid.float().to(self.device) for grid in grids]

    def _crops_at_once(self, settings: Sequence[EstimatorSettings]) -> int:
        most = max(len(start_rotations(one.symmetries)) for one in settings)
        usual = CPU_CHUNK if self.device.type == 'cpu' else CUDA_CHUNK
        usual = min(usual, self._largest or usual)
        wanted = max(min(settings[0].chunk or usual, most), len(self.meshes))
        require(
            self._largest is None or wanted <= self._largest,
            f'{wanted} crops at once (chunk, as a parameter register_chunk, is'
            f' {settings[0].chunk}, objects are {len(self.meshes)}): the engines run at most'
            f' {self._largest}; choose a smaller chunk, or build them with --batches that reach'
            ' it',
        )
        return wanted

    def empty_image(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array of a numpy dtype, not initialised, for an image of a frame.

        On CUDA it is page-locked, where tracking reads whole images in place whose width is a
        multiple of 8 (page_locked.py); what is a view, or not so wide, is packed.
        """
        empty = page_locked_empty if self.device.type == 'cuda' else np.empty
        return empty(shape, dtype)

    def warm_up(self, intrinsics: CameraIntrinsics) -> None:
        """Run the real register and track once on a blank frame of the camera's size.

        Compiles kernels and fills every buffer. CUDA registers each object and tracks every
        number of them, since each number of crops has its own graph. A CPU, where batches come
        in equal chunks and a whole registration takes seconds, warms up with one chunk of
        hypotheses of the first object, once for all sizes, and tracks all at once.
        """
        on_cpu, count = self.device.type == 'cpu', len(self.meshes)
        registered = range(1 - self._is_warm if on_cpu else count)
        self._is_warm = True
        for index in registered:
            frame, mask = self._blank(intrinsics, index)
            rotations = self._rotations[index][: self._views.capacity if on_cpu else None]
            self._find(frame, mask, index, rotations)
        poses = {index: np.eye(4) for index in range(count)}
        for index, pose in poses.items():
            pose[2, 3] = BLANK_DIAMETERS * self.meshes[index].diameter_m
        # as many as may be alive at once: page-locked memory is made now, not for the first frames
        frame, *_ = [self._blank(intrinsics, 0)[0] for _ in range(FRAMES_ALIVE)]
        for together in (count,) if on_cpu else range(1, count + 1):
            self.track_all(frame, {index: poses[index] for index in range(together)})
        if not on_cpu:  # images in ordinary memory come another way
            other = replace(frame, rgb=frame.rgb.copy(), depth_m=frame.depth_m.copy())
            self.track_all(other, {0: poses[0]})

    def _blank(self, intrinsics: CameraIntrinsics, index: int) -> tuple[Frame, np.ndarray]:
        """Return a black wall at the distance where an object is put, and a mask on it."""
        size = (intrinsics.height, intrinsics.width)
        rgb, depth = self.empty_image((*size, 3), np.uint8), self.empty_image(size, np.float32)
        rgb.fill(0)
        depth.fill(BLANK_DIAMETERS * self.meshes[index].diameter_m)
        mask = np.zeros(size, bool)
        mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
        return Frame(rgb, depth, intrinsics), mask

    def register(self, frame: Frame, mask: np.ndarray, index: int = 0) -> PoseEstimate:
        """Find the pose of one object from nothing but its mask.

        mask: (H, W), non-zero = object; raises ValueError on another size and for an unknown
        index. Outcomes: OK, EMPTY_MASK, NO_DEPTH_IN_MASK, OUT_OF_RANGE, NOT_FINITE.
        """
        require(
            mask.shape == frame.depth_m.shape,
            f'mask is {mask.shape}, the image {frame.depth_m.shape}: publish the mask at the image'
            ' size',
        )
        self._require_known(index)
        return self._find(frame, mask, index, self._rotations[index])

    @torch.inference_mode()
    def _find(
        self, frame: Frame, mask: np.ndarray, index: int, rotations: torch.Tensor
    ) -> PoseEstimate:
        """Register an object from the given start rotations (N, 3, 3)."""
        box = mask_box(mask)
        if box is None:
            return PoseEstimate(Outcome.EMPTY_MASK)
        uploader = self._uploader_for(frame.depth_m.shape)
        observed = uploader.upload(frame, mask, box)
        depth = uploader.filtered_depth(observed)
        center, count = initial_translation(
            depth, observed.mask, observed.box, observed.intrinsics[0]
        )
        fewest_px = self._settings[index].min_mask_depth_px
        if self.device.type == 'cpu' and count < fewest_px:
            return PoseEstimate(Outcome.NO_DEPTH_IN_MASK)  # on CUDA, asking would be a host sync
        poses = torch.eye(4, device=self.device).repeat(len(rotations), 1, 1)
        poses[:, :3, :3] = rotations
        poses[:, :3, 3] = center
        images = ObservedImages(observed.rgb, depth[None], observed.intrinsics)
        hypotheses = self._register_pass_for(uploader)
        hypotheses.look(observed.intrinsics[0])
        ranked, scores = self._run_schedule(poses, images, hypotheses, index)
        evidence = hypotheses.evidence(ranked[:1], index)
        parts = [ranked.flatten(), scores, evidence.flatten(), center, count.float()[None]]
        values = uploader.download(torch.cat(parts))
        return self._readouts[index].registration(values, len(ranked))

    def track(self, frame: Frame, camera_from_object: np.ndarray, index: int = 0) -> PoseEstimate:
        """Refine the last pose (4, 4) of one object on a new frame; see track_all."""
        return self.track_all(frame, {index: camera_from_object})[index]

    @torch.inference_mode()
    def track_all(
        self, frame: Frame, camera_from_object: Mapping[int, np.ndarray]
    ) -> dict[int, PoseEstimate]:
        """Refine the last poses of objects, by their places, on a new frame, as one batch.

        camera_from_object: (4, 4) each, metres, as register or track returned it. Outcomes: OK
        with quality, OUT_OF_RANGE, NOT_FINITE. Whether the quality is good enough is the
        tracker's decision. Raises ValueError for an unknown place and a pose that is not finite.
        """
        if not camera_from_object:
            return {}
        last = {i: self._centered(i, pose) for i, pose in camera_from_object.items()}
        chosen = [index for index, numbers in last.items() if numbers[11] >= NEAREST_M]
        # with the most iterations first: those that go on after any of them are the first rows
        chosen.sort(key=lambda index: -self._settings[index].track_iterations)
        found = self._tracked(frame, [last[i] for i in chosen], chosen) if chosen else {}
        behind = PoseEstimate(Outcome.OUT_OF_RANGE)
        return {index: found.get(index, behind) for index in last}

    def _tracked(
        self, frame: Frame, camera_from_centered: Sequence[PoseNumbers], indices: Sequence[int]
    ) -> dict[int, PoseEstimate]:
        """Track poses of the objects, which are ordered by falling iterations."""
        track = self._track_pass_for(frame.depth_m.shape)
        wanted = [(index, self._settings[index].track_iterations) for index in indices]
        found = run_pass(track, self.inference.refine, frame, camera_from_centered, wanted)
        poses = found.camera_from_object
        is_made = poses[:, 3, 3].tolist()  # else by the host, if it is a pose
        return {
            index: self._readouts[index].estimate_row(row, poses[k] if is_made[k] else None)
            for k, (index, row) in enumerate(zip(indices, found.rows.tolist(), strict=True))
        }

    @torch.inference_mode()
    def score(self, frame: Frame, camera_from_object: np.ndarray, index: int = 0) -> np.ndarray:
        """Rank poses (N, 4, 4) of one object against each other on a frame: logits (N,) float32.

        Raises ValueError for an unknown index.
        """
        self._require_known(index)
        uploader = self._uploader_for(frame.depth_m.shape)
        observed = uploader.upload(frame, None, None)
        depth = uploader.filtered_depth(observed)
        images = ObservedImages(observed.rgb, depth[None], observed.intrinsics)
        object_from_centered = self.meshes[index].object_from_centered
        centered = torch.from_numpy(camera_from_object @ object_from_centered).float()
        if self.device.type == 'cuda':
            centered = centered.pin_memory()  # from pageable memory the copy would wait
        poses = centered.to(self.device, non_blocking=True)
        return uploader.download(self._score(poses, images, self._all_of(index, len(poses))))

    def _require_known(self, index: int) -> None:
        if not 0 <= index < len(self.meshes):
            last = len(self.meshes) - 1
            raise ValueError(f'object index is {index}, must be between 0 and {last}')

    def _centered(self, index: int, camera_from_object: np.ndarray) -> PoseNumbers:
        """Return the pose of an object's centre."""
        self._require_known(index)
        numbers = np.asarray(camera_from_object, float).ravel().tolist()
        # a sum is finite where all its terms are, unless they are astronomic: no pose either
        if not math.isfinite(sum(numbers)):
            raise ValueError(
                f'the pose to track from is not finite, object {index}'
                f' ({self.meshes[index].name}): {camera_from_object}'
            )
        x, y, z = self._centers_m[index]
        for row in (0, 4, 8):
            a, b, c, place = numbers[row : row + 4]
            numbers[row + 3] = a * x + b * y + c * z + place
        return numbers

    def _all_of(self, index: int, count: int) -> torch.Tensor:
        return torch.full((count,), index, dtype=torch.int32, device=self.device)

    def upload_ms(self) -> float | None:
        """Return how long bringing a frame to the device took, in milliseconds, each time once.

        On CUDA by events and without waiting for them, so of a frame or more before; None where
        there is nothing new.
        """
        timers = [one.timer for one in (self._track_pass, self._uploader) if one is not None]
        found = (timer.take_ms() for timer in timers)  # one at a time: taken values are gone
        return next((value for value in found if value is not None), None)

    def _uploader_for(self, size: tuple[int, ...]) -> Uploader:
        if self._uploader is None or self._uploader.size != size:
            self._register_pass = None  # it reads the old one's buffers
            self._uploader = Uploader(size[0], size[1], self.device)
        return self._uploader

    def _track_pass_for(self, size: tuple[int, ...]) -> TrackPass:
        if self._track_pass is None or self._track_pass.size != size:
            self._track_pass = self._views.track_pass((size[0], size[1]), len(self.meshes))
        return self._track_pass

    def _register_pass_for(self, uploader: Uploader) -> RegisterPass:
        if self._register_pass is None:
            self._register_pass = self._views.register_pass(uploader.images)
        return self._register_pass

    def _run_schedule(
        self,
        poses: torch.Tensor,
        images: ObservedImages,
        hypotheses: RegisterPass,
        index: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Refine, score and prune by an object's schedule; poses best first and their logits."""
        scores = torch.zeros(len(poses), device=self.device)
        objects = self._all_of(index, len(poses))
        for stage in self._settings[index].schedule:
            poses = hypotheses.refined(poses, index, stage.iterations, self.inference.refine)
            if stage.judge == 'scorer':
                scores = self._score(poses, images, objects)
            else:
                scores = confirmed(hypotheses.evidence(poses, index))
            best = scores.topk(min(stage.keep, len(poses)))  # sorted, fixed size: no host sync
            poses, scores, objects = poses[best.indices], best.values, objects[: stage.keep]
        return poses, scores

    def _score(
        self, poses: torch.Tensor, images: ObservedImages, objects: torch.Tensor
    ) -> torch.Tensor:
        """Logits (N,) of all poses against each other; features in chunks, ranking at once."""
        size = self._views.capacity
        features = [
            self.inference.features(self._views.write(part, images, SCORER_CROP, images.size, of))
            for part, of in zip(poses.split(size), objects.split(size), strict=True)
        ]
        return self.inference.rank(torch.cat(features)[None])[0].float()


@lru_cache(maxsize=64)
def start_rotations(symmetries: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """Start rotations (N, 3, 3) float64 of a registration, for symmetries as in the settings."""
    return rotation_grid(np.array([np.eye(3).ravel(), *symmetries]).reshape(-1, 3, 3))


def mask_box(mask: np.ndarray) -> np.ndarray | None:
    """Inclusive box (4,) float32 x_first, y_first, x_last, y_last of a mask; None if empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
