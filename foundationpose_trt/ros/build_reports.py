"""Says in the log and on a topic how far an engine build is, now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

INTERVAL_S = 5.0


class BuildReports:
    """Called with network, fraction done and phase; logs the first, the last and some between."""

    def __init__(
        self, logger: Any, publish: Callable[[str], None], interval_s: float = INTERVAL_S
    ) -> None:
        """logger: of a ROS node. publish: sends a line on the node's topic."""
        self._logger = logger
        self._publish = publish
        self._interval_s = interval_s
        self._network = ''
        self._due_s = 0.0

    def __call__(self, network: str, done: float, phase: str) -> None:
        """Take one report; done is 0..1."""
        now_s = time.monotonic()
        if network == self._network and done < 1 and now_s < self._due_s:
            return
        self._network, self._due_s = network, now_s + self._interval_s
        line = f'building the engine of the {network}: {done:.0%}, {phase}'
        self._logger.info(line)
        self._publish(line)
