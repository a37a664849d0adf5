"""Procedural objects and textures: closed forms for the shapes, promises for every object."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import cache

import matplotlib.path
import numpy as np
import pytest
import trimesh

from foundationpose_trt.pose.mesh import ObjectMesh, sample_texture
from foundationpose_trt.pose.mesh_surface import crease_normals
from foundationpose_trt.synthesis import objects, outlines, shapes, textures
from foundationpose_trt.synthesis.objects import make_object, make_objects, object_family

SEEDS = tuple(range(60)) + tuple(range(1_000_000, 1_000_020))


@cache
def made(seed: int) -> ObjectMesh:
    return make_object(seed)


def solid(surfaces: list[shapes.Surface]) -> trimesh.Trimesh:
    """Return the surfaces as one mesh whose equal vertices are joined."""
    parts = [trimesh.Trimesh(s.vertices, s.faces, process=False) for s in surfaces]
    whole = trimesh.util.concatenate(parts)
    whole.merge_vertices(digits_vertex=6)
    whole.update_faces(whole.nondegenerate_faces())
    return whole


def boundary_edges(mesh: ObjectMesh) -> int:
    """Return how many edges have an odd number of faces after joining vertices by place."""
    places = np.rint(mesh.vertices / mesh.diameter_m * 1e5).astype(int)
    joined = np.unique(places, axis=0, return_inverse=True)[1].ravel()[mesh.faces]
    flat = (joined == np.roll(joined, 1, axis=1)).any(axis=1)
    ends = np.stack([joined, np.roll(joined, -1, axis=1)], axis=2)[~flat].reshape(-1, 2)
    return int((np.unique(np.sort(ends, axis=1), axis=0, return_counts=True)[1] % 2).sum())


# --- shapes -------------------------------------------------------------------------------------


def test_box_is_closed_and_measures_right():
    box = solid(shapes.box((0.2, 0.3, 0.5)))
    assert box.is_watertight and box.volume == pytest.approx(0.2 * 0.3 * 0.5)


def test_lathe_of_a_rectangle_is_a_prism():
    profile = np.array([[0, 0], [0.5, 0], [0.5, 2], [0, 2]], dtype=float)
    prism = solid(shapes.lathe(profile, shapes.section_circle(24)))
    area = 0.5 * 24 * 0.5**2 * np.sin(2 * np.pi / 24)
    assert prism.is_watertight and prism.volume == pytest.approx(2 * area, rel=1e-9)


def test_lathe_of_a_hollow_profile_subtracts_the_hollow():
    profile = np.array([[0, 0], [1, 0], [1, 1], [0.8, 1], [0.8, 0.2], [0, 0.2]], dtype=float)
    cup = solid(shapes.lathe(profile, shapes.section_circle(400)))
    assert cup.is_watertight
    assert cup.volume == pytest.approx(np.pi * (1 - 0.8**2 * 0.8), rel=1e-3)


def test_closed_tube_is_a_torus():
    angle = np.linspace(0, 2 * np.pi, 201)
    path = np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    path[-1] = path[0]
    ring = solid(shapes.tube(path, np.full(201, 0.2), shapes.section_circle(100)))
    assert ring.is_watertight
    assert ring.volume == pytest.approx(2 * np.pi**2 * 0.2**2, rel=3e-3)


def test_open_tube_has_lids():
    path = np.column_stack([np.linspace(0, 3, 20), np.zeros(20), np.zeros(20)])
    rod = solid(shapes.tube(path, np.full(20, 0.1), shapes.section_circle(200)))
    assert rod.is_watertight and rod.volume == pytest.approx(3 * np.pi * 0.01, rel=1e-3)


def test_superquadric_satisfies_its_equation():
    exponents = np.array([3.0, 3.0, 1.5])
    for side in shapes.superquadric(shapes.cube_sphere(8), exponents):
        total = (np.abs(side.vertices) ** exponents).sum(axis=1)
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_rounded_box_volume():
    a, b, c, r = 1.0, 0.6, 0.4, 0.1
    inner = np.array([a, b, c]) - 2 * r
    pairs = inner[0] * inner[1] + inner[1] * inner[2] + inner[2] * inner[0]
    volume = inner.prod() + 2 * r * pairs + np.pi * r**2 * inner.sum() + 4 / 3 * np.pi * r**3
    body = solid(shapes.rounded_box(shapes.cube_sphere(60), (a, b, c), r))
    assert body.is_watertight and body.volume == pytest.approx(volume, rel=3e-3)


def test_extrusion_with_a_hole():
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    hole = outlines.circle(0.5, 30)
    plate = solid(shapes.extrusion([square, hole], 0.3, 0.1))
    hole_area = 0.5 * 30 * 0.5**2 * np.sin(2 * np.pi / 30)
    assert plate.is_watertight and plate.volume == pytest.approx(0.3 * (4 - hole_area), rel=1e-6)


@pytest.mark.parametrize('seed', range(25))
def test_every_outline_extrudes_to_its_shoelace_area(seed):
    loops = outlines.outline(np.random.default_rng(seed))
    areas = []
    for loop in loops:
        x, y = loop.T
        areas.append(abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2)
    body = solid(shapes.extrusion(loops, 0.5, 0.09))
    assert body.is_watertight
    assert body.volume == pytest.approx(0.5 * (areas[0] - sum(areas[1:])), rel=1e-6)


def test_inside_agrees_with_matplotlib():
    loop = outlines.gear(np.random.default_rng(2))[0]
    points = np.random.default_rng(0).uniform(-1.2, 1.2, (3000, 2))
    expected = matplotlib.path.Path(loop).contains_points(points)
    np.testing.assert_array_equal(shapes.inside([loop], points), expected)


def test_isosurface_of_a_sphere():
    surface = shapes.isosurface(lambda p: np.linalg.norm(p, axis=1) - 0.8, 1.2, 30)
    ball = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
    assert ball.is_watertight
    assert ball.volume == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.02)
    np.testing.assert_allclose(np.linalg.norm(surface.vertices, axis=1), 0.8, atol=0.002)


def test_projected_sides_keep_every_triangle():
    surface = shapes.isosurface(lambda p: np.linalg.norm(p, axis=1) - 0.8, 1.2, 20)
    sides = shapes.project_sides(surface)
    assert len(sides) == 6
    assert sum(len(side.faces) for side in sides) == len(surface.faces)
    assert solid(sides).is_watertight


def test_creases_split_a_cube_and_not_a_ball():
    cube = trimesh.creation.box((1, 1, 1))
    source, normals, faces = crease_normals(cube.vertices, cube.faces, np.radians(40))
    assert len(source) == 24
    np.testing.assert_allclose(normals[faces], np.repeat(cube.face_normals[:, None], 3, axis=1))
    ball = trimesh.creation.icosphere(subdivisions=3)
    source, normals, _ = crease_normals(ball.vertices, ball.faces, np.radians(40))
    assert len(source) == len(ball.vertices)
    assert np.einsum('ij,ij->i', normals, ball.vertices[source]).min() > 0.999


# --- objects ------------------------------------------------------------------------------------


def test_objects_are_the_same_every_time():
    for seed in (3, 1_000_003):
        first, second = make_object(seed), make_object(seed)
        for name in ('vertices', 'faces', 'normals', 'colors', 'uv', 'texture'):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert first.diameter_m == second.diameter_m
    assert len(made(3).vertices) != len(made(4).vertices)


@pytest.mark.parametrize('seed', SEEDS)
def test_promises_of_an_object(seed):
    mesh = made(seed)
    assert mesh.name == f'{object_family(seed)}_{seed}'
    assert 0.04 <= mesh.diameter_m <= 0.35
    hull = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).convex_hull.vertices
    gaps = np.linalg.norm(hull[:, None] - hull[None], axis=2)
    assert mesh.diameter_m == pytest.approx(gaps.max(), rel=1e-4)
    centre = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    np.testing.assert_allclose(centre, 0, atol=1e-6)
    assert 50 <= len(mesh.faces) <= 8000
    corners = mesh.vertices[mesh.faces]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    assert edges.max() <= mesh.diameter_m / 14 * 2.5
    assert np.percentile(edges, 99) <= mesh.diameter_m / 14 * 1.5
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)
    assert mesh.texture.shape == (256, 256, 3) and mesh.texture.dtype == np.uint8
    np.testing.assert_allclose(mesh.colors, sample_texture(mesh.texture, mesh.uv))
    assert mesh.uv.dtype == mesh.vertices.dtype == mesh.normals.dtype == np.float32
    assert mesh.faces.dtype == np.int32


@pytest.mark.parametrize('seed', SEEDS)
def test_objects_are_closed_and_turned_outwards(seed):
    mesh = made(seed)
    assert boundary_edges(mesh) == 0
    corners = mesh.vertices[mesh.faces].astype(float)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.einsum('ij,ij->', corners[:, 0], normals) > 0
    agreement = np.einsum('ij,ij->i', normals, mesh.normals[mesh.faces].sum(axis=1))
    assert (agreement > 0).mean() > 0.99


@pytest.mark.parametrize('seed', SEEDS)
def test_lettering_is_not_mirrored(seed):
    """Counter-clockwise from outside is clockwise where v points down."""
    mesh = made(seed)
    corners = mesh.vertices[mesh.faces]
    sides = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(sides, axis=1)
    u, v = np.moveaxis(mesh.uv[mesh.faces].astype(float), 2, 0)
    turn = (u[:, 1] - u[:, 0]) * (v[:, 2] - v[:, 0]) - (u[:, 2] - u[:, 0]) * (v[:, 1] - v[:, 0])
    assert area[turn < 0].sum() > 0.9 * area.sum()


def test_families_come_in_their_shares():
    counts = Counter(object_family(seed) for seed in range(3000))
    for name, (weight, _) in objects._TABLE.items():
        total = sum(share for share, _ in objects._TABLE.values())
        assert counts[name] / 3000 == pytest.approx(weight / total, abs=0.02), name


def test_held_out_seeds_start_at_a_million():
    assert not objects.is_held_out(999_999)
    assert objects.is_held_out(1_000_000)


def test_sizes_are_spread_over_the_whole_range():
    sizes = np.log([made(seed).diameter_m for seed in SEEDS])
    share = (sizes - np.log(0.04)) / (np.log(0.35) - np.log(0.04))
    assert np.histogram(share, bins=4, range=(0, 1))[0].min() > len(SEEDS) * 0.1


def test_many_processes_make_the_same_objects_in_order():
    seeds = list(range(16))
    for seed, mesh in zip(seeds, make_objects(seeds, processes=2, progress=False), strict=True):
        np.testing.assert_array_equal(mesh.vertices, made(seed).vertices)
        np.testing.assert_array_equal(mesh.texture, made(seed).texture)


def test_workers_do_not_import_torch():
    code = 'import sys, foundationpose_trt.synthesis.objects; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


# --- textures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'make', [textures.make_texture, textures.make_background_texture, textures.make_plain_texture]
)
def test_textures_are_the_same_every_time_and_differ_by_seed(make):
    first, second, other = make(5), make(5), make(6)
    assert first.shape == (256, 256, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_textures_of_another_size():
    assert textures.make_texture(1, 128).shape == (128, 128, 3)


def test_textures_are_varied_and_some_are_plain():
    spread = np.array([textures.make_texture(s).std(axis=(0, 1)).max() for s in range(120)])
    assert 0.08 < (spread < 8).mean() < 0.35
    assert (spread > 30).mean() > 0.4


def test_colours_are_not_only_vivid():
    means = np.array([textures.make_texture(s).mean(axis=(0, 1)) for s in range(120)])
    saturation = 1 - means.min(axis=1) / np.maximum(means.max(axis=1), 1)
    assert (saturation < 0.25).mean() > 0.25
    assert (saturation > 0.5).mean() > 0.15
    assert np.percentile(means.mean(axis=1), 10) < 80 < 150 < np.percentile(means.mean(axis=1), 90)


def test_plain_textures_are_plain():
    for seed in range(10):
        assert textures.make_plain_texture(seed).std(axis=(0, 1)).max() < 8
