"""Geometry of meshes from files and memory against closed forms, trimesh and scipy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.distance import pdist

from foundationpose_trt.pose.mesh import MeshLimits, ObjectMesh, build_mesh, load_mesh
from foundationpose_trt.pose.mesh_surface import TriangleSoup, largest_distance, split_long_edges

REAL = Path(__file__).resolve().parents[2] / 'shared' / 'data'
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=float) * 0.2
QUAD = np.array([[0, 1, 2], [0, 2, 3]])


def surface_points(mesh: ObjectMesh) -> np.ndarray:
    """Return points (n, 3) spread over the surface, in the file's metres."""
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    return trimesh.sample.sample_surface(surface, 4000, seed=1)[0] + mesh.center_m


def longest_edge(mesh: ObjectMesh) -> float:
    corners = mesh.vertices[mesh.faces]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max())


# --- measures ------------------------------------------------------------------------------------


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


# --- units and limits ----------------------------------------------------------------------------


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


# --- triangles -----------------------------------------------------------------------------------


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
    points = surface_points(mesh)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.05, rtol=0.01)
    assert mesh.diameter_m == pytest.approx(0.1, rel=1e-4)
    radial = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert np.einsum('ij,ij->i', radial, mesh.normals).min() > 0.98


def test_decimated_surface_stays_on_the_original():
    knot = trimesh.creation.torus(0.08, 0.03, major_sections=220, minor_sections=110)
    mesh = build_mesh('ring', knot, MeshLimits(max_faces=3000))
    points = surface_points(mesh)
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


# --- normals -------------------------------------------------------------------------------------


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


# --- bad input -----------------------------------------------------------------------------------


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


# --- real meshes ---------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason='the real data is not on this machine')
@pytest.mark.parametrize('scene', ['real_tabletop', 'real_cube_track'])
def test_real_meshes_have_the_published_diameters(scene):
    models = REAL / scene / 'models'
    for number, info in json.loads((models / 'models_info.json').read_text()).items():
        mesh = load_mesh(models / f'obj_{int(number):06d}.obj', scale=0.001)
        assert mesh.diameter_m * 1000 == pytest.approx(info['diameter'], rel=1e-6)
        assert len(mesh.faces) <= 20000
