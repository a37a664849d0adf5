"""`benchmark track|register`: whole calls, images in and pose out, beside the plain pipeline."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..datatypes import Frame, require
from ..pose.backends import NetworkEngines, open_engines
from ..pose.estimator import EstimatorSettings, PoseEstimator
from ..pose.mesh import ObjectMesh
from ..pose.weights import INT8, PoseNetworks, load_networks
from ..runtime.choice import BackendChoice
from ..runtime.tensorrt_api import installed
from ..synthesis.objects import make_object
from .benchmark_detector import measured
from .benchmark_poses import PoseTask, make_tasks
from .eager_pipeline import EagerPipeline
from .estimator_options import SCHEDULES
from .rounding import as_told
from .rungs import Rung
from .speed_measures import (
    PAGE_LOCKED,
    TOGETHER,
    Call,
    PeakMemory,
    Refreshed,
    accuracy,
    is_worse,
    page_locked,
    spread,
    timed_frame,
    timings,
    write_images,
)
from .synthetic_trials import FIRST_VIEW_SEED
from .timeline import timeline
from .wider_weights import use_wider_weights

EAGER = 'plain eager torch'
ENGINES = ('fp16',)  # precisions of TensorRT's engines, where no other is asked for
TIMELINE_CALLS = 20
CAPACITY = 16  # graphs: a registration takes up to four, every number of objects one more


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
    memory: PeakMemory

    def make(self, *meshes: ObjectMesh) -> Fast | Eager:
        """Return what tracks and registers objects."""
        return (Eager if self.eager else Fast)(meshes, self)


def rungs_of(on_cuda: bool, engines: Sequence[str] = ENGINES) -> list[Rung]:
    """What runs the networks of the fast path here, the fastest last.

    engines: precisions of TensorRT's.
    """
    if not on_cuda:
        return [Rung('torch', 'fp32', device='cpu'), Rung('onnxruntime', 'fp32', device='cpu')]
    found = [Rung('torch', 'fp32'), Rung('torch', 'fp16', True)]
    there = [name for name in ('tensorrt', 'tensorrt_rtx') if installed(name)]
    return found + [Rung(name, precision, True) for name in there for precision in engines]


def _plain_runners(on_cuda: bool, schedule: str) -> list[Runner]:
    """The plain pipeline, on a GPU also in half precision, as the published program runs."""
    suffix = f', {schedule}' if schedule else ''
    rungs = [rung for rung in rungs_of(on_cuda) if rung.backend == 'torch']
    return [
        Runner(
            f'{EAGER} {rung.precision}{suffix}',
            Rung('torch', rung.precision, device=rung.device),
            True,
        )
        for rung in rungs
    ]


def track_runners(on_cuda: bool, engines: Sequence[str] = ENGINES) -> list[Runner]:
    """Rows of `benchmark track`: the plain pipeline and the fast path on every back end."""
    return [
        *_plain_runners(on_cuda, ''),
        *[Runner(rung.name, rung) for rung in rungs_of(on_cuda, engines)],
    ]


def register_runners(on_cuda: bool, engines: Sequence[str] = ENGINES) -> list[Runner]:
    """Rows of `benchmark register`: full schedules, then the shorter ones on what is fastest."""
    rungs = rungs_of(on_cuda, engines)
    last = rungs[-1]
    fastest = [r for r in rungs if (r.backend, r.graphs) == (last.backend, last.graphs)]
    rows = _plain_runners(on_cuda, 'full') if on_cuda else []  # on a CPU it would take minutes
    rows += [Runner(f'{r.name}, full', r) for r in (rungs[1:] if on_cuda else fastest)]
    shorter = [name for name in SCHEDULES if name != 'full']
    return rows + [Runner(f'{r.name}, {n}', r, schedule=n) for r in fastest for n in shorter]


def run_track(options: argparse.Namespace) -> dict[str, Any]:
    """Measure tracking; figures by row."""
    return _with_timelines(*_run(options, track_runners, _track_row), options, _tracking)


def run_register(options: argparse.Namespace) -> dict[str, Any]:
    """Measure registration; figures by row."""
    return _with_timelines(*_run(options, register_runners, _register_row), options, _registering)


CallsOf = Callable[[Setting, int], dict[str, Call]]


def _with_timelines(
    content: dict[str, Any],
    runners: list[Runner],
    options: argparse.Namespace,
    calls_of: CallsOf,
) -> dict[str, Any]:
    """Add what the GPU does, when all is measured: the profiler stays in the process."""
    if torch.cuda.is_available():
        for runner, row in zip(runners, content['rows'], strict=True):
            if not runner.eager and 'failed' not in row:
                made = partial(_timelines, runner, options, calls_of)
                found = measured(f'timeline of {runner.name}', made)
                if 'failed' not in found:
                    row |= found
    return content


Row = dict[str, Any]
RunnersOf = Callable[[bool, Sequence[str]], list[Runner]]
Measure = Callable[[Setting, argparse.Namespace, list[PoseTask]], Row]


def _run(
    options: argparse.Namespace,
    runners_of: RunnersOf,
    measure: Measure,
) -> tuple[dict[str, Any], list[Runner]]:
    """Measure the runners; returns the figures and who they are of."""
    require(
        min(options.heights) >= 100 and options.repeats >= 1 and options.objects >= 1,
        f'--heights {options.heights} must be 100 or more, --repeats {options.repeats} and'
        f' --objects {options.objects} 1 or more',
    )
    on_cuda = torch.cuda.is_available()
    use_wider_weights(options)
    runners = runners_of(on_cuda, (*ENGINES, INT8) if options.int8 else ENGINES)
    chosen = [
        runner
        for place, runner in enumerate(runners)
        if place == 0 or not options.only or any(w in runner.name for w in options.only)
    ]
    tasks = make_tasks(options.objects, options.views, 'cuda' if on_cuda else 'cpu')
    if on_cuda:
        _load_libraries()
    rows = [
        measured(runner.name, partial(_measured, runner, options, tasks, measure))
        for runner in tqdm(chosen, desc='rows')
    ]
    good = [row for row in rows if 'failed' not in row]
    require(len(good) > 0, f'nothing could be measured: {rows}')
    content = {
        'weights': options.weights,
        'views': len(tasks),
        'rows': rows,
        'worse': [row['name'] for row in good[1:] if is_worse(row, good[0])],
        'failed': [row['name'] for row in rows if 'failed' in row],
    }
    return content, chosen


def _load_libraries() -> None:
    """Have cuDNN and cuBLAS in memory before any row, which would pay for all."""
    for dtype in (torch.float32, torch.float16):
        image = torch.zeros(1, 8, 16, 16, dtype=dtype, device='cuda')
        torch.conv2d(image, image[:, :, :3, :3]).flatten() @ image.flatten()[:196]
    torch.cuda.synchronize()


def _measured(
    runner: Runner,
    options: argparse.Namespace,
    tasks: list[PoseTask],
    measure: Measure,
) -> Row:
    with as_told(runner.rung):
        setting = _open(runner, options)
        return {'name': runner.name, **measure(setting, options, tasks)}


def _open(runner: Runner, options: argparse.Namespace) -> Setting:
    rung, memory = runner.rung, PeakMemory()
    networks = load_networks(options.weights, rung.device, rung.precision)
    engines = None
    if not runner.eager:
        engines = open_engines(networks, BackendChoice(rung.backend, options.engines, build=True))
    settings = EstimatorSettings(
        schedule=SCHEDULES[runner.schedule],
        cuda_graph_cache_capacity=CAPACITY if rung.graphs else 0,
    )
    return Setting(networks, settings, engines, runner.eager, memory)


def _timelines(
    runner: Runner,
    options: argparse.Namespace,
    calls_of: CallsOf,
) -> Row:
    """What the GPU does in a call of each kind, as a part of the row."""
    found = {}
    with as_told(runner.rung):
        for name, call in calls_of(_open(runner, options), options.heights[0]).items():
            for _ in range(3):
                call()
            found[name] = timeline(call, TIMELINE_CALLS)
    return {'timelines': found}


def _tracking(setting: Setting, height: int) -> dict[str, Call]:
    mesh = make_object(FIRST_VIEW_SEED)
    one, several = setting.make(mesh), setting.make(*[mesh] * TOGETHER)
    return {
        f'{name}{where}': call
        for name, calls in (
            ('one object', _track_calls(one, mesh, height)),
            (f'{TOGETHER} objects', _track_calls(several, mesh, height, TOGETHER)),
        )
        for where, call in zip(('', ', page-locked'), calls, strict=False)
    }


def _registering(setting: Setting, height: int) -> dict[str, Call]:
    mesh = make_object(FIRST_VIEW_SEED)
    return {'registration': _register_call(setting.make(mesh), mesh, height)}


def _track_row(setting: Setting, options: argparse.Namespace, tasks: list[PoseTask]) -> Row:
    mesh, repeats, (first, *others) = tasks[0].mesh, options.repeats, options.heights
    runner = setting.make(mesh)
    larger = {h: timings(*_track_calls(runner, mesh, h), repeats=repeats) for h in others}
    one = _track_calls(runner, mesh, first)
    one[0]()
    row: Row = setting.memory.figures(setting.networks)
    several = []
    if not setting.eager:  # that takes one after the other
        several = _track_calls(setting.make(*[mesh] * TOGETHER), mesh, first, TOGETHER)
    found = timings(*one, *several, repeats=repeats)
    by_height, together = {first: found[: len(one)], **larger}, found[len(one) :]
    for way in range(len(one)):
        figures: Row = {'sizes': {height: each[way] for height, each in by_height.items()}}
        if together:
            figures['together'] = together[way]
        row |= {PAGE_LOCKED: figures} if way else figures
    return {**row, **accuracy(tasks, _tracked_poses(setting, tasks))}


def _track_calls(
    runner: Fast | Eager, mesh: ObjectMesh, height: int, count: int = 1
) -> list[Call]:
    """Return calls that track one object of a timed frame, or several all over it.

    Of images in ordinary memory; then, where that makes a difference, in page-locked. Both are
    written anew before each call, which does not count, as they come with each message.
    """
    source, pose, _ = timed_frame(height, mesh)
    poses = [pose] if count == 1 else spread(source, pose, mesh)
    frames = [replace(source, rgb=source.rgb.copy(), depth_m=source.depth_m.copy())]
    if torch.cuda.is_available() and isinstance(runner, Fast):
        frames.append(page_locked(source))
    return [
        Refreshed(partial(_track, runner, frame, poses), partial(write_images, frame, source))
        for frame in frames
    ]


def _track(runner: Fast | Eager, frame: Frame, poses: Sequence[np.ndarray]) -> object:
    return runner.track(_again(frame), poses)


def _register_call(runner: Fast | Eager, mesh: ObjectMesh, height: int) -> Call:
    """Return a call that registers the object of a timed frame."""
    frame, _, mask = timed_frame(height, mesh)
    return lambda: runner.register(_again(frame), mask)


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
        call = _register_call(runner, mesh, height)
        (sizes[height],) = timings(call, repeats=options.repeats)
    memory = setting.memory.figures(setting.networks)
    poses = [one.register(task.frame, task.mask) for one, task in _with_runners(setting, tasks)]
    return {'sizes': sizes, **memory, **accuracy(tasks, poses)}
