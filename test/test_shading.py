"""Colours of the rasterizer and the rendered half of the network input, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from raster_rig import (
    CAMERA,
    CORNERS,
    SIZE,
    box_parts,
    drawn,
    in_hull,
    mesh,
    network_input,
    on_devices,
    on_plane,
    plane_depth,
    pose,
    random_poses,
    rays,
    render,
    sheet,
)
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from foundationpose_trt.pose.mesh_bank import MeshBank
from foundationpose_trt.pose.rasterizer import Light, Rasterizer

SQUARE = np.array([-0.2, 0.2])
OBLIQUE = pose(Rotation.from_euler('xyz', (0.7, -0.5, 0.3)), (0.02, 0.01, 0.5))
TOWARD_CAMERA = np.array([0.0, 0.0, -1.0])
NEAR_M = 0.001


def facing_camera(camera_from_object: np.ndarray) -> np.ndarray:
    """The normal, in the object's frame, whose head light factor is 0.8 + 0.5."""
    return camera_from_object[:3, :3].T @ TOWARD_CAMERA


def square(camera_from_object: np.ndarray = OBLIQUE, **surface: np.ndarray):
    vertices, faces = sheet(SQUARE, SQUARE)
    normals = np.tile(facing_camera(camera_from_object), (4, 1))
    return mesh(vertices, faces, **{'normals': normals, **surface})


# --- albedo --------------------------------------------------------------------------------------
@on_devices
def test_box_shows_its_face_colours_under_the_head_light(device):
    half = np.array([0.06, 0.05, 0.04])
    vertices, faces, normals = box_parts(half)
    paint = np.random.default_rng(0).uniform(0.1, 0.7, (6, 3))
    body = mesh(vertices, faces, normals=normals, colors=paint.repeat(4, axis=0))
    poses = random_poses(12, 3, 0.03)
    seen = render([body], poses, device=device)
    for k, at in enumerate(poses):
        directions = rays() @ at[:3, :3]
        start = -at[:3, :3].T @ at[:3, 3]
        entry = (-np.sign(directions) * half - start) / directions
        axis = entry.argmax(-1)
        positive = np.take_along_axis(directions, axis[..., None], -1)[..., 0] < 0
        side = 2 * axis + positive
        light = 0.8 + 0.5 * np.clip(normals[::4] @ facing_camera(at), 0, 1)
        runner_up = np.sort(entry, -1)[..., 1]
        clear = (in_hull(CORNERS * half, at) < -0.01) & (entry.max(-1) - runner_up > 1e-3)
        expected = np.clip(paint * light[:, None], 0, 1)[side]
        np.testing.assert_allclose(seen.color[k][clear], expected[clear], atol=1e-5)


def bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    place = (uv * texture.shape[1::-1] - 0.5)[..., ::-1]
    planes = [
        map_coordinates(channel, np.moveaxis(place, -1, 0), order=1, mode='grid-wrap')
        for channel in np.moveaxis(texture / 255.0, -1, 0)
    ]
    return np.stack(planes, -1)


@on_devices
def test_textured_plane_is_bilinear_wrapping_and_perspective_correct(device):
    texture = np.random.default_rng(1).integers(0, 190, (5, 7, 3), dtype=np.uint8)
    uv_origin, uv_across, uv_along = (
        np.array([-0.6, 1.3]),
        np.array([4.7, 1.1]),
        np.array([0.4, -5.9]),
    )
    vertices, _ = sheet(SQUARE, SQUARE)
    uv = uv_origin + vertices[:, :1] * uv_across + vertices[:, 1:2] * uv_along
    seen = render([square(uv=uv, texture=texture)], [OBLIQUE], device=device)
    place = on_plane(OBLIQUE, rays())
    expected = bilinear(
        texture, uv_origin + place[..., :1] * uv_across + place[..., 1:2] * uv_along
    )
    inner = seen.slot[0] == 0
    assert inner.sum() > 5000
    np.testing.assert_allclose(seen.color[0][inner], 1.3 * expected[inner], atol=2e-4)


def test_first_texture_row_is_at_v_zero():
    # x right, y down: the object's +y edge shows v = 1, the last row
    texture = np.array([[[100, 0, 0], [0, 100, 0]], [[0, 0, 100], [100, 100, 0]]], np.uint8)
    vertices, _ = sheet(SQUARE, SQUARE)
    at = pose(at=(0, 0, 0.5))
    body = square(at, uv=vertices[:, :2] / 0.4 + 0.5, texture=texture)
    picture = render([body], [at]).color[0] / 1.3 * 255
    # uv 1/4 and 3/4 are texel centres: 0.1 m off the middle
    x = [round(CAMERA[2] - 0.2 * CAMERA[0]), round(CAMERA[2] + 0.2 * CAMERA[0])]
    y = [round(CAMERA[3] - 0.2 * CAMERA[1]), round(CAMERA[3] + 0.2 * CAMERA[1])]
    np.testing.assert_allclose(picture[np.ix_(y, x)], texture, atol=2)


def test_an_instance_may_wear_another_texture():
    textures = [np.full((2, 2, 3), value, np.uint8) for value in (40, 80, 120)]
    vertices, _ = sheet(SQUARE, SQUARE)
    bodies = [square(uv=vertices[:, :2], texture=textures[0]), square()]
    bank = MeshBank([bodies[1], bodies[0]], extra_textures=textures[1:])
    assert bank.default_texture.tolist() == [-1, 0]
    raster = Rasterizer(bank, 5, *SIZE)
    at = torch.tensor(OBLIQUE, dtype=torch.float32).expand(5, 1, 4, 4)
    index = torch.tensor([[1], [1], [1], [1], [0]])
    worn = torch.tensor([[0], [1], [2], [-1], [-1]])
    raster.draw(index, at, torch.tensor([CAMERA] * 5), worn)
    middle = raster.shade().color[:, 60, 80].numpy() / 1.3 * 255
    np.testing.assert_allclose(middle[:, 0], [40, 80, 120, 127.5, 127.5], atol=1e-3)


@on_devices
def test_vertex_colours_are_interpolated_on_the_surface(device):
    # bilinear corners would bend along the diagonal: a linear ramp is exact on both triangles
    vertices, _ = sheet(SQUARE, SQUARE)
    ramp = np.array([[1.2, 0.1, -0.5], [-0.3, 0.8, 0.4]])
    body = square(colors=0.35 + vertices[:, :2] @ ramp)
    seen = render([body], [OBLIQUE], device=device)
    expected = 1.3 * (0.35 + on_plane(OBLIQUE, rays())[..., :2] @ ramp)
    inner = seen.slot[0] == 0
    assert inner.sum() > 5000
    np.testing.assert_allclose(seen.color[0][inner], expected[inner], atol=1e-5)


# --- light ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('angle_deg', [0, 30, 60, 89, 120, 180])
def test_head_light_is_08_and_05_times_the_clamped_cosine(angle_deg):
    turn = Rotation.from_euler('x', angle_deg, degrees=True)
    normals = np.tile(turn.apply(TOWARD_CAMERA), (4, 1))
    picture = render([square(pose(), normals=normals)], [pose()]).color[0]
    expected = 0.5 * (0.8 + 0.5 * max(0.0, np.cos(np.deg2rad(angle_deg))))
    np.testing.assert_allclose(picture[50:70, 70:90], expected, atol=1e-6)


def test_diffuse_light_is_clamped_at_the_vertices_then_interpolated():
    # two corners face the camera, two face away: 1 and 0, not 1 and -1, are mixed
    vertices, _ = sheet(SQUARE, SQUARE)
    normals = np.where(vertices[:, :1] < 0, TOWARD_CAMERA, -TOWARD_CAMERA)
    seen = render([square(pose(), normals=normals)], [pose()])
    across = on_plane(pose(), rays())[..., 0] / 0.4 + 0.5
    covered = seen.slot[0] == 0
    expected = 0.5 * (0.8 + 0.5 * (1 - across))
    np.testing.assert_allclose(seen.color[0][covered, 1], expected[covered], atol=1e-5)


def test_bright_surfaces_are_clipped_at_one():
    body = square(pose(), colors=np.tile([0.95, 0.5, 1.0], (4, 1)))
    raster = drawn([body], [pose()])
    middle = raster.shade().color[0, 60, 80].numpy()
    np.testing.assert_allclose(middle, [1, 0.65, 1], atol=1e-6)
    written = network_input(raster, torch.empty(1, 6, *SIZE), 1.0, NEAR_M)
    np.testing.assert_allclose(written[0, :3, 60, 80], middle, atol=1e-6)


def test_directional_light_follows_blinn_and_phong():
    normals = np.tile(OBLIQUE[:3, :3].T @ OBLIQUE[:3, 2] * [1, 1, -1], (4, 1))
    toward = np.array([[0.3, -0.5, -0.8], [-0.2, 0.9, -0.3]])
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    strengths = np.array([[0.4, 0.7, 0.3, 9.0], [0.2, 0.5, 0.1, 30.0]])
    light = Light(torch.tensor(toward).float(), torch.tensor(strengths).float())
    seen = render([square(normals=normals)], np.stack([OBLIQUE] * 2), light)
    views = rays() / np.linalg.norm(rays(), axis=-1, keepdims=True)
    normal = OBLIQUE[:3, :3] @ normals[0]
    covered = seen.slot[0] == 0
    for k, (ambient, diffuse, specular, exponent) in enumerate(strengths):
        half = toward[k] - views
        half /= np.linalg.norm(half, axis=-1, keepdims=True)
        shine = specular * np.clip(half @ normal, 0, 1) ** exponent
        expected = 0.5 * (ambient + diffuse * max(0, normal @ toward[k])) + shine
        picture = seen.color[k][covered, 0]
        np.testing.assert_allclose(picture, np.clip(expected[covered], 0, 1), atol=1e-5)


# --- network input -------------------------------------------------------------------------------
def plane_input(scale: float, near_m: float, at: np.ndarray = OBLIQUE, device: str = 'cpu'):
    raster = drawn([square(at)], [at], device=device)
    out = torch.full((1, 6, *SIZE), 7.0, device=device)
    return network_input(raster, out, scale, near_m)[0], raster.coverage()[0].cpu().numpy()


@on_devices
def test_xyz_is_relative_to_the_pose_in_radii_and_zeroed_per_channel(device):
    scale = 14.0  # so large that single channels pass 2 while others stay (trap 5)
    written, covered = plane_input(scale, NEAR_M, device=device)
    points = rays() * plane_depth(OBLIQUE, rays())[..., None]
    xyz = (points - OBLIQUE[:3, 3]) * scale
    expected = np.where(np.abs(xyz) < 2, xyz, 0)
    clear = covered & (np.abs(np.abs(xyz) - 2) > 1e-3).all(-1)
    passed = (np.abs(xyz[clear]) >= 2).sum(-1)
    assert ((passed > 0) & (passed < 3)).sum() > 500
    np.testing.assert_allclose(written[3:].transpose(1, 2, 0)[clear], expected[clear], atol=2e-5)
    assert (written[:, ~covered] == 0).all()


@pytest.mark.parametrize(('near_m', 'kept'), [(0.001, True), (0.1, False)])
def test_points_nearer_than_the_networks_limit_have_no_xyz(near_m, kept):
    # trap 4: 0.001 m for the refiner, 0.1 m for the scorer
    at = pose(at=(0.01, 0.01, 0.0625))
    written, covered = plane_input(3.0, near_m, at)
    assert covered.all()
    assert (written[3:5].any(axis=0)).mean() == pytest.approx(1.0 if kept else 0.0, abs=0.02)
    np.testing.assert_allclose(written[:3], 0.65, atol=1e-5)


def test_every_mesh_has_its_own_radius():
    at = np.stack([OBLIQUE, OBLIQUE])
    raster = drawn([square(), square()], at, index=[[0], [1]])
    out = torch.empty(2, 6, *SIZE)
    raster.write_network_input(out, torch.tensor([1.0, 2.5]), NEAR_M)
    np.testing.assert_allclose(out[1, 3:], 2.5 * out[0, 3:], atol=1e-6)
    assert out[0, 3:].abs().max() > 0.1


def textured_views(device: str) -> Rasterizer:
    texture = np.random.default_rng(4).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    vertices, faces, normals = box_parts(np.array([0.06, 0.05, 0.04]))
    uv = np.random.default_rng(5).uniform(0, 1, (24, 2))
    body = mesh(vertices, faces, normals=normals, uv=uv, texture=texture)
    return drawn([body], random_poses(4, 6), device=device)


@on_devices
def test_half_precision_is_the_rounded_full_precision(device):
    raster = textured_views(device)
    full = network_input(raster, torch.empty(4, 6, *SIZE, device=device), 15.0, NEAR_M)
    half = torch.empty(4, 6, *SIZE, dtype=torch.float16, device=device)
    np.testing.assert_array_equal(
        network_input(raster, half, 15.0, NEAR_M), full.astype(np.float16).astype(np.float32)
    )
    assert np.abs(full[:, 3:]).max() > 0.9


@on_devices
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_any_strides_hold_the_same_input(device, dtype):
    raster = textured_views(device)
    plain = torch.empty(4, 6, *SIZE, dtype=dtype, device=device)
    last = torch.empty_like(plain, memory_format=torch.channels_last)
    joined = torch.full((4, 12, *SIZE), 5.0, dtype=dtype, device=device)
    expected = network_input(raster, plain, 15.0, NEAR_M)
    assert not last.is_contiguous()
    np.testing.assert_array_equal(network_input(raster, last, 15.0, NEAR_M), expected)
    np.testing.assert_array_equal(network_input(raster, joined[:, 6:], 15.0, NEAR_M), expected)
    assert (joined[:, :6] == 5).all()


def test_fewer_views_than_images_leave_the_rest_alone():
    raster = Rasterizer(MeshBank([square()]), 3, *SIZE)
    at = torch.tensor(OBLIQUE, dtype=torch.float32).expand(2, 1, 4, 4)
    raster.draw(torch.zeros(2, 1), at, torch.tensor([CAMERA] * 2))
    assert raster.coverage().shape == raster.shade().slot.shape == (2, *SIZE)
    assert (raster.coverage() == (raster.shade().slot >= 0)).all()
