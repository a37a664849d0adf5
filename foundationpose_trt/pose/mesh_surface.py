"""Triangle surgery on plain arrays: bounded edge length, creased normals, exact diameter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist, pdist

MAX_SPLIT_PASSES = 40
LONGEST_FIRST = 0.7
EXACT_CORNERS = 4000
CHORD_ROUNDS, CHORD_NEIGHBOURS = 6, 300


@dataclass(frozen=True)
class TriangleSoup:
    """Vertices (V, 3), per-vertex values (V, K) that interpolate linearly, faces (F, 3)."""

    vertices: np.ndarray
    values: np.ndarray
    faces: np.ndarray


def split_long_edges(soup: TriangleSoup, max_edge: float, max_faces: int) -> TriangleSoup:
    """Halve edges longer than max_edge until none is left or max_faces would be passed.

    The longest go first, so that what is left over when the faces run out is even.
    The decision depends on the edge alone, so neighbours agree and no T-junction arises, also
    where seams repeat a vertex.
    """
    for _ in range(MAX_SPLIT_PASSES):
        finer = _split_once(soup, max_edge)
        if finer is soup or len(finer.faces) > max_faces:
            return soup
        soup = finer
    return soup


def longest_edge(soup: TriangleSoup) -> float:
    """Return the length of the longest edge."""
    corners = soup.vertices[soup.faces]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max())


def _split_once(soup: TriangleSoup, max_edge: float) -> TriangleSoup:
    faces = soup.faces.astype(np.int64)
    count = len(soup.vertices)
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2), axis=2)
    unique, inverse = np.unique(ends[..., 0] * count + ends[..., 1], return_inverse=True)
    first, second = unique // count, unique % count
    length = np.linalg.norm(soup.vertices[first] - soup.vertices[second], axis=1)
    marked = length > max(max_edge, LONGEST_FIRST * float(length.max()))
    if not marked.any():
        return soup
    middle = np.where(marked, count - 1 + np.cumsum(marked), -1)
    a, b = first[marked], second[marked]
    vertices = np.concatenate([soup.vertices, (soup.vertices[a] + soup.vertices[b]) / 2])
    values = np.concatenate([soup.values, (soup.values[a] + soup.values[b]) / 2])
    return TriangleSoup(vertices, values, _refined(faces, middle[inverse.reshape(-1, 3)]))


def _refined(faces: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Return faces cut at their edges' middle vertices (F, 3), -1 where an edge stays whole."""
    marks = (middle >= 0).sum(axis=1)
    # Turned so that a face with one cut has it first, and with two has the whole edge last.
    lead = np.where(marks == 1, np.argmax(middle >= 0, axis=1), np.argmin(middle >= 0, axis=1) + 1)
    turn = (np.where((marks == 1) | (marks == 2), lead, 0)[:, None] + np.arange(3)) % 3
    a, b, c = np.take_along_axis(faces, turn, axis=1).T
    ab, bc, ca = np.take_along_axis(middle, turn, axis=1).T
    cuts = {
        0: [(a, b, c)],
        1: [(a, ab, c), (ab, b, c)],
        2: [(ab, b, bc), (a, ab, bc), (a, bc, c)],
        3: [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)],
    }
    pieces = [
        np.stack(triangle, axis=1)[marks == number]
        for number, triangles in cuts.items()
        for triangle in triangles
    ]
    return np.concatenate(pieces)


def crease_normals(
    vertices: np.ndarray, faces: np.ndarray, crease_rad: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return smooth normals that stay sharp across creases.

    Vertices at one place count as one, whatever their texture coordinates. Returns the source
    vertex of every new vertex (N,), the unit normals (N, 3) and the renumbered faces (F, 3).
    """
    corners = vertices[faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    units = areas / np.maximum(np.linalg.norm(areas, axis=1, keepdims=True), 1e-30)
    place = _places(vertices)[faces.ravel()]
    order = np.argsort(place, kind='stable')
    _, starts, counts = np.unique(place[order], return_index=True, return_counts=True)
    start, size = np.repeat(starts, counts), np.repeat(counts, counts)
    rank = np.repeat(np.arange(len(order)), size)
    offset = np.arange(len(rank)) - np.repeat(np.cumsum(size) - size, size)
    here, there = order[rank] // 3, order[start[rank] + offset] // 3
    smooth = np.einsum('ij,ij->i', units[here], units[there]) > np.cos(crease_rad)
    weights = areas[there] * smooth[:, None]
    summed = np.add.reduceat(weights, np.cumsum(size) - size, axis=0)
    normals = np.empty_like(summed)
    normals[order] = summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-30)
    grain = np.rint((normals + 1) * 512).astype(np.int64)
    key = (
        faces.ravel().astype(np.int64) << 33 | grain[:, 0] << 22 | grain[:, 1] << 11 | grain[:, 2]
    )
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return faces.ravel()[first], normals[first], inverse.reshape(-1, 3)


def _places(vertices: np.ndarray) -> np.ndarray:
    """Return an integer per vertex that is equal for vertices at the same place."""
    low = vertices.min(axis=0)
    extent = max(float((vertices.max(axis=0) - low).max()), 1e-30)
    cell = np.rint((vertices - low) / extent * 1e5).astype(np.int64)
    return cell[:, 0] << 40 | cell[:, 1] << 20 | cell[:, 2]


def largest_distance(points: np.ndarray) -> float:
    """Return the largest distance between two of the points (n, 3).

    Exact up to EXACT_CORNERS corners of the convex hull; beyond, where only finely meshed round
    bodies get, the longest of many chords that cannot be lengthened at either end.
    """
    try:
        corners = points[ConvexHull(points).vertices]
    except QhullError:
        corners = _flat_corners(points)
    if len(corners) <= EXACT_CORNERS:
        return float(pdist(corners).max()) if len(corners) > 1 else 0.0
    return _longest_chord(corners)


def _flat_corners(points: np.ndarray) -> np.ndarray:
    """Return points that include the two farthest ones of a flat, straight or tiny set."""
    centered = points - points.mean(axis=0)
    _, spread, axes = np.linalg.svd(centered, full_matrices=False)
    flat = centered @ axes.T
    if len(points) < 4:
        return points
    if spread[1] < 1e-9 * max(float(spread[0]), 1e-30):
        return points[[int(flat[:, 0].argmin()), int(flat[:, 0].argmax())]]
    return points[ConvexHull(flat[:, :2]).vertices]


def _longest_chord(corners: np.ndarray) -> float:
    rng = np.random.default_rng(0)
    ends = np.unique(np.argmax(corners @ rng.normal(size=(3, 500)), axis=0))
    best = 0.0
    for _ in range(CHORD_ROUNDS):
        gaps = cdist(corners[ends], corners)
        start, stop = np.unravel_index(int(gaps.argmax()), gaps.shape)
        best = max(best, float(gaps[start, stop]))
        # Once more from the far ends and from all around the longest chord's end.
        around = np.argsort(cdist(corners[[stop]], corners)[0])[:CHORD_NEIGHBOURS]
        ends = np.union1d(np.unique(gaps.argmax(axis=1)), around)
    return best
