"""What the z-buffer covers and how deep, against closed forms and independent ray casters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from raster_rig import (
    CAMERA,
    CORNERS,
    SIZE,
    box_parts,
    drawn,
    in_hull,
    mesh,
    on_devices,
    on_plane,
    plane_depth,
    pose,
    random_poses,
    rays,
    render,
    sheet,
)
from scipy.spatial.transform import Rotation

from foundationpose_trt.pose.mesh_bank import MeshBank
from foundationpose_trt.pose.rasterizer import Rasterizer

HALF = np.array([0.05, 0.08, 0.03])
EDGE_PX = 2e-3  # the rasterizer closes cracks with 1e-3 px; nearer to an edge both are right
DEPTH_M = 1e-4  # demanded; a rendered cube is nearer to it than 1e-6


def box(half: np.ndarray = HALF):
    vertices, faces, normals = box_parts(half)
    return mesh(vertices, faces, normals=normals)


def box_depth(camera_from_box: np.ndarray, half: np.ndarray, camera=CAMERA) -> np.ndarray:
    """Entry depth of every viewing ray by the slab method, inf where it misses."""
    turn, at = camera_from_box[:3, :3], camera_from_box[:3, 3]
    start, along = -turn.T @ at, rays(camera) @ turn
    with np.errstate(divide='ignore'):
        near = (-np.sign(along) * half - start) / along
        far = (np.sign(along) * half - start) / along
    entry, leave = near.max(-1), far.min(-1)
    return np.where((entry < leave) & (entry > 0), entry, np.inf)


# --- a box ---------------------------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize('spread', [0.0, 0.25], ids=['in view', 'cut off by the border'])
def test_box_has_the_closed_form_depth_and_silhouette(device, spread):
    poses = random_poses(30, 5, spread)
    seen = render([box()], poses, device=device)
    for k, at in enumerate(poses):
        depth, outline = box_depth(at, HALF), in_hull(CORNERS * HALF, at)
        np.testing.assert_array_equal((seen.slot[k] == 0)[outline < -EDGE_PX], True)
        np.testing.assert_array_equal((seen.slot[k] == -1)[outline > EDGE_PX], True)
        inner = outline < -EDGE_PX
        np.testing.assert_allclose(seen.depth_m[k][inner], depth[inner], atol=DEPTH_M / 10)
    assert (seen.depth_m[seen.slot == -1] == 0).all()
    assert (seen.color[seen.slot == -1] == 0).all()
    assert (seen.facing[seen.slot == -1] == 0).all()
    assert (seen.slot == 0).any(axis=(1, 2)).sum() >= 20


def test_facing_is_the_cosine_between_normal_and_ray():
    at = pose(Rotation.from_euler('xyz', (0.4, 0.7, 0.2)))
    seen = render([mesh(*sheet(np.array([-0.4, 0.4]), np.array([-0.4, 0.4])))], [at])
    directions = rays()
    cosine = np.abs(directions @ at[:3, 2]) / np.linalg.norm(directions, axis=-1)
    covered = seen.slot[0] == 0
    assert covered.sum() > 15000
    np.testing.assert_allclose(seen.facing[0][covered], cosine[covered], atol=1e-5)


# --- a sphere ------------------------------------------------------------------------------------
def sphere_depth(radius: float, at: np.ndarray) -> np.ndarray:
    directions = rays()
    a = (directions**2).sum(-1)
    b = directions @ at
    under = b * b - a * (at @ at - radius**2)
    return np.where(under >= 0, (b - np.sqrt(np.maximum(under, 0))) / a, np.inf)


@on_devices
def test_sphere_lies_between_its_inner_and_outer_closed_form(device):
    ball = trimesh.creation.icosphere(5, 0.1)
    at = np.array([0.02, -0.01, 0.45])
    inner_radius = (ball.face_normals * ball.triangles[:, 0]).sum(1).min()
    outer, inner = sphere_depth(0.1, at), sphere_depth(inner_radius, at)
    body = mesh(ball.vertices, ball.faces, normals=ball.vertex_normals)
    seen = render([body], [pose(at=at)], device=device)
    depth, covered = seen.depth_m[0], seen.slot[0] == 0
    assert (inner[np.isfinite(inner)] - outer[np.isfinite(inner)]).min() < DEPTH_M
    assert covered[np.isfinite(inner)].all()
    assert not covered[~np.isfinite(outer)].any()
    assert (depth[covered] >= outer[covered] - 1e-6).all()
    assert (depth[covered] <= inner[covered] + 1e-6).all()


# --- an independent ray caster -------------------------------------------------------------------
def crumpled(seed: int) -> trimesh.Trimesh:
    """A concave body: radii of a sphere drawn at random."""
    body = trimesh.creation.icosphere(2, 1.0)
    radii = np.random.default_rng(seed).uniform(0.03, 0.1, (len(body.vertices), 1))
    return trimesh.Trimesh((body.vertices * radii).astype(np.float32), body.faces, process=False)


def cast(body: trimesh.Trimesh, at: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """First hit's depth of rays (H, W, 3) by trimesh, inf where there is none."""
    flat = directions.reshape(-1, 3)
    start = np.tile(-at[:3, :3].T @ at[:3, 3], (len(flat), 1))
    points, ray, _ = body.ray.intersects_location(start, flat @ at[:3, :3])
    depth = np.full(len(flat), np.inf)
    np.minimum.at(depth, ray, points @ at[2, :3] + at[2, 3])
    return depth.reshape(directions.shape[:2])


def crop_camera(at: np.ndarray, seed: int) -> tuple[float, ...]:
    """A narrow window of a wide camera on the object, off its middle and not square."""
    rng = np.random.default_rng(seed)
    focal = rng.uniform(90, 160, 2)
    center = (SMALL[1] / 2, SMALL[0] / 2) + rng.uniform(-8, 8, 2)
    return (*focal, *(center - focal * at[:2, 3] / at[2, 3]))


SMALL = (44, 48)
AROUND = [
    (0, 0),
    (EDGE_PX, EDGE_PX),
    (EDGE_PX, -EDGE_PX),
    (-EDGE_PX, EDGE_PX),
    (-EDGE_PX, -EDGE_PX),
]


@on_devices
@pytest.mark.parametrize('seed', range(4))
def test_concave_mesh_agrees_with_trimesh_ray_casting(device, seed):
    pytest.importorskip('rtree', reason='trimesh casts rays with rtree')
    body = crumpled(seed)
    at = random_poses(1, seed + 20)[0]
    camera = tuple(float(np.float32(value)) for value in crop_camera(at, seed))
    seen = render(
        [mesh(body.vertices, body.faces)], [at], camera=camera, size=SMALL, device=device
    )
    bundle = np.stack([cast(body, at, rays(camera, SMALL, shift)) for shift in AROUND])
    hit, missed = np.isfinite(bundle).all(0), np.isinf(bundle).all(0)
    assert hit.sum() > 200 and missed.sum() > 200
    assert ((seen.slot[0] == 0)[hit]).all()
    assert ((seen.slot[0] == -1)[missed]).all()
    # across an inner silhouette the bundle sees two surfaces; anything between is right there
    depth, tolerance = seen.depth_m[0][hit], 1e-5
    assert (depth >= bundle[:, hit].min(0) - tolerance).all()
    assert (depth <= bundle[:, hit].max(0) + tolerance).all()


@on_devices
def test_inverted_winding_gives_the_same_surface(device):
    body = crumpled(9)
    poses = random_poses(8, 31)
    out, inverted = (
        render([mesh(body.vertices, faces)], poses, device=device)
        for faces in (body.faces, body.faces[:, ::-1])
    )
    np.testing.assert_allclose(out.depth_m, inverted.depth_m, atol=1e-6)
    np.testing.assert_allclose(out.facing, inverted.facing, atol=1e-3)


# --- no holes ------------------------------------------------------------------------------------
def assert_no_holes(vertices: np.ndarray, faces: np.ndarray, poses: np.ndarray, **how):
    tolerance = how.pop('tolerance', DEPTH_M / 2)
    seen = render([mesh(vertices, faces)], poses, **how)
    for k, at in enumerate(poses):
        outline = in_hull(vertices, at)
        assert (outline < -EDGE_PX).sum() > 300
        assert (seen.slot[k][outline < -EDGE_PX] == 0).all()
        inner = outline < -EDGE_PX
        expected = plane_depth(at, rays())[inner]
        np.testing.assert_allclose(seen.depth_m[k][inner], expected, atol=tolerance)


def tilted_poses(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spin, turns = rng.uniform(0, 6.28, count), rng.uniform(0, 6.28, count)
    tilts = np.deg2rad(rng.uniform(0, 78, count))
    around = Rotation.from_rotvec(np.outer(spin, (0, 0, 1)))
    tilt = Rotation.from_rotvec(
        tilts[:, None] * np.stack([np.cos(turns), np.sin(turns), 0 * turns], 1)
    )
    return np.stack([pose(rotation) for rotation in tilt * around])


@on_devices
def test_finely_divided_plane_has_no_holes(device):
    rng = np.random.default_rng(3)
    inner = rng.uniform(-0.12, 0.12, (2, 60))
    lines = np.sort(np.concatenate([inner, np.tile([-0.12, 0.12], (2, 1))], axis=1))
    assert_no_holes(*sheet(*lines), tilted_poses(25, 4), device=device)


def t_junctions() -> tuple[np.ndarray, np.ndarray]:
    """One quad beside strips whose corners lie on its edge, at places that float32 rounds."""
    marks = np.sort(np.random.default_rng(8).uniform(-0.1, 0.1, 40))
    marks = np.concatenate([[-0.1], marks, [0.1]])
    strips, strip_faces = sheet(np.array([0.013, 0.1]), marks)
    quad, quad_faces = sheet(np.array([-0.1, 0.013]), np.array([-0.1, 0.1]))
    return np.concatenate([strips, quad]), np.concatenate([strip_faces, quad_faces + len(strips)])


@on_devices
def test_t_junctions_leave_no_holes(device):
    assert_no_holes(*t_junctions(), tilted_poses(40, 5), device=device)


def test_crops_far_off_the_optical_axis_have_no_holes():
    # a zoomed crop's principal point lies thousands of pixels away, where float32 is coarse
    poses = tilted_poses(20, 6)
    poses[:, :2, 3] = np.float32(0.6), np.float32(0.25)
    camera = (1000.0, 1000.0, -1120.0, -440.0)
    seen = render([mesh(*t_junctions())], poses, camera=camera)
    for k, at in enumerate(poses):
        inner = in_hull(t_junctions()[0], at, camera) < -EDGE_PX
        assert inner.sum() > 1000
        assert (seen.slot[k][inner] == 0).all()
        expected = plane_depth(at, rays(camera))[inner]
        np.testing.assert_allclose(seen.depth_m[k][inner], expected, atol=DEPTH_M)


@on_devices
def test_triangles_seen_as_lines_are_not_drawn(device):
    # Corners that project to integer pixels on one line put pixel centres on the sliver, where
    # all edge values are rounding noise, up to 0 / 0 in the weights.
    rng = np.random.default_rng(0)
    start, step = rng.integers(0, 100, (3000, 2)), rng.integers(-6, 7, (3000, 2))
    ahead, back = rng.integers(1, 20, (2, 3000, 1))
    pixels = np.stack([start, start + step * ahead, start - step * back], 1)
    z = rng.uniform(0.3, 0.8, (3000, 3, 1))
    corners = np.concatenate([(pixels - (80, 60)) / 300 * z, z], -1).reshape(-1, 3)
    groups = [mesh(part, np.arange(45).reshape(15, 3)) for part in np.split(corners, 200)]
    view = {'camera': (300.0, 300.0, 80.0, 60.0), 'index': np.arange(200)[:, None]}
    seen = render(groups, np.stack([pose(at=(0, 0, 0))] * 200), device=device, **view)
    assert (seen.slot == -1).all() and (seen.depth_m == 0).all()


def test_needles_in_a_plane_leave_its_depth_alone():
    # Thinner than rounding: beside a needle its weights are noise, and so would be a depth taken
    # from them, anywhere along the needle.
    rng = np.random.default_rng(12)
    start, end = rng.uniform(-0.1, 0.1, (2, 4000, 2))
    middle = start + (end - start) * rng.uniform(0, 1, (4000, 1))
    thin = rng.normal(0, 1, (4000, 2)) * 10 ** rng.uniform(-9, -5, (4000, 1))
    needles = np.stack([start, end, middle + thin], 1).reshape(-1, 2)
    square, faces = sheet(np.array([-0.1, 0.1]), np.array([-0.1, 0.1]))
    vertices = np.concatenate([square, np.column_stack([needles, np.zeros(12000)])])
    faces = np.concatenate([faces, 4 + np.arange(12000).reshape(-1, 3)])
    assert_no_holes(vertices, faces, tilted_poses(6, 13), tolerance=2 * DEPTH_M)


def test_degenerate_faces_are_left_out():
    vertices, faces = sheet(np.array([-0.1, 0.1]), np.array([-0.1, 0.1]))
    vertices = np.concatenate([vertices, vertices[:1] / 2 + vertices[2:3] / 2])
    broken = [[0, 0, 1], [1, 1, 1], [2, 0, 2], [0, 4, 2]]
    at = pose(Rotation.from_euler('x', 0.5))
    whole = render([mesh(vertices, faces)], [at])
    with_broken = render([mesh(vertices, np.concatenate([faces, broken]))], [at])
    np.testing.assert_allclose(with_broken.depth_m, whole.depth_m, atol=1e-6)
    empty = render([mesh(vertices, np.array(broken[:3]))], [at])
    assert (empty.slot == -1).all()


# --- the camera plane ----------------------------------------------------------------------------
def test_nothing_behind_the_camera_is_drawn():
    seen = render([box()], [pose(at=(0, 0, -0.5)), pose(at=(0, 0, -0.031))])
    assert (seen.slot == -1).all()


def test_triangles_that_cross_the_near_plane_are_left_out_one_by_one():
    # strips along z, from behind the camera to far in front of it
    vertices, faces = sheet(np.linspace(-0.2, 0.2, 3), np.linspace(-0.1, 1.1, 13))
    at = pose(Rotation.from_euler('x', 90, degrees=True), (0, 0.05, 0))
    seen = render([mesh(vertices, faces)], [at])
    along = on_plane(at, rays())
    ahead = (along[..., 1] > 0.0) & (along[..., 1] < 1.1) & (np.abs(along[..., 0]) < 0.2)
    whole = ahead & (plane_depth(at, rays()) > 0.1 + 1e-3)
    margin = (np.abs(along[..., 1] - 1.1) < 5e-3) | (np.abs(np.abs(along[..., 0]) - 0.2) < 1e-4)
    assert (whole & ~margin).sum() > 300
    np.testing.assert_array_equal((seen.slot[0] == 0)[~margin], whole[~margin])


# --- views and slots -----------------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize('count', [2, 3, 8])
def test_every_view_has_its_own_pose_and_camera(device, count):
    # upstream mixes views up when their number equals that of the points (2, or 8 vertices)
    vertices = CORNERS * HALF
    body = trimesh.convex.convex_hull(vertices)
    poses = random_poses(count, 40)
    cameras = np.array(CAMERA) + np.random.default_rng(1).uniform(-9, 9, (count, 4))
    together = render([mesh(body.vertices, body.faces)], poses, camera=cameras, device=device)
    for k in range(count):
        camera = tuple(cameras[k].astype(np.float32).astype(float))
        outline = in_hull(vertices, poses[k], camera)
        depth = box_depth(poses[k], HALF, camera)
        assert (together.slot[k][outline > EDGE_PX] == -1).all()
        inner = outline < -EDGE_PX
        np.testing.assert_allclose(together.depth_m[k][inner], depth[inner], atol=1e-5)


@on_devices
def test_slots_show_the_nearest_instance_and_skip_empty_ones(device):
    halves = [HALF, np.array([0.02, 0.02, 0.12])]
    poses = np.stack([random_poses(3, seed, 0.06) for seed in range(6)])
    index = np.array([[0, -1, 1], [1, 1, 0], [-1, -1, -1], [-1, 0, -1], [0, 0, 0], [1, 0, 1]])
    seen = render([box(half) for half in halves], poses, index=index, device=device)
    for k in range(6):
        depths = np.stack(
            [
                box_depth(at, halves[m]) if m >= 0 else np.full(SIZE, np.inf)
                for at, m in zip(poses[k], index[k], strict=True)
            ]
        )
        nearest, order = depths.argmin(0), np.sort(depths, 0)
        expected = np.where(np.isinf(order[0]), -1, nearest)
        clear = np.isinf(order[1]) | (order[1] > order[0] + 1e-5)
        wrong = (seen.slot[k] != expected) & clear
        assert wrong.sum() <= 2  # silhouettes through a pixel centre
        same = ~wrong & clear & (expected >= 0)
        np.testing.assert_allclose(seen.depth_m[k][same], order[0][same], atol=1e-5)


def test_identities_keep_their_highest_slot_and_face():
    # 24 bits of face and 8 bits of slot share a word with its sign bit
    vertices, faces = sheet(np.linspace(-0.2, 0.2, 264), np.linspace(-0.2, 0.2, 264))
    assert len(faces) > 2**17
    split = vertices[faces].reshape(-1, 3)
    marks = np.random.default_rng(2).uniform(0.1, 0.7, (len(faces), 3))
    body = mesh(split, np.arange(len(split)).reshape(-1, 3), colors=marks.repeat(3, axis=0))
    index = np.full((1, 255), -1)
    index[0, 254] = 0
    poses = np.stack([pose()] * 255)[None]
    seen = render([body], poses, index=index, camera=(4000.0, 4000.0, 80.0, 60.0))
    assert (seen.slot == 254).all()
    place = on_plane(pose(), rays((4000.0, 4000.0, 80.0, 60.0))) / 0.4 * 263 + 131.5
    cell, part = np.floor(place).astype(int), np.mod(place, 1)
    lower = part[..., 0] >= part[..., 1]
    face = cell[..., 0] * 263 + cell[..., 1] + np.where(lower, 0, 263 * 263)
    clear = np.abs(part[..., 0] - part[..., 1]) > 1e-2
    clear &= (np.abs(part[..., :2] - 0.5) < 0.49).all(-1)
    np.testing.assert_allclose(seen.color[0][clear], marks[face][clear] * 1.3, atol=1e-5)


@on_devices
def test_a_pose_that_is_not_finite_draws_nothing(device):
    poses = np.stack([pose()] * 14)
    for k, value in enumerate((np.nan, np.inf)):
        for row in range(3):
            poses[1 + 6 * k + 2 * row, row, 3] = value
            poses[2 + 6 * k + 2 * row, row, 1] = value
    seen = render([box()], poses, device=device)
    assert (seen.slot[[0, 13]] == 0).any(axis=(1, 2)).all()
    assert (seen.slot[1:13] == -1).all()


# --- wrong calls ---------------------------------------------------------------------------------
def test_more_slots_than_the_identity_holds_are_refused():
    with pytest.raises(ValueError, match='slots is 256, must be 1..255'):
        Rasterizer(MeshBank([box()]), 1, slots=256)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'mesh_index': torch.zeros(3, 1)}, '3 views, room for 2'),
        ({'mesh_index': torch.zeros(2, 2)}, r'mesh_index is \(2, 2\), must be \(2, 1\)'),
        ({'camera_from_centered': torch.eye(4).repeat(2, 1, 1)}, 'camera_from_centered is'),
        ({'intrinsics': torch.ones(1, 4)}, r'intrinsics is \(1, 4\), must be \(2, 4\)'),
        ({'texture_index': torch.zeros(2, 3)}, 'texture_index is'),
    ],
)
def test_tensors_of_another_shape_are_refused(wrong, message):
    right = {
        'mesh_index': torch.zeros(2, 1),
        'camera_from_centered': torch.eye(4).repeat(2, 1, 1, 1),
        'intrinsics': torch.ones(2, 4),
    }
    with pytest.raises(ValueError, match=message):
        Rasterizer(MeshBank([box()]), 2).draw(**{**right, **wrong})


def test_network_input_of_another_shape_is_refused():
    raster = drawn([box()], random_poses(2, 1))
    with pytest.raises(ValueError, match=r'out is \(1, 6, 120, 160\), must be \(2, 6, 120, 160\)'):
        raster.write_network_input(torch.empty(1, 6, *SIZE), torch.ones(1), 0.001)
