"""`foundationpose-trt monitor`: the latencies of every node on the ROS graph, live or once."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..datatypes import require
from .monitor_model import SILENT_S, Board, NodeReport
from .monitor_process import Listener, require_ros, running_listener
from .monitor_record import Records

HELP = 'watch the latencies, budgets, drops and objects of all nodes on the ROS graph'
BUDGET_BROKEN, NOTHING_FOUND = 1, 2
REFRESH_S = 0.25
START_TIMEOUT_S = 60.0  # importing rclpy on a busy small machine
NAMESPACE = re.compile(r'(/[A-Za-z_][A-Za-z0-9_]*)*')
TOPICS = 'topics ending in /latency/summary of type diagnostic_msgs/msg/DiagnosticArray'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        'Exit status: 0: all budgets were held; 1: one was broken at any time (a stage at WARN or'
        ' ERROR); 2: nothing found, or bad input.'
    )
    parser.add_argument(
        '--namespace', default='', metavar='NS', help='only nodes in this namespace and below it'
    )
    parser.add_argument(
        '--seconds', type=float, metavar='S', help='end after so long; default: at Ctrl-C'
    )
    parser.add_argument(
        '--record', type=Path, metavar='F.csv',
        help="append a row per stage and second; time_s is the node's ROS clock",
    )  # fmt: skip
    parser.add_argument(
        '--plot', type=Path, metavar='F.png', help='draw p50 and p95 of each stage at the end'
    )
    parser.add_argument(
        '--once', action='store_true',
        help='wait until every announced node has been heard, print that, end',
    )  # fmt: skip
    parser.add_argument(
        '--wait', type=float, default=5.0, metavar='S', help='at most so long (--once; default 5)'
    )
    parser.add_argument(
        '--json', action='store_true', help='with --once: one JSON document, no table'
    )


def run(options: argparse.Namespace) -> int:
    """Watch until the end that was asked for; return the exit status."""
    namespace = checked_namespace(options)
    require_ros()
    if not options.json:
        from . import monitor_table  # noqa: F401  where rich is missing, that is said at once
    watch = Watch(options, Records(options.record, options.plot))
    try:
        with stopping_on_signals() as stop, running_listener(namespace) as listener:
            watch.follow(listener, stop)
    finally:  # what was seen before a failure is kept
        watch.close()
    return status(watch.board, watch.now_s, options, namespace)


def checked_namespace(options: argparse.Namespace) -> str:
    """Check the options; return the namespace as ROS writes it, '' for all."""
    for name in ('seconds', 'wait'):
        value = getattr(options, name)
        require(
            value is None or (value > 0 and math.isfinite(value)),
            f'--{name} is {value}, must be a positive number of seconds',
        )
    require(
        options.once or not options.json,
        '--json prints one document and needs --once; --record F.csv follows a run',
    )
    require(
        not (options.once and options.seconds),
        f'--seconds {options.seconds} does not go with --once, which ends by itself: use --wait',
    )
    namespace = f'/{options.namespace.strip("/")}'.rstrip('/')
    require(
        NAMESPACE.fullmatch(namespace) is not None,
        f"--namespace is '{options.namespace}', must be names of letters, digits and _ with /"
        " between them, such as '/left/camera'",
    )
    return namespace


class Stop:
    """Whether SIGINT or SIGTERM came."""

    requested = False


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request, so that files and table are completed."""
    stop = Stop()
    before: dict[signal.Signals, Any] = {}

    def request(number: int, frame: object) -> None:
        stop.requested = True
        signal.signal(number, before[signal.Signals(number)])  # a second one ends at once

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """One run: the board is fed four times a second, and shown if it is a live one."""

    def __init__(self, options: argparse.Namespace, records: Records) -> None:
        self.board = Board()
        self.began_s: float | None = None  # when monitor_node first told of the graph
        self.now_s = time.monotonic()
        self._options = options
        self._records = records

    def follow(self, listener: Listener, stop: Stop) -> None:
        """Feed the board to the end; shows it live, or at last."""
        if self._options.once:
            for elapsed_s in self._ticks(listener, stop):
                if self.board.settled(self.now_s) or elapsed_s >= self._options.wait:
                    break
        elif sys.stdout.isatty():
            self._follow_live(listener, stop)
            return
        else:  # a pipe or a file gets the last picture only
            for _ in self._until_seconds(listener, stop):
                pass
        self._print()

    def _follow_live(self, listener: Listener, stop: Stop) -> None:
        from rich.live import Live

        with Live(self._picture('Ctrl-C ends'), auto_refresh=False) as live:
            for _ in self._until_seconds(listener, stop):
                live.update(self._picture('Ctrl-C ends'), refresh=True)
            live.update(self._picture())

    def _until_seconds(self, listener: Listener, stop: Stop) -> Iterator[None]:
        for elapsed_s in self._ticks(listener, stop):
            yield
            if elapsed_s >= (self._options.seconds or math.inf):
                return

    def close(self) -> None:
        """Close the record, draw the plot, name every budget that was not held."""
        began_s = self.now_s if self.began_s is None else self.began_s
        written = self._records.close(began_s)
        if self._options.plot and not written:
            print(f'{self._options.plot} is not written: no stage was reported', file=sys.stderr)
        if self._options.json:
            return
        from . import monitor_table

        monitor_table.print_all(map(monitor_table.breach_line, self.board.breaches.values()))
        monitor_table.print_all(monitor_table.styled(f'written: {path}') for path in written)

    def _ticks(self, listener: Listener, stop: Stop) -> Iterator[float]:
        """Yield the seconds since the node first looked at the graph, once per refresh."""
        started_s = time.monotonic()
        while not stop.requested:
            time.sleep(REFRESH_S)
            for arrived_s, line in listener.new_lines():
                self.began_s = arrived_s if self.began_s is None else self.began_s
                self._records.add(self.board.take(line, arrived_s), arrived_s)
            self.now_s = time.monotonic()
            if self.began_s is None and self.now_s - started_s > START_TIMEOUT_S:
                raise TimeoutError(
                    f'monitor_node said nothing for {START_TIMEOUT_S:.0f} s: is the machine'
                    ' overloaded? python3 -c "import rclpy" must end in seconds'
                )
            yield self._elapsed_s()

    def _elapsed_s(self) -> float:
        return 0.0 if self.began_s is None else self.now_s - self.began_s

    def _print(self) -> None:
        if not self.board.views(self.now_s):
            return
        if self._options.json:
            print(json.dumps(document(self.board, self.now_s), indent=1, allow_nan=False))
            return
        from . import monitor_table

        monitor_table.print_all([self._picture()])

    def _picture(self, hint: str = '') -> Any:
        from . import monitor_table

        views = self.board.views(self.now_s)
        found = f'nodes: {len(views)}' if views else f'looking for {TOPICS}'
        # first, for a terminal too small for all nodes
        broken = f'budgets broken: {len(self.board.breaches)}' if self.board.breaches else ''
        words = [found, broken, f'{self._elapsed_s():.0f} s', domain(), hint]
        return monitor_table.board(views, '; '.join(filter(None, words)))


def document(board: Board, now_s: float) -> dict[str, Any]:
    """Return what is known as plain JSON: every node by name, what is missing as null."""
    views = board.views(now_s)
    return {
        'budgets_held': not board.breaches,
        'breaches': [dataclasses.asdict(breach) for breach in board.breaches.values()],
        'unheard': board.unheard(now_s),
        'nodes': {
            view.name: {
                'silent': view.silent,
                'on_graph': view.on_graph,
                **report_content(view.report),
            }
            for view in views
            if view.report is not None
        },
    }


def report_content(report: NodeReport) -> dict[str, Any]:
    """Return a report as plain JSON: its stages and objects by name."""
    content = dataclasses.asdict(report)
    for kind in ('stages', 'objects'):
        content[kind] = {item.pop('name'): item for item in content[kind]}
    del content['node']
    return content


def status(board: Board, now_s: float, options: argparse.Namespace, namespace: str) -> int:
    """Return the exit status; say on stderr what was not found or not heard."""
    if not board.heard_any() and not board.unheard(now_s):
        print(f'foundationpose-trt: error: {nothing_found(options, namespace)}', file=sys.stderr)
        return NOTHING_FOUND
    # while live, a node that has just come up may not have had its second yet
    live = not options.once and board.heard_any()
    unheard = board.unheard(now_s, for_s=SILENT_S if live else 0.0)
    if unheard:
        print(f'foundationpose-trt: error: {never_heard(unheard)}', file=sys.stderr)
    if board.breaches:
        return BUDGET_BROKEN
    return NOTHING_FOUND if unheard or not board.heard_any() else 0


def nothing_found(options: argparse.Namespace, namespace: str) -> str:
    """Say what was looked for, where, and what to do."""
    where = f'namespace {namespace}' if namespace else 'any namespace'
    longer = ', --wait longer' if options.once else ''
    return (
        f'no node found: looked for {TOPICS} in {where}, {domain()}. Start tracker_node or'
        f' detector_node, set ROS_DOMAIN_ID as theirs is{longer}; ros2 topic list shows what is'
        ' there'
    )


def never_heard(names: list[str]) -> str:
    """Name nodes that are announced and did not report, and what to do."""
    return (
        f'announced and never heard: {", ".join(names)} ({domain()}). Each node reports every'
        ' second: wait longer, see whether it hangs (its log), and whether its messages come'
        ' through: ros2 topic echo .../latency/summary. One that was killed stays announced for'
        ' some 20 s'
    )


def domain() -> str:
    """Name the ROS domain, and what else limits who is found."""
    found = f'ROS_DOMAIN_ID {os.environ.get("ROS_DOMAIN_ID") or "0"}'
    for name in ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_LOCALHOST_ONLY', 'RMW_IMPLEMENTATION'):
        if os.environ.get(name):
            found += f', {name} {os.environ[name]}'
    return found
