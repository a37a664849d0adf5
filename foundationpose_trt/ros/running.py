"""What every executable of this package does around its nodes: start, spin, end, status."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import get_rmw_implementation_identifier

from foundationpose_trt.ros.dds import rclpy_major, use_shared_memory_profile
from foundationpose_trt.ros.managed_node import ManagedNode
from foundationpose_trt.ros.worker import WorkerFailed

SPIN_TIMEOUT_S = 0.1  # how long a signal may wait while no message arrives
CLOSE_S = 0.5  # how long the end of the process waits for frames in work, all nodes together
BAD_ARGUMENTS = (
    rclpy_implementation.RCLInvalidROSArgsError,
    rclpy_implementation.UnknownROSArgsError,
)
FAILED = 1
BAD_INPUT = 2


class RunnableNode(Protocol):
    """What run_node asks of a node beyond rclpy's Node; a ManagedNode is started too."""

    def finished(self) -> bool:
        """Tell whether the work is done; raises what a thread of the node raised."""

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Stop threads, publish nothing afterwards; may be called again.

        Returns False when a thread still runs after timeout_s.
        """

    def get_logger(self) -> Any:
        """Return the node's logger."""

    def destroy_node(self) -> Any:
        """Release the node's topics."""


def _events_executor() -> Any:
    """rclpy's newer executor, from Jazzy on; raises ImportError before."""
    return importlib.import_module('rclpy.experimental.events_executor').EventsExecutor()


def _automatic_executor() -> Any:
    tried = (rclpy_major() or 0) >= FIRST_RCLPY_WITH_TRIED_EVENTS
    if not tried or get_rmw_implementation_identifier() != RMW_WITH_TRIED_EVENTS:
        return SingleThreadedExecutor()
    try:
        return _events_executor()
    except ImportError:
        return SingleThreadedExecutor()


# single: every release has it. events: from Jazzy on, less time per message (README, Latency); its
# spin() hangs in some builds, spin_once with a timeout does not
EXECUTOR_VARIABLE = 'FOUNDATIONPOSE_TRT_EXECUTOR'
EXECUTORS: dict[str, Callable[[], Any]] = {
    'auto': _automatic_executor, 'single': SingleThreadedExecutor, 'events': _events_executor,
}  # fmt: skip
FIRST_RCLPY_WITH_TRIED_EVENTS = 9  # Kilted's, with which all tests of the nodes pass
RMW_WITH_TRIED_EVENTS = 'rmw_fastrtps_cpp'


def chosen_executor() -> Any:
    """Return the executor that FOUNDATIONPOSE_TRT_EXECUTOR names; raises ValueError."""
    name = os.environ.get(EXECUTOR_VARIABLE) or 'auto'
    if name not in EXECUTORS:
        raise ValueError(f"{EXECUTOR_VARIABLE} is '{name}', must be one of {', '.join(EXECUTORS)}")
    try:
        return EXECUTORS[name]()
    except ImportError as error:
        raise ValueError(
            f'{EXECUTOR_VARIABLE} is {name}, which this rclpy lacks ({error}): unset it'
        ) from error


def run_node(
    name: str,
    make_node: Callable[[], RunnableNode],
    arguments: Sequence[str] | None = None,
    make_executor: Callable[[], Any] = chosen_executor,
) -> int:
    """Run one node until it is finished or SIGINT or SIGTERM arrives; as run_nodes."""
    return run_nodes(name, [make_node], arguments, make_executor)


def run_nodes(
    name: str,
    makers: Sequence[Callable[[], RunnableNode]],
    arguments: Sequence[str] | None = None,
    make_executor: Callable[[], Any] = chosen_executor,
) -> int:
    """Run nodes in one process until all are finished or a signal arrives; return the status.

    0: finished or stopped by a signal; 1: a failure while running; 2: bad parameters or files.
    Signals only set a flag, so that nothing publishes into a context that is already gone.
    """
    stop = StopRequest()
    use_shared_memory_profile()
    try:
        rclpy.init(
            args=list(arguments) if arguments is not None else None,
            signal_handler_options=SignalHandlerOptions.NO,
        )
    except rclpy_implementation.RCLError as error:  # a parameter file that is not there, for one
        get_logger(name).fatal(f'cannot start: {error}')
        return BAD_INPUT
    status, all_ended = BAD_INPUT, True
    nodes: list[RunnableNode] = []
    try:
        for make in makers:
            nodes.append(make())
        executor = make_executor()
        _start(nodes, stop)
    except (ValueError, OSError, *BAD_ARGUMENTS) as error:
        get_logger(name).fatal(f'cannot start: {error}')
        all_ended = _close(nodes)
    else:
        status, all_ended = _spin(name, nodes, stop, executor)
    rclpy.try_shutdown()
    if not all_ended:
        # Python would tear down under a thread that is inside torch, which aborts the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _spin(
    name: str, nodes: list[RunnableNode], stop: StopRequest, executor: Any
) -> tuple[int, bool]:
    """Spin to the end; return the exit status and whether all threads ended."""
    for node in nodes:
        executor.add_node(node)
    status = 0
    try:
        while not stop.requested and not _all_finished(nodes):
            executor.spin_once(timeout_sec=SPIN_TIMEOUT_S)
        _close(nodes)
        _all_finished(nodes)  # raises what a thread raised in its last moments
    except ExternalShutdownException:
        pass  # somebody in this process called rclpy.shutdown: an end like any other
    except (WorkerFailed, TimeoutError) as error:
        get_logger(name).fatal(str(error))
        status = FAILED
    except BaseException:
        _close(nodes)
        raise
    all_ended = _close(nodes)
    executor.shutdown(timeout_sec=1.0)
    for node in nodes:
        node.destroy_node()
    return status, all_ended


def _start(nodes: list[RunnableNode], stop: StopRequest) -> None:
    for node in nodes:
        if isinstance(node, ManagedNode):
            node.stop_request = stop
            node.start()


def _close(nodes: list[RunnableNode]) -> bool:
    """Ask all threads to end, then wait for them together; False when one still runs."""
    for node in nodes:
        node.close(0.0)
    end_s = time.monotonic() + CLOSE_S
    return all([node.close(max(0.0, end_s - time.monotonic())) for node in nodes])


def _all_finished(nodes: list[RunnableNode]) -> bool:
    return all([node.finished() for node in nodes])  # a list: each may raise what a thread raised


class StopRequest:
    """Set by SIGINT and SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def end_at_once(self) -> None:
        """End the process in the middle of what it does; nothing is left half written."""
        sys.stderr.write('stopped while starting\n')
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)
