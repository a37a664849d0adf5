"""An engine and what torch does with its outputs, as one engine, which one CUDA graph holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..datatypes import require
from .engine import Engine, Execution
from .specs import TensorSpec

# Takes the first engine's outputs, then tensors to write, both in the order of the specs.
Ending = Callable[..., None]


class JoinedExecution:
    """An execution, what follows it, and the outputs that this writes."""

    def __init__(
        self, first: Execution, between: Sequence[str], ending: Ending,
        outputs: Mapping[str, torch.Tensor],
    ) -> None:  # fmt: skip
        self._first, self._between, self._ending = first, between, ending
        self.outputs = dict(outputs)
        self.nbytes = first.nbytes + sum(tensor.nbytes for tensor in self.outputs.values())

    def enqueue(self) -> dict[str, torch.Tensor]:
        """Launch both on the current stream without waiting; returns the outputs by name."""
        found = self._first.enqueue()
        with torch.inference_mode():
            self._ending(*(found[name] for name in self._between), *self.outputs.values())
        return self.outputs


class JoinedEngine:
    """One engine's outputs go through an ending that writes those of the whole.

    first: an engine on CUDA, whose inputs, workspace and all else are the whole's. ending:
    enqueues on torch's current stream and waits for nothing. per_output: how many items of the
    inputs make one of the outputs.
    """

    light = False

    def __init__(
        self, first: Engine, ending: Ending, outputs: Sequence[TensorSpec], per_output: int = 1
    ) -> None:
        self.first, self.ending, self._per_output = first, ending, per_output
        self.name = first.name
        self.inputs, self.outputs = first.inputs, tuple(outputs)
        self.device, self.graphable = first.device, first.graphable
        self.warm_up_runs = first.warm_up_runs
        self.workspace = getattr(first, 'workspace', first)

    def __str__(self) -> str:
        return self.name

    def execution(self, inputs: Mapping[str, torch.Tensor]) -> JoinedExecution:
        """Set up for exactly these tensors; raises as the first engine does, and ValueError for
        items that are left over."""
        count = len(next(iter(inputs.values())))
        batch, left = divmod(count, self._per_output)
        require(
            left == 0, f'{self.name} got {count} items, must be a multiple of {self._per_output}'
        )
        first = self.first.execution(inputs)
        outputs = {spec.name: spec.empty(batch, self.device) for spec in self.outputs}
        return JoinedExecution(first, [s.name for s in self.first.outputs], self.ending, outputs)
