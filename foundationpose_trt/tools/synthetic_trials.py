"""Single trials of the evaluation on held-out procedural objects, spread over processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..datatypes import Outcome, TrackingState
from ..pose.estimator import PoseEstimator
from ..pose.mesh import ObjectMesh
from ..pose.tracker import ObjectTracker
from ..scenes.metrics import PoseErrors, pose_errors, surface_points
from ..scenes.symmetry import is_symmetric
from ..synthesis.camera_path import MotionLimits
from ..synthesis.objects import HELD_OUT_FROM_SEED, make_object, object_family
from ..synthesis.tabletop import Motion, SceneSettings, compose_sequence, compose_views
from ..synthesis.tabletop_images import SensorNoise, TabletopImage, TabletopRenderer
from .estimator_options import EstimatorChoice

# Training validates on the first held-out seeds; these are used for nothing but evaluation.
FIRST_VIEW_SEED = HELD_OUT_FROM_SEED + 10_000
FIRST_TRACK_SEED = HELD_OUT_FROM_SEED + 20_000
FIRST_CLUTTER_SEED = HELD_OUT_FROM_SEED + 30_000
CLUTTER = 5
SETTINGS = SceneSettings(texture_px=512)
# A target of which less is seen is left out, as benchmarks do with nearly hidden objects.
MIN_VISIBLE, MIN_MASK_PX = 0.3, 300
BATCH = 8
MOTIONS = {
    'hand-held camera': Motion(MotionLimits(0.006, np.radians(1.0))),
    'fast camera': Motion(MotionLimits(0.03, np.radians(2.5))),
    'fast object': Motion(MotionLimits(0.02, np.radians(4.0)), held=True),
}


@dataclass(frozen=True)
class ViewTrial:
    """Register one object in some unrelated views; mask errors of up to mask_error_px."""

    seed: int
    views: int
    mask_error_px: int = 0


@dataclass(frozen=True)
class TrackTrial:
    """Track one object through one sequence; motion is a key of MOTIONS."""

    seed: int
    frames: int
    motion: str
    gt_init: bool = False


@dataclass(frozen=True)
class ViewResult:
    """One registered view; symmetric: the object has poses no image can tell apart."""

    seed: int
    family: str
    symmetric: bool
    diameter_m: float
    visible_share: float
    outcome: Outcome
    errors: PoseErrors


@dataclass(frozen=True)
class TrackResult:
    """One tracked sequence: errors and visible share of every frame."""

    seed: int
    family: str
    symmetric: bool
    diameter_m: float
    motion: str
    visible_share: list[float]
    outcomes: list[Outcome]
    errors: list[PoseErrors]
    registrations: int


Trial = ViewTrial | TrackTrial
Result = list[ViewResult] | TrackResult


def run_trials(
    trials: Sequence[Trial], choice: EstimatorChoice, workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) as the trials finish, in any order.

    More than one worker: each process makes its objects, renders and estimates on the same
    device. A result depends on its trial and the device only, not on the workers.
    """
    if workers <= 1:
        for index, trial in enumerate(trials):
            yield index, run_trial(trial, choice)
        return
    context = multiprocessing.get_context('spawn')  # CUDA does not survive a fork
    with ProcessPoolExecutor(workers, context, _limit_threads) as pool:
        pending = {pool.submit(run_trial, trial, choice): k for k, trial in enumerate(trials)}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _limit_threads() -> None:
    # the processes fill the cores already
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def run_trial(trial: Trial, choice: EstimatorChoice) -> Result:
    """Run one trial in this process."""
    if isinstance(trial, ViewTrial):
        return run_views(trial, choice)
    return run_track(trial, choice)


def run_views(trial: ViewTrial, choice: EstimatorChoice) -> list[ViewResult]:
    """Register the object in each view that shows enough of it."""
    rng = np.random.default_rng(trial.seed)
    target = make_object(trial.seed)
    scene = compose_views(target, clutter(rng), 2 * trial.views, rng, SETTINGS)
    images = TabletopRenderer(scene, choice.device, BATCH).images(trial.seed)
    estimator = choice.estimator(target)
    points, symmetric = surface_points(target), is_symmetric(target)
    results: list[ViewResult] = []
    for image in images:
        if image.visible_share < MIN_VISIBLE or image.mask.sum() < MIN_MASK_PX:
            continue
        mask = with_errors(image.mask, rng, trial.mask_error_px)
        estimate = estimator.register(image.frame, mask)
        results.append(
            ViewResult(
                trial.seed,
                object_family(trial.seed),
                symmetric,
                target.diameter_m,
                image.visible_share,
                estimate.outcome,
                pose_errors(points, estimate.camera_from_object, image.camera_from_object),
            )
        )
        if len(results) == trial.views:
            break
    return results


def run_track(trial: TrackTrial, choice: EstimatorChoice) -> TrackResult:
    """Track through a sequence; after the first registration there are no masks, as after a
    loss on a robot without a detector.
    """
    rng = np.random.default_rng(trial.seed)
    target = make_object(trial.seed)
    others, motion = clutter(rng), MOTIONS[trial.motion]
    scene = compose_sequence(target, others, trial.frames, rng, SETTINGS, motion)
    images = TabletopRenderer(scene, choice.device, BATCH).images(trial.seed, SensorNoise.video())
    estimator = choice.estimator(target)
    visible, outcomes, errors, registrations = _follow(estimator, images, trial.gt_init)
    return TrackResult(
        trial.seed,
        object_family(trial.seed),
        is_symmetric(target),
        target.diameter_m,
        trial.motion,
        visible,
        outcomes,
        errors,
        registrations,
    )


def _follow(
    estimator: PoseEstimator, images: Iterator[TabletopImage], gt_init: bool
) -> tuple[list[float], list[Outcome], list[PoseErrors], int]:
    tracker = ObjectTracker(estimator)
    points = surface_points(estimator.mesh)
    visible, outcomes, errors, registrations = [], [], [], 0
    for index, image in enumerate(images):
        if gt_init and index == 0:
            tracker.start_from(image.camera_from_object)
        searching = tracker.state is TrackingState.SEARCHING
        step = tracker.step(image.frame, image.mask if searching else None)
        registrations += step.stage == 'register'
        visible.append(image.visible_share)
        outcomes.append(step.estimate.outcome)
        errors.append(
            pose_errors(points, step.estimate.camera_from_object, image.camera_from_object)
        )
    return visible, outcomes, errors, registrations


def clutter(rng: np.random.Generator) -> list[ObjectMesh]:
    """Make the other objects of a scene."""
    seeds = FIRST_CLUTTER_SEED + rng.integers(0, 100_000, CLUTTER + 1)
    return [make_object(int(seed)) for seed in seeds]


def with_errors(mask: np.ndarray, rng: np.random.Generator, reach_px: int) -> np.ndarray:
    """Return the mask shifted and grown or shrunk by up to reach_px pixels, as detectors err."""
    if reach_px == 0:
        return mask
    dx, dy = rng.integers(-reach_px, reach_px + 1, 2)
    growth = int(rng.integers(-reach_px, reach_px + 1))
    moved = cv2.warpAffine(
        mask.astype(np.uint8), np.array([[1, 0, dx], [0, 1, dy]], np.float32), mask.shape[::-1]
    )
    side = 2 * abs(growth) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return (cv2.dilate if growth > 0 else cv2.erode)(moved, kernel) > 0
