"""One thread with one slot: it takes the newest item, and what was replaced is handed back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar('Item')
IDLE_S = 1.0


class WorkerFailed(RuntimeError):
    """The worker's function raised; the cause is chained."""


class NewestWorker(Generic[Item]):
    """Runs `handle` on the newest item offered, in a thread of its own.

    prefer(new, pending): whether a new item replaces the one that still waits (default: always).
    idle: gives an item to handle when none came for IDLE_S, or None; it must not take long.
    An exception in `handle` ends the thread and comes out of `raise_failure`, which the owner
    must call now and then: a bug never leaves a process that looks alive and does nothing.
    """

    def __init__(
        self,
        handle: Callable[[Item], None],
        prefer: Callable[[Item, Item], bool] = lambda new, pending: True,
        idle: Callable[[], Item | None] = lambda: None,
    ) -> None:
        self._handle = handle
        self._prefer = prefer
        self._idle = idle
        self._pending: Item | None = None
        self._condition = threading.Condition()
        self._stopping = False
        self._failure: BaseException | None = None
        # daemon: a registration that runs on for seconds must not hold up the end of the process
        self._thread = threading.Thread(target=self._run, name='newest-worker', daemon=True)

    def start(self) -> None:
        """Start the thread; once only."""
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """True once stop was called: a handler that runs on must publish nothing any more."""
        return self._stopping

    def offer(self, item: Item) -> Item | None:
        """Put an item into the slot; return the one that will now never be handled, if any."""
        with self._condition:
            pending = self._pending
            if pending is not None and not self._prefer(item, pending):
                return item
            self._pending = item
            self._condition.notify()
            return pending

    def raise_failure(self) -> None:
        """Raise WorkerFailed if the handler raised."""
        if self._failure is not None:
            raise WorkerFailed(
                f'the worker ended with {type(self._failure).__name__}: {self._failure}'
            ) from self._failure

    def stop(self, timeout_s: float = 3.0) -> bool:
        """Let the current item end and take no other; may be called again.

        Returns False when the handler still runs after timeout_s.
        """
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (item := self._take()) is not None:
                self._handle(item)
        finally:
            self._failure = sys.exc_info()[1]

    def _take(self) -> Item | None:
        with self._condition:
            while not self._condition.wait_for(self._has_work, IDLE_S):
                if (idle := self._idle()) is not None:
                    return idle
            item, self._pending = self._pending, None
            return None if self._stopping else item

    def _has_work(self) -> bool:
        return self._stopping or self._pending is not None
