"""Runs monitor_node as a process of its own, reads its lines, and always ends it."""

from __future__ import annotations

import importlib.util
import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from .demo_processes import dying_with_parent, parameter_text

MODULE = 'foundationpose_trt.ros.monitor_node'
NEEDED = ('rclpy', 'diagnostic_msgs')
GRACE_S = 5.0  # from SIGTERM to SIGKILL
LAST_WORDS = 20  # lines of its stderr that are kept
IMPORT_REMEDY = 'this Python and ROS 2 must fit each other: python3 -c "import rclpy" must work'

Line = dict[str, Any]


class Listener:
    """A running monitor_node; use `running_listener`, which ends it whatever happens."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding='utf-8',
            errors='replace',
            start_new_session=True,  # Ctrl-C reaches the monitor alone, which ends it in order
        )
        self._lines: queue.SimpleQueue[tuple[float, Line]] = queue.SimpleQueue()
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._pumps = [
            threading.Thread(target=self._read_lines, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_words, args=(self._process.stderr,), daemon=True),
        ]
        for pump in self._pumps:
            pump.start()

    def new_lines(self) -> list[tuple[float, Line]]:
        """Return what came since the last call, each with its arrival on the monotonic clock.

        Raises ChildProcessError when the node has ended, with its own last words.
        """
        ended = self._process.poll() is not None
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get())
        if ended and not lines:
            raise ChildProcessError(self._obituary())
        return lines

    def end(self) -> None:
        """Ask it to end, insist after a while."""
        if self._process.poll() is None:
            self._process.terminate()  # SIGINT is ignored by children of a script's background job
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pump in self._pumps:
            pump.join(GRACE_S)

    def _read_lines(self, stream: IO[str]) -> None:
        for text in stream:
            try:
                line = json.loads(text)
            except ValueError:  # a library of the middleware that prints
                self._words.append(text)
                continue
            self._lines.put((time.monotonic(), line))

    def _read_words(self, stream: IO[str]) -> None:
        self._words.extend(stream)

    def _obituary(self) -> str:
        for pump in self._pumps:
            pump.join(GRACE_S)
        words = [word.strip() for word in self._words if word.strip()]
        last = words[-1] if words else 'it said nothing'
        remedy = f'{sys.executable} -m {MODULE} shows more'
        if last.startswith(('ImportError', 'ModuleNotFoundError')):
            remedy = IMPORT_REMEDY
        return f'{MODULE} ended with status {self._process.returncode}: {last} ({remedy})'


def require_ros() -> None:
    """Raise ModuleNotFoundError naming what of ROS is not installed."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f'ROS 2 ({name}) is not installed', name=name)


@contextmanager
def running_listener(namespace: str) -> Iterator[Listener]:
    """Give a Listener on a namespace ('' for all) that ends with the block."""
    command = [*dying_with_parent(), sys.executable, '-m', MODULE, '--ros-args']
    # no log file: what it has to say comes through the pipes
    command += ['--disable-external-lib-logs', '-p', f'namespace:={parameter_text(namespace)}']
    listener = Listener(command)
    try:
        yield listener
    finally:
        listener.end()
