"""The executor's side of tracker_node: pairs messages, keeps the newest, wakes the worker.

Nothing here takes longer than a dictionary look-up; a camera is never held up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from foundationpose_trt.datatypes import CameraIntrinsics
from foundationpose_trt.ros.ledger import FrameLedger
from foundationpose_trt.ros.matcher import CLOCK_RESET_NS, FrameSet, NewestMatcher


@dataclass(frozen=True)
class Job:
    """What the worker gets: one frame to process, or (frames None) only the call to look up.

    intrinsics: None before the camera told them.
    """

    intrinsics: CameraIntrinsics | None
    frames: FrameSet | None = None

    @property
    def stamp_ns(self) -> int | None:
        """The frame's stamp, None without one."""
        return self.frames.stamp_ns if self.frames else None


def prefer_newest(new: Job, pending: Job) -> bool:
    """Newest wins; of one stamp the later, which has the mask. Any frame beats none."""
    if new.frames is None or pending.frames is None:
        return new.frames is not None or pending.frames is None
    ahead_ns = pending.frames.stamp_ns - new.frames.stamp_ns
    return ahead_ns <= 0 or ahead_ns >= CLOCK_RESET_NS


class FrameIntake:
    """Hands the newest pair to the worker, and keeps the newest one with a mask beside it.

    So a frame that waits is always the newest, and a mask that took its detector long still
    finds the frame it belongs to. seeking: tells whether masks are of use; offer: the worker's.
    """

    def __init__(
        self,
        matcher: NewestMatcher,
        ledger: FrameLedger,
        seeking: Callable[[], bool],
        offer: Callable[[Job], Job | None],
    ) -> None:
        self.matcher = matcher
        self.intrinsics: CameraIntrinsics | None = None
        self.newest: Job | None = None
        self._ledger = ledger
        self._seeking = seeking
        self._offer = offer
        self._lock = threading.Lock()
        self._masked: FrameSet | None = None

    def take_masked(self) -> FrameSet | None:
        """Return the newest frame with a mask, once; for the worker."""
        with self._lock:
            masked, self._masked = self._masked, None
            return masked

    def wake(self) -> None:
        """Have the worker look up, without a frame: something else than a frame waits for it."""
        self._offer(Job(self.intrinsics))

    def put(self, frames: FrameSet, intrinsics: CameraIntrinsics) -> None:
        """Offer a matched pair; what it displaces is counted."""
        seeking = self._seeking()
        job = Job(intrinsics, frames)
        if not frames.late_mask:
            self._ledger.meet(frames.stamp_ns)
            self.newest = job
        elif not seeking or self._ledger.was_dropped(frames.stamp_ns):
            return
        if seeking and frames.segmentation is not None:
            self._keep_masked(frames)
        displaced = self._offer(job)
        if displaced is not None and displaced.frames is not None:
            self._pass_over(displaced.frames, frames, seeking)

    def _keep_masked(self, frames: FrameSet) -> None:
        with self._lock:
            before, self._masked = self._masked, frames
        if before is not None and before.stamp_ns != frames.stamp_ns:
            self._ledger.drop(before.stamp_ns)

    def _pass_over(self, displaced: FrameSet, by: FrameSet, seeking: bool) -> None:
        with self._lock:
            kept = self._masked is not None and self._masked.stamp_ns == displaced.stamp_ns
        if kept or (displaced is not by and displaced.stamp_ns == by.stamp_ns):
            return  # it will be registered from; or it was replaced by itself, with its mask
        if displaced.segmentation is None and seeking:
            self._ledger.set_aside(displaced.stamp_ns)  # its mask may still come
        else:
            self._ledger.drop(displaced.stamp_ns)
