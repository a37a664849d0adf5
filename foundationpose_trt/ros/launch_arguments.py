"""Launch arguments as a parameter file that wins over the parameter files before it.

Launch files import this: it needs neither rclpy nor anything that is not part of Python.
"""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

NOT_GIVEN = ''


def switch(text: str) -> bool:
    """Read true or false."""
    if text not in ('true', 'false'):
        raise ValueError(f"'{text}' must be true or false")
    return text == 'true'


def override_files(
    node: str, kinds: Mapping[str, Callable[[str], object]], given: Callable[[str], str]
) -> list[str]:
    """Return the paths to give after a node's parameter file: one, or none for no argument.

    kinds: what reads each argument's text. given: the text by name, NOT_GIVEN where the parameter
    file is to decide. use_sim_time is one of them for every node. Raises ValueError naming an
    argument that cannot be read.
    """
    texts = {name: given(name) for name in (*kinds, 'use_sim_time')}
    values = {
        name: _read(name, kinds.get(name, switch), text)
        for name, text in texts.items()
        if text != NOT_GIVEN
    }
    # an empty dictionary would become a parameter file that rcl does not read
    return [_written(node, values)] if values else []


def _read(name: str, kind: Callable[[str], object], text: str) -> object:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f'launch argument {name}:={text}: {error}') from error


def _written(node: str, values: Mapping[str, object]) -> str:
    """Write parameters of a node, in whatever namespace, to a file; returns its path.

    Under the node's name: what rcl finds under `/**`, where `-p` and launch's dictionaries go,
    loses to a section with the node's name in a file before it. JSON is YAML. The file is removed
    when this process ends.
    """
    content = {f'/**/{node}': {'ros__parameters': values}}
    with tempfile.NamedTemporaryFile(
        'w', prefix=f'{node}_', suffix='.yaml', delete=False, encoding='utf-8'
    ) as file:
        json.dump(content, file)
    path = Path(file.name)
    atexit.register(path.unlink, missing_ok=True)
    return str(path)
