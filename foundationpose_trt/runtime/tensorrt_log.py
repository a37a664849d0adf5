"""Where TensorRT's messages go: to listeners while there are any, else to Python's log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FATAL = ('ERROR', 'INTERNAL_ERROR')

Sink = Callable[[str, str], None]  # severity by name, message
logger = logging.getLogger(__name__)


class LogRelay:
    """Passes TensorRT's messages to whoever listens, or to Python's log when nobody does.

    One per module: TensorRT keeps the first logger it is given. Safe under threads; listeners of
    the same time hear each other's messages. interrupted: Ctrl-C came while TensorRT logged.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._sinks: list[Sink] = []
        # a collection of garbage while it is held may end a TensorRT object, which logs
        self._lock = threading.RLock()

    @contextmanager
    def to(self, sink: Sink) -> Iterator[None]:
        """Send what comes during the block to sink."""
        with self._lock:
            self._sinks.append(sink)
        try:
            yield
        finally:
            with self._lock:
                self._sinks.remove(sink)

    def receive(self, severity: str, message: str) -> None:
        """Take one message from TensorRT."""
        with self._lock:
            sinks = list(self._sinks)
        try:
            for sink in sinks:
                sink(severity, message)
            if not sinks and severity in (*FATAL, 'WARNING'):
                logger.log(logging.ERROR if severity in FATAL else logging.WARNING, message)
        except KeyboardInterrupt:  # must not reach TensorRT's C++, which would swallow it
            self.interrupted = True


class ErrorList:
    """A sink that keeps the errors."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, severity: str, message: str) -> None:
        if severity in FATAL:
            self.messages.append(message.strip())

    def __str__(self) -> str:
        return '; '.join(self.messages) or 'TensorRT gave no reason'
