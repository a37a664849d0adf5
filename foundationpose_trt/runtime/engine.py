"""What every back end offers to a session: executions of one shape that can be launched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from .specs import TensorSpec


class Execution(Protocol):
    """A network set up for one shape: reads its bound inputs, writes its own outputs.

    Not thread-safe.
    """

    @property
    def nbytes(self) -> int:
        """Device memory of its own, without the inputs."""
        ...

    def enqueue(self) -> dict[str, torch.Tensor]:
        """Launch on the current stream without waiting; returns the outputs by name.

        The outputs are the execution's own and valid until its next enqueue.
        """
        ...


class Engine(Protocol):
    """One loaded network on one device.

    graphable: whether a CUDA graph may capture its executions. light: whether an execution costs
    nothing to make, so that none need be kept. warm_up_runs: how many at a shape do, besides, what
    is done once. name: for messages.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: torch.device
    graphable: bool
    light: bool
    warm_up_runs: int

    def execution(self, inputs: Mapping[str, torch.Tensor]) -> Execution:
        """Set up for exactly these tensors: their shapes and their memory, kept by reference."""
        ...
