"""`foundationpose-trt evaluate-detector`: boxes on held-out scenes, poses registered from them.

For detectors of the demo's cast (`train detector`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..datatypes import require
from ..detection.backends import open_detector
from ..detection.detector import Detector, DetectorSettings
from ..detection.images import ColorImage
from ..detection.manifest import SHIPPED, detector_folder
from ..runtime.choice import BackendChoice
from ..scenes.metrics import RECALL_DIAMETER_SHARE, PoseErrors, pose_errors, recall, surface_points
from ..synthesis.cast import CAST, cast_objects
from ..synthesis.tabletop import SceneSettings, compose_views
from ..synthesis.tabletop_images import TabletopImage, TabletopRenderer
from ..training.detection_metrics import (
    average_precision,
    require_metric,
    threshold_figures,
)
from ..training.detector_scenes import (
    NONE,
    DetectionBatch,
    DetectionSampler,
    DetectionWorld,
    compose_stages,
)
from . import report
from .demo import DETECTOR_THRESHOLD, detector_device
from .estimator_options import EstimatorChoice, add_estimator_arguments, chosen_estimator
from .synthetic_trials import MIN_MASK_PX, MIN_VISIBLE, clutter

HELP = "average precision of a detector of the demo's cast, and poses registered from its masks"
LOWEST_SCORE = 0.01  # average precision looks at everything that was found at all
BATCH = 8
SETTINGS = SceneSettings(distance_diameters=(2.2, 6.0), texture_px=512)
FIRST_REGISTER_SEED = 7000  # of arrangements
MASKS = ('true masks', 'detected masks')
THRESHOLDS = (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
FOUND_SHARE = 0.5  # of what is seen of an object, in the mask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        '--model', default=SHIPPED, metavar='NAME|DIR', help=f'default: {SHIPPED}, which ships'
    )
    parser.add_argument('--stages', type=int, default=24, help='sets of held-out objects')
    parser.add_argument(
        '--first-stage', type=int, default=0, metavar='N',
        help='of them, and of the arrangements: take others to choose a threshold by than to'
        ' report',
    )  # fmt: skip
    parser.add_argument('--views', type=int, default=8, help='images of each set')
    parser.add_argument(
        '--registrations', type=int, default=4, metavar='N',
        help='views per object and arrangement that are registered from its mask; 0: none',
    )  # fmt: skip
    parser.add_argument(
        '--arrangements', type=int, default=1, metavar='N',
        help='of strangers around each object that is registered',
    )  # fmt: skip
    parser.add_argument(
        '--threshold', type=float, default=DETECTOR_THRESHOLD,
        help=f"of scores, for registration; default: the demo's, {DETECTOR_THRESHOLD}",
    )  # fmt: skip
    parser.add_argument('--json', type=Path, metavar='FILE')
    add_estimator_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write."""
    require(
        min(options.stages, options.views, options.arrangements) >= 1
        and min(options.registrations, options.first_stage) >= 0,
        f'--stages {options.stages}, --views {options.views} and --arrangements'
        f' {options.arrangements} must be at least 1, --registrations {options.registrations} and'
        f' --first-stage {options.first_stage} not negative',
    )
    require(
        0 <= options.threshold < 1,
        f'--threshold {options.threshold} must be at least 0 and below 1',
    )
    require_metric()
    choice = chosen_estimator(options)
    detector = _opened(detector_folder(options.model), choice)
    content: dict[str, Any] = box_figures(detector, options, choice.device)
    if options.registrations:
        detector.set_threshold(options.threshold)
        first = FIRST_REGISTER_SEED + options.first_stage
        seeds = range(first, first + options.arrangements)
        figures = registration_figures(detector, choice, options.registrations, seeds)
        content['registration'] = figures
    _print(content)
    if options.json:
        report.write_json(options.json, content)
    return 0


def _opened(folder: Path, choice: EstimatorChoice) -> Detector:
    backend = BackendChoice('auto', choice.engines, build=True)
    device = detector_device(folder, choice.device)['device']  # it finds the same on a CPU
    opened = open_detector(folder, device, 'auto', backend)
    missing = set(CAST) - set(opened.manifest.class_names)
    require(not missing, f'{folder} does not know {", ".join(sorted(missing))} of the cast')
    settings = DetectorSettings(tuple(CAST), tuple(CAST), LOWEST_SCORE)
    return Detector(opened.manifest, opened.engine, settings)


def box_figures(detector: Detector, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """Judge boxes on held-out views with camera errors, by IoU 0.5, percent.

    boxes: average precision; thresholds: what thresholds make of the best box of each class.
    """
    seeds = range(options.first_stage, options.first_stage + options.stages)
    stages = compose_stages(seeds, options.views, SETTINGS, held_out=True)
    world = DetectionWorld.build(stages, SETTINGS, torch.device(device))
    sampler = DetectionSampler(world, BATCH, torch.Generator(device).manual_seed(9))
    views = torch.arange(len(world.meshes), device=world.meshes.device)
    found, truth = [], []
    for part in tqdm(views.split(BATCH), desc='detecting'):
        whole = torch.cat([part, part[-1:].expand(BATCH - len(part))])  # the sampler's size
        batch = sampler.draw(whole)
        truth += _truth(batch)[: len(part)]
        pixels = (batch.images[: len(part)] * 255).round().to(torch.uint8).cpu().numpy()
        found += [_found(detector, image) for image in pixels]
    return {
        'boxes': average_precision(found, truth, list(CAST)),
        'thresholds': threshold_figures(found, truth, THRESHOLDS),
    }


def _truth(batch: DetectionBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    center, half = batch.boxes[..., :2], batch.boxes[..., 2:] / 2
    corners = torch.cat([center - half, center + half], -1).cpu().numpy()
    kinds = batch.classes.cpu().numpy()
    return [(c[k != NONE], k[k != NONE]) for c, k in zip(corners, kinds, strict=True)]


def _found(detector: Detector, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in 0..1, places in CAST and scores."""
    detections = detector.detect(ColorImage.of_array(pixels)).detections
    height, width = pixels.shape[:2]
    boxes = detections.boxes_px / (width, height, width, height)
    order = [detector.object_columns.index(column) for column in detections.columns]
    return boxes, np.array(order, int), detections.scores


@dataclass(frozen=True)
class Registered:
    """One view: errors of the poses from the true and from the detected mask.

    found: whether the detected mask is there and where the object is.
    """

    name: str
    diameter_m: float
    errors: tuple[PoseErrors, PoseErrors]
    found: bool


def registration_figures(
    detector: Detector, choice: EstimatorChoice, views: int, seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Share of poses right within 0.1 diameter (ADD-S), percent, from true and detected masks: of
    all views, and of those where the detector found the object, whose share is between them.

    views: of each object in each arrangement; seeds: of the arrangements.
    """
    results = [
        result
        for place in range(len(CAST))
        for seed in seeds
        for result in register_views(detector, choice, place, views, seed)
    ]
    figures = {}
    for name in (*CAST, 'all'):
        own = [r for r in results if name in (r.name, 'all')]
        found = [r for r in own if r.found]
        figures[name] = {
            **right_shares(own),
            'found': 100 * len(found) / len(own) if own else np.nan,
            **{f'{key}, if found': value for key, value in right_shares(found).items()},
        }
    return figures


def right_shares(results: Sequence[Registered]) -> dict[str, float]:
    """Share of right poses by mask, percent; NaN of none."""
    limits = [RECALL_DIAMETER_SHARE * r.diameter_m for r in results]
    return {
        key: 100 * recall([r.errors[k].add_s_m for r in results], limits) if results else np.nan
        for k, key in enumerate(MASKS)
    }


def register_views(
    detector: Detector, choice: EstimatorChoice, place: int, views: int, seed: int
) -> Iterator[Registered]:
    """Register one object of the cast in some unrelated views that show enough of it."""
    name, mesh = list(CAST)[place], cast_objects()[place]
    rng = np.random.default_rng([place, seed])
    scene = compose_views(mesh, clutter(rng), 2 * views, rng, SETTINGS)
    images = TabletopRenderer(scene, choice.device, BATCH).images(place)
    seen = (i for i in images if i.visible_share >= MIN_VISIBLE and i.mask.sum() >= MIN_MASK_PX)
    estimator, points = choice.estimator(mesh), surface_points(mesh)
    for image in tqdm(islice(seen, views), desc=name, total=views):
        masks = (image.mask, detected_mask(detector, image, place + 1))
        poses = [estimator.register(image.frame, mask).camera_from_object for mask in masks]
        truth = image.camera_from_object
        true, detected = (pose_errors(points, pose, truth) for pose in poses)
        covered = (masks[0] & masks[1]).sum() >= FOUND_SHARE * masks[0].sum()
        yield Registered(name, mesh.diameter_m, (true, detected), bool(covered))


def detected_mask(detector: Detector, image: TabletopImage, label: int) -> np.ndarray:
    """The mask of an object as the node would publish it, (H, W) bool."""
    found = detector.detect(ColorImage.of_array(image.frame.rgb))
    labels = found.labels
    if labels is None:
        size = image.frame.depth_m.shape
        labels = detector.labels_from_boxes(found.detections, size, image.frame.valid_depth_m)
    return labels == label


def _print(content: dict[str, Any]) -> None:
    rows = [[name.removeprefix('ap50_'), value] for name, value in content['boxes'].items()]
    report.print_table('average precision at IoU 0.5, %', ['', 'AP50'], rows)
    found = [[threshold, *row.values()] for threshold, row in content['thresholds'].items()]
    columns = ['scores above', 'recall', 'precision', 'F1']
    report.print_table('the best box of each class, %', columns, found)
    if 'registration' in content:
        figures = content['registration']
        columns = list(figures['all'])
        table = [[name, *row.values()] for name, row in figures.items()]
        report.print_table('ADD-S < 0.1 diameter, %', ['registered from', *columns], table)
