"""`benchmark soak`: a sequence tracked to and fro, 100 000 frames long; nothing may grow."""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..datatypes import Frame, require
from ..pose.backends import open_engines
from ..pose.estimator import PRUNED_SCHEDULE, EstimatorSettings, PoseEstimator
from ..pose.tracker import ObjectTracker
from ..pose.weights import load_networks
from ..runtime.choice import BackendChoice
from ..runtime.graph_cache import DEFAULT_CAPACITY, flush_allocator
from ..scenes.metrics import RECALL_DIAMETER_SHARE, pose_errors, surface_points
from ..synthesis.objects import make_object
from ..synthesis.tabletop import compose_sequence
from ..synthesis.tabletop_images import SensorNoise, TabletopImage, TabletopRenderer
from .estimator_options import default_device
from .synthetic_trials import BATCH, FIRST_TRACK_SEED, MOTIONS, SETTINGS, clutter
from .wider_weights import use_wider_weights

STRETCHES = 10  # whose figures stand beside one another
SEQUENCE = 60  # frames, played to and fro
MOTION = 'hand-held camera'
WARM_UP = 2 * SEQUENCE  # kernels, graphs, and the allocators' pools
# A leak of 100 bytes per frame shows in 100 000 frames; what allocators round up to does not.
MOST_GROWTH_MB = 8.0
JUDGED = 25  # every so many frames by all points of the surface, which takes a millisecond
FRAME_NS = 33_333_333
MOST_SLOWING = 1.25  # median of the last stretch over that of the first


@dataclass(frozen=True)
class Stretch:
    """Figures of a tenth of the frames: milliseconds, megabytes, and frames that went wrong.

    wrong: the pose is off by a tenth of the diameter or more. lost: there was none. host_mb: what
    the process holds; gpu_mb: what is taken of the GPU, by whomever.
    """

    frames: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    wrong: int
    lost: int
    host_mb: float
    gpu_mb: float | None


class Player:
    """Tracks a sequence to and fro and judges every pose by the truth."""

    def __init__(self, estimator: PoseEstimator, images: Sequence[TabletopImage]) -> None:
        self._tracker = ObjectTracker(estimator)
        self._images = cycle(chain(images, reversed(images)))
        self._points = surface_points(estimator.mesh)
        self._diameter_m = estimator.mesh.diameter_m
        self._played = 0

    def play(self, frames: int) -> Stretch:
        """Track so many frames."""
        samples_ms, wrong, lost = np.zeros(frames), 0, 0
        for place in range(frames):
            image = next(self._images)
            start_s = time.perf_counter()
            seen, stamp_ns = image.frame, self._played * FRAME_NS
            frame = Frame(seen.rgb, seen.depth_m, seen.intrinsics, stamp_ns)
            pose = self._tracker.step(frame, image.mask).estimate.camera_from_object
            samples_ms[place] = 1e3 * (time.perf_counter() - start_s)
            lost += pose is None
            wrong += pose is not None and self._is_wrong(pose, image.camera_from_object)
            self._played += 1
        p50, p99 = np.percentile(samples_ms, (50, 99))
        memory = host_mb(), gpu_mb()
        return Stretch(frames, p50, p99, samples_ms.max(), wrong, lost, *memory)

    def _is_wrong(self, pose: np.ndarray, truth: np.ndarray) -> bool:
        limit_m = RECALL_DIAMETER_SHARE * self._diameter_m
        centers = self._points.mean(0) @ (pose[:3, :3] - truth[:3, :3]).T
        if np.linalg.norm(centers + pose[:3, 3] - truth[:3, 3]) >= limit_m:
            return True
        judged = self._played % JUDGED == 0
        return judged and pose_errors(self._points, pose, truth).add_s_m >= limit_m


def host_mb() -> float:
    """Resident memory of this process, in megabytes."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def gpu_mb() -> float | None:
    """Memory of the GPU in use, in megabytes; None without one."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e6


def run_soak(options: argparse.Namespace) -> dict[str, Any]:
    """Track options.frames frames; figures by stretch, and what grew or went wrong."""
    require(
        options.frames >= STRETCHES,
        f'--frames is {options.frames}, must be at least {STRETCHES}: one for each stretch',
    )
    player = Player(_estimator(options), _images())
    player.play(WARM_UP)
    gc.collect()
    flush_allocator()
    each = options.frames // STRETCHES
    stretches = [player.play(each) for _ in tqdm(range(STRETCHES), desc='stretches')]
    return {
        'weights': options.weights,
        'stretches': [vars(stretch) for stretch in stretches],
        'failed': faults_of(stretches),
    }


def _images() -> list[TabletopImage]:
    rng = np.random.default_rng(FIRST_TRACK_SEED)
    target = make_object(FIRST_TRACK_SEED)
    scene = compose_sequence(target, clutter(rng), SEQUENCE, rng, SETTINGS, MOTIONS[MOTION])
    return list(TabletopRenderer(scene, default_device(), BATCH).images(0, SensorNoise.video()))


def _estimator(options: argparse.Namespace) -> PoseEstimator:
    use_wider_weights(options)
    on_cuda = torch.cuda.is_available()
    device, precision = ('cuda', 'fp16') if on_cuda else ('cpu', 'fp32')
    networks = load_networks(options.weights, device, precision)
    engines = open_engines(networks, BackendChoice('auto', options.engines))
    settings = EstimatorSettings(
        schedule=PRUNED_SCHEDULE, cuda_graph_cache_capacity=DEFAULT_CAPACITY if on_cuda else 0
    )
    mesh = make_object(FIRST_TRACK_SEED)
    return PoseEstimator(mesh, networks, settings, engines)


def faults_of(stretches: Sequence[Stretch]) -> list[str]:
    """What a long run must not show; nothing where all is well."""
    first, last = stretches[0], stretches[-1]
    faults = []
    for name in ('wrong', 'lost'):
        count = sum(getattr(one, name) for one in stretches)
        if count:
            faults.append(f'{count} frames {name}')
    for name in ('host_mb', 'gpu_mb'):
        before, after = getattr(first, name), getattr(last, name)
        if before is not None and after - before > MOST_GROWTH_MB:
            faults.append(f'{name} grew from {before:.1f} to {after:.1f}')
    if last.p50_ms > MOST_SLOWING * first.p50_ms:
        faults.append(f'p50_ms rose from {first.p50_ms:.2f} to {last.p50_ms:.2f}')
    return faults


def soak_tables(content: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """Lay the stretches out; then what is wrong."""
    rows = content['stretches']
    frames = sum(row['frames'] for row in rows)
    columns = ['frames', 'p50, ms', 'p99, ms', 'max, ms', 'wrong', 'lost', 'host, MB', 'GPU, MB']
    yield (
        f'{frames} frames tracked with {content["weights"]}',
        columns,
        [list(row.values()) for row in rows],
    )
    for fault in content['failed']:
        yield f'FAILED: {fault}', [], []
