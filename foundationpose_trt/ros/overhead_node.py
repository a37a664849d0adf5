"""tracker_node with a clock in the place of its networks: what is left is the cost of ROS.

    python -m foundationpose_trt.ros.overhead_node OUTPUT COMPUTE_MS FRAMES EXECUTOR --ros-args ...

Everything but the estimator is the real node. Where the networks would run on a GPU, which leaves
the host waiting, it waits for COMPUTE_MS.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from foundationpose_trt.datatypes import (
    CameraIntrinsics,
    Frame,
    Outcome,
    PoseEstimate,
    PoseQuality,
    TrackingState,
)
from foundationpose_trt.pose.mesh import ObjectMesh, load_mesh
from foundationpose_trt.pose.tracker import TrackingStep
from foundationpose_trt.ros.running import EXECUTORS, run_node
from foundationpose_trt.ros.tracker_factory import BuiltTracker, NamedObject
from foundationpose_trt.ros.tracker_node import NODE_NAME, TrackerNode
from foundationpose_trt.ros.tracker_parameters import TrackerParameters

DISCARDED = 20  # of the first frames: everybody is still finding everybody
QUALITY = PoseQuality(100, 100, 0, 0)


class TimedGroup:
    """Registers on any mask, then answers after a fixed time, and notes what that took."""

    def __init__(self, count: int, compute_ms: float) -> None:
        self._compute_s = compute_ms / 1e3
        self.states = [TrackingState.SEARCHING] * count
        self.reasons = ['STARTED'] * count
        self.compute_ms: dict[int, float] = {}  # by the frame's stamp

    def seeking(self, index: int) -> bool:
        """Whether the object is not tracked yet."""
        return self.states[index] is not TrackingState.TRACKING

    @property
    def any_seeking(self) -> bool:
        """Whether any object is not tracked yet."""
        return any(self.seeking(index) for index in range(len(self.states)))

    def track(self, frame: Frame, only: Collection[int] | None = None) -> dict[int, TrackingStep]:
        """Wait, and return the same poses every time."""
        start_s = time.perf_counter()
        time.sleep(self._compute_s)
        elapsed_ms = (time.perf_counter() - start_s) * 1e3
        self.compute_ms[frame.stamp_ns] = elapsed_ms
        tracked = [k for k in range(len(self.states)) if not self.seeking(k)]
        return {index: self._step(index, 'track', elapsed_ms) for index in tracked}

    def register(self, index: int, frame: Frame, mask: np.ndarray) -> TrackingStep:
        """Take any mask for the object."""
        self.states[index], self.reasons[index] = TrackingState.TRACKING, 'REGISTERED'
        return self._step(index, 'register', 0.0)

    def lose(self, reason: str) -> None:
        """Search again, for this reason."""
        self.reset(None, reason)

    def reset(self, index: int | None = None, reason: str = 'RESET') -> None:
        """Search again."""
        self.states = [TrackingState.SEARCHING] * len(self.states)

    def request_registration(self, index: int | None = None) -> None:
        """Nothing could be renewed."""

    def _step(self, index: int, stage: str, elapsed_ms: float) -> TrackingStep:
        pose = np.eye(4)
        pose[:3, 3] = 0.1 * index, 0.0, 0.8
        estimate = PoseEstimate(Outcome.OK, pose, quality=QUALITY)
        return TrackingStep(self.states[index], estimate, stage, elapsed_ms)


class OverheadNode(TrackerNode):
    """Ends after some frames and writes the age of each pose less its compute."""

    def __init__(self, output: Path, compute_ms: float, frames: int, **options: Any) -> None:
        self._output, self._compute_ms, self._frames = output, compute_ms, frames
        self._ages_ms: list[float] = []
        self._timed: TimedGroup | None = None
        super().__init__(self._build_timed, **options)

    def finished(self) -> bool:
        """Tell whether all frames were measured; they are written then."""
        done = len(self._ages_ms) >= DISCARDED + self._frames
        if done and self._timed is not None:
            compute_ms = list(self._timed.compute_ms.values())
            rows = zip(self._ages_ms, compute_ms, strict=False)
            overhead_ms = [age - compute for age, compute in list(rows)[DISCARDED:]]
            content = {'overhead_ms': overhead_ms, 'drops': self.drops()}
            self._output.write_text(json.dumps(content), encoding='utf-8')
        return done or super().finished()

    def note(self, name: str, value: float) -> None:
        """As ImageNode's; ages of tracked frames are kept."""
        super().note(name, value)
        if name == 'age_ms' and self._timed is not None and self._timed.compute_ms:
            self._ages_ms.append(value)

    def _build_timed(
        self, parameters: TrackerParameters, nested: Mapping[str, Any], report: Any
    ) -> BuiltTracker:
        names = parameters.objects or ('object',)
        self._timed = TimedGroup(len(names), self._compute_ms)
        mesh = box_mesh(self._output.with_suffix('.ply'))
        several = bool(parameters.objects)
        objects = tuple(
            NamedObject(name, name, name, f'{name}/' if several else '', k * several, mesh)
            for k, name in enumerate(names, 1)
        )
        return BuiltTracker(self._timed, objects, ignore_camera, 'a clock')


def ignore_camera(intrinsics: CameraIntrinsics) -> None:
    """Nothing has to be warm."""


def box_mesh(path: Path) -> ObjectMesh:
    """Return a box of 10 x 6 x 4 cm, written to a file on the way."""
    trimesh.creation.box((0.1, 0.06, 0.04)).export(path)
    return load_mesh(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m foundationpose_trt.ros.overhead_node`."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    output, compute_ms, frames, executor = words[:4]
    measured = (Path(output), float(compute_ms), int(frames))
    return run_node(
        NODE_NAME, lambda: OverheadNode(*measured), words[4:], EXECUTORS[executor]
    )  # fmt: skip


if __name__ == '__main__':
    raise SystemExit(main())
