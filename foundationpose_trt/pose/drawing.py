"""Axes and boxes of poses on images, for people."""

from __future__ import annotations

import cv2
import numpy as np

from ..datatypes import CameraIntrinsics
from .mesh import ObjectMesh

Color = tuple[int, int, int]
# REP-103: x red, y green, z blue; a little desaturated, they stay readable on dark and bright
AXIS_COLORS: tuple[Color, Color, Color] = ((235, 64, 52), (64, 200, 84), (66, 120, 245))
BOX_COLOR: Color = (255, 196, 0)
DARK: Color = (20, 20, 20)
FINE = 4  # cv2 draws at 1 / 2**FINE pixel
NEAR_M = 0.01
AXIS_SHARE = 0.45  # of the diameter
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
EDGES = [(a, b) for a in range(8) for b in range(a) if bin(a ^ b).count('1') == 1]


def project(
    points_m: np.ndarray, camera_from_points: np.ndarray, intrinsics: CameraIntrinsics
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (N, 2) and depths (N,) in metres of points (N, 3)."""
    camera = points_m @ camera_from_points[:3, :3].T + camera_from_points[:3, 3]
    depth = camera[:, 2]
    safe = np.maximum(depth, NEAR_M)[:, None]
    focal = np.array([intrinsics.fx, intrinsics.fy])
    return camera[:, :2] / safe * focal + [intrinsics.cx, intrinsics.cy], depth


def fine(pixels: np.ndarray) -> np.ndarray:
    """Return pixels as cv2's fixed-point numbers with FINE bits."""
    # far outside the image the fixed-point numbers of cv2 would overflow
    return np.rint(np.clip(pixels, -1e4, 1e4) * 2**FINE).astype(np.int32)


def draw_axes(
    image: np.ndarray,
    intrinsics: CameraIntrinsics,
    camera_from_centered: np.ndarray,
    length_m: float,
    width_px: int = 3,
) -> None:
    """Draw the axes of a pose (4, 4) at the object's centre into image, the farthest first."""
    tips = np.vstack([np.zeros(3), length_m * np.eye(3)])
    pixels, depth = project(tips, camera_from_centered, intrinsics)
    if depth.min() < NEAR_M:
        return
    points = fine(pixels)
    for axis in np.argsort(-depth[1:]):
        for color, width in ((DARK, width_px + 2), (AXIS_COLORS[axis], width_px)):
            cv2.line(image, points[0], points[1 + axis], color, width, cv2.LINE_AA, FINE)


def draw_object(
    image: np.ndarray,
    intrinsics: CameraIntrinsics,
    mesh: ObjectMesh,
    camera_from_object: np.ndarray,
) -> None:
    """Draw the box around a mesh at its pose (4, 4), and its axes, into image (H, W, 3) uint8.

    A box of which a corner is nearer than NEAR_M is left out.
    """
    centered = camera_from_object @ mesh.object_from_centered
    corners = CORNERS * np.abs(mesh.vertices).max(0)
    pixels, depth = project(corners, centered, intrinsics)
    if depth.min() >= NEAR_M:
        points = fine(pixels)
        for color, width in ((DARK, 4), (BOX_COLOR, 2)):
            for a, b in EDGES:
                cv2.line(image, points[a], points[b], color, width, cv2.LINE_AA, FINE)
    draw_axes(image, intrinsics, centered, AXIS_SHARE * mesh.diameter_m)
