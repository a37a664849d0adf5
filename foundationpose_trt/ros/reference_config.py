"""The parameter files in config/, written from the parameter dataclasses."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from foundationpose_trt.ros.reference_parameters import (
    DETECTOR,
    LIVE,
    MANAGED,
    PLAYER,
    TRACKER,
    ParameterRow,
    object_rows,
    parameter_groups,
)

WIDTH = 119
COLUMN = 36  # where remarks begin, unless the entry is longer
INDENT = ' ' * 4
GLUE = '\0'  # a space at which no line ends
REQUIRED = {  # what must be given on the command line beside the file
    TRACKER: 'mesh_file_path:=/path/to/object.obj',
    DETECTOR: 'model:=/path/to/detector',
    PLAYER: 'scene:=/path/to/scene',
}
EXAMPLE = {'mug': '/path/to/mug.obj', 'drill': '/path/to/drill.obj'}


def config_path(node: str) -> str:
    """Return where a node's parameter file is in the checkout."""
    return f'config/{node.removesuffix("_node")}.yaml'


def config_file(node: str) -> str:
    """Return the parameter file of a node: every parameter with its default and a remark."""
    lines = [*_header(node), '/**:', '  ros__parameters:']
    for heading, rows in parameter_groups(node):
        lines += ['', f'{INDENT}# {heading}'] if heading else []
        for row in rows:
            lines += _entry(row)
    if node == TRACKER:
        lines += ['', *_example()]
    return '\n'.join(lines) + '\n'


def _header(node: str) -> Iterator[str]:
    file = config_path(node).rpartition('/')[2]
    yield f'# The parameters of {node}, each with its default. Written from the code by'
    yield '#     python -m foundationpose_trt.ros.reference --write'
    yield '# Give a copy of this file to the node, or any part of it:'
    yield (
        f'#     ros2 run foundationpose_trt {node} --ros-args --params-file {file}'
        f' -p {REQUIRED[node]}'
    )
    if node in MANAGED:
        yield '# (live): may be set while the node runs; the others only while it is unconfigured.'
        yield '# Lists are comments here, as an empty one has no type in YAML: write [mug, drill].'
    else:
        yield '# All are read when the node starts.'


def _entry(row: ParameterRow) -> Iterator[str]:
    """Yield the lines of one parameter; one that is a list is a comment."""
    mark = '# ' if row.default == () else ''
    return _remarked(f'{INDENT}{mark}{row.name}: {row.default_text()}', remark(row))


def remark(row: ParameterRow) -> str:
    """Return all there is to say of a parameter: description [unit, range or choices] (live)."""
    allowed = f' [{row.allowed()}]' if row.allowed() else ''
    return row.description + allowed + (' (live)' if row.change == LIVE else '')


def _remarked(entry: str, text: str) -> Iterator[str]:
    entry = entry.ljust(COLUMN)
    whole, bracket, rest = text.rpartition(' [')
    text = whole + bracket + rest.replace(' ', GLUE) if bracket else text
    first, *others = textwrap.wrap(text, WIDTH - len(entry) - len('  # '))
    yield f'{entry}  # {first}'.replace(GLUE, ' ')
    for line in others:
        yield f'{" " * len(entry)}  # {line}'.replace(GLUE, ' ')


def _example() -> Iterator[str]:
    """Yield what several objects look like, as comments."""
    names = list(EXAMPLE)
    yield f'{INDENT}# Several objects: their names, and of each what differs from these defaults.'
    yield f'{INDENT}# objects: [{", ".join(names)}]'
    rows: Sequence[ParameterRow] = object_rows()
    for name in names:
        yield f'{INDENT}# {name}:'
        for row in rows if name == names[0] else rows[:1]:
            is_mesh = row.name == 'mesh_file_path'
            value = EXAMPLE[name] if is_mesh else row.default_text()
            mark = '# ' if row.default == () else ''
            yield from _remarked(f'{INDENT}#   {mark}{row.name}: {value}', remark(row))
