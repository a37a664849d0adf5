"""Training of the refiner: predict the step from a perturbed pose to the true one.

Each batch of scenes is used for several steps: first from drawn start errors, then from the
poses the network itself has just produced, so that it learns to finish what it began.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..geometry import rotation_angle
from ..pose.crops import REFINER_CROP
from ..pose.networks import RefineNet
from ..pose.update import apply_update, target_update
from .loop import Trainer, TrainSettings, run_stretch
from .perturbation import perturb
from .scenes import CropWriter, SceneBatch, SceneSampler, TrainingWorld

ROLLOUTS = 4
RESTART_SHARE = 0.35  # of the poses begin anew at each step, so that large errors stay frequent
EASY_SHARE = 0.12  # of the training time over which scenes grow to full difficulty
MIN_VISIBLE = 0.15
WELL_VISIBLE = 0.6
EASIEST = 0.2
TRANSLATION_WEIGHT = 4.0  # shared research, training.md


def refiner_loss(
    update: dict[str, torch.Tensor], target: dict[str, torch.Tensor], weight: torch.Tensor
) -> torch.Tensor:
    """Weighted mean over (N,) of squared errors; rot compared after tanh."""
    translation = (update['trans'].float() - target['trans']).square().sum(1)
    rotation = (torch.tanh(update['rot'].float()) - target['rot']).square().sum(1)
    # a start far off must not drown the rest of the batch
    errors = TRANSLATION_WEIGHT * translation.clamp_max(4.0) + rotation
    return (errors * weight).sum() / weight.sum().clamp_min(1.0)


def seen_weight(visible: torch.Tensor) -> torch.Tensor:
    """Weight of a scene by the share of the object that is seen: little seen, little to learn."""
    return torch.where(visible > MIN_VISIBLE, (visible / WELL_VISIBLE).clamp_max(1.0), 0.0)


class RefinerStep:
    """One training step per call; keeps the current scenes and poses between calls."""

    def __init__(self, trainer: Trainer, world: TrainingWorld, forward: Callable) -> None:
        settings = trainer.settings
        device = world.bank.device
        self.g = trainer.generator(device)
        self._trainer = trainer
        self._world = world
        self._forward = forward
        self._sampler = SceneSampler(world, settings.batch, self.g)
        self._writer = CropWriter(world, settings.batch, REFINER_CROP)
        self._scenes: SceneBatch | None = None
        self._poses = torch.empty(0)
        self._difficulties = np.random.default_rng([settings.seed, trainer.step_count])
        self._left = 0

    def __call__(self, progress: float) -> torch.Tensor:
        scenes, poses, radius = self._next(progress)
        with torch.no_grad():
            rendered, observed = self._writer.write(scenes, poses)
            target = target_update(poses, scenes.camera_from_centered, radius)
        device_type = self._world.bank.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=device_type == 'cuda'):
            update = self._forward(rendered, observed)
        weight = seen_weight(scenes.visible)
        loss = refiner_loss(update, target, weight)
        self._trainer.step(loss, progress)
        with torch.no_grad():
            detached = {key: value.detach() for key, value in update.items()}
            self._poses = self._or_restarted(apply_update(poses, detached, radius), radius)
        return loss.detach()

    def _next(self, progress: float) -> tuple[SceneBatch, torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            if self._scenes is None or self._left == 0:
                self._scenes = self._sampler.sample(self._difficulty(progress))
                radius = self._world.diameters[self._scenes.mesh.long()] / 2
                self._poses = perturb(self._scenes.camera_from_centered, radius, self.g)
                self._left = ROLLOUTS
        self._left -= 1
        return self._scenes, self._poses, self._world.diameters[self._scenes.mesh.long()] / 2

    def _difficulty(self, progress: float) -> float:
        """Draw from 0.2 up to a limit that grows from 0.2 to 1; a resumed network's is 1."""
        grown = 1.0 if self._trainer.resumed else min(1.0, progress / EASY_SHARE)
        return EASIEST + (1 - EASIEST) * grown * float(self._difficulties.random())

    def _or_restarted(self, poses: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """Start anew a share of the poses, and those with which the young network ran away."""
        assert self._scenes is not None
        goal = self._scenes.camera_from_centered
        distance = (poses[:, :3, 3] - goal[:, :3, 3]).norm(dim=1) / radius
        chance = torch.rand(distance.shape, generator=self.g, device=self.g.device)
        kept = (distance < 1.5) & (chance > RESTART_SHARE)
        return torch.where(kept[:, None, None], poses, perturb(goal, radius, self.g))


@torch.inference_mode()
def refine(
    network: Callable, writer: CropWriter, scenes: SceneBatch, poses: torch.Tensor, steps: int
) -> torch.Tensor:
    """Iterate a network on (N * L, 4, 4) poses of a SceneBatch."""
    times = len(poses) // len(scenes.mesh)
    radius = (writer.world.diameters[scenes.mesh.long()] / 2).repeat_interleave(times)
    device_type = poses.device.type
    for _ in range(steps):
        rendered, observed = writer.write(scenes, poses)
        with torch.autocast(device_type, torch.bfloat16, enabled=device_type == 'cuda'):
            update = network(rendered, observed)
        poses = apply_update(poses, update, radius)
    return poses


@torch.inference_mode()
def validate_refiner(
    network: RefineNet, world: TrainingWorld, batches: int, batch: int, seed: int = 12345
) -> dict[str, float]:
    """Median errors from grid-like starts after 0..5 iterations on scenes of `world`."""
    g = torch.Generator(world.bank.device).manual_seed(seed)
    sampler, writer = SceneSampler(world, batch, g), CropWriter(world, batch, REFINER_CROP)
    rows: dict[int, list[torch.Tensor]] = {k: [] for k in (0, 1, 2, 3, 5)}
    for _ in range(batches):
        scenes = sampler.sample()
        radius = world.diameters[scenes.mesh.long()] / 2
        goal = scenes.camera_from_centered
        poses, done = perturb(goal, radius, g), 0
        for k, collected in rows.items():
            poses, done = refine(network, writer, scenes, poses, k - done), k
            turn = rotation_angle(poses[:, :3, :3], goal[:, :3, :3]).rad2deg()
            shift = (poses[:, :3, 3] - goal[:, :3, 3]).norm(dim=1) / (2 * radius)
            collected.append(torch.stack([turn, shift])[:, scenes.visible > MIN_VISIBLE])
    report: dict[str, float] = {}
    for k, collected in rows.items():
        turn, shift = torch.cat(collected, 1)
        report[f'rotation_deg_median_{k}'] = turn.median().item()
        report[f'translation_percent_median_{k}'] = shift.median().item() * 100
        report[f'within_5deg_5percent_{k}'] = ((turn < 5) & (shift < 0.05)).float().mean().item()
    return report


def train_refiner(
    world: TrainingWorld, settings: TrainSettings, folder: Path, resume: Path | None
) -> Trainer:
    """Run one stretch; returns the trainer with the averaged network."""
    torch.manual_seed(settings.seed)
    network = RefineNet(settings.width)
    for head in (network.trans_head, network.rot_head):
        last = head[1]
        assert isinstance(last, torch.nn.Linear)
        torch.nn.init.normal_(last.weight, std=1e-3)  # start at "no update"
        torch.nn.init.zeros_(last.bias)
    network.to(world.bank.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(network, settings, folder)
    if resume is not None:
        trainer.load(resume)
    forward = torch.compile(network) if settings.compile else network
    run_stretch(trainer, 'refiner', RefinerStep(trainer, world, forward))
    return trainer
