"""replay and evaluate from the command line: structure, failures and figures, with networks that
know nothing, and with estimators whose answers are known.
"""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from foundationpose_trt.datatypes import Outcome, PoseEstimate, PoseQuality
from foundationpose_trt.geometry import transform
from foundationpose_trt.pose.estimator import EstimatorSettings, RegisterStage
from foundationpose_trt.pose.mesh import load_mesh
from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.pose.weights import save_network, write_manifest
from foundationpose_trt.scenes.bop import BopScene
from foundationpose_trt.scenes.metrics import NO_POSE, PoseErrors
from foundationpose_trt.tools import evaluate, replay, synthetic_trials
from foundationpose_trt.tools.cli import main
from foundationpose_trt.tools.estimator_options import EstimatorChoice
from foundationpose_trt.tools.report import higher_percentile
from foundationpose_trt.tools.synthetic_trials import TrackResult, ViewResult, with_errors

GOOD = PoseQuality(rendered=5000, agreeing=4500, in_front=0, behind=100)
FRAMES = 5


@pytest.fixture(scope='module')
def scene_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('replay') / 'scene'
    words = ['--frames', str(FRAMES), '--width', '160', '--height', '120', '--device', 'cpu']
    assert main(['make-scene', str(folder), *words]) == 0
    return folder


@pytest.fixture(scope='module')
def weights_dir(tmp_path_factory):
    """Untrained networks of the smallest kind, saved the way training saves them."""
    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    for kind, network in (('refiner', RefineNet(0.0625)), ('scorer', ScoreNet(0.0625))):
        save_network(network, folder / f'{kind}.safetensors')
        write_manifest(folder, kind, {'width': 0.0625})
    return folder


@pytest.fixture
def few_hypotheses(monkeypatch):
    """The cube's symmetries leave a handful of the 252 hypotheses: seconds instead of minutes."""
    turns = tuple(tuple(r.ravel()) for r in Rotation.create_group('O').as_matrix()[1:])
    settings = EstimatorSettings(schedule=(RegisterStage(1, 2),), symmetries=turns)
    monkeypatch.setattr(EstimatorChoice, 'settings', lambda self: settings)


class KnowingEstimator:
    """Answers with the truth moved by 2.5 mm, and fails where it is told to."""

    def __init__(self, scene: BopScene, failures: dict[int, Outcome]):
        self.mesh = load_mesh(scene.model_path(1), 0.001)
        self.calls: list[str] = []
        self._answers = []
        for frame_id in scene.frame_ids:
            pose = scene.camera_from_object(frame_id, 1)
            pose[:3, 3] += [0.0025, 0, 0]
            outcome = failures.get(frame_id, Outcome.OK)
            known = pose if outcome is Outcome.OK else None
            self._answers.append(PoseEstimate(outcome, known, quality=GOOD))

    def warm_up(self, intrinsics):
        self.calls.append('warm_up')

    def register(self, frame, mask):
        assert mask.any()
        self.calls.append('register')
        return self._answers.pop(0)

    def track(self, frame, camera_from_object):
        self.calls.append('track')
        return self._answers.pop(0)


def test_register_scores_every_frame_and_counts_failures(scene_dir):
    scene = BopScene.open(scene_dir)
    estimator = KnowingEstimator(scene, {2: Outcome.NO_DEPTH_IN_MASK})
    content = replay.replay_content(replay.replay_scene(scene, 1, estimator, 'register'), 0.18)
    assert estimator.calls == ['warm_up'] + ['register'] * FRAMES
    totals, frames = content['totals'], content['frames']
    assert totals['lost'] == totals['without_pose'] == 1 and totals['registrations'] == FRAMES
    # 2.5 mm scores (100.5 - 3) % in four of five frames
    assert totals['add_auc'] == pytest.approx(97.5 * 0.8)
    assert totals['recall_0_1d'] == pytest.approx(80)
    assert [f['add_mm'] for f in frames[:2]] == pytest.approx([2.5, 2.5])
    assert frames[0]['translation_mm'] == pytest.approx(2.5)
    assert frames[0]['rotation_deg'] == pytest.approx(0, abs=1e-9)
    assert frames[2]['pose'] is None and frames[2]['outcome'] == 'NO_DEPTH_IN_MASK'


def test_track_registers_once_then_tracks_and_comes_back_after_a_loss(scene_dir):
    scene = BopScene.open(scene_dir)
    steady = KnowingEstimator(scene, {})
    result = replay.replay_scene(scene, 1, steady, 'track')
    assert steady.calls == ['warm_up', 'register'] + ['track'] * (FRAMES - 1)
    assert result.losses == 0 and set(result.times.summary()) == {'read', 'register', 'track'}
    from_truth = KnowingEstimator(scene, {})
    replay.replay_scene(scene, 1, from_truth, 'track', gt_init=True)
    assert from_truth.calls == ['warm_up'] + ['track'] * FRAMES


def test_a_loss_is_counted_and_repaired_from_the_next_mask(scene_dir, monkeypatch):
    from foundationpose_trt.pose import tracker

    settings = tracker.TrackerSettings(lost_after=1)
    monkeypatch.setattr(tracker, 'TrackerSettings', lambda: settings)
    scene = BopScene.open(scene_dir)
    estimator = KnowingEstimator(scene, {2: Outcome.OUT_OF_RANGE})
    result = replay.replay_scene(scene, 1, estimator, 'track')
    assert estimator.calls[1:] == ['register', 'track', 'track', 'register', 'track']
    totals = replay.replay_content(result, 0.18)['totals']
    assert (totals['lost'], totals['registrations'], totals['without_pose']) == (1, 2, 1)


@pytest.mark.parametrize('mode', ['register', 'track'])
@pytest.mark.usefixtures('few_hypotheses')
def test_command_writes_json_video_and_plot(scene_dir, weights_dir, tmp_path, capsys, mode):
    files = {name: tmp_path / f'o.{name}' for name in ('json', 'mp4', 'png')}
    status = main(
        ['replay', str(scene_dir), '--object', '1', '--mode', mode, '--frames', '1:3']
        + ['--weights', str(weights_dir), '--device', 'cpu', '--json', str(files['json'])]
        + ['--video', str(files['mp4']), '--plot', str(files['png'])]
    )
    assert status == 0
    content = json.loads(files['json'].read_text())
    assert [frame['id'] for frame in content['frames']] == [1, 2]
    keys = {'id', 'outcome', 'pose', 'score', 'add_mm', 'add_s_mm', 'rotation_deg'}
    for frame in content['frames']:
        assert set(frame) == keys | {'translation_mm', 'latency_ms'}
        assert frame['outcome'] in Outcome.__members__
        if frame['pose'] is not None:
            rotation = np.reshape(frame['pose']['R'], (3, 3))
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
            truth = BopScene.open(scene_dir).camera_from_object(frame['id'], 1)
            moved = np.linalg.norm(np.array(frame['pose']['t']) - 1e3 * truth[:3, 3])
            assert frame['translation_mm'] == pytest.approx(moved)
    assert {'add_s_auc', 'add_auc', 'recall_0_1d', 'lost'} <= set(content['totals'])
    assert content['warm_up_ms'] > 0 and 'read' in content['latency_ms']
    assert cv2.VideoCapture(str(files['mp4'])).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert cv2.imread(str(files['png'])).std() > 5
    printed = capsys.readouterr().out
    assert 'ADD-S AUC' in printed and 'warm-up' in printed


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--object', '9', '--models', '{models}'], 'obj_000009.ply is missing'),
        (['--frames', '50:'], 'no frame id from 50'),
        (['--scale', '1'], 'metres'),
        (['--mode', 'register', '--gt-init'], '--gt-init is for --mode track'),
        (['--weights', 'huge'], 'weights "huge"'),
        (['--device', 'cuda:99'], 'cuda'),
        (['--device', 'meta'], '--device is meta, must be cpu, cuda or cuda:N'),
        (['--video', 'a.xyz'], "video a.xyz ends in '.xyz', must be .mp4"),
        (['--plot', 'a.xyz'], "a.xyz ends in '.xyz', must be one of"),
    ],
)
def test_bad_input_is_one_clear_line(scene_dir, weights_dir, capsys, words, message):
    words = [word.format(models=scene_dir / 'models') for word in words]
    base = ['replay', str(scene_dir), '--weights', str(weights_dir)]
    if 'cuda:99' in words and torch.cuda.is_available():
        pytest.skip('only where there is no CUDA')
    assert main([*base, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_a_scene_without_masks_says_what_to_do(scene_dir, tmp_path):
    scene = BopScene.open(scene_dir)
    bare = tmp_path / 's'
    bare.mkdir()
    for name in ('rgb', 'depth', 'models', 'scene_camera.json', 'scene_gt.json'):
        (bare / name).symlink_to(scene_dir / name)
    estimator = KnowingEstimator(scene, {})
    for mode in ('register', 'track'):
        with pytest.raises(ValueError, match='holds no mask of object 1.*--gt-init'):
            replay.replay_scene(BopScene.open(bare), 1, estimator, mode)
    (bare / 'scene_gt.json').unlink()
    with pytest.raises(ValueError, match='names object 1 in no frame'):
        replay.replay_scene(BopScene.open(bare), 1, estimator, 'register')


@pytest.mark.parametrize('text', ['5', 'a:b', '1:2:3', '-'])
def test_frame_range_is_checked(text):
    with pytest.raises(SystemExit):
        main(['replay', 'x', '--frames', text])
    assert replay.frame_range('3:') == (3, None) and replay.frame_range(':7') == (None, 7)


def view(add_mm: float, add_s_mm: float, symmetric: bool, visible: float = 1.0) -> ViewResult:
    errors = PoseErrors(add_mm / 1e3, add_s_mm / 1e3, 0.1, 0.001)
    return ViewResult(1, 'box', symmetric, 0.1, visible, Outcome.OK, errors)


def test_symmetric_objects_count_by_add_s():
    views = [view(50, 3, True), view(50, 3, False), view(4, 3, False, 0.4), view(50, 30, True)]
    totals = evaluate.view_totals(views)
    assert totals['recall_0_1d'] == 25 and totals['recall_s_0_1d'] == 75
    assert totals['recall_sym_0_1d'] == 50
    split = evaluate.evaluation_content(views, [])['register']['by_visibility']
    assert {name: part['frames'] for name, part in split.items()} == {
        '30-50 % visible': 1, '90-100 % visible': 3,
    }  # fmt: skip


def test_lost_tracks_are_counted_by_motion():
    fine = PoseErrors(0.002, 0.001, 0.01, 0.001)

    def track(errors, motion):
        outcomes = [Outcome.OK] * len(errors)
        return TrackResult(1, 'box', False, 0.1, motion, [1.0] * 10, outcomes, errors, 1)

    tracks = [track([fine] * 10, 'a'), track([fine] * 4 + [NO_POSE] * 6, 'b')]
    content = evaluate.evaluation_content([], tracks)['track']
    assert content['totals']['tracks_lost'] == 1 and content['totals']['lost_percent'] == 50
    assert content['by_motion']['a']['tracks_lost'] == 0
    assert content['totals']['add_s_auc'] == pytest.approx(99.5 * 14 / 20)
    assert evaluate.plot_evaluation([], tracks, 'x').axes[1].get_xlabel() == 'frame'


def test_mask_errors_stay_within_reach():
    mask = np.zeros((80, 100), bool)
    mask[30:50, 40:70] = True
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(with_errors(mask, rng, 0), mask)
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))) > 0
    core = cv2.erode(mask.astype(np.uint8), np.ones((13, 13))) > 0
    changed = [with_errors(mask, rng, 3) for _ in range(20)]
    assert all((m <= grown).all() and (core <= m).all() for m in changed)
    assert len({m.tobytes() for m in changed}) > 10


@pytest.mark.usefixtures('few_hypotheses')
def test_evaluate_command_runs_whole(weights_dir, scene_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        synthetic_trials, 'SETTINGS',
        synthetic_trials.SceneSettings(width=160, height=120, focal_px=150.0, texture_px=64),
    )  # fmt: skip
    monkeypatch.setattr(synthetic_trials, 'MIN_MASK_PX', 30)
    words = ['--objects', '1', '--frames-per-object', '1', '--tracks', '1', '--track-length', '10']
    files = ['--json', str(tmp_path / 'e.json'), '--plot', str(tmp_path / 'e.png')]
    choice = ['--weights', str(weights_dir), '--device', 'cpu', '--workers', '1', '--gt-init']
    words += ['--real', str(scene_dir)]
    assert main(['evaluate', *words, *files, *choice]) == 0
    content = json.loads((tmp_path / 'e.json').read_text())
    assert content['register']['totals']['frames'] == 1
    assert content['track']['totals']['frames'] == 10
    assert content['real'][str(scene_dir)]['track 1']['frames'] == FRAMES
    assert len(content['track']['tracks'][0]['errors']) == 10
    seeds = {content['register']['frames'][0]['seed'], content['track']['tracks'][0]['seed']}
    assert min(seeds) >= 1_000_000
    assert (tmp_path / 'e.png').stat().st_size > 5000 and 'ADD(-S)' in capsys.readouterr().out
    assert main(['evaluate', '--objects', '0', '--tracks', '0', *choice]) == 2


def test_poses_in_json_are_row_major_millimetres():
    rotation = Rotation.from_euler('z', 30, degrees=True).as_matrix()
    estimate = PoseEstimate(Outcome.OK, transform(rotation, np.array([0.1, 0.2, 0.3])))
    record = replay.FrameRecord(3, 'track', estimate, 1.5, None)
    content = replay._frame_content(record)
    assert content['pose']['R'][1] == pytest.approx(-0.5)
    np.testing.assert_allclose(content['pose']['t'], [100, 200, 300])
    assert content['add_mm'] is None and content['score'] is None


@pytest.mark.parametrize('number', [1, 2, 7, 10, 11])
def test_percentiles_between_two_values_are_the_higher(number):
    values = np.random.default_rng(number).normal(size=(number, 5))
    values[number // 2, 1:] = np.inf
    name = 'method' if np.lib.NumpyVersion(np.__version__) >= '1.22.0' else 'interpolation'
    higher: dict[str, Any] = {name: 'higher'}
    for share in (0, 50, 90, 100):
        expected = np.percentile(values, share, axis=0, **higher)
        np.testing.assert_array_equal(higher_percentile(values, share), expected)
