"""ROS node: finds every latency summary on the graph and writes what comes as JSON lines.

{"graph": {topic: [publisher, ...]}} at the start and whenever it changes (null: a publisher whose
node is not known yet), and {"topic", "stamp_s", "statuses"} for each array.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from foundationpose_trt.ros.parameters import declare, parameter
from foundationpose_trt.ros.running import run_node

NODE_NAME = 'monitor_node'
TOPIC_END = '/latency/summary'
TYPE = 'diagnostic_msgs/msg/DiagnosticArray'
LOOK_PERIOD_S = 0.5
# deep: many nodes may share one topic, and all of them publish on the same second
SUMMARY_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
UNKNOWN_NODE = '_NODE_NAME_UNKNOWN_'  # rcl's word for a publisher found before its node

Line = dict[str, Any]


@dataclass(frozen=True)
class MonitorParameters:
    """Values in force for one run of monitor_node."""

    namespace: str = parameter('', 'look in this namespace and those below it only; empty: all')


class MonitorNode(Node):
    """Subscribes every summary that somebody publishes; on_line gets each line as a dict."""

    def __init__(self, on_line: Callable[[Line], None] | None = None, **options: Any) -> None:
        # a name that is hidden and one's own: several monitors may run at once
        name = f'_foundationpose_{NODE_NAME}_{os.getpid()}'
        super().__init__(name, enable_rosout=False, start_parameter_services=False, **options)
        self._on_line = on_line or write_line
        namespace = declare(self, MonitorParameters).namespace.strip('/')
        self._prefix = f'/{namespace}/' if namespace else '/'
        self._graph: dict[str, list[str | None]] | None = None
        self._listened: set[str] = set()
        self._unread = False
        # steady: it must go on where ROS time stands still
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(LOOK_PERIOD_S, self.look, clock=steady)
        self.look()

    def look(self) -> None:
        """Look at the graph: listen to what is new, say what has changed."""
        graph = {
            topic: publishers
            for topic, types in self.get_topic_names_and_types()
            if TYPE in types and topic.startswith(self._prefix) and topic.endswith(TOPIC_END)
            for publishers in [self._publishers_of(topic)]
            if publishers  # our own subscription keeps a topic on the graph
        }
        for topic in sorted(graph.keys() - self._listened):
            self._listen(topic)
        if graph != self._graph:
            self._graph = graph
            self._emit({'graph': graph})

    def finished(self) -> bool:
        """Tell whether nobody reads the lines any more."""
        return self._unread

    def close(self, timeout_s: float = 0.0) -> bool:
        """Do nothing: no thread, no file."""
        return True

    def _publishers_of(self, topic: str) -> list[str | None]:
        found = {
            full_name(info.node_namespace, info.node_name)
            for info in self.get_publishers_info_by_topic(topic)
            if info.topic_type == TYPE
        }
        return sorted(found, key=lambda name: name or '')

    def _listen(self, topic: str) -> None:
        def take(message: DiagnosticArray) -> None:
            self._emit(array_line(topic, message))

        self._listened.add(topic)
        self.create_subscription(DiagnosticArray, topic, take, SUMMARY_QOS)

    def _emit(self, line: Line) -> None:
        try:
            self._on_line(line)
        except BrokenPipeError:
            self._unread = True


def full_name(namespace: str, name: str) -> str | None:
    """Return a node's fully qualified name; None while its publisher is known and it is not."""
    return None if name == UNKNOWN_NODE else f'{namespace.rstrip("/")}/{name}'


def array_line(topic: str, message: DiagnosticArray) -> Line:
    """Return an array as it is written."""
    stamp = message.header.stamp
    statuses = [status_content(status) for status in message.status]
    return {'topic': topic, 'stamp_s': stamp.sec + 1e-9 * stamp.nanosec, 'statuses': statuses}


def status_content(status: DiagnosticStatus) -> Line:
    """Return a status for JSON; the level, one byte in ROS, becomes a number."""
    return {
        'name': status.name,
        'level': int.from_bytes(status.level, 'little'),
        'message': status.message,
        'values': {pair.key: pair.value for pair in status.values},
    }


def write_line(line: Line) -> None:
    """Write to stdout at once; raises BrokenPipeError when its reader is gone."""
    try:
        sys.stdout.write(json.dumps(line) + '\n')
        sys.stdout.flush()
    except BrokenPipeError:
        # what is left in the buffer would fail again, loudly, when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m foundationpose_trt.ros.monitor_node`."""
    return run_node(NODE_NAME, MonitorNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
