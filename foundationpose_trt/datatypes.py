"""Values that stages hand to each other: frozen, checked once on construction, numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np


class Outcome(str, Enum):
    """Named result of a registration, tracking step or frame; anything but OK carries no pose."""

    OK = 'OK'
    NO_MASK = 'NO_MASK'  # the tracker searches and this frame came without a mask
    EMPTY_MASK = 'EMPTY_MASK'  # the mask marks no pixel
    NO_DEPTH_IN_MASK = 'NO_DEPTH_IN_MASK'  # fewer valid depth pixels in the mask than needed
    OUT_OF_RANGE = 'OUT_OF_RANGE'  # the object would stand outside min_depth_m..max_depth_m
    NOT_FINITE = 'NOT_FINITE'  # a network or the geometry produced NaN or infinity
    LOW_QUALITY = 'LOW_QUALITY'  # the rendered pose contradicts the observed depth
    LOW_SUPPORT = 'LOW_SUPPORT'  # too little of the object is visible to tell
    EXPIRED = 'EXPIRED'  # the last pose is too old, or time jumped back; see the tracker's reason


class TrackingState(str, Enum):
    """State of the tracker of one object."""

    SEARCHING = 'SEARCHING'
    TRACKING = 'TRACKING'
    LOST = 'LOST'


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class CameraIntrinsics:
    """Pinhole camera without distortion; pixel centres at integers (OpenCV convention), pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        for name in ('fx', 'fy', 'cx', 'cy'):
            value = getattr(self, name)
            require(np.isfinite(value), f'camera intrinsics: {name} is {value}, must be finite')
        require(
            self.fx > 0 and self.fy > 0,
            f'camera intrinsics: focal lengths are fx={self.fx}, fy={self.fy} px, must be'
            ' positive; is the camera calibrated (camera_info.k all zero means it is not)?',
        )
        require(
            self.width > 0 and self.height > 0,
            f'camera intrinsics: image size is {self.width}x{self.height}, must be positive',
        )

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, width: int, height: int) -> CameraIntrinsics:
        """Take fx, fy, cx, cy from a 3x3 matrix K (skew is refused)."""
        k = np.asarray(matrix, dtype=np.float64).reshape(3, 3)
        require(abs(k[0, 1]) < 1e-6, f'camera matrix has skew {k[0, 1]}: rectify the image first')
        return cls(k[0, 0], k[1, 1], k[0, 2], k[1, 2], int(width), int(height))

    def matrix(self) -> np.ndarray:
        """Return K, (3, 3) float64, pixels."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)


@dataclass(frozen=True)
class Frame:
    """One registered RGB-D image.

    rgb: (H, W, 3) uint8, R G B order. depth_m: (H, W) float32, metres along the optical axis, as
    the camera gave it: 0, negative, infinite and NaN are all invalid, and what reads it must know
    (the depth filters do; valid_depth_m is for others): a pass over the image here would delay
    every tracked frame. stamp_ns: the camera's time stamp, untouched. Raises ValueError when
    shapes disagree and for depth in whole numbers, which would be millimetres.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    intrinsics: CameraIntrinsics
    stamp_ns: int = 0
    frame_id: str = 'camera_color_optical_frame'

    def __post_init__(self) -> None:
        size = (self.intrinsics.height, self.intrinsics.width)
        # no require(): a message of shapes takes longer than all the checks
        if self.rgb.dtype != np.uint8 or self.rgb.shape != (*size, 3):
            raise ValueError(
                f'rgb is {self.rgb.dtype} {self.rgb.shape}, must be uint8 {(*size, 3)} as in the'
                ' camera intrinsics'
            )
        if self.depth_m.shape != size:
            raise ValueError(
                f'depth is {self.depth_m.shape}, must be {size}: depth must be registered to'
                ' colour'
            )
        if self.depth_m.dtype.kind != 'f':
            raise ValueError(
                f'depth is {self.depth_m.dtype}, must be floating-point metres: multiply whole'
                ' millimetres by 0.001'
            )
        object.__setattr__(self, 'depth_m', np.asarray(self.depth_m, dtype=np.float32))

    @property
    def valid_depth_m(self) -> np.ndarray:
        """Depth (H, W) float32 in metres with 0 wherever it is invalid; a new array."""
        valid = np.isfinite(self.depth_m) & (self.depth_m > 0)
        return np.where(valid, self.depth_m, np.float32(0))


@dataclass(frozen=True)
class PoseQuality:
    """How well the rendered object explains the observed depth inside its crop.

    Counts are pixels of the 160x160 crop: rendered = covered by the object; agreeing = observed
    depth within tolerance of the rendered one; in_front = observed surface nearer (an occluder);
    behind = observed surface farther (a contradiction); the rest has no valid depth.
    """

    rendered: int
    agreeing: int
    in_front: int
    behind: int

    @property
    def agreement(self) -> float:
        """Share of agreeing among the pixels that can contradict, 0..1; 0 when there are none."""
        return self.agreeing / max(1, self.agreeing + self.behind)

    @property
    def visible(self) -> float:
        """Share of the rendered pixels whose depth agrees, 0..1."""
        return self.agreeing / max(1, self.rendered)


NO_POSES, NO_SCORES = np.zeros((0, 4, 4)), np.zeros(0, np.float32)  # nothing in them to change


@dataclass(frozen=True)
class PoseEstimate:
    """Result of estimator.register or estimator.track.

    camera_from_object: (4, 4) float64, metres, in the frame of the mesh file (scaled), or None
    unless outcome is OK. score: the scorer's logit, comparable only within one registration
    (None after track). ranked_*: all final hypotheses of a registration, best first:
    (N, 4, 4) float64 and (N,) float32.
    """

    outcome: Outcome
    camera_from_object: np.ndarray | None = None
    score: float | None = None
    quality: PoseQuality | None = None
    ranked_camera_from_object: np.ndarray = field(default_factory=lambda: NO_POSES)
    ranked_scores: np.ndarray = field(default_factory=lambda: NO_SCORES)

    def __post_init__(self) -> None:
        has_pose = self.camera_from_object is not None
        if has_pose != (self.outcome is Outcome.OK):  # no require: a pose takes long to print
            raise ValueError(
                f'outcome {self.outcome.value} with pose {self.camera_from_object}: OK needs a'
                ' pose and a failure must not carry one'
            )
