"""One training by several processes, as torchrun starts them; each draws scenes of its own.

They may have a GPU each or share one: a detector's step is bound by what the host does, which then
happens side by side. Gradients are averaged by NCCL, or by gloo where processes share a GPU, which
NCCL refuses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of the processes that torchrun started; without it, the only one.

    device: as for own_device.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group(_backend(device))
    try:
        yield
    finally:
        dist.destroy_process_group()


def _backend(device: str) -> str:
    enough = torch.cuda.device_count() >= int(os.environ['LOCAL_WORLD_SIZE'])
    own_gpus = enough and torch.device(device).index is None and dist.is_nccl_available()
    return 'cpu:gloo,cuda:nccl' if own_gpus else 'gloo'


def rank() -> int:
    """Return which of the processes this is; the first alone reports, saves and judges."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def cores() -> int:
    """Return how many processor cores are this process's share."""
    return max(1, (os.cpu_count() or 1) // count())


def own_device(name: str) -> torch.device:
    """Return a device by name; for `cuda`, without a number, the GPU whose turn it is.

    It becomes the current one.
    """
    device = torch.device(name)
    if device.type != 'cuda' or device.index is not None or count() == 1:
        return device
    device = torch.device('cuda', int(os.environ['LOCAL_RANK']) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; all must have the same ones."""
    if count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(whole)
    whole /= count()
    parts = whole.split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))


def of_first(value: float) -> float:
    """Return what the first process gives: all leave a loop at the same step."""
    if count() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)
