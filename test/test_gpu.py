"""On a CUDA device: no host sync, the same numbers as on the CPU, half precision, flat memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import network_rig
import numpy as np
import pytest
import torch
from oracle_rig import CAMERA, ellipsoid, errors, frame_of, oracle_networks, pose_of
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import Outcome, TrackingState
from foundationpose_trt.pose.crops import REFINER_CROP, SCORER_CROP, ObservedImages, pairs_spec
from foundationpose_trt.pose.depth import DepthFilter
from foundationpose_trt.pose.estimator import (
    FULL_SCHEDULE,
    PRUNED_SCHEDULE,
    EstimatorSettings,
    PoseEstimator,
)
from foundationpose_trt.pose.mesh_bank import MeshBank
from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.pose.rasterizer import Rasterizer
from foundationpose_trt.pose.tracker import ObjectTracker, TrackerSettings
from foundationpose_trt.pose.views import ViewWriter
from foundationpose_trt.pose.weights import load_networks, save_network, write_manifest
from foundationpose_trt.synthesis.objects import make_object
from foundationpose_trt.tools import cli

pytestmark = pytest.mark.gpu
DEVICE = 'cuda'
WIDTH = 0.25


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Inside, an operation of torch that waits for the device raises RuntimeError."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random weight set whose steps are small, so that the object stays in sight."""
    folder = tmp_path_factory.mktemp('weights')
    for kind, make in (('refiner', RefineNet), ('scorer', ScoreNet)):
        state = network_rig.random_state(kind, WIDTH)
        for key in state:
            if key.startswith(('trans_head.1', 'rot_head.1')):
                state[key] *= 0.1
        network = make(WIDTH)
        network.load_state_dict(state)
        save_network(network, folder / f'{kind}.safetensors')
        write_manifest(folder, kind, {'width': WIDTH})
    return folder


def estimator_of(weights: Path, precision: str, **settings: object) -> PoseEstimator:
    networks = load_networks(str(weights), DEVICE, precision)
    estimator = PoseEstimator(ellipsoid(), networks, EstimatorSettings(**settings))
    estimator.warm_up(CAMERA)
    return estimator


def test_the_sync_detector_detects():
    value = torch.ones(1, device=DEVICE)
    with no_host_sync(), pytest.raises(RuntimeError, match='synchronizing'):
        value.item()
    with no_host_sync(), pytest.raises(RuntimeError, match='synchronizing'):
        torch.zeros(3).to(DEVICE)


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('schedule', [FULL_SCHEDULE, PRUNED_SCHEDULE], ids=['full', 'pruned'])
def test_register_and_track_never_wait_but_for_the_result(weights, precision, schedule):
    estimator = estimator_of(weights, precision, schedule=schedule)
    truth = pose_of(3)
    frame, mask = frame_of(truth, wall_m=1.0)
    with no_host_sync():
        registered = estimator.register(frame, mask)
        tracked = estimator.track(frame, truth)
        scores = estimator.score(frame, np.stack([truth] * 7))
    assert registered.outcome is Outcome.OK and tracked.outcome is Outcome.OK
    assert tracked.quality.rendered > 3000 and np.isfinite(scores).all()


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_cuda_graphs_change_nothing_and_never_wait(weights, precision):
    plain = estimator_of(weights, precision, schedule=PRUNED_SCHEDULE)
    graphed = estimator_of(
        weights, precision, schedule=PRUNED_SCHEDULE, cuda_graph_cache_capacity=8
    )
    captures = {name: stats.captures for name, stats in graphed.inference.stats().items()}
    assert captures == {'refiner': 5, 'scorer': 2}  # 64, 16 crops; the refiner also 126, 96, 1
    for seed in range(3):
        truth = pose_of(seed)
        frame, mask = frame_of(truth, wall_m=1.0)
        with no_host_sync():
            registered, tracked = graphed.register(frame, mask), graphed.track(frame, truth)
        for with_graph, without in (
            (tracked, plain.track(frame, truth)),
            (registered, plain.register(frame, mask)),
        ):
            turn_deg, shift_mm = errors(with_graph.camera_from_object, without.camera_from_object)
            assert turn_deg < 0.02 and shift_mm < 0.02
    for name, stats in graphed.inference.stats().items():
        assert (stats.captures, stats.failed_captures) == (captures[name], 0)
    graphed.inference.set_cuda_graph_cache_capacity(0)
    assert graphed.track(frame, truth).outcome is Outcome.OK and not graphed.inference.stats()


def test_chunks_never_wait_either(weights):
    estimator = estimator_of(weights, 'fp16', schedule=PRUNED_SCHEDULE, chunk=100)
    with no_host_sync():
        assert estimator.register(*frame_of(pose_of(3))).outcome is Outcome.OK


def test_failures_never_wait_either(weights):
    estimator = estimator_of(weights, 'fp16', schedule=PRUNED_SCHEDULE)
    frame, mask = frame_of(pose_of(3))
    blank = frame_of(pose_of(3, depth_m=0.55))[0]
    blank.depth_m[:] = 0
    with no_host_sync():
        assert estimator.register(blank, mask).outcome is Outcome.NO_DEPTH_IN_MASK
        assert estimator.register(frame, mask & False).outcome is Outcome.EMPTY_MASK
        estimator.track(blank, pose_of(3))


def test_the_tracker_with_its_scorer_check_never_waits(weights):
    settings = TrackerSettings(
        score_interval=1, score_margin=1e9, min_agreement=0.0, min_visible=0.0, min_support_px=0
    )
    tracker = ObjectTracker(estimator_of(weights, 'fp16'), settings)
    truth = pose_of(3)
    tracker.start_from(truth)
    with no_host_sync():
        for _ in range(3):
            assert tracker.step(frame_of(truth)[0], None).estimate.outcome is Outcome.OK
    assert tracker.state is TrackingState.TRACKING


def test_oracle_networks_reach_the_truth_on_the_device():
    """The same closed-form check as on the CPU (test_estimator.py), on this device's kernels."""
    settings = EstimatorSettings(schedule=PRUNED_SCHEDULE, chunk=84)
    estimator = PoseEstimator(ellipsoid(), oracle_networks(DEVICE), settings)
    truth = pose_of(3)
    frame, mask = frame_of(truth, wall_m=0.8)
    for estimate in (estimator.register(frame, mask), estimator.track(frame, truth)):
        turn_deg, shift_mm = errors(estimate.camera_from_object, truth)
        assert turn_deg < 1.0 and shift_mm < 1.3
        assert estimate.quality.agreement > 0.95


def inputs_on(device: str, spec) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of 12 poses around a textured held-out object, on the CPU."""
    mesh = make_object(1_000_003)
    poses = np.tile(np.eye(4, dtype=np.float32), (12, 1, 1))
    poses[:, :3, :3] = Rotation.random(12, random_state=2).as_matrix()
    poses[:, :3, 3] = np.random.default_rng(2).uniform((-0.1, -0.1, 0.5), (0.1, 0.1, 0.9), (12, 3))
    frame, _ = frame_of(pose_of(3), wall_m=0.7)
    k = [[CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]]
    images = ObservedImages(
        torch.from_numpy(frame.rgb)[None].to(device),
        torch.from_numpy(frame.depth_m)[None].to(device),
        torch.tensor(k, device=device),
    )
    writer = ViewWriter(mesh, 12, pairs_spec(torch.float32), torch.device(device))
    size = frame.depth_m.shape
    pairs = writer.write(torch.from_numpy(poses).to(device), images, spec, size)
    return tuple(pairs.cpu().chunk(2))


def differs(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> float:
    """Share of values that differ; rounding flips a few pixels on edges."""
    return ((actual - expected).abs() > tolerance).float().mean().item()


@pytest.mark.parametrize('spec', [REFINER_CROP, SCORER_CROP], ids=['refiner', 'scorer'])
def test_network_inputs_are_those_of_the_cpu(spec):
    for actual, expected in zip(inputs_on(DEVICE, spec), inputs_on('cpu', spec), strict=True):
        assert expected.abs().mean() > 0.02
        assert differs(actual, expected, 1e-3) < 2e-3
        assert differs((actual != 0).float(), (expected != 0).float(), 0.5) < 1e-3


def images_on(device: str) -> list[torch.Tensor]:
    mesh = [make_object(seed) for seed in (1_000_004, 1_000_005)]
    raster = Rasterizer(MeshBank(mesh, device), 1, 240, 320, slots=2)
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, :, :3, 3] = torch.tensor([[0.02, 0.0, 0.5], [-0.02, 0.01, 0.6]])
    index = torch.tensor([[0, 1]], dtype=torch.int32)
    camera = torch.tensor([[300.0, 300.0, 160.0, 120.0]])
    raster.draw(index.to(device), poses.to(device), camera.to(device))
    seen = raster.shade()
    return [t.cpu() for t in (seen.color, seen.depth_m, seen.slot.float(), seen.facing)]


def test_images_are_those_of_the_cpu():
    for actual, expected in zip(images_on(DEVICE), images_on('cpu'), strict=True):
        assert differs(actual, expected, 2e-3) < 2e-3


def test_the_depth_filter_is_that_of_the_cpu():
    g = torch.Generator().manual_seed(0)
    depth = 0.6 + 0.002 * torch.randn(2, 120, 160, generator=g)
    depth[torch.rand(depth.shape, generator=g) < 0.2] = 0
    filtered = [
        DepthFilter(2, 120, 160, torch.device(device))(depth.to(device)).cpu()
        for device in (DEVICE, 'cpu')
    ]
    assert differs(*filtered, 1e-6) < 1e-3
    assert (filtered[0] > 0).float().mean() > 0.4


def test_half_precision_hardly_moves_the_pose(weights):
    """fp16 keeps three digits; a step of these networks is some degrees and millimetres."""
    estimators = [estimator_of(weights, precision) for precision in ('fp32', 'fp16')]
    moved = []
    for seed in range(10):
        truth = pose_of(seed)
        frame, _ = frame_of(truth, wall_m=1.0)
        full, half = (e.track(frame, truth).camera_from_object for e in estimators)
        turn_deg, shift_mm = errors(half, full)
        assert turn_deg < 0.2 and shift_mm < 0.3
        moved.append(errors(full, truth))
    assert np.mean(moved, axis=0).min() > 0.3, 'the networks do nothing: nothing was compared'


def test_half_precision_hardly_changes_the_scores(weights):
    truth = pose_of(3)
    frame, _ = frame_of(truth)
    rng = np.random.default_rng(0)
    poses = np.stack([truth] * 40)
    poses[:, :3, 3] += rng.uniform(-0.05, 0.05, (40, 3))
    full, half = (estimator_of(weights, p).score(frame, poses) for p in ('fp32', 'fp16'))
    assert np.abs(full - half).max() < 0.05 * max(1.0, np.ptp(full))


def test_memory_stays_flat(weights):
    estimator = estimator_of(weights, 'fp16')
    truth = pose_of(3)
    frame, mask = frame_of(truth)

    def used() -> tuple[int, int, int]:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total - free

    for _ in range(10):
        estimator.track(frame, truth)
    estimator.register(frame, mask)
    growth = []
    for _ in range(3):
        before = used()
        for _ in range(200):
            estimator.track(frame, truth)
        estimator.register(frame, mask)
        after = used()
        assert after[:2] == before[:2]
        growth.append(after[2] - before[2])
    assert min(growth) < 4 << 20  # other processes may grow meanwhile, a leak grows every time


def test_the_frame_may_change_as_soon_as_a_call_returns(weights):
    """The staging memory must not be read after register or track have returned."""
    estimator = estimator_of(weights, 'fp32')
    truth = pose_of(3)
    frame, _ = frame_of(truth)
    expected = estimator.track(frame, truth).camera_from_object
    for _ in range(20):
        other = frame_of(pose_of(5))[0]
        estimator.track(other, truth)
        other.rgb[:] = 255
        np.testing.assert_allclose(
            estimator.track(frame, truth).camera_from_object, expected, atol=1e-6
        )


def test_the_train_command_makes_a_set_that_loads(tmp_path, capsys):
    """Both networks, a few seconds each."""
    out = str(tmp_path / 'set')
    arguments = ['--objects', '8', '--backgrounds', '2', '--seconds', '5', '--width', '0.125']
    arguments += ['--batch', '64', '--validation-batches', '1', '--out', out, '--device', DEVICE]
    arguments += ['--no-compile']
    assert cli.main(['train', 'refiner', *arguments]) == 0
    checkpoint = f'{out}/refiner.checkpoint.pt'
    assert cli.main(['train', 'scorer', *arguments, '--refiner', checkpoint]) == 0
    networks = load_networks(out, DEVICE, 'fp16')
    estimator = PoseEstimator(ellipsoid(), networks)
    assert estimator.register(*frame_of(pose_of(3))).outcome is not Outcome.NOT_FINITE
    capsys.readouterr()
