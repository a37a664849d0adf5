"""What the nodes say about themselves: monitor_node's lines as reports, and the newest of each.

No clock is read here; times are seconds of any clock that does not go back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LEVELS = {0: 'OK', 1: 'WARN', 2: 'ERROR', 3: 'STALE'}
BROKEN_LEVELS = ('WARN', 'ERROR')  # of a stage: its budget is not held
SILENT_S = 3.0  # every node reports each second
SETTLE_S = 2.0  # without a change of the graph, so long, every node has been found
LATENCY, OBJECT, DROPPED, OUTCOME = 'latency ', 'object ', 'dropped_', 'outcome_'


@dataclass(frozen=True)
class Stage:
    """The latencies of one stage over the node's window, and how they stand to its budget."""

    name: str
    level: str
    message: str
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    count: int | None
    budget_ms: float | None

    @property
    def broken(self) -> bool:
        """Tell whether the budget was not held."""
        return self.level in BROKEN_LEVELS


@dataclass(frozen=True)
class Flow:
    """What became of the frames, by reason and by outcome."""

    level: str
    message: str
    rate_hz: float | None
    handled: int | None
    dropped: Mapping[str, int | None]
    outcomes: Mapping[str, int | None]


@dataclass(frozen=True)
class Runtime:
    """The back end, its CUDA graphs and its memory; None where the node does not say."""

    level: str
    message: str
    backend: str | None
    graph_hits: int | None
    graph_misses: int | None
    graph_size: int | None
    graph_capacity: int | None
    gpu_memory_mb: float | None


@dataclass(frozen=True)
class ObjectState:
    """How it stands with one tracked object."""

    name: str
    level: str
    message: str
    state: str | None
    reason: str | None


@dataclass(frozen=True)
class OtherStatus:
    """A status of a kind that is not known here, as it came."""

    name: str
    level: str
    message: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class NodeReport:
    """All that a node said in one array; stamp_s is its own ROS clock."""

    node: str
    topic: str
    stamp_s: float
    stages: tuple[Stage, ...] = ()
    flow: Flow | None = None
    runtime: Runtime | None = None
    objects: tuple[ObjectState, ...] = ()
    others: tuple[OtherStatus, ...] = ()


def number(text: str | None) -> float | None:
    """Return a finite number; None for anything else, NaN and infinity included."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def whole(text: str | None) -> int | None:
    """Return a count; None for anything that is not a finite number."""
    value = number(text)
    return None if value is None else int(value)


def level_name(level: int) -> str:
    """Return the name of diagnostic_msgs' level."""
    return LEVELS.get(level, f'LEVEL {level}')


def node_reports(line: Mapping[str, Any], fallback: str) -> list[NodeReport]:
    """Return the reports of one array, one per node that it speaks of.

    fallback: who is meant where a status does not begin with '/the/node: '.
    """
    by_node: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for status in line['statuses']:
        node, separator, task = status['name'].partition(': ')
        if not (separator and node.startswith('/')):
            node, task = fallback, status['name']
        by_node.setdefault(node, []).append((task, status))
    return [
        _report(node, line, tasks) for node, tasks in (by_node or {fallback: []}).items()
    ]  # fmt: skip


def _report(
    node: str, line: Mapping[str, Any], tasks: list[tuple[str, Mapping[str, Any]]]
) -> NodeReport:
    parts = [_part(task, status) for task, status in tasks]
    return NodeReport(
        node,
        line['topic'],
        line['stamp_s'],
        stages=tuple(part for part in parts if isinstance(part, Stage)),
        flow=next((part for part in parts if isinstance(part, Flow)), None),
        runtime=next((part for part in parts if isinstance(part, Runtime)), None),
        objects=tuple(part for part in parts if isinstance(part, ObjectState)),
        others=tuple(part for part in parts if isinstance(part, OtherStatus)),
    )


def _part(
    task: str, status: Mapping[str, Any]
) -> Stage | Flow | Runtime | ObjectState | OtherStatus:
    level, message, values = level_name(status['level']), status['message'], status['values']
    if task.startswith(LATENCY):
        return _stage(task.removeprefix(LATENCY), level, message, values)
    if task.startswith(OBJECT):
        state, reason = values.get('state'), values.get('reason')
        return ObjectState(task.removeprefix(OBJECT), level, message, state, reason)
    if task == 'flow':
        return _flow(level, message, values)
    if task == 'runtime':
        return _runtime(level, message, values)
    return OtherStatus(task, level, message, values)


def _stage(name: str, level: str, message: str, values: Mapping[str, str]) -> Stage:
    return Stage(
        name,
        level,
        message,
        p50_ms=number(values.get('p50_ms')),
        p95_ms=number(values.get('p95_ms')),
        p99_ms=number(values.get('p99_ms')),
        max_ms=number(values.get('max_ms')),
        count=whole(values.get('count')),
        budget_ms=number(values.get('budget_ms')),
    )


def _flow(level: str, message: str, values: Mapping[str, str]) -> Flow:
    def totals(prefix: str) -> dict[str, int | None]:
        found = {k: whole(v) for k, v in values.items() if k.startswith(prefix)}
        return {key.removeprefix(prefix): value for key, value in found.items()}

    rate_hz, handled = number(values.get('rate_hz')), whole(values.get('handled'))
    return Flow(level, message, rate_hz, handled, totals(DROPPED), totals(OUTCOME))


def _runtime(level: str, message: str, values: Mapping[str, str]) -> Runtime:
    return Runtime(
        level,
        message,
        backend=values.get('backend'),
        graph_hits=whole(values.get('graph_hits')),
        graph_misses=whole(values.get('graph_misses')),
        graph_size=whole(values.get('graph_size')),
        graph_capacity=whole(values.get('graph_capacity')),
        gpu_memory_mb=number(values.get('gpu_memory_mb')),
    )


@dataclass(frozen=True)
class NodeView:
    """A node at one moment: its newest report (None: none yet) and how long it has been silent."""

    name: str
    report: NodeReport | None
    silent_s: float
    on_graph: bool

    @property
    def silent(self) -> bool:
        """Tell whether what it said last says little about now."""
        return self.silent_s > SILENT_S


@dataclass(frozen=True)
class Breach:
    """A budget that was not held: the worst report of the stage, and in how many it was so."""

    node: str
    worst: Stage
    times: int


@dataclass
class Board:
    """Takes the lines of monitor_node, keeps the newest report of each node and every breach."""

    breaches: dict[tuple[str, str], Breach] = field(default_factory=dict)
    _graph: dict[str, list[str | None]] = field(default_factory=dict)
    _changed_s: float = 0.0
    _announced_s: dict[str, float] = field(default_factory=dict)
    _heard_s: dict[str, float] = field(default_factory=dict)
    _reports: dict[str, NodeReport] = field(default_factory=dict)

    def take(self, line: Mapping[str, Any], now_s: float) -> list[NodeReport]:
        """Take one line that came now; return the reports in it."""
        if 'graph' in line:
            self._take_graph(line['graph'], now_s)
            return []
        topic = line['topic']
        publishers = self._graph.get(topic, [])
        # an array does not tell who sent it; where only one can have, it is heard
        sender = publishers[0] if len(publishers) == 1 else None
        if sender is not None:
            self._heard_s[sender] = now_s
        reports = node_reports(line, sender or topic)
        for report in reports:
            self._heard_s[report.node] = now_s
            self._reports[report.node] = report
            self._note_breaches(report)
        return reports

    def views(self, now_s: float) -> list[NodeView]:
        """Return every node that spoke or is announced, by name."""
        waiting = self._announced_s.keys() - self._heard_s.keys()
        since_s = {**self._announced_s, **self._heard_s}
        return [
            NodeView(
                name, self._reports.get(name), now_s - since_s[name], name in self._announced_s
            )
            for name in sorted(self._reports.keys() | waiting)
        ]

    def unheard(self, now_s: float, for_s: float = 0.0) -> list[str]:
        """Return the nodes that have been announced for so long and never said anything."""
        return sorted(
            name
            for name, since_s in self._announced_s.items()
            if name not in self._heard_s and now_s - since_s >= for_s
        )

    def heard_any(self) -> bool:
        """Tell whether any node said anything."""
        return bool(self._reports)

    def settled(self, now_s: float) -> bool:
        """Tell whether every announced node was heard and nothing new has come up for a while."""
        nameless = any(None in publishers for publishers in self._graph.values())
        return (
            self.heard_any()
            and not nameless
            and not self.unheard(now_s)
            and now_s - self._changed_s >= SETTLE_S
        )

    def _take_graph(self, graph: dict[str, list[str | None]], now_s: float) -> None:
        names = {name for publishers in graph.values() for name in publishers if name is not None}
        self._graph, self._changed_s = graph, now_s
        self._announced_s = {name: self._announced_s.get(name, now_s) for name in names}

    def _note_breaches(self, report: NodeReport) -> None:
        for stage in report.stages:
            if stage.broken:
                key = (report.node, stage.name)
                before = self.breaches.get(key)
                worst = max(before.worst, stage, key=_badness) if before else stage
                times = before.times + 1 if before else 1
                self.breaches[key] = Breach(report.node, worst, times)


def _badness(stage: Stage) -> tuple[int, float]:
    return BROKEN_LEVELS.index(stage.level), stage.p95_ms or 0.0
