"""The rendered half "A" in plain torch operations: oracle of the rasterizer, and its yardstick.

Shares no code with pose/rasterizer.py. Conventions (foundationpose.md §2.4 and §4): camera x
right, y down, z forward; pixel centres at integer coordinates of the raster; one sample per
pixel, no culling, no anti-aliasing, nearest surface wins. Geometry is float64, so that edges need
no tolerance: a pixel exactly on the side of two triangles belongs to both, and depth decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..pose.mesh import ObjectMesh

SIDE_PX = 160
NEAR_PLANE_M = 0.001
AMBIENT, DIFFUSE = 0.8, 0.5
FAR_FROM_CENTER = 2.0  # radii from which on a coordinate is zeroed, foundationpose.md §2.1
# Triangles are tested pixel by pixel in squares of these sides, the next that holds their box.
SQUARES_PX = (1, 2, 3, 4, 6, 8, 16, 32, 64, SIDE_PX)
# What one step holds at most, about 250 bytes each: within a CPU's cache, a GPU well filled.
TRIANGLES_AT_ONCE = {'cpu': 2**16, 'cuda': 2**21}
CANDIDATES_AT_ONCE = {'cpu': 2**17, 'cuda': 2**22}
EMPTY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class _Projection:
    """Vertices of N views: points (N, V, 3) metres in the camera's frame, pixels (N, V, 2)."""

    points: torch.Tensor
    pixels: torch.Tensor


@dataclass(frozen=True)
class _Triangles:
    """T triangles that may show, float64 but for view and face (T,) int64.

    corners: (T, 3, 2) pixels; inverse_depth: (T, 3) 1 / metres; first, extent: (T, 2) the first
    column and row inside their boxes, and the number of columns and rows, all in the raster.
    """

    view: torch.Tensor
    face: torch.Tensor
    corners: torch.Tensor
    inverse_depth: torch.Tensor
    first: torch.Tensor
    extent: torch.Tensor

    def __getitem__(self, part: torch.Tensor) -> _Triangles:
        values = (self.view, self.face, self.corners, self.inverse_depth, self.first, self.extent)
        return _Triangles(*(value[part] for value in values))


class EagerRenderer:
    """Draws one mesh into network inputs (N, 6, 160, 160) float32 on a device."""

    def __init__(self, mesh: ObjectMesh, device: torch.device) -> None:
        self._device = device
        self._inverse_radius = 2 / mesh.diameter_m
        self._vertices = torch.tensor(mesh.vertices, dtype=torch.float64, device=device)
        self._normals = torch.tensor(mesh.normals, dtype=torch.float64, device=device)
        self._faces = torch.tensor(mesh.faces, dtype=torch.int64, device=device)
        self._texture: torch.Tensor | None = None
        paint = mesh.colors
        if mesh.texture is not None and mesh.uv is not None:
            self._texture = torch.tensor(mesh.texture, device=device).double() / 255
            paint = mesh.uv
        # what is interpolated over a face: texture coordinates (V, 2) or colours (V, 3)
        self._paint = torch.tensor(paint, dtype=torch.float64, device=device)

    def render(self, poses: torch.Tensor, intrinsics: torch.Tensor, near_m: float) -> torch.Tensor:
        """Return A: R, G, B in 0..1 and xyz from the pose's origin in radii of the mesh.

        poses: camera_from_centered (N, 4, 4); intrinsics: (N, 4) fx, fy, cx, cy in pixels of the
        crop. xyz is 0 where z < near_m, and per channel from two radii on (traps 4 and 5).
        """
        at_once = max(1, TRIANGLES_AT_ONCE[self._device.type] // len(self._faces))
        parts = zip(poses.double().split(at_once), intrinsics.double().split(at_once), strict=True)
        return torch.cat([self._render(*part, near_m) for part in parts])

    def _render(
        self, poses: torch.Tensor, intrinsics: torch.Tensor, near_m: float
    ) -> torch.Tensor:
        scene = self._project(poses, intrinsics)
        visibility = self._visibility(self._triangles(scene), len(poses))
        seen = (visibility != EMPTY).nonzero(as_tuple=True)  # view, row and column, (P,) each
        corner = self._faces[visibility[seen] & 0xFFFFFFFF]
        weights = _weights(scene, seen, corner)
        color = self._color(poses, seen[0], corner, weights)
        points = (weights[..., None] * scene.points[seen[0][:, None], corner]).sum(1)
        xyz = (points - poses[seen[0], :3, 3]) * self._inverse_radius
        hidden = (xyz.abs() >= FAR_FROM_CENTER) | (points[:, 2:] < near_m)
        out = torch.zeros(len(poses), 6, SIDE_PX, SIDE_PX, device=self._device)
        out[seen[0], :, seen[1], seen[2]] = torch.cat([color, xyz * ~hidden], 1).float()
        return out

    def _project(self, poses: torch.Tensor, intrinsics: torch.Tensor) -> _Projection:
        points = self._vertices @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
        plane = points[..., :2] / points[..., 2:]
        return _Projection(points, plane * intrinsics[:, None, :2] + intrinsics[:, None, 2:])

    def _triangles(self, scene: _Projection) -> _Triangles:
        """Leave out what lies outside the raster, before the near plane, or has no area."""
        corners, depth = scene.pixels[:, self._faces], scene.points[..., 2][:, self._faces]
        first = corners.amin(2).clamp_min(0).ceil()
        extent = corners.amax(2).clamp_max(SIDE_PX - 1).floor() - first + 1
        shown = (extent > 0).all(-1) & (depth.amin(2) >= NEAR_PLANE_M) & (_area(corners) != 0)
        view, face = shown.nonzero(as_tuple=True)
        parts = (corners, 1 / depth, first, extent)
        return _Triangles(view, face, *(part[view, face] for part in parts))

    def _visibility(self, triangles: _Triangles, views: int) -> torch.Tensor:
        """Return (N, 160, 160) int64: nearest depth as float32 bits, then its face; or EMPTY."""
        visibility = torch.full((views * SIDE_PX**2,), EMPTY, device=self._device)
        size = triangles.extent.amax(1)
        smaller = 0
        for square in SQUARES_PX:
            members = ((size > smaller) & (size <= square)).nonzero()[:, 0]
            at_once = max(1, CANDIDATES_AT_ONCE[self._device.type] // square**2)
            for part in members.split(at_once):
                pixel, key = _hits(triangles[part], square)
                visibility.scatter_reduce_(0, pixel, key, 'amin')
            smaller = square
        return visibility.view(views, SIDE_PX, SIDE_PX)

    def _color(
        self, poses: torch.Tensor, view: torch.Tensor, corner: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Colours (P, 3) under a head light whose cosine is taken per vertex and interpolated.

        corner: (P, 3) vertices; weights: (P, 3).
        """
        facing = -torch.einsum('pkc,pc->pk', self._normals[corner], poses[view, 2, :3])
        diffuse = (weights * facing.clamp(0, 1)).sum(1, keepdim=True)
        albedo = (weights[..., None] * self._paint[corner]).sum(1)
        if self._texture is not None:
            albedo = sample_texture(self._texture, albedo)
        return (albedo * (AMBIENT + DIFFUSE * diffuse)).clamp(0, 1)


def _hits(triangles: _Triangles, square: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find pixels inside triangles whose boxes fit a square: flat pixel and key, (P,) int64."""
    edges = _edges(triangles.corners, triangles.first, square)
    inside = (edges >= 0).all(1)
    steps = torch.arange(square, device=edges.device)
    inside &= (steps < triangles.extent[:, :1])[:, None, :]
    inside &= (steps < triangles.extent[:, 1:])[:, :, None]
    triangle, row, column = inside.nonzero(as_tuple=True)
    inner = edges[triangle, :, row, column]
    depth_m = inner.sum(1) / (inner * triangles.inverse_depth[triangle]).sum(1)
    bits = depth_m.float().view(torch.int32).long()  # positive floats order as integers
    first = triangles.first.long()[triangle]
    pixel = (triangles.view[triangle] * SIDE_PX + first[:, 1] + row) * SIDE_PX
    return pixel + first[:, 0] + column, bits << 32 | triangles.face[triangle]


def _edges(corners: torch.Tensor, first: torch.Tensor, square: int) -> torch.Tensor:
    """Return twice the areas that pixels span with the three sides, positive inside.

    corners: (T, 3, 2) pixels; first: (T, 2) the upper left pixel. Returns (T, 3, square, square),
    side k being the one opposite corner k.
    """
    start, along = corners.roll(-1, 1), corners.roll(-2, 1) - corners.roll(-1, 1)
    offset = first[:, None] - start
    signed = (
        torch.stack([-along[..., 1], along[..., 0]], -1) * _area(corners).sign()[:, None, None]
    )
    steps = torch.arange(square, device=corners.device, dtype=corners.dtype)
    across = signed[..., :1] * (offset[..., :1] + steps)
    down = signed[..., 1:] * (offset[..., 1:] + steps)
    return across[:, :, None, :] + down[:, :, :, None]


def _area(corners: torch.Tensor) -> torch.Tensor:
    """Twice the signed area (...) of triangles (..., 3, 2)."""
    a, b = (corners[..., k, :] - corners[..., 0, :] for k in (1, 2))
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _weights(
    scene: _Projection, seen: tuple[torch.Tensor, ...], corner: torch.Tensor
) -> torch.Tensor:
    """Perspective-correct weights (P, 3) of the corners (P, 3) at the seen pixels."""
    view, pixel = seen[0][:, None], torch.stack([seen[2], seen[1]], 1)
    edges = _edges(scene.pixels[view, corner], pixel, 1).flatten(1)
    weights = edges / scene.points[view, corner][..., 2]
    return weights / weights.sum(1, keepdim=True)


def sample_texture(texture: torch.Tensor, uv: torch.Tensor) -> torch.Tensor:
    """Colours (P, 3) of a texture (h, w, 3) at uv (P, 2), v down: bilinear, wrapping, no mipmaps.

    Texel centres lie at half integers.
    """
    height, width = texture.shape[:2]
    place = uv * uv.new_tensor([width, height]) - 0.5
    corner = place.floor()
    right, below = (place - corner)[:, :, None].unbind(1)
    x, y = corner.long().unbind(1)
    x0, x1, y0, y1 = x % width, (x + 1) % width, y % height, (y + 1) % height
    top = texture[y0, x0] * (1 - right) + texture[y0, x1] * right
    bottom = texture[y1, x0] * (1 - right) + texture[y1, x1] * right
    return top * (1 - below) + bottom * below
