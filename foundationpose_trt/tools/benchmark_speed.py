"""`benchmark track|register`: whole calls, images in and pose out, beside the plain pipeline."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..datatypes import CameraIntrinsics, Frame, require
from ..pose.backends import NetworkEngines, open_engines
from ..pose.estimator import EstimatorSettings, PoseEstimator
from ..pose.mesh import ObjectMesh
from ..pose.weights import PoseNetworks, load_networks
from ..runtime.choice import BackendChoice, default_folder
from ..runtime.graph_cache import flush_allocator
from ..runtime.tensorrt_api import installed
from ..scenes.metrics import auc, pose_errors
from .benchmark_poses import PoseTask, make_tasks
from .eager_pipeline import EagerPipeline
from .estimator_options import SCHEDULES
from .rungs import Rung
from .timeline import timeline
from .wider_weights import wider_set

EAGER = 'plain eager torch'
CAPACITY = 16  # graphs: a registration takes up to three, every number of objects one more
FEWEST, LIMIT_S = 5, 5.0  # repeats of slow calls, and how long they may take
AWAY_DIAMETERS = 3.0  # where the object of the timed frames is
FOCAL_WIDTHS = 0.94  # focal length over image width: 56 degrees across
TOGETHER = 8
# How much worse than the plain pipeline's a pose may be: far below what the two differ by from
# one set of views to another (README, Accuracy), and what a look at the median can show.
AUC_POINTS, MEDIAN_DEG, MEDIAN_MM = 0.5, 0.3, 0.3


@dataclass(frozen=True)
class Runner:
    """One row of a table: how it is called, what runs it, and with which schedule."""

    name: str
    rung: Rung
    eager: bool = False
    schedule: str = 'full'


class Fast:
    """A PoseEstimator as the benchmark calls it."""

    def __init__(self, meshes: Sequence[ObjectMesh], setting: Setting) -> None:
        self._estimator = PoseEstimator(
            meshes, setting.networks, setting.settings, setting.engines
        )

    def track(self, frame: Frame, poses: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """Track all objects on a frame."""
        found = self._estimator.track_all(frame, dict(enumerate(poses)))
        return [found[index].camera_from_object for index in range(len(poses))]

    def register(self, frame: Frame, mask: np.ndarray) -> np.ndarray | None:
        """Register the first object."""
        return self._estimator.register(frame, mask).camera_from_object


class Eager:
    """The plain pipeline as the benchmark calls it: one object after the other."""

    def __init__(self, meshes: Sequence[ObjectMesh], setting: Setting) -> None:
        self._pipelines = [
            EagerPipeline(mesh, setting.networks, setting.settings) for mesh in meshes
        ]

    def track(self, frame: Frame, poses: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """Track all objects on a frame."""
        pairs = zip(self._pipelines, poses, strict=True)
        return [pipeline.track(frame, pose) for pipeline, pose in pairs]

    def register(self, frame: Frame, mask: np.ndarray) -> np.ndarray | None:
        """Register the first object."""
        try:
            return self._pipelines[0].register(frame, mask)
        except ValueError:
            return None


@dataclass(frozen=True)
class Setting:
    """What a runner runs with; engines: None for the plain pipeline."""

    networks: PoseNetworks
    settings: EstimatorSettings
    engines: NetworkEngines | None
    eager: bool

    def make(self, *meshes: ObjectMesh) -> Fast | Eager:
        """Return what tracks and registers objects."""
        return (Eager if self.eager else Fast)(meshes, self)


def rungs_of(on_cuda: bool) -> list[Rung]:
    """What runs the networks of the fast path here, the fastest last."""
    if not on_cuda:
        return [Rung('torch', 'fp32', device='cpu'), Rung('onnxruntime', 'fp32', device='cpu')]
    found = [Rung('torch', 'fp32'), Rung('torch', 'fp16', True)]
    return found + [
        Rung(name, 'fp16', True) for name in ('tensorrt', 'tensorrt_rtx') if installed(name)
    ]


def track_runners(on_cuda: bool) -> list[Runner]:
    """Rows of `benchmark track`: the plain pipeline and the fast path on every back end."""
    plain = rungs_of(on_cuda)[0]
    return [
        Runner(f'{EAGER} {plain.precision}', plain, eager=True),
        *[Runner(rung.name, rung) for rung in rungs_of(on_cuda)],
    ]


def register_runners(on_cuda: bool) -> list[Runner]:
    """Rows of `benchmark register`: full schedules, then the shorter ones on the fastest."""
    rungs = rungs_of(on_cuda)
    plain, fastest = rungs[0], rungs[-1]
    chosen = rungs[1:] if on_cuda else [fastest]
    rows = [Runner(f'{EAGER} {plain.precision}, full', plain, eager=True)] if on_cuda else []
    rows += [Runner(f'{rung.name}, full', rung) for rung in chosen]
    shorter = [name for name in SCHEDULES if name != 'full']
    return rows + [Runner(f'{fastest.name}, {name}', fastest, schedule=name) for name in shorter]


def run_track(options: argparse.Namespace) -> dict[str, Any]:
    """Measure tracking; figures by row."""
    return _run(options, track_runners, _track_row)


def run_register(options: argparse.Namespace) -> dict[str, Any]:
    """Measure registration; figures by row."""
    return _run(options, register_runners, _register_row)


Row = dict[str, Any]
Measure = Callable[[Setting, argparse.Namespace, list[PoseTask]], Row]


def _run(
    options: argparse.Namespace, runners_of: Callable[[bool], list[Runner]], measure: Measure
) -> dict[str, Any]:
    require(
        min(options.heights) >= 100 and options.repeats >= 1 and options.objects >= 1,
        f'--heights {options.heights} must be 100 or more, --repeats {options.repeats} and'
        f' --objects {options.objects} 1 or more',
    )
    on_cuda = torch.cuda.is_available()
    weights = options.weights
    if options.width:
        folder = (options.engines or default_folder()) / 'wider'
        weights = str(wider_set(weights, options.width, folder))
    runners = runners_of(on_cuda)
    chosen = [
        runner
        for place, runner in enumerate(runners)
        if place == 0 or not options.only or any(w in runner.name for w in options.only)
    ]
    tasks = make_tasks(options.objects, options.views, 'cuda' if on_cuda else 'cpu')
    rows = []
    for runner in tqdm(chosen, desc='rows'):
        with _exact_if(runner.rung.precision == 'fp32'):
            row = _measured(runner, weights, options, tasks, measure)
        rows.append({'name': runner.name, **row})
    return {
        'weights': weights,
        'views': len(tasks),
        'rows': rows,
        'worse': [row['name'] for row in rows[1:] if is_worse(row['pose'], rows[0]['pose'])],
    }


def _exact_if(exact: bool) -> Any:
    """Float32 to the last bit, or torch's default."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=not exact)


def _measured(
    runner: Runner,
    weights: str,
    options: argparse.Namespace,
    tasks: list[PoseTask],
    measure: Measure,
) -> Row:
    rung, before = runner.rung, memory_before_mb()
    networks = load_networks(weights, rung.device, rung.precision)
    engines = None
    if not runner.eager:
        engines = open_engines(networks, BackendChoice(rung.backend, options.engines, build=True))
    settings = EstimatorSettings(
        schedule=SCHEDULES[runner.schedule],
        cuda_graph_cache_capacity=CAPACITY if rung.graphs else 0,
    )
    row = measure(Setting(networks, settings, engines, runner.eager), options, tasks)
    if torch.cuda.is_available():
        both = (networks.refiner, networks.scorer)
        weights_mb = sum(p.nbytes for one in both for p in one.parameters()) / 1e6
        row['memory_mb'] = used_memory_mb() - before - weights_mb
    return row


def memory_before_mb() -> float:
    """Megabytes of the GPU in use once everything of earlier rows is given back; 0 without one."""
    gc.collect()
    if not torch.cuda.is_available():
        return 0.0
    flush_allocator()
    return used_memory_mb()


def used_memory_mb() -> float:
    """Megabytes of the GPU in use, with what torch keeps of its peak."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e6


def timed_frame(height: int, mesh: ObjectMesh) -> tuple[Frame, np.ndarray, np.ndarray]:
    """An image of noise and a wall with an object before it: frame, camera_from_object, mask.

    What is in the image does not change how long a call takes, how large the object is does: its
    crop is about 240 pixels wide at 640x480.
    """
    width = 640 if height == 480 else height * 16 // 9
    k = CameraIntrinsics(
        FOCAL_WIDTHS * width, FOCAL_WIDTHS * width, width / 2, height / 2, width, height
    )
    away_m = AWAY_DIAMETERS * mesh.diameter_m
    rgb = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
    frame = Frame(rgb, np.full((height, width), away_m, np.float32), k)
    centered = np.eye(4)
    centered[2, 3] = away_m
    mask = np.zeros((height, width), bool)
    reach = int(k.fx / AWAY_DIAMETERS / 3)
    mask[height // 2 - reach : height // 2 + reach, width // 2 - reach : width // 2 + reach] = True
    return frame, centered @ mesh.centered_from_object, mask


def timings(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds from images in the host's memory to the pose there: p50, p99, processor time.

    cpu_ms: of all threads of the process, waiting for the GPU in a loop included.
    """
    call()
    start_s = time.perf_counter()
    call()
    slowness_s = time.perf_counter() - start_s
    repeats = max(min(FEWEST, repeats), min(repeats, int(LIMIT_S / slowness_s)))
    samples_ms, cpu_s = [], time.process_time()
    for _ in range(repeats):
        start_s = time.perf_counter()
        call()
        samples_ms.append(1e3 * (time.perf_counter() - start_s))
    cpu_ms = 1e3 * (time.process_time() - cpu_s) / repeats
    p50, p99 = np.percentile(samples_ms, (50, 99))
    return {'p50_ms': float(p50), 'p99_ms': float(p99), 'cpu_ms': cpu_ms}


def _track_row(setting: Setting, options: argparse.Namespace, tasks: list[PoseTask]) -> Row:
    mesh, sizes = tasks[0].mesh, {}
    runner = setting.make(mesh)
    for height in options.heights:
        frame, pose, _ = timed_frame(height, mesh)
        sizes[height] = timings(lambda: runner.track(_again(frame), [pose]), options.repeats)  # noqa: B023
    frame, pose, _ = timed_frame(options.heights[0], mesh)
    row: Row = {'sizes': sizes}
    if torch.cuda.is_available() and not setting.eager:
        row['timeline'] = timeline(lambda: runner.track(frame, [pose]), 20)
    if not setting.eager:  # that takes one after the other
        together = setting.make(*[mesh] * TOGETHER)
        poses = [pose] * TOGETHER
        row['together'] = timings(lambda: together.track(_again(frame), poses), options.repeats)
    row['pose'] = accuracy(tasks, _tracked_poses(setting, tasks))
    return row


def _again(frame: Frame) -> Frame:
    """Make the frame anew, as a node does for every image: its checks are part of a call."""
    return Frame(frame.rgb, frame.depth_m, frame.intrinsics)


def _tracked_poses(setting: Setting, tasks: list[PoseTask]) -> list[np.ndarray | None]:
    return [
        runner.track(task.frame, [task.start])[0] for runner, task in _with_runners(setting, tasks)
    ]


def _with_runners(
    setting: Setting, tasks: list[PoseTask]
) -> Iterable[tuple[Fast | Eager, PoseTask]]:
    """Pair tasks with what runs their object; tasks of one object follow one another."""
    runner: Fast | Eager | None = None
    mesh: ObjectMesh | None = None
    for task in tasks:
        if runner is None or mesh is not task.mesh:
            runner, mesh = setting.make(task.mesh), task.mesh
        yield runner, task


def _register_row(setting: Setting, options: argparse.Namespace, tasks: list[PoseTask]) -> Row:
    mesh, sizes = tasks[0].mesh, {}
    runner = setting.make(mesh)
    for height in options.heights:
        frame, _, mask = timed_frame(height, mesh)
        sizes[height] = timings(lambda: runner.register(_again(frame), mask), options.repeats)  # noqa: B023
    poses = [one.register(task.frame, task.mask) for one, task in _with_runners(setting, tasks)]
    return {'sizes': sizes, 'pose': accuracy(tasks, poses)}


def accuracy(tasks: list[PoseTask], poses: list[np.ndarray | None]) -> dict[str, float]:
    """Errors against the truth: ADD-S and ADD AUC in percent, medians in degrees and mm."""
    errors = [
        pose_errors(task.points, pose, task.truth) for task, pose in zip(tasks, poses, strict=True)
    ]
    return {
        'add_s_auc': 100 * auc([e.add_s_m for e in errors]),
        'add_auc': 100 * auc([e.add_m for e in errors]),
        'rotation_deg': float(np.degrees(np.median([e.rotation_rad for e in errors]))),
        'translation_mm': 1e3 * float(np.median([e.translation_m for e in errors])),
    }


def is_worse(pose: dict[str, float], reference: dict[str, float]) -> bool:
    """Tell whether a row's poses are further from the truth than rounding explains."""
    return (
        pose['add_s_auc'] < reference['add_s_auc'] - AUC_POINTS
        or pose['rotation_deg'] > reference['rotation_deg'] + MEDIAN_DEG
        or pose['translation_mm'] > reference['translation_mm'] + MEDIAN_MM
    )


Table = tuple[str, list[str], list[list[Any]]]


def speed_tables(content: dict[str, Any]) -> list[Table]:
    """Lay the figures out: latencies with pose errors beside them, then the GPU's timeline."""
    rows = content['rows']
    heights = list(rows[0]['sizes'])
    columns = [f'{word}, {height}p' for height in heights for word in ('p50', 'p99', 'CPU')]
    columns += [f'{TOGETHER} objects', 'GPU MB']
    table = [
        [
            row['name'],
            *[row['sizes'][h][key] for h in heights for key in ('p50_ms', 'p99_ms', 'cpu_ms')],
            row.get('together', {}).get('p50_ms'),
            row.get('memory_mb'),
        ]
        for row in rows
    ]
    tables: list[Table] = [
        (f'{content["weights"]}, ms from images to pose', ['', *columns], table),
        (
            f'errors of {content["views"]} views',
            ['', 'ADD-S AUC', 'ADD AUC', 'rotation, deg', 'translation, mm'],
            [[row['name'], *row['pose'].values()] for row in rows],
        ),
    ]
    for row in rows:
        if 'timeline' in row:
            lines = [[r['name'], r['us'], r['launches']] for r in row['timeline']]
            lines.append(['all', sum(r['us'] for r in row['timeline']), None])
            title = f'{row["name"]}: what the GPU does in a tracked frame'
            tables.append((title, ['', 'us', 'launches'], lines))
    for name in content['worse']:
        tables.append((f'{name}: POSES ARE WORSE THAN {rows[0]["name"]}', [], []))
    return tables
