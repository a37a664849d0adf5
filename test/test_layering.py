"""Imports flow one way; only ros/ needs ROS, and nothing needs a GPU or TensorRT, to import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'foundationpose_trt'
BASE = {'datatypes', 'latency', 'geometry', 'warp_launch', 'cuda_streams'}
MAY_IMPORT = {  # part -> other parts it may import
    'datatypes': set(),
    'latency': set(),
    'geometry': {'datatypes'},
    'cuda_streams': set(),
    'warp_launch': {'cuda_streams'},
    'runtime': {'datatypes', 'cuda_streams'},
    'detection': BASE | {'runtime'},
    'pose': BASE | {'runtime'},
    'scenes': BASE | {'pose'},
    'synthesis': BASE | {'pose'},
    'training': BASE | {'pose', 'scenes', 'synthesis'},
    'ros': BASE | {'runtime', 'detection', 'pose', 'scenes'},
    'tools': BASE | {'runtime', 'detection', 'pose', 'scenes', 'synthesis', 'training'},
    '__main__': {'tools'},
}
ROS_ONLY = (
    'rclpy rcl_interfaces sensor_msgs geometry_msgs std_msgs builtin_interfaces cv_bridge rosbags'
    ' vision_msgs tf2_ros ament_index_python launch launch_ros std_srvs diagnostic_msgs'
    ' lifecycle_msgs'
)
TENSORRT = (
    'tensorrt', 'tensorrt_bindings', 'tensorrt_lean', 'tensorrt_rtx', 'tensorrt_rtx_bindings',
)  # fmt: skip
ONLY_IN = {  # third-party module -> the only parts that may import it
    **dict.fromkeys(ROS_ONLY.split(), {'ros'}),
    **dict.fromkeys([*TENSORRT, 'onnxruntime'], {'runtime'}),
    'rfdetr': {'detection', 'training'},
    'argparse': {'tools', 'ros'},
}
FILES = sorted(PACKAGE.rglob('*.py'))


def imported_modules(tree: ast.Module, folder: tuple[str, ...]) -> Iterator[str]:
    """Absolute names of everything imported by a file of the given package path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(folder[: len(folder) - node.level + 1]) if node.level else ''
            stem = '.'.join(filter(None, (base, node.module)))
            yield from (f'{stem}.{alias.name}' for alias in node.names)


def violations(source: str, part: str, folder: tuple[str, ...] = ('foundationpose_trt',)) -> list:
    """Names that a file of this part imports against the rules."""
    found = []
    for name in imported_modules(ast.parse(source), folder):
        root, *rest = name.split('.')
        if root == 'foundationpose_trt' and rest and rest[0] != '__version__':
            if rest[0] != part and rest[0] not in MAY_IMPORT[part]:
                found.append(f'{part} must not import {rest[0]}')
        elif part not in ONLY_IN.get(root, {part}):
            found.append(f'{root} belongs in {sorted(ONLY_IN[root])}, not in {part}')
        if name.endswith('.*'):
            found.append(f'wildcard import of {name}')
    return found


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_flow_one_way(path):
    inside = path.relative_to(PACKAGE)
    part = inside.parts[0].removesuffix('.py')
    if part == '__init__':
        assert not list(imported_modules(ast.parse(path.read_text()), ()))
    else:
        folder = ('foundationpose_trt', *inside.parent.parts)
        assert not violations(path.read_text(), part, folder)


@pytest.mark.parametrize(
    ('source', 'part'),
    [
        ('from foundationpose_trt.ros import tracker_node', 'tools'),
        ('from foundationpose_trt import scenes', 'pose'),
        ('from foundationpose_trt.synthesis.sensor import x', 'scenes'),
        ('from ..training import loop', 'pose'),
        ('import rclpy.node', 'pose'),
        ('def late():\n    import argparse', 'training'),
        ('from numpy import *', 'geometry'),
    ],
)
def test_a_seeded_violation_is_found(source, part):
    assert len(violations(source, part, ('foundationpose_trt', part))) == 1


IMPORT_ALL = """
import importlib, json, sys

BLOCKED = {
    'rclpy', 'sensor_msgs', 'geometry_msgs', 'std_msgs', 'std_srvs', 'diagnostic_msgs',
    'tensorrt', 'tensorrt_bindings', 'tensorrt_lean', 'tensorrt_rtx', 'tensorrt_rtx_bindings',
    'onnxruntime',
}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f'{name} is blocked by the test', name=name)

sys.meta_path.insert(0, Refuse())
failed = {}
for module in json.load(sys.stdin):
    try:
        importlib.import_module(module)
    except Exception as error:
        failed[module] = repr(error)
print(json.dumps(failed))
"""


def test_every_file_outside_ros_imports_without_ros_and_gpu():
    inside = [path.relative_to(PACKAGE) for path in FILES]
    modules = [
        '.'.join(('foundationpose_trt', *path.with_suffix('').parts))
        for path in inside
        if path.parts[0] != 'ros'
    ]
    result = subprocess.run(
        [sys.executable, '-c', IMPORT_ALL],
        input=json.dumps(modules),
        capture_output=True,
        text=True,
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {}
