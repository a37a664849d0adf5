"""Draws a pose onto its image (silhouette and axes) and writes the images as a video."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..datatypes import CameraIntrinsics, require
from ..pose.drawing import DARK, FINE, NEAR_M, Color, draw_axes, fine, project
from ..pose.mesh import ObjectMesh


@dataclass(frozen=True)
class OverlayStyle:
    """Colours are R, G, B bytes; axis_share is the axes' length as a share of the diameter."""

    outline: Color = (255, 196, 0)
    outline_px: int = 2
    fill: float = 0.1
    axis_share: float = 0.45
    axis_px: int = 3


def draw_overlay(
    rgb: np.ndarray,
    intrinsics: CameraIntrinsics,
    mesh: ObjectMesh,
    camera_from_object: np.ndarray | None,
    text: str = '',
    style: OverlayStyle = OverlayStyle(),
) -> np.ndarray:
    """Return a copy of rgb (H, W, 3) uint8 with silhouette and axes of the pose drawn on it.

    camera_from_object: (4, 4), metres, or None (then only the text appears). The silhouette comes
    from projected triangles and cv2, not from the package's rasterizer: a fault of that one shows
    as an outline beside the object.
    """
    image = rgb.copy()
    if camera_from_object is not None:
        centered = camera_from_object @ mesh.object_from_centered
        _draw_silhouette(image, silhouette(mesh, centered, intrinsics), style)
        length_m = style.axis_share * mesh.diameter_m
        draw_axes(image, intrinsics, centered, length_m, style.axis_px)
    if text:
        _draw_text(image, text)
    return image


def silhouette(
    mesh: ObjectMesh, camera_from_centered: np.ndarray, intrinsics: CameraIntrinsics
) -> np.ndarray:
    """Return which pixels the mesh projects to, (H, W) bool; triangles behind the camera are not.

    Pixel centres are at integers; a pixel counts from its border on, cv2's rule.
    """
    points, depth = project(mesh.vertices, camera_from_centered, intrinsics)
    kept = mesh.faces[(depth[mesh.faces] > NEAR_M).all(axis=1)]
    mask = np.zeros((intrinsics.height, intrinsics.width), np.uint8)
    corners = points[kept]
    size = np.array([intrinsics.width, intrinsics.height])
    seen = (corners.max(1) >= 0).all(1) & (corners.min(1) < size).all(1)
    # fillPoly on all triangles at once would leave holes where an even number overlaps
    for triangle in fine(corners[seen]):
        cv2.fillConvexPoly(mask, triangle, 1, shift=FINE)
    return mask.astype(bool)


def _draw_silhouette(image: np.ndarray, mask: np.ndarray, style: OverlayStyle) -> None:
    color = np.array(style.outline, np.float32)
    image[mask] = np.rint((1 - style.fill) * image[mask] + style.fill * color).astype(np.uint8)
    # contours of the doubled, smoothed mask follow the outline at half-pixel steps
    double = cv2.resize(mask.astype(np.float32), None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    smooth = cv2.GaussianBlur(double, (0, 0), 1.5) > 0.5
    contours, _ = cv2.findContours(smooth.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    lines = [fine((contour.astype(np.float64) - 0.5) / 2) for contour in contours]
    cv2.polylines(image, lines, True, DARK, style.outline_px + 2, cv2.LINE_AA, FINE)
    cv2.polylines(image, lines, True, style.outline, style.outline_px, cv2.LINE_AA, FINE)


def _draw_text(image: np.ndarray, text: str) -> None:
    scale = image.shape[0] / 480 * 0.55
    x, y = round(12 * scale / 0.55), round(24 * scale / 0.55)
    # a shadow of the same weight: cv2 spaces the letters of bolder text differently
    for color, place in ((DARK, (x + 1, y + 1)), ((255, 255, 255), (x, y))):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)


def write_video(path: str | Path, frames: Iterable[np.ndarray], rate_hz: float = 30.0) -> int:
    """Write (H, W, 3) uint8 R G B images as MPEG-4 and return how many.

    Reads the file back: cv2 says nothing when its encoder is missing. Raises ValueError for no
    frames, unequal sizes or a wrong rate and OSError when the file does not play back.
    """
    path = Path(path)
    require(rate_hz > 0, f'video rate is {rate_hz} Hz, must be positive')
    path.parent.mkdir(parents=True, exist_ok=True)
    writer, count, shape = None, 0, None
    check_video(path)
    for frame in frames:
        if writer is None:
            shape = frame.shape
            code = cv2.VideoWriter.fourcc(*'mp4v')
            writer = cv2.VideoWriter(str(path), code, rate_hz, (shape[1], shape[0]))
        require(
            frame.shape == shape and frame.dtype == np.uint8,
            f'video frame {count} is {frame.dtype} {frame.shape}, the first was uint8 {shape}',
        )
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        count += 1
    if writer is None:
        raise ValueError(f'no frames for {path}')
    writer.release()
    _check_playback(path, count)
    return count


def check_video(path: Path) -> None:
    """Refuse a file that cannot be an mp4."""
    require(path.suffix.lower() == '.mp4', f"video {path} ends in '{path.suffix}', must be .mp4")


def _check_playback(path: Path, count: int) -> None:
    reader = cv2.VideoCapture(str(path))
    played = 0
    while reader.read()[0]:
        played += 1
    reader.release()
    if played != count:
        raise OSError(
            f'{path} plays {played} of {count} frames: the OpenCV build lacks the mp4v encoder'
            ' (opencv-python-headless from PyPI has it) or the disk is full'
        )
