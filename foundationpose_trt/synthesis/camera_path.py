"""Camera and hand motion: smooth random paths with a bounded step per frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from ..datatypes import require
from ..geometry import transform

PHASE_STEP = 0.003  # radians of the main wave


@dataclass(frozen=True)
class MotionLimits:
    """Largest motion of the target in the camera from one frame to the next.

    Defaults: an unhurried hand-held camera at 30 Hz (5 mm and 0.4 degrees per frame were
    measured on a real one). peak_share: share of the frames driven at that speed, the rest at a
    third of it.
    """

    step_m: float = 0.006
    step_rad: float = np.radians(1.0)
    peak_share: float = 0.5


class Wander:
    """Smooth random curves in -1..1 over a phase; incommensurate sines, so they do not repeat."""

    RATES = np.array([1.0, 0.618, 1.732])
    WEIGHTS = np.array([0.55, 0.3, 0.15])

    def __init__(self, rng: np.random.Generator, channels: int) -> None:
        self._starts = rng.uniform(0, 2 * np.pi, (channels, 3))
        self._signs = rng.choice([-1.0, 1.0], (channels, 3))

    def __call__(self, phase: np.ndarray) -> np.ndarray:
        """Return (T, channels) at phases (T,), radians of the main wave."""
        angles = phase[:, None, None] * self.RATES * self._signs + self._starts
        return np.sin(angles) @ self.WEIGHTS


@dataclass(frozen=True)
class Orbits:
    """Camera positions around a centre, T of them: angles in radians, lengths in metres.

    look_offset_m: (T, 3), what the camera looks at, relative to the centre.
    """

    azimuth: np.ndarray
    elevation: np.ndarray
    distance_m: np.ndarray
    look_offset_m: np.ndarray
    roll: np.ndarray

    def camera_from_world(self, center_m: np.ndarray) -> np.ndarray:
        """Return (T, 4, 4) float64; the world's z is up, the camera looks along its own z."""
        direction = np.stack(
            [
                np.cos(self.elevation) * np.cos(self.azimuth),
                np.cos(self.elevation) * np.sin(self.azimuth),
                np.sin(self.elevation),
            ],
            axis=1,
        )
        eye = center_m + self.distance_m[:, None] * direction
        forward = _unit(center_m + self.look_offset_m - eye)
        right = _unit(np.cross(forward, [0.0, 0.0, 1.0]))
        down = np.cross(forward, right)
        cosine, sine = np.cos(self.roll)[:, None], np.sin(self.roll)[:, None]
        rows = [cosine * right + sine * down, cosine * down - sine * right, forward]
        rotation = np.stack(rows, axis=1)
        poses = np.tile(np.eye(4), (len(eye), 1, 1))
        poses[:, :3, :3] = rotation
        poses[:, :3, 3] = -np.einsum('tij,tj->ti', rotation, eye)
        return poses


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclass(frozen=True)
class HandHeld:
    """A camera wandering around a centre and, where the target is held in a hand, its motion."""

    start_azimuth: float
    elevation: float
    distance_m: float
    camera: Wander
    target: Wander | None = None

    @classmethod
    def draw(
        cls, rng: np.random.Generator, distance_m: float, target_moves: bool = False
    ) -> HandHeld:
        """Draw a path; the centre should be where the target rests."""
        return cls(
            start_azimuth=rng.uniform(-np.pi, np.pi),
            elevation=np.radians(rng.uniform(32, 48)),
            distance_m=distance_m,
            camera=Wander(rng, 7),
            target=Wander(rng, 6) if target_moves else None,
        )

    def cameras(self, phase: np.ndarray) -> Orbits:
        """Return the camera's path at phases (T,)."""
        w = self.camera(phase)
        return Orbits(
            azimuth=self.start_azimuth + 0.7 * w[:, 0],
            elevation=self.elevation + 0.2 * w[:, 1],
            distance_m=self.distance_m * (1 + 0.15 * w[:, 2]),
            look_offset_m=self.distance_m * 0.07 * w[:, 3:6],
            roll=0.08 * w[:, 6],
        )

    def target_motion(self, phase: np.ndarray) -> np.ndarray:
        """Return moved_from_rest, (T, 4, 4): identity where the target lies still.

        A held target stays above where it rested and turns up to about 70 degrees each way.
        """
        poses = np.tile(np.eye(4), (len(phase), 1, 1))
        if self.target is not None:
            w = self.target(phase)
            poses[:, :3, :3] = Rotation.from_rotvec(1.2 * w[:, :3]).as_matrix()
            poses[:, :3, 3] = self.distance_m * (0.1 * w[:, 3:6] + [0, 0, 0.2])
        return poses


def drive(path: HandHeld, rest_m: np.ndarray, frames: int, limits: MotionLimits) -> np.ndarray:
    """Return the phases (frames,): the path driven at the limits' speed or a third of it.

    No step of the target in the camera exceeds the limits, nor does a step of the camera itself
    unless the target is held. rest_m: (3,), where the target's centre rests in the world.
    """
    require(frames > 0, f'frames is {frames}, must be positive')
    span = np.arange(0, max(12 * np.pi, frames * 0.2), PHASE_STEP)
    camera_from_world = path.cameras(span).camera_from_world(rest_m)
    camera_from_target = camera_from_world @ _about(path.target_motion(span), rest_m)
    world_from_camera = np.linalg.inv(camera_from_world)
    at_center = camera_from_target[:, :3, :3] @ rest_m + camera_from_target[:, :3, 3]
    rates = [
        np.linalg.norm(np.diff(at_center, axis=0), axis=1) / limits.step_m,
        np.linalg.norm(np.diff(world_from_camera[:, :3, 3], axis=0), axis=1) / limits.step_m,
        step_angles(camera_from_target) / limits.step_rad,
    ]
    if path.target is not None:
        rates.pop(1)
    rate = np.max(rates, axis=0)
    # where everything nearly stands still, going faster would jerk
    length = np.concatenate([[0.0], np.cumsum(np.maximum(rate, 0.25 * rate.mean()))])
    travelled = np.cumsum(_throttle(frames, limits.peak_share))
    require(
        travelled[-1] < length[-1],
        f'{frames} frames at {limits} are longer than the path: use fewer frames',
    )
    return np.interp(travelled, length, span)


def _throttle(frames: int, peak_share: float) -> np.ndarray:
    """Speed per frame, 1/3..1: `peak_share` of the frames in two smooth bursts."""
    place = np.arange(frames) / frames
    wave = 0.5 - 0.5 * np.cos(4 * np.pi * place)
    burst = np.clip((wave - (1 - peak_share)) * 4 + 0.5, 0, 1)
    return 1 / 3 + 2 / 3 * burst


def _about(motions: np.ndarray, center_m: np.ndarray) -> np.ndarray:
    """Let (T, 4, 4) motions turn about a centre instead of the origin."""
    center = np.asarray(center_m, dtype=np.float64)
    return transform(np.eye(3), center) @ motions @ transform(np.eye(3), -center)


def held_target(path: HandHeld, phase: np.ndarray, rest_m: np.ndarray) -> np.ndarray:
    """Return the target's motion in the world, (T, 4, 4), to be applied to its resting pose."""
    return _about(path.target_motion(phase), rest_m)


def step_angles(poses: np.ndarray) -> np.ndarray:
    """Return the rotation angles between neighbours of (T, 4, 4), (T - 1,) radians."""
    relative = np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3]
    return Rotation.from_matrix(relative).magnitude()
