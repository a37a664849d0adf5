"""An ellipsoid whose colours tell its pose goes round before a small camera: 24 known poses.

Any two of them are further apart than a pose that is right may be from the truth, so a pose that
was made from another image than that of its stamp is seen to be wrong.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import oracle_rig
import trimesh
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import CameraIntrinsics
from foundationpose_trt.pose.estimator import start_rotations
from foundationpose_trt.pose.mesh import ObjectMesh
from foundationpose_trt.pose.symmetry import symmetry_rotations

CAMERA = CameraIntrinsics(fx=176.0, fy=172.0, cx=81.8, cy=57.9, width=160, height=120)
POSES = 24
RADIUS_M, DISTANCE_M, WALL_M, TURN_RAD = 0.03, 0.45, 0.8, np.deg2rad(8.0)
# Not of the object: they leave 10 of 252 start rotations, one of which the loop stays close to.
SYMMETRIES = symmetry_rotations(('z_full', 'x_180'))
NEAR_START = 3
WRONG_MM, WRONG_DEG = 3.5, 8.0  # found: 1.7 mm and 4.0 degrees at most


def mesh() -> ObjectMesh:
    """The rig's ellipsoid of 320 triangles: a small image needs no more."""
    sphere = trimesh.creation.icosphere(2)
    points = (sphere.vertices * oracle_rig.SEMI_AXES_M).astype(np.float32)
    return replace(
        oracle_rig.ellipsoid(),
        vertices=points,
        faces=sphere.faces.astype(np.int32),
        normals=np.zeros_like(points),
        colors=oracle_rig.albedo(points).astype(np.float32),
    )


@cache
def pose(index: int) -> np.ndarray:
    """camera_from_object (4, 4): on a circle, one step of 7.8 mm per index."""
    angle = 2 * np.pi * index / POSES
    circle = np.array([np.cos(angle), np.sin(angle)])
    turn = Rotation.from_rotvec(TURN_RAD * np.array([*circle, np.sin(2 * angle)]))
    centered = np.eye(4)
    centered[:3, :3] = turn.as_matrix() @ start_rotations(SYMMETRIES)[NEAR_START]
    centered[:3, 3] = *(RADIUS_M * circle), DISTANCE_M
    return centered @ oracle_rig.translation(-oracle_rig.CENTER_M)


def picture(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour (H, W, 3) uint8, depth (H, W) uint16 millimetres and mask (H, W) of a pose."""
    frame, mask = oracle_rig.frame_of(pose(index), CAMERA, wall_m=WALL_M)
    return frame.rgb, np.rint(1e3 * frame.depth_m).astype(np.uint16), mask


def is_wrong(actual: np.ndarray, index: int) -> str:
    """Say how far a pose (4, 4) is from that of an index, if that is too far."""
    degrees, millimetres = oracle_rig.errors(actual, pose(index))
    wrong = not (degrees < WRONG_DEG and millimetres < WRONG_MM)
    return f'{degrees:.1f} degrees and {millimetres:.1f} mm off' if wrong else ''
