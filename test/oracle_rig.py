"""An object whose colours are its coordinates, its frames in closed form, and oracle networks.

An ellipsoid is painted so that every pixel tells which point of the object it shows. From a crop
the pose then follows by Kabsch's method, without any network and without pose/: `OracleRefiner`
answers with the update that leads to the pose seen in the observed half, `OracleScorer` with how
little the halves differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import trimesh
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.pose.mesh import ObjectMesh
from foundationpose_trt.pose.weights import PoseNetworks

SEMI_AXES_M = np.array([0.05, 0.04, 0.03])
CENTER_M = np.array([0.11, -0.06, 0.025])  # of the mesh file: nowhere near its origin
RADIUS_M = 0.05  # half the diameter
CAMERA = CameraIntrinsics(fx=440.0, fy=430.0, cx=197.3, cy=153.6, width=400, height=300)
AMBIENT = 0.8  # what the networks' head light gives where a normal is zero


def albedo(points_m: np.ndarray) -> np.ndarray:
    return 0.5 + 0.4 * points_m / SEMI_AXES_M


def ellipsoid(center_m: np.ndarray = CENTER_M) -> ObjectMesh:
    """The mesh; zero normals switch its shading off."""
    sphere = trimesh.creation.icosphere(4)
    points = sphere.vertices * SEMI_AXES_M
    return ObjectMesh(
        name='ellipsoid',
        vertices=points.astype(np.float32),
        faces=sphere.faces.astype(np.int32),
        normals=np.zeros_like(points, np.float32),
        colors=albedo(points).astype(np.float32),
        uv=None,
        texture=None,
        center_m=np.asarray(center_m, np.float64),
        diameter_m=2 * RADIUS_M,
    )


def pose_of(seed: int, center_m: np.ndarray = CENTER_M, depth_m: float = 0.55) -> np.ndarray:
    """camera_from_object (4, 4) with the object well inside the image."""
    rng = np.random.default_rng(seed)
    centered = np.eye(4)
    centered[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    centered[:3, 3] = rng.uniform(-0.08, 0.08), rng.uniform(-0.05, 0.05), depth_m
    return centered @ translation(-np.asarray(center_m))


def translation(offset: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def ray_hits(camera_from_object: np.ndarray, camera: CameraIntrinsics, center_m: np.ndarray):
    """Depth (H, W) metres, 0 = miss, and centred surface points (H, W, 3): a quadratic per ray."""
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = np.stack(
        [(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1
    )
    rotation = camera_from_object[:3, :3]
    origin = -(camera_from_object[:3, 3] @ rotation) - center_m
    along, start = rays @ rotation / SEMI_AXES_M, origin / SEMI_AXES_M
    a, b, c = (along**2).sum(-1), along @ start, start @ start - 1
    square = b * b - a * c
    z = np.where(square > 0, (-b - np.sqrt(np.maximum(square, 0))) / a, 0.0)
    return z, (origin + z[..., None] * (rays @ rotation)) * (z > 0)[..., None]


def frame_of(
    camera_from_object: np.ndarray,
    camera: CameraIntrinsics = CAMERA,
    center_m: np.ndarray = CENTER_M,
    wall_m: float = 0.0,
) -> tuple[Frame, np.ndarray]:
    """What a perfect camera sees, and the object's mask; a grey wall, 0 = no depth behind."""
    depth, points = ray_hits(camera_from_object, camera, center_m)
    mask = depth > 0
    rgb = np.where(mask[..., None], AMBIENT * albedo(points), 0.0)
    rgb[~mask & (wall_m > 0)] = 0.02
    depth = np.where(mask, depth, wall_m).astype(np.float32)
    return Frame(np.rint(rgb * 255).astype(np.uint8), depth, camera), mask


def seen_pose(crop: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Rotation and translation (in radii, from the crop's origin) of one half (6, 160, 160)."""
    rgb, xyz = crop[:3].reshape(3, -1).T, crop[3:].reshape(3, -1).T
    points = (rgb / AMBIENT - 0.5) / 0.4 * SEMI_AXES_M
    on_surface = np.abs(np.linalg.norm(points / SEMI_AXES_M, axis=1) - 1) < 0.03
    use = on_surface & (xyz != 0).all(1)
    if use.sum() < 50:
        return None
    p, q = points[use] / RADIUS_M, xyz[use]
    u, _, vt = np.linalg.svd((q - q.mean(0)).T @ (p - p.mean(0)))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return rotation, q.mean(0) - rotation @ p.mean(0)


def answer(rendered: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Six numbers, trans and rot, that lead from the rendered to the observed pose."""
    here, there = seen_pose(rendered), seen_pose(observed)
    if here is None or there is None:
        return np.zeros(6)
    vector = -Rotation.from_matrix(there[0] @ here[0].T).as_rotvec() / np.deg2rad(20.0)
    vector *= min(1.0, 0.95 / max(np.abs(vector).max(), 1e-9))
    return np.concatenate([there[1] - here[1], np.arctanh(vector)])


@dataclass
class OracleRefiner:
    """Stands in for RefineNet; remembers how many crops each call brought."""

    calls: list[int] = field(default_factory=list)

    def __call__(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls.append(len(rendered))
        halves = zip(rendered.double().cpu().numpy(), observed.double().cpu().numpy(), strict=True)
        values = torch.from_numpy(np.array([answer(a, b) for a, b in halves])).float()
        values = values.to(rendered.device)
        return {'trans': values[:, :3], 'rot': values[:, 3:]}


@dataclass
class OracleScorer:
    """Stands in for ScoreNet: minus the mean difference of the two halves."""

    calls: list[int] = field(default_factory=list)
    ranked: list[tuple[int, ...]] = field(default_factory=list)
    width: float = 1.0

    def extract(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(rendered))
        return -(rendered - observed).abs().mean((1, 2, 3))[:, None]

    def rank(self, features: torch.Tensor) -> torch.Tensor:
        self.ranked.append(tuple(features.shape))
        return 100 * features[..., 0]


def oracle_networks(device: str = 'cpu', refiner=None, scorer=None) -> PoseNetworks:
    refiner, scorer = refiner or OracleRefiner(), scorer or OracleScorer()
    return PoseNetworks(refiner, scorer, 'oracle', torch.device(device), torch.float32)


def errors(actual: np.ndarray, expected: np.ndarray, center_m: np.ndarray = CENTER_M):
    """Rotation error in degrees and the distance of the object's middles in millimetres."""
    turn = Rotation.from_matrix(actual[:3, :3].T @ expected[:3, :3]).magnitude()
    middle = np.append(center_m, 1.0)
    return np.rad2deg(turn), 1e3 * np.linalg.norm((actual @ middle - expected @ middle)[:3])
