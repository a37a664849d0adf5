"""The parameters of detector_node, with units and limits; config/detector.yaml shows them."""

from __future__ import annotations

from dataclasses import dataclass

from foundationpose_trt.detection.backends import BACKENDS
from foundationpose_trt.detection.label_image import DEFAULT_BAND_M
from foundationpose_trt.detection.manifest import SHIPPED
from foundationpose_trt.ros.camera_parameters import CameraNodeParameters
from foundationpose_trt.ros.parameters import check_values, parameter


@dataclass(frozen=True)
class DetectorParameters(CameraNodeParameters):
    """Values in force for one run of detector_node. Raises ValueError naming what is wrong."""

    model: str = parameter(
        '', 'folder of a detector (detector.json), made by foundationpose-trt export detector, or'
        f' {SHIPPED}, which ships and knows the six objects of the demo; required',
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
    precision: str = parameter(
        'auto', 'floating point of the network; auto: fp16 with TensorRT, else fp32',
        choices=('auto', 'fp32', 'fp16'),
    )  # fmt: skip
    backend: str = parameter(
        'auto', 'what runs the network; auto: a TensorRT engine that is there and fits, else'
        ' torchscript; on a CPU ONNX Runtime where it is installed', choices=BACKENDS,
    )  # fmt: skip
    depth_band_m: float = parameter(
        DEFAULT_BAND_M, 'of a model without masks: how deep an object may be, so that the pixels'
        ' of its box before and behind it are left out, as is the plane it stands on', 'm',
        (0.001, 10.0), live=True,
    )  # fmt: skip
    budget_detector_ms: float = parameter(
        33.0, 'an image should take no longer; 0: no budget', 'ms', (0.0, 60000.0), live=True
    )
    budget_detector_age_ms: float = parameter(
        100.0, 'an image should be no older when its segmentation is out; 0: no budget', 'ms',
        (0.0, 60000.0), live=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_values(self)
        if not self.model:
            raise ValueError(
                'model is empty: set it to the folder of a detector, made by `foundationpose-trt'
                ' export detector --weights FILE --size nano --out FOLDER`, e.g. -p model:=FOLDER'
            )
