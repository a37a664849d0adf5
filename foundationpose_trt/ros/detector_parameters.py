"""The parameters of detector_node, with units and limits; config/detector.yaml shows them."""

from __future__ import annotations

from dataclasses import dataclass

from foundationpose_trt.detection.backends import BACKENDS
from foundationpose_trt.detection.label_image import DEFAULT_BAND_M
from foundationpose_trt.ros.parameters import check_values, parameter


@dataclass(frozen=True)
class DetectorParameters:
    """Values in force for one run of detector_node. Raises ValueError naming what is wrong."""

    model: str = parameter(
        '', 'folder of a detector (detector.json), made by foundationpose-trt export detector;'
        ' required',
    )  # fmt: skip
    classes: tuple[str, ...] = parameter((), 'classes to report; empty: all that the model knows')
    objects: tuple[str, ...] = parameter(
        (), 'classes in the order of their values in the segmentation, from 1; empty: classes'
    )
    confidence_threshold: float = parameter(
        0.5, 'scores must be above this', '', (0.0, 1.0), live=True
    )
    max_rate_hz: float = parameter(
        0.0, 'detect at most so many images per second; 0: as many as possible',
        'Hz', (0.0, 1000.0), live=True,
    )  # fmt: skip
    device: str = parameter(
        'auto', 'where the network runs; auto takes CUDA if there is a GPU',
        choices=('auto', 'cpu', 'cuda'),
    )  # fmt: skip
    precision: str = parameter(
        'auto', 'floating point of the network; auto: fp16 with TensorRT, else fp32',
        choices=('auto', 'fp32', 'fp16'),
    )  # fmt: skip
    backend: str = parameter(
        'auto', 'what runs the network; auto: a TensorRT engine that is there and fits, else'
        ' torchscript; on a CPU ONNX Runtime where it is installed', choices=BACKENDS,
    )  # fmt: skip
    engines_folder: str = parameter(
        '', "folder of engines; empty: foundationpose_trt in the user's cache"
    )
    build_engines: bool = parameter(
        False, 'build the TensorRT engine if it is missing or does not fit, at the start'
    )
    build_only: bool = parameter(False, 'end when the engine is there, without detecting')
    cuda_graph_cache_capacity: int = parameter(
        0, 'CUDA graphs kept; the network needs 1; 0: none; no effect on a CPU', 'graphs',
        (0, 64), live=True,
    )  # fmt: skip
    warm_up_width: int = parameter(
        640, 'width of the image that is run before the first one; 0: no warm-up', 'pixels',
        (0, 16384),
    )  # fmt: skip
    warm_up_height: int = parameter(480, 'its height', 'pixels', (0, 16384))
    depth_band_m: float = parameter(
        DEFAULT_BAND_M, 'of a model without masks: how deep an object may be, so that the pixels'
        ' of its box before and behind it are left out', 'm', (0.001, 10.0),
    )  # fmt: skip
    depth_unit_m: float = parameter(
        0.001, 'metres per unit of a 16UC1 depth image', 'm', (1e-6, 1.0)
    )
    sync_slop_ms: float = parameter(
        10.0, 'largest distance of stamps of image and depth', 'ms', (0.0, 1000.0)
    )
    publish_debug: bool = parameter(
        False, 'draw what was found on debug/image while someone subscribes', live=True
    )
    silence_warning_s: float = parameter(
        5.0, 'warn when an announced topic is silent for this long', 's', (0.5, 3600.0)
    )

    def __post_init__(self) -> None:
        check_values(self)
        if not self.model:
            raise ValueError(
                'model is empty: set it to the folder of a detector, made by `foundationpose-trt'
                ' export detector --weights FILE --size nano --out FOLDER`, e.g. -p model:=FOLDER'
            )
