"""Pairs image and depth by stamp, newest first, and finds the mask that belongs to a pair.

Pure logic. Nothing waits: a message that finds no partner is counted and dropped, so a stalled
or slower stream can never hold back the newest pair.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMAGE, DEPTH, SEGMENTATION = 'image', 'depth', 'segmentation'
HALVES, MASKS = 'image and depth', 'segmentation and image'
HINTS = {
    HALVES: 'are both stamped by the same clock?',
    MASKS: 'is the mask stamped with its image, and does it come while that is remembered'
    ' (mask_history_frames)?',
}
PARTNERS_KEPT = 8  # a depth stream may lag its colour stream by this many frames at most
MASKS_KEPT = 4  # a mask may overtake its image by this many frames at most
CLOCK_RESET_NS = 1_000_000_000  # stamps this far back are a new run (bag loop), not a late message
GAPS_KEPT = 9  # between stamps of a stream, whose median is the frame period
MISSES_BEFORE_REPORT = 15  # half a second at 30 Hz: start-up mismatches are not worth a warning


@dataclass(frozen=True)
class Stamped:
    """One message and its stamp."""

    stamp_ns: int
    message: Any


@dataclass(frozen=True)
class FrameSet:
    """Image and depth of one instant, with the mask of that instant where there is one.

    stamp_ns is the image's. late_mask: this pair was handed out before, without its mask.
    """

    stamp_ns: int
    image: Any
    depth: Any
    segmentation: Any | None = None
    late_mask: bool = False


class NewestMatcher:
    """Pairs two streams by stamp within slop_ns (inclusive), and masks with the pairs.

    Never over more than half a frame period: with a larger slop one lost image would pair every
    later one with the depth before it, whose own comes a moment later.
    mask_history: how many pairs are remembered for a mask that arrives after them. `counts`
    holds per stream <stream>_unmatched (dropped without a partner), <stream>_late (older than
    one handed out before or than its own predecessor), <stream>_repeated (stamp did not advance),
    and clock_resets; one that is given goes on from there. One thread only.
    """

    def __init__(
        self, slop_ns: int, mask_history: int = 15, counts: Counter[str] | None = None
    ) -> None:
        if slop_ns < 0 or mask_history < 1:
            raise ValueError(
                f'slop_ns is {slop_ns}, must be >= 0; mask_history is {mask_history}, must be >= 1'
            )
        self.slop_ns = slop_ns
        self.counts: Counter[str] = Counter() if counts is None else counts
        self._waiting: dict[str, deque[Stamped]] = {IMAGE: deque(), DEPTH: deque()}
        self._masks: deque[Stamped] = deque(maxlen=MASKS_KEPT)
        self._pairs: deque[FrameSet] = deque(maxlen=mask_history)
        self._newest_ns: dict[str, int] = {}
        self._gaps_ns: deque[int] = deque(maxlen=GAPS_KEPT)
        self._misses: dict[str, GapRecord] = {
            HALVES: GapRecord(),
            MASKS: GapRecord(),
        }

    @property
    def allowed_ns(self) -> int:
        """How far apart stamps of one instant may be: slop_ns, at most half a frame period."""
        if len(self._gaps_ns) < GAPS_KEPT:
            return self.slop_ns
        return min(self.slop_ns, sorted(self._gaps_ns)[GAPS_KEPT // 2] // 2)

    def add_image(self, stamp_ns: int, message: Any) -> FrameSet | None:
        """Take a colour image; return the pair it completes, if any."""
        return self._add_half(IMAGE, DEPTH, Stamped(stamp_ns, message))

    def add_depth(self, stamp_ns: int, message: Any) -> FrameSet | None:
        """Take a depth image; return the pair it completes, if any."""
        return self._add_half(DEPTH, IMAGE, Stamped(stamp_ns, message))

    def add_segmentation(self, stamp_ns: int, message: Any) -> FrameSet | None:
        """Take a mask; return its pair if that came before (marked late_mask)."""
        mask = Stamped(stamp_ns, message)
        if not self._advances(SEGMENTATION, mask):
            return None
        record = self._misses[MASKS]
        pair = nearest(self._pairs, stamp_ns)
        gap_ns = abs(pair.stamp_ns - stamp_ns) if pair else None
        if pair is None or gap_ns is None or gap_ns > self.allowed_ns:
            record.miss(gap_ns)
            if len(self._masks) == MASKS_KEPT:
                self.counts[f'{SEGMENTATION}_unmatched'] += 1
            self._masks.append(mask)
            return None
        record.clear()
        return FrameSet(pair.stamp_ns, pair.image, pair.depth, message, late_mask=True)

    def never_matching(self) -> str | None:
        """Explain streams that arrive but never match, with the smallest gap seen, or None."""
        half = self.allowed_ns < self.slop_ns
        period = f', half a frame period {self.allowed_ns / 1e6:.3g}' if half else ''
        lines = [
            f'{record.misses} messages of {names} arrived and none matched: the closest stamps are'
            f' {record.closest_ns / 1e6:.3f} ms apart, sync_slop_ms allows {self.slop_ns / 1e6:g}'
            f'{period}; {HINTS[names]}'
            for names, record in self._misses.items()
            if record.misses >= MISSES_BEFORE_REPORT and record.closest_ns is not None
        ]
        return '; '.join(lines) or None

    def _add_half(self, stream: str, other: str, half: Stamped) -> FrameSet | None:
        if not self._advances(stream, half):
            return None
        partner = nearest(self._waiting[other], half.stamp_ns)
        gap_ns = abs(partner.stamp_ns - half.stamp_ns) if partner else None
        if partner is None or gap_ns is None or gap_ns > self.allowed_ns:
            self._misses[HALVES].miss(gap_ns)
            self._keep(stream, half)
            return None
        self._misses[HALVES].clear()
        self._drop_until(stream, half.stamp_ns)
        self._drop_until(other, partner.stamp_ns)
        return self._complete(*(half, partner) if stream == IMAGE else (partner, half))

    def _complete(self, image: Stamped, depth: Stamped) -> FrameSet:
        mask = nearest(self._masks, image.stamp_ns)
        if mask is not None and abs(mask.stamp_ns - image.stamp_ns) > self.allowed_ns:
            mask = None
        if mask is not None:
            self._masks.remove(mask)
            self._misses[MASKS].clear()
        message = mask.message if mask is not None else None
        pair = FrameSet(image.stamp_ns, image.message, depth.message, message)
        self._pairs.append(pair)
        return pair

    def _keep(self, stream: str, half: Stamped) -> None:
        waiting = self._waiting[stream]
        if len(waiting) == PARTNERS_KEPT:
            waiting.popleft()
            self.counts[f'{stream}_unmatched'] += 1
        waiting.append(half)

    def _drop_until(self, stream: str, stamp_ns: int) -> None:
        waiting = self._waiting[stream]
        while waiting and waiting[0].stamp_ns <= stamp_ns:
            if waiting.popleft().stamp_ns < stamp_ns:
                self.counts[f'{stream}_unmatched'] += 1

    def _advances(self, stream: str, item: Stamped) -> bool:
        newest_ns = self._newest_ns.get(stream)
        if newest_ns is not None and item.stamp_ns < newest_ns - CLOCK_RESET_NS:
            self._forget()
            newest_ns = None
        if newest_ns is not None and item.stamp_ns <= newest_ns:
            kind = 'repeated' if item.stamp_ns == newest_ns else 'late'
            self.counts[f'{stream}_{kind}'] += 1
            return False
        if newest_ns is not None and stream != SEGMENTATION:
            self._gaps_ns.append(item.stamp_ns - newest_ns)
        self._newest_ns[stream] = item.stamp_ns
        return True

    def _forget(self) -> None:
        self.counts['clock_resets'] += 1
        for waiting in self._waiting.values():
            waiting.clear()
        self._masks.clear()
        self._pairs.clear()
        self._newest_ns.clear()
        self._gaps_ns.clear()


@dataclass
class GapRecord:
    """Messages in a row without a partner, and the smallest gap seen among them."""

    misses: int = 0
    closest_ns: int | None = None

    def miss(self, gap_ns: int | None) -> None:
        """Count one; gap_ns: to the nearest candidate, None where there was none."""
        self.misses += 1
        if gap_ns is not None and (self.closest_ns is None or gap_ns < self.closest_ns):
            self.closest_ns = gap_ns

    def clear(self) -> None:
        """Start over after a match."""
        self.misses, self.closest_ns = 0, None


def nearest(items: deque[Any], stamp_ns: int) -> Any | None:
    """Return the item whose stamp_ns is closest (the newer of two equally close), or None."""
    return min(reversed(items), key=lambda item: abs(item.stamp_ns - stamp_ns), default=None)


def dropped_halves(counts: Mapping[str, int]) -> dict[str, int]:
    """Sum a matcher's counts of image and depth: without a partner, and too late or repeated."""
    halves = (IMAGE, DEPTH)
    return {
        'unmatched': sum(counts.get(f'{half}_unmatched', 0) for half in halves),
        'stale': sum(
            counts.get(f'{half}_{kind}', 0) for half in halves for kind in ('late', 'repeated')
        ),
    }
