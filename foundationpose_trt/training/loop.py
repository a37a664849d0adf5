"""Everything both trainings share: schedule, averaging, checkpoints, a clock to stop by."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from ..datatypes import require
from ..pose.weights import save_network
from . import processes
from .widen import is_half_width, widened

PROCESSES_APART = 1_000_003  # of seeds


@dataclass(frozen=True)
class TrainSettings:
    """One stretch of training. seconds counts from the end of warm-up, not compile time.

    batch: of each process, where several train.
    """

    width: float = 0.5
    seconds: float = 600.0
    batch: int = 256
    learning_rate: float = 3e-4  # 6e-4 kept a refiner of width 0.5 on a plateau
    weight_decay: float = 1e-2
    warmup_steps: int = 400
    average_decay: float = 0.9995
    checkpoint_seconds: float = 60.0
    seed: int = 0
    compile: bool = True

    def __post_init__(self) -> None:
        require(self.batch >= 4, f'batch is {self.batch}, must be at least 4 crops')
        require(self.seconds >= 0, f'seconds is {self.seconds}, must not be negative')
        require(self.warmup_steps >= 1, f'warmup_steps is {self.warmup_steps}, must be positive')


class WeightAverage:
    """Exponential moving average of a network, buffers included; the part that is shipped."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay
        self.steps = 0
        # views of both networks' memory, collected once: walking the modules takes milliseconds
        self._ours = _floating(self.network)
        self._theirs = _floating(network)

    @torch.no_grad()
    def update(self) -> None:
        """Fold the current weights in; the decay grows with the steps so that the start fades."""
        self.steps += 1
        decay = min(self._decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self._ours, self._theirs, 1 - decay)


def _floating(network: nn.Module) -> list[torch.Tensor]:
    return [t for t in network.state_dict().values() if t.is_floating_point()]


class Trainer:
    """Optimiser, schedule, average and checkpoint of one network."""

    def __init__(self, network: nn.Module, settings: TrainSettings, folder: Path) -> None:
        self.network = network
        self.settings = settings
        self.folder = folder
        self.processes = processes.count()
        self.average = WeightAverage(network, settings.average_decay)
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=next(network.parameters()).is_cuda,
        )
        self.step_count = 0
        self.trained_seconds = 0.0
        self.resumed = False
        folder.mkdir(parents=True, exist_ok=True)

    def generator(self, device: torch.device) -> torch.Generator:
        """Return random numbers that no other stretch and no other process draws."""
        stretch = self.settings.seed * 7919 + self.step_count
        return torch.Generator(device).manual_seed(stretch + PROCESSES_APART * processes.rank())

    def rate(self, progress: float) -> float:
        """Learning rate: linear warm-up, then cosine to 2 % over progress 0..1."""
        warm = min(1.0, (self.step_count + 1) / self.settings.warmup_steps)
        cosine = 0.51 + 0.49 * math.cos(math.pi * min(1.0, progress))
        return self.settings.learning_rate * warm * cosine

    def step(self, loss: torch.Tensor, progress: float) -> None:
        """One optimiser step on a scalar loss; gradient norm clipped at 1.

        Of several processes, on the mean of their losses.
        """
        for group in self.optimizer.param_groups:
            group['lr'] = self.rate(progress)
        loss.backward()
        processes.average_gradients(self.network.parameters())
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.step_count += 1

    def save(self, name: str) -> Path:
        """Write the resumable state atomically, and the average as shippable safetensors."""
        path = self.folder / f'{name}.checkpoint.pt'
        state: dict[str, Any] = {
            'network': self.network.state_dict(),
            'average': self.average.network.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'steps': self.step_count,
            'trained_seconds': self.trained_seconds,
            'settings': asdict(self.settings),
        }
        temporary = path.with_suffix('.tmp')
        torch.save(state, temporary)
        os.replace(temporary, path)
        save_network(self.average.network, self.folder / f'{name}.safetensors')
        return path

    def load(self, path: Path) -> None:
        """Go on from save(), or start from a .safetensors file of this or half the width.

        Raises FileNotFoundError, or RuntimeError on any other width.
        """
        self.resumed = True
        device = next(self.network.parameters()).device
        if path.suffix == '.safetensors':
            weights = {key: value.float() for key, value in load_file(path).items()}
            goal = self.network.state_dict()
            if is_half_width(weights, goal):
                weights = widened(weights, goal)
            for network in (self.network, self.average.network):
                network.load_state_dict({**network.state_dict(), **weights})
            return
        state = torch.load(path, map_location=device, weights_only=True)
        self.network.load_state_dict(state['network'])
        self.average.network.load_state_dict(state['average'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.step_count = self.average.steps = state['steps']
        self.trained_seconds = state['trained_seconds']


def run_stretch(trainer: Trainer, name: str, one_step: Callable[[float], torch.Tensor]) -> None:
    """Call one_step(progress) -> detached loss until the seconds are over; checkpoints on the way.

    The first two steps compile and are not counted. Of several processes the first has the clock,
    reports and saves.
    """
    settings, is_first = trainer.settings, processes.rank() == 0
    for _ in range(2):
        one_step(0.0)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = saved = time.monotonic()
    running = None
    bar_of = {'total': int(settings.seconds), 'unit': 's', 'desc': f'train {name}'}
    with tqdm(**bar_of, mininterval=5, disable=not is_first) as bar:
        while (elapsed := processes.of_first(time.monotonic() - start)) < settings.seconds:
            loss = one_step(elapsed / settings.seconds)
            running = loss if running is None else torch.lerp(running, loss, 0.02)
            if trainer.step_count % 100 == 0:
                bar.set_postfix(step=trainer.step_count, loss=f'{running.item():.4f}')
                bar.update(int(elapsed) - bar.n)
            if is_first and time.monotonic() - saved > settings.checkpoint_seconds:
                trainer.save(name)
                saved = time.monotonic()
    trainer.trained_seconds += settings.seconds
    if is_first:
        trainer.save(name)
