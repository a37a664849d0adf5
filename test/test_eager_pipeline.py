"""The plain PyTorch pipeline: in closed form, and piece by piece against the kernels it judges."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import test_crops
import torch
from oracle_rig import CAMERA, ellipsoid, errors, frame_of, oracle_networks, pose_of
from raster_rig import mesh, on_plane, pose, random_poses, rays, sheet
from scipy import ndimage
from scipy.spatial.transform import Rotation
from test_depth_filter import expected as filtered_by_hand
from test_depth_filter import rough_scene

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.pose.crops import (
    REFINER_CROP,
    SCORER_CROP,
    CropSpec,
    ObservedImages,
    pairs_spec,
)
from foundationpose_trt.pose.depth import DepthFilter
from foundationpose_trt.pose.estimator import EstimatorSettings, PoseEstimator, RegisterStage
from foundationpose_trt.pose.mesh import ObjectMesh
from foundationpose_trt.pose.symmetry import symmetry_rotations
from foundationpose_trt.pose.update import apply_update
from foundationpose_trt.pose.views import ViewWriter
from foundationpose_trt.pose.weights import WEIGHTS_FOLDER, load_networks
from foundationpose_trt.scenes.metrics import rotation_error_rad, translation_error_m
from foundationpose_trt.synthesis.objects import make_object
from foundationpose_trt.synthesis.tabletop import SceneSettings, compose_views
from foundationpose_trt.synthesis.tabletop_images import (
    SensorNoise,
    TabletopImage,
    TabletopRenderer,
)
from foundationpose_trt.tools import eager_crops as crops
from foundationpose_trt.tools.eager_pipeline import (
    EagerPipeline,
    exponential,
    start_translation,
    updated,
)
from foundationpose_trt.tools.eager_renderer import EagerRenderer

CPU = torch.device('cpu')
TOOLS = Path(__file__).parents[1] / 'foundationpose_trt' / 'tools'
RULES = {'refiner': (crops.REFINER_RULE, REFINER_CROP), 'scorer': (crops.SCORER_RULE, SCORER_CROP)}
VIEW = (190.0, 200.0, 81.3, 58.6)
SIZE = (160, 160)
# Where float32 and float64 may differ: pixels that an edge or the nearer of two faces decides,
# and pixels whose source lies halfway between two of the image.
EDGE_SHARE, TIE_SHARE = 5e-5, 2e-3


def test_the_oracle_imports_nothing_that_it_judges():
    judged = 'crops crop_blocks depth rasterizer raster_kernels pixel_kernels views update quality'
    banned = {*judged.split(), 'observation', 'estimator', 'geometry', 'warp_launch', 'warp'}
    banned |= {'track_pass', 'track_kernels'}
    for file in TOOLS.glob('eager_*.py'):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = [n.module or '' for n in nodes if isinstance(n, ast.ImportFrom)]
        names += [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        assert not banned & {part for name in names for part in name.split('.')}, file


# --- the renderer, in closed form ----------------------------------------------------------------
def rendered(surface: ObjectMesh, poses: np.ndarray, near_m: float = 0.001) -> np.ndarray:
    """Network input (6, 160, 160) of one pose, seen with VIEW."""
    placed = torch.tensor(poses)[None]
    return EagerRenderer(surface, CPU).render(placed, torch.tensor([VIEW]), near_m)[0].numpy()


def square(half_m: float, **surface: np.ndarray) -> ObjectMesh:
    return mesh(*sheet(np.array([-half_m, half_m]), np.array([-half_m, half_m])), **surface)


def test_a_square_that_faces_the_camera():
    """Its outline runs from 43.3 to 119.3 and from 18.6 to 98.6 pixels; head light: 1.3 * grey."""
    surface = square(0.1)
    out = rendered(surface, pose(at=(0, 0, 0.5)))
    drawn = np.zeros(SIZE, bool)
    drawn[19:99, 44:120] = True
    np.testing.assert_allclose(out[:3], np.where(drawn, 0.65, 0) * np.ones((3, 1, 1)), atol=1e-6)
    expected = (rays(VIEW, SIZE) * 0.5 - (0, 0, 0.5)) * 2 / surface.diameter_m
    np.testing.assert_allclose(out[3:], np.where(drawn, expected.transpose(2, 0, 1), 0), atol=1e-5)


def test_what_is_bright_is_clipped_and_what_is_behind_is_not_drawn():
    white = square(0.1, colors=np.ones((4, 3)))
    assert rendered(white, pose(at=(0, 0, 0.5)))[:3].max() == 1
    assert (rendered(white, pose(at=(0, 0, -0.5))) == 0).all()
    assert (rendered(white, pose(at=(5, 0, 0.5))) == 0).all()
    broken = pose(at=(0, 0, np.nan))
    assert (rendered(white, broken) == 0).all()


def test_xyz_is_dropped_before_the_near_limit_and_colour_stays():
    for near_m, kept in ((0.09, True), (0.1, False)):
        out = rendered(square(0.01), pose(at=(0.002, 0, 0.095)), near_m)
        assert (out[:3] > 0).any() and (out[3:] != 0).any() == kept


def test_coordinates_of_two_radii_are_zeroed_one_by_one():
    out = rendered(replace(square(0.2), diameter_m=0.1), pose(at=(0, 0, 0.5)))
    x, y = (rays(VIEW, SIZE)[..., :2] * 0.5 / 0.05).transpose(2, 0, 1)
    drawn = out[0] > 0
    for channel, value in ((3, x), (4, y)):
        kept = drawn & (np.abs(value) < 2)
        assert kept.any() and not kept[drawn].all()
        np.testing.assert_allclose(out[channel], np.where(kept, value, 0), atol=1e-5)


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_the_nearer_of_two_squares_is_seen(order):
    squares = [sheet(np.array([-h, h]), np.array([-h, h])) for h in (0.1, 0.05)]
    vertices = np.concatenate([squares[0][0], squares[1][0] - (0, 0, 0.05)])
    faces = np.stack([squares[0][1], squares[1][1] + 4])[list(order)].reshape(-1, 3)
    both = mesh(vertices, faces, colors=np.repeat([[0.5, 0, 0], [0, 0.5, 0]], 4, axis=0))
    out = rendered(both, pose(at=(0, 0, 0.5)))
    assert out[:2, 58, 81] == pytest.approx([0, 0.65]) and out[:2, 25, 50] == pytest.approx(
        [0.65, 0]
    )
    assert (out[0] > 0).sum() + (out[1] > 0).sum() == 80 * 76  # no gap between them, no overlap


def test_colour_follows_perspective_and_light_is_interpolated_between_vertices():
    """A tilted sheet whose colour is its place; its normals turn away, to no more than ambient."""
    vertices, faces = sheet(np.array([-0.1, 0.1]), np.array([-0.1, 0.1]))
    colors = np.column_stack([0.5 + 2 * vertices[:, :2], np.full(4, 0.5)])
    turn = Rotation.from_euler('xy', [0.7, -0.6])
    toward = np.where(vertices[:, :1] > 0, (0, 0, -1.0), (0, 0, 1.0)) @ turn.as_matrix()
    placed = pose(turn, (0, 0.02, 0.5))
    out = rendered(mesh(vertices, faces, colors=colors, normals=toward), placed)
    drawn = out[2] > 0
    at = on_plane(placed, rays(VIEW, SIZE))[drawn]
    light = 0.8 + 0.5 * (at[:, :1] + 0.1) / 0.2
    albedo = np.column_stack([0.5 + 2 * at[:, :2], np.full(len(at), 0.5)])
    assert len(at) > 3000
    np.testing.assert_allclose(out[:3, drawn].T, np.clip(albedo * light, 0, 1), atol=1e-5)


def test_textures_wrap_and_are_interpolated():
    texture = np.random.default_rng(0).integers(0, 150, (4, 8, 3), dtype=np.uint8)
    uv = square(0.1).vertices[:, :2] * (10, 7) + 0.3
    out = rendered(square(0.1, uv=uv, texture=texture), pose(at=(0, 0, 0.5)))
    x, y = (rays(VIEW, SIZE)[..., :2] * 0.5).transpose(2, 0, 1)
    texel = [(y * 7 + 0.3) * 4 - 0.5, (x * 10 + 0.3) * 8 - 0.5]
    for channel in range(3):
        plane = texture[..., channel] / 255 * 1.3
        expected = ndimage.map_coordinates(plane, texel, order=1, mode='grid-wrap')
        np.testing.assert_allclose(out[channel, 19:99, 44:120], expected[19:99, 44:120], atol=1e-5)


# --- depth, crops and update, by hand ------------------------------------------------------------
@pytest.mark.parametrize('holes', [0.0, 0.1, 0.5, 0.8])
def test_depth_is_filtered_as_by_hand_and_as_by_the_kernels(holes):
    for seed in range(4):
        depth = rough_scene(seed, holes)
        out = crops.filter_depth(torch.from_numpy(depth))
        np.testing.assert_allclose(out.numpy(), filtered_by_hand(depth), atol=2e-6)
        ours = DepthFilter(1, *depth.shape, CPU)(torch.from_numpy(depth)[None])[0]
        torch.testing.assert_close(out, ours, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ('center', 'low', 'high'), [(100.5, 36, 164), (101.5, 38, 166), (100.0, 36, 164)]
)
def test_corners_of_the_window_are_rounded_to_even(center, low, high):
    """64 pixels around the middle: 36.5 -> 36 and 164.5 -> 164, but 37.5 -> 38."""
    k = torch.tensor([512, 500, center, center], dtype=torch.float64)
    window = crops.crop_windows(torch.tensor([[0, 0, 1.0]]), k, 0.25, 1.0)
    assert window.tolist() == [[low, low, high, high]]


def test_the_rendered_crop_spans_its_first_to_its_last_pixel():
    window = torch.tensor([[40.0, 30.0, 117.0, 108.0]], dtype=torch.float64)
    k = torch.tensor(test_crops.CAMERA)
    fx, fy, cx, cy = crops.rendered_intrinsics(window, k)[0].tolist()
    for i in (0, 80, 159):
        u = k[0] * (i - cx) / fx + k[2]
        v = k[1] * (i - cy) / fy + k[3]
        at = (i + 0.5) * (159 / 160) / 160
        assert (float(u), float(v)) == pytest.approx((40 + at * 77, 30 + at * 78))


def seen_of(rgb: np.ndarray, depth_m: np.ndarray, k: np.ndarray) -> crops.Seen:
    """A frame as it stands, its depth not filtered."""
    v, u = np.mgrid[: depth_m.shape[0], : depth_m.shape[1]]
    intrinsics = torch.tensor(k, dtype=torch.float64)
    depth = torch.from_numpy(depth_m)
    xyz = crops.unproject(depth, torch.from_numpy(u), torch.from_numpy(v), intrinsics)
    return crops.Seen(torch.tensor(rgb.transpose(2, 0, 1)[None]).float(), depth, xyz, intrinsics)


@pytest.mark.parametrize('kind', RULES)
def test_the_observed_crop_is_the_published_chain(kind):
    rule = RULES[kind][0]
    (rgb,), (depth,) = test_crops.scene(0)
    placed = torch.tensor(test_crops.WINDOWS, dtype=torch.float64)
    corners = torch.cat([placed[:, :2], placed[:, :2] + placed[:, 2:]], 1)
    center = torch.tensor(test_crops.CENTER).float().expand(4, 3)
    written = crops.observed_crops(
        seen_of(rgb, depth, test_crops.CAMERA), corners, center, 0.25, rule
    )
    for window, out in zip(test_crops.WINDOWS, written.numpy(), strict=True):
        to_image = test_crops.to_image(window)
        color = test_crops.warp(rgb.transpose(2, 0, 1), to_image, SIZE, 'bilinear') / 255
        np.testing.assert_allclose(out[:3], color, atol=1e-4)
        xyz = test_crops.crop_xyz(depth, window, rule.there_and_back)
        xyz = test_crops.normalised(xyz, test_crops.CENTER, 4.0, rule.near_m)
        clear = test_crops.tie_free(window, rule.there_and_back)
        np.testing.assert_allclose(out[3:, clear], xyz[:, clear], atol=1e-5)


@pytest.mark.parametrize('count', [4, 5])
def test_a_registration_starts_at_the_masks_middle_and_median_depth(count):
    """Depths 0.4, 0.5, 0.7, 0.8 (and 0.9) m in a mask that holds more pixels without depth."""
    depth, mask = np.zeros((20, 30), np.float32), np.zeros((20, 30), bool)
    mask[5:12, 8:25] = mask[3, 10] = True
    depth[6, 10 : 10 + count] = [0.4, 0.5, 0.7, 0.8, 0.9][:count]
    depth[15:] = 0.1  # not in the mask
    seen = seen_of(np.zeros((20, 30, 3), np.uint8), depth, np.array([40.0, 50.0, 14.0, 9.0]))
    z = {4: 0.6, 5: 0.7}[count]
    expected = [(16 - 14) / 40 * z, (7 - 9) / 50 * z, z]
    found = start_translation(seen, torch.from_numpy(mask), 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_update_is_that_of_the_facts_and_of_the_estimator():
    g = torch.Generator().manual_seed(0)
    update = {name: torch.randn(20, 3, generator=g) for name in ('trans', 'rot')}
    poses = torch.tensor(random_poses(20, 0)).float()
    moved = updated(poses, update, 0.07)
    turn = Rotation.from_rotvec(np.deg2rad(20) * np.tanh(update['rot'].double().numpy()))
    expected = turn.as_matrix().transpose(0, 2, 1) @ poses[:, :3, :3].double().numpy()
    np.testing.assert_allclose(moved[:, :3, :3], expected, atol=2e-6)
    torch.testing.assert_close(moved[:, :3, 3], poses[:, :3, 3] + 0.07 * update['trans'])
    torch.testing.assert_close(moved, apply_update(poses, update, torch.tensor([0.07])))


@pytest.mark.parametrize('angle_rad', [0.0, 1e-4, 5e-3, 0.5, 3.0])
def test_exponential(angle_rad):
    vector = angle_rad * np.array([[2, -1, 2]]) / 3
    found = exponential(torch.tensor(vector, dtype=torch.float64))
    np.testing.assert_allclose(found, Rotation.from_rotvec(vector).as_matrix(), atol=2e-7)


# --- both halves, against the kernels ------------------------------------------------------------
BENCH_CAMERA = CameraIntrinsics(300.5, 290.25, 160.75, 118.5, 320, 240)  # float32 holds them
OBJECTS = {'textured': make_object(1_060_007), 'painted': ellipsoid(np.zeros(3))}


def kernels_crops(
    surface: ObjectMesh, poses: torch.Tensor, seen: tuple, spec: CropSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    rgb, depth, k = seen
    images = ObservedImages(
        torch.from_numpy(rgb)[None],
        torch.from_numpy(depth)[None],
        torch.tensor(k[None], dtype=torch.float32),
    )
    writer = ViewWriter(surface, len(poses), pairs_spec(torch.float32), CPU)
    rendered, observed = writer.write(poses, images, spec, depth.shape).chunk(2)
    return rendered, observed


@pytest.mark.parametrize('kind', RULES)
@pytest.mark.parametrize('name', OBJECTS)
def test_both_halves_are_those_of_the_kernels(name, kind):
    surface, (rule, spec) = OBJECTS[name], RULES[kind]
    rng = np.random.default_rng(0)
    size = (BENCH_CAMERA.height, BENCH_CAMERA.width)
    rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    depth = rng.uniform(0.4, 0.6, size).astype(np.float32) * (rng.random(size) < 0.8)
    k = BENCH_CAMERA
    k = np.array([k.fx, k.fy, k.cx, k.cy])
    poses = torch.tensor(random_poses(20, 1, spread=0.2)).float()  # beyond the border, too
    pipeline = EagerPipeline(surface, oracle_networks())
    ours = kernels_crops(surface, poses, (rgb, depth, k), spec)
    plain = pipeline.crops(poses, seen_of(rgb, depth, k), rule)
    torch.testing.assert_close(plain[1][:, :3], ours[1][:, :3], atol=1e-4, rtol=0)
    for a, b, share in ((plain[0], ours[0], EDGE_SHARE), (plain[1], ours[1], TIE_SHARE)):
        assert (a != 0).any(1).float().mean() > 0.2
        differing = ((a - b).abs() > 1e-3).any(1)
        assert differing.float().mean() < share


# --- the whole -----------------------------------------------------------------------------------
# Turns about z and over leave 10 of the 252 start rotations (§3.2).
FEW = symmetry_rotations(['z_full', 'x_180'])
QUICK = EstimatorSettings(schedule=(RegisterStage(0, 10), RegisterStage(4, 2)), symmetries=FEW)


def test_register_and_track_reach_the_truth_with_oracle_networks():
    """A mesh that is not centred, in frames in closed form: nothing of pose/ is under way."""
    pipeline = EagerPipeline(ellipsoid(), oracle_networks(), QUICK)
    turn_deg, shift_mm = errors(pipeline.register(*frame_of(pose_of(3))), pose_of(3))
    assert turn_deg < 1.0 and shift_mm < 1.3
    moved = pose_of(3).copy()
    moved[:3, 3] += 0.01, -0.01, 0.02
    tracked = pipeline.track(frame_of(moved)[0], pose_of(3))
    assert tracked.dtype == np.float64
    turn_deg, shift_mm = errors(tracked, moved)
    assert turn_deg < 1.0 and shift_mm < 1.3


@pytest.mark.parametrize(
    ('mask', 'fault'),
    [
        (np.zeros((300, 400), bool), 'the mask is empty'),
        (np.eye(300, 400, dtype=bool), '300 pixels, 0 of them with depth: 4 are needed'),
        (np.ones((30, 40), bool), r'mask is \(30, 40\), the image \(300, 400\)'),
    ],
)
def test_masks_that_give_no_start_are_refused(mask, fault):
    frame = Frame(np.zeros((300, 400, 3), np.uint8), np.zeros((300, 400)), CAMERA)
    with pytest.raises(ValueError, match=fault):
        EagerPipeline(ellipsoid(), oracle_networks(), QUICK).register(frame, mask)


@dataclass(frozen=True)
class Bench:
    """A held-out object on a table, and both pipelines with the shipped weights."""

    images: list[TabletopImage]
    plain: EagerPipeline
    ours: PoseEstimator


@pytest.fixture(scope='module')
def bench() -> Bench:
    if not (WEIGHTS_FOLDER / 'small' / 'manifest.json').exists():
        pytest.skip('the weight set `small` is not in this checkout')
    surface, others = OBJECTS['textured'], [make_object(seed) for seed in (1_200_001, 1_200_002)]
    rng = np.random.default_rng(1)
    scene = compose_views(surface, others, 4, rng, SceneSettings(texture_px=128))
    images = list(TabletopRenderer(scene, 'cpu', 4).images(1, SensorNoise.video()))
    settings = EstimatorSettings((RegisterStage(1, 4), RegisterStage(1, 4)), symmetries=FEW)
    networks = load_networks('small')
    pipelines = [kind(surface, networks, settings) for kind in (EagerPipeline, PoseEstimator)]
    return Bench([image for image in images if image.visible_share > 0.6], *pipelines)


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Degrees and millimetres between two poses."""
    return float(np.rad2deg(rotation_error_rad(a, b))), 1e3 * translation_error_m(a, b)


def test_a_tracked_frame_ends_where_the_estimators_does(bench):
    assert len(bench.images) >= 2
    for image in bench.images:
        start = image.camera_from_object.copy()
        start[:3, :3] = Rotation.from_rotvec([0.1, -0.08, 0.05]).as_matrix() @ start[:3, :3]
        start[:3, 3] += 0.004
        pose = bench.plain.track(image.frame, start)
        assert distance(pose, start)[0] > 2.0
        turn_deg, shift_mm = distance(
            pose, bench.ours.track(image.frame, start).camera_from_object
        )
        assert turn_deg < 0.05 and shift_mm < 0.05


def test_a_registration_ends_where_the_estimators_does(bench):
    image = bench.images[0]
    pose = bench.plain.register(image.frame, image.mask)
    ours = bench.ours.register(image.frame, image.mask)
    turn_deg, shift_mm = distance(pose, ours.camera_from_object)
    assert turn_deg < 0.1 and shift_mm < 0.1
