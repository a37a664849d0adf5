"""register() and track() as a whole, judged with oracle networks on closed-form frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from network_rig import random_state
from oracle_rig import (
    CAMERA,
    CENTER_M,
    OracleRefiner,
    OracleScorer,
    ellipsoid,
    errors,
    frame_of,
    oracle_networks,
    pose_of,
    translation,
)
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import Frame, Outcome, PoseEstimate
from foundationpose_trt.pose.estimator import (
    FULL_SCHEDULE,
    PRUNED_SCHEDULE,
    EstimatorSettings,
    PoseEstimator,
    RegisterStage,
    start_rotations,
)
from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.pose.weights import PoseNetworks

# A pixel is 1.3 mm wide here; the depth filter and the offsets of the crops' grids (§2.3, §2.4)
# shift colour against depth by up to half of one.
LIMIT_DEG, LIMIT_MM = 1.0, 1.3
# Turns about z every 5 degrees: they leave 20 of the 252 start rotations (§3.2).
TURNS = tuple(
    tuple(Rotation.from_rotvec([0, 0, angle]).as_matrix().ravel())
    for angle in np.deg2rad(np.arange(5, 360, 5))
)
HALF_TURN = tuple(np.diag([-1.0, -1.0, 1.0]).ravel())
QUICK = EstimatorSettings(schedule=(RegisterStage(0, 24), RegisterStage(4, 2)), chunk=64)


def oracle_estimator(settings: EstimatorSettings = QUICK, center_m=CENTER_M) -> PoseEstimator:
    return PoseEstimator(ellipsoid(center_m), oracle_networks(), settings)


def close_to_truth(estimate, truth: np.ndarray, center_m=CENTER_M) -> None:
    assert estimate.outcome is Outcome.OK
    turn_deg, shift_mm = errors(estimate.camera_from_object, truth, center_m)
    assert turn_deg < LIMIT_DEG and shift_mm < LIMIT_MM


@pytest.fixture(scope='module')
def estimator() -> PoseEstimator:
    return oracle_estimator()


@pytest.fixture(scope='module')
def registered(estimator: PoseEstimator) -> PoseEstimate:
    return estimator.register(*frame_of(pose_of(3)))


def test_register_reaches_the_true_pose_of_a_mesh_that_is_not_centred(registered):
    """Trap 10: the public pose is that of the mesh file, the inner one of the centred mesh."""
    estimate = registered
    close_to_truth(estimate, pose_of(3))
    assert estimate.camera_from_object.dtype == np.float64
    rotation = estimate.camera_from_object[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert estimate.quality.agreement > 0.95 and estimate.quality.visible > 0.85


def test_moving_the_meshs_origin_moves_the_public_pose_by_as_much(registered):
    one, other_center = registered.camera_from_object, np.array([-0.3, 0.2, 0.1])
    frame, mask = frame_of(pose_of(3))
    other = oracle_estimator(center_m=other_center).register(frame, mask).camera_from_object
    np.testing.assert_allclose(other, one @ translation(CENTER_M - other_center), atol=1e-6)


def test_the_ranked_hypotheses_are_public_poses_best_first(registered):
    truth, estimate = pose_of(3), registered
    poses, scores = estimate.ranked_camera_from_object, estimate.ranked_scores
    assert poses.shape == (2, 4, 4) and scores.shape == (2,) and scores.dtype == np.float32
    assert scores[0] == estimate.score and scores[0] >= scores[1]
    np.testing.assert_allclose(poses[0], estimate.camera_from_object, atol=1e-5)
    for pose in poses:
        turn_deg, shift_mm = errors(pose, truth)
        assert turn_deg < LIMIT_DEG and shift_mm < LIMIT_MM


@pytest.mark.parametrize('wall_m', [0.0, 0.9])
def test_track_follows_a_moved_object(estimator, wall_m):
    start, goal = pose_of(5), pose_of(5)
    turn = Rotation.from_rotvec(np.deg2rad([8.0, -6.0, 10.0])).as_matrix()
    middle = np.append(CENTER_M, 1.0)
    goal[:3, :3] = turn @ start[:3, :3]
    goal[:3, 3] += (start @ middle - goal @ middle)[:3] + [0.015, -0.01, 0.02]
    estimate = estimator.track(frame_of(goal, wall_m=wall_m)[0], start)
    close_to_truth(estimate, goal)
    assert estimate.score is None and len(estimate.ranked_scores) == 0
    assert estimate.quality.agreement > 0.95


class Nothing(OracleRefiner):
    """Moves nothing."""

    def __call__(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls.append(len(rendered))
        return {key: rendered.new_zeros(len(rendered), 3) for key in ('trans', 'rot')}


def test_each_network_gets_its_own_crops():
    """Trap 3: 1.1 diameters wide and 1.2, but for the rounding to whole pixels."""
    shares: dict[str, float] = {}

    class Refiner(Nothing):
        def __call__(self, rendered: torch.Tensor, observed: torch.Tensor):
            shares['refiner'] = (rendered[:, 5] != 0).float().mean().item()
            return super().__call__(rendered, observed)

    class Scorer(OracleScorer):
        def extract(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
            shares['scorer'] = (rendered[:, 5] != 0).float().mean().item()
            return super().extract(rendered, observed)

    settings = EstimatorSettings(schedule=(RegisterStage(1, 20),), chunk=99, symmetries=TURNS)
    networks = oracle_networks(refiner=Refiner(), scorer=Scorer())
    PoseEstimator(ellipsoid(), networks, settings).register(*frame_of(pose_of(3)))
    assert shares['scorer'] / shares['refiner'] == pytest.approx((1.2 / 1.1) ** 2, rel=0.03)


@pytest.mark.parametrize(('symmetries', 'count'), [((), 252), ((HALF_TURN,), 126), (TURNS, 20)])
def test_symmetries_thin_the_grid(symmetries, count):
    settings = EstimatorSettings(schedule=(RegisterStage(0, 252),), symmetries=symmetries)
    estimator = PoseEstimator(ellipsoid(), oracle_networks(), settings)
    estimate = estimator.register(*frame_of(pose_of(3)))
    assert len(estimate.ranked_scores) == count  # measured upstream, §3.2


@pytest.mark.parametrize(
    ('schedule', 'refined', 'scored'),
    [
        (FULL_SCHEDULE, 252 * 5, [252]),
        (PRUNED_SCHEDULE, 252 + 96 + 64 + 2 * 16, [64, 16]),
        ((RegisterStage(0, 300), RegisterStage(0, 1)), 0, [252, 252]),
    ],
    ids=['full', 'pruned', 'keeps at most all'],
)
def test_schedules_refine_score_and_keep_what_they_say(schedule, refined, scored):
    networks = oracle_networks(refiner=Nothing())
    settings = EstimatorSettings(schedule=schedule, chunk=100)
    estimate = PoseEstimator(ellipsoid(), networks, settings).register(*frame_of(pose_of(3)))
    assert sum(networks.refiner.calls) == refined
    assert max(networks.refiner.calls + networks.scorer.calls) == 100
    assert sum(networks.scorer.calls) == sum(scored)
    assert networks.scorer.ranked == [(1, count, 1) for count in scored]  # all at once
    kept = min(schedule[-1].keep, scored[-1])
    assert estimate.ranked_camera_from_object.shape == (kept, 4, 4)
    assert (np.diff(estimate.ranked_scores) <= 0).all()


class Shift(OracleRefiner):
    """The oracle's translation alone."""

    def __call__(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        update = super().__call__(rendered, observed)
        return {'trans': update['trans'], 'rot': torch.zeros_like(update['rot'])}


def test_depth_keeps_the_poses_that_it_confirms():
    """The ellipsoid's axes differ: depth prefers turns near the truth, and those that look alike,
    half a turn from it about an axis, to most of the 252."""
    truth = pose_of(3)
    schedule = (RegisterStage(3, 12, 'depth'), RegisterStage(0, 12))
    settings = EstimatorSettings(schedule=schedule)
    estimator = PoseEstimator(ellipsoid(), oracle_networks(refiner=Shift()), settings)
    kept = estimator.register(*frame_of(truth)).ranked_camera_from_object[:, :3, :3]
    # the squared diagonal of a turn about an axis by 0 or 180 degrees is all ones
    off, off_of_all = (
        3 - (np.einsum('nji,jk->nik', turns, truth[:3, :3]).diagonal(0, 1, 2) ** 2).sum(1)
        for turns in (kept, start_rotations(()))
    )
    assert len(off) == 12 and np.median(off) < np.percentile(off_of_all, 10)
    assert off.max() < np.median(off_of_all)


def test_start_hypotheses_stand_at_the_masks_median_depth():
    """§3.4 with an oracle of its own: box centre, median depth, 252 rotations 30 degrees apart."""
    truth = pose_of(6)
    frame, mask = frame_of(truth)
    settings = EstimatorSettings(schedule=(RegisterStage(0, 252),))
    networks = oracle_networks()
    poses = PoseEstimator(ellipsoid(), networks, settings).register(frame, mask)
    middles = poses.ranked_camera_from_object @ np.append(CENTER_M, 1.0)
    rows, columns = np.nonzero(mask)
    z = np.median(frame.depth_m[mask])
    u, v = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    expected = [(u - CAMERA.cx) / CAMERA.fx * z, (v - CAMERA.cy) / CAMERA.fy * z, z]
    np.testing.assert_allclose(middles[:, :3], np.tile(expected, (252, 1)), atol=1e-3)
    rotations = Rotation.from_matrix(poses.ranked_camera_from_object[:, :3, :3])
    nearest = sorted((rotations[0].inv() * rotations).magnitude())[1]
    assert np.deg2rad(30.0) < nearest < np.deg2rad(40.0)


@pytest.fixture(scope='module')
def random_networks() -> PoseNetworks:
    refiner, scorer = RefineNet(0.0625).eval(), ScoreNet(0.0625).eval()
    state = random_state('refiner', 0.0625)
    for head in ('trans_head', 'rot_head'):
        state[f'{head}.1.weight'] *= 0.1  # small steps, so that the object stays in sight
        state[f'{head}.1.bias'] *= 0.1
    refiner.load_state_dict(state)
    scorer.load_state_dict(random_state('scorer', 0.0625))
    return PoseNetworks(refiner, scorer, 'random', torch.device('cpu'), torch.float32)


def test_chunks_do_not_change_the_result(random_networks):
    frame, mask = frame_of(pose_of(4))
    stages = (RegisterStage(1, 9), RegisterStage(1, 9))
    # all logits of an untrained scorer are equal but for the last digits
    networks = replace(random_networks, scorer=OracleScorer())
    results = [
        PoseEstimator(
            ellipsoid(),
            networks,
            EstimatorSettings(schedule=stages, chunk=chunk, symmetries=TURNS),
        ).register(frame, mask)
        for chunk in (252, 7, 1)
    ]
    poses, scores = results[0].ranked_camera_from_object, results[0].ranked_scores
    assert np.diff(scores).max() < -1e-4, 'ties: the order would be chance'
    for result in results[1:]:
        np.testing.assert_allclose(result.ranked_scores, scores, atol=2e-5)
        np.testing.assert_allclose(result.ranked_camera_from_object, poses, atol=2e-5)


def test_track_is_the_refinement_of_one_hypothesis(random_networks):
    """Two iterations equal one after the other, and what register does to a hypothesis."""
    frame, mask = frame_of(pose_of(4))

    def made(stages: tuple, iterations: int) -> PoseEstimator:
        settings = EstimatorSettings(
            schedule=stages, track_iterations=iterations, symmetries=TURNS
        )
        return PoseEstimator(ellipsoid(), random_networks, settings)

    once, twice = made((RegisterStage(0, 1),), 1), made((RegisterStage(0, 1),), 2)
    start = once.register(frame, mask).camera_from_object
    step = once.track(frame, start).camera_from_object
    both = twice.track(frame, start).camera_from_object
    assert np.abs(step - start).max() > 1e-3
    np.testing.assert_allclose(both, once.track(frame, step).camera_from_object, atol=2e-6)
    refined = made((RegisterStage(0, 1), RegisterStage(1, 1)), 1).register(frame, mask)
    np.testing.assert_allclose(step, refined.camera_from_object, atol=2e-5)


def variants(frame: Frame, mask: np.ndarray) -> list[tuple[Frame, np.ndarray]]:
    """The same images in other types and memory layouts."""
    wide = np.zeros((frame.rgb.shape[0], 2 * frame.rgb.shape[1], 6), np.uint8)
    wide[:, ::2, :3] = frame.rgb
    turned = np.asfortranarray(frame.depth_m[::-1])[::-1]
    return [
        (replace(frame, rgb=wide[:, ::2, :3], depth_m=turned), mask.astype(np.uint8) * 255),
        (
            replace(frame, rgb=np.asfortranarray(frame.rgb), depth_m=frame.depth_m.astype('f8')),
            np.asfortranarray(mask).astype(np.int32) * 7,
        ),
        (replace(frame, depth_m=np.where(frame.depth_m > 0, frame.depth_m, np.nan)), mask * 0.5),
    ]


def test_type_and_layout_of_the_images_do_not_matter(random_networks):
    settings = EstimatorSettings(schedule=(RegisterStage(1, 3),), symmetries=TURNS)
    estimator = PoseEstimator(ellipsoid(), random_networks, settings)
    frame, mask = frame_of(pose_of(4))
    expected = estimator.register(frame, mask).ranked_camera_from_object
    tracked = estimator.track(frame, expected[0]).camera_from_object
    for other_frame, other_mask in variants(frame, mask):
        actual = estimator.register(other_frame, other_mask)
        np.testing.assert_array_equal(actual.ranked_camera_from_object, expected)
        again = estimator.track(other_frame, expected[0])
        np.testing.assert_array_equal(again.camera_from_object, tracked)


def test_results_do_not_depend_on_what_came_before(random_networks):
    settings = EstimatorSettings(
        schedule=(RegisterStage(1, 3),), track_iterations=3, symmetries=TURNS
    )
    used, fresh = (PoseEstimator(ellipsoid(), random_networks, settings) for _ in range(2))
    start = pose_of(4)
    frame, mask = frame_of(start)
    far = replace(frame, rgb=255 - frame.rgb, depth_m=frame.depth_m[::-1] + np.float32(0.4))
    used.register(far, mask)
    used.track(far, pose_of(9))
    # far off: what tracking reads leaves the region that it filtered first
    away = start.copy()
    away[:3, 3] += 0.07, 0.05, 0.0
    for pose in (start, away):
        expected = fresh.track(frame, pose).camera_from_object
        np.testing.assert_array_equal(used.track(frame, pose).camera_from_object, expected)


def test_image_sizes_may_alternate(estimator):
    truth = pose_of(7)
    other_camera = replace(CAMERA, width=360, height=280)
    for camera in (CAMERA, other_camera, CAMERA):
        close_to_truth(estimator.track(frame_of(truth, camera)[0], truth), truth)


def test_score_prefers_the_true_pose_and_ignores_the_chunk():
    truth = pose_of(8)
    poses = np.stack([truth] * 5)
    for k, vector in enumerate([[0.4, 0, 0], [0, -0.4, 0], [0, 0, 0], [0, 0, 0.5], [1, 1, 1]]):
        turn = translation(CENTER_M)
        turn[:3, :3] = Rotation.from_rotvec(vector).as_matrix()
        poses[k] = truth @ turn @ translation(-CENTER_M)
    rows = [
        oracle_estimator(replace(QUICK, chunk=chunk)).score(frame_of(truth)[0], poses)
        for chunk in (2, 5)
    ]
    assert rows[0].shape == (5,) and rows[0].dtype == np.float32 and rows[0].argmax() == 2
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_warm_up_works_before_any_frame():
    estimator = oracle_estimator(
        EstimatorSettings(schedule=(RegisterStage(1, 2),), symmetries=TURNS)
    )
    estimator.warm_up(CAMERA)
    truth = pose_of(3)
    close_to_truth(estimator.track(frame_of(truth)[0], truth), truth)


def test_two_estimators_share_networks():
    """One pair of networks may serve several objects."""
    networks = oracle_networks()
    centers = (CENTER_M, np.zeros(3))
    pair = [PoseEstimator(ellipsoid(center), networks, QUICK) for center in centers]
    for seed in (3, 4):
        for estimator, center in zip(pair, centers, strict=True):
            truth = pose_of(seed, center)
            frame = frame_of(truth, center_m=center)[0]
            close_to_truth(estimator.track(frame, truth), truth, center)


def test_scorer_stub_is_not_asked_while_tracking():
    networks = oracle_networks(scorer=OracleScorer())
    truth = pose_of(3)
    PoseEstimator(ellipsoid(), networks, QUICK).track(frame_of(truth)[0], truth)
    assert networks.refiner.calls == [1, 1] and not networks.scorer.calls
