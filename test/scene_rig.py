"""Frames of several painted ellipsoids (oracle_rig) of different sizes, in closed form.

In crops, which are normalised by the diameter, an ellipsoid of any size looks alike: the oracle
networks answer for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from oracle_rig import AMBIENT, CAMERA, albedo, ellipsoid, ray_hits, translation
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.pose.mesh import ObjectMesh


@dataclass(frozen=True)
class Thing:
    """An ellipsoid `scale` times as large as oracle_rig's, and where it is when nothing moves."""

    scale: float
    center_m: tuple[float, float, float]  # of the mesh file
    place_m: tuple[float, float, float]  # of the middle, in the camera's frame

    def mesh(self) -> ObjectMesh:
        """The mesh; its name tells the scale."""
        plain = ellipsoid(np.array(self.center_m))
        return replace(
            plain,
            name=f'ellipsoid {self.scale}',
            vertices=(plain.vertices * self.scale).astype(np.float32),
            diameter_m=plain.diameter_m * self.scale,
        )

    def pose(self, seed: int) -> np.ndarray:
        """camera_from_object (4, 4), turned by chance."""
        centered = translation(np.array(self.place_m))
        centered[:3, :3] = Rotation.random(random_state=seed).as_matrix()
        return centered @ translation(-np.array(self.center_m))

    def moved(self, pose: np.ndarray, degrees: Sequence[float], shift_m: Sequence[float]):
        """The pose turned about the middle and shifted, in the camera's frame."""
        turn = translation(np.array(self.center_m))
        turn[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees)).as_matrix()
        return translation(np.array(shift_m)) @ pose @ turn @ translation(-np.array(self.center_m))


THINGS = (
    Thing(1.0, (0.11, -0.06, 0.025), (-0.13, 0.05, 0.55)),
    Thing(0.6, (0.0, 0.0, 0.3), (0.0, -0.07, 0.40)),
    Thing(1.7, (-0.2, 0.0, 0.0), (0.20, 0.04, 0.80)),
)


def scene_of(
    things: Sequence[Thing],
    poses: Sequence[np.ndarray],
    camera: CameraIntrinsics = CAMERA,
    wall_m: float = 1.2,
) -> tuple[Frame, list[np.ndarray]]:
    """What a perfect camera sees of all things, and the mask of what is visible of each."""
    depth = np.full((camera.height, camera.width), np.inf)
    rgb = np.full((*depth.shape, 3), 0.02)
    owner = np.full(depth.shape, -1)
    for index, (thing, pose) in enumerate(zip(things, poses, strict=True)):
        small = pose.copy()  # everything as large as oracle_rig's, the camera's distance as well
        small[:3, 3] /= thing.scale
        z, points = ray_hits(small, camera, np.array(thing.center_m) / thing.scale)
        nearer = (z > 0) & (z * thing.scale < depth)
        depth[nearer], owner[nearer] = z[nearer] * thing.scale, index
        rgb[nearer] = AMBIENT * albedo(points)[nearer]
    depth = np.where(owner >= 0, depth, wall_m).astype(np.float32)
    frame = Frame(np.rint(rgb * 255).astype(np.uint8), depth, camera)
    return frame, [owner == index for index in range(len(things))]


MESHES = tuple(thing.mesh() for thing in THINGS)
TRUTH = tuple(thing.pose(seed) for seed, thing in enumerate(THINGS))
MOTIONS = (
    ((8.0, -6.0, 10.0), (0.015, -0.01, 0.02)),
    ((-9.0, 3.0, 4.0), (-0.006, 0.004, -0.01)),
    ((2.0, 9.0, -7.0), (0.02, 0.03, -0.03)),
)
STARTS = tuple(
    thing.moved(pose, *motion) for thing, pose, motion in zip(THINGS, TRUTH, MOTIONS, strict=True)
)
