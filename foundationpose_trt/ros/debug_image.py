"""An image drawn for people: in a thread of its own, and only while someone looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from rclpy.node import Node
from sensor_msgs.msg import Image

from foundationpose_trt.ros.qos import NEWEST_DEPTH, reliable_publisher
from foundationpose_trt.ros.worker import NewestWorker

Item = TypeVar('Item')


class DebugImage(Generic[Item]):
    """Publishes an image topic; what is offered while one is drawn replaces what waits.

    draw: turns what is offered into a message, or None; runs in the thread. enabled: may change
    at any time.
    """

    def __init__(
        self, node: Node, enabled: bool, draw: Callable[[Item], Image | None], topic: str
    ) -> None:
        self.enabled = enabled
        self._node = node
        self._draw = draw
        self._publisher = reliable_publisher(node, Image, topic, NEWEST_DEPTH)
        self._worker: NewestWorker[Item] = NewestWorker(self._handle)
        self._worker.start()

    def offer(self, item: Item) -> None:
        """Have something drawn, if it is wanted."""
        if self.enabled and self._publisher.get_subscription_count():
            self._worker.offer(item)

    def raise_failure(self) -> None:
        """Raise WorkerFailed if drawing raised."""
        self._worker.raise_failure()

    def stop(self, timeout_s: float = 1.0) -> bool:
        """Draw nothing more; returns False when the thread still runs."""
        return self._worker.stop(timeout_s)

    def destroy(self) -> None:
        """Stop, and take the topic off the graph."""
        self.stop()
        self._node.destroy_publisher(self._publisher)

    def _handle(self, item: Item) -> None:
        message = self._draw(item)
        if message is not None and not self._worker.stopping:
            self._publisher.publish(message)
