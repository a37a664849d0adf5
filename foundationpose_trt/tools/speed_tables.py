"""Tables of what `benchmark track|register` measured."""

from __future__ import annotations

from typing import Any

from .speed_measures import TOGETHER

Row = dict[str, Any]
Table = tuple[str, list[str], list[list[Any]]]


def speed_tables(content: dict[str, Any]) -> list[Table]:
    """Lay the figures out: latencies with pose errors beside them, then the GPU's timeline."""
    rows = [row for row in content['rows'] if 'failed' not in row]
    heights = list(rows[0]['sizes'])
    keys = {'p50': 'p50_ms', 'p99': 'p99_ms', 'max': 'max_ms', 'CPU': 'cpu_ms'}
    table = [
        [row['name'], *[row['sizes'][h][key] for h in heights for key in keys.values()]]
        for row in rows
    ]
    tables: list[Table] = [
        (
            f'{content["weights"]}, ms from images to pose',
            ['', *[f'{word}, {height}p' for height in heights for word in keys]],
            table,
        ),
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


def _more_tables(rows: list[Row], height: Any) -> list[Table]:
    """Many objects, memory, and the GPU's timeline, where there are any."""
    tables: list[Table] = []
    if any('together' in row for row in rows):
        lines = [
            [row['name'], row['sizes'][height]['p50_ms'], row['together']['p50_ms']]
            for row in rows
            if 'together' in row
        ]
        title = f'objects in one batch, p50 in ms, {height}p'
        tables.append((title, ['', '1 object', f'{TOGETHER} objects'], lines))
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
