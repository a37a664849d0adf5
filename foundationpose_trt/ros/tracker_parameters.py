"""The parameters of tracker_node, with their units and limits; config/tracker.yaml shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundationpose_trt.pose.backends import BACKENDS
from foundationpose_trt.pose.symmetry import symmetry_rotations
from foundationpose_trt.ros.camera_parameters import CameraNodeParameters
from foundationpose_trt.ros.parameters import check_values, parameter

NAME = re.compile('[A-Za-z](_?[A-Za-z0-9])*')
MOST_OBJECTS = 32
RESERVED_NAMES = ('debug', 'latency', 'qos_overrides')


@dataclass(frozen=True)
class TrackerParameters(CameraNodeParameters):
    """Values in force for one run of tracker_node. Raises ValueError naming what is wrong."""

    objects: tuple[str, ...] = parameter(
        (), 'names of several objects, each with parameters NAME.mesh_file_path and so on; empty:'
        ' one object, described by the parameters without a name',
    )  # fmt: skip
    mesh_file_path: str = parameter(
        '', 'mesh of the object: obj, ply, glb or stl; required unless objects are named'
    )
    mesh_scale: float = parameter(
        1.0, 'factor from file units to metres: 0.001 for a mesh in mm', limits=(1e-6, 1e6)
    )
    class_id: str = parameter(
        '', "what the output calls the object; empty: its name, of a single one its mesh's"
    )
    symmetry_axes: tuple[str, ...] = parameter(
        (), 'turns that leave the object as it is: x_180, y_90 or z_full, about axes of its mesh,'
        ' in degrees',
    )  # fmt: skip
    tf_frame_name: str = parameter(
        'fp_object', 'child frame of the transform that is broadcast; several objects: their names'
    )
    publish_tf: bool = parameter(
        True, 'broadcast the pose as a transform, where tf2_ros is installed', live=True
    )
    weights: str = parameter(
        'auto', 'weight set: small, base or a folder; auto: base on CUDA, small on a CPU'
    )
    precision: str = parameter(
        'auto', 'numbers of the networks; fp16 needs CUDA, auto takes it there; int8 needs engines'
        ' of TensorRT: convolutions over both images in integers, the rest in fp16',
        choices=('auto', 'fp32', 'fp16', 'int8'),
    )  # fmt: skip
    backend: str = parameter(
        'auto', 'what runs the networks; auto: TensorRT engines that are there and fit, else'
        ' torch; on a CPU ONNX Runtime where it is installed', choices=BACKENDS,
    )  # fmt: skip
    register_schedule: str = parameter(
        'auto', 'full: refine and score all hypotheses, as published; pruned: drop those early'
        ' that depth and scorer tell to be wrong, at a third of the cost; auto: full on CUDA,'
        ' pruned on a CPU', choices=('auto', 'full', 'pruned'),
    )  # fmt: skip
    register_chunk: int = parameter(
        0, 'hypotheses that go through the networks at once when registering: fewer need less'
        ' memory and take longer; 0: 126 on CUDA, 16 on a CPU', '', (0, 252),
    )  # fmt: skip
    refine_iterations: int = parameter(
        5,
        'refinements of every hypothesis when registering with the full schedule',
        '',
        (1, 20),
        live=True,
    )
    track_refine_iterations: int = parameter(
        2, 'refinements of the last pose per tracked frame', '', (1, 20), live=True
    )
    min_depth_m: float = parameter(
        0.1, 'nearest distance at which the object is looked for', 'm', (0.0, 100.0), live=True
    )
    max_depth_m: float = parameter(
        10.0, 'farthest distance at which the object is looked for', 'm', (0.0, 100.0), live=True
    )
    min_agreement: float = parameter(
        0.6,
        'least share of agreeing depth where the pose could be contradicted',
        '',
        (0.0, 1.0),
        live=True,
    )
    min_visible: float = parameter(
        0.15, 'least share of the rendered object whose depth agrees', '', (0.0, 1.0), live=True
    )
    min_support_px: int = parameter(
        60,
        'least number of agreeing pixels in the 160x160 crop',
        'pixels',
        (0, 25600),
        live=True,
    )
    register_min_agreement: float = parameter(
        0.7, 'min_agreement for a registration', '', (0.0, 1.0), live=True
    )
    register_min_visible: float = parameter(
        0.25, 'min_visible for a registration', '', (0.0, 1.0), live=True
    )
    recover_margin: float = parameter(
        0.05, 'how far above min_agreement and min_visible a pose must be after one that was not',
        '', (0.0, 1.0), live=True,
    )  # fmt: skip
    lost_after: int = parameter(
        15,
        'frames in a row below these limits until the object is LOST',
        'frames',
        (1, 1000),
        live=True,
    )
    tracking_timeout_ms: float = parameter(
        1000.0, 'how long after the last good pose it may be tracked from, by stamps of images;'
        ' then the object is LOST; 0: for ever', 'ms', (0.0, 60000.0), live=True,
    )  # fmt: skip
    score_interval: int = parameter(
        0, 'let the scorer compare the pose with turned copies every so many frames; 0: never',
        'frames', (0, 1000), live=True,
    )  # fmt: skip
    score_margin: float = parameter(
        2.0,
        'logits by which a turned copy must win to count against the pose',
        '',
        (0.0, 1000.0),
        live=True,
    )
    mask_label: int = parameter(
        0, 'value of the object in the segmentation: its place in the objects of detector_node,'
        ' from 1; 0: every pixel that is not zero', '', (0, 255), live=True,
    )  # fmt: skip
    mask_history_frames: int = parameter(
        15, 'frames remembered for a mask that arrives late', 'frames', (1, 300)
    )
    budget_track_ms: float = parameter(
        33.0,
        'a tracked frame should take no longer; 0: no budget',
        'ms',
        (0.0, 60000.0),
        live=True,
    )
    budget_register_ms: float = parameter(
        1000.0,
        'a registration should take no longer; 0: no budget',
        'ms',
        (0.0, 60000.0),
        live=True,
    )
    budget_age_ms: float = parameter(
        66.0, 'a pose should be no older than this when it is published; 0: no budget', 'ms',
        (0.0, 60000.0), live=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_values(self)
        if self.objects:
            check_names(self.objects)
        elif not self.mesh_file_path:
            raise ValueError(
                'mesh_file_path is empty: set it to the mesh of the object (obj, ply, glb or stl),'
                ' e.g. -p mesh_file_path:=/path/to/object.obj'
            )
        elif not self.tf_frame_name:
            raise ValueError(
                'tf_frame_name is empty: name the frame of the object; with publish_tf:=false no'
                ' transform is broadcast'
            )
        symmetry_rotations(self.symmetry_axes)  # raises for one that cannot be read
        if self.min_depth_m >= self.max_depth_m:
            raise ValueError(
                f'min_depth_m is {self.min_depth_m} m and max_depth_m {self.max_depth_m} m:'
                ' the first must be smaller'
            )


@dataclass(frozen=True)
class ObjectParameters:
    """One of several objects: parameters NAME.mesh_file_path and so on."""

    mesh_file_path: str = parameter('', 'mesh of the object: obj, ply, glb or stl; required')
    mesh_scale: float = parameter(
        1.0, 'factor from file units to metres: 0.001 for a mesh in mm', limits=(1e-6, 1e6)
    )
    class_id: str = parameter('', 'what the output calls the object; empty: its name')
    symmetry_axes: tuple[str, ...] = parameter(
        (), 'turns that leave the object as it is: x_180, y_90 or z_full, about axes of its mesh'
    )
    tf_frame_name: str = parameter('', 'child frame of its transform; empty: its name')
    mask_label: int = parameter(
        0, 'its value in the segmentation; 0: its place in objects, from 1', '', (0, 255)
    )
    refine_iterations: int = parameter(
        0, 'as of the node, for this object; 0: as the node', '', (0, 20)
    )
    track_refine_iterations: int = parameter(
        0, 'as of the node, for this object; 0: as the node', '', (0, 20)
    )

    def __post_init__(self) -> None:
        check_values(self)
        symmetry_rotations(self.symmetry_axes)


def check_names(names: tuple[str, ...]) -> None:
    """Check names of objects, which become parts of topic names; raises ValueError."""
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"objects has '{name}': a name must be letters, digits and single '_', and begin"
                ' with a letter, since it becomes part of topic names'
            )
        if name in RESERVED_NAMES:
            raise ValueError(
                f"objects has '{name}': its topics or parameters would be mixed up with those of"
                f' the node; choose a name other than {", ".join(RESERVED_NAMES)}'
            )
    if len(set(names)) < len(names) or len(names) > MOST_OBJECTS:
        raise ValueError(
            f'objects is {", ".join(names)}: give each name once, {MOST_OBJECTS} at most'
        )
