"""Estimators whose answers are scripted, and short words for what they answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import (
    CameraIntrinsics,
    Frame,
    Outcome,
    PoseEstimate,
    PoseQuality,
    TrackingState,
)

SEARCHING, TRACKING, LOST = TrackingState.SEARCHING, TrackingState.TRACKING, TrackingState.LOST
GOOD = PoseQuality(rendered=1000, agreeing=900, in_front=50, behind=50)
MASK = np.ones((4, 6), bool)
FRAME = Frame(
    np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.float32), CameraIntrinsics(5, 5, 3, 2, 6, 4)
)


def frame_at(seconds: float) -> Frame:
    """A frame with a stamp of its own, as cameras give them: far from zero."""
    return replace(FRAME, stamp_ns=1_700_000_000_000_000_000 + round(seconds * 1e9))


def pose(x_m: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('xyz', [0.3, -0.4, 1.0]).as_matrix()
    matrix[:3, 3] = x_m, 0.1, 0.8
    return matrix


def found(x_m: float, quality: PoseQuality = GOOD) -> PoseEstimate:
    return PoseEstimate(Outcome.OK, pose(x_m), quality=quality)


def failed(outcome: Outcome) -> PoseEstimate:
    return PoseEstimate(outcome)


BAD = found(9.0, PoseQuality(1000, 100, 0, 900))
HIDDEN = found(9.0, PoseQuality(1000, 10, 990, 0))


class Scripted:
    """Answers from queues and remembers what it was asked."""

    center_m = np.array([0.3, -0.1, 0.05])

    def __init__(
        self,
        register: Sequence[PoseEstimate] = (),
        track: Sequence[PoseEstimate] = (),
        scores: Sequence = (),
    ) -> None:
        self._register, self._track, self._scores = deque(register), deque(track), deque(scores)
        self.masks: list[np.ndarray] = []
        self.tracked_from: list[float] = []
        self.scored: list[np.ndarray] = []

    def register(self, frame: Frame, mask: np.ndarray) -> PoseEstimate:
        self.masks.append(mask)
        return self._register.popleft()

    def track(self, frame: Frame, camera_from_object: np.ndarray) -> PoseEstimate:
        self.tracked_from.append(float(camera_from_object[0, 3]))
        return self._track.popleft()

    def score(self, frame: Frame, camera_from_object: np.ndarray) -> np.ndarray:
        self.scored.append(camera_from_object)
        return np.array(self._scores.popleft(), np.float32)


class ScriptedGroup:
    """One Scripted per object behind the interface of an estimator of several."""

    def __init__(self, *objects: Scripted) -> None:
        self.objects = objects
        self.meshes = objects
        self.batches: list[list[int]] = []

    def register(self, frame: Frame, mask: np.ndarray, index: int = 0) -> PoseEstimate:
        return self.objects[index].register(frame, mask)

    def track(self, frame: Frame, camera_from_object: np.ndarray, index: int = 0) -> PoseEstimate:
        return self.objects[index].track(frame, camera_from_object)

    def track_all(
        self, frame: Frame, camera_from_object: Mapping[int, np.ndarray]
    ) -> dict[int, PoseEstimate]:
        self.batches.append(list(camera_from_object))
        return {i: self.track(frame, pose, i) for i, pose in camera_from_object.items()}

    def score(self, frame: Frame, camera_from_object: np.ndarray, index: int = 0) -> np.ndarray:
        return self.objects[index].score(frame, camera_from_object)
