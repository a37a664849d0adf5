"""`foundationpose-trt calibrate`: the scales that precision int8 needs of a weight set."""

from __future__ import annotations

import argparse
import os

from tqdm import tqdm

from ..datatypes import require
from ..pose.backends import open_engines
from ..pose.estimator import EstimatorSettings, PoseEstimator
from ..pose.export import QUANTIZED, source_file
from ..pose.quantization import observing, write_scales
from ..pose.weights import PoseNetworks, load_networks
from ..runtime.choice import BackendChoice
from ..runtime.engine_manifest import sha256_of
from .benchmark_poses import PoseTask, make_tasks
from .estimator_options import SCHEDULES, checked_device, default_device
from .report import print_table

HELP = 'measure the scales for 8-bit integers of a weight set'
FIRST_SEED = 0  # of objects for training: those that figures are of are not looked at
COLUMNS = ('convolution', 'scale')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        '--weights', required=True, help='shipped set or folder of a weight set; int8.json is'
        ' written into it',
    )  # fmt: skip
    parser.add_argument('--objects', type=int, default=8, help='synthetic ones (default 8)')
    parser.add_argument('--views', type=int, default=4, help='of each (default 4)')
    parser.add_argument('--device', help='default: cuda where there is one, else cpu')


def run(options: argparse.Namespace) -> int:
    """Register and track synthetic objects, and keep what the convolutions read."""
    for name in ('objects', 'views'):
        value = getattr(options, name)
        require(value >= 1, f'--{name} is {value}, must be at least 1')
    device = checked_device(options.device or default_device())
    networks = load_networks(options.weights, device)
    folder = networks.source
    assert folder is not None
    require(
        os.access(folder, os.W_OK),
        f'{folder}, where the scales would go, cannot be written: give a copy of it as --weights',
    )
    tasks = make_tasks(options.objects, options.views, device, FIRST_SEED)
    with observing(networks.refiner) as observed:
        run_all(networks, tasks)
    scales = observed.scales()
    path = write_scales(folder, sha256_of(source_file(str(folder), QUANTIZED)), scales)
    rows = [(name, f'{scale:.4f}') for name, scale in scales.items()]
    print_table(f'{path}, of {len(tasks)} views', COLUMNS, rows)
    return 0


def run_all(networks: PoseNetworks, tasks: list[PoseTask]) -> None:
    """Register the object of the first view of each, and track it in all."""
    engines = open_engines(networks, BackendChoice('torch'))
    # replays of a graph would show nothing
    settings = EstimatorSettings(schedule=SCHEDULES['pruned'], cuda_graph_cache_capacity=0)
    estimator: PoseEstimator | None = None
    for task in tqdm(tasks, desc='calibrate', unit='view'):
        if estimator is None or estimator.mesh is not task.mesh:
            estimator = PoseEstimator([task.mesh], networks, settings, engines)
            estimator.register(task.frame, task.mask)
        estimator.track(task.frame, task.start)
