"""Training on rendered scenes: what a batch shows, whole steps, held-out objects, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foundationpose_trt.pose.crops import REFINER_CROP, SCORER_CROP
from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.pose.weights import load_state
from foundationpose_trt.synthesis.objects import HELD_OUT_FROM_SEED, is_held_out
from foundationpose_trt.tools import cli, synthetic_trials
from foundationpose_trt.tools import train as train_command
from foundationpose_trt.training import world as world_module
from foundationpose_trt.training.loop import Trainer, TrainSettings
from foundationpose_trt.training.perturbation import perturb
from foundationpose_trt.training.refiner import (
    RefinerStep,
    refine,
    seen_weight,
    train_refiner,
    validate_refiner,
)
from foundationpose_trt.training.scenes import CropWriter, SceneBatch, SceneSampler, TrainingWorld
from foundationpose_trt.training.scorer import ScorerStep, pose_errors, train_scorer
from foundationpose_trt.training.world import make_world

WIDTH = 0.0625
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def world() -> TrainingWorld:
    return make_world(range(5), 2, CPU, progress=False)


def sampled(world: TrainingWorld, count: int, difficulty: float, seed: int = 0) -> SceneBatch:
    return SceneSampler(world, count, torch.Generator().manual_seed(seed)).sample(difficulty)


def test_a_batch_has_the_documented_shapes(world):
    scenes = sampled(world, 6, 1.0)
    assert scenes.camera_from_centered.shape == (6, 4, 4)
    rgb, depth = scenes.images.rgb, scenes.images.depth_m
    assert rgb.shape == (*depth.shape, 3) and rgb.min() >= 0 and rgb.max() <= 1
    assert depth.isfinite().all() and depth.min() >= 0
    assert (scenes.mesh >= 0).all() and (scenes.mesh < world.objects).all()
    assert (scenes.visible >= 0).all() and (scenes.visible <= 1.1).all()
    rotation = scenes.camera_from_centered[:, :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(1, 2), torch.eye(3).repeat(6, 1, 1), atol=1e-5, rtol=0
    )


def test_batches_are_repeatable_and_differ(world):
    first, again, other = (sampled(world, 3, 1.0, seed) for seed in (1, 1, 2))
    assert torch.equal(first.images.rgb, again.images.rgb)
    assert torch.equal(first.images.depth_m, again.images.depth_m)
    assert not torch.equal(first.images.rgb, other.images.rgb)


def shown(crop: torch.Tensor) -> torch.Tensor:
    return (crop[:, 3:] != 0).any(1)


def test_at_the_true_pose_both_halves_show_the_same_surface(world):
    """Clean scenes: where both have depth they agree but for the 1.5 % stretch of the object."""
    scenes = sampled(world, 24, 0.0)
    rendered, observed = CropWriter(world, 24, REFINER_CROP).write(
        scenes, scenes.camera_from_centered
    )
    both = shown(rendered) & shown(observed)
    seen = both.sum((1, 2)) / shown(rendered).sum((1, 2)).clamp_min(1)
    clear = scenes.visible > 0.9
    assert clear.sum() > 8 and seen[clear].median() > 0.8
    gap = (rendered[:, 3:] - observed[:, 3:]).norm(dim=1)
    median = torch.stack([gap[i][both[i]].median() for i in range(24) if clear[i]])
    assert median.max() < 0.06  # mesh radii
    wrong = scenes.camera_from_centered.clone()
    wrong[:, :3, :3] = wrong[:, :3, :3].roll(1, 0)
    turned = CropWriter(world, 24, REFINER_CROP).write(scenes, wrong)[0]
    both = shown(turned) & shown(observed)
    gap = (turned[:, 3:] - observed[:, 3:]).norm(dim=1)
    other = torch.stack([gap[i][both[i]].median() for i in range(24) if clear[i]])
    assert other.median() > 2 * median.median()


def test_several_hypotheses_per_scene_look_at_their_own_scene(world):
    """N * L crops in fewer than the writer's rows equal those written scene by scene."""
    scenes = sampled(world, 3, 0.3)
    radius = world.diameters[scenes.mesh.long()] / 2
    goal = scenes.camera_from_centered.repeat_interleave(4, 0)
    poses = perturb(goal, radius.repeat_interleave(4), torch.Generator().manual_seed(0))
    rendered, observed = CropWriter(world, 20, SCORER_CROP).write(scenes, poses)
    assert rendered.shape == observed.shape == (12, 6, 160, 160)
    for k in range(4):
        one = CropWriter(world, 3, SCORER_CROP).write(scenes, poses[k::4].contiguous())
        torch.testing.assert_close(rendered[k::4], one[0])
        torch.testing.assert_close(observed[k::4], one[1])


def test_pose_errors_are_add_over_the_diameter(world):
    scenes = sampled(world, 3, 0.0)
    radius = world.diameters[scenes.mesh.long()] / 2
    goal = scenes.camera_from_centered.repeat_interleave(5, 0)
    poses = perturb(goal, radius.repeat_interleave(5), torch.Generator().manual_seed(0))
    poses[::5] = scenes.camera_from_centered
    actual = pose_errors(world, scenes, poses)
    assert actual.shape == (3, 5)
    for n in range(3):
        points = world.points[scenes.mesh[n].long()].double().numpy()
        assert np.linalg.norm(points, axis=1).max() <= 1.2 * radius[n]
        truth = scenes.camera_from_centered[n].double().numpy()
        for k in range(5):
            pose = poses[5 * n + k].double().numpy()
            moved = points @ (pose - truth)[:3, :3].T + (pose - truth)[:3, 3]
            add = np.linalg.norm(moved, axis=1).mean() / (2 * radius[n].item())
            assert actual[n, k].item() == pytest.approx(add, abs=1e-6)


def settings_of(**changes: object) -> TrainSettings:
    merged = {'width': WIDTH, 'batch': 6, 'compile': False, 'seconds': 0.0, **changes}
    return TrainSettings(**merged)


def test_refiner_steps_reuse_a_scene_for_its_own_poses(world, tmp_path):
    """Four rollouts of one batch of scenes; later starts are the network's own results."""
    trainer = Trainer(RefineNet(WIDTH), settings_of(), tmp_path)
    step = RefinerStep(trainer, world, trainer.network)
    batches, starts, losses = [], [], []
    for _ in range(6):
        losses.append(step(0.5).item())
        batches.append(step._scenes)
        starts.append(step._poses.clone())
    assert all(batch is batches[0] for batch in batches[:4]) and batches[4] is not batches[0]
    assert batches[5] is batches[4]
    assert not torch.equal(starts[0], starts[1])
    assert np.isfinite(losses).all() and trainer.step_count == 6
    for batch, poses in zip(batches, starts, strict=True):
        radius = world.diameters[batch.mesh.long()] / 2
        shift = (poses - batch.camera_from_centered)[:, :3, 3].norm(dim=1) / radius
        assert shift.max() < 1.7  # runaways start again


def test_a_young_network_sees_easy_scenes_and_a_resumed_one_does_not(world, tmp_path):
    trainer = Trainer(RefineNet(WIDTH), settings_of(), tmp_path)
    step = RefinerStep(trainer, world, trainer.network)
    for progress, limit in ((0.0, 0.2), (0.06, 0.6), (0.12, 1.0), (0.9, 1.0)):
        drawn = [step._difficulty(progress) for _ in range(300)]
        assert min(drawn) == pytest.approx(0.2, abs=0.02)
        assert limit - 0.02 < max(drawn) <= limit
    trainer.load(trainer.save('refiner'))
    resumed = RefinerStep(trainer, world, trainer.network)
    assert max(resumed._difficulty(0.0) for _ in range(300)) > 0.98


def test_what_is_hardly_seen_counts_less():
    weight = seen_weight(torch.tensor([0.0, 0.14, 0.3, 0.6, 0.9, 1.0]))
    np.testing.assert_allclose(weight, [0, 0, 0.5, 1, 1, 1])


def test_some_targets_have_no_print(world):
    """15 % of the targets get one of the textures whose colours vary least."""
    sampler = SceneSampler(world, 64, torch.Generator().manual_seed(0))
    texture = torch.cat([sampler._choose_objects(1.0)[1][:, 0] for _ in range(30)])
    share = torch.isin(texture, world.plain_textures).float().mean().item()
    one_of_five = 0.2  # is plain without any doing
    assert share == pytest.approx(0.15 + 0.85 * one_of_five, abs=0.04)


@pytest.mark.parametrize('batch', [6, 20, 34])
def test_scorer_steps_take_batches_of_any_size(world, tmp_path, batch):
    trainer = Trainer(ScoreNet(WIDTH), settings_of(batch=batch), tmp_path)
    step = ScorerStep(trainer, world, trainer.network.extract, RefineNet(WIDTH).eval())
    losses = [step(0.1).item() for _ in range(2)]
    assert np.isfinite(losses).all() and min(losses) > 0


def test_refining_moves_every_hypothesis_of_a_scene(world):
    """A network that always answers the same shifts every pose by it, in its own radius."""
    scenes = sampled(world, 2, 0.0)
    radius = world.diameters[scenes.mesh.long()] / 2

    def network(rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        shift = torch.tensor([0.1, 0.0, 0.2]).repeat(len(rendered), 1)
        return {'trans': shift, 'rot': torch.zeros_like(shift)}

    start = scenes.camera_from_centered.repeat_interleave(3, 0)
    moved = refine(network, CropWriter(world, 6, REFINER_CROP), scenes, start, 2)
    expected = start[:, :3, 3] + radius.repeat_interleave(3)[:, None] * torch.tensor([0.2, 0, 0.4])
    torch.testing.assert_close(moved[:, :3, 3], expected)


def test_whole_stretches_leave_loadable_weights(world, tmp_path):
    trainer = train_refiner(world, settings_of(), tmp_path, None)
    assert trainer.step_count == 2
    report = validate_refiner(trainer.average.network, world, 1, 6)
    assert len(report) == 15 and 0 < report['rotation_deg_median_0'] < 40
    refiner = RefineNet(WIDTH)
    refiner.load_state_dict(trainer.average.network.state_dict())
    scorer = train_scorer(world, settings_of(), tmp_path, None, refiner)
    again = train_scorer(
        world, settings_of(), tmp_path / 'on', tmp_path / 'scorer.checkpoint.pt', refiner
    )
    assert (scorer.step_count, again.step_count) == (2, 4)
    load_state(ScoreNet(WIDTH), again.average.network.state_dict(), tmp_path)


def test_held_out_objects_are_never_trained_on():
    assert is_held_out(HELD_OUT_FROM_SEED) and not is_held_out(HELD_OUT_FROM_SEED - 1)
    validation = range(HELD_OUT_FROM_SEED, HELD_OUT_FROM_SEED + train_command.HELD_OUT_OBJECTS)
    firsts = [
        synthetic_trials.FIRST_VIEW_SEED,
        synthetic_trials.FIRST_TRACK_SEED,
        synthetic_trials.FIRST_CLUTTER_SEED,
    ]
    # judged with neither what was trained on nor what training was watched with
    assert all(is_held_out(seed) and seed >= validation.stop for seed in firsts)


COMMON = ['--backgrounds', '1', '--seconds', '0', '--width', str(WIDTH), '--no-compile']


def rounding() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark


@pytest.fixture
def medium():
    """No command's own choice."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('medium')
    yield
    torch.set_float32_matmul_precision(before)


def test_the_command_trains_validates_and_exports(tmp_path, medium, monkeypatch, capsys):
    """And leaves torch's products to others as exact as they were."""
    seeds = []

    def remembered(object_seeds: range, backgrounds: int, device: torch.device) -> TrainingWorld:
        seeds.append(object_seeds)
        assert rounding() == ('high', True)
        return world_module.make_world(object_seeds, backgrounds, device, progress=False)

    monkeypatch.setattr(train_command, 'make_world', remembered)
    out, report = tmp_path / 'set', tmp_path / 'report.json'
    arguments = ['train', 'refiner', '--out', str(out), '--objects', '3', '--batch', '4', *COMMON]
    arguments += ['--device', 'cpu', '--validation-batches', '1', '--json', str(report)]
    assert cli.main(arguments) == 0
    assert rounding() == ('medium', False)
    assert seeds == [range(3), range(HELD_OUT_FROM_SEED, HELD_OUT_FROM_SEED + 3)]
    entry = json.loads((out / 'manifest.json').read_text())['networks']['refiner']
    assert entry['width'] == WIDTH and entry['training']['steps'] == 2
    assert entry['metrics_held_out'] == json.loads(report.read_text())
    assert (out / entry['file']).exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['scorer'], 'training the scorer needs --refiner'),
        (['refiner', '--objects', '0'], '--objects is 0, must be 1'),
        (['refiner', '--objects', '2000000'], '--objects is 2000000, must be 1..1000000'),
        (['refiner', '--backgrounds', '0'], '--backgrounds is 0, must be positive'),
        (['refiner', '--resume', '/nowhere.pt'], '--resume /nowhere.pt: there is no such file'),
    ],
)
def test_bad_options_are_refused_before_any_object_is_made(
    tmp_path: Path, arguments, message, capsys
):
    assert cli.main(['train', *arguments, '--out', str(tmp_path)]) != 0
    assert message in capsys.readouterr().err
