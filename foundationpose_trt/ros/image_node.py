"""What the nodes on a camera share: a worker on the newest frame, latencies, troubles, counts."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String

from foundationpose_trt.datatypes import require
from foundationpose_trt.latency import Level
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.build_reports import BuildReports
from foundationpose_trt.ros.dds import SilenceCheck
from foundationpose_trt.ros.health import HealthReports
from foundationpose_trt.ros.latencies import LatencyTopics, status
from foundationpose_trt.ros.ledger import FrameLedger
from foundationpose_trt.ros.managed_node import ManagedNode
from foundationpose_trt.ros.matcher import dropped_halves
from foundationpose_trt.ros.parameters import current
from foundationpose_trt.ros.qos import LATCHED_QOS
from foundationpose_trt.ros.rejections import RejectedMessage, Rejection
from foundationpose_trt.ros.serialized_image import decoding
from foundationpose_trt.ros.throttle import EventRate, ThrottledCount
from foundationpose_trt.ros.worker import NewestWorker
from foundationpose_trt.runtime.graph_cache import flush_allocator

CHECK_PERIOD_S = 1.0
END_S = 60.0  # how long deactivate waits for it: a registration on a CPU takes seconds
BUDGET = 'budget_'  # parameters budget_<stage>_ms
INPUT_QOS_OVERRIDES = (
    QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)  # fmt: skip


class ImageNode(ManagedNode):
    """A node whose callbacks only put the newest frame into a worker's slot.

    kind: its parameter dataclass, with the parameters of camera_parameters.py. A subclass
    declares `latency_names`, makes what it needs in `_make` and drops it in `_drop`, says what it
    listens to in `_inputs` and `_check_inputs`, handles a frame in `_process`.
    """

    refusals = (*ManagedNode.refusals, torch.cuda.OutOfMemoryError)
    latency_names: tuple[str, ...] = ()
    prefix = ''  # of the latencies of this node

    def __init__(
        self, name: str, kind: type, siblings: Sequence[type] = (), **options: Any
    ) -> None:
        super().__init__(name, kind, siblings, **options)
        self._topics: dict[str, str] = {}  # their names in code -> after remapping
        self._worker: NewestWorker[Any] | None = None
        self._given_up: NewestWorker[Any] | None = None  # waited for in vain
        self._health: HealthReports | None = None
        self._latencies: LatencyTopics | None = None
        self._listening: list[Any] = []
        self._check_timer: Any = None
        self._clock_ns = -1  # ROS time at the last check
        self._builds: Any = None
        self._begin_counts(history=1)

    @property
    def dropped(self) -> int:
        """How many frames were never handled because others were newer."""
        return self.ledger.dropped

    def start(self) -> bool:
        """As ManagedNode's; raises ValueError with build_only, where nobody could mend it."""
        started = super().start()
        if not started and current(self, 'build_only'):
            raise ValueError(self.refusal)
        return started

    def finished(self) -> bool:
        """With build_only as soon as it is configured.

        Raises WorkerFailed when a thread ended with an exception, and what a transition raised.
        """
        self.raise_bug()
        for part in (self._worker, self._health):
            if part is not None:
                part.raise_failure()
        return bool(self.configured and self.parameters.build_only)

    def close(self, timeout_s: float = 0.0) -> bool:
        """Stop the threads, say once what happened to the frames; False when one still runs."""
        if self._worker is None:
            return True
        if not self._worker.stopping:
            counts = f'{dict(self.outcomes)}, dropped {self.drops()}'
            self.get_logger().info(f'frames by outcome: {counts}')
        health, self._health = self._health, None
        if health is not None:
            health.stop()
        ended = self._worker.stop(timeout_s)
        if not ended and timeout_s > 0:
            self.get_logger().warning('ending in the middle of a frame')
        return ended

    def drops(self) -> dict[str, int]:
        """How many frames, or halves without a partner, were not handled, by reason."""
        invalid = sum(self.outcomes[rejection.value] for rejection in Rejection)
        counts = {'busy': self.ledger.dropped, **self._drops, 'invalid': invalid}
        for reason, count in dropped_halves(self._halves).items():
            counts[reason] += count
        return counts

    # Transitions.

    def _build(self) -> None:
        p = self.parameters
        require(
            self._worker is None or self._worker.stop(timeout_s=0.0),
            'a frame of before deactivate is still in work: try again when it ended',
        )
        self._worker = None
        self._begin_counts(history=getattr(p, 'mask_history_frames', 1))
        self._silence = SilenceCheck(p.silence_warning_s)
        self._latencies = LatencyTopics(self, self.latency_names, p.latency_window_s)
        self._make()
        self._health = HealthReports(self, self._statuses)
        # A full collection stops all threads while it looks at every object of modules and
        # networks, which stay anyway.
        gc.freeze()

    def _begin(self) -> None:
        self._worker = NewestWorker(self._process, self._prefer, self._idle)
        self._worker.start()
        if self.parameters.build_only:
            return
        for kind, topic, callback in self._inputs():
            raw = kind is Image
            subscription = self.create_subscription(
                kind, topic, decoding(callback, self.reject) if raw else callback, input_qos(),
                raw=raw,
                qos_overriding_options=QoSOverridingOptions(INPUT_QOS_OVERRIDES),
            )  # fmt: skip
            self._listening.append(subscription)
            self._topics[topic] = subscription.topic_name
        # steady: with use_sim_time and no /clock, ROS time stands still and nothing would warn
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._check_timer = self.create_timer(CHECK_PERIOD_S, self._check_inputs, clock=steady)

    def _end(self) -> bool:
        if self._check_timer is not None:
            self.destroy_timer(self._check_timer)
            self._check_timer = None
        listening, self._listening = self._listening, []
        for subscription in listening:
            self.destroy_subscription(subscription)
        return self._worker is None or self._waited(self._worker)

    def _waited(self, worker: NewestWorker[Any]) -> bool:
        """Wait for the frame in work, as long as the process is to go on; False: it still runs."""
        end_s = time.monotonic() + (0.0 if worker is self._given_up else END_S)
        while not worker.stop(timeout_s=0.1):
            stopped = self.stop_request is not None and self.stop_request.requested
            if stopped or time.monotonic() > end_s:
                self._given_up = worker
                return False
        return True

    def _release(self) -> None:
        health, self._health = self._health, None
        if health is not None:
            health.stop()
        if self._worker is not None and self._worker.stop(timeout_s=0.0):
            self._worker = None  # else it still has what it works with
        self._drop()
        latencies, self._latencies = self._latencies, None
        if latencies is not None:
            latencies.destroy()
        builds, self._builds = self._builds, None
        if builds is not None:
            self.destroy_publisher(builds)
        gc.unfreeze()  # those of other nodes in the process as well, which costs time only
        gc.collect()
        flush_allocator()  # the GPU is others' until the next configure

    # What a subclass does.

    def _make(self) -> None:
        """Make what the parameters ask for and warm it up; raises ValueError or OSError."""
        raise NotImplementedError

    def _drop(self) -> None:
        """Drop what _make made."""
        raise NotImplementedError

    def _inputs(self) -> Iterable[tuple[type, str, Callable]]:
        """Type, topic and callback of every input."""
        raise NotImplementedError

    def _check_inputs(self) -> None:
        """Once a second in the executor's thread: warn of inputs that do not come."""
        raise NotImplementedError

    def _process(self, job: Any) -> None:
        """Handle one item, in the worker's thread."""
        raise NotImplementedError

    def _prefer(self, new: Any, pending: Any) -> bool:
        """Whether a new item replaces the one that waits."""
        return True

    def _idle(self) -> Any:
        """What the worker handles once a second while no images come; None: nothing."""
        return None

    def _backend(self) -> dict[str, Any]:
        """What the runtime says of itself, for the summary."""
        return {}

    def _object_statuses(self) -> list[DiagnosticStatus]:
        """How the objects do, for the summary."""
        return []

    # What a subclass uses.

    @property
    def paused(self) -> bool:
        """Whether frames that come are left alone on request."""
        return False

    @property
    def stopping(self) -> bool:
        """Whether what is in work must not be published any more."""
        return self._worker is None or self._worker.stopping

    def _begin_counts(self, history: int) -> None:
        self.ledger = FrameLedger(history)
        self.outcomes: Counter[str] = Counter()
        self._drops: Counter[str] = Counter({'unmatched': 0, 'stale': 0})
        self._halves: Counter[str] = Counter()  # of all matchers since configure
        self.trouble = ThrottledCount()
        self._handled = EventRate()

    def note(self, name: str, value: float) -> None:
        """Take a latency in milliseconds, or the value of a counter, of `latency_names`."""
        if self._latencies is not None:
            self._latencies.note(name, value)

    def note_handled(self) -> None:
        """A frame is being handled: the time since the one before is the cycle."""
        cycle_s = self._handled.note(time.monotonic())
        if cycle_s is not None:
            self.note(f'{self.prefix}cycle_ms', cycle_s * 1e3)

    def _build_reports(self) -> BuildReports:
        """Where the progress of engine builds goes: the log and topic `engine_build`."""
        builds = self.create_publisher(String, 'engine_build', LATCHED_QOS)
        self._builds = builds
        return BuildReports(self.get_logger(), lambda line: builds.publish(String(data=line)))

    def _heard(self, topic: str) -> None:
        self._silence.heard(topic, time.monotonic())

    def _silent_topics(self) -> dict[str, bool]:
        """Which inputs are announced and silent, by their names in code."""
        now_s = time.monotonic()
        return {
            topic: self._silence.silent(topic, self.count_publishers(name), now_s)
            for topic, name in self._topics.items()
        }

    def _warn_of_standing_clock(self) -> None:
        """Warn of ROS time that stands still, which only simulated time does."""
        now_ns = self.get_clock().now().nanoseconds
        stands, self._clock_ns = now_ns == self._clock_ns, now_ns
        if stands and self.trouble.note('CLOCK_STANDS'):
            self.get_logger().warning(
                'use_sim_time is true and /clock stands still: does the simulator run, or the bag'
                ' (ros2 bag play --clock)? Times are told by it, so a registration seems to take'
                ' none and what follows it is given up'
            )

    def _warn_of_gone(self, topics: Sequence[str]) -> None:
        """Warn of inputs that nobody publishes, or does any more."""
        now_s = time.monotonic()
        for topic in topics:
            name = self._topics[topic]
            gone = self._silence.gone(topic, self.count_publishers(name), now_s)
            if gone and self.trouble.note(f'GONE_{topic}'):
                self.get_logger().warning(
                    f'nobody publishes {name}: does its driver run, and is the topic remapped?'
                )

    def _is_stale(self, stamp_ns: int) -> bool:
        """Whether an image is older than max_frame_age_ms by ROS time; it is counted then."""
        limit_ms = self.parameters.max_frame_age_ms
        if limit_ms <= 0:
            return False
        age_ms = (self.get_clock().now().nanoseconds - stamp_ns) / 1e6
        if age_ms <= limit_ms:
            return False
        self._drops['stale'] += 1
        if self.trouble.note('STALE'):
            self.get_logger().warning(
                f'images are {age_ms:.0f} ms old, max_frame_age_ms allows {limit_ms:g}: they are'
                ' dropped; do camera and this machine share a clock, and is use_sim_time right?'
            )
        return True

    def reject(self, error: RejectedMessage) -> None:
        """Log, now and then, count and publish a message that cannot be used."""
        name = error.rejection.value
        if self.trouble.note(name):
            self.get_logger().error(f'{error} ({self.trouble.counts[name]} so far)')
        self._settle(name)

    def _settle(self, outcome: str) -> None:
        """Count and publish how a frame ended."""
        raise NotImplementedError

    def _statuses(self) -> list[DiagnosticStatus]:
        """Everything for `latency/summary`; in the reporting thread."""
        latencies = self._latencies
        found = latencies.statuses(self._budgets_ms()) if latencies is not None else []
        return [*found, self._flow(), status(self, 'runtime', self._backend()),
                *self._object_statuses()]  # fmt: skip

    def _budgets_ms(self) -> Mapping[str, float]:
        values = vars(self.parameters)
        return {
            name[len(BUDGET) :]: value for name, value in values.items() if name.startswith(BUDGET)
        }

    def _flow(self) -> DiagnosticStatus:
        rate_hz = self._handled.rate_hz(time.monotonic())
        values: dict[str, Any] = {'rate_hz': f'{rate_hz:.2f}', 'handled': self._handled.total}
        values |= {f'dropped_{reason}': count for reason, count in self.drops().items()}
        values |= {f'outcome_{name}': count for name, count in dict(self.outcomes).items()}
        quiet = self.active and not self.paused and self._handled.total > 0 and rate_hz == 0
        level = Level.WARN if quiet else Level.OK
        message = 'no image for a while' if quiet else f'{rate_hz:.1f} images per second'
        if self.paused:
            message = 'paused'
        return status(self, 'flow', values, level, message)


def input_qos() -> QoSProfile:
    """Return best effort, newest only; one object per topic, as overrides are written into it."""
    return QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def image_stamp_ns(message: Image) -> int:
    """Return an image's stamp in nanoseconds."""
    return conversions.stamp_ns(message.header.stamp)
