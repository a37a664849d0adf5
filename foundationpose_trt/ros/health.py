"""Once a second: how the node does, on `latency/summary` and `/diagnostics`."""

from __future__ import annotations

from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from foundationpose_trt.ros.qos import RESULT_QOS
from foundationpose_trt.ros.worker import NewestWorker

PERIOD_S = 1.0
TOPICS = ('latency/summary', '/diagnostics')  # the second is where ROS's own tools look


class HealthReports:
    """Publishes what `collect` returns, in a thread of its own.

    The executor's thread only ticks: percentiles of thousands of samples are no work for it.
    """

    def __init__(self, node: Node, collect: Callable[[], list[DiagnosticStatus]]) -> None:
        self._node = node
        self._collect = collect
        self._publishers = [
            node.create_publisher(DiagnosticArray, topic, RESULT_QOS) for topic in TOPICS
        ]
        self._worker: NewestWorker[bool] = NewestWorker(self._report)
        self._worker.start()
        # steady: with use_sim_time and no /clock, ROS time stands still and nothing would come
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(PERIOD_S, self._tick, clock=steady)

    def raise_failure(self) -> None:
        """Raise WorkerFailed if collecting raised."""
        self._worker.raise_failure()

    def stop(self) -> bool:
        """Report nothing more, take the topics off the graph."""
        self._node.destroy_timer(self._timer)
        ended = self._worker.stop(timeout_s=1.0)
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        return ended

    def _tick(self) -> None:
        self._worker.offer(True)

    def _report(self, _: bool) -> None:
        heard = [p for p in self._publishers if p.get_subscription_count()]
        if not heard:
            return
        array = DiagnosticArray(status=self._collect())
        array.header.stamp = self._node.get_clock().now().to_msg()
        for publisher in heard:
            if not self._worker.stopping:
                publisher.publish(array)
