"""What stands between two runs of the refiner, for poses that stay on the device.

Everything is launched from recordings: no allocation, no torch operation, a few microseconds of
the host per launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import warp as wp

from ..warp_launch import RecordedLaunch, as_warp, is_same_view, pinned_as_warp, stream_of
from . import track_kernels as kernels
from .crop_blocks import crops_as_warp
from .crops import CROP_PX, PAIR, REFINER_CROP
from .lanes import LANES
from .mesh_bank import MeshBank
from .quality import MIN_TOLERANCE_M, TOLERANCE_OF_DEPTH_SQUARED, TOLERANCE_OF_DIAMETER
from .raster_kernels import Instances, rasterize
from .rasterizer import meshes_of
from .update import ROT_NORMALIZER_RAD

POSE, COUNTS = 16, 4  # values of a row of results
ROW_BYTES, FINAL_BYTES = 4 * (POSE + COUNTS), 8 * POSE  # of float32, and of float64
FEW = 8  # poses, with which the largest face decides how long drawing takes
FACE_PARTS = 8  # threads that share its rows then, on CUDA
OUTPUTS = ('trans', 'rot')  # of the refiner, in the order of kernels.move's arguments

Refine = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # of pairs of crops
OBSERVED_ARGUMENT = 5  # of kernels.write_crops: where the second halves go
MESH_ARGUMENT = 4  # of kernels.place


def views_of(found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Results (n, 20) float32 and finals (n, 4, 4) float64 in one memory, uint8."""
    n = len(found) // (ROW_BYTES + FINAL_BYTES)
    results, final = found[: n * ROW_BYTES], found[n * ROW_BYTES :]
    return results.view(torch.float32).view(n, -1), final.view(torch.float64).view(n, 4, 4)


class Given(NamedTuple):
    """What a pass is given before each start(), page-locked on CUDA.

    header: float32, kernels.HEADER, then poses (n, 16) and meshes (n,). addresses: (2,) int64, of
    the images that bus_kernels.fetch_in_place is to read (page_locked.device_address).
    """

    header: torch.Tensor
    addresses: torch.Tensor


@dataclass(frozen=True)
class PassImages:
    """Where the frame lies on the device, pixel after pixel: a patch of it, or all.

    rgb: (3 * pixels,) uint8; depth_m: (1, pixels) float32, filtered; size: height, width of the
    whole image.
    """

    rgb: torch.Tensor
    depth_m: torch.Tensor
    size: tuple[int, int]


class CropPass:
    """Draws, crops, moves and judges up to n poses of meshes of one bank. Not thread-safe.

    start() or place() says where the poses are; then write() and move() alternate, once per
    iteration of the refiner, and count() judges where they have come to. Each of write() and
    count() needs the poses drawn: draw() once after each start() and move(). results: (n, 20)
    float32, each pose row by row and its counts (count); final: (n, 4, 4) float64,
    camera_from_object as kernels.keep_final makes it; found: the memory of both; tracked: what
    kernels know of the poses. No call waits for the device.
    """

    def __init__(
        self,
        bank: MeshBank,
        diameters_m: Sequence[float],
        crops: torch.Tensor,
        images: PassImages,
        given: Given | None = None,
        visibility: torch.Tensor | None = None,
    ) -> None:
        """diameters_m: of the bank's meshes. crops: n pairs (2 n, 6, 160, 160), or in blocks, the
        buffer that write() fills. given: what start() reads. visibility: (n, 160, 160) int64
        scratch memory, of its own by default."""
        self._bank, self._device, self._crops = bank, bank.device, crops
        self._count = len(crops) // PAIR
        self._pairs: dict[int, tuple[torch.Tensor, Any]] = {}  # by their number; the second half
        self._held: list[Any] = [images]  # what recorded launches read and write
        self.stream: wp.Stream | None = None  # of all launches since use_current_stream()
        self._moves: dict[tuple[torch.dtype, ...], RecordedLaunch] = {}  # by the outputs' types
        self._outputs: dict[tuple[torch.dtype, ...], dict[str, torch.Tensor]] = {}  # they read
        n = self._count
        # one after the other, for who copies both
        self.found = self._tensor((n * (ROW_BYTES + FINAL_BYTES),), torch.uint8)
        self.results, self.final = views_of(self.found)
        if visibility is None:
            visibility = self._tensor((n, CROP_PX, CROP_PX), torch.int64)
        self._visibility = visibility
        self.poses, self._placed = self._tensor((n, 4, 4)), self._tensor((n, 4, 4))
        self.camera = self._tensor((int(kernels.CAMERA_VALUES),))
        self.patch = self._tensor((1, 4), torch.int32)
        diameters = torch.tensor(np.asarray(diameters_m), dtype=torch.float64)
        self.tracked = self._make_tracked(diameters.to(self._device), given)
        self._record(self._make_seen(images, diameters))

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        tensor = torch.zeros(shape, dtype=dtype, device=self._device)
        self._held.append(tensor)
        return tensor

    def _make_tracked(self, diameters_m: torch.Tensor, given: Given | None) -> Any:
        n, bank = self._count, self._bank
        instances = Instances()
        instances.mesh = as_warp(self._tensor((n,), torch.int32))
        instances.texture = as_warp(self._tensor((n,), torch.int32))
        instances.camera_from_centered = as_warp(self.poses, wp.mat44)
        instances.intrinsics = as_warp(self._tensor((n, 4)), wp.vec4)
        instances.slots = 1
        tracked = kernels.Tracked()
        tracked.instances = instances
        tracked.grid = as_warp(self._tensor((n, 4)), wp.vec4)
        tracked.results = as_warp(self.results)
        tracked.final = as_warp(self.final, wp.mat44d)
        tracked.centers_m = bank.centers_m
        tracked.diameters_m = as_warp(diameters_m)
        tracked.default_texture = as_warp(bank.default_texture_device)
        if given is not None:
            tracked.header = pinned_as_warp(given.header, self._device)
            tracked.addresses = pinned_as_warp(given.addresses, self._device, wp.uint64)
        tracked.camera = as_warp(self.camera)
        tracked.sources = as_warp(self._tensor((int(kernels.IMAGES),), torch.int64), wp.uint64)
        tracked.patch = as_warp(self.patch, wp.vec4i)
        tracked.ratio = REFINER_CROP.ratio
        tracked.poses = n
        self._held += [diameters_m, given]
        return tracked

    def _make_seen(self, images: PassImages, diameters_m: torch.Tensor) -> Any:
        inverse_radius = (2 / diameters_m).float().to(self._device)
        self._held.append(inverse_radius)
        seen = kernels.Seen()
        seen.rgb = as_warp(images.rgb)
        seen.depth = as_warp(images.depth_m)
        seen.inverse_radius = as_warp(inverse_radius)
        seen.near_m = REFINER_CROP.near_m
        return seen

    def _record(self, seen: Any) -> None:
        """Prepare every launch, with all poses; nothing runs."""
        n, device, tracked = self._count, self._device, self.tracked
        meshes = meshes_of(self._bank)
        self._held += [meshes, seen]
        visibility = as_warp(self._visibility, wp.uint64)
        tolerance = kernels.Tolerance()
        tolerance.least_m, tolerance.of_diameter = MIN_TOLERANCE_M, TOLERANCE_OF_DIAMETER
        tolerance.of_depth_squared = TOLERANCE_OF_DEPTH_SQUARED
        self._parts = FACE_PARTS if device.type == 'cuda' and n <= FEW else 1
        faces = (n, self._bank.max_faces, self._parts)
        drawn = [meshes, tracked.instances, visibility, self._parts]
        halves = map(crops_as_warp, self._crops.chunk(PAIR))
        crops = [tracked, meshes, visibility, seen, *halves]
        counted = [tracked, visibility, seen, tolerance]
        runs = (n, CROP_PX, CROP_PX // int(kernels.RUN_PX))
        of_row = LANES if device.type == 'cuda' else 1  # threads that empty one
        self._set = [tracked, visibility, of_row]  # first arguments of what sets poses
        self._setting = LANES + CROP_PX * of_row  # threads of it for each
        placed = [*self._set, as_warp(self._placed, wp.mat44), 0]
        setting = (n, self._setting)
        self._start = RecordedLaunch(kernels.start, setting, self._set, device)
        self._place = RecordedLaunch(kernels.place, setting, placed, device)
        self._draw = RecordedLaunch(rasterize, faces, drawn, device)
        written = (PAIR, n, CROP_PX, CROP_PX)
        self._write = RecordedLaunch(kernels.write_crops, written, crops, device)
        self._count_evidence = RecordedLaunch(kernels.count_evidence, runs, counted, device)
        self._mesh = 0  # that place() was recorded with
        self._written = n  # poses that write() was recorded with

    def use_current_stream(self) -> None:
        """Launch on torch's current stream from now on."""
        self.stream = stream_of(self._device)

    def start(self, n: int) -> None:
        """Take n poses and their meshes out of the header; they are to be drawn."""
        self._start((n, self._setting), self.stream)

    def place(self, camera_from_centered: torch.Tensor, mesh: int) -> None:
        """Take poses (n, 4, 4) of one mesh from the device and draw them."""
        n = len(camera_from_centered)
        self._placed[:n].copy_(camera_from_centered)
        if mesh != self._mesh:
            self._place.replace(MESH_ARGUMENT, mesh)
            self._mesh = mesh
        self._place((n, self._setting), self.stream)
        self.draw(n)

    def draw(self, n: int) -> None:
        """Draw the first n poses where they are."""
        self._draw((n, self._bank.max_faces, self._parts), self.stream)

    def write(self, n: int) -> torch.Tensor:
        """Write the network inputs of the first n poses (2 n, ...); a view of the buffer."""
        if n not in self._pairs:
            observed = crops_as_warp(self._crops[n : PAIR * n])
            self._pairs[n] = self._crops[: PAIR * n], observed
        pairs, observed = self._pairs[n]
        if n != self._written:
            self._write.replace(OBSERVED_ARGUMENT, observed)
            self._written = n
        self._write((PAIR, n, CROP_PX, CROP_PX), self.stream)
        return pairs

    def move(self, update: Mapping[str, torch.Tensor], n: int) -> None:
        """Apply the refiner's output to the first n poses; they are to be drawn anew."""
        key = tuple(update[name].dtype for name in OUTPUTS)
        if key not in self._moves:
            self._moves[key] = self._record_move(update)
            self._outputs[key] = {name: update[name] for name in OUTPUTS}
        for place, name in enumerate(OUTPUTS, len(self._set)):
            output, last = update[name], self._outputs[key][name]
            if not is_same_view(last, output):
                self._outputs[key][name] = output
                self._moves[key].replace(place, as_warp(output))
        self._moves[key]((n, self._setting), self.stream)

    def _record_move(self, update: Mapping[str, torch.Tensor]) -> RecordedLaunch:
        """Prepare the launch for outputs of these types, on these outputs."""
        both = [as_warp(update[name]) for name in OUTPUTS]
        moved = [*self._set, *both, ROT_NORMALIZER_RAD]
        return RecordedLaunch(kernels.move, (self._count, self._setting), moved, self._device)

    def count(self, n: int) -> None:
        """Count, of each of the first n poses, what the observed depth says (quality.py)."""
        self._count_evidence((n, CROP_PX, CROP_PX // int(kernels.RUN_PX)), self.stream)
