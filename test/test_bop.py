"""BOP reading and writing against files made by hand, plain json/cv2 and trimesh's own loader."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.geometry import transform
from foundationpose_trt.pose.mesh import MeshLimits, ObjectMesh, build_mesh, load_mesh
from foundationpose_trt.scenes.bop import BopScene, BopWriter

REAL = Path('/work/shared/data')
INTRINSICS = CameraIntrinsics(60.0, 61.0, 31.5, 23.5, 64, 48)
TURN = Rotation.from_euler('xyz', [0.3, -1.0, 2.0]).as_matrix()
POSE = transform(TURN, np.array([0.1, -0.2, 0.7]))


def hand_made_scene(folder: Path, frames: int = 3, depth_scale: float = 0.5) -> Path:
    """Two instances of object 4 and one of object 7, written without the package."""
    for name in ('rgb', 'depth', 'mask_visib'):
        (folder / name).mkdir(parents=True)
    cameras, truths = {}, {}
    for i in range(frames):
        rgb = np.full((48, 64, 3), (200, 100, 10 + i), np.uint8)
        Image.fromarray(rgb).save(folder / 'rgb' / f'{i:06d}.png')
        depth = np.full((48, 64), 1000 + i, np.uint16)
        depth[0] = 0
        cv2.imwrite(str(folder / 'depth' / f'{i:06d}.png'), depth)
        cameras[i] = {'cam_K': [60, 0, 31.5, 0, 61, 23.5, 0, 0, 1], 'depth_scale': depth_scale}
        truths[i] = [
            {'cam_R_m2c': [0, -1, 0, 1, 0, 0, 0, 0, 1], 'cam_t_m2c': [10 * k, 20, 700 + i],
             'obj_id': object_id}
            for k, object_id in enumerate((4, 7, 4))
        ]  # fmt: skip
        for k in range(3):
            mask = np.zeros((48, 64), np.uint8)
            mask[10 * k : 10 * k + 8] = 255
            Image.fromarray(mask).save(folder / 'mask_visib' / f'{i:06d}_{k:06d}.png')
    (folder / 'scene_camera.json').write_text(json.dumps(cameras))
    (folder / 'scene_gt.json').write_text(json.dumps(truths))
    return folder


def textured_box() -> ObjectMesh:
    """A box far from its file's origin with a texture that tells every orientation apart."""
    box = trimesh.creation.box(extents=(0.08, 0.05, 0.03))
    box.apply_translation([0.2, -0.1, 0.05])
    box.unmerge_vertices()
    uv = np.random.default_rng(0).uniform(0.02, 0.98, size=(len(box.vertices), 2))
    image = np.random.default_rng(1).integers(0, 255, (33, 47, 3), np.uint8)
    material = trimesh.visual.material.SimpleMaterial(image=Image.fromarray(image))
    box.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return build_mesh('box', box, MeshLimits())


def assert_same_rows(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-5) -> None:
    """Loading may reorder vertices: every row of one has its like in the other."""
    assert cKDTree(a).query(b)[0].max() < tolerance
    assert cKDTree(b).query(a)[0].max() < tolerance


def plain_frame(depth_m: float = 0.8) -> Frame:
    rgb = np.random.default_rng(3).integers(0, 255, (48, 64, 3), np.uint8)
    return Frame(rgb, np.full((48, 64), depth_m, np.float32), INTRINSICS)


def test_reads_a_hand_made_scene(tmp_path):
    scene = BopScene.open(hand_made_scene(tmp_path / 's'))
    assert scene.frame_ids == [0, 1, 2] and scene.object_ids == [4, 7]
    frame = scene.frame(1)
    assert tuple(frame.rgb[5, 5]) == (200, 100, 11)
    assert frame.depth_m[5, 5] == pytest.approx(0.5005) and frame.depth_m[0, 0] == 0
    assert frame.intrinsics == INTRINSICS
    pose = scene.camera_from_object(2, 4, instance=1)
    np.testing.assert_allclose(pose[:3, 3], [0.02, 0.02, 0.702])
    np.testing.assert_allclose(pose[:3, :3] @ [1, 0, 0], [0, 1, 0])
    for object_id, instance, row in ((4, 0, 0), (7, 0, 10), (4, 1, 20)):
        mask = scene.mask(0, object_id, instance)
        assert mask.dtype == bool and mask[row : row + 8].all() and mask.sum() == 8 * 64


def test_absent_truth_and_masks_are_none(tmp_path):
    folder = hand_made_scene(tmp_path / 's')
    (folder / 'mask_visib' / '000001_000001.png').unlink()
    scene = BopScene.open(folder)
    assert scene.mask(1, 7) is None and scene.mask(0, 7) is not None
    assert scene.camera_from_object(0, 9) is None and scene.mask(0, 9) is None
    (folder / 'scene_gt.json').unlink()
    assert BopScene.open(folder).camera_from_object(0, 4) is None


def test_jpeg_and_gray_images_read(tmp_path):
    folder = hand_made_scene(tmp_path / 's', frames=2)
    (folder / 'rgb' / '000000.png').unlink()
    Image.fromarray(np.full((48, 64, 3), 77, np.uint8)).save(folder / 'rgb' / '000000.jpg')
    (folder / 'rgb' / '000001.png').unlink()
    (folder / 'gray').mkdir()
    Image.fromarray(np.full((48, 64), 99, np.uint8)).save(folder / 'gray' / '000001.tif')
    scene = BopScene.open(folder)
    assert np.abs(scene.frame(0).rgb.astype(int) - 77).max() <= 2
    assert (scene.frame(1).rgb == 99).all()


def test_frame_range_selects_by_id(tmp_path):
    folder = hand_made_scene(tmp_path / 's')
    (folder / 'depth' / '000002.png').unlink()
    assert BopScene.open(folder, frame_range=(0, 2)).frame_ids == [0, 1]
    with pytest.raises(ValueError, match=r'no frame id from 7.*3 frames, 0\.\.2'):
        BopScene.open(folder, frame_range=(7, None))


@pytest.mark.parametrize('kind', ['rgb', 'depth'])
def test_missing_images_are_named_with_the_remedy(tmp_path, kind):
    folder = hand_made_scene(tmp_path / 's')
    for i in (1, 2):
        (folder / kind / f'{i:06d}.png').unlink()
    message = rf'{kind}/000001.png is missing and 1 more.*--frames'
    with pytest.raises(FileNotFoundError, match=message):
        BopScene.open(folder)


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('scene_camera.json', None, 'scene_camera.json is missing'),
        ('scene_camera.json', '{"0": {"cam_K": [1', 'no JSON.*cut off'),
        ('scene_camera.json', '{}', 'lists no frame'),
        ('scene_camera.json', '{"0": {"depth_scale": 1}}', 'no cam_K of 9 numbers.*rectify'),
        ('scene_camera.json', '{"0": {"cam_K": [1,0,0,0,1,0,0,0,1]}}', 'depth_scale: add it'),
        ('scene_gt.json', '{"0": [{"obj_id": 1, "cam_t_m2c": [0, 0, 1]}]}', 'cam_R_m2c'),
    ],
)  # fmt: skip
def test_bad_json_is_named(tmp_path, file, content, message):
    folder = hand_made_scene(tmp_path / 's')
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        BopScene.open(folder)


def test_bad_images_are_named(tmp_path):
    folder = hand_made_scene(tmp_path / 's')
    cv2.imwrite(str(folder / 'depth' / '000000.png'), np.zeros((40, 64), np.uint16))
    cv2.imwrite(str(folder / 'depth' / '000001.png'), np.zeros((48, 64), np.uint8))
    (folder / 'rgb' / '000002.png').write_bytes(b'\x89PNG cut')
    scene = BopScene.open(folder)
    with pytest.raises(ValueError, match=r'000000.png is 64x40.*64x48.*registered'):
        scene.frame(0)
    with pytest.raises(ValueError, match='uint8.*16 bit'):
        scene.frame(1)
    with pytest.raises(ValueError, match='000002.png is no readable image'):
        scene.frame(2)
    with pytest.raises(ValueError, match='no frame 5'):
        scene.frame(5)


def test_missing_folder_and_model_say_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match='is no folder'):
        BopScene.open(tmp_path / 'nowhere')
    folder = hand_made_scene(tmp_path / 's')
    with pytest.raises(FileNotFoundError, match='--models DIR.*does not exist'):
        BopScene.open(folder).model_path(4)
    (tmp_path / 'm').mkdir()
    (tmp_path / 'm' / 'obj_000007.glb').touch()
    scene = BopScene.open(folder, models_dir=tmp_path / 'm')
    assert scene.model_path(7).name == 'obj_000007.glb'
    with pytest.raises(FileNotFoundError, match=r'obj_000004.ply.*holds obj_000007.glb'):
        scene.model_path(4)


def test_written_frames_come_back(tmp_path):
    frame = plain_frame()
    mask = np.zeros((48, 64), bool)
    mask[3:9, 4:20] = True
    with BopWriter(tmp_path / 's') as writer:
        writer.add_frame(17, frame, [(3, POSE, mask), (5, np.eye(4), None)])
    scene = BopScene.open(tmp_path / 's')
    back = scene.frame(17)
    np.testing.assert_array_equal(back.rgb, frame.rgb)
    np.testing.assert_allclose(back.depth_m, frame.depth_m, atol=5.1e-5)
    assert back.intrinsics == frame.intrinsics
    np.testing.assert_allclose(scene.camera_from_object(17, 3), POSE, atol=1e-12)
    np.testing.assert_array_equal(scene.mask(17, 3), mask)
    assert scene.mask(17, 5) is None and scene.object_ids == [3, 5]
    raw = json.loads((tmp_path / 's' / 'scene_gt.json').read_text())['17'][0]
    np.testing.assert_allclose(raw['cam_t_m2c'], [100, -200, 700])
    np.testing.assert_allclose(np.reshape(raw['cam_R_m2c'], (3, 3)), POSE[:3, :3])


def test_writer_refuses_depth_beyond_16_bits_and_a_used_folder(tmp_path):
    with BopWriter(tmp_path / 's', depth_scale=0.1) as writer:
        with pytest.raises(ValueError, match=r'7\.00 m.*hold 6\.55 m'):
            writer.add_frame(0, plain_frame(7.0), [])
        writer.add_frame(0, plain_frame(6.5), [])
    with pytest.raises(ValueError, match='already holds a scene'):
        BopWriter(tmp_path / 's')


def test_textured_model_round_trip_in_millimetres(tmp_path):
    mesh = textured_box()
    with BopWriter(tmp_path / 's') as writer:
        writer.add_model(2, mesh)
        writer.add_frame(0, plain_frame(), [(2, POSE, None)])
    path = BopScene.open(tmp_path / 's').model_path(2)
    back = load_mesh(path, scale=0.001)
    np.testing.assert_allclose(back.center_m, [0.2, -0.1, 0.05], atol=1e-6)
    assert_same_rows(np.hstack([back.vertices, back.uv]), np.hstack([mesh.vertices, mesh.uv]))
    assert_same_rows(
        np.hstack([back.vertices, back.normals]), np.hstack([mesh.vertices, mesh.normals])
    )
    np.testing.assert_array_equal(back.texture, mesh.texture)
    assert back.diameter_m == pytest.approx(np.linalg.norm([0.08, 0.05, 0.03]), abs=1e-6)
    other = trimesh.load(path, process=False)
    np.testing.assert_allclose(other.bounds, [[160, -125, 35], [240, -75, 65]], atol=1e-3)
    expected = mesh.texture[
        np.floor(mesh.uv[:, 1] * 33).astype(int), np.floor(mesh.uv[:, 0] * 47).astype(int)
    ]
    pixels = np.asarray(other.visual.material.image)
    u, v_up = other.visual.uv.T
    seen = pixels[np.floor((1 - v_up) * 33).astype(int), np.floor(u * 47).astype(int)]
    np.testing.assert_array_equal(seen, expected)
    info = json.loads((tmp_path / 's' / 'models' / 'models_info.json').read_text())['2']
    assert info['diameter'] == pytest.approx(98.99, abs=0.01)
    assert info['min_x'] == pytest.approx(160)


def test_vertex_coloured_model_round_trip(tmp_path):
    box = trimesh.creation.icosphere(subdivisions=2, radius=0.04)
    box.visual.vertex_colors = np.random.default_rng(2).integers(0, 255, (len(box.vertices), 4))
    mesh = build_mesh('ball', box, MeshLimits())
    with BopWriter(tmp_path / 's') as writer:
        writer.add_model(1, mesh)
    back = load_mesh(tmp_path / 's' / 'models' / 'obj_000001.ply', scale=0.001)
    assert_same_rows(back.vertices, mesh.vertices)
    assert_same_rows(
        np.hstack([back.vertices, back.colors]), np.hstack([mesh.vertices, mesh.colors]), 0.01
    )


@pytest.mark.skipif(not REAL.is_dir(), reason='the real images stay outside the repository')
def test_real_scenes_agree_with_their_own_depth():
    scene = BopScene.open(REAL / 'real_tabletop')
    assert scene.object_ids == [2, 5, 15]
    frame = scene.frame(629)
    for object_id in scene.object_ids:
        mesh = trimesh.load(scene.model_path(object_id), force='mesh')
        pose = scene.camera_from_object(629, object_id)
        points = mesh.vertices / 1000 @ pose[:3, :3].T + pose[:3, 3]
        depth = frame.depth_m[scene.mask(629, object_id)]
        assert points[:, 2].min() - 0.02 < np.median(depth[depth > 0]) < points[:, 2].max()
