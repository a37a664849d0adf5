"""Random meshes, poses, cameras and images, and what may show at a pixel by bounds on rounding.

Every case follows from its seed alone. All numbers of cameras and poses are float32 ones, so that
the reference, in float64, starts from the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from raster_rig import box_parts, sheet
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.pose.mesh import ObjectMesh
from foundationpose_trt.tools.eager_renderer import sample_texture

SIDE = 160
MINUTE = 500  # diameters away: what float32 tells apart begins to show, thousandths of a radius
POSES = 8  # of one case, of two meshes in one image
NEAR_PLANE_M = 0.001
COLOR_OFF, XYZ_OFF = 2e-3, 1e-3  # of 0..1, and of radii
EDGE = 1e-6  # the kernels widen triangles by this much of the largest coordinate
ROUNDING = 2e-7  # of a sum of a few float32 products, relative to their sizes
INDEX_ROUNDING = 3e-7  # of a place in the image, relative to the numbers that it is the sum of
MESH_KINDS = ('soup', 'shared', 'degenerate', 'slivers', 'flat', 'sheet', 'box')
DIAMETER_KINDS = ('as it is', 'as it is', 'as it is', 'speck in its crop', 'beyond its crop')
POSE_KINDS = (
    'in view', 'at the border', 'outside', 'far', 'a pixel', 'behind', 'straddling',
    'at the plane', 'very near',
)  # fmt: skip
DEPTH_KINDS = ('planes', 'steep planes', 'steps', 'noise', 'nothing')
KINDS = {*MESH_KINDS, *DIAMETER_KINDS, *POSE_KINDS}


@dataclass(frozen=True)
class Case:
    """Poses of two meshes in one image; broken: (n, 4, 4) of which the rows in `breaks` are not
    finite, the others those of poses. labels: what kind of mesh and pose each row is."""

    seed: int
    meshes: tuple[ObjectMesh, ObjectMesh]
    objects: np.ndarray
    poses: np.ndarray
    frame: Frame
    broken: np.ndarray
    breaks: np.ndarray
    labels: tuple[str, ...]


def single(values: np.ndarray) -> np.ndarray:
    """The nearest float32 numbers, as float64."""
    return np.asarray(values, np.float32).astype(np.float64)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


# --- meshes --------------------------------------------------------------------------------------
def soup(rng: np.random.Generator, most: int = 300) -> np.ndarray:
    """Corners (F, 3, 3) of triangles of all sizes in a unit ball; the more, the smaller."""
    count = int(log_uniform(rng, 1, most + 0.99))
    size = np.exp(rng.uniform(np.log(0.02), np.log(0.8 if count < 40 else 0.2), (count, 1, 1)))
    return rng.uniform(-0.5, 0.5, (count, 1, 3)) + size * rng.normal(0, 0.5, (count, 3, 3))


def degenerate(rng: np.random.Generator, corners: np.ndarray, kind: str) -> np.ndarray:
    """Flatten most of the triangles: to lines and points, or to slivers 1e-9 to 1e-4 wide."""
    a, b, c = corners.transpose(1, 0, 2)
    along = a + (b - a) * rng.uniform(-1, 2, (len(a), 1))
    if kind == 'slivers':
        flattened = along + (c - a) * 10 ** rng.uniform(-9, -4, (len(a), 1))
    else:
        flattened = np.choose(rng.integers(0, 3, (len(a), 1)), [along, a, b])
    return np.stack([a, b, np.where(rng.random((len(a), 1)) < 0.7, flattened, c)], 1)


def shape(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices about one unit wide, and faces."""
    if kind == 'box':
        return box_parts(rng.uniform(0.05, 0.5, 3))[:2]
    if kind == 'sheet':
        lines = np.sort(rng.uniform(-0.4, 0.4, (2, int(rng.integers(2, 8)))))
        return sheet(*lines)
    if kind == 'shared':
        vertices = rng.normal(0, 0.3, (int(rng.integers(3, 30)), 3))
        return vertices, rng.integers(0, len(vertices), (int(rng.integers(1, 40)), 3))
    corners = soup(rng)
    if kind in ('degenerate', 'slivers'):
        corners = degenerate(rng, corners, kind)
    if kind == 'flat':
        corners[..., rng.integers(3)] = 0
    vertices, faces = corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3)
    if kind == 'degenerate':
        faces[:, 1] = np.where(rng.random(len(faces)) < 0.2, faces[:, 0], faces[:, 1])
    return vertices, faces


def paint(rng: np.random.Generator, vertices: np.ndarray) -> dict[str, np.ndarray | None]:
    """Colours and normals, and for half of the meshes a texture; nothing is black."""
    normals = rng.normal(size=vertices.shape)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    surface = {'normals': normals, 'colors': rng.uniform(0.05, 1, vertices.shape)}
    if rng.random() < 0.5:
        surface['uv'] = vertices[:, :2] @ rng.normal(0, 1.5, (2, 2)) + rng.normal(0, 0.3, 2)
    surface = {name: values.astype(np.float32) for name, values in surface.items()}
    texture = rng.integers(20, 256, (*rng.integers(1, 17, 2), 3), dtype=np.uint8)
    return {'uv': None, **surface, 'texture': texture if 'uv' in surface else None}


def random_mesh(rng: np.random.Generator) -> tuple[ObjectMesh, str]:
    kind, stated = str(rng.choice(MESH_KINDS)), str(rng.choice(DIAMETER_KINDS))
    vertices, faces = shape(rng, kind)
    size = log_uniform(rng, 0.0005, 2.0)
    diameter = max(np.linalg.norm(np.ptp(vertices, axis=0)), 0.05) * size
    factor = {'speck in its crop': (60, 600), 'beyond its crop': (0.05, 0.6)}.get(stated, (1, 1))
    mesh = ObjectMesh(
        name=kind,
        vertices=(vertices * size).astype(np.float32),
        faces=faces.astype(np.int32),
        center_m=np.zeros(3),
        diameter_m=float(diameter * rng.uniform(*factor)),
        **paint(rng, vertices),
    )
    return mesh, f'{kind}, {stated}'


# --- cameras and images --------------------------------------------------------------------------
def random_camera(rng: np.random.Generator) -> CameraIntrinsics:
    width, height = int(log_uniform(rng, 33, 641)), int(log_uniform(rng, 17, 481))
    fx = width * rng.uniform(0.4, 2.5)
    reach = (0.3, 0.7) if rng.random() < 0.6 else (-1.0, 2.0)
    k = single([fx, fx * rng.uniform(0.7, 1.4), *(rng.uniform(*reach, 2) * (width, height))])
    return CameraIntrinsics(*k.tolist(), width, height)


def random_depth(
    rng: np.random.Generator, k: CameraIntrinsics, poses: np.ndarray, diameters_m: np.ndarray
) -> np.ndarray:
    """Depth (H, W) float32: things where the poses are, holes, and values that no camera gives."""
    kind, size = str(rng.choice(DEPTH_KINDS)), (k.height, k.width)
    v, u = np.mgrid[: size[0], : size[1]]
    tilt = {'steep planes': 2.0, 'planes': 0.05}.get(kind, 0.0) / max(size)
    slope = 1 + tilt * (rng.uniform(-1, 1) * (u - k.width / 2) + rng.uniform(-1, 1) * v)
    depth = np.full(size, rng.uniform(0.1, 3.0))
    for (x, y, z), diameter in zip(poses[:, :3, 3], diameters_m, strict=True):
        if z > 0:
            reach, middle = 0.6 * k.fx * diameter / z, (k.fx * x / z + k.cx, k.fy * y / z + k.cy)
            there = (np.abs(u - middle[0]) < reach) & (np.abs(v - middle[1]) < reach)
            depth[there] = z + diameter * rng.uniform(-0.3, 0.3)
    depth = depth * slope + rng.normal(0, 2e-4, size)
    if kind == 'noise':
        depth *= rng.uniform(0.8, 1.2, size)
    depth[rng.random(size) < rng.choice([0, 0.1, 0.6, 0.8])] = 0
    odd = rng.random(size) < 0.01
    depth[odd] = rng.choice([1e-9, 5e-4, 0.05, 99.9999, 100.0, 1e6], odd.sum())
    return (depth * (kind != 'nothing')).clip(0).astype(np.float32)


# --- poses ---------------------------------------------------------------------------------------
def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Any, and at times one along the axes, which shows flat things as lines."""
    if rng.random() < 0.2:
        return np.rint(Rotation.create_group('O').as_matrix()[rng.integers(24)])
    return Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()


def distance_m(rng: np.random.Generator, kind: str, mesh: ObjectMesh, focal_px: float) -> float:
    """Of the pose's origin along the optical axis."""
    diameter = mesh.diameter_m
    if kind == 'far':
        return log_uniform(rng, 10, 100)
    if kind == 'a pixel':
        return focal_px * diameter / rng.uniform(0.1, 3.0)
    if kind == 'behind':
        return -diameter * rng.uniform(0, 5)
    if kind == 'straddling':
        return diameter * rng.uniform(-0.5, 0.5)
    if kind == 'very near':
        return diameter * rng.uniform(0.45, 0.7) + NEAR_PLANE_M
    return diameter * log_uniform(rng, 0.7, 12)


def random_pose(
    rng: np.random.Generator, kind: str, mesh: ObjectMesh, k: CameraIntrinsics
) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = random_rotation(rng)
    z = distance_m(rng, kind, mesh, k.fx)
    size = np.array([k.width, k.height])
    pixel = rng.uniform(0.2, 0.8, 2) * size
    if kind == 'at the border':
        near_by = rng.integers(0, 2, 2) * size
        near_by = near_by + rng.uniform(-0.6, 0.6, 2) * k.fx / z * mesh.diameter_m
        pixel = np.where(rng.permutation([True, rng.random() < 0.5]), near_by, pixel)
    if kind == 'outside':
        pixel = rng.choice([-1, 1], 2) * rng.uniform(1.2, 4, 2) * size
    if kind in ('straddling', 'at the plane', 'very near', 'behind'):
        pose[:2, 3] = rng.uniform(-0.4, 0.4, 2) * mesh.diameter_m
    else:
        pose[:2, 3] = (pixel - (k.cx, k.cy)) / (k.fx, k.fy) * z
    if kind == 'at the plane':
        z = rng.uniform(-1, 1) * NEAR_PLANE_M
        if rng.random() < 0.6:  # its nearest vertex just before or behind the near plane
            nearest = (mesh.vertices @ pose[2, :3]).min()
            z = NEAR_PLANE_M - nearest + rng.choice([-1, 1]) * 10 ** rng.uniform(-8, -4)
    pose[2, 3] = z
    return single(pose)


def random_case(seed: int) -> Case:
    """One image with POSES poses; the same for the same seed."""
    rng = np.random.default_rng([seed, 20240607])
    camera = random_camera(rng)
    meshes, kinds = zip(*(random_mesh(rng) for _ in range(2)), strict=True)
    objects = rng.integers(0, 2, POSES).astype(np.int32)
    wanted = [str(kind) for kind in rng.choice(POSE_KINDS, POSES)]
    of = list(zip(wanted, objects, strict=True))
    poses = np.stack([random_pose(rng, kind, meshes[m], camera) for kind, m in of])
    diameters_m = np.array([meshes[m].diameter_m for m in objects])
    minute = np.abs(poses[:, :3, 3]).max(1) > MINUTE * diameters_m
    rgb = rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
    frame = Frame(rgb, random_depth(rng, camera, poses, diameters_m), camera)
    breaks = rng.choice(POSES, 2, replace=False)
    broken = poses.copy()
    for row in breaks:
        broken[row, rng.integers(3), rng.integers(4)] = rng.choice([np.nan, np.inf, -np.inf])
    sizes = np.where(minute, '; minute', '').tolist()
    labels = tuple(f'{kinds[m]}; {kind}{far}' for (kind, m), far in zip(of, sizes, strict=True))
    return Case(seed, meshes, objects, poses, frame, broken, breaks, labels)


# --- what may show at a pixel of a rendered crop, by bounds on rounding -------------------------
@dataclass(frozen=True)
class Surfaces:
    """Faces (F,) at pixels (P,): whether each may or must show there, and where in depth it lies.

    weights: (P, F, 3) perspective-correct; off: (P, F) by how much rounding moves them in all;
    index: (F,) which faces of the mesh these are, that lie before the near plane.
    """

    may: np.ndarray
    must: np.ndarray
    low_m: np.ndarray
    high_m: np.ndarray
    weights: np.ndarray
    off: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class Projected:
    """Faces before the near plane: corners (F, 3, 2) pixels, depth (F, 3) metres.

    index: (F,) which of the mesh; what rounding moves them by; what the kernels widen them by.
    """

    index: np.ndarray
    corners: np.ndarray
    depth: np.ndarray
    depth_off: np.ndarray
    moved_px: np.ndarray
    widened_px: np.ndarray


def projected(mesh: ObjectMesh, pose: np.ndarray, k: np.ndarray) -> Projected:
    turn, shift, vertices = pose[:3, :3], pose[:3, 3], mesh.vertices.astype(np.float64)
    points = vertices @ turn.T + shift
    off = ROUNDING * (np.abs(vertices) @ np.abs(turn).T + np.abs(shift))
    z = points[:, 2:]
    index = (z[mesh.faces, 0] >= NEAR_PLANE_M - off[mesh.faces, 2]).all(1).nonzero()[0]
    faces, z = mesh.faces[index], np.where(np.abs(z) < 1e-12, 1e-12, z)
    plane = points[:, :2] / z
    moved = ((off[:, :2] + np.abs(plane) * off[:, 2:]) / np.abs(z) * k[:2]).max(1)
    corners = (plane * k[:2] + k[2:])[faces]
    largest = np.maximum(np.abs(corners).max((1, 2)), np.abs(k[2:]).max())
    depth_off = off[faces, 2].max(1)
    return Projected(index, corners, z[faces, 0], depth_off, moved[faces].max(1), EDGE * largest)


def surfaces(mesh: ObjectMesh, pose: np.ndarray, k: np.ndarray, at: np.ndarray) -> Surfaces:
    """at: (P, 2) x, y. A triangle thinner than what it is widened by need not be drawn."""
    t = projected(mesh, pose, k)
    start, along = np.roll(t.corners, -1, 1), np.roll(t.corners, -2, 1) - np.roll(t.corners, -1, 1)
    lengths = np.linalg.norm(along, axis=2)
    area = np.linalg.det(along[:, :2])
    height = np.nan_to_num(np.abs(area) / lengths.max(1))
    offset = at[:, None, None] - start
    edges = along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]
    edges *= np.sign(area)[:, None]
    band = 1.5 * t.widened_px + t.moved_px
    thin = height <= band + t.moved_px
    box = t.corners.min(1) - band[:, None], t.corners.max(1) + band[:, None]
    in_box = ((at[:, None] >= box[0]) & (at[:, None] <= box[1])).all(2)
    beside = np.abs(edges) <= 2 * (band[:, None] * lengths)
    beside = np.take_along_axis(beside, lengths.argmax(1)[None, :, None], 2)[..., 0]
    near = t.depth.min(1)
    may = in_box & ((edges >= -band[:, None] * lengths).all(2) | (thin & beside))
    may &= height > 0.3 * t.widened_px - 2 * t.moved_px
    must = (edges >= t.moved_px[:, None] * lengths).all(2)
    must &= ~thin & (near >= NEAR_PLANE_M + t.depth_off)
    parts, wobble = edges / t.depth, (t.widened_px + t.moved_px)[:, None] * lengths / t.depth
    total, total_off = parts.sum(2), wobble.sum(1)
    weights = np.nan_to_num(parts / total[..., None])
    least = total - total_off
    off = (total_off + np.abs(weights).sum(2) * total_off) / np.where(least > 0, least, 1e-300)
    off = np.minimum(np.nan_to_num(off, nan=1e6), 1e6)
    far = t.depth.max(1)
    depth = np.nan_to_num((weights * t.depth).sum(2))
    spread, rounding = off * (far - near), t.depth_off + 4e-7 * far
    low, high = (np.clip(depth + sign * spread, near, far) for sign in (-1, 1))
    return Surfaces(may, must, low - rounding, high + rounding, weights, off, t.index)


def shown(mesh: ObjectMesh, pose: np.ndarray, face: np.ndarray, s: tuple) -> tuple:
    """Colours (Q, 3) of faces (Q,) at weights (Q, 3), and how far they may be off by (Q,)."""
    weights, off = s
    corner = mesh.faces[face]
    textured = mesh.texture is not None
    paint = (mesh.uv if textured else mesh.colors)[corner].astype(np.float64)
    albedo, spread = (weights[..., None] * paint).sum(1), np.ptp(paint, axis=1).max(1)
    if textured:
        spread = (np.ptp(paint, axis=1) * mesh.texture.shape[1::-1]).sum(1)
        texture = torch.from_numpy(mesh.texture).double() / 255
        albedo = sample_texture(texture, torch.from_numpy(albedo)).numpy()
    facing = np.clip(-(mesh.normals[corner] @ pose[2, :3]), 0, 1)
    color = np.clip(albedo * (0.8 + 0.5 * (weights * facing).sum(1, keepdims=True)), 0, 1)
    return color, COLOR_OFF + off * (1.3 * spread + 0.5)


@dataclass(frozen=True)
class View:
    """One pose of a mesh, as a crop of intrinsics k (4,) shows it."""

    mesh: ObjectMesh
    pose: np.ndarray
    k: np.ndarray
    near_m: float

    @property
    def radius_m(self) -> float:
        return self.mesh.diameter_m / 2

    @np.errstate(all='ignore')
    def may_show(self, ours: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Whether values (P, 6) at pixels (P, 2) x, y are those of a surface that may show."""
        s = surfaces(self.mesh, self.pose, self.k, at)
        cover = np.where(s.must, s.high_m, np.inf).min(1, initial=np.inf)
        fits = np.isinf(cover) & (ours == 0).all(1)
        p, f = np.nonzero(s.may & (s.low_m <= cover[:, None]))
        off, low, high = s.off[p, f], s.low_m[p, f], s.high_m[p, f]
        weights = np.clip(s.weights[p, f], -1, 3)
        color, color_off = shown(self.mesh, self.pose, s.index[f], (weights, off))
        same = (np.abs(ours[p, :3] - color) <= color_off[:, None]).all(1)
        ray = np.column_stack([(at[p] - self.k[2:]) / self.k[:2], np.ones(len(p))])
        scale = 2 / self.mesh.diameter_m
        xyz = (ray * (low + high)[:, None] / 2 - self.pose[:3, 3]) * scale
        rounding = 1e-6 * np.maximum(1, np.abs(ray)) * high[:, None]
        xyz_off = XYZ_OFF + (np.abs(ray) * (high - low)[:, None] / 2 + rounding) * scale
        kept = (np.abs(ours[p, 3:] - xyz) <= xyz_off) & (np.abs(xyz) < 2 + xyz_off)
        kept &= (high >= self.near_m)[:, None]
        hidden = (np.abs(xyz) >= 2 - xyz_off) | (low < self.near_m)[:, None]
        same &= (kept | ((ours[p, 3:] == 0) & hidden)).all(1)
        fits[p[same]] = True
        return fits


# --- which pixels of the image a crop reads ------------------------------------------------------
@dataclass(frozen=True)
class Axis:
    """What crop pixels (160,) read along one axis of the image: the nearest pixels, whether
    rounding decides which these are, and what it may move the places by."""

    index: np.ndarray
    tie: np.ndarray
    off: np.ndarray


def halfway(at: np.ndarray, off: np.ndarray) -> np.ndarray:
    return np.abs(at - np.floor(at) - 0.5) <= off


def axis_of(window: np.ndarray, size: int, there_and_back: bool) -> Axis:
    """window: its first and last place; size: of the image."""
    first, extent = window[0], window[1] - window[0]
    steps = np.arange(SIDE) * extent / SIDE
    at = (first + steps) * size / (size - 1) - 0.5
    off = INDEX_ROUNDING * (np.abs(first) + steps + size)
    index, tie = np.rint(at), halfway(at, off)
    if there_and_back:
        back = (index - first) / extent * SIDE * SIDE / (SIDE - 1) - 0.5
        again = tie[np.clip(np.rint(back), 0, SIDE - 1).astype(int)]
        tie = tie | again | halfway(back, INDEX_ROUNDING * (np.abs(back) + 1))
    return Axis(index, tie, off)
