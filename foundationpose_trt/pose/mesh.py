"""Object meshes: centred, metric, with bounded triangles, ready for the rasterizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ObjectMesh:
    """A triangle mesh centred on its axis-aligned bounding box; treat the arrays as read-only.

    vertices (V, 3) float32 metres; faces (F, 3) int32; normals (V, 3) float32 unit length;
    colors (V, 3) float32 0..1, used where there is no texture; uv (V, 2) float32, u right and
    v down (row 0 of the texture is v = 0), wrapping; texture (h, w, 3) uint8 RGB;
    center_m (3,) float64: the box centre in the scaled file's coordinates; diameter_m: the
    largest distance between two vertices.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    uv: np.ndarray | None
    texture: np.ndarray | None
    center_m: np.ndarray
    diameter_m: float

    @property
    def object_from_centered(self) -> np.ndarray:
        """Return Translate(+center), (4, 4) float64."""
        return _translation(self.center_m)

    @property
    def centered_from_object(self) -> np.ndarray:
        """Return Translate(-center), (4, 4) float64."""
        return _translation(-self.center_m)


@dataclass(frozen=True)
class MeshLimits:
    """Bounds that keep the rasterizer's cost and the unit mistakes in check.

    max_edge_fraction is relative to the diameter; max_texture_px is the longer side.
    """

    max_faces: int = 20000
    max_edge_fraction: float = 1 / 16
    max_texture_px: int = 1024
    min_diameter_m: float = 0.005
    max_diameter_m: float = 5.0


def _translation(offset: np.ndarray) -> np.ndarray:
    # Not geometry.transform: processes that make meshes must not pay for importing torch.
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def sample_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Return the nearest texel's colour, (n, 3) float32 0..1, at uv (n, 2), v down, wrapping."""
    height, width = texture.shape[:2]
    column = np.floor(uv[:, 0] * width).astype(np.int64) % width
    row = np.floor(uv[:, 1] * height).astype(np.int64) % height
    return texture[row, column].astype(np.float32) / 255
