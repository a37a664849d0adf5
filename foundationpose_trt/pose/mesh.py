"""Object meshes: centred, metric, with bounded triangles, ready for the rasterizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..datatypes import require
from .mesh_surface import TriangleSoup, largest_distance, split_long_edges

if TYPE_CHECKING:
    import trimesh

    from .mesh_files import Piece


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


DEFAULT_LIMITS = MeshLimits()


def load_mesh(
    path: str | Path, scale: float = 1.0, limits: MeshLimits = DEFAULT_LIMITS
) -> ObjectMesh:
    """Return the mesh of an obj, ply, glb or stl file; `scale` turns its unit into metres.

    Raises FileNotFoundError without the file, and ValueError for a scale that is not positive,
    a file that cannot be read, has no triangles or not finite numbers, a missing texture, or a
    diameter outside the limits (a mesh in millimetres needs scale 0.001).
    """
    # Not at the top: machines that only draw procedural objects need no trimesh.
    from .mesh_files import read_pieces

    require(
        bool(np.isfinite(scale)) and scale > 0,
        f'mesh_scale is {scale}, must be positive: metres per unit of the file,'
        ' 1.0 for metres, 0.001 for millimetres',
    )
    path = Path(path)
    return _assembled(path.stem, f'mesh file {path}', (read_pieces(path), scale), limits)


def build_mesh(
    name: str, trimesh_mesh: trimesh.Trimesh, limits: MeshLimits = DEFAULT_LIMITS
) -> ObjectMesh:
    """Return the ObjectMesh of a trimesh object in metres; the checks are those of load_mesh."""
    from .mesh_files import pieces_of

    source = f'mesh {name}'
    return _assembled(name, source, (pieces_of(source, [trimesh_mesh]), 1.0), limits)


def _assembled(
    name: str, source: str, measured: tuple[list[Piece], float], limits: MeshLimits
) -> ObjectMesh:
    pieces = [_prepared(piece, measured[1], limits) for piece in measured[0]]
    points = np.concatenate([piece.soup.vertices for piece in pieces])
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    diameter_m = largest_distance(points)
    _require_diameter(source, diameter_m, measured[1], limits)
    soup, texture = _bounded(source, pieces, diameter_m, limits)
    values, uv = soup.values, None
    colors = values[:, 3:6].astype(np.float32)
    if texture is not None:
        uv = values[:, 6:8].astype(np.float32)
        colors = sample_texture(texture, uv)
    return ObjectMesh(
        name=name,
        vertices=(soup.vertices - center).astype(np.float32),
        faces=soup.faces.astype(np.int32),
        normals=_unit(values[:, :3]).astype(np.float32),
        colors=colors,
        uv=uv,
        texture=texture,
        center_m=center,
        diameter_m=diameter_m,
    )


def _prepared(piece: Piece, scale: float, limits: MeshLimits) -> Piece:
    """Return the piece in metres with a texture of allowed size."""
    soup, texture = piece.soup, piece.texture
    if texture is not None and max(texture.shape) > limits.max_texture_px:
        ratio = limits.max_texture_px / max(texture.shape)
        size = [max(1, round(side * ratio)) for side in texture.shape[1::-1]]
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_AREA)
    return replace(piece, soup=replace(soup, vertices=soup.vertices * scale), texture=texture)


def _require_diameter(source: str, diameter_m: float, scale: float, limits: MeshLimits) -> None:
    low, high = limits.min_diameter_m, limits.max_diameter_m
    remedy = 'set mesh_scale to metres per unit of the file'
    for unit, factor in (('millimetres', 0.001), ('metres', 1.0), ('centimetres', 0.01)):
        if low <= diameter_m / scale * factor <= high:
            remedy = f'the file seems to be in {unit}: set mesh_scale to {factor}'
            break
    require(
        low <= diameter_m <= high,
        f'{source} has a diameter of {diameter_m:.6g} m with mesh_scale {scale:g},'
        f' allowed are {low:g} to {high:g} m: {remedy}',
    )


def _bounded(
    source: str, pieces: list[Piece], diameter_m: float, limits: MeshLimits
) -> tuple[TriangleSoup, np.ndarray | None]:
    """Return triangles within the limits and their texture, if they have one."""
    from .mesh_bake import baked, decimated, joined

    whole = joined(pieces)
    dense = len(whole.faces) > limits.max_faces
    coarse = decimated(source, whole, limits.max_faces) if dense else whole
    soup = split_long_edges(coarse, limits.max_edge_fraction * diameter_m, limits.max_faces)
    textures = [piece.texture for piece in pieces if piece.texture is not None]
    if not dense and (not textures or len(pieces) == 1):
        return soup, textures[0] if textures else None
    paint = whole.values[:, 3:6]
    if not textures and np.ptp(paint, axis=0).max() < 1 / 255:
        colors = np.broadcast_to(paint[0], (len(soup.vertices), 3))
        return replace(soup, values=np.column_stack([soup.values[:, :3], colors])), None
    return baked(soup, pieces, limits.max_texture_px)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return unit vectors; interpolated normals that cancel out face the camera's way, +z."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), (0.0, 0.0, 1.0))


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
