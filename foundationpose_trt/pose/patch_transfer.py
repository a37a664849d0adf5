"""How the patch of a frame comes to the device, and its depth is filtered there.

The device reads images in page-locked memory where they are (page_locked.py), and filters the
depth on a stream of its own while the colours come. Of others the host packs the patch: first only
what the first crops read, depth before colours, so that it is filtered while the host packs those;
what the object can move to it packs while the device refines, and brings it there on the other
stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import warp as wp

from ..cuda_streams import current_stream
from ..datatypes import Frame
from ..runtime.stage_timer import StageTimer
from ..warp_launch import RecordedLaunch, as_warp, pinned_as_warp, stream_of
from . import bus_kernels
from .crop_pass import CropPass, PassImages
from .depth import erode, smooth, spatial_weights
from .page_locked import WORD, device_address
from .patch import Patch

STEP = 4096  # of launches: a patch that grows by less needs no other one
STEP_WORDS = STEP * 4 // WORD  # of what is fetched
TIMED = 8  # of so many frames one is timed
FETCHED_PX = int(bus_kernels.FETCHED_PX)
WORTH_WAITING = 0.9  # of a patch: packing what is left later costs launches of its own

Sources = tuple[int, int]  # addresses of colours and depth for the device, 0: it cannot read them


def in_steps(count: int, most: int, step: int = STEP) -> int:
    """Return a count rounded up to whole steps, as long as there are as many."""
    return min(most, -(-count // step) * step)


class _Staged:
    """A buffer of the device and the pinned one that it is filled from; on a CPU they are one.

    A kernel fetches over the bus: enqueuing a copy takes the host longer than launching that.
    pixel: the shape of a pixel's values.
    """

    def __init__(
        self, pixels: int, pixel: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        size, is_cuda = dtype.itemsize, device.type == 'cuda'
        self._pixel, self._per_pixel = pixel, int(np.prod(pixel))
        count = pixels * self._per_pixel
        self._words = -(-count * size // WORD)
        self._per_word = WORD // size
        staging = torch.zeros(self._words, dtype=torch.int64, pin_memory=is_cuda)
        words = torch.zeros_like(staging, device=device) if is_cuda else staging
        self._held, self.device = (staging, words), device
        self.words = as_warp(words, wp.uint64)
        self._values = staging.numpy().view(torch.empty(0, dtype=dtype).numpy().dtype)
        self.on_device = words.view(dtype)[:count]
        both = [pinned_as_warp(staging, device, wp.uint64), self.words]
        self._fetch = RecordedLaunch(bus_kernels.fetch, (self._words,), both, device)

    def pack(self, image: np.ndarray, patch: Patch, part: Patch) -> None:
        """Take a part of the patch of an image (H, W, ...), to where the patch has it."""
        packed = self._values[: self._per_pixel * patch.pixels]
        packed = packed.reshape(patch.height, patch.width, *self._pixel)
        np.copyto(part.of(packed, patch), part.of(image))

    def send(self, pixels: int, stream: wp.Stream | None) -> None:
        """Bring the first pixels to the device, asynchronously."""
        if self._held[0] is not self._held[1]:
            needed = -(-pixels * self._per_pixel // self._per_word)
            self._fetch((in_steps(needed, self._words, STEP_WORDS),), stream)


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

    def mark(self) -> None:
        """Note what the current stream has to do up to here."""
        self._begun.record(current_stream(self._device))

    def begin(self) -> None:
        """Let it go on behind what was marked."""
        self._own.wait_event(self._begun)

    def join(self) -> None:
        """Let the current stream go on behind what was launched on it."""
        self._ended.record(self._own)
        current_stream(self._device).wait_event(self._ended)


class _Rest(NamedTuple):
    """What of a frame's patch is still to be packed: all but what the first crops read."""

    frame: Frame
    patch: Patch
    near: Patch
    sources: Sources


class PatchTransfer:
    """Brings patches of frames of one size to the device for a CropPass; see the module.

    begin() is to be followed by crops_written(), when the first crops are launched, and
    bring_rest(), before anything else reads the images. timer: of begin()'s part on the device; on
    a CPU of packing.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        """size: height, width of the images."""
        self._size, self._device = size, device
        self._pixels = size[0] * size[1]
        self._rgb = _Staged(self._pixels, (3,), torch.uint8, device)
        self._depth = _Staged(self._pixels, (), torch.float32, device)
        # two events cost the host what launches do
        self.timer = StageTimer(device, every=TIMED)
        self.filtered = torch.zeros(1, self._pixels, device=device)
        self.images = PassImages(self._rgb.on_device, self.filtered, size)
        self._beside = _Beside(device) if device.type == 'cuda' else None
        self._rest: _Rest | None = None
        self._is_marked = False

    def connect(self, crop_pass: CropPass) -> None:
        """Prepare for the pass that reads `images`, and that tells kernels the patch."""
        self._pass = crop_pass
        colors = (bus_kernels.RGB, bus_kernels.RGB_WORDS, self._rgb)
        depth = (bus_kernels.DEPTH, bus_kernels.DEPTH_WORDS, self._depth)
        self._in_place = [_InPlace(crop_pass.tracked, *each) for each in (colors, depth)]
        eroded = torch.zeros(1, self._pixels, device=self._device)
        spatial = spatial_weights().to(self._device)
        self._held = [eroded, spatial]  # what recorded launches read and write
        patch, between = as_warp(crop_pass.patch, wp.vec4i), as_warp(eroded)
        source = as_warp(self._depth.on_device.view(1, -1))
        kernel_size, filtered = wp.vec2i(*self._size), as_warp(self.filtered)
        erosion = [source, patch, between]
        smoothing = [between, patch, kernel_size, as_warp(spatial), filtered]
        self._erode = RecordedLaunch(erode, (1, self._pixels), erosion, self._device)
        self._smooth = RecordedLaunch(smooth, (1, self._pixels), smoothing, self._device)

    def sources_in(self, frame: Frame) -> Sources:
        """Return where the device can read the images in place."""
        if self._beside is None or self._size[1] % FETCHED_PX:
            return 0, 0
        return device_address(frame.rgb), device_address(frame.depth_m)

    def begin(self, frame: Frame, patch: Patch, near: Patch, sources: Sources, n: int) -> None:
        """Bring what the first crops read of the patch; draw n poses and filter the depth there.

        near: that part of the patch.
        """
        self._rest, self._is_marked = None, False
        if self._beside is None:
            self._take(frame, patch, n)
        elif all(sources):
            self._bring_in_place(self._beside, patch, n)
        else:
            self._bring_packed(frame, patch, near, sources, n)

    def _bring_packed(
        self, frame: Frame, patch: Patch, near: Patch, sources: Sources, n: int
    ) -> None:
        """What is read in place first, so that the device is busy while the host goes on.

        Poses it draws and depth it filters while the host packs, which takes longer.
        """
        if near.pixels > WORTH_WAITING * patch.pixels:
            near = patch
        else:
            self._rest = _Rest(frame, patch, near, sources)
        stream = self._pass.stream
        with self.timer:
            for source, fetch in zip(sources, self._in_place, strict=True):
                if source:
                    fetch(patch, stream)
            self._pass.draw(n)
            up_to = (near.y + near.height - patch.y) * patch.width
            if not sources[1]:
                self._depth.pack(frame.depth_m, patch, near)  # the filters know invalid depth
                self._depth.send(up_to, stream)
            self._filter(patch, stream)
            if not sources[0]:
                self._rgb.pack(frame.rgb, patch, near)
                self._rgb.send(up_to, stream)

    def _bring_in_place(self, beside: _Beside, patch: Patch, n: int) -> None:
        """Bring both images; the depth is filtered while colours come and poses are drawn."""
        fetch_colors, fetch_depth = self._in_place
        with self.timer:
            fetch_depth(patch, self._pass.stream)
            beside.mark()
            beside.begin()
            self._filter(patch, beside.stream)
            fetch_colors(patch, self._pass.stream)
        self._pass.draw(n)
        beside.join()

    def _take(self, frame: Frame, patch: Patch, n: int) -> None:
        """Do the same on a CPU, where nothing runs beside."""
        self._pass.draw(n)
        with self.timer:
            self._depth.pack(frame.depth_m, patch, patch)
            self._rgb.pack(frame.rgb, patch, patch)
        self._filter(patch, None)

    def _filter(self, patch: Patch, stream: wp.Stream | None) -> None:
        threads = in_steps(patch.pixels, self._pixels)
        self._erode((1, threads), stream)
        self._smooth((1, threads), stream)

    def crops_written(self) -> None:
        """Note that the current stream has read, up to here, what begin() brought."""
        if self._rest is not None and not self._is_marked:
            assert self._beside is not None
            self._beside.mark()
            self._is_marked = True

    def bring_rest(self) -> None:
        """Bring what begin() left; to be called when the device has something else to do."""
        rest, beside = self._rest, self._beside
        if rest is None or beside is None:
            return
        self.crops_written()
        self._rest = None
        beside.begin()
        parts = rest.patch.around(rest.near)
        images = (self._depth, rest.frame.depth_m), (self._rgb, rest.frame.rgb)
        for (staged, image), source in zip(images, reversed(rest.sources), strict=True):
            if source:
                continue
            for part in parts:
                staged.pack(image, rest.patch, part)
            staged.send(rest.patch.pixels, beside.stream)
            if staged is self._depth:
                self._filter(rest.patch, beside.stream)
        beside.join()
