"""Training of the scorer: rank hypotheses of one scene by their true error.

Loss: RankNet (Burges et al., 2005) over all pairs of a scene, each weighted by how much the two
errors differ, so that equal hypotheses (symmetric objects) exert no force.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..pose.crops import REFINER_CROP, SCORER_CROP
from ..pose.networks import RefineNet, ScoreNet, fold_batch_norm
from .loop import Trainer, TrainSettings, run_stretch
from .perturbation import spread
from .refiner import MIN_VISIBLE, refine
from .scenes import CropWriter, SceneBatch, SceneSampler, TrainingWorld

SATURATION = 0.1  # error difference, in diameters, from which on a pair has full weight


def pose_errors(world: TrainingWorld, scenes: SceneBatch, poses: torch.Tensor) -> torch.Tensor:
    """ADD of (N * L, 4, 4) hypotheses over the diameter, (N, L)."""
    n = len(scenes.mesh)
    mesh = scenes.mesh.long()
    points = world.points[mesh][:, None]
    goal = scenes.camera_from_centered[:, None]
    hypotheses = poses.view(n, -1, 4, 4)

    def place(pose: torch.Tensor) -> torch.Tensor:
        return points @ pose[..., :3, :3].transpose(-1, -2) + pose[..., None, :3, 3]

    distance = (place(hypotheses) - place(goal)).norm(dim=-1).mean(-1)
    return distance / world.diameters[mesh][:, None]


def ranking_loss(logits: torch.Tensor, errors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """RankNet over (N, L) logits and errors; weight (N,) per scene."""
    gap = (errors[:, None, :] - errors[:, :, None]).clamp(0, SATURATION) / SATURATION
    margin = logits[:, :, None] - logits[:, None, :]  # [i, j] must be large where j is worse
    pairs = torch.nn.functional.softplus(-margin) * gap
    per_scene = pairs.sum((1, 2)) / gap.sum((1, 2)).clamp_min(1e-3)
    return (per_scene * weight).sum() / weight.sum().clamp_min(1.0)


class ScorerStep:
    """One training step per call: new scenes, hypotheses, a few refinements, ranking."""

    def __init__(
        self, trainer: Trainer, world: TrainingWorld, extract: Callable, refiner: Callable
    ) -> None:
        settings = trainer.settings
        device = world.bank.device
        self.g = trainer.generator(device)
        self._trainer = trainer
        self._world = world
        self._extract = extract
        self._refiner = refiner
        groups = [16, 32, 64]
        groups = [times for times in groups if times < settings.batch] or [settings.batch // 2]
        self._samplers = {k: SceneSampler(world, settings.batch // k, self.g) for k in groups}
        self._refine_writer = CropWriter(world, settings.batch, REFINER_CROP)
        self._score_writer = CropWriter(world, settings.batch, SCORER_CROP)

    def __call__(self, progress: float) -> torch.Tensor:
        groups = list(self._samplers)
        times = groups[self._trainer.step_count % len(groups)]
        with torch.no_grad():
            scenes, poses = self._hypotheses(times)
            errors = pose_errors(self._world, scenes, poses)
            rendered, observed = self._score_writer.write(scenes, poses)
        network = self._trainer.network
        assert isinstance(network, ScoreNet)
        device_type = poses.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=device_type == 'cuda'):
            features = self._extract(rendered, observed)
        logits = network.rank(features.float().view(-1, times, features.shape[-1]))
        loss = ranking_loss(logits, errors, (scenes.visible > MIN_VISIBLE).float())
        self._trainer.step(loss, progress)
        return loss.detach()

    def _hypotheses(self, times: int) -> tuple[SceneBatch, torch.Tensor]:
        """Refine two thirds of the batches, as every hypothesis is in use; leave some raw."""
        scenes = self._samplers[times].sample()
        radius = self._world.diameters[scenes.mesh.long()] / 2
        poses = spread(scenes.camera_from_centered, radius, times, self.g)
        steps = self._trainer.step_count // len(self._samplers) % 3
        return scenes, refine(self._refiner, self._refine_writer, scenes, poses, steps).clone()


@torch.inference_mode()
def validate_scorer(
    network: ScoreNet,
    refiner: RefineNet,
    world: TrainingWorld,
    scenes_count: int,
    seed: int = 54321,
) -> dict[str, float]:
    """Error (in diameters) of the best-ranked of 64 refined hypotheses, and of the true best."""
    g = torch.Generator(world.bank.device).manual_seed(seed)
    sampler = SceneSampler(world, 8, g)
    writers = CropWriter(world, 512, REFINER_CROP), CropWriter(world, 512, SCORER_CROP)
    chosen, best = [], []
    for _ in range(max(1, scenes_count // 8)):
        scenes = sampler.sample()
        radius = world.diameters[scenes.mesh.long()] / 2
        poses = spread(scenes.camera_from_centered, radius, 64, g)
        poses = refine(refiner, writers[0], scenes, poses, 2)
        errors = pose_errors(world, scenes, poses)
        features = network.extract(*writers[1].write(scenes, poses))
        winner = network.rank(features.view(8, 64, -1)).argmax(1)
        seen = scenes.visible > MIN_VISIBLE
        chosen.append(errors.gather(1, winner[:, None])[seen, 0])
        best.append(errors.amin(1)[seen])
    picked, ideal = torch.cat(chosen), torch.cat(best)
    return {
        'chosen_error_median': picked.median().item(),
        'best_error_median': ideal.median().item(),
        'chosen_within_0_1d': (picked < 0.1).float().mean().item(),
        'best_within_0_1d': (ideal < 0.1).float().mean().item(),
    }


def train_scorer(
    world: TrainingWorld, settings: TrainSettings, folder: Path, resume: Path | None,
    refiner: RefineNet,
) -> Trainer:  # fmt: skip
    """Run one stretch against a trained refiner; returns the trainer."""
    torch.manual_seed(settings.seed)
    device = world.bank.device
    network = ScoreNet(settings.width).to(device)
    frozen = refiner.to(device).eval().requires_grad_(False)
    for module in (network, frozen):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(network, settings, folder)
    if resume is not None:
        trainer.load(resume)
    extract = torch.compile(network.extract) if settings.compile else network.extract
    fold_batch_norm(frozen)
    run_refiner = torch.compile(frozen) if settings.compile else frozen
    run_stretch(trainer, 'scorer', ScorerStep(trainer, world, extract, run_refiner))
    return trainer
