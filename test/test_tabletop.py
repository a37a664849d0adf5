"""Composed and rendered scenes against geometry worked out apart from them, and make-scene."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from foundationpose_trt.pose.mesh import MeshLimits, build_mesh, load_mesh
from foundationpose_trt.scenes.bop import BopScene
from foundationpose_trt.scenes.symmetry import is_symmetric
from foundationpose_trt.synthesis import furniture
from foundationpose_trt.synthesis.camera_path import HandHeld, MotionLimits, drive
from foundationpose_trt.synthesis.objects import make_object
from foundationpose_trt.synthesis.tabletop import (
    Motion,
    SceneSettings,
    compose_sequence,
    compose_views,
)
from foundationpose_trt.synthesis.tabletop_images import SensorNoise, TabletopRenderer
from foundationpose_trt.tools import cli
from foundationpose_trt.tools.cli import build_parser
from foundationpose_trt.tools.overlay import draw_overlay, silhouette, write_video

SMALL = SceneSettings(width=160, height=120, focal_px=150.0, texture_px=128)


@pytest.fixture(scope='module')
def objects():
    return [make_object(1_000_000 + k) for k in (24, 3, 17, 25)]


def mesh_of(shape: trimesh.Trimesh, color=(0.5, 0.5, 0.5)):
    colors = np.uint8(np.round(np.array(color) * 255))
    shape.visual.vertex_colors = np.tile([*colors, 255], (len(shape.vertices), 1))
    return build_mesh('shape', shape, MeshLimits())


def rigid_steps(poses: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = poses[:, :3, :3] @ center + poses[:, :3, 3]
    turns = [a[:3, :3].T @ b[:3, :3] for a, b in zip(poses[:-1], poses[1:], strict=True)]
    angles = [np.arccos(np.clip((np.trace(t) - 1) / 2, -1, 1)) for t in turns]
    return np.linalg.norm(np.diff(points, axis=0), axis=1), np.array(angles)


@pytest.mark.parametrize('held', [False, True])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_motion_keeps_its_limits_and_uses_them(objects, held, seed):
    limits = MotionLimits(0.006, np.radians(1.0))
    scene = compose_sequence(
        objects[0], objects[1:], 90, np.random.default_rng(seed), SMALL, Motion(limits, held)
    )
    metres, radians = rigid_steps(scene.camera_from_target(), np.zeros(3))
    eyes = np.linalg.inv(scene.camera_from_centered[:, scene.table_slot])[:, :3, 3]
    camera_metres = np.linalg.norm(np.diff(eyes, axis=0), axis=1)
    used = [metres / limits.step_m, radians / limits.step_rad, camera_metres / limits.step_m]
    fastest = np.max(used[: 2 if held else 3], axis=0)
    # chords are a little shorter than the path, and the speed alternates between 1/3 and 1
    assert 0.95 < fastest.max() <= 1.001 and 0.2 < fastest.min() < 0.4


def test_a_still_target_stays_on_the_table_and_a_held_one_does_not(objects):
    for held in (False, True):
        scene = compose_sequence(
            objects[0], objects[1:], 30, np.random.default_rng(4), SMALL, Motion(held=held)
        )
        table_from_target = np.linalg.inv(scene.camera_from_centered[:, scene.table_slot])
        relative = table_from_target @ scene.camera_from_centered[:, 0]
        moved = np.abs(relative - relative[0]).max()
        assert moved > 0.01 if held else moved < 1e-9


def test_objects_stand_on_the_table_without_touching(objects):
    scene = compose_views(objects[0], objects[1:], 4, np.random.default_rng(3), SMALL)
    for view in range(4):
        world_from_camera = np.linalg.inv(
            scene.camera_from_centered[view, scene.table_slot]
            @ np.linalg.inv(scene.meshes[scene.table_slot].object_from_centered)
        )
        plans = []
        for slot in range(scene.table_slot - 1):
            pose = world_from_camera @ scene.camera_from_centered[view, slot]
            points = scene.meshes[slot].vertices @ pose[:3, :3].T + pose[:3, 3]
            assert points[:, 2].min() == pytest.approx(0, abs=1e-5)
            plans.append(cv2.minEnclosingCircle(points[:, :2].astype(np.float32)))
        for k, (a, radius_a) in enumerate(plans):
            for b, radius_b in plans[k + 1 :]:
                # discs about the origin may exceed the smallest ones, never the reverse
                assert np.hypot(*np.subtract(a, b)) > 0.8 * max(radius_a, radius_b)


def test_a_box_rests_on_its_six_sides_by_area():
    box = mesh_of(trimesh.creation.box(extents=(0.3, 0.2, 0.1)))
    normals, shares = furniture.resting_sides(box)
    order = np.argsort(-shares)
    np.testing.assert_allclose(shares[order], np.array([6, 6, 3, 3, 2, 2]) / 22, atol=1e-6)
    np.testing.assert_allclose(np.abs(normals[order[:2], 2]), 1, atol=1e-6)
    for normal in normals:
        turned = furniture.turned_down(normal)
        np.testing.assert_allclose(turned @ normal, [0, 0, -1], atol=1e-9)
        assert np.linalg.det(turned) == pytest.approx(1)


def test_a_leaning_tower_does_not_rest_on_its_foot():
    tower = trimesh.creation.box(extents=(0.02, 0.02, 0.2))
    tower.vertices[:, 0] += 0.4 * (tower.vertices[:, 2] + 0.1)
    normals, _ = furniture.resting_sides(mesh_of(tower))
    assert normals[:, 2].min() > -0.99


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('--device gpu', '--device is gpu, must be cpu, cuda or cuda:N'),
        ('--seed -1', '--seed is -1, must be at least 0'),
        ('--object-seed -5', '--object-seed is -5'),
        ('--width 0', '--width is 0, must be at least 16'),
        ('--clutter 60 --device cpu', '--clutter 60: no room for a clutter object'),
    ],
)
def test_bad_options_of_make_scene_are_one_line_and_leave_no_folder(
    tmp_path, capsys, words, message
):
    folder = tmp_path / 'scene'
    assert cli.main(['make-scene', str(folder), '--frames', '1', *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and not folder.exists()


def test_shadow_falls_away_from_the_light():
    texture = np.full((200, 200, 3), 200, np.uint8)
    pole = np.array([[x, y, z] for x in (-0.01, 0.01) for y in (-0.01, 0.01) for z in (0, 0.3)])
    light = np.array([np.sqrt(0.5), 0, np.sqrt(0.5)])
    shaded = furniture.shadowed(texture, 0.5, [pole], light)[..., 0].astype(int)
    # x = -0.15 m: columns 70, row 100; the shadow of the tip lies at x = -0.3 m
    assert shaded[100, 70] < 160 and shaded[100, 130] == 200 and shaded[100, 20] == 200


def test_rendered_sphere_matches_its_projection():
    radius, distance_z = 0.05, 0.45
    ball = mesh_of(trimesh.creation.icosphere(subdivisions=4, radius=radius), (0.9, 0.2, 0.1))
    others = [mesh_of(trimesh.creation.box(extents=(0.05, 0.05, 0.05))) for _ in range(2)]
    scene = compose_views(ball, others, 3, np.random.default_rng(0), SMALL)
    drawn = scene.drawn.copy()
    drawn[:, 1:3] = False
    scene = type(scene)(**{**vars(scene), 'drawn': drawn})
    images = list(TabletopRenderer(scene).images(0, SensorNoise.none()))
    rows, columns = np.mgrid[:120, :160]
    k = scene.intrinsics
    rays = np.stack([(columns - k.cx) / k.fx, (rows - k.cy) / k.fy, np.ones_like(rows)], -1)
    for image in images:
        center = image.camera_from_object[:3, 3]
        # |t ray - center| = radius, the nearer root
        a, b = (rays**2).sum(-1), rays @ center
        root = b**2 - a * (center @ center - radius**2)
        hit = root > 0
        depth = np.where(hit, (b - np.sqrt(np.maximum(root, 0))) / a, 0)
        assert (image.mask != hit).sum() <= 0.04 * hit.sum()
        assert image.visible_share == pytest.approx(1, abs=0.02)
        inner = cv2.erode((image.mask & hit).astype(np.uint8), np.ones((5, 5))) > 0
        assert np.abs(image.frame.depth_m - depth)[inner].max() < 5e-4
        assert center[2] > distance_z * 0.5


def test_occluder_comes_in_the_middle_third_and_masks_are_exact(objects):
    scene = compose_sequence(objects[0], objects[1:], 30, np.random.default_rng(1), SMALL)
    shares = []
    for image in TabletopRenderer(scene).images(0, SensorNoise.none()):
        shares.append(image.visible_share)
        outline = silhouette(scene.meshes[0], image.camera_from_object, scene.intrinsics)
        assert not (image.mask & ~outline).any()
        if image.visible_share > 0.999:
            assert image.mask.sum() > 0.8 * outline.sum()
    shares = np.array(shares)
    assert min(shares[:10].min(), shares[20:].min()) > 0.95
    assert 0.15 < shares[10:20].min() < 0.8


def test_same_seed_same_images_and_noise_is_there(objects):
    def frames(noise: SensorNoise):
        scene = compose_views(objects[0], objects[1:], 2, np.random.default_rng(9), SMALL)
        return [image.frame for image in TabletopRenderer(scene).images(5, noise)]

    first, second, clean = (
        frames(SensorNoise()), frames(SensorNoise()), frames(SensorNoise.none())
    )  # fmt: skip
    np.testing.assert_array_equal(first[1].rgb, second[1].rgb)
    np.testing.assert_array_equal(first[1].depth_m, second[1].depth_m)
    assert (first[1].rgb != clean[1].rgb).any() and (first[1].depth_m != clean[1].depth_m).any()
    assert clean[0].depth_m.max() <= 5.0


def test_too_little_to_compose_is_refused(objects):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match='need clutter and an occluder'):
        compose_views(objects[0], objects[1:2], 1, rng, SMALL)
    path = HandHeld.draw(rng, 0.5)
    with pytest.raises(ValueError, match='frames is 0'):
        drive(path, np.zeros(3), 0, MotionLimits())


def test_make_scene_writes_a_scene_that_opens(tmp_path, capsys):
    words = ['make-scene', str(tmp_path / 's'), '--frames', '6', '--width', '160', '--height']
    options = build_parser('make-scene').parse_args([*words, '120', '--device', 'cpu'])
    assert options.run(options) == 0 and '6 frames' in capsys.readouterr().out
    scene = BopScene.open(tmp_path / 's')
    assert scene.frame_ids == list(range(6)) and scene.object_ids == [1]
    mesh = load_mesh(scene.model_path(1), scale=0.001)
    assert np.linalg.norm(mesh.center_m) > 0.03, 'the demo must exercise a mesh off its origin'
    assert 0.1 < mesh.diameter_m < 0.3
    for frame_id in (0, 3):
        frame, mask = scene.frame(frame_id), scene.mask(frame_id, 1)
        pose = scene.camera_from_object(frame_id, 1)
        outline = silhouette(mesh, pose @ mesh.object_from_centered, frame.intrinsics)
        assert mask.sum() > 100 and (mask & ~outline).sum() <= 0.01 * mask.sum()
        depth = frame.depth_m[mask & (frame.depth_m > 0)]
        center = (pose @ [*mesh.center_m, 1])[2]
        near = np.abs(depth - center) < mesh.diameter_m / 2
        assert near.mean() > 0.9, 'depth must stand at the pose, but for sensor noise at edges'
    with pytest.raises(ValueError, match='already holds a scene'):
        options.run(options)
    info = json.loads((tmp_path / 's' / 'models' / 'models_info.json').read_text())
    assert info['1']['diameter'] == pytest.approx(1e3 * mesh.diameter_m, rel=1e-4)


@pytest.mark.parametrize('words', [['--speed', '0'], ['--clutter', '0'], ['--frames', '0']])
def test_make_scene_refuses_bad_numbers(tmp_path, words):
    options = build_parser('make-scene').parse_args(['make-scene', str(tmp_path / 's'), *words])
    with pytest.raises(ValueError, match=words[0]):
        options.run(options)
    assert not (tmp_path / 's').exists()


def test_silhouette_of_a_cube_is_its_projected_hull():
    cube = mesh_of(trimesh.creation.box(extents=(0.1, 0.1, 0.1)))
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler('xyz', [0.4, 0.7, 0.1]).as_matrix()
    pose[:3, 3] = [0.02, -0.01, 0.5]
    k = SMALL.intrinsics()
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.05
    seen = corners @ pose[:3, :3].T + pose[:3, 3]
    pixels = seen[:, :2] / seen[:, 2:] * [k.fx, k.fy] + [k.cx, k.cy]
    hull = cv2.convexHull(pixels.astype(np.float32))
    inside = np.array(
        [[cv2.pointPolygonTest(hull, (x, y), True) for x in range(160)] for y in range(120)]
    )
    mask = silhouette(cube, pose, k)
    assert mask[inside > 0.1].all() and not mask[inside < -1.1].any()
    behind = pose.copy()
    behind[2, 3] = -0.5
    assert not silhouette(cube, behind, k).any()


def test_overlay_marks_outline_axes_and_leaves_the_rest():
    cube = mesh_of(trimesh.creation.box(extents=(0.1, 0.1, 0.1)))
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler('xyz', [0.6, -0.5, 0.2]).as_matrix()
    pose[2, 3] = 0.5
    k = SceneSettings().intrinsics()
    image = np.full((480, 640, 3), 128, np.uint8)
    drawn = draw_overlay(image, k, cube, pose)
    assert (image == 128).all(), 'the input must stay as it is'
    mask = silhouette(cube, pose, k)
    away = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) == 0
    assert (drawn[away] == 128).all() and (drawn != 128).any()
    for axis, color in enumerate(((235, 64, 52), (64, 200, 84), (66, 120, 245))):
        tip = pose[:3, 3] + 0.4 * cube.diameter_m * pose[:3, axis]
        x, y = tip[:2] / tip[2] * k.fx + [k.cx, k.cy]
        assert np.abs(drawn[round(y), round(x)].astype(int) - color).max() < 40
    assert (draw_overlay(image, k, cube, None) == 128).all()
    assert (draw_overlay(image, k, cube, None, 'lost') != 128).any()


def test_video_plays_back(tmp_path):
    images = [np.full((48, 64, 3), (20 * k, 200, 40), np.uint8) for k in range(5)]
    path = tmp_path / 'sub' / 'v.mp4'
    assert write_video(path, iter(images), 25.0) == 5
    reader = cv2.VideoCapture(str(path))
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    _, frame = reader.read()
    assert np.abs(frame[24, 32].astype(int) - [40, 200, 0]).max() < 12
    with pytest.raises(ValueError, match='no frames'):
        write_video(tmp_path / 'empty.mp4', [])
    with pytest.raises(ValueError, match='frame 1 is uint8'):
        write_video(tmp_path / 'odd.mp4', [images[0], images[0][:40]])


def test_symmetry_is_told_from_shape_and_from_colour():
    bar = trimesh.creation.box(extents=(0.2, 0.1, 0.05)).subdivide().subdivide().subdivide()
    assert is_symmetric(mesh_of(bar.copy()))
    assert is_symmetric(mesh_of(trimesh.creation.cylinder(0.04, 0.15)))
    bent = trimesh.util.concatenate(
        [
            trimesh.creation.box(extents=(0.2, 0.05, 0.04)),
            trimesh.creation.box(extents=(0.05, 0.12, 0.04)).apply_translation([0.08, 0.05, 0.02]),
        ]
    )
    assert not is_symmetric(mesh_of(bent))
    painted = bar.copy()
    x, y, z = painted.vertices.T
    colors = np.stack([x > 0, y > 0, z > 0, np.ones_like(x)], axis=1)
    painted.visual.vertex_colors = np.uint8(255 * colors)
    assert not is_symmetric(build_mesh('painted', painted, MeshLimits()))


@pytest.mark.gpu
def test_cuda_renders_what_the_cpu_renders(objects):
    scene = compose_views(objects[0], objects[1:], 3, np.random.default_rng(2), SMALL)
    on_cpu, on_cuda = (
        list(TabletopRenderer(scene, device, batch=2).images(0, SensorNoise.none()))
        for device in ('cpu', 'cuda')
    )
    for a, b in zip(on_cpu, on_cuda, strict=True):
        assert (a.mask != b.mask).mean() < 1e-3
        assert (np.abs(a.frame.depth_m - b.frame.depth_m) > 1e-4).mean() < 1e-3
        assert (np.abs(a.frame.rgb.astype(int) - b.frame.rgb) > 2).mean() < 5e-3
    noisy = next(iter(TabletopRenderer(scene, 'cuda').images(0)))
    assert (noisy.frame.depth_m != on_cuda[0].frame.depth_m).any()
