"""The parameters of tracker_node, with their units and limits; config/tracker.yaml shows them."""

from __future__ import annotations

from dataclasses import dataclass

from foundationpose_trt.pose.backends import BACKENDS
from foundationpose_trt.ros.parameters import check_values, parameter


@dataclass(frozen=True)
class TrackerParameters:
    """Values in force for one run of tracker_node. Raises ValueError naming what is wrong."""

    mesh_file_path: str = parameter('', 'mesh of the object: obj, ply, glb or stl; required')
    mesh_scale: float = parameter(
        1.0, 'factor from file units to metres: 0.001 for a mesh in mm', limits=(1e-6, 1e6)
    )
    weights: str = parameter(
        'auto', 'weight set: small, base or a folder; auto: base on CUDA, small on a CPU'
    )
    device: str = parameter(
        'auto', 'where the networks run; auto takes CUDA if there is a GPU',
        choices=('auto', 'cpu', 'cuda'),
    )  # fmt: skip
    precision: str = parameter(
        'auto', 'floating point of the networks; fp16 needs CUDA, auto takes it there',
        choices=('auto', 'fp32', 'fp16'),
    )  # fmt: skip
    backend: str = parameter(
        'auto', 'what runs the networks; auto: TensorRT engines that are there and fit, else'
        ' torch; on a CPU ONNX Runtime where it is installed', choices=BACKENDS,
    )  # fmt: skip
    engines_folder: str = parameter(
        '', "folder of engines and ONNX files; empty: foundationpose_trt in the user's cache"
    )
    build_engines: bool = parameter(
        False, 'build TensorRT engines that are missing or do not fit, at the start; takes minutes'
    )
    build_only: bool = parameter(False, 'end when the engines are there, without tracking')
    register_schedule: str = parameter(
        'auto', 'full: refine and score all hypotheses, as published; pruned: drop the bad ones'
        ' early; auto: full on CUDA, pruned on a CPU', choices=('auto', 'full', 'pruned'),
    )  # fmt: skip
    refine_iterations: int = parameter(
        5, 'refinements of every hypothesis when registering with the full schedule', '', (1, 20)
    )
    track_refine_iterations: int = parameter(
        2, 'refinements of the last pose per tracked frame', '', (1, 20)
    )
    cuda_graph_cache_capacity: int = parameter(
        0, 'CUDA graphs kept per network, one per number of crops; 0: none; no effect on a CPU',
        'graphs', (0, 64), live=True,
    )  # fmt: skip
    min_depth_m: float = parameter(
        0.1, 'nearest distance at which the object is looked for', 'm', (0.0, 100.0)
    )
    max_depth_m: float = parameter(
        10.0, 'farthest distance at which the object is looked for', 'm', (0.0, 100.0)
    )
    min_agreement: float = parameter(
        0.6, 'least share of agreeing depth where the pose could be contradicted', '', (0.0, 1.0)
    )
    min_visible: float = parameter(
        0.15, 'least share of the rendered object whose depth agrees', '', (0.0, 1.0)
    )
    min_support_px: int = parameter(
        60, 'least number of agreeing pixels in the 160x160 crop', 'pixels', (0, 25600)
    )
    register_min_agreement: float = parameter(
        0.7, 'min_agreement for a registration', '', (0.0, 1.0)
    )
    register_min_visible: float = parameter(0.25, 'min_visible for a registration', '', (0.0, 1.0))
    lost_after: int = parameter(
        15, 'frames in a row below these limits until the object is LOST', 'frames', (1, 1000)
    )
    score_interval: int = parameter(
        0, 'let the scorer compare the pose with turned copies every so many frames; 0: never',
        'frames', (0, 1000),
    )  # fmt: skip
    score_margin: float = parameter(
        2.0, 'logits by which a turned copy must win to count against the pose', '', (0.0, 1000.0)
    )
    depth_unit_m: float = parameter(
        0.001, 'metres per unit of a 16UC1 depth image', 'm', (1e-6, 1.0)
    )
    sync_slop_ms: float = parameter(
        10.0, 'largest distance of stamps of image, depth and mask', 'ms', (0.0, 1000.0)
    )
    mask_label: int = parameter(
        0, 'value of the object in the segmentation: its place in the objects of detector_node,'
        ' from 1; 0: every pixel that is not zero', '', (0, 255),
    )  # fmt: skip
    mask_history_frames: int = parameter(
        15, 'frames remembered for a mask that arrives late', 'frames', (1, 300)
    )
    silence_warning_s: float = parameter(
        5.0, 'warn when an announced topic is silent for this long', 's', (0.5, 3600.0)
    )

    def __post_init__(self) -> None:
        check_values(self)
        if not self.mesh_file_path:
            raise ValueError(
                'mesh_file_path is empty: set it to the mesh of the object (obj, ply, glb or stl),'
                ' e.g. -p mesh_file_path:=/path/to/object.obj'
            )
        if self.min_depth_m >= self.max_depth_m:
            raise ValueError(
                f'min_depth_m is {self.min_depth_m} m and max_depth_m {self.max_depth_m} m:'
                ' the first must be smaller'
            )
