"""Plain meshes, one-call rendering and float64 viewing rays for the tests of the pose core."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from foundationpose_trt.pose.mesh import ObjectMesh
from foundationpose_trt.pose.mesh_bank import MeshBank
from foundationpose_trt.pose.rasterizer import Light, Rasterizer

on_devices = pytest.mark.parametrize(
    'device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
)
SIZE = (120, 160)
CAMERA = (190.0, 200.0, 81.3, 58.6)  # fx, fy, cx, cy
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


def mesh(vertices: np.ndarray, faces: np.ndarray, **surface: np.ndarray) -> ObjectMesh:
    """Make an ObjectMesh as it stands: grey, facing the camera unless told otherwise."""
    count = len(vertices)
    normals = surface.get('normals', np.tile([0.0, 0.0, -1.0], (count, 1)))
    colors = surface.get('colors', np.full((count, 3), 0.5))
    uv, texture = surface.get('uv'), surface.get('texture')
    return ObjectMesh(
        'test',
        np.asarray(vertices, np.float32),
        np.asarray(faces, np.int32),
        np.asarray(normals, np.float32),
        np.asarray(colors, np.float32),
        None if uv is None else np.asarray(uv, np.float32),
        texture,
        np.zeros(3),
        float(np.linalg.norm(np.ptp(vertices, axis=0))),
    )


def box_parts(half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vertices (24, 3), faces (12, 3), normals (24, 3); side 2 * axis + (positive)."""
    vertices, normals = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            side = CORNERS[CORNERS[:, axis] == sign] * half
            vertices.append(side[[0, 1, 3, 2]])
            normals.append(np.tile(sign * np.eye(3)[axis], (4, 1)))
    quads = np.arange(24).reshape(6, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return np.concatenate(vertices), faces, np.concatenate(normals)


def sheet(across: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and faces of a grid in the plane z = 0 with the given coordinates."""
    x, y = np.meshgrid(across, along, indexing='ij')
    vertices = np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3)
    at = np.arange(x.size).reshape(x.shape)
    a, b, c, d = at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]
    faces = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    return vertices, faces


def pose(rotation: Rotation | None = None, at: tuple[float, ...] = (0, 0, 0.5)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = (Rotation.identity() if rotation is None else rotation).as_matrix()
    matrix[:3, 3] = at
    # the same rounded numbers for the product and for the oracle
    return matrix.astype(np.float32).astype(np.float64)


def random_poses(count: int, seed: int, spread: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(-spread, spread, (count, 3)) + (0, 0, 0.5)
    turns = Rotation.random(count, random_state=seed)
    return np.stack([pose(turn, tuple(at)) for turn, at in zip(turns, offsets, strict=True)])


@dataclass(frozen=True)
class Pictures:
    """Rendered images of all views, as numpy arrays."""

    color: np.ndarray
    depth_m: np.ndarray
    slot: np.ndarray
    facing: np.ndarray


def drawn(meshes: list[ObjectMesh], poses: np.ndarray, **view: object) -> Rasterizer:
    """Draw poses (n, 4, 4) of the first mesh, or (n, slots, 4, 4) of `index` (n, slots)."""
    device = torch.device(view.get('device', 'cpu'))
    poses = np.asarray(poses).reshape(len(poses), -1, 4, 4)
    index = np.asarray(view.get('index', np.zeros(poses.shape[:2])))
    camera = np.broadcast_to(view.get('camera', CAMERA), (len(poses), 4))
    size = view.get('size', SIZE)
    raster = Rasterizer(MeshBank(meshes, device), len(poses), *size, slots=poses.shape[1])
    raster.draw(
        torch.tensor(index, dtype=torch.int32, device=device),
        torch.tensor(poses, dtype=torch.float32, device=device),
        torch.tensor(camera, dtype=torch.float32, device=device),
    )
    return raster


def render(
    meshes: list[ObjectMesh], poses: np.ndarray, light: Light | None = None, **view: object
) -> Pictures:
    out = drawn(meshes, poses, **view).shade(light)
    names = ('color', 'depth_m', 'slot', 'facing')
    return Pictures(*(getattr(out, name).cpu().numpy().copy() for name in names))


def network_input(
    raster: Rasterizer, out: torch.Tensor, scale: float, near_m: float
) -> np.ndarray:
    """Write into `out` and return it as float32 (n, 6, H, W)."""
    count = len(raster.bank.default_texture)
    raster.write_network_input(out, torch.full((count,), scale, device=out.device), near_m)
    return out.float().cpu().numpy()


def rays(
    camera: tuple[float, ...] = CAMERA,
    size: tuple[int, int] = SIZE,
    shift: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """Return the viewing rays (H, W, 3), float64, z = 1, of pixel centres at integers."""
    fx, fy, cx, cy = camera
    v, u = np.mgrid[: size[0], : size[1]].astype(float)
    return np.stack([(u + shift[0] - cx) / fx, (v + shift[1] - cy) / fy, np.ones_like(u)], axis=-1)


def plane_depth(camera_from_plane: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Depth (H, W) at which rays meet the plane z = 0 of a frame."""
    normal, point = camera_from_plane[:3, 2], camera_from_plane[:3, 3]
    return (normal @ point) / (directions @ normal)


def on_plane(camera_from_plane: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Coordinates (H, W, 3) in the plane's frame where rays meet its plane z = 0."""
    points = directions * plane_depth(camera_from_plane, directions)[..., None]
    return (points - camera_from_plane[:3, 3]) @ camera_from_plane[:3, :3]


def in_hull(
    points: np.ndarray, camera_from_object: np.ndarray, camera: tuple[float, ...] = CAMERA
) -> np.ndarray:
    """Signed distance (H, W) in pixels to the outline of the projected points, inside < 0.

    Only for convex bodies in front of the camera.
    """
    from scipy.spatial import ConvexHull

    seen = points @ camera_from_object[:3, :3].T + camera_from_object[:3, 3]
    outline = seen[:, :2] / seen[:, 2:] * camera[:2] + camera[2:]
    sides = ConvexHull(outline).equations
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    return (np.stack([u, v, np.ones_like(u)], -1) @ sides.T).max(-1)
