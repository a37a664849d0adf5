"""One tracked frame around the refiner: one way there, few launches, one way back.

Only what a pose can reach is copied to the device. It reads images in page-locked memory where
they are (page_locked.py), and filters the depth on a stream of its own while the colours come. Of
others the host packs that part: depth first, so that it is filtered while the host packs the
colours, which takes longer than what could be done beside. The CUDA graph is the refiner's alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import warp as wp

from ..cuda_streams import current_stream
from ..datatypes import CameraIntrinsics, Frame
from ..runtime.capture import CAPTURING
from ..runtime.stage_timer import StageTimer
from ..warp_launch import RecordedLaunch, as_warp, pinned_as_warp, stream_of
from . import bus_kernels
from . import track_kernels as kernels
from .crop_pass import POSE, CropPass, Given, PassImages, Refine, views_of
from .crops import PAIR
from .depth import erode, smooth, spatial_weights
from .mesh_bank import MeshBank
from .page_locked import WORD, device_address
from .patch import Patch, PoseNumbers, neighbourhood

HEADER = len(kernels.HEADER)
STEP = 4096  # of launches: a patch that grows by less needs no other one
STEP_WORDS = STEP * 4 // WORD  # of what is fetched
TIMED = 8  # of so many frames one is timed
FETCHED_PX = int(bus_kernels.FETCHED_PX)

Sources = tuple[int, int]  # addresses of colours and depth for the device, 0: it cannot read them


class _Staged:
    """A buffer of the device and the pinned one that it is filled from; on a CPU they are one.

    A kernel fetches over the bus: enqueuing a copy takes the host longer than launching that.
    """

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        size, is_cuda = torch.empty(0, dtype=dtype).itemsize, device.type == 'cuda'
        self._words = -(-count * size // WORD)
        self._per_word = WORD // size
        staging = torch.zeros(self._words, dtype=torch.int64, pin_memory=is_cuda)
        words = torch.zeros_like(staging, device=device) if is_cuda else staging
        self._held, self.device = (staging, words), device
        self.words = as_warp(words, wp.uint64)
        self.values = staging.numpy().view(torch.empty(0, dtype=dtype).numpy().dtype)
        self.on_device = words.view(dtype)[:count]
        both = [pinned_as_warp(staging, device, wp.uint64), self.words]
        self._fetch = RecordedLaunch(bus_kernels.fetch, (self._words,), both, device)

    def send(self, count: int, stream: wp.Stream | None) -> None:
        """Bring the first values to the device, asynchronously."""
        if self._held[0] is not self._held[1]:
            words = in_steps(-(-count // self._per_word), self._words, STEP_WORDS)
            self._fetch((words,), stream)


class _InPlace:
    """Fetching the patch of one image, colours or depth, out of page-locked memory."""

    def __init__(self, tracked: Any, image: int, words: int, into: _Staged) -> None:
        self._words, self._most = words, len(into.words)
        arguments = [tracked, image, words, into.words]
        self._fetch = RecordedLaunch(
            bus_kernels.fetch_in_place, (self._most,), arguments, into.device
        )

    def __call__(self, patch: Patch, stream: wp.Stream | None) -> None:
        words = self._words * (patch.pixels // FETCHED_PX)
        self._fetch((in_steps(words, self._most, STEP_WORDS),), stream)


class _Beside:
    """A stream of its own for what may run beside the current one; both wait on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._own = device, torch.cuda.Stream(device)
        with torch.cuda.stream(self._own):
            self.stream = stream_of(device)
        self._begun, self._ended = torch.cuda.Event(), torch.cuda.Event()

    def begin(self) -> None:
        """Let it go on behind what the current stream has to do up to here."""
        self._begun.record(current_stream(self._device))
        self._own.wait_event(self._begun)

    def join(self) -> None:
        """Let the current stream go on behind what was launched on it."""
        self._ended.record(self._own)
        current_stream(self._device).wait_event(self._ended)


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
        pixels = size[0] * size[1]
        given = self._make_given()
        self._header, self._addresses = given.header.numpy(), given.addresses.numpy()
        self._frame: Frame | None = None  # begun: its images may be read in place
        self._rgb = _Staged(3 * pixels, torch.uint8, self._device)
        self._depth = _Staged(pixels, torch.float32, self._device)
        # of bringing a patch there; two events cost the host what launches do
        self.timer = StageTimer(self._device, every=TIMED)
        self._is_open = False  # begun and not ended
        self._held: list[torch.Tensor] = []  # what recorded launches read and write
        self._done = torch.cuda.Event() if self._is_cuda else None
        self.filtered = torch.zeros(1, pixels, device=self._device)
        images = PassImages(self._rgb.on_device, self.filtered, size)
        self._pass = CropPass(bank, diameters_m, crops, images, given)
        colors = (bus_kernels.RGB, bus_kernels.RGB_WORDS, self._rgb)
        depth = (bus_kernels.DEPTH, bus_kernels.DEPTH_WORDS, self._depth)
        self._in_place = [_InPlace(self._pass.tracked, *each) for each in (colors, depth)]
        self._beside = _Beside(self._device) if self._is_cuda else None
        self._results, self._final = self._record_return()
        self._record_filters()

    def _make_given(self) -> Given:
        header = torch.zeros(HEADER + (POSE + 1) * self._count, pin_memory=self._is_cuda)
        addresses = torch.zeros(int(kernels.IMAGES), dtype=torch.int64, pin_memory=self._is_cuda)
        return Given(header, addresses)

    def _record_filters(self) -> None:
        pixels = self.size[0] * self.size[1]
        eroded = torch.zeros(1, pixels, device=self._device)
        spatial = spatial_weights().to(self._device)
        self._held += [eroded, spatial]
        patch, size = as_warp(self._pass.patch, wp.vec4i), wp.vec2i(*self.size)
        source = as_warp(self._depth.on_device.view(1, -1))
        between, filtered = as_warp(eroded), as_warp(self.filtered)
        erosion = [source, patch, between]
        smoothing = [between, patch, size, as_warp(spatial), filtered]
        self._erode = RecordedLaunch(erode, (1, pixels), erosion, self._device)
        self._smooth = RecordedLaunch(smooth, (1, pixels), smoothing, self._device)

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
        sources = self._sources_in(frame)
        diameters_m = [self._diameters_m[index] for index in objects]
        patch = neighbourhood(camera_from_centered, frame.intrinsics, diameters_m)
        if any(sources):
            patch = patch.in_steps(FETCHED_PX)
        self._pass.use_current_stream()
        self._fill_header(frame.intrinsics, patch, camera_from_centered, objects)
        self._pass.start(n)
        if self._is_cuda:
            self._bring(frame, patch, sources, n)
        else:
            self._take(frame, patch, n)

    def _sources_in(self, frame: Frame) -> Sources:
        """Note which of the images the device can read in place."""
        self._frame = frame
        sources = (0, 0)
        if self._is_cuda and self.size[1] % FETCHED_PX == 0:
            sources = device_address(frame.rgb), device_address(frame.depth_m)
        self._addresses[:] = sources
        return sources

    def _open(self) -> None:
        """Begin anew; what a pass left that came to no end is waited for."""
        if self._is_open and self._is_cuda:
            with CAPTURING:  # the device must not be waited for while a stream captures
                torch.cuda.synchronize(self._device)
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

    def _bring(self, frame: Frame, patch: Patch, sources: Sources, n: int) -> None:
        """Bring the patch to the device; draw n poses and filter its depth there.

        What is read in place first, so that the device is busy while the host goes on. With what
        is packed it draws and filters in between, in less time than that takes.
        """
        if all(sources):
            self._bring_in_place(patch, n)
            return
        with self.timer:
            for source, fetch in zip(sources, self._in_place, strict=True):
                if source:
                    fetch(patch, self._pass.stream)
            self._pass.draw(n)
            if not sources[1]:
                self._send_depth(frame, patch)
            self._filter(patch, self._pass.stream)
            if not sources[0]:
                self._send_colors(frame, patch)

    def _bring_in_place(self, patch: Patch, n: int) -> None:
        """Bring both images; the depth is filtered while colours come and poses are drawn."""
        assert self._beside is not None
        fetch_colors, fetch_depth = self._in_place
        with self.timer:
            fetch_depth(patch, self._pass.stream)
            self._beside.begin()
            self._filter(patch, self._beside.stream)
            fetch_colors(patch, self._pass.stream)
        self._pass.draw(n)
        self._beside.join()

    def _take(self, frame: Frame, patch: Patch, n: int) -> None:
        """Do the same on a CPU."""
        self._pass.draw(n)
        with self.timer:
            self._send_depth(frame, patch)
            self._send_colors(frame, patch)
        self._filter(patch, None)

    def _send_depth(self, frame: Frame, patch: Patch) -> None:
        packed = self._depth.values[: patch.pixels].reshape(patch.height, patch.width)
        np.copyto(packed, patch.of(frame.depth_m))  # the filters know invalid depth
        self._depth.send(patch.pixels, self._pass.stream)

    def _send_colors(self, frame: Frame, patch: Patch) -> None:
        packed = self._rgb.values[: 3 * patch.pixels].reshape(patch.height, patch.width, 3)
        np.copyto(packed, patch.of(frame.rgb))
        self._rgb.send(3 * patch.pixels, self._pass.stream)

    def _filter(self, patch: Patch, stream: wp.Stream | None) -> None:
        threads = in_steps(patch.pixels, self.size[0] * self.size[1])
        self._erode((1, threads), stream)
        self._smooth((1, threads), stream)

    def write(self, n: int) -> torch.Tensor:
        """Write the network inputs of the first n poses (2 n, ...); a view of the buffer."""
        return self._pass.write(n)

    def move(self, update: Mapping[str, torch.Tensor], n: int) -> None:
        """Apply the refiner's output to the first n poses and draw them at their new places."""
        self._pass.move(update, n)
        self._pass.draw(n)

    def end(self, n: int) -> Tracked:
        """Return the poses of n objects and their evidence, the caller's own.

        The only wait of a frame.
        """
        self._pass.count(n)
        if self._done is not None:
            self._return((len(self._pass.found) // 4,), self._pass.stream)
            self._done.record(current_stream(self._device))
            self._done.synchronize()
        self._is_open, self._frame = False, None
        return Tracked(self._results[:n].copy(), self._final[:n].copy())


def in_steps(count: int, most: int, step: int = STEP) -> int:
    """Return a count rounded up to whole steps, as long as there are as many."""
    return min(most, -(-count // step) * step)


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
