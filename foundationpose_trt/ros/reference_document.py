"""docs/reference.md, written from the nodes themselves and reference_descriptions.py."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields

from foundationpose_trt.ros.image_node import BUDGET, END_S, INPUT_QOS_OVERRIDES
from foundationpose_trt.ros.parameters import ISAAC_NAMES
from foundationpose_trt.ros.reference_config import WIDTH, config_path
from foundationpose_trt.ros.reference_descriptions import (
    DESCRIPTIONS,
    OPTIONAL,
    OUTCOME_WORDS,
    OUTCOMES,
)
from foundationpose_trt.ros.reference_interfaces import (
    PUBLISHES,
    SERVES,
    SUBSCRIBES,
    Endpoint,
    detector_endpoints,
    player_endpoints,
    tracker_endpoints,
)
from foundationpose_trt.ros.reference_parameters import (
    DETECTOR,
    KINDS,
    MANAGED,
    PLAYER,
    TRACKER,
    ParameterRow,
    object_rows,
    parameter_groups,
)
from foundationpose_trt.ros.reference_prose import (
    AFTER_SUMMARY,
    HEAD,
    INTRODUCTIONS,
    LATENCIES,
    LIFECYCLE,
    QOS_OVERRIDES,
    SEVERAL_OBJECTS,
    SUMMARY,
    SUMMARY_ROWS,
    TITLE,
)
from foundationpose_trt.ros.running import CLOSE_S

DOCUMENT = 'docs/reference.md'
LATENCY = 'latency/'
SUMMARY_TOPIC = 'latency/summary'
ENDPOINTS: dict[str, Callable[[], list[Endpoint]]] = {
    TRACKER: tracker_endpoints,
    DETECTOR: detector_endpoints,
    PLAYER: player_endpoints,
}
EXAMPLE_NAME = 'mug'

Lines = Iterator[str]


def document() -> str:
    """Return the whole document.

    Raises ValueError naming what has no description, and descriptions of what is not there.
    """
    lines = [f'# {TITLE}', '', *filled(HEAD)]
    for node in ENDPOINTS:
        lines += _node(node)
    lines += ['## Summary', '', *filled(SUMMARY)]
    lines += [*table(('task', 'values', 'level'), SUMMARY_ROWS), AFTER_SUMMARY]
    return '\n'.join(lines) + '\n'


def complete(found: Sequence[Endpoint], optional: Sequence[Endpoint]) -> list[Endpoint]:
    """Return all endpoints of a node, with those that need packages which may not be here.

    Raises ValueError for one that is here, but not as it was declared.
    """
    declared = {(one.role, one.name): one for one in optional}
    for one in found:
        wanted = declared.get((one.role, one.name), one)
        if wanted != one:
            raise ValueError(f'{wanted} stands in OPTIONAL, the node has {one}')
    return sorted({*found, *optional})


def check_descriptions(
    endpoints: Iterable[Endpoint], descriptions: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise ValueError unless each endpoint has its description and there are no others."""
    there = {(one.role, one.name) for one in endpoints}
    told = {(role, name) for role, names in descriptions.items() for name in names}
    faults = [f'{role} {name}: no description' for role, name in sorted(there - told)]
    faults += [f'{role} {name}: described, not there' for role, name in sorted(told - there)]
    if faults:
        raise ValueError('reference_descriptions.py: ' + '; '.join(faults))


def per_object() -> list[str]:
    """Return the topics of tracker_node that each of several objects has under its name.

    Raises ValueError when several objects change more than that.
    """
    single = {one.name: one for one in tracker_endpoints()}
    several = {one.name: one for one in tracker_endpoints([EXAMPLE_NAME])}
    names = sorted(single.keys() - several.keys())
    if several.keys() - single.keys() != {f'{EXAMPLE_NAME}/{name}' for name in names}:
        raise ValueError(f'topics of several objects are {sorted(several)}: describe them')
    return names


def _node(node: str) -> Lines:
    endpoints = complete(ENDPOINTS[node](), OPTIONAL[node])
    check_descriptions(endpoints, DESCRIPTIONS[node])
    yield from (f'## {node}', '', *filled(INTRODUCTIONS[node]))
    yield from _topics(node, SUBSCRIBES, endpoints)
    if node in MANAGED:
        policies = ','.join(sorted(kind.name.lower() for kind in INPUT_QOS_OVERRIDES))
        yield from filled(QOS_OVERRIDES.format(policies=policies))
    yield from _topics(node, PUBLISHES, endpoints)
    if node == TRACKER:
        topics = ', '.join(f'`NAME/{name}`' for name in per_object())
        yield from filled(SEVERAL_OBJECTS.format(topics=topics))
    yield from _services(node, endpoints)
    yield from _parameters(node)
    lifecycle = LIFECYCLE[node].format(end_s=END_S, close_s=CLOSE_S)
    yield from (f'### Life of {node}', '', *filled(lifecycle))
    if node in MANAGED:
        yield from _latencies(node, endpoints)
        yield from _outcomes(node)
    yield from _isaac_names(node)


def _topics(node: str, role: str, endpoints: Sequence[Endpoint]) -> Lines:
    """Yield a table of topics in the order of their descriptions, latencies left out."""
    by_name = {one.name: one for one in endpoints if one.role == role}
    rows = [
        (code(name), by_name[name].type, by_name[name].qos, text)
        for name, text in DESCRIPTIONS[node][role].items()
        if not is_latency(name)
    ]
    yield from table((role, 'type', 'QoS', ''), rows)


def _services(node: str, endpoints: Sequence[Endpoint]) -> Lines:
    types = {one.name: one.type for one in endpoints if one.role == SERVES}
    rows = [(code(name), types[name], text) for name, text in DESCRIPTIONS[node][SERVES].items()]
    if rows:
        yield from table((SERVES, 'type', ''), rows)
    else:
        yield from ('It has no services of its own.', '')


def _parameters(node: str) -> Lines:
    yield from (f'### Parameters of {node}', '')
    yield from (f'As a file: [{config_path(node)}](../{config_path(node)}).', '')
    for heading, rows in parameter_groups(node):
        if heading:
            yield from (f'Those {heading}:', '')
        yield from parameter_table(rows)
    if node == TRACKER:
        yield from ('Of each of several `objects`, as `NAME.mesh_file_path` and so on:', '')
        yield from parameter_table(object_rows())


def parameter_table(rows: Sequence[ParameterRow]) -> Lines:
    """Yield a table of parameters."""
    cells = [
        (code(row.name), code(row.default_text()), row.allowed(), row.change, row.description)
        for row in rows
    ]
    yield from table(('parameter', 'default', 'unit, range or choices', 'set', ''), cells)


def _latencies(node: str, endpoints: Sequence[Endpoint]) -> Lines:
    yield from (f'### Latencies of {node}', '')
    yield from filled(LATENCIES)
    qos = {one.name: one.qos for one in endpoints}
    parameters = {spec.name for spec in fields(KINDS[node])}
    rows = []
    for name, text in DESCRIPTIONS[node][PUBLISHES].items():
        budget = f'{BUDGET}{name.removeprefix(LATENCY)}'
        if is_latency(name):
            rows.append(
                (code(name), qos[name], code(budget) if budget in parameters else '', text)
            )
    yield from table(('topic', 'QoS', 'budget', 'what it measures'), rows)


def _outcomes(node: str) -> Lines:
    words, wanted = OUTCOMES[node], OUTCOME_WORDS[node]
    if words.keys() != wanted:
        raise ValueError(f'OUTCOMES of {node}: {sorted(words.keys() ^ wanted)} too many or few')
    yield from (f'### Outcomes of {node}', '')
    yield from table(('outcome', ''), [(code(word), text) for word, text in words.items()])


def _isaac_names(node: str) -> Lines:
    names = {spec.name for spec in fields(KINDS[node])}
    rows = [(code(theirs), code(ours)) for ours, theirs in ISAAC_NAMES.items() if ours in names]
    if not rows:
        yield from ('It takes no parameters by names of Isaac ROS.', '')
        return
    yield from (f'### Isaac ROS names of {node}', '')
    yield from (
        'Understood at the start, on the command line or in a file, unless ours is given:',
        '',
    )
    yield from table(('Isaac ROS', 'here'), rows)


def filled(text: str) -> Lines:
    """Yield paragraphs, filled, and an empty line after each."""
    for paragraph in text.strip().split('\n\n'):
        yield from textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False)
        yield ''


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Yield a table of Markdown and an empty line."""
    yield _cells(head)
    yield '|' + '---|' * len(head)
    yield from (_cells(row) for row in rows)
    yield ''


def code(text: str) -> str:
    """Return a text as code."""
    return f'`{text}`'


def is_latency(name: str) -> bool:
    """Whether a topic is a latency or a counter of one node."""
    return name.startswith(LATENCY) and name != SUMMARY_TOPIC


def _cells(texts: Sequence[str]) -> str:
    return '| ' + ' | '.join(text.replace('|', r'\|') for text in texts) + ' |'
