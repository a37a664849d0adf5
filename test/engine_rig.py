"""Engines built by TensorRT-RTX for tests, and the platform they are checked against."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
from pathlib import Path

import pytest
import tensorrt_rig as rig

from foundationpose_trt.runtime.build import BuildOptions, build_engine
from foundationpose_trt.runtime.engine_manifest import Platform
from foundationpose_trt.runtime.tensorrt_api import MODULES
from foundationpose_trt.tools import build as tool


def rtx_version() -> str | None:
    for name in MODULES['tensorrt_rtx']:
        if importlib.util.find_spec(name):
            return importlib.import_module(name).__version__
    return None


VERSION = rtx_version()
needs_rtx = pytest.mark.skipif(VERSION is None, reason='TensorRT-RTX is not installed')
RTX = BuildOptions(backend='tensorrt_rtx', batches=(1, 2, 4))
HERE = Platform('tensorrt_rtx', VERSION or '', 'NVIDIA RTX 4090', '8.9')


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.onnx and net.engine, not to be changed."""
    folder = tmp_path_factory.mktemp('built')
    build_engine(rig.write_tiny(folder / 'net.onnx'), folder / 'net.engine', RTX)
    return folder


@pytest.fixture
def plan(built: Path, tmp_path: Path) -> Path:
    """A copy of the engine whose manifest names the ONNX file beside it."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / 'net.engine', onnx=str(tmp_path / 'net.onnx'))
    return tmp_path / 'net.engine'


def edit(plan: Path, **changes: object) -> None:
    path = plan.with_name(f'{plan.name}.json')
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tool_options(*words: str) -> argparse.Namespace:
    """What `foundationpose-trt build` makes of these words."""
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return parser.parse_args(words)
