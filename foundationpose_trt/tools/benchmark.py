"""`foundationpose-trt benchmark runtime`: what each back end costs, and what it does to poses."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..datatypes import require
from ..pose.backends import BackendChoice, NetworkEngines, open_engines
from ..pose.estimator import EstimatorSettings, PoseEstimator
from ..pose.weights import PoseNetworks, load_networks
from ..runtime.graph_cache import CudaGraphCache, graph_key
from ..runtime.session import Session
from ..runtime.tensorrt_api import installed
from . import report
from .benchmark_poses import PoseTask, compare, make_tasks, run_tasks

HELP = 'measure the back ends of the networks: latency, memory and the error of the pose'
CAPACITY = 8
WARM_UP = 5
TOLERANCE_DEG, TOLERANCE_MM = 0.5, 0.5  # a quarter of the median error of `base`, README
NETWORKS = ('refiner', 'extractor')


@dataclass(frozen=True)
class Rung:
    """One row of the table: a back end at a precision, with or without CUDA graphs."""

    backend: str
    precision: str
    graphs: bool = False
    device: str = 'cuda'

    @property
    def name(self) -> str:
        """How the table calls it."""
        graph = ' + graph' if self.graphs else ''
        where = '' if self.device == 'cuda' else ', CPU'
        return f'{self.backend} {self.precision}{graph}{where}'


def ladder(on_cuda: bool) -> list[Rung]:
    """Rungs from the plain reference upwards; TensorRT where it is installed."""
    if not on_cuda:
        return [Rung('torch', 'fp32', device='cpu'), Rung('onnxruntime', 'fp32', device='cpu')]
    rungs = [Rung('torch', 'fp32'), Rung('torch', 'fp16'), Rung('torch', 'fp16', graphs=True)]
    rungs.append(Rung('onnxruntime', 'fp32', device='cpu'))
    for backend in ('tensorrt', 'tensorrt_rtx'):
        if installed(backend):
            rungs += [
                Rung(backend, 'fp32', True),
                Rung(backend, 'fp16'),
                Rung(backend, 'fp16', True),
            ]
    return rungs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    on_cuda = torch.cuda.is_available()
    parser.add_argument('subject', choices=['runtime'])
    parser.add_argument('--weights', default='base' if on_cuda else 'small', metavar='NAME|DIR')
    parser.add_argument(
        '--batches', type=int, nargs='+', default=[1, 64, 252] if on_cuda else [1, 16]
    )
    parser.add_argument('--repeats', type=int, default=200 if on_cuda else 10)
    parser.add_argument(
        '--objects', type=int, default=8 if on_cuda else 3, help='of the pose check'
    )
    parser.add_argument('--views', type=int, default=4 if on_cuda else 2, help='of each object')
    parser.add_argument('--engines', type=Path, metavar='DIR', help='where engines are or go')
    parser.add_argument(
        '--only', metavar='WORD', help='rungs whose name holds this, and the first'
    )
    parser.add_argument('--json', type=Path, metavar='FILE')


def run(options: argparse.Namespace) -> int:
    """Measure every rung; 1 when one moves a pose from the first rung's by more than allowed."""
    require(
        min(options.batches) >= 1 and options.repeats >= 1,
        f'--batches {options.batches} and --repeats {options.repeats} must be at least 1',
    )
    require(
        options.objects >= 1 and options.views >= 1,
        f'--objects {options.objects} and --views {options.views} must be at least 1',
    )
    on_cuda = torch.cuda.is_available()
    rungs = ladder(on_cuda)
    rungs = rungs[:1] + [r for r in rungs[1:] if not options.only or options.only in r.name]
    tasks = make_tasks(options.objects, options.views, 'cuda' if on_cuda else 'cpu')
    rows: list[dict[str, Any]] = []
    poses: list[list[np.ndarray | None]] = []
    for rung in tqdm(rungs, desc='rungs'):
        row, found = measure(rung, options, tasks)
        poses.append(found)
        row['pose'] = compare(tasks, found, poses[0])
        rows.append(row)
    content = {'machine': machine(), 'weights': options.weights, 'rungs': rows}
    _print(content, len(tasks))
    if options.json:
        report.write_json(options.json, content)
    return 1 if any(_too_far(row['pose']) for row in rows) else 0


def _too_far(pose: dict[str, float]) -> bool:
    return pose['from_reference_deg'] > TOLERANCE_DEG or pose['from_reference_mm'] > TOLERANCE_MM


def machine() -> dict[str, Any]:
    """Say where and with what this runs."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        'gpu': gpu,
        'cpu_threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'date': time.strftime('%Y-%m-%d'),
    }


def measure(
    rung: Rung, options: argparse.Namespace, tasks: list[PoseTask]
) -> tuple[dict[str, Any], list[np.ndarray | None]]:
    """Return one row of figures and the poses of the tasks."""
    # fp32 means fp32: torch would let convolutions round to TF32, TensorRT is built without it
    torch.backends.cudnn.allow_tf32 = rung.precision != 'fp32'
    networks = load_networks(options.weights, rung.device, rung.precision)
    start_s = time.monotonic()
    choice = BackendChoice(rung.backend, options.engines, build=True)
    engines = open_engines(networks, choice)
    opened_s = time.monotonic() - start_s
    row: dict[str, Any] = {'name': rung.name, 'open_or_build_s': opened_s, 'networks': {}}
    # a stream of its own: on the default one TensorRT without a graph waits at each call
    on_cuda = rung.device == 'cuda'
    with torch.cuda.stream(torch.cuda.Stream()) if on_cuda else nullcontext():
        for name, engine in zip(NETWORKS, (engines.refiner, engines.features), strict=True):
            session = Session(engine, CudaGraphCache(CAPACITY) if rung.graphs else None)
            row['networks'][name] = {
                batch: timings(session, batch, options.repeats) for batch in options.batches
            }
    if on_cuda:
        free, total = torch.cuda.mem_get_info()
        row['device_memory_mb'] = (total - free) / 1e6
    settings = EstimatorSettings(cuda_graph_cache_capacity=CAPACITY if rung.graphs else 0)
    return row, run_tasks(tasks, _maker(networks, settings, engines))


def _maker(
    networks: PoseNetworks, settings: EstimatorSettings, engines: NetworkEngines
) -> Callable[..., PoseEstimator]:
    return lambda mesh: PoseEstimator(mesh, networks, settings, engines)


def timings(session: Session, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one run at a batch, from random crops to finished outputs.

    On CUDA by events; host_us: what a run takes of the host, without waiting; hit_us: of that,
    what it takes beyond a bare replay of the graph.
    """
    g = torch.Generator().manual_seed(batch)
    inputs = {spec.name: session.input(spec.name, batch) for spec in session.engine.inputs}
    for spec in session.engine.inputs:
        values = torch.rand(inputs[spec.name].shape, generator=g) - 0.5
        inputs[spec.name].copy_(values.to(spec.dtype))
    for _ in range(WARM_UP):
        session.run(inputs)
    if session.engine.device.type != 'cuda':
        return _percentiles([_host_ms(lambda: session.run(inputs)) for _ in range(repeats)])
    result = _percentiles([_device_ms(lambda: session.run(inputs)) for _ in range(repeats)])
    result['host_us'] = _host_us(lambda: session.run(inputs), repeats)
    cache = session.cuda_graph_cache
    if cache is not None and cache.stats().captures:
        result['hit_us'] = result['host_us'] - _host_us(session.bare_replay(inputs), repeats)
        result['entry_mb'] = cache.stats().entry_bytes[graph_key(inputs)] / 1e6
    return result


def _percentiles(samples_ms: list[float]) -> dict[str, float]:
    return {f'p{share}_ms': float(np.percentile(samples_ms, share)) for share in (50, 99)}


def _host_ms(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start_s)


def _device_ms(call: Callable[[], object]) -> float:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def _host_us(call: Callable[[], object], repeats: int) -> float:
    """Median host time of a call whose work on the device is not waited for."""
    samples = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        samples.append(1e3 * _host_ms(call))
    torch.cuda.synchronize()
    return float(np.median(samples))


def _print(content: dict[str, Any], tasks: int) -> None:
    rows = content['rungs']
    batches = list(rows[0]['networks'][NETWORKS[0]])
    where = content['machine']['gpu'] or f'{content["machine"]["cpu_threads"]} CPU threads'
    for network in NETWORKS:
        columns = [f'{word}, batch {batch}' for batch in batches for word in ('p50', 'p99')]
        table = [
            [
                row['name'],
                *(
                    row['networks'][network][batch][key]
                    for batch in batches
                    for key in ('p50_ms', 'p99_ms')
                ),
            ]
            for row in rows
        ]
        title = f'{network} of {content["weights"]} on {where}, ms'
        report.print_table(title, ['', *columns], table)
    columns = [
        'rotation, deg',
        'translation, mm',
        'ADD-S, mm',
        'off the first, deg',
        'mm',
        'opened, s',
    ]
    table = [[row['name'], *row['pose'].values(), row['open_or_build_s']] for row in rows]
    report.print_table(f'pose error of {tasks} tracked views (medians)', ['', *columns], table)
    graphed = [row for row in rows if 'hit_us' in row['networks']['refiner'][batches[0]]]
    figures = [
        [
            row['name'],
            *(
                row['networks']['refiner'][b].get(k)
                for b in batches
                for k in ('hit_us', 'entry_mb')
            ),
        ]
        for row in graphed
    ]
    if graphed:
        columns = [f'{word}, batch {b}' for b in batches for word in ('hit, us', 'MB')]
        report.print_table(
            'a hit beyond a bare replay, and its memory (refiner)', ['', *columns], figures
        )
