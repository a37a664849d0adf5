"""One mesh out of many pieces or too many triangles, its look moved into a texture of its own."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import trimesh
from scipy.spatial import cKDTree
from trimesh.grouping import unique_rows

from ..datatypes import require
from .mesh_files import Piece
from .mesh_surface import TriangleSoup

MAX_SAMPLES = 1_500_000
# A cell loses this many texels to keep its two triangles apart, and has at least two left.
GAP_PX, MIN_CELL_PX = 3, 5
# Share of max_faces that decimation aims at: the rest is for splitting what it made too long.
DECIMATED_SHARE = 0.75
# Opposite sides of a thin wall differ by this share of the size when looking for the nearest.
NORMAL_WEIGHT = 0.01


def joined(pieces: Sequence[Piece]) -> TriangleSoup:
    """Return the pieces' triangles as one soup."""
    starts = np.cumsum([0] + [len(piece.soup.vertices) for piece in pieces])
    return TriangleSoup(
        np.concatenate([piece.soup.vertices for piece in pieces]),
        np.concatenate([piece.soup.values for piece in pieces]),
        np.concatenate([p.soup.faces + s for p, s in zip(pieces, starts[:-1], strict=True)]),
    )


def decimated(source: str, soup: TriangleSoup, max_faces: int) -> TriangleSoup:
    """Return the surface with fewer triangles; the values are normals (V, 3) only.

    Raises ValueError where it cannot be brought to max_faces.
    """
    extent = max(float(np.ptp(soup.vertices, axis=0).max()), 1e-30)
    first, inverse = unique_rows(np.rint(soup.vertices / extent * 1e7).astype(np.int64))
    whole = trimesh.Trimesh(soup.vertices[first] / extent, inverse[soup.faces], process=False)
    target = int(max_faces * DECIMATED_SHARE)
    for aggression in (4, 10):
        coarse = whole.simplify_quadric_decimation(face_count=target, aggression=aggression)
        coarse.update_faces(coarse.nondegenerate_faces())
        if 0 < len(coarse.faces) <= max_faces:
            return TriangleSoup(coarse.vertices * extent, coarse.vertex_normals, coarse.faces)
    raise ValueError(
        f'{source} has {len(soup.faces)} triangles and could only be simplified to'
        f' {len(coarse.faces)}, allowed are {max_faces}: simplify it in a mesh editor'
    )


def baked(
    soup: TriangleSoup, pieces: Sequence[Piece], max_texture_px: int
) -> tuple[TriangleSoup, np.ndarray]:
    """Return triangles with coordinates of their own and a texture that looks like the pieces.

    Every two triangles share a square cell of the texture; the colour of a texel is that of
    the nearest of many samples of the pieces' surface. The values become those of a `Piece`.
    """
    cells = int(np.ceil(np.sqrt((len(soup.faces) + 1) // 2)))
    require(
        cells * MIN_CELL_PX <= max_texture_px,
        f'MeshLimits: a texture for {len(soup.faces)} triangles needs {cells * MIN_CELL_PX} px,'
        f' max_texture_px is {max_texture_px}: raise it or lower max_faces',
    )
    wanted_px = int(np.ceil(_wanted_px(pieces) / cells)) + GAP_PX
    cell_px = int(np.clip(wanted_px, MIN_CELL_PX, max_texture_px // cells))
    corners_px, weights = _cell_layout(cell_px)
    half = np.arange(len(soup.faces)) % 2
    place = np.stack(np.divmod(np.arange(len(soup.faces)) // 2, cells)[::-1], axis=1)
    uv = (place[:, None] * cell_px + corners_px[half]) / (cells * cell_px)
    normals = soup.values[:, :3][soup.faces]
    texture = np.zeros((cells * cell_px, cells * cell_px, 3), np.uint8)
    tree, colors = _samples(pieces, min(MAX_SAMPLES, 2 * texture[..., 0].size))
    scale = NORMAL_WEIGHT * _size(pieces)
    for number in (0, 1):
        own = half == number
        rows, columns = np.nonzero(weights[number].any(axis=2))
        share = weights[number][rows, columns]
        points = np.einsum('tk,fkd->ftd', share, soup.vertices[soup.faces[own]])
        facing = np.repeat(_face_normals(soup)[own][:, None], len(share), axis=1)
        query = np.concatenate([points, facing * scale], axis=2).reshape(-1, 6)
        nearest = tree.query(query, workers=-1)[1].reshape(points.shape[:2])
        y = place[own][:, 1:] * cell_px + rows
        x = place[own][:, :1] * cell_px + columns
        texture[y, x] = np.rint(colors[nearest] * 255)
    values = np.concatenate([normals, np.full(normals.shape, 0.5), uv], axis=2).reshape(-1, 8)
    faces = np.arange(3 * len(soup.faces)).reshape(-1, 3)
    return TriangleSoup(soup.vertices[soup.faces.ravel()], values, faces), texture


def _wanted_px(pieces: Sequence[Piece]) -> float:
    """Return the side of a texture that holds what the pieces show, gaps apart."""
    texels = sum(0 if p.texture is None else p.texture[..., 0].size for p in pieces)
    vertices = sum(len(p.soup.vertices) for p in pieces if p.texture is None)
    return float(np.sqrt(2 * texels + 6 * vertices))


def _cell_layout(cell_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (2, 3, 2) of a cell's triangles and its texels' weights (2, n, n, 3).

    Corners stand on texel centres and the triangles keep a texel apart, so that bilinear
    look-ups stay within the texels of their own triangle. Weights are zero where a texel
    belongs to the other triangle, and those beyond an edge repeat the edge.
    """
    side = cell_px - GAP_PX
    first = np.array([[0.5, 0.5], [0.5 + side, 0.5], [0.5, 0.5 + side]])
    y, x = np.mgrid[:cell_px, :cell_px]
    lower = np.stack([side - x - y, x, y], axis=2) / side
    lower = np.clip(lower, 0, None)
    lower /= lower.sum(axis=2, keepdims=True)
    upper = lower[::-1, ::-1]
    is_lower = (x + y < cell_px)[..., None]
    return np.stack([first, cell_px - first]), np.stack([lower * is_lower, upper * ~is_lower])


def _face_normals(soup: TriangleSoup) -> np.ndarray:
    corners = soup.vertices[soup.faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return areas / np.maximum(np.linalg.norm(areas, axis=1, keepdims=True), 1e-30)


def _size(pieces: Sequence[Piece]) -> float:
    points = np.concatenate([piece.soup.vertices for piece in pieces])
    return float(np.linalg.norm(np.ptp(points, axis=0)))


def _samples(pieces: Sequence[Piece], count: int) -> tuple[cKDTree, np.ndarray]:
    """Return a tree of points and scaled normals all over the pieces, and the colours there."""
    rng = np.random.default_rng(0)
    areas = [_areas(piece.soup) for piece in pieces]
    density = count / sum(float(area.sum()) for area in areas)
    scale = NORMAL_WEIGHT * _size(pieces)
    places, colors = [], []
    for piece, area in zip(pieces, areas, strict=True):
        # A face gets its share rounded at random, and at least one sample.
        number = np.maximum(1, np.floor(area * density + rng.random(len(area)))).astype(int)
        face = np.repeat(np.arange(len(area)), number)
        root, split = np.sqrt(rng.random(len(face))), rng.random(len(face))
        share = np.stack([1 - root, root * (1 - split), root * split], axis=1)
        corners = piece.soup.faces[face]
        points = np.einsum('nk,nkd->nd', share, piece.soup.vertices[corners])
        values = np.einsum('nk,nkd->nd', share, piece.soup.values[corners])
        places.append(np.concatenate([points, _face_normals(piece.soup)[face] * scale], axis=1))
        colors.append(_colors(piece, values))
    return cKDTree(np.concatenate(places), balanced_tree=False), np.concatenate(colors)


def _areas(soup: TriangleSoup) -> np.ndarray:
    corners = soup.vertices[soup.faces]
    sides = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.linalg.norm(sides, axis=1) / 2


def _colors(piece: Piece, values: np.ndarray) -> np.ndarray:
    """Return the colours (n, 3) 0..1 of interpolated values (n, 8), textures bilinearly."""
    if piece.texture is None:
        return values[:, 3:6]
    height, width = piece.texture.shape[:2]
    at = (values[:, 6:8] % 1.0 * (width, height)).astype(np.float32)
    padded = cv2.copyMakeBorder(piece.texture, 1, 1, 1, 1, cv2.BORDER_WRAP)
    # Texel centres lie at half integers, and one texel was put in front of the first.
    table = [_remapped(padded, chunk + 0.5) for chunk in np.array_split(at, len(at) // 30000 + 1)]
    return np.concatenate(table) / 255.0


def _remapped(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    # cv2.remap takes at most 32767 rows, hence the chunks.
    x, y = np.ascontiguousarray(place[:, :1]), np.ascontiguousarray(place[:, 1:])
    return cv2.remap(image, x, y, cv2.INTER_LINEAR)[:, 0]
