"""Builds the detector that the parameters ask for; every refusal names the parameter to change."""

from __future__ import annotations

from typing import NamedTuple

from foundationpose_trt.detection.backends import Progress, open_detector
from foundationpose_trt.detection.detector import Detector, DetectorSettings
from foundationpose_trt.detection.manifest import detector_folder
from foundationpose_trt.ros.build_choices import backend_choice, choose_device, naming
from foundationpose_trt.ros.detector_parameters import DetectorParameters


class BuiltDetector(NamedTuple):
    """A detector, and what it is, for the log."""

    detector: Detector
    description: str


def build_detector(
    parameters: DetectorParameters, report: Progress | None = None
) -> BuiltDetector:
    """Open the model; raises ValueError naming the parameter that must change.

    report is called while an engine is built.
    """
    folder = detector_folder(parameters.model)
    device = choose_device(parameters.device)
    with naming(f"model '{folder}' (backend {parameters.backend})"):
        opened = open_detector(
            folder, device, parameters.precision, backend_choice(parameters), report
        )
    settings = DetectorSettings(
        classes=parameters.classes,
        objects=parameters.objects,
        threshold=parameters.confidence_threshold,
        cuda_graph_cache_capacity=parameters.cuda_graph_cache_capacity,
    )
    with naming('model, classes or objects'):
        detector = Detector(opened.manifest, opened.engine, settings)
    kind = 'boxes and masks' if opened.manifest.masks else 'boxes'
    labels = ', '.join(f'{k} {name}' for k, name in enumerate(detector.objects, 1))
    description = (
        f'{opened.manifest.name} ({opened.manifest.variant}, {kind}) on {device} by'
        f' {opened.explanation}; segmentation: {labels}'
    )
    return BuiltDetector(detector, description)
