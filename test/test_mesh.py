"""Meshes from files and memory against closed forms, trimesh and scipy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.spatial.distance import pdist

from foundationpose_trt.pose.mesh import MeshLimits, ObjectMesh, build_mesh, load_mesh
from foundationpose_trt.pose.mesh_surface import TriangleSoup, largest_distance, split_long_edges

REAL = Path('/work/shared/data')
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


def longest_edge(mesh: ObjectMesh) -> float:
    corners = mesh.vertices[mesh.faces]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max())


# --- measures -----------------------------------------------------------------------------------


def test_box_diameter_and_center_are_closed_form():
    box = trimesh.creation.box((0.1, 0.2, 0.05))
    box.apply_translation((0.5, -0.3, 2.0))
    mesh = build_mesh('box', box)
    assert mesh.diameter_m == pytest.approx(np.sqrt(0.1**2 + 0.2**2 + 0.05**2), abs=1e-12)
    np.testing.assert_allclose(mesh.center_m, (0.5, -0.3, 2.0), atol=1e-12)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), (0.05, 0.1, 0.025), atol=1e-7)
    np.testing.assert_allclose(mesh.vertices.min(axis=0), (-0.05, -0.1, -0.025), atol=1e-7)


def test_center_is_the_box_centre_not_the_centroid():
    points = np.array([[0, 0, 0], [0.3, 0, 0], [0, 0.1, 0], [0, 0, 0.2]])
    mesh = build_mesh(
        'corner', trimesh.Trimesh(points, [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    )
    np.testing.assert_allclose(mesh.center_m, (0.15, 0.05, 0.1), atol=1e-12)


def test_centering_transforms_restore_file_coordinates():
    box = trimesh.creation.box((0.1, 0.2, 0.3))
    box.apply_translation((1, 2, 3))
    mesh = build_mesh('box', box)
    homogeneous = np.column_stack([mesh.vertices, np.ones(len(mesh.vertices))])
    back = (mesh.object_from_centered @ homogeneous.T).T[:, :3]
    np.testing.assert_allclose(back.min(axis=0), box.bounds[0], atol=1e-6)
    np.testing.assert_allclose(back.max(axis=0), box.bounds[1], atol=1e-6)
    identity = mesh.object_from_centered @ mesh.centered_from_object
    np.testing.assert_allclose(identity, np.eye(4), atol=1e-15)


@pytest.mark.parametrize('count', [2, 3, 5, 40, 300])
def test_largest_distance_matches_all_pairs(count):
    points = np.random.default_rng(count).normal(size=(count, 3)) * (1, 2, 0.3)
    assert largest_distance(points) == pytest.approx(pdist(points).max(), rel=1e-12)


@pytest.mark.parametrize('axes', [(1, 1, 0), (0, 1, 0)])
def test_largest_distance_of_flat_and_straight_points(axes):
    points = np.random.default_rng(3).normal(size=(100, 3)) * axes
    assert largest_distance(points) == pytest.approx(pdist(points).max(), rel=1e-9)


def test_largest_distance_of_very_many_hull_corners():
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=0.1)
    points = sphere.vertices * (1.0, 0.9, 0.8)
    assert len(points) > 4000
    assert largest_distance(points) == pytest.approx(pdist(points).max(), rel=1e-6)


# --- units and limits ---------------------------------------------------------------------------


def test_millimetre_file_is_refused_with_the_scale_to_set(tmp_path):
    trimesh.creation.box((100, 50, 30)).export(tmp_path / 'part.stl')
    with pytest.raises(ValueError, match=r'part\.stl.*millimetres.*set mesh_scale to 0\.001'):
        load_mesh(tmp_path / 'part.stl')
    mesh = load_mesh(tmp_path / 'part.stl', scale=0.001)
    assert mesh.diameter_m == pytest.approx(np.sqrt(100**2 + 50**2 + 30**2) / 1000, rel=1e-6)


def test_metre_file_scaled_as_millimetres_is_refused(tmp_path):
    trimesh.creation.box((0.1, 0.05, 0.03)).export(tmp_path / 'part.ply')
    with pytest.raises(ValueError, match=r'in metres: set mesh_scale to 1\.0'):
        load_mesh(tmp_path / 'part.ply', scale=0.001)


@pytest.mark.parametrize('scale', [0.0, -1.0, np.nan, np.inf])
def test_scale_must_be_positive(tmp_path, scale):
    trimesh.creation.box((0.1, 0.1, 0.1)).export(tmp_path / 'part.ply')
    with pytest.raises(ValueError, match='mesh_scale is .* must be positive'):
        load_mesh(tmp_path / 'part.ply', scale=scale)


def test_scale_applies_to_center_and_vertices(tmp_path):
    box = trimesh.creation.box((100, 50, 30))
    box.apply_translation((200, 0, -40))
    box.export(tmp_path / 'part.ply')
    mesh = load_mesh(tmp_path / 'part.ply', scale=0.001)
    np.testing.assert_allclose(mesh.center_m, (0.2, 0, -0.04), atol=1e-8)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), (0.1, 0.05, 0.03), atol=1e-7)


# --- triangles ----------------------------------------------------------------------------------


def test_long_edges_are_split_without_changing_the_surface():
    box = trimesh.creation.box((0.3, 0.02, 0.1))
    mesh = build_mesh('plank', box)
    assert longest_edge(mesh) <= mesh.diameter_m / 16 * (1 + 1e-6)
    fine = trimesh.Trimesh(mesh.vertices, mesh.faces)
    assert fine.is_watertight and fine.is_winding_consistent
    assert fine.area == pytest.approx(box.area, rel=1e-6)
    assert fine.volume == pytest.approx(box.volume, rel=1e-6)


def test_seams_are_split_alike_on_both_sides():
    cylinder = trimesh.creation.cylinder(radius=0.05, height=0.3, sections=12)
    torn = TriangleSoup(
        cylinder.vertices[cylinder.faces.ravel()],
        np.zeros((3 * len(cylinder.faces), 1)),
        np.arange(3 * len(cylinder.faces)).reshape(-1, 3),
    )
    fine = split_long_edges(torn, 0.02, 100000)
    welded = trimesh.Trimesh(fine.vertices, fine.faces)
    welded.merge_vertices()
    assert welded.is_watertight
    assert welded.volume == pytest.approx(cylinder.volume, rel=1e-9)


def test_splitting_interpolates_values():
    soup = TriangleSoup(CORNERS, CORNERS[:, :2] * 3 + 1, QUAD)
    fine = split_long_edges(soup, 0.02, 10000)
    np.testing.assert_allclose(fine.values, fine.vertices[:, :2] * 3 + 1, atol=1e-12)


def test_splitting_respects_the_face_limit():
    mesh = build_mesh('box', trimesh.creation.box((0.1, 0.1, 0.1)), MeshLimits(max_faces=100))
    assert 12 < len(mesh.faces) <= 100


def test_dense_sphere_is_decimated_and_keeps_its_radius():
    sphere = trimesh.creation.icosphere(subdivisions=6, radius=0.05)
    assert len(sphere.faces) > 80000
    mesh = build_mesh('ball', sphere)
    assert len(mesh.faces) <= 20000
    points, _, _ = scattered(mesh)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.05, rtol=0.01)
    assert mesh.diameter_m == pytest.approx(0.1, rel=1e-4)
    radial = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert np.einsum('ij,ij->i', radial, mesh.normals).min() > 0.98


def test_decimated_surface_stays_on_the_original():
    knot = trimesh.creation.torus(0.08, 0.03, major_sections=220, minor_sections=110)
    mesh = build_mesh('ring', knot, MeshLimits(max_faces=3000))
    points, _, _ = scattered(mesh)
    in_plane = np.linalg.norm(points[:, :2], axis=1) - 0.08
    distance = np.abs(np.hypot(in_plane, points[:, 2]) - 0.03)
    assert distance.max() < 0.001


def test_unused_vertices_and_empty_triangles_are_dropped():
    vertices = np.concatenate([CORNERS, [[5.0, 5, 5]]])
    faces = [*QUAD, [0, 1, 1], [2, 2, 2]]
    mesh = build_mesh('quad', trimesh.Trimesh(vertices, faces, process=False))
    assert mesh.diameter_m == pytest.approx(0.2 * np.sqrt(2))
    assert np.abs(mesh.vertices).max() < 0.2
    areas = trimesh.triangles.area(mesh.vertices[mesh.faces].astype(float))
    assert areas.min() > 0
    assert set(np.unique(mesh.faces)) == set(range(len(mesh.vertices)))


# --- normals ------------------------------------------------------------------------------------


def test_normals_are_those_of_trimesh_without_normals_in_the_file():
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.1)
    soup = trimesh.Trimesh(
        sphere.vertices[sphere.faces.ravel()],
        np.arange(3 * len(sphere.faces)).reshape(-1, 3),
        process=False,
    )
    mesh = build_mesh('ball', soup)
    radial = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert np.einsum('ij,ij->i', radial, mesh.normals).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)


def test_normals_of_the_file_are_kept(tmp_path):
    tilted = np.array([0.6, 0.0, 0.8])
    rows = [f'v {x} {y} {z}' for x, y, z in CORNERS] + ['vn {} {} {}'.format(*tilted)]
    rows += ['f 1//1 2//1 3//1', 'f 1//1 3//1 4//1']
    (tmp_path / 'quad.obj').write_text('\n'.join(rows))
    mesh = load_mesh(tmp_path / 'quad.obj')
    np.testing.assert_allclose(mesh.normals, np.tile(tilted, (len(mesh.normals), 1)), atol=1e-6)


# --- appearance ---------------------------------------------------------------------------------


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


# --- scenes and new textures --------------------------------------------------------------------


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


# --- bad input ----------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.obj does not exist'):
        load_mesh(tmp_path / 'nowhere.obj')


def test_unknown_suffix_names_the_known_ones(tmp_path):
    (tmp_path / 'part.step').write_text('ISO-10303-21;')
    with pytest.raises(ValueError, match=r"'\.step', readable are \.obj, \.ply, \.glb, \.stl"):
        load_mesh(tmp_path / 'part.step')


@pytest.mark.parametrize('suffix', ['obj', 'ply', 'glb', 'stl'])
@pytest.mark.parametrize('content', [b'', b'not a mesh at all', bytes(range(256)) * 3])
def test_corrupt_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f'broken.{suffix}'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf'broken\.{suffix}.*(damaged|no triangles)'):
        load_mesh(path)


@pytest.mark.parametrize('suffix', ['ply', 'glb', 'stl'])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = tmp_path / f'half.{suffix}'
    trimesh.creation.icosphere(subdivisions=2, radius=0.1).export(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf'half\.{suffix}'):
        load_mesh(path)


def test_point_cloud_is_refused(tmp_path):
    trimesh.PointCloud(CORNERS).export(tmp_path / 'cloud.ply')
    with pytest.raises(ValueError, match='holds no triangles'):
        load_mesh(tmp_path / 'cloud.ply')


def test_triangles_without_area_are_refused():
    line = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match='only triangles without area'):
        build_mesh('line', line)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_vertices_must_be_finite(bad):
    vertices = CORNERS.copy()
    vertices[2, 1] = bad
    with pytest.raises(ValueError, match='vertex 2 is .* must be finite'):
        build_mesh('quad', trimesh.Trimesh(vertices, QUAD, process=False))


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


# --- real meshes --------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason='the real data is not on this machine')
@pytest.mark.parametrize('scene', ['real_tabletop', 'real_cube_track'])
def test_real_meshes_have_the_published_diameters(scene):
    models = REAL / scene / 'models'
    for number, info in json.loads((models / 'models_info.json').read_text()).items():
        mesh = load_mesh(models / f'obj_{int(number):06d}.obj', scale=0.001)
        assert mesh.diameter_m * 1000 == pytest.approx(info['diameter'], rel=1e-6)
        assert len(mesh.faces) <= 20000
