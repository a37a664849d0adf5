"""Table, floor and walls around a scene, and how objects come to rest and throw shadows."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from ..geometry import transform
from ..pose.mesh import ObjectMesh
from .textures import make_background_texture

TABLE_HEIGHT_M = 0.75
CELL_SHARE = 1 / 40  # patches stay small, so that one near the camera plane costs little when lost


def table(half_m: float, texture: np.ndarray) -> ObjectMesh:
    """Return a square table top with its edge; the upper face is z = 0, centred at the origin."""
    thickness = 0.04 * half_m
    corners = half_m * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    top = _patch([-half_m, -half_m, 0], [2 * half_m, 0, 0], [0, 2 * half_m, 0])
    sides = []
    for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = [next_x - x, next_y - y, 0]
        sides.append(_patch([x, y, -thickness], along, [0, 0, thickness], rows=2))
    return _joined('table', [top, *sides], texture)


def floor(half_m: float, texture: np.ndarray) -> ObjectMesh:
    """Return the floor under the table, a square."""
    z = -TABLE_HEIGHT_M
    return _joined(
        'floor', [_patch([-half_m, -half_m, z], [2 * half_m, 0, 0], [0, 2 * half_m, 0])], texture
    )


def walls(half_m: float, texture: np.ndarray) -> ObjectMesh:
    """Return the four walls of the room, facing inwards."""
    low, height = -TABLE_HEIGHT_M, 2.5
    corners = half_m * np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]], dtype=np.float64)
    patches: list[Patch] = []
    for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        patches.append(_patch([x, y, low], [next_x - x, next_y - y, 0], [0, 0, height]))
    return _joined('walls', patches, texture)


Patch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _patch(
    origin: Sequence[float], along: Sequence[float], across: Sequence[float], rows: int = 0
) -> Patch:
    """Vertices, uv, normals (along x across) and faces of a grid over one parallelogram."""
    cells = int(round(1 / CELL_SHARE))
    steps = np.linspace(0, 1, cells + 1), np.linspace(0, 1, (rows or cells) + 1)
    u, v = (grid.reshape(-1) for grid in np.meshgrid(*steps))
    edges = np.array([along, across], dtype=np.float64)
    vertices = np.asarray(origin) + np.stack([u, v], axis=1) @ edges
    normal = np.cross(*edges)
    normals = np.tile(normal / np.linalg.norm(normal), (len(u), 1))
    first = (np.arange(rows or cells)[:, None] * (cells + 1) + np.arange(cells)).reshape(-1, 1)
    corner = np.array([0, 1, cells + 2, 0, cells + 2, cells + 1])
    faces = (first + corner).reshape(-1, 3)
    # the last texel row mixes with the first when u reaches 1, because textures wrap
    return vertices, np.stack([u, 1 - v], axis=1) * 0.998 + 0.001, normals, faces


def _joined(name: str, patches: Sequence[Patch], texture: np.ndarray) -> ObjectMesh:
    starts = np.cumsum([0] + [len(patch[0]) for patch in patches[:-1]])
    faces = [patch[3] + start for patch, start in zip(patches, starts, strict=True)]
    vertices, uv, normals = (np.concatenate([p[k] for p in patches]) for k in range(3))
    center = (vertices.min(0) + vertices.max(0)) / 2
    return ObjectMesh(
        name=name,
        vertices=(vertices - center).astype(np.float32),
        faces=np.concatenate(faces).astype(np.int32),
        normals=normals.astype(np.float32),
        colors=np.full(vertices.shape, 0.5, np.float32),
        uv=uv.astype(np.float32),
        texture=texture,
        center_m=center,
        diameter_m=float(np.linalg.norm(np.ptp(vertices, axis=0))),
    )


def backdrop_texture(seed: int, size_px: int, share: float) -> np.ndarray:
    """Return a table or room texture, softened: share 0 is its mean colour, 1 full contrast."""
    image = make_background_texture(seed, size_px).astype(np.float32)
    mean = image.mean(axis=(0, 1))
    return np.rint(mean + share * (image - mean)).astype(np.uint8)


def resting_sides(mesh: ObjectMesh) -> tuple[np.ndarray, np.ndarray]:
    """Return the outward normals (K, 3) of the sides a mesh can rest on, and their shares (K,).

    A face of the convex hull carries the object when the centre of the surface projects into it,
    that is when the projected point lies within all other faces' planes as well. The share is
    that of the face's area among the stable ones.
    """
    hull = ConvexHull(mesh.vertices.astype(np.float64))
    corners = hull.points[hull.simplices]
    areas = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    planes, index = np.unique(np.round(hull.equations, 3), axis=0, return_inverse=True)
    areas = np.bincount(index.reshape(-1), areas)
    normals = planes[:, :3] / np.linalg.norm(planes[:, :3], axis=1, keepdims=True)
    center = _surface_center(mesh)
    projected = center - (normals @ center + planes[:, 3])[:, None] * normals
    slack = projected @ normals.T + planes[:, 3]
    stable = slack.max(axis=1) < 0.01 * mesh.diameter_m
    # the face nearest to the centre is the lowest energy and always carries
    stable[np.argmax(normals @ center + planes[:, 3])] = True
    return normals[stable], areas[stable] / areas[stable].sum()


def _surface_center(mesh: ObjectMesh) -> np.ndarray:
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    areas = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    return np.average(corners.mean(axis=1), axis=0, weights=areas)


def turned_down(normal: np.ndarray) -> np.ndarray:
    """Return the shortest rotation, (3, 3), that turns a unit vector to face down (-z)."""
    axis = np.cross(normal, [0.0, 0.0, -1.0])
    sine, cosine = np.linalg.norm(axis), -float(normal[2])
    if sine < 1e-9:
        return np.eye(3) if cosine > 0 else Rotation.from_rotvec([np.pi, 0, 0]).as_matrix()
    return Rotation.from_rotvec(axis / sine * np.arctan2(sine, cosine)).as_matrix()


def placed(mesh: ObjectMesh, rotation: np.ndarray, place_m: np.ndarray) -> np.ndarray:
    """Return world_from_centered, (4, 4), with the lowest vertex on the table at place (x, y)."""
    lowest = (mesh.vertices @ rotation.T.astype(np.float32))[:, 2].min()
    return transform(rotation, np.array([place_m[0], place_m[1], -float(lowest)]))


def shadowed(
    texture: np.ndarray, half_m: float, points_m: list[np.ndarray], toward_light: np.ndarray
) -> np.ndarray:
    """Return the table's texture with soft shadows baked in.

    points_m: per object the (V, 3) world points; each throws the shadow of its convex hull.
    toward_light: (3,) unit vector in the world; a light near the horizon is lifted.
    """
    size = texture.shape[0]
    shade = np.zeros((size, size), np.float32)
    slope = toward_light[:2] / max(float(toward_light[2]), 0.5)
    for points in points_m:
        feet = points[:, :2]
        tips = feet - points[:, 2:] * slope
        for outline, weight in ((np.concatenate([feet, tips]), 0.35), (_low(points), 0.3)):
            # table: x grows with u, y with 1 - v, and u, v are texels over size
            pixels = np.stack([outline[:, 0] + half_m, half_m - outline[:, 1]], axis=1)
            hull = cv2.convexHull(np.rint(pixels * size / (2 * half_m)).astype(np.int32))
            layer = np.zeros_like(shade)
            cv2.fillConvexPoly(layer, hull, 1.0)
            spread = 0.012 * size / (2 * half_m)
            layer = cv2.GaussianBlur(layer, (0, 0), max(1.0, spread))
            shade = np.maximum(shade, weight * layer) if weight > 0.3 else shade + weight * layer
    light = (1 - np.clip(shade, 0, 0.75))[..., None]
    return np.rint(texture * light).astype(np.uint8)


def _low(points: np.ndarray) -> np.ndarray:
    """Plan view of what stands within 1 cm of the table: there ambient light is lost too."""
    return points[points[:, 2] < points[:, 2].min() + 0.01, :2]
