"""Builds the tracker that the parameters ask for; every refusal names the parameter to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from foundationpose_trt.datatypes import CameraIntrinsics
from foundationpose_trt.pose.backends import Progress, open_engines
from foundationpose_trt.pose.estimator import (
    FULL_SCHEDULE,
    PRUNED_SCHEDULE,
    EstimatorSettings,
    PoseEstimator,
    RegisterStage,
)
from foundationpose_trt.pose.mesh import ObjectMesh, load_mesh
from foundationpose_trt.pose.tracker import ObjectTracker, TrackerSettings
from foundationpose_trt.pose.weights import load_networks
from foundationpose_trt.ros.tracker_parameters import TrackerParameters
from foundationpose_trt.runtime.choice import BackendChoice


class BuiltTracker(NamedTuple):
    """A tracker, and what must run once before its first frame."""

    tracker: ObjectTracker
    warm_up: Callable[[CameraIntrinsics], None]
    description: str
    set_cuda_graph_cache_capacity: Callable[[int], None] = lambda capacity: None


def build_tracker(parameters: TrackerParameters, report: Progress | None = None) -> BuiltTracker:
    """Load mesh, networks and engines; raises ValueError naming the parameter that must change.

    report is called while an engine is built.
    """
    mesh = _load_mesh(parameters)
    device = choose_device(parameters.device)
    weights, precision = choose_networks(parameters, device)
    with _naming(f"weights '{weights}' (precision {precision})"):
        networks = load_networks(weights, device, precision)
    with _naming(f"backend '{parameters.backend}'"):
        engines = open_engines(networks, backend_choice(parameters), report)
    settings = estimator_settings(parameters, device)
    estimator = PoseEstimator(mesh, networks, settings, engines)
    description = (
        f'{mesh.name}: diameter {mesh.diameter_m * 1e3:.1f} mm, {len(mesh.faces)} triangles;'
        f' weights {networks.name} on {device}, {precision}, by {engines.explanation}'
    )
    tracker = ObjectTracker(estimator, tracker_settings(parameters))
    set_capacity = estimator.inference.set_cuda_graph_cache_capacity
    return BuiltTracker(tracker, estimator.warm_up, description, set_capacity)


def choose_device(device: str) -> str:
    """Return 'cpu' or 'cuda'; raises ValueError when CUDA is asked for and not there."""
    if device == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            f'device is cuda, but torch {torch.__version__} finds no CUDA GPU: install a CUDA'
            ' build of torch and a driver, or set device to auto or cpu'
        )
    return device


def choose_networks(parameters: TrackerParameters, device: str) -> tuple[str, str]:
    """Return weights and precision with auto filled in by the device."""
    on_gpu = device == 'cuda'
    weights, precision = parameters.weights, parameters.precision
    if weights == 'auto':
        weights = 'base' if on_gpu else 'small'
    if precision == 'auto':
        precision = 'fp16' if on_gpu else 'fp32'
    return weights, precision


def estimator_settings(parameters: TrackerParameters, device: str) -> EstimatorSettings:
    """Map the parameters to the estimator's settings; schedule auto: full on CUDA, else pruned."""
    pruned = parameters.register_schedule == 'pruned' or (
        parameters.register_schedule == 'auto' and device == 'cpu'
    )
    full = (RegisterStage(parameters.refine_iterations, FULL_SCHEDULE[0].keep),)
    return EstimatorSettings(
        schedule=PRUNED_SCHEDULE if pruned else full,
        track_iterations=parameters.track_refine_iterations,
        min_depth_m=parameters.min_depth_m,
        max_depth_m=parameters.max_depth_m,
        cuda_graph_cache_capacity=parameters.cuda_graph_cache_capacity,
    )


def backend_choice(parameters: TrackerParameters) -> BackendChoice:
    """Map the parameters to the choice of the back end."""
    folder = Path(parameters.engines_folder).expanduser() if parameters.engines_folder else None
    return BackendChoice(parameters.backend, folder, parameters.build_engines)


def tracker_settings(parameters: TrackerParameters) -> TrackerSettings:
    """Map the parameters to the tracker's settings, which have the same names."""
    names = [spec.name for spec in dataclasses.fields(TrackerSettings)]
    return TrackerSettings(**{name: getattr(parameters, name) for name in names})


def _load_mesh(parameters: TrackerParameters) -> ObjectMesh:
    path = Path(parameters.mesh_file_path).expanduser()
    with _naming(f"mesh_file_path '{path}' (mesh_scale {parameters.mesh_scale:g})"):
        if not path.is_file():
            raise ValueError('no such file')
        return load_mesh(path, parameters.mesh_scale)


@contextmanager
def _naming(parameter: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f'parameter {parameter}: {error}') from error
