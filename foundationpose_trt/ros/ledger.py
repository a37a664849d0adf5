"""Which frames were handled and which never were: each counts once, however often it came."""

from __future__ import annotations

import threading
from collections import deque

REMEMBERED = 64


class FrameLedger:
    """Counts frames, by stamp, that were never handled. Pure logic; any thread may call.

    waiting: how many frames may be set aside for their mask at a time.
    """

    def __init__(self, waiting: int = 1) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._waiting = waiting
        remembered = max(REMEMBERED, 2 * waiting)
        self._handled: deque[int] = deque(maxlen=remembered)
        self._dropped: deque[int] = deque(maxlen=remembered)
        self._aside: deque[int] = deque()

    def meet(self, stamp_ns: int) -> None:
        """Note a frame that arrives, by a stamp that a bag may have brought before.

        Only that stamp is forgotten, not all at the step back: the last frame of the earlier run
        may still be in work.
        """
        with self._lock:
            for stamps in (self._handled, self._dropped):
                if stamp_ns in stamps:
                    stamps.remove(stamp_ns)

    def handle(self, stamp_ns: int) -> None:
        """Note a frame whose handling begins."""
        with self._lock:
            if stamp_ns not in self._handled:  # tracked in, then registered from
                self._handled.append(stamp_ns)
            if stamp_ns in self._aside:
                self._aside.remove(stamp_ns)

    def drop(self, stamp_ns: int) -> None:
        """Note a frame that will not be handled, unless it already was."""
        with self._lock:
            self._drop(stamp_ns)

    def set_aside(self, stamp_ns: int) -> None:
        """Note a frame that may come back; with too many of them the oldest is dropped."""
        with self._lock:
            self._aside.append(stamp_ns)
            while len(self._aside) > self._waiting:
                self._drop(self._aside.popleft())

    def expect_none(self) -> None:
        """Drop what was set aside."""
        with self._lock:
            while self._aside:
                self._drop(self._aside.popleft())

    def was_handled(self, stamp_ns: int) -> bool:
        """Tell whether a frame was handled, not long ago."""
        with self._lock:
            return stamp_ns in self._handled

    def was_dropped(self, stamp_ns: int) -> bool:
        """Tell whether a frame was counted as dropped, not long ago."""
        with self._lock:
            return stamp_ns in self._dropped

    def _drop(self, stamp_ns: int) -> None:
        if stamp_ns not in self._handled and stamp_ns not in self._dropped:
            self._dropped.append(stamp_ns)
            self.dropped += 1
