"""What a node measures of itself: a topic per stage, and a summary of all of them to watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node
from std_msgs.msg import Float32

from foundationpose_trt.latency import Level, RollingWindow, level_of
from foundationpose_trt.ros.qos import LATCHED_QOS, RESULT_QOS

LEVELS = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR)

ONCE = ('warm_up_ms', 'detector_warm_up_ms')  # before anybody listens: these topics are latched


class LatencyTopics:
    """Publishes `latency/<name>` for each stage and keeps the samples of the last seconds.

    names: stages in milliseconds (they end in _ms) and counters. Any thread may call.
    """

    def __init__(self, node: Node, names: tuple[str, ...], window_s: float) -> None:
        self._node = node
        self._publishers = {
            name: node.create_publisher(
                Float32, f'latency/{name}', LATCHED_QOS if name in ONCE else RESULT_QOS
            )
            for name in names
        }
        self._windows = {
            name: RollingWindow(window_s) for name in names if name.endswith('_ms')
        }  # fmt: skip

    def note(self, name: str, value: float) -> None:
        """Take one sample of a stage in milliseconds, or the value of a counter."""
        if name in self._windows:
            self._windows[name].add(value)
        publisher = self._publishers[name]
        if name in ONCE or publisher.get_subscription_count():
            publisher.publish(Float32(data=float(value)))

    def statuses(self, budgets_ms: Mapping[str, float]) -> list[DiagnosticStatus]:
        """Return one status per stage that has samples, judged by its budget (0 or none: OK)."""
        found = []
        for name, window in self._windows.items():
            summary = window.summary()
            if summary:
                found.append(self._status(name, summary, budgets_ms.get(name, 0.0)))
        return found

    def destroy(self) -> None:
        """Take the topics off the graph."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)

    def _status(self, name: str, summary: dict[str, float], budget_ms: float) -> DiagnosticStatus:
        level = level_of(summary, budget_ms)
        values = {f'{key}_ms': f'{summary[key]:.3f}' for key in ('p50', 'p95', 'p99', 'max')}
        values['count'] = f'{summary["count"]:.0f}'
        message = f'p95 {summary["p95"]:.1f} ms'
        if budget_ms > 0:
            values['budget_ms'] = f'{budget_ms:g}'
            message += f', budget {budget_ms:g} ms'
        return status(self._node, f'latency {name}', values, level, message)


def status(
    node: Node, task: str, values: Mapping[str, Any], level: Level = Level.OK, message: str = ''
) -> DiagnosticStatus:
    """Return one DiagnosticStatus of a node: its name is '/ns/node: task'."""
    return DiagnosticStatus(
        level=LEVELS[level],
        name=f'{node.get_fully_qualified_name()}: {task}',
        message=message,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
