"""Builds the tracker that the parameters ask for; every refusal names the parameter to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
from foundationpose_trt.ros.build_choices import backend_choice, choose_device, naming
from foundationpose_trt.ros.tracker_parameters import TrackerParameters


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
    with naming(f"weights '{weights}' (precision {precision})"):
        networks = load_networks(weights, device, precision)
    with naming(f"backend '{parameters.backend}'"):
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


def tracker_settings(parameters: TrackerParameters) -> TrackerSettings:
    """Map the parameters to the tracker's settings, which have the same names."""
    names = [spec.name for spec in dataclasses.fields(TrackerSettings)]
    return TrackerSettings(**{name: getattr(parameters, name) for name in names})


def _load_mesh(parameters: TrackerParameters) -> ObjectMesh:
    path = Path(parameters.mesh_file_path).expanduser()
    with naming(f"mesh_file_path '{path}' (mesh_scale {parameters.mesh_scale:g})"):
        if not path.is_file():
            raise ValueError('no such file')
        return load_mesh(path, parameters.mesh_scale)
