"""A tracked frame's fused kernels: against brute force and the torch statements of each rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import warp as wp
from evidence_rig import depth_evidence
from raster_rig import CAMERA, SIZE, on_devices, random_poses
from scene_rig import STARTS, THINGS, TRUTH, scene_of
from scipy.ndimage import map_coordinates
from test_depth_filter import expected as filtered_by_hand

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.pose.crops import (
    REFINER_CROP,
    CropGeometry,
    ObservedImages,
    crop_windows,
    observed_grid,
    pairs_spec,
    rendered_intrinsics,
    write_observed_input,
)
from foundationpose_trt.pose.mesh_bank import MeshBank
from foundationpose_trt.pose.patch import neighbourhood
from foundationpose_trt.pose.raster_kernels import rasterize
from foundationpose_trt.pose.rasterizer import Rasterizer
from foundationpose_trt.pose.track_pass import TrackPass
from foundationpose_trt.pose.update import apply_update
from foundationpose_trt.pose.views import ViewWriter
from foundationpose_trt.warp_launch import as_warp, launch

MESHES = [thing.mesh() for thing in THINGS]
DIAMETERS_M = [mesh.diameter_m for mesh in MESHES]
ORDER = (2, 0, 1)


def centered(poses: list[np.ndarray]) -> np.ndarray:
    """camera_from_centered (3, 4, 4) float64 of the things' poses, in ORDER."""
    return np.stack([poses[i] @ MESHES[i].object_from_centered for i in ORDER])


def rows_of(poses: np.ndarray) -> list[list[float]]:
    """Their numbers, row by row, as a pass takes them."""
    return poses.reshape(len(poses), 16).tolist()


@pytest.fixture(scope='module')
def frame() -> Frame:
    frame, _ = scene_of(THINGS, TRUTH)
    rng = np.random.default_rng(0)
    depth = frame.depth_m + rng.normal(0, 4e-4, frame.depth_m.shape).astype(np.float32)
    depth[rng.random(depth.shape) < 0.1] = 0
    rgb = rng.integers(0, 256, frame.rgb.shape, dtype=np.uint8)
    return Frame(rgb, depth, frame.intrinsics)


def numbers(k: CameraIntrinsics) -> list[float]:
    return [k.fx, k.fy, k.cx, k.cy]


class Plain:
    """The same frame, step by step, with the functions that state the rules."""

    def __init__(self, frame: Frame, device: str, order: tuple[int, ...] = ORDER) -> None:
        self.device = torch.device(device)
        self.depth = filtered_by_hand(frame.depth_m).astype(np.float32)
        self.images = ObservedImages(
            torch.tensor(frame.rgb[None], device=device),
            torch.tensor(self.depth[None], device=device),
            torch.tensor([numbers(frame.intrinsics)], device=device),
        )
        self.diameters = torch.tensor(DIAMETERS_M, dtype=torch.float64, device=device)[list(order)]
        self.radius = (self.diameters / 2).float()
        self.mesh = torch.tensor([[i] for i in order], dtype=torch.int32, device=device)
        self.raster = Rasterizer(MeshBank(MESHES, device), len(order))
        self.size = self.images.size

    def crops(self, poses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both halves (n, 6, 160, 160) of camera_from_centered (n, 4, 4) in the order."""
        k, n = self.images.intrinsics, len(poses)
        windows = crop_windows(poses[:, :3, 3], k, self.diameters, REFINER_CROP.ratio)
        self.raster.draw(self.mesh, poses[:, None], rendered_intrinsics(windows, k))
        halves = torch.empty(2, n, 6, 160, 160, device=self.device)
        inverse = torch.tensor(2 / np.array(DIAMETERS_M), dtype=torch.float32, device=self.device)
        self.raster.write_network_input(halves[0], inverse, REFINER_CROP.near_m)
        grid = observed_grid(windows, self.size[1], self.size[0])
        geometry = CropGeometry(windows, grid, poses[:, :3, 3], inverse[self.mesh[:, 0].long()])
        write_observed_input(halves[1], self.images, geometry, REFINER_CROP)
        return halves[0], halves[1]

    def evidence(self, poses: torch.Tensor) -> torch.Tensor:
        """Counts (3, 4) from the rendered half and depth looked up at the grid, by numpy."""
        k = self.images.intrinsics
        windows = crop_windows(poses[:, :3, 3], k, self.diameters, REFINER_CROP.ratio)
        grid = observed_grid(windows, self.size[1], self.size[0]).cpu().numpy()
        seen = np.zeros((len(poses), 160, 160), np.float32)
        at = np.arange(160, dtype=np.float32)
        for n, (x0, y0, step_x, step_y) in enumerate(grid):
            u, v = np.rint(x0 + at * step_x).astype(int), np.rint(y0 + at * step_y).astype(int)
            in_u, in_v = (u >= 0) & (u < self.size[1]), (v >= 0) & (v < self.size[0])
            seen[n][np.ix_(in_v, in_u)] = self.depth[np.ix_(v[in_v], u[in_u])]
        there = torch.tensor(seen, device=self.device)
        return depth_evidence(self.crops(poses)[0], there, poses[:, :3, 3], self.radius)


def track_of(device: str, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> TrackPass:
    writer = ViewWriter(MESHES, len(ORDER), pairs_spec(dtype), torch.device(device))
    return writer.track_pass(size, len(ORDER))


def tensor(poses: np.ndarray, device: str) -> torch.Tensor:
    return torch.tensor(poses, dtype=torch.float32, device=device)


def same_crops(actual: tuple, expected: tuple) -> None:
    """Equal but for pixels that the last bit of a coordinate decides."""
    for half, wanted in zip(actual, expected, strict=True):
        assert wanted.abs().mean() > 0.02
        differing = ((half - wanted).abs() > 1e-5).float().mean().item()
        assert differing < 5e-4, differing


@on_devices
def test_crops_are_those_of_the_plain_functions_on_every_iteration(device, frame):
    plain, poses = Plain(frame, device), centered(STARTS)
    track = track_of(device, plain.size)
    rng = np.random.default_rng(1)
    track.begin(frame, rows_of(poses), ORDER)
    at = tensor(poses, device)
    for _ in range(3):
        same_crops(track.write(3).chunk(2), plain.crops(at))
        update = {name: tensor(rng.normal(0, 0.2, (3, 3)), device) for name in ('trans', 'rot')}
        track.move(update, 3)
        at = apply_update(at, update, plain.radius)
    found = track.end(3).rows
    np.testing.assert_allclose(found[:, :16], at.cpu().reshape(3, 16), atol=2e-6)
    counted = plain.evidence(at).cpu().numpy()
    assert (counted[:, 0] > 2000).all() and (counted[:, 1:].sum(1) > 1000).all()
    np.testing.assert_allclose(found[:, 16:], counted, atol=12)


@on_devices
def test_the_next_frame_knows_nothing_of_the_last(device, frame):
    poses = centered(STARTS)
    other = replace(frame, rgb=255 - frame.rgb, depth_m=frame.depth_m[::-1].copy())
    fresh, used = (track_of(device, frame.depth_m.shape) for _ in range(2))
    used.begin(other, rows_of(centered(TRUTH)[::-1]), ORDER[::-1])
    used.write(3)
    used.move({name: torch.full((3, 3), 0.3, device=device) for name in ('trans', 'rot')}, 3)
    used.end(3)
    for track in (fresh, used):
        track.begin(frame, rows_of(poses), ORDER)
    for half, wanted in zip(used.write(3).chunk(2), fresh.write(3).chunk(2), strict=True):
        torch.testing.assert_close(half, wanted, atol=0, rtol=0)
    nothing = {name: torch.zeros(3, 3, device=device) for name in ('trans', 'rot')}
    for track in (fresh, used):
        track.move(nothing, 3)
    np.testing.assert_array_equal(used.end(3).rows, fresh.end(3).rows)


@on_devices
def test_those_that_have_had_their_iterations_stay_and_are_judged_where_they_are(device, frame):
    poses = centered(STARTS)
    track = track_of(device, frame.depth_m.shape)
    shift = {'trans': torch.full((3, 3), 0.1, device=device), 'rot': torch.zeros(3, 3).to(device)}
    track.begin(frame, rows_of(poses), ORDER)
    for active in (3, 2, 1):
        track.write(active)
        track.move({name: values[:active].clone() for name, values in shift.items()}, active)
    found = track.end(3).rows
    moved = found[:, [3, 7, 11]] - poses[:, :3, 3]
    radii = np.array(DIAMETERS_M)[list(ORDER)] / 2
    np.testing.assert_allclose(moved, 0.1 * (radii * [3, 2, 1])[:, None] + np.zeros(3), atol=1e-6)
    at = tensor(found[:, :16].reshape(3, 4, 4), device)
    counted = Plain(frame, device).evidence(at).cpu().numpy()
    np.testing.assert_allclose(found[:, 16:], counted, atol=12)


@on_devices
@pytest.mark.parametrize('rows', [(0,), (2, 1)])
def test_fewer_poses_than_there_is_room_for(device, frame, rows):
    poses, chosen = centered(STARTS), [ORDER[row] for row in rows]
    track, plain = track_of(device, frame.depth_m.shape), Plain(frame, device)
    track.begin(frame, rows_of(centered(TRUTH)), ORDER)
    whole = [half.clone() for half in plain.crops(tensor(poses, device))]
    track.write(3)
    track.end(3)
    track.begin(frame, rows_of(poses[list(rows)]), chosen)
    for half, wanted in zip(track.write(len(rows)).chunk(2), whole, strict=True):
        assert len(half) == len(rows)
        differing = ((half - wanted[list(rows)]).abs() > 1e-5).float().mean().item()
        assert differing < 5e-4


@on_devices
def test_only_the_neighbourhood_is_read(device, frame):
    """What lies outside it may be anything; what lies inside is read."""
    poses, size = centered(STARTS)[:1], frame.depth_m.shape
    patch = neighbourhood(rows_of(poses), frame.intrinsics, [DIAMETERS_M[ORDER[0]]])
    assert patch.pixels < 0.5 * size[0] * size[1]
    outside = np.ones(size, bool)
    patch.of(outside)[:] = False
    other = Frame(frame.rgb.copy(), frame.depth_m.copy(), frame.intrinsics)
    other.rgb[outside], other.depth_m[outside] = 77, 0.6
    results = []
    for given in (frame, other):
        track = track_of(device, size)
        track.begin(given, rows_of(poses), ORDER[:1])
        results.append([half.clone() for half in track.write(1).chunk(2)])
    for half, same in zip(*results, strict=True):
        torch.testing.assert_close(half, same, atol=0, rtol=0)


@on_devices
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, -0.3])
def test_depth_that_is_no_depth_is_as_none(device, frame, value):
    """Frames keep what the camera gave: the filters must tell."""
    poses = centered(STARTS)
    holes = np.random.default_rng(8).random(frame.depth_m.shape) < 0.2
    results = []
    for invalid in (np.float32(0), np.float32(value)):
        depth = np.where(holes, invalid, frame.depth_m)
        track = track_of(device, frame.depth_m.shape)
        track.begin(Frame(frame.rgb, depth, frame.intrinsics), rows_of(poses), ORDER)
        crops = [half.clone() for half in track.write(3).chunk(2)]
        nothing = {name: torch.zeros(3, 3, device=device) for name in ('trans', 'rot')}
        track.move(nothing, 3)
        results.append((*crops, torch.from_numpy(track.end(3).rows)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert results[0][2][:, 17].min() > 100


@on_devices
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e30])
def test_a_network_that_answers_nonsense_moves_no_other_pose(device, frame, bad):
    poses, size = centered(STARTS), frame.depth_m.shape
    track = track_of(device, size)
    track.begin(frame, rows_of(poses), ORDER)
    track.write(3)
    update = {name: torch.zeros(3, 3, device=device) for name in ('trans', 'rot')}
    update['trans'][1] = bad
    update['rot'][1] = bad
    for _ in range(2):
        track.move(update, 3)
        track.write(3)
        update = {name: values.clone() for name, values in update.items()}
    track.move(update, 3)
    found = track.end(3).rows
    np.testing.assert_allclose(
        found[[0, 2], :16], poses.reshape(3, 16)[[0, 2]].astype(np.float32), atol=1e-6
    )
    assert (found[[0, 2], 16] > 1000).all() and found[1, 17] == 0
    assert not np.isfinite(found[1, :16]).all() or np.abs(found[1, [3, 7, 11]]).max() > 1e20


@on_devices
def test_outputs_of_any_type_and_place_are_read(device, frame):
    poses = centered(STARTS)
    rng = np.random.default_rng(4)
    track = track_of(device, frame.depth_m.shape)
    radius = torch.tensor(np.array(DIAMETERS_M)[list(ORDER)] / 2, device=device).float()
    track.begin(frame, rows_of(poses), ORDER)
    at = tensor(poses, device)
    types = (torch.float32, torch.float16, torch.float16, torch.float32)
    for dtype, stride in zip(types, (1, 1, 2, 3), strict=True):
        track.write(3)
        wide = torch.tensor(rng.normal(0, 0.1, (2, 3, 3 * stride)), device=device).to(dtype)
        trans, rot = wide[..., ::stride]
        update = {'rot': rot, 'trans': trans, 'other': rot}
        track.move(update, 3)
        at = apply_update(at, update, radius)
    np.testing.assert_allclose(track.end(3).rows[:, :16], at.cpu().reshape(3, 16), atol=2e-6)


@on_devices
def test_a_pass_that_came_to_no_end_leaves_nothing_behind(device, frame):
    poses = centered(STARTS)
    fresh, used = (track_of(device, frame.depth_m.shape) for _ in range(2))
    used.begin(frame, rows_of(centered(TRUTH)), ORDER)  # drawn, never written
    for track in (fresh, used):
        track.begin(frame, rows_of(poses), ORDER)
    for half, wanted in zip(used.write(3).chunk(2), fresh.write(3).chunk(2), strict=True):
        torch.testing.assert_close(half, wanted, atol=0, rtol=0)


@on_devices
def test_the_patch_is_filtered_as_the_whole_and_blank_where_it_is_cut(device, frame):
    poses = centered(STARTS)[:1]
    patch = neighbourhood(rows_of(poses), frame.intrinsics, [DIAMETERS_M[ORDER[0]]])
    track = track_of(device, frame.depth_m.shape)
    track.begin(frame, rows_of(poses), ORDER[:1])
    found = track.filtered[0, : patch.pixels].cpu().numpy().reshape(patch.height, patch.width)
    whole = patch.of(filtered_by_hand(frame.depth_m))
    v, u = np.mgrid[: patch.height, : patch.width]
    height, width = frame.depth_m.shape
    cut = (u < 4) & (patch.x > 0) | (v < 4) & (patch.y > 0)
    cut |= (u >= patch.width - 4) & (patch.x + patch.width < width)
    cut |= (v >= patch.height - 4) & (patch.y + patch.height < height)
    assert 0.02 < cut.mean() < 0.2 and (whole[cut] > 0).any()
    np.testing.assert_allclose(found[~cut], whole[~cut], atol=2e-6)
    assert (found[cut] == 0).all()


@on_devices
@pytest.mark.parametrize('center', [(50.0, 51.0), (50.5, 49.5)])
def test_corners_between_pixels_go_to_the_even_one(device, center):
    """Trap 7: a window from 36.5 to 63.5 is one from 36 to 64, and 37 to 64 would show other
    pixels."""
    k = CameraIntrinsics(90.0, 90.0, *center, 100, 101)
    mesh = replace(MESHES[0], diameter_m=0.25)
    reach = k.fx * (REFINER_CROP.ratio * mesh.diameter_m / 2)
    assert reach == 13.5
    rng = np.random.default_rng(5)
    rgb = rng.integers(0, 256, (101, 100, 3), dtype=np.uint8)
    frame = Frame(rgb, np.ones((101, 100), np.float32), k)
    pose = np.eye(4)[None]
    pose[0, 2, 3] = 1.0
    writer = ViewWriter(mesh, 1, pairs_spec(torch.float32), torch.device(device))
    track = writer.track_pass((101, 100), 1)
    track.begin(frame, rows_of(pose), [0])
    observed = track.write(1)[1, :3].cpu().numpy()
    low = [round(c - reach) for c in center]  # Python rounds half to even as well
    size = [round(c + reach) - first for c, first in zip(center, low, strict=True)]
    grid = [
        (first + np.arange(160) * s / 160) * n / (n - 1) - 0.5
        for first, s, n in zip(low, size, (100, 101), strict=True)
    ]
    values = map_coordinates(rgb[..., 0] / 255, np.meshgrid(*grid[::-1], indexing='ij'), order=1)
    np.testing.assert_allclose(observed[0], values, atol=1e-4)


@on_devices
@pytest.mark.parametrize('parts', [2, 7, 16])
def test_threads_that_share_a_face_draw_what_one_draws(device, parts):
    """TrackPass lets several take a face's rows in turn; the others here are drawn by one."""
    poses = torch.tensor(random_poses(4, 11), dtype=torch.float32, device=device)
    raster = Rasterizer(MeshBank(MESHES[:1], device), 4, *SIZE)
    camera = torch.tensor([CAMERA] * 4, device=device).float()
    index = torch.zeros(4, 1, dtype=torch.int32, device=device)
    raster.draw(index, poses[:, None], camera)
    alone = raster._visibility.clone()
    shared = torch.full_like(alone, -1)
    dim = (4, raster.bank.max_faces, parts)
    arguments = [raster._meshes, raster._instances, as_warp(shared, wp.uint64), parts]
    launch(rasterize, dim, arguments, torch.device(device))
    assert (alone != -1).float().mean() > 0.02
    assert torch.equal(alone, shared)
