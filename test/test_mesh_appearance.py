"""The look of meshes: textures, colours and what decimation makes of them."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.ndimage import map_coordinates

from foundationpose_trt.pose.mesh import MeshLimits, ObjectMesh, build_mesh, load_mesh

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=float) * 0.2
QUAD = np.array([[0, 1, 2], [0, 2, 3]])
UNIT_UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


def quadrants(size: int = 32) -> Image.Image:
    """Return an image: top left red, top right green, bottom left blue, bottom right white."""
    pixels = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
    return Image.fromarray(pixels.repeat(size // 2, axis=0).repeat(size // 2, axis=1))


def textured_quad(image: Image.Image | None = None) -> trimesh.Trimesh:
    visual = trimesh.visual.TextureVisuals(uv=UNIT_UV, image=image or quadrants())
    return trimesh.Trimesh(CORNERS, QUAD, visual=visual, process=False)


def color_at(mesh: ObjectMesh, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the look, (n, 3) 0..1, at barycentric weights (n, 3) on faces (n,)."""
    corners = mesh.faces[face]
    if mesh.texture is None or mesh.uv is None:
        return np.einsum('nk,nkd->nd', weights, mesh.colors[corners])
    uv = np.einsum('nk,nkd->nd', weights, mesh.uv[corners])
    size = np.array(mesh.texture.shape[1::-1])
    place = (uv * size - 0.5).T[::-1]
    channels = [
        map_coordinates(mesh.texture[..., c] / 255.0, place, order=1, mode='grid-wrap')
        for c in range(3)
    ]
    return np.stack(channels, axis=1)


def scattered(mesh: ObjectMesh, count: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points (n, 3) in the file's metres, their colours and the faces they lie on."""
    rng = np.random.default_rng(1)
    face = rng.integers(0, len(mesh.faces), count)
    weights = rng.dirichlet((1, 1, 1), count)
    points = np.einsum('nk,nkd->nd', weights, mesh.vertices[mesh.faces[face]]) + mesh.center_m
    return points, color_at(mesh, face, weights), face


def quadrant_color(points: np.ndarray) -> np.ndarray:
    """Return the colours that the quad of `textured_quad` shows at points on it."""
    right, top = points[:, 0] > 0.1, points[:, 1] > 0.1
    table = np.array([[BLUE, WHITE], [RED, GREEN]]) / 255.0
    return table[top.astype(int), right.astype(int)]


def assert_looks_like_quadrants(mesh: ObjectMesh) -> None:
    points, colors, _ = scattered(mesh)
    inner = (np.abs(points[:, :2] - 0.1) > 0.02).all(axis=1)
    inner &= (np.abs(points[:, :2] - 0.1) < 0.08).all(axis=1)
    assert inner.sum() > 500
    np.testing.assert_allclose(colors[inner], quadrant_color(points[inner]), atol=0.02)


# --- appearance ----------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['obj', 'glb'])
def test_texture_survives_the_round_trip(tmp_path, suffix):
    textured_quad().export(tmp_path / f'quad.{suffix}')
    mesh = load_mesh(tmp_path / f'quad.{suffix}')
    assert mesh.texture is not None and mesh.texture.shape == (32, 32, 3)
    assert_looks_like_quadrants(mesh)


def test_v_points_down_and_row_zero_is_the_top(tmp_path):
    textured_quad().export(tmp_path / 'quad.obj')
    mesh = load_mesh(tmp_path / 'quad.obj')
    top_left = np.argmin(np.linalg.norm(mesh.vertices[:, :2] - (-0.1, 0.1), axis=1))
    np.testing.assert_allclose(mesh.uv[top_left], (0, 0), atol=1e-6)
    np.testing.assert_array_equal(mesh.texture[0, 0], RED)
    np.testing.assert_allclose(mesh.colors[top_left], (1, 0, 0))


def test_textured_ply_as_bop_writes_it(tmp_path):
    quadrants().save(tmp_path / 'obj_000001.png')
    header = ['ply', 'format ascii 1.0', 'comment TextureFile obj_000001.png', 'element vertex 4']
    header += [f'property float {p}' for p in ('x', 'y', 'z', 'texture_u', 'texture_v')]
    header += ['element face 2', 'property list uchar int vertex_indices', 'end_header']
    rows = [' '.join(map(str, [*p, *uv])) for p, uv in zip(CORNERS * 1000, UNIT_UV, strict=True)]
    rows += ['3 ' + ' '.join(map(str, face)) for face in QUAD.tolist()]
    (tmp_path / 'obj_000001.ply').write_text('\n'.join([*header, *rows]) + '\n')
    assert_looks_like_quadrants(load_mesh(tmp_path / 'obj_000001.ply', scale=0.001))


@pytest.mark.parametrize('mode', ['RGBA', 'P', 'L', 'LA'])
def test_any_image_mode_becomes_rgb(mode):
    image = quadrants().convert(mode)
    mesh = build_mesh('quad', textured_quad(image))
    np.testing.assert_array_equal(mesh.texture, np.array(image.convert('RGB')))


@pytest.mark.parametrize('mode', ['I;16', 'I'])  # Pillow 10.3 and later, and before
def test_sixteen_bits_keep_their_levels(tmp_path, mode):
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / 'grey.png'), levels)
    with Image.open(tmp_path / 'grey.png') as image:
        if (image.mode, mode) == ('I', 'I;16'):
            pytest.skip('this Pillow reads no such images, and converts to them wrongly')
        mesh = build_mesh('quad', textured_quad(image.convert(mode)))
    expected = np.repeat(levels[..., None] / 257, 3, axis=2)
    np.testing.assert_allclose(mesh.texture, expected, atol=1)


def test_large_texture_is_averaged_down():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (512, 256, 3)).astype(np.uint8)
    mesh = build_mesh(
        'quad', textured_quad(Image.fromarray(pixels)), MeshLimits(max_texture_px=128)
    )
    means = pixels.reshape(128, 4, 64, 4, 3).astype(float).mean(axis=(1, 3))
    assert mesh.texture.shape == (128, 64, 3)
    assert np.abs(mesh.texture - means).max() <= 1


def gltf_display(linear: np.ndarray) -> np.ndarray:
    """Return the sRGB values of linear light, IEC 61966-2-1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_pbr_texture_is_tinted_by_its_factor(tmp_path):
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=quadrants(), baseColorFactor=[128, 255, 64, 255]
    )
    visual = trimesh.visual.TextureVisuals(uv=UNIT_UV, material=material)
    trimesh.Trimesh(CORNERS, QUAD, visual=visual, process=False).export(tmp_path / 'quad.glb')
    mesh = load_mesh(tmp_path / 'quad.glb')
    tint = 255 * gltf_display(np.array([128, 255, 64]) / 255)
    np.testing.assert_allclose(mesh.texture[-1, -1], tint, atol=1)
    np.testing.assert_allclose(mesh.texture[0, 0], tint * (1, 0, 0), atol=1)


def test_pbr_factor_alone_is_the_colour(tmp_path):
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[200, 100, 50, 255])
    visual = trimesh.visual.TextureVisuals(uv=UNIT_UV, material=material)
    trimesh.Trimesh(CORNERS, QUAD, visual=visual, process=False).export(tmp_path / 'quad.glb')
    mesh = load_mesh(tmp_path / 'quad.glb')
    assert mesh.texture is None
    shown = gltf_display(np.array([200, 100, 50]) / 255)
    np.testing.assert_allclose(mesh.colors, np.tile(shown, (len(mesh.colors), 1)), atol=1e-3)


def test_obj_material_colour(tmp_path):
    (tmp_path / 'quad.mtl').write_text('newmtl paint\nKd 0.8 0.6 0.2\n')
    rows = ['mtllib quad.mtl', 'usemtl paint'] + [f'v {x} {y} {z}' for x, y, z in CORNERS]
    (tmp_path / 'quad.obj').write_text('\n'.join([*rows, 'f 1 2 3', 'f 1 3 4']))
    mesh = load_mesh(tmp_path / 'quad.obj')
    np.testing.assert_allclose(mesh.colors.mean(axis=0), (0.8, 0.6, 0.2), atol=0.003)


@pytest.mark.parametrize('suffix', ['ply', 'glb', 'obj'])
def test_vertex_colours_interpolate(tmp_path, suffix):
    colors = np.column_stack([CORNERS[:, :2] / 0.2 * 255, np.full(4, 51), np.full(4, 255)])
    quad = trimesh.Trimesh(CORNERS, QUAD, vertex_colors=colors.astype(np.uint8), process=False)
    quad.export(tmp_path / f'quad.{suffix}')
    mesh = load_mesh(tmp_path / f'quad.{suffix}')
    place = (mesh.vertices + mesh.center_m)[:, :2] / 0.2
    np.testing.assert_allclose(mesh.colors[:, :2], place, atol=0.01)
    np.testing.assert_allclose(mesh.colors[:, 2], 0.2, atol=0.01)


def test_face_colours_stay_sharp():
    quad = trimesh.Trimesh(CORNERS, QUAD, face_colors=[[*RED, 255], [*BLUE, 255]], process=False)
    mesh = build_mesh('quad', quad)
    points, colors, _ = scattered(mesh)
    below = points[:, 1] < points[:, 0]
    np.testing.assert_allclose(colors[below], np.tile([1.0, 0, 0], (below.sum(), 1)))
    np.testing.assert_allclose(colors[~below], np.tile([0, 0, 1.0], ((~below).sum(), 1)))


@pytest.mark.parametrize('suffix', ['stl', 'ply', 'obj', 'glb'])
def test_meshes_without_colour_are_grey(tmp_path, suffix):
    bare = trimesh.creation.box((0.1, 0.1, 0.1))
    bare.export(tmp_path / f'box.{suffix}')
    mesh = load_mesh(tmp_path / f'box.{suffix}')
    assert mesh.texture is None and mesh.uv is None
    np.testing.assert_allclose(mesh.colors, 0.5)


def test_obj_with_coordinates_but_no_material_is_grey(tmp_path):
    rows = [f'v {x} {y} {z}' for x, y, z in CORNERS] + [f'vt {u} {v}' for u, v in UNIT_UV]
    (tmp_path / 'quad.obj').write_text('\n'.join([*rows, 'f 1/1 2/2 3/3', 'f 1/1 3/3 4/4']))
    mesh = load_mesh(tmp_path / 'quad.obj')
    np.testing.assert_allclose(mesh.colors, 0.5)


# --- scenes and new textures ---------------------------------------------------------------------


def test_scene_parts_are_placed_and_keep_their_colours(tmp_path):
    scene = trimesh.Scene()
    for shift, color in ((0.0, RED), (0.3, GREEN)):
        box = trimesh.creation.box((0.1, 0.1, 0.1))
        box.visual.vertex_colors = [*color, 255]
        scene.add_geometry(
            box, transform=trimesh.transformations.translation_matrix((shift, 0, 0))
        )
    scene.export(tmp_path / 'two.glb')
    mesh = load_mesh(tmp_path / 'two.glb')
    np.testing.assert_allclose(mesh.center_m, (0.15, 0, 0), atol=1e-7)
    assert mesh.diameter_m == pytest.approx(np.sqrt(0.4**2 + 0.1**2 + 0.1**2), rel=1e-6)
    left = mesh.vertices[:, 0] < 0
    np.testing.assert_allclose(mesh.colors[left], np.tile([1.0, 0, 0], (left.sum(), 1)))
    np.testing.assert_allclose(mesh.colors[~left], np.tile([0, 1.0, 0], ((~left).sum(), 1)))


def test_several_textures_are_baked_into_one(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(textured_quad())
    other = textured_quad(quadrants().rotate(180))
    other.apply_translation((0.3, 0, 0))
    scene.add_geometry(other)
    scene.export(tmp_path / 'two.glb')
    points, colors, _ = scattered(load_mesh(tmp_path / 'two.glb'), 8000)
    shifted = points[:, 0] > 0.25
    local = points - np.where(shifted, 0.3, 0.0)[:, None] * (1, 0, 0)
    expected = quadrant_color(np.where(shifted[:, None], 0.2 - local, local))
    off = np.abs(local[:, :2] - 0.1)
    clear = ((off > 0.01) & (off < 0.09)).all(axis=1)
    np.testing.assert_allclose(colors[clear], expected[clear], atol=0.02)


def smooth_color(points: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(points * (40, 30, 50) + (0, 1, 2))


def test_decimated_vertex_colours_are_kept_in_a_texture():
    sphere = trimesh.creation.icosphere(subdivisions=6, radius=0.05)
    sphere.visual.vertex_colors = np.rint(smooth_color(sphere.vertices) * 255).astype(np.uint8)
    mesh = build_mesh('ball', sphere, MeshLimits(max_faces=2000))
    assert mesh.texture is not None and len(mesh.faces) <= 2000
    points, colors, _ = scattered(mesh)
    difference = np.abs(colors - smooth_color(points))
    assert difference.mean() < 0.01
    assert difference.max() < 0.08


def test_decimated_texture_is_kept():
    lattice = trimesh.creation.box((0.2, 0.2, 0.02)).subdivide_loop(1)
    for _ in range(3):
        lattice = lattice.subdivide()
    uv = lattice.vertices[:, :2] / 0.2 + 0.5
    lattice.visual = trimesh.visual.TextureVisuals(uv=uv, image=quadrants(128))
    mesh = build_mesh('slab', lattice, MeshLimits(max_faces=800))
    assert len(mesh.faces) <= 800
    points, colors, _ = scattered(mesh)
    clear = (np.abs(points[:, :2]) > 0.004).all(axis=1)
    np.testing.assert_allclose(
        np.median(np.abs(colors[clear] - quadrant_color(points[clear] + 0.1)), axis=0),
        0,
        atol=0.01,
    )
    wrong = np.abs(colors[clear] - quadrant_color(points[clear] + 0.1)).max(axis=1) > 0.1
    assert wrong.mean() < 0.005


def test_sides_of_a_thin_wall_keep_their_own_colours():
    sheets = []
    for z, color in ((1e-5, RED), (-1e-5, BLUE)):
        sheet = trimesh.Trimesh(CORNERS, QUAD if z > 0 else QUAD[:, ::-1], process=False)
        for _ in range(6):
            sheet = sheet.subdivide()
        sheet.apply_translation((0, 0, z))
        sheet.visual.vertex_colors = [*color, 255]
        sheets.append(sheet)
    wall = trimesh.util.concatenate(sheets)
    mesh = build_mesh('wall', wall, MeshLimits(max_faces=2000))
    points, colors, _ = scattered(mesh)
    assert len(mesh.faces) <= 2000 < len(wall.faces)
    front = points[:, 2] > 0
    assert np.abs(colors[front] - (1, 0, 0)).max() < 0.01
    assert np.abs(colors[~front] - (0, 0, 1)).max() < 0.01


def test_too_small_a_texture_for_the_triangles_is_refused():
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.05)
    sphere.visual.vertex_colors = np.rint(smooth_color(sphere.vertices) * 255).astype(np.uint8)
    with pytest.raises(ValueError, match='max_texture_px is 64: raise it or lower max_faces'):
        build_mesh('ball', sphere, MeshLimits(max_faces=2000, max_texture_px=64))


# --- bad input -----------------------------------------------------------------------------------
def test_missing_texture_is_named(tmp_path):
    textured_quad().export(tmp_path / 'quad.obj')
    image = next(tmp_path.glob('*.png'))
    image.unlink()
    with pytest.raises(ValueError, match=rf'quad\.obj needs .*{image.name}, which does not exist'):
        load_mesh(tmp_path / 'quad.obj')


def test_missing_material_library_is_named(tmp_path):
    textured_quad().export(tmp_path / 'quad.obj')
    library = next(tmp_path.glob('*.mtl'))
    library.unlink()
    with pytest.raises(ValueError, match=rf'quad\.obj needs .*{library.name}'):
        load_mesh(tmp_path / 'quad.obj')


def test_damaged_texture_is_named(tmp_path):
    textured_quad(quadrants(256)).export(tmp_path / 'quad.obj')
    image = next(tmp_path.glob('*.png'))
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(ValueError, match=r'quad\.obj.*(cannot be decoded|truncated)'):
        load_mesh(tmp_path / 'quad.obj')


def write_obj(folder: Path, library: str, named: str, texture: str) -> Path:
    """Write the quad with a material library that names its texture, and the texture."""
    for name in (library, texture):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    quadrants().save(folder / texture)
    (folder / library).write_text(f'newmtl paint\nmap_Kd {named}\n')
    rows = [f'mtllib {library}', 'usemtl paint', *(f'v {x} {y} {z}' for x, y, z in CORNERS)]
    rows += [f'vt {u} {v}' for u, v in UNIT_UV]
    (folder / 'quad.obj').write_text('\n'.join([*rows, 'f 1/1 2/2 3/3', 'f 1/1 3/3 4/4']))
    return folder / 'quad.obj'


def test_a_texture_is_looked_for_beside_the_mesh(tmp_path):
    """Where trimesh looks, also for a library in a folder of its own."""
    mesh = load_mesh(write_obj(tmp_path / 'a', 'mtl/quad.mtl', 'my look.png', 'my look.png'))
    assert mesh.texture is not None
    assert_looks_like_quadrants(mesh)
    path = write_obj(tmp_path / 'b', 'mtl/quad.mtl', 'look.png', 'mtl/look.png')
    with pytest.raises(ValueError, match=rf'{path} needs {path.parent}/look\.png, which does not'):
        load_mesh(path)


@pytest.mark.parametrize(
    'named', ['-clamp on t.png', '"t.png"', 'sub\\t.png', 't.png # wood', '-s 1 1 1 t.png']
)
def test_a_texture_named_as_trimesh_reads_none_is_refused(tmp_path, named):
    path = write_obj(tmp_path, 'quad.mtl', named, 't.png')
    words = rf'quad\.mtl names its texture as {re.escape(named)}, .*: write map_Kd and the name'
    with pytest.raises(ValueError, match=words):
        load_mesh(path)


def test_a_texture_outside_the_folder_is_read(tmp_path):
    (tmp_path / 'mesh').mkdir()
    textured_quad().export(tmp_path / 'mesh/quad.obj')
    (image,) = (tmp_path / 'mesh').glob('*.png')
    image.rename(tmp_path / image.name)
    (library,) = (tmp_path / 'mesh').glob('*.mtl')
    library.write_text(library.read_text().replace(image.name, f'../{image.name}'))
    assert load_mesh(tmp_path / 'mesh/quad.obj').texture is not None


def test_a_texture_named_from_its_material_is_found_beside_the_mesh(tmp_path):
    textured_quad().export(tmp_path / 'quad.obj')
    (library,), (image,) = tmp_path.glob('*.mtl'), tmp_path.glob('*.png')
    library.write_text(library.read_text().replace(image.name, f'../{image.name}'))
    (tmp_path / 'mtl').mkdir()
    library.rename(tmp_path / 'mtl' / library.name)
    lines = (tmp_path / 'quad.obj').read_text().replace(library.name, f'mtl/{library.name}')
    (tmp_path / 'quad.obj').write_text(lines)
    assert load_mesh(tmp_path / 'quad.obj').texture is not None
