"""One tracked frame around the refiner: one way there, few launches, one way back.

Only what a pose can reach is copied to the device (patch_transfer.py). The CUDA graph is the
refiner's alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from ..cuda_streams import current_stream
from ..datatypes import CameraIntrinsics, Frame
from ..runtime.capture import CAPTURING
from ..runtime.stage_timer import StageTimer
from ..warp_launch import RecordedLaunch, as_warp, pinned_as_warp
from . import bus_kernels
from . import track_kernels as kernels
from .crop_pass import POSE, CropPass, Given, Refine, views_of
from .crops import PAIR, REFINER_CROP
from .mesh_bank import MeshBank
from .patch import Patch, PoseNumbers, first_read, neighbourhood
from .patch_transfer import FETCHED_PX, PatchTransfer

HEADER = len(kernels.HEADER)


class Tracked(NamedTuple):
    """What a pass gives of n objects.

    rows: (n, 20) float32, 16 values of camera_from_centered, row by row, and the counts of
    kernels.count_evidence. camera_from_object: (n, 4, 4) float64, metres, the last number of one
    0 where kernels.keep_final leaves it to the host.
    """

    rows: np.ndarray
    camera_from_object: np.ndarray


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
        crops: torch.Tensor,
        size: tuple[int, int],
    ) -> None:
        """diameters_m: of the bank's meshes. crops: n pairs (2 n, 6, 160, 160), or in blocks, the
        buffer that write() fills; n poses at most. size: height, width of the images."""
        self.size = size
        self._device, self._count = bank.device, len(crops) // PAIR
        self._diameters_m = [float(diameter_m) for diameter_m in diameters_m]
        self._is_cuda = self._device.type == 'cuda'
        given = self._make_given()
        self._header, self._addresses = given.header.numpy(), given.addresses.numpy()
        self._frame: Frame | None = None  # begun: its images may be read in place
        self._transfer = PatchTransfer(size, self._device)
        self._is_open = False  # begun and not ended
        self._held: list[torch.Tensor] = []  # what recorded launches read and write
        self._done = torch.cuda.Event() if self._is_cuda else None
        self._pass = CropPass(bank, diameters_m, crops, self._transfer.images, given)
        self._transfer.connect(self._pass)
        self._results, self._final = self._record_return()

    @property
    def filtered(self) -> torch.Tensor:
        """The filtered depth (1, pixels) float32, metres, of the patch, pixel after pixel."""
        return self._transfer.filtered

    @property
    def timer(self) -> StageTimer:
        """Of bringing a patch to the device, but for what comes while that refines."""
        return self._transfer.timer

    def _make_given(self) -> Given:
        header = torch.zeros(HEADER + (POSE + 1) * self._count, pin_memory=self._is_cuda)
        addresses = torch.zeros(int(kernels.IMAGES), dtype=torch.int64, pin_memory=self._is_cuda)
        return Given(header, addresses)

    def _record_return(self) -> tuple[np.ndarray, np.ndarray]:
        """Prepare the way back; returns where results and final poses arrive on the host."""
        found = self._pass.found
        arrived = torch.zeros_like(found, device='cpu').pin_memory() if self._is_cuda else found
        self._held += [arrived]
        if self._is_cuda:
            words = found.view(torch.float32), arrived.view(torch.float32)
            both = [as_warp(words[0]), pinned_as_warp(words[1], self._device)]
            self._return = RecordedLaunch(
                bus_kernels.give_back, (len(words[0]),), both, self._device
            )
        results, final = views_of(arrived)
        return results.numpy(), final.numpy()

    def begin(
        self, frame: Frame, camera_from_centered: Sequence[PoseNumbers], objects: Sequence[int]
    ) -> None:
        """Bring a frame and the poses of meshes `objects` to the device.

        frame: of the size given on construction.
        """
        n = len(objects)
        self._open()
        self._frame = frame
        sources = self._transfer.sources_in(frame)
        self._addresses[:] = sources
        diameters_m = [self._diameters_m[index] for index in objects]
        poses, k = camera_from_centered, frame.intrinsics
        patch = near = neighbourhood(poses, k, diameters_m)
        if not all(sources):
            near = first_read(poses, k, diameters_m, REFINER_CROP.ratio).cut_to(patch)
        if any(sources):
            patch = patch.in_steps(FETCHED_PX)
        self._pass.use_current_stream()
        self._fill_header(k, patch, poses, objects)
        self._pass.start(n)
        self._transfer.begin(frame, patch, near, sources, n)

    def _open(self) -> None:
        """Begin anew; what a pass left that came to no end is waited for and put away."""
        if self._is_open:
            if self._is_cuda:
                with CAPTURING:  # the device must not be waited for while a stream captures
                    torch.cuda.synchronize(self._device)
            self._pass.visibility.fill_(-1)
        self._is_open = True

    def _fill_header(
        self,
        k: CameraIntrinsics,
        patch: Patch,
        camera_from_centered: Sequence[PoseNumbers],
        objects: Sequence[int],
    ) -> None:
        n, values = len(objects), self._header
        values[: HEADER + POSE * n] = [
            k.fx, k.fy, k.cx, k.cy, k.width, k.height, patch.x, patch.y, patch.width, patch.height,
            *chain.from_iterable(camera_from_centered),
        ]  # fmt: skip
        first = HEADER + POSE * self._count
        values[first : first + n] = objects

    def write(self, n: int) -> torch.Tensor:
        """Write the network inputs of the first n poses (2 n, ...); a view of the buffer."""
        crops = self._pass.write(n)
        self._transfer.crops_written()
        return crops

    def move(self, update: Mapping[str, torch.Tensor], n: int) -> None:
        """Apply the refiner's output to the first n poses and draw them at their new places."""
        self._pass.move(update, n)
        self._pass.draw(n)
        self._transfer.bring_rest()

    def end(self, n: int) -> Tracked:
        """Return the poses of n objects and their evidence, the caller's own.

        The only wait of a frame.
        """
        self._transfer.bring_rest()  # where nothing was refined
        self._pass.count(n)
        if self._done is not None:
            self._return((len(self._pass.found) // 4,), self._pass.stream)
            self._done.record(current_stream(self._device))
            self._done.synchronize()
        self._is_open, self._frame = False, None
        return Tracked(self._results[:n].copy(), self._final[:n].copy())


def run_pass(
    track: TrackPass,
    refine: Refine,
    frame: Frame,
    camera_from_centered: Sequence[PoseNumbers],
    objects_and_iterations: Sequence[tuple[int, int]],
) -> Tracked:
    """Track poses of objects, each so many iterations (falling): as TrackPass.end."""
    iterations = [count for _, count in objects_and_iterations]
    track.begin(frame, camera_from_centered, [index for index, _ in objects_and_iterations])
    for done in range(iterations[0]):
        active = sum(count > done for count in iterations)
        track.move(refine(track.write(active)), active)
    return track.end(len(iterations))
