"""The tracker of one object: a state machine around an estimator, with a gate of its own.

Upstream tracking has no notion of being lost (foundationpose.md §3.6); a wrong pose moves a real
arm. Here a pose leaves only when the observed depth supports it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..datatypes import Frame, Outcome, PoseEstimate, PoseQuality, TrackingState, require
from ..geometry import transform

JUMP_BACK_NS = 1_000_000_000  # a step back in time beyond this is a recording that begins anew


class Estimator(Protocol):
    """What the tracker needs of a PoseEstimator. center_m: (3,) of the object, where it turns."""

    @property
    def center_m(self) -> np.ndarray:
        """The object's centre in the frame of its mesh file, metres."""

    def register(self, frame: Frame, mask: np.ndarray) -> PoseEstimate:
        """Find the pose from a mask."""

    def track(self, frame: Frame, camera_from_object: np.ndarray) -> PoseEstimate:
        """Refine the last pose."""

    def score(self, frame: Frame, camera_from_object: np.ndarray) -> np.ndarray:
        """Rank poses (N, 4, 4) against each other."""


@dataclass(frozen=True)
class TrackerSettings:
    """The quality gate.

    min_agreement: share of agreeing depth among agreeing + behind; min_visible: share of the
    rendered pixels whose depth agrees; min_support_px: agreeing pixels of the 160x160 crop;
    register_min_*: the same after a registration, stricter since nothing else vouches for it.
    recover_margin: added to min_agreement and min_visible, up to 1, for the frames after one
    below the gate, until one passes: a pose at the limit does not come and go. lost_after:
    consecutive frames below the gate until LOST. timeout_s: seconds between the frame of the
    last accepted pose and one that may still be tracked from it, 0 = any number. score_interval:
    frames between comparisons of the pose with turned copies of itself by the scorer, 0 = never;
    score_margin: logits by which a copy must win to count against the pose.
    """

    min_agreement: float = 0.6
    min_visible: float = 0.15
    min_support_px: int = 60
    register_min_agreement: float = 0.7
    register_min_visible: float = 0.25
    recover_margin: float = 0.05
    lost_after: int = 15  # half a second at 30 Hz
    timeout_s: float = 1.0
    score_interval: int = 0
    score_margin: float = 2.0

    def __post_init__(self) -> None:
        shares = ('min_agreement', 'min_visible')
        for name in (*shares, *(f'register_{share}' for share in shares), 'recover_margin'):
            value = getattr(self, name)
            require(0 <= value <= 1, f'{name} is {value}, must be a share between 0 and 1')
        require(self.lost_after >= 1, f'lost_after is {self.lost_after}, must be at least 1')
        require(
            self.timeout_s >= 0,
            f'timeout_s is {self.timeout_s}, must be a number of seconds, or 0 for no timeout',
        )
        require(
            self.score_interval >= 0 and self.min_support_px >= 0,
            f'score_interval is {self.score_interval} and min_support_px {self.min_support_px},'
            ' neither may be negative',
        )


@dataclass(frozen=True)
class TrackingStep:
    """What one frame led to. stage: 'register', 'track' or 'idle' (nothing was computed)."""

    state: TrackingState
    estimate: PoseEstimate
    stage: str
    elapsed_ms: float


class ObjectTracker:
    """SEARCHING -> (registration passes the gate) -> TRACKING -> (gate fails too often) -> LOST.

    LOST behaves like SEARCHING: the next mask registers again. A frame whose pose fails the gate
    yields LOW_QUALITY or LOW_SUPPORT and no pose; the last good pose is kept as the start for
    the next frame, so that a short occlusion does not end the track. A gap or a step back in the
    frames' stamps does.

    reason tells why it is in its state: STARTED (nothing happened yet; with TRACKING: from a
    known pose), REGISTERED, RESET, TIMEOUT, TIME_JUMPED_BACK, or the Outcome that ended the track.
    step() does all that a frame needs; begin() and the judge_ methods are its parts, for who
    computes the estimates of several trackers at once (object_group.py).
    """

    def __init__(self, estimator: Estimator, settings: TrackerSettings | None = None) -> None:
        self.estimator = estimator
        self.settings = settings or TrackerSettings()
        self._forget(TrackingState.SEARCHING, 'STARTED')

    def _forget(self, state: TrackingState, reason: str) -> None:
        """Give up the pose and all that was counted for it."""
        self.state, self.reason = state, reason
        self._last: np.ndarray | None = None
        self._newest_ns: int | None = None  # of the frame that came last
        self._accepted_ns: int | None = None  # of the frame that the last pose is of
        self._excused_s = 0.0  # by which it may be older than timeout_s
        self._below_gate = self._since_score = 0

    def reset(self, reason: str = 'RESET') -> None:
        """Forget the object and search again."""
        self._forget(TrackingState.SEARCHING, reason)

    def lose(self, reason: str) -> None:
        """Give the track up, if there is one: the object is LOST for this reason."""
        if self._last is not None:
            self._forget(TrackingState.LOST, reason)

    def start_from(self, camera_from_object: np.ndarray) -> None:
        """Begin tracking from a known pose (4, 4), metres."""
        self._forget(TrackingState.TRACKING, 'STARTED')
        self._last = np.asarray(camera_from_object, np.float64)

    def step(self, frame: Frame, mask: np.ndarray | None) -> TrackingStep:
        """Process one frame; mask (H, W) non-zero = object, needed only while not TRACKING."""
        start = time.perf_counter()
        stage, estimate = self._processed(frame, mask)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        return TrackingStep(self.state, estimate, stage, elapsed_ms)

    def _processed(self, frame: Frame, mask: np.ndarray | None) -> tuple[str, PoseEstimate]:
        was_tracking = self.state is TrackingState.TRACKING
        last = self.begin(frame)
        if last is not None:
            return 'track', self.judge_track(frame, self.estimator.track(frame, last))
        if mask is not None:
            start = time.perf_counter()
            estimate = self.judge_registration(frame, self.estimator.register(frame, mask))
            self.excuse(time.perf_counter() - start)
            return 'register', estimate
        return 'idle', PoseEstimate(Outcome.EXPIRED if was_tracking else Outcome.NO_MASK)

    def begin(self, frame: Frame) -> np.ndarray | None:
        """Return the pose (4, 4) to track from on this frame, None when there is none.

        A pose that is too old, or of a time to come, is given up: the state is LOST then. The
        pose of start_from() is of the first frame.
        """
        expiry = self._expiry(frame.stamp_ns)
        if expiry is not None:
            self._forget(TrackingState.LOST, expiry)
        if self._last is not None and self._accepted_ns is None:
            self._accepted_ns = frame.stamp_ns  # the pose of start_from is of its first frame
        self._newest_ns = frame.stamp_ns
        return self._last

    def _expiry(self, stamp_ns: int) -> str | None:
        """Name why the last pose cannot be tracked from at this time, None when it can."""
        if self._last is None:
            return None
        if self._newest_ns is not None and self._newest_ns - stamp_ns > JUMP_BACK_NS:
            return 'TIME_JUMPED_BACK'
        if self._accepted_ns is None or self.settings.timeout_s == 0:
            return None
        allowed_ns = (self.settings.timeout_s + self._excused_s) * 1e9
        return 'TIMEOUT' if stamp_ns - self._accepted_ns > allowed_ns else None

    def excuse(self, seconds: float) -> None:
        """Let the last pose be older by so much: no frame could be tracked in this time."""
        self._excused_s += seconds

    def judge_registration(self, frame: Frame, estimate: PoseEstimate) -> PoseEstimate:
        """Take over what the estimator registered on a frame, if it passes the gate.

        Returns the estimate, or the named failure; that leaves pose, state and reason alone. How
        long it took is to be excused afterwards.
        """
        limits = self.settings
        estimate = gated(
            estimate,
            replace(
                limits,
                min_agreement=limits.register_min_agreement,
                min_visible=limits.register_min_visible,
            ),
        )
        if estimate.outcome is Outcome.OK:
            self._forget(TrackingState.TRACKING, 'REGISTERED')
            self._last = estimate.camera_from_object
            self._newest_ns = self._accepted_ns = frame.stamp_ns
        return estimate

    def judge_track(self, frame: Frame, estimate: PoseEstimate) -> PoseEstimate:
        """Take over what the estimator tracked on a frame, if it passes the gate.

        estimate: of estimator.track from the pose that begin() gave for the same frame. Returns
        it, or the named failure; that ends the track after so many in a row.
        """
        estimate = gated(estimate, self._limits())
        if estimate.outcome is Outcome.OK:
            estimate = self._checked_by_scorer(frame, estimate)
        if estimate.outcome is Outcome.OK:
            self._last, self._accepted_ns = estimate.camera_from_object, frame.stamp_ns
            self._below_gate, self._excused_s = 0, 0.0
            return estimate
        self._below_gate += 1
        if self._below_gate >= self.settings.lost_after:
            self._forget(TrackingState.LOST, estimate.outcome.value)
        return estimate

    def _limits(self) -> TrackerSettings:
        """Return the gate, with the margin while the last frame was below it."""
        limits = self.settings
        if self._below_gate == 0:
            return limits
        return replace(
            limits,
            min_agreement=min(1.0, limits.min_agreement + limits.recover_margin),
            min_visible=min(1.0, limits.min_visible + limits.recover_margin),
        )

    def _checked_by_scorer(self, frame: Frame, estimate: PoseEstimate) -> PoseEstimate:
        """Every score_interval frames: the pose must not lose to a turned copy of itself.

        A pose that lost is compared again on every frame, so that losing ends the track.
        """
        pose = estimate.camera_from_object
        if self.settings.score_interval == 0 or pose is None:
            return estimate
        self._since_score += 1
        if self._since_score < self.settings.score_interval:
            return estimate
        copies = turned_copies(pose, self.estimator.center_m)
        scores = self.estimator.score(frame, np.stack([pose, *copies]))
        if not np.isfinite(scores).all():
            return PoseEstimate(Outcome.NOT_FINITE, quality=estimate.quality)
        if scores[1:].max() > scores[0] + self.settings.score_margin:
            return PoseEstimate(Outcome.LOW_QUALITY, quality=estimate.quality)
        self._since_score = 0
        return estimate


def turned_copies(camera_from_object: np.ndarray, center_m: np.ndarray) -> list[np.ndarray]:
    """Return six copies of a pose (4, 4), turned +-30 degrees about each camera axis in place.

    In place: the object's centre (3,), given in its own frame, stays where the camera sees it,
    however far the mesh file's origin is. 30 degrees is beyond what one step of the refiner
    repairs and below the grid's spacing.
    """
    copies = []
    was, place = camera_from_object[:3, :3], camera_from_object[:3, 3]
    for axis in range(3):
        for angle in (np.deg2rad(30.0), np.deg2rad(-30.0)):
            i, j = (axis + 1) % 3, (axis + 2) % 3
            turn = np.eye(3)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            rotation = turn @ was
            copies.append(transform(rotation, place + (was - rotation) @ center_m))
    return copies


def gated(estimate: PoseEstimate, limits: TrackerSettings) -> PoseEstimate:
    """Return the estimate, or the named failure when its quality is below the limits."""
    if estimate.outcome is not Outcome.OK:
        return estimate
    quality = estimate.quality
    require(quality is not None, 'an OK estimate came without quality')
    failure = gate_failure(quality, limits)  # type: ignore[arg-type]
    return estimate if failure is None else PoseEstimate(failure, quality=quality)


def gate_failure(quality: PoseQuality, limits: TrackerSettings) -> Outcome | None:
    """Name what speaks against a pose: contradicted depth, or too little of it; None = passes."""
    contradictions = quality.agreeing + quality.behind
    if contradictions >= limits.min_support_px and quality.agreement < limits.min_agreement:
        return Outcome.LOW_QUALITY
    if quality.agreeing < limits.min_support_px or quality.visible < limits.min_visible:
        return Outcome.LOW_SUPPORT
    return None
