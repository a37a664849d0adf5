"""Marks that skip what this machine lacks, and an environment that keeps DDS on this host."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault('MPLBACKEND', 'Agg')
# Before torch is loaded: idle OpenMP threads that spin long take the two cores from the others.
os.environ.setdefault('GOMP_SPINCOUNT', '3000')
# rclpy reads these when a test calls init: stay off the network and apart from parallel runs.
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))


def _lacks_gpu() -> bool:
    import torch  # takes seconds, so only where a collected test asks for a GPU

    return not torch.cuda.is_available()


def _lacks_ros() -> bool:
    # A ROS that is installed but broken must fail the tests, not skip them: so no import here.
    return importlib.util.find_spec('rclpy') is None


LACKS = {'gpu': (_lacks_gpu, 'no CUDA device'), 'ros': (_lacks_ros, 'rclpy is not installed')}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip marked tests where their device or middleware is absent."""
    for mark, (lacks, reason) in LACKS.items():
        marked = [item for item in items if item.get_closest_marker(mark)]
        if marked and lacks():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope='module', autouse=True)
def _nothing_of_earlier_modules() -> None:
    """DDS participants of earlier contexts go with what refers to them; see ros_contexts.py."""
    gc.unfreeze()
    gc.collect()


@pytest.fixture
def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Make tracker_nodes under test (ros_rig.Rig), closed at the end."""
    from ros_rig import Rig  # needs ROS, as what asks for it does

    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    rigs = []

    def make(**parameters: Any) -> Rig:
        rigs.append(Rig(**parameters))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
