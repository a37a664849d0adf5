"""`foundationpose-trt benchmark ros`: what the ROS side of tracker_node adds to its compute."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..datatypes import require
from .demo_processes import Nodes, running_nodes
from .demo_recording import DemoFailed

WIDTHS = {480: 640}  # others are 16:9
RATE_HZ = 30.0
START_S, END_S = 30.0, 10.0


@dataclass(frozen=True)
class Case:
    """One row: image height, objects, whether somebody views debug/pose, rclpy's executor."""

    height: int
    objects: int
    viewed: bool
    executor: str = 'auto'

    @property
    def width(self) -> int:
        """Of the image, pixels."""
        return WIDTHS.get(self.height, self.height * 16 // 9)


def cases(heights: list[int], objects: list[int]) -> list[Case]:
    """All rows, and the first one with rclpy's older executor, where there is another."""
    rows = [Case(*row) for row in itertools.product(heights, objects, (False, True))]
    if has_events_executor():
        rows.append(Case(heights[0], objects[0], False, 'single'))
    return rows


def has_events_executor() -> bool:
    """Whether this rclpy has the EventsExecutor (from Jazzy on)."""
    try:
        return importlib.util.find_spec('rclpy.experimental.events_executor') is not None
    except ModuleNotFoundError:
        return False


def run_ros(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every case in processes of its own; returns the figures."""
    require(
        min(options.heights) >= 16 and min(options.ros_objects) >= 1 and options.frames >= 20,
        f'--heights {options.heights} must be at least 16, --ros-objects {options.ros_objects} at'
        f' least 1 and --frames {options.frames} at least 20',
    )
    require(
        importlib.util.find_spec('rclpy') is not None,
        "ROS 2 is not there: pip install '.[ros]', or source your ROS 2 installation",
    )
    rows = [
        measure(case, options.compute_ms, options.frames)
        for case in tqdm(cases(options.heights, options.ros_objects), desc='cases')
    ]
    return {'rate_hz': RATE_HZ, 'compute_ms': options.compute_ms, 'rows': rows}


def measure(case: Case, compute_ms: float, frames: int) -> dict[str, Any]:
    """Run camera and tracker for so many frames; return one row of figures."""
    with tempfile.TemporaryDirectory() as folder, running_nodes(Path(folder)) as nodes:
        output = Path(folder) / 'overhead.json'
        camera = {'width': case.width, 'height': case.height, 'rate_hz': RATE_HZ}
        nodes.start('pattern_camera_node', {**camera, 'objects': case.objects})
        others = ['pattern_camera_node']
        if case.viewed:
            nodes.start('slow_viewer_node', {})
            others.append('slow_viewer_node')
        words = [str(output), f'{compute_ms:g}', str(frames), case.executor]
        nodes.start('overhead_node', tracker_parameters(case), words)
        wait(nodes, others, frames / RATE_HZ + START_S)
        content = json.loads(output.read_text(encoding='utf-8'))
    p50, p90, p99 = np.percentile(content['overhead_ms'], [50, 90, 99])
    return {
        'size': f'{case.width}x{case.height}', 'objects': case.objects, 'viewed': case.viewed,
        'executor': case.executor, 'frames': len(content['overhead_ms']),
        'overhead_ms': {
            'p50': float(p50), 'p90': float(p90), 'p99': float(p99),
            'max': max(content['overhead_ms']),
        },
        'drops': content['drops'],
    }  # fmt: skip


def tracker_parameters(case: Case) -> dict[str, Any]:
    """Parameters of overhead_node; several objects are named, one is not."""
    parameters: dict[str, Any] = {
        'publish_debug': case.viewed, 'warm_up_width': 0, 'mesh_file_path': 'none',
    }  # fmt: skip
    if case.objects > 1:
        parameters['objects'] = [f'object{k}' for k in range(case.objects)]
    return parameters


def wait(nodes: Nodes, others: Sequence[str], seconds: float) -> None:
    """Wait for the tracker's end; raises DemoFailed, or TimeoutError with its last words.

    others: without whom nothing is measured: their end is a failure.
    """
    end_s = time.monotonic() + seconds
    while not nodes.ended('overhead_node'):
        if gone := [name for name in others if nodes.ended(name)]:
            raise DemoFailed(f'{gone[0]} ended; it said:\n{nodes.last_lines(gone[0])}')
        if time.monotonic() > end_s:
            last = nodes.last_lines('overhead_node')
            raise TimeoutError(f'overhead_node did not end in {seconds:.0f} s; it said:\n{last}')
        time.sleep(0.2)


def ros_tables(content: dict[str, Any]) -> list[tuple[str, list[str], list[list[object]]]]:
    """Return the table to print: title, columns, rows."""
    title = (
        f'age of a pose at publishing, less compute ({content["compute_ms"]:g} ms of waiting), at'
        f' {content["rate_hz"]:g} Hz, ms'
    )
    columns = ['image', 'objects', 'viewed', 'executor', 'p50', 'p90', 'p99', 'max', 'dropped']
    rows: list[list[object]] = []
    for row in content['rows']:
        spread = [row['overhead_ms'][key] for key in ('p50', 'p90', 'p99', 'max')]
        names = [row['size'], row['objects'], 'yes' if row['viewed'] else 'no', row['executor']]
        rows.append([*names, *spread, sum(row['drops'].values())])
    return [(title, columns, rows)]
