"""Parameters given to a launch file, as a file that wins over the parameter files before it.

Launch files import this: it needs neither rclpy nor anything that is not part of Python.
"""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path


def override_file(node: str, values: Mapping[str, object]) -> str:
    """Write parameters of a node, in whatever namespace, to a file; returns its path.

    Under the node's name: what rcl finds under `/**`, where `-p` and launch's dictionaries go,
    loses to a section with the node's name in a file before it. JSON is YAML. The file is removed
    when this process ends.
    """
    content = {f'/**/{node}': {'ros__parameters': dict(values)}}
    with tempfile.NamedTemporaryFile(
        'w', prefix=f'{node}_', suffix='.yaml', delete=False, encoding='utf-8'
    ) as file:
        json.dump(content, file)
    path = Path(file.name)
    atexit.register(path.unlink, missing_ok=True)
    return str(path)
