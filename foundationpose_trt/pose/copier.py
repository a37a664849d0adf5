"""A second thread that copies an array while the first one copies another."""

from __future__ import annotations

import threading
import weakref
from collections import deque

import numpy as np

Copy = tuple[np.ndarray, np.ndarray]  # target and source


class _Hand:
    """What the two threads share: at most one copy that nobody has begun."""

    def __init__(self) -> None:
        self.waiting: deque[Copy | None] = deque()  # its pop() gives each copy to one thread
        self.wake, self.done = threading.Lock(), threading.Lock()  # held: nothing there yet
        self.wake.acquire()
        self.done.acquire()
        self.error: BaseException | None = None

    def offer(self, copy: Copy | None) -> None:
        """Put a copy down, and wake the other thread unless it is to wake anyway."""
        self.waiting.append(copy)
        if self.wake.locked():
            self.wake.release()

    def taken_back(self) -> Copy | None:
        """Return the copy that was put down, or None when the other thread has made it."""
        try:
            return self.waiting.pop()
        except IndexError:
            self.done.acquire()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return None

    def work(self) -> None:
        """Copy what is offered until None is."""
        while True:
            self.wake.acquire()
            try:
                copy = self.waiting.pop()
            except IndexError:  # the offering thread has done it itself
                continue
            if copy is None:
                return
            try:
                np.copyto(*copy)
            except (ValueError, TypeError) as error:
                self.error = error
            finally:
                del copy
                self.done.release()


class Copier:
    """Copies arrays beside the calling thread: NumPy lets go of the interpreter meanwhile.

    start() and finish() are called by one thread. Where the other one has not come to it (the
    machine is busy), finish() does the work itself: then nothing is gained, and little lost. The
    other thread begins with the first start() and ends with this object.
    """

    def __init__(self) -> None:
        self._hand = _Hand()
        self._is_running = self._is_pending = False

    def start(self, target: np.ndarray, source: np.ndarray) -> None:
        """Begin to copy source into target; both must stay as they are until finish()."""
        self.finish()
        if not self._is_running:
            threading.Thread(target=self._hand.work, name='copier', daemon=True).start()
            weakref.finalize(self, self._hand.offer, None).atexit = False
            self._is_running = True
        self._is_pending = True
        self._hand.offer((target, source))

    def finish(self) -> bool:
        """Return when the copy is made: whether there was one. Raises what NumPy raised."""
        if not self._is_pending:
            return False
        self._is_pending = False
        copy = self._hand.taken_back()
        if copy is not None:
            np.copyto(*copy)
        return True
