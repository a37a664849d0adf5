"""`foundationpose-trt evaluate`: accuracy on held-out synthetic objects."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ..datatypes import CameraIntrinsics, require
from ..pose.mesh import load_mesh
from ..scenes.bop import BopScene
from ..scenes.metrics import (
    RECALL_DIAMETER_SHARE,
    PoseErrors,
    is_lost,
    recall,
    summarize_errors,
)
from ..synthesis.objects import make_object
from . import report
from .estimator_options import EstimatorChoice, add_estimator_arguments, chosen_estimator
from .replay import replay_content, replay_scene
from .synthetic_trials import (
    FIRST_TRACK_SEED,
    FIRST_VIEW_SEED,
    MOTIONS,
    TrackResult,
    TrackTrial,
    Trial,
    ViewResult,
    ViewTrial,
    run_trials,
)

HELP = 'measure registration and tracking on held-out synthetic objects'
# (CUDA, CPU): the CPU's set is a smoke test of a few minutes
DEFAULTS = {'objects': (100, 6), 'frames_per_object': (4, 2), 'tracks': (40, 3)}
VISIBILITY_BINS = (0.3, 0.5, 0.7, 0.9, 1.01)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for name, (cuda, cpu) in DEFAULTS.items():
        parser.add_argument(
            f'--{name.replace("_", "-")}', type=int, help=f'default {cuda}, on a CPU {cpu}'
        )
    parser.add_argument('--track-length', type=int, default=100, help='frames, default 100')
    parser.add_argument('--gt-init', action='store_true', help='start tracks from the true pose')
    parser.add_argument(
        '--mask-error', type=int, default=0, metavar='PX',
        help='shift and grow or shrink masks by up to PX pixels (default 0: exact masks)',
    )  # fmt: skip
    parser.add_argument(
        '--real', type=Path, nargs='+', default=[], metavar='SCENE',
        help='BOP scenes to add: objects are registered in a single frame, tracked in a sequence',
    )  # fmt: skip
    parser.add_argument('--workers', type=int, help='processes; default by the cores')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all errors and totals')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='write accuracy curves')
    add_estimator_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the tables and write what was asked for."""
    start = time.perf_counter()
    choice = chosen_estimator(options)
    on_cuda = choice.device.startswith('cuda')
    for name, (cuda, cpu) in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, cuda if on_cuda else cpu)
        value, word = getattr(options, name), name.replace('_', '-')
        require(value >= 0, f'--{word} is {value}, must not be negative')
    require(options.mask_error >= 0, f'--mask-error is {options.mask_error}, must not be negative')
    require(
        options.workers is None or options.workers >= 1,
        f'--workers is {options.workers}, must be at least 1',
    )
    if options.plot:
        report.check_plot(options.plot)
    trials = _trials(options)
    real = [BopScene.open(folder) for folder in options.real]  # a wrong path fails at once
    _compile_kernels(choice)
    workers = options.workers or _default_workers(on_cuda, len(trials))
    views, tracks = _run_all(trials, choice, workers)
    content = {
        'weights': choice.weights,
        'device': choice.device,
        'precision': choice.precision,
        'schedule': choice.schedule,
        'options': {n: v for n, v in vars(options).items() if isinstance(v, (int, bool))},
        **evaluation_content(views, tracks),
        'real': {str(scene.folder): _real_totals(scene, choice) for scene in real},
        'seconds': time.perf_counter() - start,
    }
    if options.json:
        report.write_json(options.json, content)
    if options.plot and trials:
        report.save_plot(options.plot, plot_evaluation(views, tracks, choice.weights))
    print_evaluation(content)
    return 0


def _trials(options: argparse.Namespace) -> list[Trial]:
    """Tracks first: they take longest, so none is left to run alone at the end."""
    kinds = list(MOTIONS)
    require(
        options.objects == 0 or options.frames_per_object >= 1,
        f'--frames-per-object is {options.frames_per_object}, must be at least 1; --objects 0'
        ' leaves registration out',
    )
    require(options.track_length >= 10, f'--track-length is {options.track_length}, below 10')
    tracks: list[Trial] = [
        TrackTrial(FIRST_TRACK_SEED + k, options.track_length, kinds[k % 3], options.gt_init)
        for k in range(options.tracks)
    ]
    views: list[Trial] = [
        ViewTrial(FIRST_VIEW_SEED + k, options.frames_per_object, options.mask_error)
        for k in range(options.objects)
    ]
    require(
        len(tracks) + len(views) + len(options.real) > 0,
        '--objects 0, --tracks 0 and no --real: nothing to evaluate',
    )
    return tracks + views


def _compile_kernels(choice: EstimatorChoice) -> None:
    """Fill the kernel cache and find missing weights before many processes try to."""
    mesh = make_object(FIRST_VIEW_SEED)
    estimator = choice.estimator(mesh)
    estimator.warm_up(CameraIntrinsics(600, 600, 320, 240, 640, 480))


def _default_workers(on_cuda: bool, trials: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return max(1, min((cores or 1) - 2 if on_cuda else (cores or 1), 12, trials))


def _run_all(
    trials: list[Trial], choice: EstimatorChoice, workers: int
) -> tuple[list[ViewResult], list[TrackResult]]:
    results: dict[int, Any] = {}
    frames = [t.views if isinstance(t, ViewTrial) else t.frames for t in trials]
    with tqdm(total=sum(frames), desc='evaluating', unit='frame') as progress:
        for index, result in run_trials(trials, choice, workers):
            results[index] = result
            progress.update(frames[index])
    ordered = [results[index] for index in range(len(trials))]
    tracks = [result for result in ordered if isinstance(result, TrackResult)]
    views = [view for result in ordered if isinstance(result, list) for view in result]
    return views, tracks


def _real_totals(scene: BopScene, choice: EstimatorChoice) -> dict[str, Any]:
    """Return the totals of each object of a BOP scene with models in millimetres."""
    mode = 'register' if len(scene.frame_ids) == 1 else 'track'
    totals = {}
    for object_id in scene.object_ids:
        mesh = load_mesh(scene.model_path(object_id), 0.001)
        estimator = choice.estimator(mesh)
        replay = replay_scene(scene, object_id, estimator, mode)
        totals[f'{mode} {object_id}'] = replay_content(replay, mesh.diameter_m)['totals']
    return totals


def evaluation_content(views: list[ViewResult], tracks: list[TrackResult]) -> dict[str, Any]:
    """Return totals, breakdowns and every error, as written to JSON."""
    content: dict[str, Any] = {}
    if views:
        content['register'] = {
            'totals': view_totals(views),
            'by_visibility': _split(views, _visibility_bin, view_totals),
            'by_family': _split(views, lambda view: view.family, view_totals),
            'frames': [_view_content(view) for view in views],
        }
    if tracks:
        content['track'] = {
            'totals': track_totals(tracks),
            'by_motion': _split(tracks, lambda track: track.motion, track_totals),
            'tracks': [_track_content(track) for track in tracks],
        }
    return content


def view_totals(views: Sequence[ViewResult]) -> dict[str, Any]:
    """Summarise registrations; recall_sym_0_1d takes ADD-S for symmetric objects, else ADD."""
    return _totals(
        [v.errors for v in views], [v.diameter_m for v in views], [v.symmetric for v in views]
    )


def track_totals(tracks: Sequence[TrackResult]) -> dict[str, Any]:
    """Summarise all frames of all tracks and how many tracks were lost (metrics.is_lost)."""
    totals = _totals(
        [e for t in tracks for e in t.errors],
        [t.diameter_m for t in tracks for _ in t.errors],
        [t.symmetric for t in tracks for _ in t.errors],
    )
    lost = sum(is_lost(t.errors, t.diameter_m) for t in tracks)
    totals.update(tracks=len(tracks), tracks_lost=lost, lost_percent=100 * lost / len(tracks))
    return totals


def _totals(
    errors: list[PoseErrors], diameters_m: list[float], symmetric: list[bool]
) -> dict[str, Any]:
    either = [e.add_s_m if s else e.add_m for e, s in zip(errors, symmetric, strict=True)]
    limits = RECALL_DIAMETER_SHARE * np.asarray(diameters_m)
    totals: dict[str, Any] = summarize_errors(errors, diameters_m)
    return {**totals, 'recall_sym_0_1d': 100 * recall(either, limits)}


def _visibility_bin(view: ViewResult) -> str:
    k = int(np.searchsorted(VISIBILITY_BINS, view.visible_share, side='right'))
    low, high = VISIBILITY_BINS[k - 1], min(1.0, VISIBILITY_BINS[k])
    return f'{100 * low:.0f}-{100 * high:.0f} % visible'


def _split(
    items: Iterable[Any], key: Callable[[Any], str], totals: Callable[[list[Any]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return {name: totals(groups[name]) for name in sorted(groups)}


def _error_content(errors: PoseErrors) -> dict[str, float]:
    return {
        'add_mm': 1e3 * errors.add_m,
        'add_s_mm': 1e3 * errors.add_s_m,
        'rotation_deg': float(np.degrees(errors.rotation_rad)),
        'translation_mm': 1e3 * errors.translation_m,
    }


def _object_content(result: ViewResult | TrackResult) -> dict[str, Any]:
    return {
        'seed': result.seed,
        'family': result.family,
        'symmetric': result.symmetric,
        'diameter_mm': 1e3 * result.diameter_m,
    }


def _view_content(view: ViewResult) -> dict[str, Any]:
    return {
        **_object_content(view),
        'visible_share': view.visible_share,
        'outcome': view.outcome.value,
        **_error_content(view.errors),
    }


def _track_content(track: TrackResult) -> dict[str, Any]:
    return {
        **_object_content(track),
        'motion': track.motion,
        'lost': is_lost(track.errors, track.diameter_m),
        'registrations': track.registrations,
        'visible_share': track.visible_share,
        'outcomes': [outcome.value for outcome in track.outcomes],
        'errors': [_error_content(e) for e in track.errors],
    }


def print_evaluation(content: dict[str, Any]) -> None:
    """Print the totals and what they split into."""
    settings = ', '.join(content[k] for k in ('weights', 'device', 'precision', 'schedule'))
    groups: dict[str, Any] = {
        k: content[k]['totals'] for k in ('register', 'track') if k in content
    }
    if groups:
        report.print_totals(f'held-out synthetic objects ({settings})', groups)
        print(
            'ADD counts every turn of a symmetric or plain object as an error; ADD(-S) takes ADD-S'
            ' for the objects found symmetric, ADD for the others.'
        )
    if 'register' in content:
        report.print_totals('registration by visible share', content['register']['by_visibility'])
    if 'track' in content:
        report.print_totals('tracking by motion', content['track']['by_motion'])
    for folder, totals in content['real'].items():
        report.print_totals(f'real images, {folder}', totals)
    print(f'{content["seconds"]:.0f} s')


def plot_evaluation(views: list[ViewResult], tracks: list[TrackResult], weights: str) -> Figure:
    """Draw accuracy curves of registration and tracking and the tracks' error over time."""
    pooled = {'registration': [v.errors for v in views]}
    pooled['tracking'] = [e for t in tracks for e in t.errors]
    shown = {name: errors for name, errors in pooled.items() if errors}
    figure, axes = report.new_axes(len(shown) + bool(tracks), f'held-out objects, {weights}')
    for axis, (name, errors) in zip(axes, shown.items(), strict=False):
        axis.set_title(name)
        report.draw_accuracy(
            axis, {'ADD': [e.add_m for e in errors], 'ADD-S': [e.add_s_m for e in errors]}
        )
    if tracks:
        errors_mm = np.array([[1e3 * e.add_s_m for e in t.errors] for t in tracks])
        frames = errors_mm.shape[1]
        axes[-1].set_title(f'{len(tracks)} tracks')
        report.draw_error_over_time(axes[-1], errors_mm, (frames // 3, frames - frames // 3 - 1))
    return figure
