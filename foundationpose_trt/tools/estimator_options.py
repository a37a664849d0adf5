"""Command-line options that choose weights, device and effort of the pose estimator."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..datatypes import require
from ..pose.backends import BACKENDS, NetworkEngines, open_engines
from ..pose.estimator import (
    CPU_CHUNK,
    CUDA_CHUNK,
    FULL_SCHEDULE,
    PRUNED_SCHEDULE,
    EstimatorSettings,
    PoseEstimator,
    RegisterStage,
)
from ..pose.mesh import ObjectMesh
from ..pose.weights import ALL_PRECISIONS, PoseNetworks, load_networks
from ..runtime.choice import BackendChoice
from ..runtime.graph_cache import ENABLING_VARIABLE, capacity_by_environment

SCHEDULES = {'full': FULL_SCHEDULE, 'pruned': PRUNED_SCHEDULE}
DEVICES = re.compile(r'cpu|cuda(:\d+)?')
STAGES = re.compile(r'\d+:\d+(:[a-z]+)?(,\d+:\d+(:[a-z]+)?)*')


def default_device() -> str:
    """Return cuda where there is one, else cpu."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def schedule_of(text: str) -> tuple[RegisterStage, ...]:
    """Return a schedule by its name or by its stages, `iterations:keep[:judge]` with commas.

    Raises ValueError for anything else.
    """
    if text in SCHEDULES:
        return SCHEDULES[text]
    require(
        STAGES.fullmatch(text) is not None,
        f'schedule "{text}" must be one of {", ".join(SCHEDULES)}, or stages such as'
        ' 1:64:depth,1:32,3:32 (refinements:kept[:judge])',
    )
    stages = [stage.split(':') for stage in text.split(',')]
    judges: list[Any] = [(*stage, 'scorer')[2] for stage in stages]
    return tuple(
        RegisterStage(int(stage[0]), int(stage[1]), judge)
        for stage, judge in zip(stages, judges, strict=True)
    )


@dataclass(frozen=True)
class EstimatorChoice:
    """What the options say, with the device's defaults filled in; can be sent to a process."""

    weights: str
    device: str
    precision: str
    schedule: str
    cuda_graphs: int = 0
    backend: str = 'torch'
    engines: Path | None = None
    chunk: int = 0

    def estimator(self, mesh: ObjectMesh) -> PoseEstimator:
        """Make the estimator of an object; networks and engines are loaded once per choice."""
        networks, engines = _loaded(self)
        return PoseEstimator(mesh, networks, self.settings(), engines)

    def settings(self) -> EstimatorSettings:
        """Return the estimator's settings."""
        return EstimatorSettings(
            schedule=schedule_of(self.schedule),
            chunk=self.chunk,
            cuda_graph_cache_capacity=self.cuda_graphs,
        )


@lru_cache(maxsize=1)
def _loaded(choice: EstimatorChoice) -> tuple[PoseNetworks, NetworkEngines]:
    networks = load_networks(choice.weights, choice.device, choice.precision)
    backend = BackendChoice(choice.backend, choice.engines)
    return networks, open_engines(networks, backend)


def add_estimator_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options, from --weights to --cuda-graphs."""
    group = parser.add_argument_group('estimator')
    group.add_argument(
        '--weights', metavar='NAME|DIR', help='default: base on CUDA, small on a CPU'
    )
    group.add_argument(
        '--device', help='cpu, cuda or cuda:N; default: cuda where there is one, else cpu'
    )
    group.add_argument(
        '--precision',
        choices=list(ALL_PRECISIONS),
        help='default: fp16 on CUDA, fp32 on a CPU; int8: fp16 but for convolutions, with TensorRT'
        ' engines alone',
    )
    group.add_argument(
        '--schedule',
        metavar='NAME|STAGES',
        help='registration refines all 252 hypotheses five times (full, default on CUDA) or drops'
        ' those early that depth and scorer tell to be wrong (pruned, default on a CPU); or stages'
        ' as refinements:kept[:judge], such as 1:64:depth,1:32,3:32',
    )
    group.add_argument(
        '--chunk',
        type=int,
        default=0,
        metavar='N',
        help='hypotheses of a registration that go through the networks at once: fewer need less'
        f' memory; default: {CUDA_CHUNK} on CUDA, {CPU_CHUNK} on a CPU',
    )
    group.add_argument(
        '--backend',
        choices=BACKENDS,
        default='auto',
        help='what runs the networks; auto takes TensorRT engines that are there and fit, else'
        ' torch, and ONNX Runtime on a CPU where it is installed',
    )
    group.add_argument(
        '--engines', type=Path, metavar='DIR', help="of engines; default: the user's cache folder"
    )
    group.add_argument(
        '--cuda-graphs',
        type=int,
        default=capacity_by_environment(),
        metavar='N',
        help='CUDA graphs kept per network, 0: none; default: 8 where the environment variable'
        f' {ENABLING_VARIABLE} is true, else 0; no effect on a CPU',
    )


def checked_device(name: str) -> str:
    """Return the name of a device that is there; raises ValueError for any other."""
    require(
        DEVICES.fullmatch(name) is not None, f'--device is {name}, must be cpu, cuda or cuda:N'
    )
    if name != 'cpu':
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        require(
            count > 0,
            f'--device {name}: PyTorch finds no CUDA device; use --device cpu, or install the'
            ' driver and a CUDA build of PyTorch',
        )
        number = int(name.partition(':')[2] or 0)
        require(number < count, f'--device {name}: there are {count}, from cuda:0 on')
    return name


def chosen_estimator(options: argparse.Namespace) -> EstimatorChoice:
    """Fill in what the options leave open; raises ValueError for CUDA where there is none."""
    device = checked_device(options.device or default_device())
    on_cuda = device.startswith('cuda')
    schedule = options.schedule or ('full' if on_cuda else 'pruned')
    # both are checked here, before anything is loaded
    EstimatorSettings(schedule=schedule_of(schedule), chunk=options.chunk)
    return EstimatorChoice(
        weights=options.weights or ('base' if on_cuda else 'small'),
        device=device,
        precision=options.precision or ('fp16' if on_cuda else 'fp32'),
        schedule=schedule,
        cuda_graphs=options.cuda_graphs,
        backend=options.backend,
        engines=options.engines,
        chunk=options.chunk,
    )
