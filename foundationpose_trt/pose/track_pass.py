"""One tracked frame around the refiner: one way there, few launches, one way back.

Only what a pose can reach is copied to the device: depth first, so that it is filtered while the
host packs the colours. Packing takes longer than the device needs for what it could do beside the
copies, so they need no stream of their own. Launches are recorded once and repeated; the CUDA
graph is the refiner's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import warp as wp

from ..datatypes import CameraIntrinsics, Frame
from ..runtime.stage_timer import StageTimer
from ..warp_launch import RecordedLaunch, as_warp, pinned_as_warp, stream_of
from . import track_kernels as kernels
from .crops import CROP_PX, REFINER_CROP
from .depth import erode, smooth, spatial_weights
from .mesh_bank import MeshBank
from .patch import Patch, neighbourhood
from .quality import MIN_TOLERANCE_M, TOLERANCE_OF_DEPTH_SQUARED, TOLERANCE_OF_DIAMETER
from .raster_kernels import Instances, rasterize
from .rasterizer import meshes_of
from .update import ROT_NORMALIZER_RAD

HEADER, POSE, COUNTS = len(kernels.HEADER), 16, 4
FACE_PARTS = 16  # threads that share the rows of a face, on CUDA
STEP_PX = 4096  # of the filters' launches: a patch that grows by less needs no other one
OUTPUTS = ('trans', 'rot')  # of the refiner, in the order of kernels.move's arguments, from 1

Crops = tuple[torch.Tensor, torch.Tensor]


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors that both exist are views of the same values."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.dtype == other.dtype
        and one.stride() == other.stride()
    )


class _Staged:
    """A buffer of the device and the pinned one that is copied into it; on a CPU they are one."""

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == 'cuda'
        self.staging = torch.zeros(count, dtype=dtype, pin_memory=pinned)
        self.values = self.staging.numpy()
        self.on_device = torch.zeros(count, dtype=dtype, device=device) if pinned else self.staging
        self._sent = (self.on_device, self.staging)  # last time: slicing takes microseconds

    def send(self, count: int) -> None:
        """Copy the first values, asynchronously."""
        if self.on_device is self.staging:
            return
        if len(self._sent[0]) != count:
            self._sent = self.on_device[:count], self.staging[:count]
        self._sent[0].copy_(self._sent[1], non_blocking=True)


class TrackPass:
    """Tracks poses of objects of one bank in images of one size. Not thread-safe.

    begin() takes a frame and poses; then write() and move() alternate, once per iteration of the
    refiner; end() waits for the result. Nothing else waits, and begin() must not come before the
    end() of the frame before: its staging memory is used again.
    """

    def __init__(
        self,
        bank: MeshBank,
        diameters_m: Sequence[float],
        crops: Crops,
        size: tuple[int, int],
    ) -> None:
        """diameters_m: of the bank's meshes. crops: rendered and observed (n, 6, 160, 160), the
        buffers that write() fills; n poses at most. size: height, width of the images."""
        self.size = size
        self._bank, self._device, self._crops = bank, bank.device, crops
        self._count, self._halves = len(crops[0]), crops
        self._diameters_m = np.asarray(diameters_m, np.float64)
        self._is_cuda = self._device.type == 'cuda'
        pixels = size[0] * size[1]
        header = HEADER + (POSE + 1) * self._count
        self._header = torch.zeros(header, pin_memory=self._is_cuda)
        self._header_values = self._header.numpy()
        self._rgb = _Staged(3 * pixels, torch.uint8, self._device)
        self._depth = _Staged(pixels, torch.float32, self._device)
        self.timer = StageTimer(self._device)  # of bringing a patch there
        self._held: list[Any] = []  # what recorded launches read and write
        self._stream: wp.Stream | None = None
        self._moves: dict[tuple[torch.dtype, ...], RecordedLaunch] = {}  # by the outputs' types
        self._outputs: dict[tuple[torch.dtype, ...], dict[str, torch.Tensor]] = {}  # they read
        self._is_open = False  # begun and not ended
        self._done = torch.cuda.Event() if self._is_cuda else None
        self._results_host = torch.zeros(
            self._count, POSE + COUNTS, pin_memory=self._is_cuda, dtype=torch.float32
        )
        self._record()

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        tensor = torch.zeros(shape, dtype=dtype, device=self._device)
        self._held.append(tensor)
        return tensor

    def _record(self) -> None:
        """Prepare every launch, with all poses; nothing runs."""
        n, device = self._count, self._device
        self._results = self._tensor((n, POSE + COUNTS))
        self._visibility = self._tensor((n, CROP_PX, CROP_PX), torch.int64).fill_(-1)
        visibility = as_warp(self._visibility, wp.uint64)
        tracked, meshes = self._tracked(), meshes_of(self._bank)
        self._tracked_struct = tracked
        seen = self._record_filters(tracked)
        self._held += [meshes, seen]
        self._parts = FACE_PARTS if self._is_cuda else 1
        faces = (n, self._bank.max_faces, self._parts)
        pixels = (n, CROP_PX, CROP_PX)
        rendered, observed = (as_warp(half) for half in self._crops)
        crops = [tracked, meshes, visibility, seen, rendered, observed]
        tolerance = kernels.Tolerance()
        tolerance.least_m, tolerance.of_diameter = MIN_TOLERANCE_M, TOLERANCE_OF_DIAMETER
        tolerance.of_depth_squared = TOLERANCE_OF_DEPTH_SQUARED
        drawn = [meshes, tracked.instances, visibility, self._parts]
        counted = [tracked, visibility, seen, tolerance]
        self._start = RecordedLaunch(kernels.start, (n,), [tracked], device)
        self._draw = RecordedLaunch(rasterize, faces, drawn, device)
        self._write = RecordedLaunch(kernels.write_crops, pixels, crops, device)
        runs = (n, CROP_PX, CROP_PX // int(kernels.RUN_PX))
        self._count_evidence = RecordedLaunch(kernels.count_evidence, runs, counted, device)

    def _tracked(self) -> Any:
        n, bank = self._count, self._bank
        instances = Instances()
        instances.mesh = as_warp(self._tensor((n,), torch.int32))
        instances.texture = as_warp(self._tensor((n,), torch.int32))
        instances.camera_from_centered = as_warp(self._tensor((n, 4, 4)), wp.mat44)
        instances.intrinsics = as_warp(self._tensor((n, 4)), wp.vec4)
        instances.slots = 1
        tracked = kernels.Tracked()
        tracked.instances = instances
        tracked.grid = as_warp(self._tensor((n, 4)), wp.vec4)
        tracked.results = as_warp(self._results)
        diameters = torch.tensor(self._diameters_m, dtype=torch.float64, device=self._device)
        self._held.append(diameters)
        tracked.diameters_m = as_warp(diameters)
        tracked.default_texture = as_warp(bank.default_texture_device)
        tracked.header = pinned_as_warp(self._header, self._device)
        tracked.camera = as_warp(self._tensor((int(kernels.CAMERA_VALUES),)))
        self._patch = self._tensor((1, 4), torch.int32)
        tracked.patch = as_warp(self._patch, wp.vec4i)
        tracked.ratio = REFINER_CROP.ratio
        tracked.poses = n
        return tracked

    def _record_filters(self, tracked: Any) -> Any:
        """Prepare the depth filters; returns what the crops see of the depth."""
        pixels = self.size[0] * self.size[1]
        eroded, smoothed = self._tensor((1, pixels)), self._tensor((1, pixels))
        spatial = spatial_weights().to(self._device)
        self._held.append(spatial)
        source = as_warp(self._depth.on_device.view(1, -1))
        size = wp.vec2i(*self.size)
        erosion = [source, tracked.patch, as_warp(eroded)]
        smoothing = [as_warp(eroded), tracked.patch, size, as_warp(spatial), as_warp(smoothed)]
        self._erode = RecordedLaunch(erode, (1, pixels), erosion, self._device)
        self._smooth = RecordedLaunch(smooth, (1, pixels), smoothing, self._device)
        radii = torch.tensor(2 / self._diameters_m, dtype=torch.float32, device=self._device)
        self._held.append(radii)
        seen = kernels.Seen()
        seen.rgb = as_warp(self._rgb.on_device)
        seen.inverse_radius = as_warp(radii)
        seen.depth = as_warp(smoothed)
        seen.near_m = REFINER_CROP.near_m
        self.filtered = smoothed
        return seen

    def begin(
        self, frame: Frame, camera_from_centered: np.ndarray, objects: Sequence[int]
    ) -> None:
        """Bring a frame and the poses (n, 4, 4) of meshes `objects` to the device.

        frame: of the size given on construction.
        """
        n = len(objects)
        self._open()
        diameters_m = self._diameters_m[list(objects)]
        patch = neighbourhood(camera_from_centered, frame.intrinsics, diameters_m)
        self._stream = stream_of(self._device)
        self._fill_header(frame.intrinsics, patch, camera_from_centered, objects)
        self._start((n,), self._stream)
        self._draw_crops(n)
        self._send(frame, patch)

    def _open(self) -> None:
        """Begin anew; what a pass left that came to no end is waited for and put away."""
        if self._is_open:
            if self._is_cuda:
                torch.cuda.synchronize(self._device)
            self._visibility.fill_(-1)
        self._is_open = True

    def _fill_header(
        self,
        k: CameraIntrinsics,
        patch: Patch,
        camera_from_centered: np.ndarray,
        objects: Sequence[int],
    ) -> None:
        n, values = len(objects), self._header_values
        values[:HEADER] = (
            k.fx, k.fy, k.cx, k.cy, k.width, k.height, patch.x, patch.y, patch.width, patch.height,
        )  # fmt: skip
        values[HEADER : HEADER + POSE * n] = camera_from_centered.ravel()
        first = HEADER + POSE * self._count
        values[first : first + n] = objects

    def _send(self, frame: Frame, patch: Patch) -> None:
        """Bring the patch to the device and filter its depth there."""
        if self._is_cuda:
            with self.timer:  # the filters run in between, in less time than packing takes
                self._send_depth(frame, patch)
                self._filter(patch)
                self._send_colors(frame, patch)
            return
        with self.timer:
            self._send_depth(frame, patch)
            self._send_colors(frame, patch)
        self._filter(patch)

    def _send_depth(self, frame: Frame, patch: Patch) -> None:
        packed = self._depth.values[: patch.pixels].reshape(patch.height, patch.width)
        np.copyto(packed, patch.of(frame.depth_m))  # the filters know invalid depth
        self._depth.send(patch.pixels)

    def _send_colors(self, frame: Frame, patch: Patch) -> None:
        packed = self._rgb.values[: 3 * patch.pixels].reshape(patch.height, patch.width, 3)
        np.copyto(packed, patch.of(frame.rgb))
        self._rgb.send(3 * patch.pixels)

    def _filter(self, patch: Patch) -> None:
        threads = min(self.size[0] * self.size[1], -(-patch.pixels // STEP_PX) * STEP_PX)
        self._erode((1, threads), self._stream)
        self._smooth((1, threads), self._stream)

    def _draw_crops(self, n: int) -> None:
        self._draw((n, self._bank.max_faces, self._parts), self._stream)

    def write(self, n: int) -> Crops:
        """Write the network inputs of the first n poses; views of the buffers."""
        self._write((n, CROP_PX, CROP_PX), self._stream)
        if len(self._halves[0]) != n:
            self._halves = self._crops[0][:n], self._crops[1][:n]
        return self._halves

    def move(self, update: Mapping[str, torch.Tensor], n: int) -> None:
        """Apply the refiner's output to the first n poses and draw them at their new places."""
        key = tuple(update[name].dtype for name in OUTPUTS)
        if key not in self._moves:
            self._moves[key] = self._record_move(update)
            self._outputs[key] = {name: update[name] for name in OUTPUTS}
        for place, name in enumerate(OUTPUTS, 1):
            output, last = update[name], self._outputs[key][name]
            if last is not output and not _is_same(last, output):
                self._outputs[key][name] = output
                self._moves[key].replace(place, as_warp(output))
        self._moves[key]((n,), self._stream)
        self._draw_crops(n)

    def _record_move(self, update: Mapping[str, torch.Tensor]) -> RecordedLaunch:
        """Prepare the launch for outputs of these types, on these outputs."""
        both = [as_warp(update[name]) for name in OUTPUTS]
        moved = [self._tracked_struct, *both, ROT_NORMALIZER_RAD]
        return RecordedLaunch(kernels.move, (self._count,), moved, self._device)

    def end(self, n: int) -> np.ndarray:
        """Return the poses of n objects and their evidence: (n, 20) float32, the caller's own.

        16 values of camera_from_centered, row by row, and the counts of quality.depth_evidence.
        The only wait of a frame.
        """
        runs = CROP_PX // int(kernels.RUN_PX)
        self._is_open = False
        self._count_evidence((n, CROP_PX, runs), self._stream)
        if self._done is None:
            return self._results[:n].numpy().copy()
        self._results_host.copy_(self._results, non_blocking=True)  # all: slicing takes longer
        self._done.record(torch.cuda.current_stream(self._device))
        self._done.synchronize()
        return self._results_host[:n].numpy().copy()


Refine = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]


def run_pass(
    track: TrackPass,
    refine: Refine,
    frame: Frame,
    camera_from_centered: np.ndarray,
    objects_and_iterations: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Track poses (n, 4, 4) of objects, each so many iterations (falling): as TrackPass.end."""
    iterations = [count for _, count in objects_and_iterations]
    track.begin(frame, camera_from_centered, [index for index, _ in objects_and_iterations])
    for done in range(iterations[0]):
        active = sum(count > done for count in iterations)
        track.move(refine(*track.write(active)), active)
    return track.end(len(iterations))
