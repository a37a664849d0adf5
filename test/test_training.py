"""Training: losses and start errors in closed form, and what a stretch of training must keep."""

from __future__ import annotations

import math
from pathlib import Path

import network_rig
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation

from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.training.loop import Trainer, TrainSettings, WeightAverage, run_stretch
from foundationpose_trt.training.perturbation import perturb, spread
from foundationpose_trt.training.refiner import refiner_loss
from foundationpose_trt.training.scorer import ranking_loss

WIDTH = 0.0625


def test_refiner_loss_in_closed_form():
    """4 * |trans error|^2, held at 4 where the start is far off, + |tanh(rot) - target|^2."""
    rng = np.random.default_rng(0)
    trans, rot, goal_trans, goal_rot = rng.normal(0, 1, (4, 6, 3))
    trans[2] += 50.0  # far off
    weight = np.array([1.0, 0, 1, 1, 0, 1])
    expected = 0.0
    for i in range(6):
        squared = min(4.0, float(((trans[i] - goal_trans[i]) ** 2).sum()))
        expected += weight[i] * (4 * squared + ((np.tanh(rot[i]) - goal_rot[i]) ** 2).sum()) / 4
    tensors = [torch.from_numpy(a) for a in (trans, rot, goal_trans, goal_rot, weight)]
    loss = refiner_loss(
        {'trans': tensors[0], 'rot': tensors[1]},
        {'trans': tensors[2], 'rot': tensors[3]},
        tensors[4],
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_refiner_loss_without_a_visible_object_is_zero():
    update = {key: torch.ones(3, 3, requires_grad=True) for key in ('trans', 'rot')}
    target = {key: torch.zeros(3, 3) for key in ('trans', 'rot')}
    assert refiner_loss(update, target, torch.zeros(3)).item() == 0.0


def ranknet(logits: np.ndarray, errors: np.ndarray) -> float:
    """One scene: log(1 + exp(-(s_i - s_j))) of every pair where j is worse, by its gap."""
    total = weights = 0.0
    for i in range(len(logits)):
        for j in range(len(logits)):
            gap = min(max(errors[j] - errors[i], 0.0), 0.1) / 0.1
            total += gap * math.log1p(math.exp(-(logits[i] - logits[j])))
            weights += gap
    return total / max(weights, 1e-3)


def test_ranking_loss_in_closed_form():
    rng = np.random.default_rng(1)
    logits, errors = rng.normal(size=(3, 7)), rng.uniform(0, 0.3, (3, 7))
    weight = np.array([1.0, 0.0, 1.0])
    expected = (ranknet(logits[0], errors[0]) + ranknet(logits[2], errors[2])) / 2
    loss = ranking_loss(*(torch.from_numpy(a) for a in (logits, errors, weight)))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_ranking_loss_prefers_the_true_order_and_leaves_ties_alone():
    errors = torch.tensor([[0.0, 0.05, 0.2, 0.2]])
    right, wrong = torch.tensor([[3.0, 2, 0, 0]]), torch.tensor([[0.0, 0, 2, 3]])
    weight = torch.ones(1)
    assert ranking_loss(right, errors, weight) < 0.2 < 2 < ranking_loss(wrong, errors, weight)
    logits = torch.zeros(1, 4, requires_grad=True)
    ranking_loss(logits, errors, weight).backward()
    first, second, third, fourth = logits.grad[0].tolist()
    assert first < second < third and third == pytest.approx(fourth)
    tied = torch.randn(1, 4, requires_grad=True)
    ranking_loss(tied, torch.full((1, 4), 0.1), weight).backward()
    assert tied.grad.abs().max() == 0


def turns_and_shifts(start: torch.Tensor, poses: torch.Tensor, radius: torch.Tensor):
    """Angle in degrees between rotations, shift in radii."""
    a, b = start[:, :3, :3].double().numpy(), poses[:, :3, :3].double().numpy()
    angle = np.rad2deg(Rotation.from_matrix(b @ a.transpose(0, 2, 1)).magnitude())
    shift = (poses[:, :3, 3] - start[:, :3, 3]) / radius[:, None]
    return angle, shift.double().numpy()


def some_poses(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, random_state=0).as_matrix()
    poses[:, :3, 3] = np.random.default_rng(0).uniform(
        (-0.2, -0.2, 0.4), (0.2, 0.2, 2), (count, 3)
    )
    return torch.from_numpy(poses).float(), torch.linspace(0.02, 0.2, count)


def test_start_errors_of_the_refiner_have_the_documented_spread():
    """55 % up to 40 degrees and 0.4 radii, 25 % up to 15 and 0.2, 20 % up to 5 and 0.06."""
    poses, radius = some_poses(20000)
    moved = perturb(poses, radius, torch.Generator().manual_seed(0))
    angle, shift = turns_and_shifts(poses, moved, radius)
    assert angle.max() < 40.01 and angle.max() > 39
    assert (angle > 15).mean() == pytest.approx(0.55 * 25 / 40, abs=0.01)
    assert (angle < 5).mean() == pytest.approx(0.55 * 5 / 40 + 0.25 * 5 / 15 + 0.2, abs=0.01)
    sideways = np.abs(shift[:, :2])
    assert 0.39 < sideways.max() < 0.401
    assert (sideways[:, 0] > 0.2).mean() == pytest.approx(0.55 / 2, abs=0.01)
    # the median depth of a mask lies on the near side: half of the wide starts are pulled near
    assert -1.51 < shift[:, 2].min() < -1.4 and 0.59 < shift[:, 2].max() < 0.601
    assert shift[:, 2].mean() == pytest.approx(-0.55 / 2 * 0.45, abs=0.01)
    assert np.abs(shift[:, :2].mean(0)).max() < 0.01


def test_start_errors_are_repeatable():
    poses, radius = some_poses(10)
    draws = [perturb(poses, radius, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_hypotheses_of_the_scorer_have_the_documented_spread():
    poses, radius = some_poses(500)
    times = 64
    drawn = spread(poses, radius, times, torch.Generator().manual_seed(0))
    start, scale = poses.repeat_interleave(times, 0), radius.repeat_interleave(times)
    angle, shift = turns_and_shifts(start, drawn, scale)
    angle, shift = angle.reshape(500, times), np.abs(shift).reshape(500, times, 3)
    near, close, turned, anything = np.split(angle, [8, 24, 40], 1)
    assert 2.4 < near.max() < 2.51 and 14.5 < close.max() < 15.01
    assert shift[:, :8].max() < 0.0201 and shift[:, 8:24].max() < 0.1001
    assert 0.05 < shift[:, 24:].max() < 0.0601
    nearest_quarter = np.abs(turned - np.array([[[90.0]], [[180.0]]])).min(0)
    assert nearest_quarter.max() < 6.01 and (turned > 80).all()
    assert anything.mean() == pytest.approx(90 + 360 / np.pi**2, abs=1.5)  # uniform rotations


def trainer_of(folder: Path, **settings: object) -> Trainer:
    torch.manual_seed(0)
    merged = {'width': WIDTH, 'warmup_steps': 1, 'compile': False, 'batch': 4, **settings}
    return Trainer(RefineNet(WIDTH), TrainSettings(**merged), folder)


def fixed_step(trainer: Trainer, crops: int = 4) -> float:
    """One step on a batch that is always the same."""
    g = torch.Generator().manual_seed(3)
    target = {key: torch.rand(crops, 3, generator=g) - 0.5 for key in ('trans', 'rot')}
    loss = refiner_loss(trainer.network(*network_rig.crops(crops)), target, torch.ones(crops))
    trainer.step(loss, 0.0)
    return loss.item()


def test_training_reduces_the_loss_on_a_fixed_batch(tmp_path):
    trainer = trainer_of(tmp_path, learning_rate=2e-3)
    losses = [fixed_step(trainer) for _ in range(25)]
    assert losses[-1] < 0.3 * losses[0] and trainer.step_count == 25


def test_the_average_follows_its_formula():
    """Decay min(0.5, s / (s + 10)) at step s, buffers included, counters not."""
    network = torch.nn.BatchNorm1d(2)
    average = WeightAverage(network, 0.5)
    expected, values = 1.0, np.random.default_rng(0).normal(size=30)
    for step, value in enumerate(values, 1):
        network.weight.data.fill_(value)
        network.running_mean.fill_(value)
        average.update()
        decay = min(0.5, step / (step + 10))
        expected = decay * expected + (1 - decay) * value
    assert average.network.weight[0].item() == pytest.approx(expected, rel=1e-5)
    mean = expected - np.prod([min(0.5, s / (s + 10)) for s in range(1, 31)])  # it began at 0
    assert average.network.running_mean[1].item() == pytest.approx(mean, rel=1e-5)
    assert not average.network.training and not average.network.weight.requires_grad


def test_learning_rate_warms_up_and_falls_to_two_percent(tmp_path):
    trainer = trainer_of(tmp_path, learning_rate=1.0, warmup_steps=100)
    assert trainer.rate(0.0) == pytest.approx(0.01)
    trainer.step_count = 49
    assert trainer.rate(0.0) == pytest.approx(0.5)
    trainer.step_count = 5000
    expected = {0.0: 1.0, 0.5: 0.51, 1.0: 0.02, 1.7: 0.02}
    for progress, rate in expected.items():
        assert trainer.rate(progress) == pytest.approx(rate)


def weights_of(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def test_a_resumed_training_goes_on_as_if_nothing_had_happened(tmp_path):
    straight = trainer_of(tmp_path / 'a')
    for _ in range(3):
        fixed_step(straight)
    straight.trained_seconds = 12.5
    path = straight.save('refiner')
    resumed = trainer_of(tmp_path / 'b')
    resumed.load(path)
    assert (resumed.step_count, resumed.trained_seconds, resumed.resumed) == (3, 12.5, True)
    for trainer in (straight, resumed):
        for _ in range(2):
            fixed_step(trainer)
    assert resumed.step_count == 5
    torch.testing.assert_close(weights_of(resumed), weights_of(straight), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        resumed.average.network.state_dict(), straight.average.network.state_dict()
    )


def test_a_checkpoint_leaves_the_average_as_a_weight_file_and_nothing_else(tmp_path):
    trainer = trainer_of(tmp_path)
    fixed_step(trainer)
    trainer.save('refiner')
    trainer.save('refiner')
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ['refiner.checkpoint.pt', 'refiner.safetensors']
    stored = load_file(tmp_path / 'refiner.safetensors')
    average = trainer.average.network.state_dict()
    for key, value in stored.items():
        torch.testing.assert_close(value, average[key].half(), rtol=0, atol=0)


def test_training_may_start_from_a_weight_file(tmp_path):
    first = trainer_of(tmp_path / 'a')
    fixed_step(first)
    first.save('refiner')
    second = trainer_of(tmp_path / 'b')
    second.load(tmp_path / 'a' / 'refiner.safetensors')
    expected = first.average.network.state_dict()['encodeA.0.net.0.weight'].half().float()
    for network in (second.network, second.average.network):
        torch.testing.assert_close(network.encodeA[0].net[0].weight.detach(), expected)
    assert second.step_count == 0 and second.resumed


def test_a_checkpoint_of_another_width_is_refused(tmp_path):
    path = trainer_of(tmp_path / 'a').save('refiner')
    for width, file in ((0.125, path), (0.25, path.with_name('refiner.safetensors'))):
        other = Trainer(RefineNet(width), TrainSettings(width=width), tmp_path / 'b')
        with pytest.raises(RuntimeError, match='size mismatch'):
            other.load(file)


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Weights and running statistics that are neither zero nor one."""
    g = torch.Generator().manual_seed(7)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=g) * 0.5 + 0.5)
    return network.eval()


@pytest.mark.parametrize('kind', [RefineNet, ScoreNet])
def test_a_network_may_start_from_one_of_half_its_width_and_answers_as_that_did(tmp_path, kind):
    narrow, crops = lively(kind(0.125)), network_rig.crops(3)
    save_file(narrow.state_dict(), tmp_path / 'half.safetensors')
    trainer = Trainer(kind(0.25), TrainSettings(width=0.25), tmp_path / 'wide')
    fresh = trainer.network.state_dict()['pos_embed.pe'].clone()
    trainer.load(tmp_path / 'half.safetensors')
    wide = trainer.network.eval()
    with torch.inference_mode():
        old, new = narrow(*crops), wide(*crops)
        features = [trunk_of(net)(crops[0]) for net in (narrow, wide)]
    for before, after in zip(answers(old), answers(new), strict=True):
        torch.testing.assert_close(after, before, rtol=0.02, atol=0.02 * before.abs().max().item())
    # channels go in pairs, and each pair is there twice
    pairs = features[0].unflatten(1, (-1, 2)).repeat_interleave(2, 1).flatten(1, 2)
    torch.testing.assert_close(features[1], pairs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(wide.state_dict()['pos_embed.pe'], fresh, rtol=0, atol=0)


def trunk_of(network: torch.nn.Module) -> torch.nn.Module:
    return network.encodeA if isinstance(network, RefineNet) else network.encoderA


def answers(output: object) -> list[torch.Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def test_the_copies_of_a_widened_channel_learn_apart(tmp_path):
    trainer_of(tmp_path / 'a').save('refiner')
    wide = Trainer(
        RefineNet(2 * WIDTH), TrainSettings(width=2 * WIDTH, warmup_steps=1), tmp_path / 'b'
    )
    wide.load(tmp_path / 'a' / 'refiner.safetensors')
    weight = wide.network.encodeA[0].net[0].weight
    assert torch.equal(weight[0], weight[2])
    fixed_step(wide)
    assert not torch.equal(weight[0], weight[2])


def test_a_stretch_ends_by_the_clock_and_saves(tmp_path, capsys):
    trainer = trainer_of(tmp_path, seconds=1.0, checkpoint_seconds=0.2)
    progress = []

    def step(value: float) -> torch.Tensor:
        progress.append(value)
        trainer.step_count += 1
        if trainer.step_count == 3:
            assert not list(tmp_path.iterdir())
        return torch.tensor(0.5)

    run_stretch(trainer, 'refiner', step)
    assert progress[:2] == [0.0, 0.0] and 0.9 < progress[-1] <= 1.0  # two to warm up
    assert progress == sorted(progress) and trainer.trained_seconds == 1.0
    assert (tmp_path / 'refiner.checkpoint.pt').exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'batch': 3}, 'batch is 3, must be at least 4'),
        ({'seconds': -1.0}, 'seconds is -1.0, must not be negative'),
        ({'warmup_steps': 0}, 'warmup_steps is 0, must be positive'),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**changes)
