"""Parts of procedural objects: triangle surfaces with texture coordinates in shape units.

A `Surface` is open or closed, oriented outwards, unit-free (objects.py scales it to metres).
Texture coordinates are lengths on the surface in the same unit, so that one factor gives every
part of an object the same texture density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import Delaunay

# A profile step this flat (rise over run) belongs to a lid and is textured from above.
LID_SLOPE = 0.35


@dataclass(frozen=True)
class Surface:
    """One textured patch: vertices (V, 3) and uv (V, 2) float64, faces (F, 3) int64.

    Surfaces of one `part` share a material.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    part: int = 0

    def moved(self, linear: np.ndarray, offset: ArrayLike = (0.0, 0.0, 0.0)) -> Surface:
        """Return the surface under x -> linear @ x + offset; mirrored faces are turned back."""
        faces = self.faces[:, ::-1] if np.linalg.det(linear) < 0 else self.faces
        return replace(self, vertices=self.vertices @ linear.T + np.asarray(offset), faces=faces)


def box(extents: ArrayLike) -> list[Surface]:
    """Return the six faces of a box centred on the origin."""
    half = np.asarray(extents, dtype=float) / 2
    sides = []
    for axis in range(3):
        right, up = (axis + 1) % 3, (axis + 2) % 3
        for sign in (-1.0, 1.0):
            corners = np.zeros((4, 3))
            corners[:, axis] = sign * half[axis]
            corners[:, right] = np.array([-1, 1, 1, -1]) * half[right] * sign
            corners[:, up] = np.array([-1, -1, 1, 1]) * half[up]
            uv = corners[:, (right, up)] * (sign, -1)
            sides.append(Surface(corners, np.array([[0, 1, 2], [0, 2, 3]]), uv))
    return sides


def section_circle(segments: int) -> np.ndarray:
    """Return a closed unit circle, (segments + 1, 2), first point repeated."""
    return section_superellipse(segments, 2.0, 1.0)


def section_superellipse(segments: int, exponent: float, aspect: float) -> np.ndarray:
    """Return a closed counter-clockwise superellipse, (segments + 1, 2); exponent 2 is round."""
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    cosine, sine = np.cos(angle), np.sin(angle)
    norm = (np.abs(cosine) ** exponent + np.abs(sine) ** exponent) ** (1 / exponent)
    ring = np.stack([cosine / norm, sine / norm * aspect], axis=1)
    ring[-1] = ring[0]
    return ring


def lathe(profile: np.ndarray, section: np.ndarray) -> list[Surface]:
    """Return the surface of a (radius, z) profile (n, 2) swept along z with a cross-section.

    The outside is on the right of the profile's direction: from the lowest point of the axis
    up the outer wall.
    """
    path = np.zeros((len(profile), 3))
    path[:, 2] = profile[:, 1]
    frames = np.broadcast_to(np.eye(3), (len(profile), 3, 3))
    return _sweep(path, frames, profile[:, 0], section)


def tube(path: np.ndarray, radii: np.ndarray, section: np.ndarray) -> list[Surface]:
    """Return a tube (n, 3) with radii (n,); open ends are closed by flat lids."""
    frames = _transported_frames(path)
    if not np.allclose(path[0], path[-1]):
        path = np.concatenate([path[:1], path, path[-1:]])
        radii = np.concatenate([[0.0], radii, [0.0]])
        frames = np.concatenate([frames[:1], frames, frames[-1:]])
    return _sweep(path, frames, radii, section)


def _transported_frames(path: np.ndarray) -> np.ndarray:
    """Return rotation-minimising frames (n, 3, 3) whose columns are normal, binormal, tangent."""
    closed = np.allclose(path[0], path[-1])
    tangents = np.gradient(path, axis=0)
    if closed:
        tangents[0] = tangents[-1] = path[1] - path[-2]
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    normal = np.cross(tangents[0], np.eye(3)[np.argmin(np.abs(tangents[0]))])
    frames = np.empty((len(path), 3, 3))
    for index, tangent in enumerate(tangents):
        normal = normal - tangent * (normal @ tangent)
        normal /= np.linalg.norm(normal)
        frames[index] = np.stack([normal, np.cross(tangent, normal), tangent], axis=1)
    return frames


def _sweep(
    path: np.ndarray, frames: np.ndarray, radii: np.ndarray, section: np.ndarray
) -> list[Surface]:
    """Return the walls and the lids of a swept section, each with its own texture layout."""
    rings = path[:, None] + np.einsum('nij,nr,mj->nmi', frames[:, :, :2], radii[:, None], section)
    along = np.linalg.norm(np.diff(path, axis=0), axis=1)
    outward = np.abs(np.diff(radii))
    is_lid = along < LID_SLOPE * outward
    breaks = np.flatnonzero(np.diff(is_lid)) + 1
    starts, stops = [0, *breaks], [*breaks, len(is_lid)]
    length = np.concatenate([[0.0], np.cumsum(np.hypot(along, outward))])
    turn = np.linalg.norm(np.diff(section, axis=0), axis=1)
    around = np.concatenate([[0.0], np.cumsum(turn)]) * radii.max()
    surfaces = []
    for start, stop in zip(starts, stops, strict=True):
        rows = slice(start, stop + 1)
        if is_lid[start]:
            # Seen from the other end where the radius grows along the path.
            mirror = 1.0 if radii[stop] < radii[start] else -1.0
            uv = radii[rows, None, None] * section * (mirror, -1)
        else:
            uv = np.stack(np.broadcast_arrays(around, -length[rows, None]), axis=2)
        surfaces.append(grid(rings[rows], uv))
    return surfaces


def grid(points: np.ndarray, uv: np.ndarray) -> Surface:
    """Return the surface through points (rows, columns, 3) with uv (rows, columns, 2).

    Outside is along (step along a row) x (step along a column); empty triangles are left out.
    """
    rows, columns = points.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
    c, d = index[1:, 1:].ravel(), index[1:, :-1].ravel()
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    vertices = points.reshape(-1, 3)
    edges = vertices[faces[:, 1:]] - vertices[faces[:, :1]]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    kept = faces[area > 1e-9 * max(float(area.max()), 1e-12)]
    return Surface(vertices, kept, np.ascontiguousarray(uv.reshape(-1, 2), dtype=float))


def cube_sphere(steps: int) -> list[Surface]:
    """Return a unit sphere as six grids of steps x steps quads, textured by cube side."""
    tangent = np.tan(np.linspace(-np.pi / 4, np.pi / 4, steps + 1))
    sides = []
    for axis in range(3):
        right, up = (axis + 1) % 3, (axis + 2) % 3
        for sign in (-1.0, 1.0):
            points = np.empty((steps + 1, steps + 1, 3))
            points[..., axis] = sign
            points[..., right] = sign * tangent[None, :]
            points[..., up] = tangent[:, None]
            points /= np.linalg.norm(points, axis=2, keepdims=True)
            uv = points[..., (right, up)] * (sign, -1)
            sides.append(grid(points, uv))
    return sides


def superquadric(sphere: list[Surface], exponents: np.ndarray) -> list[Surface]:
    """Return a unit sphere's points pulled onto |x|^a + |y|^b + |z|^c = 1 along their rays."""
    shaped = []
    for side in sphere:
        size = np.abs(side.vertices)
        scale = np.ones((len(size), 1))
        for _ in range(12):
            terms = (size * scale) ** exponents
            slope = (terms * exponents).sum(axis=1, keepdims=True) / scale
            scale = scale - (terms.sum(axis=1, keepdims=True) - 1) / slope
        points = side.vertices * scale
        shaped.append(replace(side, vertices=points, uv=side.uv * scale))
    return shaped


def rounded_box(sphere: list[Surface], extents: ArrayLike, radius: float) -> list[Surface]:
    """Return a box whose edges and corners are rounded: the unit sphere's octants pulled apart."""
    inner = np.asarray(extents, dtype=float) / 2 - radius
    shaped = []
    for index, side in enumerate(sphere):
        axis = index // 2
        shift = np.sign(np.where(np.abs(side.vertices) < 1e-9, 0.0, side.vertices)) * inner
        points = side.vertices * radius + shift
        sign = 1.0 if index % 2 else -1.0
        uv = points[:, ((axis + 1) % 3, (axis + 2) % 3)] * (sign, -1)
        shaped.append(replace(side, vertices=points, uv=uv))
    return shaped


def extrusion(loops: list[np.ndarray], height: float, step: float) -> list[Surface]:
    """Return a plate of an outline and its holes; loops (n, 2) are open polygons in any turn.

    `step` is the spacing of points on the outline; it must be below the narrowest gap.
    """
    dense = [_densified(_turned(loop, index == 0), step) for index, loop in enumerate(loops)]
    points, triangles = _triangulate(dense, step)
    surfaces = []
    for level, flip in ((height / 2, False), (-height / 2, True)):
        vertices = np.column_stack([points, np.full(len(points), level)])
        faces = triangles[:, ::-1] if flip else triangles
        surfaces.append(Surface(vertices, faces, points * ((-1, -1) if flip else (1, -1))))
    for loop in dense:
        ring = np.concatenate([loop, loop[:1]])
        around = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(ring, axis=0), axis=1))])
        walls = np.stack([np.column_stack([ring, np.full(len(ring), z)]) for z in (-1, 1)])
        walls[..., 2] *= height / 2
        uv = np.stack(np.broadcast_arrays(around, -walls[..., 2]), axis=2)
        surfaces.append(grid(walls, uv))
    return surfaces


def _turned(loop: np.ndarray, counter_clockwise: bool) -> np.ndarray:
    following = np.roll(loop, -1, axis=0)
    area = np.sum(loop[:, 0] * following[:, 1] - loop[:, 1] * following[:, 0])
    return loop if (area > 0) == counter_clockwise else loop[::-1]


def _densified(loop: np.ndarray, step: float) -> np.ndarray:
    pieces = []
    for start, stop in zip(loop, np.roll(loop, -1, axis=0), strict=True):
        count = max(1, int(np.ceil(np.linalg.norm(stop - start) / step)))
        pieces.append(start + (stop - start) * (np.arange(count) / count)[:, None])
    return np.concatenate(pieces)


def _triangulate(loops: list[np.ndarray], step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points (n, 2), the loops' first, and counter-clockwise triangles of the inside."""
    outline = np.concatenate(loops)
    low, high = outline.min(axis=0), outline.max(axis=0)
    spacing = max(step * 1.5, float((high - low).max()) / 14)
    axes = [np.arange(a + spacing / 2, b, spacing) for a, b in zip(low, high, strict=True)]
    inner = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    gap = np.linalg.norm(inner[:, None] - outline[None], axis=2).min(axis=1)
    inner = inner[(gap > 0.7 * spacing) & inside(loops, inner)]
    points = np.concatenate([outline, inner])
    triangles = Delaunay(points).simplices
    corners = points[triangles]
    side, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = side[:, 0] * other[:, 1] - side[:, 1] * other[:, 0]
    triangles = np.where(area[:, None] > 0, triangles, triangles[:, ::-1])
    kept = (np.abs(area) > 1e-9) & inside(loops, corners.mean(axis=1))
    return points, triangles[kept]


def inside(loops: list[np.ndarray], points: np.ndarray) -> np.ndarray:
    """Return which points (n, 2) lie inside an odd number of the closed loops, (n,) bool."""
    odd = np.zeros(len(points), dtype=bool)
    x, y = points[:, :1], points[:, 1:]
    for loop in loops:
        (x0, y0), (x1, y1) = loop.T, np.roll(loop, -1, axis=0).T
        spans = (y0 > y) != (y1 > y)
        rise = np.where(y1 == y0, 1.0, y1 - y0)
        odd ^= np.count_nonzero(spans & (x < (x1 - x0) * (y - y0) / rise + x0), axis=1) % 2 == 1
    return odd


def isosurface(field: Callable[[np.ndarray], np.ndarray], half: float, steps: int) -> Surface:
    """Return the zero level of a signed distance in [-half, half]^3, negative inside.

    One vertex per crossed cell, at the mean of its edge crossings (naive surface nets), then
    pulled onto the level along the gradient. `field` maps (n, 3) to (n,). Texture coordinates
    are zero: give them with `project_sides`.
    """
    axis = np.linspace(-half, half, steps)
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing='ij'), axis=-1)
    values = field(lattice.reshape(-1, 3)).reshape(steps, steps, steps)
    values[[0, -1]] = values[:, [0, -1]] = values[:, :, [0, -1]] = half
    total, count, quads = np.zeros((steps**3, 3)), np.zeros(steps**3), []
    strides = np.array([steps * steps, steps, 1])
    for direction in range(3):
        low, high = np.delete(values, -1, direction), np.delete(values, 0, direction)
        cells = np.argwhere((low < 0) != (high < 0))
        first, last = low[tuple(cells.T)], high[tuple(cells.T)]
        crossing = cells.astype(float)
        crossing[:, direction] += first / (first - last)
        right, up = strides[(direction + 1) % 3], strides[(direction + 2) % 3]
        corner = cells @ strides
        ring = np.stack([corner, corner - right, corner - right - up, corner - up], axis=1)
        for column in ring.T:
            np.add.at(total, column, crossing)
            np.add.at(count, column, 1)
        quads.append(np.where((first < 0)[:, None], ring, ring[:, ::-1]))
    used = np.flatnonzero(count)
    lookup = np.zeros(steps**3, dtype=np.int64)
    lookup[used] = np.arange(len(used))
    vertices = total[used] / count[used, None] * (2 * half / (steps - 1)) - half
    ring = lookup[np.concatenate(quads)]
    faces = np.concatenate([ring[:, [0, 1, 2]], ring[:, [0, 2, 3]]])
    vertices = _pulled_onto_level(field, vertices, half / steps)
    return Surface(vertices, faces, np.zeros((len(vertices), 2)))


def _pulled_onto_level(
    field: Callable[[np.ndarray], np.ndarray], points: np.ndarray, reach: float
) -> np.ndarray:
    value, delta = field(points), 1e-3
    steps = np.eye(3) * delta
    gradient = np.stack([(field(points + s) - value) / delta for s in steps], axis=1)
    norm = np.maximum(np.sum(gradient**2, axis=1), 0.1)
    return points - gradient * np.clip(value / norm, -reach, reach)[:, None]


def project_sides(surface: Surface) -> list[Surface]:
    """Return the surface cut into up to six pieces, each textured along its main axis."""
    corners = surface.vertices[surface.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axis = np.argmax(np.abs(normals), axis=1)
    positive = np.take_along_axis(normals, axis[:, None], axis=1)[:, 0] > 0
    pieces = []
    for side in np.unique(axis * 2 + positive):
        faces = surface.faces[axis * 2 + positive == side]
        used, inverse = np.unique(faces, return_inverse=True)
        points, main = surface.vertices[used], int(side) // 2
        sign = 1.0 if side % 2 else -1.0
        uv = points[:, ((main + 1) % 3, (main + 2) % 3)] * (sign, -1)
        pieces.append(Surface(points, inverse.reshape(-1, 3), uv, surface.part))
    return pieces
