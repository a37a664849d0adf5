"""Tables of what `benchmark track|register` measured."""

from __future__ import annotations

from typing import Any

from .speed_measures import PAGE_LOCKED, TOGETHER

Row = dict[str, Any]
Table = tuple[str, list[str], list[list[Any]]]


def speed_tables(content: dict[str, Any]) -> list[Table]:
    """Lay the figures out: latencies with pose errors beside them, then the GPU's timeline."""
    rows = [row for row in content['rows'] if 'failed' not in row]
    heights = list(rows[0]['sizes'])
    tables: list[Table] = [
        _latencies(f'{content["weights"]}, ms from images to pose', heights, rows),
        (
            f'errors of {content["views"]} views',
            ['', 'ADD-S AUC', 'ADD AUC', 'rotation, deg', 'translation, mm'],
            [[row['name'], *row['pose'].values()] for row in rows],
        ),
    ]
    tables += _more_tables(rows, heights[0])
    for name in content['worse']:
        tables.append((f'{name}: POSES ARE WORSE THAN {rows[0]["name"]}', [], []))
    return tables


def _latencies(title: str, heights: list[Any], rows: list[Row]) -> Table:
    keys = {'p50': 'p50_ms', 'p99': 'p99_ms', 'max': 'max_ms', 'CPU': 'cpu_ms'}
    columns = ['', *[f'{word}, {height}p' for height in heights for word in keys]]
    return (
        title,
        columns,
        [
            [row['name'], *[row['sizes'][h][key] for h in heights for key in keys.values()]]
            for row in rows
        ],
    )


def _together(title: str, height: Any, rows: list[Row]) -> list[Table]:
    lines = [
        [row['name'], row['sizes'][height]['p50_ms'], row['together']['p50_ms']]
        for row in rows
        if 'together' in row
    ]
    title = f'{title}, p50 in ms, {height}p'
    return [(title, ['', '1 object', f'{TOGETHER} objects'], lines)] if lines else []


def _more_tables(rows: list[Row], height: Any) -> list[Table]:
    """Many objects, images in place, memory, and the GPU's timeline, where there are any."""
    tables = _together('objects in one batch', height, rows)
    in_place = [{'name': r['name'], **r[PAGE_LOCKED]} for r in rows if PAGE_LOCKED in r]
    if in_place:
        where = 'images in page-locked memory'
        tables.append(_latencies(f'ms, {where}', list(in_place[0]['sizes']), in_place))
        tables += _together(f'objects in one batch, {where}', height, in_place)
    if any('memory_mb' in row for row in rows):
        lines = [[row['name'], row['memory_mb'], row['weights_mb']] for row in rows]
        tables.append(
            ('GPU memory at its most, MB', ['', 'all', "weights in torch's copy"], lines)
        )
    for row in rows:
        for kind, timeline in row.get('timelines', {}).items():
            lines = [[r['name'], r['us'], r['launches']] for r in timeline]
            lines.append(['all', sum(r['us'] for r in timeline), None])
            title = f'{row["name"]}: what the GPU does in one call, {kind}'
            tables.append((title, ['', 'us', 'launches'], lines))
    return tables
