"""Trackers of several objects on one estimator: one batch per frame, a state for each object."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..datatypes import Frame, Outcome, PoseEstimate, TrackingState, require
from .mesh import ObjectMesh
from .tracker import ObjectTracker, TrackerSettings, TrackingStep

MOST_EXCUSED_S = 10.0  # of a registration of another object: a pose older than that is no start


class GroupEstimator(Protocol):
    """What the group needs of a PoseEstimator; index: the place of an object's mesh."""

    @property
    def meshes(self) -> Sequence[ObjectMesh]:
        """The objects."""

    def register(self, frame: Frame, mask: np.ndarray, index: int = 0) -> PoseEstimate:
        """Find the pose of an object from its mask."""

    def track(self, frame: Frame, camera_from_object: np.ndarray, index: int = 0) -> PoseEstimate:
        """Refine the last pose of one object."""

    def track_all(
        self, frame: Frame, camera_from_object: Mapping[int, np.ndarray]
    ) -> dict[int, PoseEstimate]:
        """Refine the last poses of objects, by their places."""

    def score(self, frame: Frame, camera_from_object: np.ndarray, index: int = 0) -> np.ndarray:
        """Rank poses (N, 4, 4) of an object against each other."""


@dataclass(frozen=True)
class _OneObject:
    """One object of a group's estimator, as a tracker sees it."""

    of: GroupEstimator
    index: int

    @property
    def center_m(self) -> np.ndarray:
        """The object's centre in the frame of its mesh file, metres."""
        return self.of.meshes[self.index].center_m

    def register(self, frame: Frame, mask: np.ndarray) -> PoseEstimate:
        """Find its pose from a mask."""
        return self.of.register(frame, mask, self.index)

    def track(self, frame: Frame, camera_from_object: np.ndarray) -> PoseEstimate:
        """Refine its last pose."""
        return self.of.track(frame, camera_from_object, self.index)

    def score(self, frame: Frame, camera_from_object: np.ndarray) -> np.ndarray:
        """Rank poses (N, 4, 4) of it against each other."""
        return self.of.score(frame, camera_from_object, self.index)


class ObjectGroup:
    """Follows the objects of an estimator, each with a state machine of its own (ObjectTracker).

    Objects are named by their places in estimator.meshes. Call track() with every frame and
    register() where there is a mask of an object that is seeking(). Not thread-safe. clock_s: in
    seconds, of the same pace as the frames' stamps; tells how long registrations take.
    """

    def __init__(self, estimator: GroupEstimator, settings: Sequence[TrackerSettings]) -> None:
        """settings: one per object; raises ValueError for another number of them."""
        self.clock_s: Callable[[], float] = time.perf_counter
        self.estimator = estimator
        self._requested: set[int] = set()
        self._require_one_each(settings)
        self._trackers = [
            ObjectTracker(_OneObject(estimator, index), one) for index, one in enumerate(settings)
        ]

    @property
    def states(self) -> tuple[TrackingState, ...]:
        """The state of each object."""
        return tuple(tracker.state for tracker in self._trackers)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each object is in its state (ObjectTracker.reason)."""
        return tuple(tracker.reason for tracker in self._trackers)

    @property
    def settings(self) -> tuple[TrackerSettings, ...]:
        """The settings in force, by object."""
        return tuple(tracker.settings for tracker in self._trackers)

    def set_settings(self, settings: Sequence[TrackerSettings]) -> None:
        """Use other settings, one per object, from the next frame on; states stay.

        Raises ValueError for another number of them.
        """
        self._require_one_each(settings)
        for tracker, one in zip(self._trackers, settings, strict=True):
            tracker.settings = one

    def seeking(self, index: int) -> bool:
        """Whether register() has something to do: not tracked, or a registration was requested.

        Raises ValueError for an unknown index.
        """
        tracked = self._tracker(index).state is TrackingState.TRACKING
        return not tracked or index in self._requested

    @property
    def any_seeking(self) -> bool:
        """Whether any object is seeking()."""
        return any(self.seeking(index) for index in range(len(self._trackers)))

    def track(self, frame: Frame, only: Collection[int] | None = None) -> dict[int, TrackingStep]:
        """Track all objects that have a pose, as one batch whose time every step carries.

        only: those of them that did not see this frame yet.

        An object whose pose cannot be tracked from any more (ObjectTracker.begin) comes with
        outcome EXPIRED and stage 'idle'; objects that had no pose are left out.
        """
        start = time.perf_counter()
        chosen = range(len(self._trackers)) if only is None else only
        tracked = [i for i in chosen if self.states[i] is TrackingState.TRACKING]
        begun = {index: self._trackers[index].begin(frame) for index in chosen}
        last = {index: pose for index, pose in begun.items() if pose is not None}
        raw = self.estimator.track_all(frame, last) if last else {}
        estimates = {i: self._trackers[i].judge_track(frame, raw[i]) for i in last}
        elapsed_ms = (time.perf_counter() - start) * 1e3
        expired = PoseEstimate(Outcome.EXPIRED)
        return {
            index: TrackingStep(
                self._trackers[index].state,
                estimates.get(index, expired),
                'track' if index in estimates else 'idle',
                elapsed_ms,
            )
            for index in tracked
        }

    def register(self, index: int, frame: Frame, mask: np.ndarray) -> TrackingStep:
        """Register one object; mask (H, W) non-zero = object.

        A pose that passes the gate replaces the one there was and settles a request; any other
        outcome leaves a track and the request as they were. The time it takes does not count
        towards the timeout of what is tracked. Raises ValueError for an unknown index and a mask
        of another size than the frame.
        """
        tracker, start_s, began_s = self._tracker(index), time.perf_counter(), self.clock_s()
        estimate = self.estimator.register(frame, mask, index)
        elapsed_ms = (time.perf_counter() - start_s) * 1e3
        estimate = tracker.judge_registration(frame, estimate)
        took_s = max(0.0, self.clock_s() - began_s)
        for waiting in self._trackers:
            waiting.excuse(took_s if waiting is tracker else min(took_s, MOST_EXCUSED_S))
        if estimate.outcome is Outcome.OK:
            self._requested.discard(index)
        return TrackingStep(tracker.state, estimate, 'register', elapsed_ms)

    def request_registration(self, index: int | None = None) -> None:
        """Ask for a new registration of one object, or of all, without giving up its track.

        Raises ValueError for an unknown index.
        """
        self._requested.update(self._chosen(index))

    def start_from(self, index: int, camera_from_object: np.ndarray) -> None:
        """Begin tracking an object from a known pose (4, 4), metres, and drop its request.

        Raises ValueError for an unknown index.
        """
        self._tracker(index).start_from(camera_from_object)
        self._requested.discard(index)

    def reset(self, index: int | None = None, reason: str = 'RESET') -> None:
        """Forget one object, or all, and search again.

        Raises ValueError for an unknown index.
        """
        for chosen in self._chosen(index):
            self._trackers[chosen].reset(reason)

    def lose(self, reason: str) -> None:
        """Give up what is tracked: LOST, for this reason."""
        for tracker in self._trackers:
            tracker.lose(reason)

    def _chosen(self, index: int | None) -> range:
        if index is None:
            return range(len(self._trackers))
        self._tracker(index)
        return range(index, index + 1)

    def _tracker(self, index: int) -> ObjectTracker:
        last = len(self._trackers) - 1
        require(0 <= index <= last, f'object index is {index}, must be between 0 and {last}')
        return self._trackers[index]

    def _require_one_each(self, settings: Sequence[TrackerSettings]) -> None:
        count = len(self.estimator.meshes)
        require(
            len(settings) == count,
            f'{len(settings)} tracker settings for {count} objects: give one for each',
        )
