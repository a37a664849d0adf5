"""The services of tracker_node; they only set flags, which the worker obeys between frames."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

RESET, REGISTER = 'reset', 'register'


class TrackerServices:
    """`~/reset`, `~/register` and `~/pause`. wake: has the worker look up.

    paused: while True no frame is taken.
    """

    def __init__(self, node: Node, wake: Callable[[], None]) -> None:
        self.paused = False
        self._node = node
        self._wake = wake
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._services = [
            node.create_service(Trigger, '~/reset', self._on_reset),
            node.create_service(Trigger, '~/register', self._on_register),
            node.create_service(SetBool, '~/pause', self._on_pause),
        ]

    def take(self) -> set[str]:
        """What was asked for since the last call, RESET or REGISTER; for the worker."""
        with self._lock:
            asked, self._asked = self._asked, set()
        return asked

    @property
    def interrupts(self) -> bool:
        """Whether what is in work must not be published: a pause or a reset was granted."""
        return self.paused or RESET in self._asked

    def destroy(self) -> None:
        """Take the services off the graph."""
        for service in self._services:
            self._node.destroy_service(service)

    def _ask(self, what: str) -> None:
        with self._lock:
            self._asked.add(what)
        self._wake()

    def _on_reset(self, request: Any, response: Any) -> Any:
        self._ask(RESET)
        response.success, response.message = True, 'forgets the objects and searches again'
        return response

    def _on_register(self, request: Any, response: Any) -> Any:
        self._ask(REGISTER)
        response.success = True
        response.message = 'registers again from the next mask; until then the track goes on'
        return response

    def _on_pause(self, request: Any, response: Any) -> Any:
        changed = self.paused != request.data
        self.paused = bool(request.data)
        response.success = True
        state = 'paused' if self.paused else 'running'
        response.message = state if changed else f'was {state} already'
        self._wake()
        return response
