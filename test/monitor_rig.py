"""Lines as monitor_node writes them, made by hand; no code of the package is used."""

from __future__ import annotations

TOPIC = '/latency/summary'
TRACKER, DETECTOR = '/tracker_node', '/detector_node'
TRACK = {
    'p50_ms': '12.5', 'p95_ms': '20.25', 'p99_ms': '30', 'max_ms': '44.125', 'count': '150',
    'budget_ms': '33',
}  # fmt: skip


def status(name, level=0, message='', **values):
    return {'name': name, 'level': level, 'message': message, 'values': values}


def stage(node=TRACKER, name='track_ms', level=0, message='', **values):
    return status(f'{node}: latency {name}', level, message, **{**TRACK, **values})


def array(*statuses, topic=TOPIC, stamp_s=100.5):
    return {'topic': topic, 'stamp_s': stamp_s, 'statuses': list(statuses)}


def summary_graph(*nodes):
    return {'graph': {TOPIC: list(nodes)}}
