"""What the nodes on a camera share: checked parameters, a worker on the newest frame, troubles."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String

from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.build_reports import BuildReports
from foundationpose_trt.ros.dds import SilenceCheck
from foundationpose_trt.ros.ledger import FrameLedger
from foundationpose_trt.ros.parameters import (
    declare,
    given_parameters,
    live_parameters,
    unknown_parameters,
)
from foundationpose_trt.ros.qos import LATCHED_QOS
from foundationpose_trt.ros.rejections import RejectedMessage
from foundationpose_trt.ros.throttle import ThrottledCount
from foundationpose_trt.ros.worker import NewestWorker

CHECK_PERIOD_S = 1.0
INPUT_QOS_OVERRIDES = (
    QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)  # fmt: skip


class ImageNode(Node):
    """A node whose callbacks only put the newest frame into a worker's slot.

    kind: its parameter dataclass, with silence_warning_s and build_only. siblings: those of other
    nodes in its process, whose parameters it passes over in silence. A subclass sets `_worker` and
    starts it, and counts what became of each frame with `_settle`.
    """

    _worker: NewestWorker[Any]

    def __init__(
        self, name: str, kind: type, siblings: Sequence[type] = (), **options: Any
    ) -> None:
        super().__init__(name, **options)
        self.parameters: Any = declare(self, kind)
        for line in unknown_parameters(given_parameters(self), kind, siblings):
            self.get_logger().warning(line)
        self._live = live_parameters(kind)
        self._changes: dict[str, Any] = {}  # of live parameters, not yet in force
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._ledger = FrameLedger()
        self.outcomes: Counter[str] = Counter()
        self._trouble = ThrottledCount()
        self._silence = SilenceCheck(self.parameters.silence_warning_s)
        self._topics: dict[str, str] = {}  # their names in code -> after remapping

    @property
    def dropped(self) -> int:
        """How many frames were never handled."""
        return self._ledger.dropped

    def finished(self) -> bool:
        """With build_only at once; raises WorkerFailed when the worker ended with an exception."""
        self._worker.raise_failure()
        return bool(self.parameters.build_only)

    def close(self) -> bool:
        """Stop the worker, say what happened to the frames; False when a frame still runs."""
        if self._worker.stopping:
            return self._worker.stop(timeout_s=0.0)
        ended = self._worker.stop()
        if not ended:
            self.get_logger().warning('ending in the middle of a frame')
        self.get_logger().info(f'frames by outcome: {dict(self.outcomes)}, dropped {self.dropped}')
        return ended

    def _listen(
        self, inputs: Iterable[tuple[type, str, Callable]], check: Callable[[], None]
    ) -> None:
        """Subscribe the inputs: best effort, newest only; call check every CHECK_PERIOD_S."""
        for kind, topic, callback in inputs:
            subscription = self.create_subscription(
                kind, topic, callback, input_qos(),
                qos_overriding_options=QoSOverridingOptions(INPUT_QOS_OVERRIDES),
            )  # fmt: skip
            self._topics[topic] = subscription.topic_name
        # steady: with use_sim_time and no /clock, ROS time stands still and nothing would warn
        self.create_timer(CHECK_PERIOD_S, check, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _build_reports(self) -> BuildReports:
        """Where the progress of engine builds goes: the log and topic `engine_build`."""
        builds = self.create_publisher(String, 'engine_build', LATCHED_QOS)
        return BuildReports(self.get_logger(), lambda line: builds.publish(String(data=line)))

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        given = {p.name: p.value for p in parameters if p.name in self._live}
        self._changes = {**self._changes, **given}  # at once, for the worker's thread
        return SetParametersResult(successful=True)

    def _take_changes(self) -> dict[str, Any]:
        """New values of live parameters, for the worker to put in force between two frames."""
        changes, self._changes = self._changes, {}
        for name, value in changes.items():
            self.get_logger().info(f'{name} is now {value}')
        return changes

    def _heard(self, topic: str) -> None:
        self._silence.heard(topic, time.monotonic())

    def _silent_topics(self) -> dict[str, bool]:
        """Which inputs are announced and silent, by their names in code."""
        now_s = time.monotonic()
        return {
            topic: self._silence.silent(topic, self.count_publishers(name), now_s)
            for topic, name in self._topics.items()
        }

    def _reject(self, error: RejectedMessage) -> None:
        name = error.rejection.value
        if self._trouble.note(name):
            self.get_logger().error(f'{error} ({self._trouble.counts[name]} so far)')
        self._settle(name)

    def _settle(self, outcome: str) -> None:
        """Count and publish how a frame ended."""
        raise NotImplementedError


def input_qos() -> QoSProfile:
    """Return best effort, newest only; one object per topic, as overrides are written into it."""
    return QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def image_stamp_ns(message: Image) -> int:
    """Return an image's stamp in nanoseconds."""
    return conversions.stamp_ns(message.header.stamp)
