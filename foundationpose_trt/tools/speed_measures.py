"""What `benchmark track|register` measure by: frames, clocks, memory and errors."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..datatypes import CameraIntrinsics, Frame
from ..pose.mesh import ObjectMesh
from ..pose.page_locked import page_locked_empty
from ..pose.weights import PoseNetworks
from ..runtime.graph_cache import flush_allocator
from ..scenes.metrics import auc, pose_errors
from .benchmark_poses import PoseTask

FEWEST, LIMIT_S = 3, 5.0  # repeats of slow calls, and how long others may take
AWAY_DIAMETERS = 3.0  # where the object of the timed frames is
FOCAL_WIDTHS = 0.94  # focal length over image width: 56 degrees across
TOGETHER = 8
PAGE_LOCKED = 'page_locked'  # key of a row's figures of images in such memory
SPREAD = (4, 2)  # columns and rows of objects that are tracked together, over the image
TURNS, SETTLING = 5, 3  # of calls that are compared, and calls at each that do not count
MANY = 100  # samples, of which the 99th percentile is not just the largest
# How much worse than the first row's poses may be: far below what they differ by from one set of
# views to another (README, Accuracy). Of ADD one view more may be turned round, besides.
AUC_POINTS, MEDIAN_DEG, MEDIAN_MM = 0.5, 0.3, 0.3


class PeakMemory:
    """The GPU's memory that is taken from now on, at its most; of torch with what it reserves."""

    def __init__(self) -> None:
        gc.collect()
        self._begun = None
        if torch.cuda.is_available():
            flush_allocator()
            torch.cuda.reset_peak_memory_stats()
            self._begun = self._now()

    @staticmethod
    def _now() -> tuple[int, int]:
        """Bytes that torch reserved at most, and bytes that are not torch's."""
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        others = total - free - torch.cuda.memory_reserved()
        return torch.cuda.max_memory_reserved(), others

    def figures(self, networks: PoseNetworks) -> dict[str, float]:
        """Megabytes since the beginning, and of torch's weights alone; nothing without a GPU.

        TensorRT's copy of the weights counts in the former, as does its workspace.
        """
        if self._begun is None:
            return {}
        grown = sum(self._now()) - sum(self._begun)
        both = (networks.refiner, networks.scorer)
        held = sum(p.nbytes for one in both for p in one.parameters())
        return {'memory_mb': grown / 1e6, 'weights_mb': held / 1e6}


def timed_frame(height: int, mesh: ObjectMesh) -> tuple[Frame, np.ndarray, np.ndarray]:
    """An image of noise and a wall with an object before it: frame, camera_from_object, mask.

    What is in the image does not change how long a call takes, how large the object is does: its
    crop is about 240 pixels wide at 640x480.
    """
    width = 640 if height == 480 else height * 16 // 9
    k = CameraIntrinsics(
        FOCAL_WIDTHS * width, FOCAL_WIDTHS * width, width / 2, height / 2, width, height
    )
    away_m = AWAY_DIAMETERS * mesh.diameter_m
    rgb = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
    frame = Frame(rgb, np.full((height, width), away_m, np.float32), k)
    centered = np.eye(4)
    centered[2, 3] = away_m
    mask = np.zeros((height, width), bool)
    reach = int(k.fx / AWAY_DIAMETERS / 3)
    mask[height // 2 - reach : height // 2 + reach, width // 2 - reach : width // 2 + reach] = True
    return frame, centered @ mesh.centered_from_object, mask


def page_locked(frame: Frame) -> Frame:
    """Return the frame with room for its images in page-locked memory; write_images fills it."""
    rgb, depth_m = (page_locked_empty(i.shape, i.dtype) for i in (frame.rgb, frame.depth_m))
    return Frame(rgb, depth_m, frame.intrinsics, frame.stamp_ns, frame.frame_id)


def write_images(frame: Frame, source: Frame) -> None:
    """Copy the images of another frame into this one's."""
    np.copyto(frame.rgb, source.rgb)
    np.copyto(frame.depth_m, source.depth_m)


def spread(frame: Frame, pose: np.ndarray, mesh: ObjectMesh) -> list[np.ndarray]:
    """Put TOGETHER objects all over the image, at the distance of one: camera_from_object each."""
    k, away_m = frame.intrinsics, AWAY_DIAMETERS * mesh.diameter_m
    columns, rows = SPREAD
    poses = []
    for index in range(TOGETHER):
        across = (index % columns + 0.5) / columns - 0.5
        down = (index // columns + 0.5) / rows - 0.5
        moved = pose.copy()
        moved[:2, 3] += np.array([across * k.width / k.fx, down * k.height / k.fy]) * away_m
        poses.append(moved)
    return poses


Call = Callable[[], object]


@dataclass(frozen=True)
class Refreshed:
    """A call before which something else is to be done each time, which does not count."""

    call: Call
    refresh: Call

    def __call__(self) -> object:
        """Call it."""
        return self.call()


class _Sampled:
    """A call, how often it is to be measured, and what was measured."""

    def __init__(self, call: Call, repeats: int) -> None:
        self._call, self._cpu_s = call, 0.0
        self._refresh = call.refresh if isinstance(call, Refreshed) else lambda: None
        self._samples_ms: list[float] = []
        self._refresh()
        call()
        start_s = time.perf_counter()
        call()
        slowness_s = time.perf_counter() - start_s
        for _ in range(min(20, int(1.0 / slowness_s))):  # clocks rise
            call()
        self._repeats = max(min(FEWEST, repeats), min(repeats, int(LIMIT_S / slowness_s)))

    def sample(self, share: float) -> None:
        """Measure until this share of the repeats is done."""
        left = round(share * self._repeats) - len(self._samples_ms)
        if left > SETTLING:
            for _ in range(SETTLING):  # another call had its turn
                self._refresh()
                self._call()
        for _ in range(left):
            self._refresh()
            cpu_s, start_s = time.process_time(), time.perf_counter()
            self._call()
            self._samples_ms.append(1e3 * (time.perf_counter() - start_s))
            self._cpu_s += time.process_time() - cpu_s

    def figures(self) -> dict[str, float | None]:
        """Return what timings() gives of a call."""
        count = len(self._samples_ms)
        p50, p99 = np.percentile(self._samples_ms, (50, 99))
        return {
            'p50_ms': float(p50),
            'p99_ms': float(p99) if count >= MANY else None,
            'max_ms': max(self._samples_ms),
            'cpu_ms': 1e3 * self._cpu_s / count,
            'repeats': count,
        }


def timings(*calls: Call, repeats: int) -> list[dict[str, float | None]]:
    """Milliseconds from images in the host's memory to the pose there: p50, p99, largest, by call.

    Calls to be compared take turns: a host that others use, too, is now quicker, now slower.
    p99_ms: None of fewer than MANY samples. cpu_ms: processor time of all threads of the process,
    waiting for the GPU in a loop included.
    """
    sampled = [_Sampled(call, repeats) for call in calls]
    for turn in range(1, TURNS + 1):
        for one in sampled:
            one.sample(turn / TURNS)
    return [one.figures() for one in sampled]


def accuracy(tasks: list[PoseTask], poses: list[np.ndarray | None]) -> dict[str, Any]:
    """Errors against the truth. pose: ADD-S and ADD AUC in percent, medians in degrees and mm;
    by_view: each view's rotation_deg and translation_mm."""
    errors = [
        pose_errors(task.points, pose, task.truth) for task, pose in zip(tasks, poses, strict=True)
    ]
    by_view = {
        'rotation_deg': np.degrees([e.rotation_rad for e in errors]).tolist(),
        'translation_mm': [1e3 * e.translation_m for e in errors],
    }
    pose = {
        'add_s_auc': 100 * auc([e.add_s_m for e in errors]),
        'add_auc': 100 * auc([e.add_m for e in errors]),
        **{name: float(np.median(values)) for name, values in by_view.items()},
    }
    return {'pose': pose, 'by_view': by_view}


def is_worse(row: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Tell whether a row's poses are further from the truth than rounding and chance explain.

    Both as accuracy() returns them, of the same views: compared view by view, since the medians
    of few views change with which of them is in the middle.
    """
    pose, other = row['pose'], reference['pose']
    views = len(row['by_view']['rotation_deg'])
    return (
        pose['add_s_auc'] < other['add_s_auc'] - AUC_POINTS
        or pose['add_auc'] < other['add_auc'] - AUC_POINTS - 100 / views
        or _excess(row, reference, 'rotation_deg') > MEDIAN_DEG
        or _excess(row, reference, 'translation_mm') > MEDIAN_MM
    )


def _excess(row: Mapping[str, Any], reference: Mapping[str, Any], name: str) -> float:
    """By how much a view's error is larger than the reference's, in the median."""
    ours, theirs = (np.array(one['by_view'][name]) for one in (row, reference))
    with np.errstate(invalid='ignore'):
        more = np.where(ours == theirs, 0.0, ours - theirs)  # also where neither has a pose
    return float(np.median(more))
