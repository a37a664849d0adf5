"""Builds the tracker that the parameters ask for; every refusal names the parameter to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundationpose_trt.datatypes import CameraIntrinsics, require
from foundationpose_trt.pose.backends import Progress, open_engines
from foundationpose_trt.pose.estimator import (
    FULL_SCHEDULE,
    PRUNED_SCHEDULE,
    EstimatorSettings,
    PoseEstimator,
    RegisterStage,
)
from foundationpose_trt.pose.mesh import ObjectMesh, load_mesh
from foundationpose_trt.pose.object_group import ObjectGroup
from foundationpose_trt.pose.symmetry import symmetry_rotations
from foundationpose_trt.pose.tracker import TrackerSettings
from foundationpose_trt.pose.weights import load_networks
from foundationpose_trt.ros.build_choices import backend_choice, choose_device, naming
from foundationpose_trt.ros.conversions import EmptyImage
from foundationpose_trt.ros.runtime_figures import gpu_memory, graph_figures
from foundationpose_trt.ros.tracker_parameters import ObjectParameters, TrackerParameters

Nested = Mapping[str, ObjectParameters]


@dataclass(frozen=True)
class NamedObject:
    """One object. topic: what goes before its topics' names, '' for the only one.

    mask_label: its value in the segmentation, 0: any. mesh: None in tests without one.
    """

    name: str
    class_id: str
    tf_frame: str
    topic: str = ''
    mask_label: int = 0
    mesh: ObjectMesh | None = None


@dataclass(frozen=True)
class BuiltTracker:
    """A group of trackers, and what belongs to it.

    warm_up: must run once before the first frame. apply: puts live parameters in force, between
    two frames. labels: values of the objects in the segmentation. runtime: figures for the
    summary. upload_ms: of the frame before, None when there is none. empty_image: makes arrays for
    the images of frames, of a shape and a numpy dtype.
    """

    group: Any
    objects: tuple[NamedObject, ...]
    warm_up: Callable[[CameraIntrinsics], None]
    description: str
    apply: Callable[[TrackerParameters], None] = lambda parameters: None
    runtime: Callable[[], dict[str, Any]] = dict
    upload_ms: Callable[[], float | None] = lambda: None
    empty_image: EmptyImage = np.empty


def build_tracker(
    parameters: TrackerParameters, nested: Nested, report: Progress | None = None
) -> BuiltTracker:
    """Load meshes, networks and engines; raises ValueError naming the parameter to change.

    nested: the parameters of each object by name, in the order of `objects`. report is called
    while an engine is built.
    """
    objects = named_objects(parameters, nested)
    device = choose_device(parameters.device)
    weights, precision = choose_networks(parameters, device)
    with naming(f"weights '{weights}' (precision {precision})"):
        networks = load_networks(weights, device, precision)
    with naming(f"backend '{parameters.backend}'"):
        engines = open_engines(networks, backend_choice(parameters), report)
    meshes = [one.mesh for one in objects if one.mesh is not None]
    settings = estimator_settings(parameters, nested, device)
    estimator = PoseEstimator(meshes, networks, settings, engines)
    group = ObjectGroup(estimator, [tracker_settings(parameters)] * len(objects))
    by = f'weights {networks.name} on {device}, {precision}, by {engines.explanation}'

    def apply(changed: TrackerParameters) -> None:
        estimator.set_settings(estimator_settings(changed, nested, device))
        group.set_settings([tracker_settings(changed)] * len(objects))

    return BuiltTracker(
        group, objects, estimator.warm_up, f'{described(meshes)}; {by}', apply,
        lambda: runtime_figures(estimator, engines.explanation), estimator.upload_ms,
        estimator.empty_image,
    )  # fmt: skip


def named_objects(parameters: TrackerParameters, nested: Nested) -> tuple[NamedObject, ...]:
    """Load the meshes; raises ValueError naming the parameter that must change."""
    if not nested:
        mesh = _load_mesh('', parameters.mesh_file_path, parameters.mesh_scale)
        class_id = parameters.class_id or mesh.name
        return (NamedObject(mesh.name, class_id, parameters.tf_frame_name, mesh=mesh),)
    found = []
    for place, (name, one) in enumerate(nested.items(), 1):
        mesh = _load_mesh(f'{name}.', one.mesh_file_path, one.mesh_scale)
        frame, label = one.tf_frame_name or name, one.mask_label or place
        found.append(NamedObject(name, one.class_id or name, frame, f'{name}/', label, mesh))
    _require_apart('mask_label', {one.name: one.mask_label for one in found})
    _require_apart('tf_frame_name', {one.name: one.tf_frame for one in found})
    return tuple(found)


def _require_apart(field: str, values: Mapping[str, object]) -> None:
    """Raise ValueError for two objects that have the same value."""
    owners: dict[object, str] = {}
    for name, value in values.items():
        other = owners.setdefault(value, name)
        require(
            other == name,
            f'parameters {other}.{field} and {name}.{field} are both {value}: each needs one'
            ' of its own (by default its place in objects, or its name)',
        )


def described(meshes: list[ObjectMesh]) -> str:
    """Return names and sizes of meshes, for the log."""
    return ', '.join(
        f'{mesh.name}: diameter {mesh.diameter_m * 1e3:.1f} mm, {len(mesh.faces)} triangles'
        for mesh in meshes
    )


def choose_networks(parameters: TrackerParameters, device: str) -> tuple[str, str]:
    """Return weights and precision with auto filled in by the device."""
    on_gpu = device == 'cuda'
    weights, precision = parameters.weights, parameters.precision
    if weights == 'auto':
        weights = 'base' if on_gpu else 'small'
    if precision == 'auto':
        precision = 'fp16' if on_gpu else 'fp32'
    return weights, precision


def estimator_settings(
    parameters: TrackerParameters, nested: Nested, device: str
) -> list[EstimatorSettings]:
    """Map the parameters to the settings of each object."""
    if not nested:
        return [_settings(parameters, parameters.symmetry_axes, device)]
    found = []
    for one in nested.values():
        own = dataclasses.replace(
            parameters,
            refine_iterations=one.refine_iterations or parameters.refine_iterations,
            track_refine_iterations=one.track_refine_iterations
            or parameters.track_refine_iterations,
        )
        found.append(_settings(own, one.symmetry_axes, device))
    return found


def _settings(
    parameters: TrackerParameters, symmetry_axes: tuple[str, ...], device: str
) -> EstimatorSettings:
    """Schedule auto: full on CUDA, else pruned."""
    automatic = 'pruned' if device == 'cpu' else 'full'
    chosen = parameters.register_schedule
    full = (RegisterStage(parameters.refine_iterations, FULL_SCHEDULE[0].keep),)
    schedules = {'full': full, 'pruned': PRUNED_SCHEDULE}
    return EstimatorSettings(
        schedule=schedules[automatic if chosen == 'auto' else chosen],
        chunk=parameters.register_chunk,
        track_iterations=parameters.track_refine_iterations,
        min_depth_m=parameters.min_depth_m,
        max_depth_m=parameters.max_depth_m,
        symmetries=symmetry_rotations(symmetry_axes),
        cuda_graph_cache_capacity=parameters.cuda_graph_cache_capacity,
    )


def tracker_settings(parameters: TrackerParameters) -> TrackerSettings:
    """Map the parameters to the tracker's settings; most have the same names."""
    names = [spec.name for spec in dataclasses.fields(TrackerSettings)]
    values = {name: getattr(parameters, name) for name in names if name != 'timeout_s'}
    return TrackerSettings(**values, timeout_s=parameters.tracking_timeout_ms / 1e3)


def runtime_figures(estimator: PoseEstimator, backend: str) -> dict[str, Any]:
    """Return the back end, how the CUDA graphs do and the GPU memory, for the summary."""
    stats = list(estimator.inference.stats().values())
    return {'backend': backend, **graph_figures(stats), **gpu_memory(estimator.device)}


def _load_mesh(prefix: str, file: str, scale: float) -> ObjectMesh:
    require(
        bool(file),
        f'parameter {prefix}mesh_file_path is empty: set it to the mesh of the object (obj, ply,'
        ' glb or stl)',
    )
    path = Path(file).expanduser()
    with naming(f"{prefix}mesh_file_path '{path}' (mesh_scale {scale:g})"):
        if not path.is_file():
            raise ValueError('is a folder, not a file' if path.is_dir() else 'no such file')
        return load_mesh(path, scale)
