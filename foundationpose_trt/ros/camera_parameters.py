"""The parameters that every node on a camera has."""

from __future__ import annotations

from dataclasses import dataclass

from foundationpose_trt.ros.parameters import parameter


@dataclass(frozen=True)
class CameraNodeParameters:
    """Of the networks' runtime, the input and the measuring; each node adds its own."""

    device: str = parameter(
        'auto', 'where the networks run; auto takes CUDA if there is a GPU',
        choices=('auto', 'cpu', 'cuda'),
    )  # fmt: skip
    engines_folder: str = parameter(
        '', "folder of engines and ONNX files; empty: foundationpose_trt in the user's cache"
    )
    build_engines: bool = parameter(
        False, 'build TensorRT engines that are missing or do not fit, at the start; takes minutes'
    )
    build_only: bool = parameter(False, 'end when the engines are there, without a camera')
    cuda_graph_cache_capacity: int = parameter(
        0, 'CUDA graphs kept per network, one per number of crops or images; 0: none; no effect on'
        ' a CPU', 'graphs', (0, 64), live=True,
    )  # fmt: skip
    warm_up_width: int = parameter(
        640, 'width of the image that is run when configuring; 0: none before the camera tells its'
        ' size, for which the tracker warms up then', 'pixels', (0, 16384),
    )  # fmt: skip
    warm_up_height: int = parameter(480, 'its height', 'pixels', (0, 16384))
    depth_unit_m: float = parameter(
        0.001, 'metres per unit of a 16UC1 depth image', 'm', (1e-6, 1.0), live=True
    )
    sync_slop_ms: float = parameter(
        10.0, 'largest distance of stamps of image, depth and mask; never more than half a frame'
        ' period', 'ms', (0.0, 1000.0), live=True,
    )  # fmt: skip
    max_frame_age_ms: float = parameter(
        0.0, 'drop images that are older than this by ROS time when they arrive; 0: never', 'ms',
        (0.0, 60000.0), live=True,
    )  # fmt: skip
    publish_debug: bool = parameter(
        False, 'draw what was found on an image topic under debug/ while someone subscribes',
        live=True,
    )  # fmt: skip
    silence_warning_s: float = parameter(
        5.0, 'warn when an announced topic is silent for this long', 's', (0.5, 3600.0)
    )
    latency_window_s: float = parameter(
        10.0, 'how many seconds the percentiles of latency/summary look back', 's', (1.0, 120.0)
    )
