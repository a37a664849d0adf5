"""`foundationpose-trt benchmark`: what each back end costs, and what it does to poses."""

from __future__ import annotations

import argparse
import gc
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..datatypes import require
from ..detection.export import SIZES
from ..pose.backends import NetworkEngines, open_engines
from ..pose.crops import PAIR
from ..pose.estimator import EstimatorSettings, PoseEstimator
from ..pose.weights import PoseNetworks, load_networks
from ..runtime.build import DEFAULT_BATCHES
from ..runtime.choice import BackendChoice
from ..runtime.graph_cache import CudaGraphCache
from ..runtime.joined_engine import JoinedEngine
from ..runtime.session import Session
from ..runtime.specs import graph_key
from ..runtime.tensorrt_api import installed
from ..runtime.tensorrt_engine import TensorRtEngine
from . import report
from .benchmark_detector import detector_tables, run_detector
from .benchmark_poses import PoseTask, compare, make_tasks, run_tasks
from .benchmark_ros import ros_tables, run_ros
from .benchmark_soak import run_soak, soak_tables
from .benchmark_speed import run_register, run_track
from .rounding import as_told
from .rungs import Rung
from .speed_tables import speed_tables
from .wider_weights import use_wider_weights

HELP = 'measure tracking, registration, their networks, the detector, what ROS adds, or a long run'
CAPACITY = 8
WARM_UP = 5
FEWEST, LIMIT_MS = 20, 1000  # repeats of slow calls, and how long they may take
HOST_ROUNDS, HOST_CALLS, HOST_LIMIT_MS = 5, 40, 200
TOLERANCE_DEG, TOLERANCE_MM = 0.5, 0.5  # a quarter of the median error of `base`, README
NETWORKS = ('refiner', 'scorer')
HEIGHTS = {'detector': [480, 720, 1080]}
FRAMES = {'ros': 300, 'soak': 100_000}
SUBJECTS = {
    'track': (run_track, speed_tables),
    'register': (run_register, speed_tables),
    'detector': (run_detector, detector_tables),
    'ros': (run_ros, ros_tables),
    'soak': (run_soak, soak_tables),
}
LARGEST_ON_CPU = 16  # crops; more take minutes there and nobody would wait for them


def ladder(on_cuda: bool) -> list[Rung]:
    """Rungs from the plain reference upwards; TensorRT where it is installed."""
    if not on_cuda:
        return [Rung('torch', 'fp32', device='cpu'), Rung('onnxruntime', 'fp32', device='cpu')]
    rungs = [Rung('torch', 'fp32'), Rung('torch', 'fp16'), Rung('torch', 'fp16', graphs=True)]
    for backend in ('tensorrt', 'tensorrt_rtx'):
        if installed(backend):
            rungs += [Rung(backend, 'fp16'), Rung(backend, 'fp16', True)]
    # Last, behind a reference of their own: the renderer's edge pixels differ from the GPU's.
    return rungs + [Rung('torch', 'fp32', device='cpu'), Rung('onnxruntime', 'fp32', device='cpu')]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    on_cuda = torch.cuda.is_available()
    parser.add_argument('subject', choices=['runtime', *SUBJECTS])
    pose = parser.add_argument_group('track, register, runtime and soak')
    pose.add_argument('--weights', default='base' if on_cuda else 'small', metavar='NAME|DIR')
    pose.add_argument(
        '--width',
        type=float,
        metavar='W',
        help="double the weights up to this width, 1 being the published networks', without"
        ' changing what they compute',
    )
    pose.add_argument(
        '--batches', type=int, nargs='+', default=[1, 64, 252] if on_cuda else [1, 16]
    )
    parser.add_argument(
        '--repeats',
        type=int,
        default=200 if on_cuda else 10,
        help=f'of each figure; on CUDA fewer, at least {FEWEST}, where they would take seconds',
    )
    pose.add_argument('--objects', type=int, default=8 if on_cuda else 3, help='of the pose check')
    pose.add_argument('--views', type=int, default=4 if on_cuda else 2, help='of each object')
    pose.add_argument(
        '--int8',
        action='store_true',
        help='track, register: also TensorRT in int8',
    )
    parser.add_argument('--engines', type=Path, metavar='DIR', help='where engines are or go')
    parser.add_argument(
        '--only', nargs='+', metavar='WORD', help="rungs whose name holds a word, and torch's fp32"
    )
    parser.add_argument('--json', type=Path, metavar='FILE')
    detector = parser.add_argument_group('detector')
    detector.add_argument(
        '--model', metavar='NAME|DIR', help='exported detector; default: random weights'
    )
    detector.add_argument(
        '--size', default='nano', choices=list(SIZES), help='of random weights, which need rfdetr'
    )
    detector.add_argument(
        '--heights', type=int, nargs='+', help='of the images; default 480 720, detector: and 1080'
    )
    parser.add_argument(
        '--frames', type=int, help='ros: of each case, default 300; soak: in all, default 100000'
    )
    ros = parser.add_argument_group('ros')
    ros.add_argument('--ros-objects', type=int, nargs='+', default=[1, 4], metavar='N')
    ros.add_argument(
        '--compute-ms', type=float, default=5.0, help='how long the stand-in of the networks takes'
    )


def run(options: argparse.Namespace) -> int:
    """Measure the subject; 1 when poses are further off than allowed."""
    if options.subject == 'runtime':
        return _run_runtime(options)
    measured, tables = SUBJECTS[options.subject]
    options.heights = options.heights or HEIGHTS.get(options.subject, [480, 720])
    options.frames = FRAMES.get(options.subject) if options.frames is None else options.frames
    content = {'machine': machine(), **measured(options)}
    for title, columns, rows in tables(content):
        report.print_table(title, columns, rows)
    if options.json:
        report.write_json(options.json, content)
    return 1 if content.get('worse') or content.get('failed') else 0


def tuned_for(batches: Sequence[int]) -> tuple[int, ...] | None:
    """Batches to build engines for: None where the usual ones run all of these."""
    return None if max(batches) <= DEFAULT_BATCHES[-1] else tuple(sorted({1, *batches}))


def _run_runtime(options: argparse.Namespace) -> int:
    require(
        min(options.batches) >= 1 and options.repeats >= 1,
        f'--batches {options.batches} and --repeats {options.repeats} must be at least 1',
    )
    require(
        options.objects >= 1 and options.views >= 1,
        f'--objects {options.objects} and --views {options.views} must be at least 1',
    )
    on_cuda = torch.cuda.is_available()
    rungs = [r for r in ladder(on_cuda) if _is_chosen(r, options.only, on_cuda)]
    use_wider_weights(options)
    tasks = make_tasks(options.objects, options.views, 'cuda' if on_cuda else 'cpu')
    rows: list[dict[str, Any]] = []
    reference: dict[str, list[np.ndarray | None]] = {}
    for rung in tqdm(rungs, desc='rungs'):
        with as_told(rung):
            row, found = measure(rung, options, tasks)
        row['pose'] = compare(tasks, found, reference.setdefault(rung.device, found))
        rows.append(row)
    content = {'machine': machine(), 'weights': options.weights, 'rungs': rows}
    print_content(content, len(tasks))
    if options.json:
        report.write_json(options.json, content)
    return 1 if any(_too_far(row['pose']) for row in rows) else 0


def _is_chosen(rung: Rung, words: list[str] | None, on_cuda: bool) -> bool:
    """Whether --only names the rung, or it is what another one on its device is held against."""
    if not words or any(w in rung.name for w in words):
        return True
    others = [r for r in ladder(on_cuda) if r.device == rung.device and r != rung]
    is_reference = (rung.backend, rung.precision, rung.graphs) == ('torch', 'fp32', False)
    return is_reference and any(w in r.name for w in words for r in others)


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
    on_cuda = rung.device == 'cuda'
    before = _device_memory() if on_cuda else 0
    networks = load_networks(options.weights, rung.device, rung.precision)
    start_s = time.monotonic()
    tuned = tuned_for(options.batches)
    choice = BackendChoice(rung.backend, options.engines, build=True, batches=tuned)
    engines = open_engines(networks, choice)
    row: dict[str, Any] = {'name': rung.name, 'opened_s': time.monotonic() - start_s}
    batches = [b for b in options.batches if on_cuda or b <= LARGEST_ON_CPU]
    # a stream of its own: on the default one TensorRT without a graph waits at each call
    own_stream = torch.cuda.stream(torch.cuda.Stream()) if on_cuda else nullcontext()
    with own_stream, _sessions(engines, rung.graphs) as sessions:
        row['networks'] = {
            name: {b: timings(call, session, b, options.repeats) for b in batches}
            for name, (call, session) in _calls(networks, sessions).items()
        }
        if on_cuda:
            row['device_memory_mb'] = (_device_memory() - before) / 1e6
    joined = (engines.refiner, engines.features)
    trunks = [one.first for one in joined if isinstance(one, JoinedEngine)]
    both = [trunk for trunk in trunks if isinstance(trunk, TensorRtEngine)]
    row['build_s'] = sum(one.manifest.build_seconds for one in both) if both else None
    row['workspace_mb'] = sum(one.workspace_bytes for one in both) / 1e6 if both else None
    settings = EstimatorSettings(cuda_graph_cache_capacity=CAPACITY if rung.graphs else 0)
    return row, run_tasks(tasks, _maker(networks, settings, engines))


def _device_memory() -> int:
    """Bytes of the GPU in use, by whomever, without what torch keeps for later."""
    gc.collect()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free - (torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


@contextmanager
def _sessions(engines: NetworkEngines, graphs: bool) -> Iterator[tuple[Session, Session]]:
    with (
        Session(engines.refiner, CudaGraphCache(CAPACITY) if graphs else None) as refiner,
        Session(engines.features, CudaGraphCache(CAPACITY) if graphs else None) as extractor,
    ):
        yield refiner, extractor


Call = Callable[[dict[str, torch.Tensor]], object]


def _calls(
    networks: PoseNetworks, sessions: tuple[Session, Session]
) -> dict[str, tuple[Call, Session]]:
    """What the estimator runs: the refiner; the features of all hypotheses and their ranking."""
    refiner, extractor = sessions

    def score(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        features = extractor.run(inputs)['features'][None].to(networks.dtype)
        with torch.inference_mode():
            return networks.scorer.rank(features)

    return {'refiner': (refiner.run, refiner), 'scorer': (score, extractor)}


def _maker(
    networks: PoseNetworks, settings: EstimatorSettings, engines: NetworkEngines
) -> Callable[..., PoseEstimator]:
    return lambda mesh: PoseEstimator(mesh, networks, settings, engines)


def timings(call: Call, session: Session, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one call at a batch, from random crops in place to finished outputs.

    session: the one that the call runs. On CUDA by events, the device having other work until
    all is launched, so that p50 and p99 are the device's; idle_p50_ms: by the host's clock, from
    the call to the result, on an idle device. host_us: what a call takes of the host, without
    waiting; hit_us: what a run takes of it beyond a bare replay of the graph.
    """
    g = torch.Generator().manual_seed(batch)
    (spec,) = session.engine.inputs
    inputs = {spec.name: session.input(spec.name, PAIR * batch)}
    values = torch.rand(inputs[spec.name].shape, generator=g) - 0.5
    inputs[spec.name].copy_(values.to(spec.dtype))
    for _ in range(WARM_UP):
        call(inputs)
    if session.engine.device.type != 'cuda':
        return _percentiles([_host_ms(lambda: call(inputs)) for _ in range(repeats)])
    primer = _Primer()
    slowness = _device_ms(lambda: call(inputs), primer)
    repeats = max(FEWEST, min(repeats, int(LIMIT_MS / slowness)))
    result = _percentiles([_device_ms(lambda: call(inputs), primer) for _ in range(repeats)])
    result['idle_p50_ms'] = float(np.median([_idle_ms(lambda: call(inputs)) for _ in range(20)]))
    calls = max(3, min(HOST_CALLS, int(HOST_LIMIT_MS / result['p50_ms'])))
    result['host_us'] = _host_us(lambda: call(inputs), calls)
    cache = session.cuda_graph_cache
    if cache is not None and cache.stats().captures:
        hit_us = _host_us(lambda: session.run(inputs), calls)
        result['hit_us'] = hit_us - _host_us(session.bare_replay(inputs), calls)
        result['entry_mb'] = cache.stats().entry_bytes[graph_key(inputs)] / 1e6
    return result


class _Primer:
    """Some tenths of a millisecond of other work for the device."""

    def __init__(self) -> None:
        self._matrix = torch.zeros(4096, 4096, dtype=torch.float16, device='cuda')
        self._out = torch.empty_like(self._matrix)

    def __call__(self) -> None:
        torch.mm(self._matrix, self._matrix, out=self._out)


def _percentiles(samples_ms: list[float]) -> dict[str, float]:
    return {f'p{share}_ms': float(np.percentile(samples_ms, share)) for share in (50, 99)}


def _host_ms(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start_s)


def _device_ms(call: Callable[[], object], primer: Callable[[], None]) -> float:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    primer()
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def _idle_ms(call: Callable[[], object]) -> float:
    def whole() -> None:
        call()
        torch.cuda.current_stream().synchronize()

    torch.cuda.synchronize()
    return _host_ms(whole)


def _host_us(call: Callable[[], object], calls: int) -> float:
    """Host time of a call whose work on the device is not waited for, the least of some rounds.

    Calls follow one another at once: after a wait of milliseconds the processor's caches have
    been others', and the first call pays for that, whatever it is.
    """
    rounds = []
    for _ in range(HOST_ROUNDS):
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append(1e6 * (time.perf_counter() - start_s) / calls)
    torch.cuda.synchronize()
    return min(rounds)


def print_content(content: dict[str, Any], tasks: int) -> None:
    """Print the figures of all rungs as tables."""
    rows = content['rungs']
    batches = list(rows[0]['networks'][NETWORKS[0]])
    where = content['machine']['gpu'] or f'{content["machine"]["cpu_threads"]} CPU threads'
    for network in NETWORKS:
        columns = [f'{word}, batch {batch}' for batch in batches for word in ('p50', 'p99')]
        title = f'{network} of {content["weights"]} on {where}, ms'
        keys = ('p50_ms', 'p99_ms')
        report.print_table(title, ['', *columns], [_line(r, network, batches, keys) for r in rows])
    columns = ['rotation, deg', 'translation, mm', 'ADD-S, mm', 'off fp32, deg', 'mm']
    table = [[row['name'], *row['pose'].values()] for row in rows]
    report.print_table(f'pose error of {tasks} tracked views (medians)', ['', *columns], table)
    columns = ['opened, s', 'of that built, s', 'GPU memory, MB', 'workspaces, MB']
    once = ('opened_s', 'build_s', 'device_memory_mb', 'workspace_mb')
    table = [[row['name'], *(row.get(key) for key in once)] for row in rows]
    report.print_table('both networks', ['', *columns], table)
    graphed = [r for r in rows if 'hit_us' in r['networks']['refiner'].get(batches[0], {})]
    if graphed:
        columns = [f'{word}, batch {b}' for b in batches for word in ('hit, us', 'MB')]
        table = [_line(row, 'refiner', batches, ('hit_us', 'entry_mb')) for row in graphed]
        title = 'a hit beyond a bare replay, and its memory (refiner)'
        report.print_table(title, ['', *columns], table)


def _line(
    row: dict[str, Any], network: str, batches: list[int], keys: tuple[str, ...]
) -> list[Any]:
    figures = row['networks'][network]
    return [row['name'], *(figures.get(batch, {}).get(key) for batch in batches for key in keys)]
