"""One of the processes that torchrun starts: trains a small network and writes what it saw.

processes_rig.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from foundationpose_trt.training import processes
from foundationpose_trt.training.loop import Trainer, TrainSettings, run_stretch


def averaged() -> list[float]:
    """Gradients of two weights, of which the third has none; the first process's is 1, 2."""
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    (weights[0] * torch.tensor([1.0, 2.0]) * (1 + 4 * processes.rank())).sum().backward()
    processes.average_gradients(weights)
    assert weights[1].grad is None and weights[0].grad is not None
    return weights[0].grad.tolist()


def trained(folder: Path) -> tuple[Trainer, list[float]]:
    """Train for half a second on numbers of this process's own; the trainer and the numbers."""
    torch.manual_seed(0)
    settings = TrainSettings(seconds=0.5, batch=4, checkpoint_seconds=0.1)
    trainer = Trainer(torch.nn.Linear(3, 1), settings, folder / str(processes.rank()))
    g = trainer.generator(torch.device('cpu'))
    drawn = []

    def step(progress: float) -> torch.Tensor:
        inputs = torch.randn(4, 3, generator=g)
        drawn.append(float(inputs[0, 0]))
        loss = (trainer.network(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        trainer.step(loss, progress)
        return loss.detach()

    run_stretch(trainer, 'sum', step)
    return trainer, drawn


def main(folder: Path) -> None:
    with processes.joined('cpu'):
        rank, count, device = processes.rank(), processes.count(), processes.own_device('cpu')
        gradients, shared = averaged(), processes.of_first(10.0 + rank)
        trainer, drawn = trained(folder)
    seen = {
        'count': count, 'device': str(device), 'gradients': gradients, 'shared': shared,
        'steps': trainer.step_count, 'processes': trainer.processes, 'drawn': drawn[:3],
        'weights': trainer.network.weight.flatten().tolist(), 'left': processes.count(),
        'saved': sorted(path.name for path in trainer.folder.iterdir()),
    }  # fmt: skip
    (folder / f'{rank}.json').write_text(json.dumps(seen))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
