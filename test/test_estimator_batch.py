"""Objects tracked together: as one by one, and where the closed-form frames say they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle_rig import CAMERA, OracleRefiner, ellipsoid, errors, frame_of, oracle_networks, pose_of
from scene_rig import MESHES, STARTS, THINGS, TRUTH, scene_of

from foundationpose_trt.datatypes import Frame, Outcome, PoseEstimate, TrackingState
from foundationpose_trt.pose.backends import BackendChoice, open_engines
from foundationpose_trt.pose.estimator import EstimatorSettings, PoseEstimator, RegisterStage
from foundationpose_trt.pose.object_group import ObjectGroup
from foundationpose_trt.pose.observation import Uploader
from foundationpose_trt.pose.symmetry import symmetry_rotations
from foundationpose_trt.pose.track_pass import TrackPass
from foundationpose_trt.pose.tracker import TrackerSettings
from foundationpose_trt.pose.weights import WEIGHTS_FOLDER, PoseNetworks, load_networks
from foundationpose_trt.synthesis.objects import make_object

LIMIT_DEG, LIMIT_MM = 1.0, 1.6  # a pixel is 1 to 2 mm wide here
TURNS = symmetry_rotations(['z_full'])  # leave 20 of the 252 start rotations


def settings_of(*iterations: int, **shared: object) -> list[EstimatorSettings]:
    return [EstimatorSettings(track_iterations=count, **shared) for count in iterations]


def made(
    settings: Sequence[EstimatorSettings] | EstimatorSettings | None = None,
    networks: PoseNetworks | None = None,
    meshes: Sequence = MESHES,
) -> PoseEstimator:
    return PoseEstimator(meshes, networks or oracle_networks(), settings)


@pytest.fixture(scope='module')
def view() -> tuple[Frame, list[np.ndarray]]:
    return scene_of(THINGS, TRUTH)


def alike(actual: PoseEstimate, expected: PoseEstimate, atol: float) -> None:
    assert actual.outcome is expected.outcome is Outcome.OK
    np.testing.assert_allclose(
        actual.camera_from_object, expected.camera_from_object, rtol=0, atol=atol
    )


# --- against the truth and against estimators of one object -----------------------------------
@pytest.mark.parametrize('chunk', [0, 2, 1])
def test_every_object_is_tracked_to_its_true_pose(view, chunk):
    networks = oracle_networks()
    estimator = made(settings_of(3, 3, 3, chunk=chunk), networks)
    estimates = estimator.track_all(view[0], dict(enumerate(STARTS)))
    assert list(estimates) == [0, 1, 2]
    for index, thing in enumerate(THINGS):
        assert estimates[index].outcome is Outcome.OK
        pose, center_m = estimates[index].camera_from_object, np.array(thing.center_m)
        before = errors(STARTS[index], TRUTH[index], center_m)
        after = errors(pose, TRUTH[index], center_m)
        assert before[0] > 8 and before[1] > 10
        assert after[0] < LIMIT_DEG and after[1] < LIMIT_MM
        quality = estimates[index].quality
        assert quality.agreement > 0.9 and quality.visible > 0.7
    assert networks.refiner.calls == [3] * 3 and not networks.scorer.calls


def test_together_is_as_one_by_one_and_as_alone(view):
    """Also where the iterations differ: an object that has had its own is left out."""
    networks = oracle_networks()
    settings = settings_of(1, 3, 2)
    together = made(settings, networks).track_all(view[0], dict(enumerate(STARTS)))
    assert networks.refiner.calls == [3, 2, 1]
    one_by_one = made(settings)
    for index, (mesh, start) in enumerate(zip(MESHES, STARTS, strict=True)):
        alone = made(settings[index], meshes=mesh).track(view[0], start)
        for other in (one_by_one.track(view[0], start, index), alone):
            np.testing.assert_array_equal(
                together[index].camera_from_object, other.camera_from_object
            )
            assert together[index].quality == other.quality


@pytest.mark.skipif(
    not (WEIGHTS_FOLDER / 'small' / 'manifest.json').exists(),
    reason='the weight set `small` is not in this checkout',
)
def test_the_shipped_networks_see_no_difference_either(view):
    """Textured meshes of different size; the frame shows something else, which does not matter."""
    networks = load_networks('small')
    meshes = [make_object(seed) for seed in (1_000_003, 1_000_004, 1_000_005)]
    assert len({mesh.diameter_m for mesh in meshes}) == len({len(m.faces) for m in meshes}) == 3
    starts = []
    for thing, start, mesh in zip(THINGS, STARTS, meshes, strict=True):
        pose = start.copy()
        pose[:3, 3] += pose[:3, :3] @ (np.array(thing.center_m) - mesh.center_m)
        starts.append(pose)
    settings = settings_of(2, 1, 3)
    together = made(settings, networks, meshes).track_all(view[0], dict(enumerate(starts)))
    for index, (mesh, start) in enumerate(zip(meshes, starts, strict=True)):
        alone = made(settings[index], networks, mesh).track(view[0], start)
        alike(together[index], alone, 2e-5)
        assert np.abs(alone.camera_from_object - start).max() > 1e-3, 'nothing moved'


def test_neighbourhoods_that_overlap_change_nothing():
    """Two diameters wide each; the crops themselves, 1.2 wide, do not reach into each other."""
    things = (THINGS[0], replace(THINGS[1], place_m=(-0.003, 0.045, 0.50)))
    radii_px = [0.05 * thing.scale * CAMERA.fx / thing.place_m[2] for thing in things]
    left, right = (CAMERA.fx * thing.place_m[0] / thing.place_m[2] for thing in things)
    assert 1.3 * sum(radii_px) < right - left < 1.7 * sum(radii_px)
    poses = [thing.pose(seed) for seed, thing in enumerate(things)]
    frame, _ = scene_of(things, poses)
    meshes = [thing.mesh() for thing in things]
    starts = [
        thing.moved(pose, (4.0, 5.0, -3.0), (0.004, -0.005, 0.01))
        for thing, pose in zip(things, poses, strict=True)
    ]
    together = made(meshes=meshes).track_all(frame, dict(enumerate(starts)))
    for index in range(2):
        alike(together[index], made(meshes=meshes[index]).track(frame, starts[index]), 1e-6)
        center_m = np.array(things[index].center_m)
        turn_deg, shift_mm = errors(together[index].camera_from_object, poses[index], center_m)
        assert turn_deg < LIMIT_DEG and shift_mm < LIMIT_MM


def test_any_selection_in_any_order(view):
    estimator = made(settings_of(1, 3, 2))
    whole = estimator.track_all(view[0], dict(enumerate(STARTS)))
    for chosen in ((2,), (1, 0), (2, 1, 0), (0, 2)):
        part = estimator.track_all(view[0], {index: STARTS[index] for index in chosen})
        assert tuple(part) == chosen
        for index in chosen:
            np.testing.assert_array_equal(
                part[index].camera_from_object, whole[index].camera_from_object
            )


def test_nothing_to_track_costs_nothing(view):
    networks = oracle_networks()
    assert made(None, networks).track_all(view[0], {}) == {}
    assert not networks.refiner.calls


# --- one way there, one way back -------------------------------------------------------------
@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the methods that bring something there or back, in the order of their calls."""
    made_calls: list[str] = []

    def counted(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def call(self: object, *args: object) -> object:
            made_calls.append(name)
            return original(self, *args)

        monkeypatch.setattr(kind, name, call)

    for name in ('begin', 'write', 'move', 'end'):
        counted(TrackPass, name)
    for name in ('upload', 'download'):
        counted(Uploader, name)
    yield made_calls


def test_a_batch_goes_there_once_and_comes_back_once(view, transfers):
    made(settings_of(2, 3, 1, chunk=2)).track_all(view[0], dict(enumerate(STARTS)))
    assert transfers == ['begin', *['write', 'move'] * 3, 'end']


# --- failures of one are not the others' -----------------------------------------------------
def test_an_object_behind_the_camera_is_left_out(view):
    networks = oracle_networks()
    behind = STARTS[1].copy()
    behind[2, 3] -= 2.0
    estimates = made(None, networks).track_all(view[0], {0: STARTS[0], 1: behind, 2: STARTS[2]})
    assert [estimates[i].outcome for i in range(3)] == [
        Outcome.OK, Outcome.OUT_OF_RANGE, Outcome.OK,
    ]  # fmt: skip
    assert networks.refiner.calls == [2, 2]


class SpoiltRow(OracleRefiner):
    """Answers NaN for the second crop."""

    def __call__(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        update = super().__call__(rendered, observed)
        update['trans'][1] = float('nan')
        return update


def test_numbers_that_are_not_finite_stay_with_their_object(view):
    networks = oracle_networks(refiner=SpoiltRow())
    estimates = made(None, networks).track_all(view[0], dict(enumerate(STARTS)))
    assert [estimates[i].outcome for i in range(3)] == [
        Outcome.OK, Outcome.NOT_FINITE, Outcome.OK,
    ]  # fmt: skip


@pytest.mark.filterwarnings('ignore:overflow encountered in cast')
@pytest.mark.parametrize('place', [(0, 3), (1, 1)])
def test_numbers_too_large_for_a_kernel_stay_with_their_object(view, place):
    far = STARTS[1].copy()
    far[place] = 1e39  # beyond float32
    estimates = made().track_all(view[0], {0: STARTS[0], 1: far, 2: STARTS[2]})
    assert [estimates[i].outcome for i in range(3)] == [
        Outcome.OK, Outcome.NOT_FINITE, Outcome.OK,
    ]  # fmt: skip


def test_depth_ranges_are_each_objects_own(view):
    settings = [EstimatorSettings(max_depth_m=far) for far in (10.0, 0.3, 10.0)]
    estimates = made(settings).track_all(view[0], dict(enumerate(STARTS)))
    assert [estimates[i].outcome for i in range(3)] == [
        Outcome.OK, Outcome.OUT_OF_RANGE, Outcome.OK,
    ]  # fmt: skip


def test_a_pose_that_is_not_finite_is_refused_with_the_objects_name(view):
    broken = STARTS[2].copy()
    broken[1, 3] = np.nan
    with pytest.raises(ValueError, match=r'not finite, object 2 \(ellipsoid 1.7\)'):
        made().track_all(view[0], {0: STARTS[0], 2: broken})


@pytest.mark.parametrize('index', [-1, 3])
def test_an_unknown_object_is_refused(view, index):
    estimator, (frame, masks) = made(), view
    calls = (
        lambda: estimator.register(frame, masks[0], index),
        lambda: estimator.track(frame, STARTS[0], index),
        lambda: estimator.track_all(frame, {0: STARTS[0], index: STARTS[0]}),
        lambda: estimator.score(frame, np.stack(STARTS), index),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f'object index is {index}, must be between 0 and 2'):
            call()


# --- one object of several -------------------------------------------------------------------
def test_each_object_registers_by_its_own_mesh_mask_and_symmetry(view):
    frame, masks = view
    stages = (RegisterStage(0, 8), RegisterStage(3, 2))
    few = symmetry_rotations(['z_full', 'x_180'])
    networks = oracle_networks()
    settings = [
        EstimatorSettings(schedule=stages, symmetries=turns) for turns in (TURNS, few, TURNS)
    ]
    estimator = made(settings, networks)
    for index in (2, 1):
        networks.scorer.ranked.clear()
        actual = estimator.register(frame, masks[index], index)
        alone = made(settings[index], meshes=MESHES[index]).register(frame, masks[index])
        assert networks.scorer.ranked[0] == (1, {2: 20, 1: 10}[index], 1)
        assert actual.outcome is Outcome.OK
        np.testing.assert_array_equal(
            actual.ranked_camera_from_object, alone.ranked_camera_from_object
        )
        np.testing.assert_array_equal(actual.ranked_scores, alone.ranked_scores)
        assert actual.quality == alone.quality
        middle = np.append(THINGS[index].center_m, 1.0)
        off_m = (actual.camera_from_object - TRUTH[index]) @ middle
        assert np.linalg.norm(off_m) < 0.04 * THINGS[index].scale


def test_each_object_is_scored_by_its_own_mesh(view):
    poses = np.stack([STARTS[2], TRUTH[2], STARTS[2]])
    scores = made().score(view[0], poses, 2)
    np.testing.assert_array_equal(scores, made(meshes=MESHES[2]).score(view[0], poses))
    assert scores.argmax() == 1


def test_warm_up_tracks_all_objects_at_once():
    networks = oracle_networks()
    estimator = made(EstimatorSettings(schedule=(RegisterStage(1, 2),)), networks)
    estimator.warm_up(CAMERA)
    assert networks.refiner.calls == [16, 3, 3]  # a chunk of hypotheses, then the objects


def test_more_objects_than_hypotheses_are_still_one_call(view):
    networks = oracle_networks()
    few = EstimatorSettings(symmetries=symmetry_rotations(['z_full', 'x_180']))  # leave 10
    estimator = made(few, networks, MESHES * 4)
    estimator.track_all(view[0], dict(enumerate(STARTS * 4)))
    assert networks.refiner.calls == [12, 12]


def test_meshes_and_the_first_mesh_are_public():
    assert made().meshes == MESHES and made().mesh is MESHES[0]
    alone = made(meshes=MESHES[1])
    assert alone.meshes == (MESHES[1],) and alone.mesh is MESHES[1]


# --- the whole: trackers on a real estimator -------------------------------------------------
def test_a_group_follows_three_objects_that_move_apart():
    networks = oracle_networks()
    group = ObjectGroup(made(None, networks), [TrackerSettings()] * 3)
    for index, start in enumerate(STARTS):
        group.start_from(index, start)
    poses = TRUTH
    for _ in range(4):
        frame, _ = scene_of(THINGS, poses)
        steps = group.track(frame)
        for index, (thing, pose) in enumerate(zip(THINGS, poses, strict=True)):
            estimate = steps[index].estimate
            assert estimate.outcome is Outcome.OK and steps[index].stage == 'track'
            center_m = np.array(thing.center_m)
            turn_deg, shift_mm = errors(estimate.camera_from_object, pose, center_m)
            assert turn_deg < LIMIT_DEG and shift_mm < LIMIT_MM
        poses = [
            thing.moved(pose, (4.0, 2.0, -3.0), (0.01 * (index - 1), -0.003, 0.006))
            for index, (thing, pose) in enumerate(zip(THINGS, poses, strict=True))
        ]
    assert networks.refiner.calls == [3, 3] * 4


def test_a_group_registers_what_it_lost_while_it_tracks_the_rest(view):
    frame, masks = view
    networks = oracle_networks()
    stages = (RegisterStage(0, 12), RegisterStage(4, 2))
    settings = EstimatorSettings(schedule=stages)
    group = ObjectGroup(made(settings, networks), [TrackerSettings(lost_after=1)] * 3)
    for index in range(3):
        group.start_from(index, TRUTH[index])
    hidden = scene_of(THINGS[::2], TRUTH[::2])[0]  # all but the second
    steps = group.track(hidden)
    assert [step.estimate.outcome for step in steps.values()].count(Outcome.OK) == 2
    assert group.states[1] is TrackingState.LOST and group.seeking(1)
    assert group.reasons[1] == steps[1].estimate.outcome.value
    step = group.register(1, frame, masks[1])
    assert step.state is TrackingState.TRACKING and not group.any_seeking
    networks.refiner.calls.clear()
    estimate = group.track(frame)[1].estimate
    assert networks.refiner.calls == [3, 3]
    turn_deg, shift_mm = errors(estimate.camera_from_object, TRUTH[1], THINGS[1].center_m)
    assert turn_deg < LIMIT_DEG and shift_mm < LIMIT_MM


def test_engines_that_run_few_crops_at_once_get_no_more():
    networks = oracle_networks()
    engines = replace(open_engines(networks, BackendChoice('torch')), largest=8)
    settings = EstimatorSettings(schedule=(RegisterStage(1, 20),), symmetries=TURNS)
    PoseEstimator(ellipsoid(), networks, settings, engines).register(*frame_of(pose_of(3)))
    assert max(networks.refiner.calls) == 8
    chunk = replace(settings, chunk=12)
    message = r'12 crops at once .*register_chunk, is 12.* engines run at most 8; .*--batches'
    with pytest.raises(ValueError, match=message):
        PoseEstimator(ellipsoid(), networks, chunk, engines)
    with pytest.raises(ValueError, match='objects are 9'):
        PoseEstimator([ellipsoid()] * 9, networks, settings, engines)
