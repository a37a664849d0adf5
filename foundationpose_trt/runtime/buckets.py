"""Few batch sizes for many: the way to keep a graph cache small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..datatypes import require
from .session import Session
from .specs import ALIGNMENT_BYTES


def powers_of_two(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4 ... below the largest, and the largest itself."""
    require(largest >= 1, f'the largest batch is {largest}, must be at least 1')
    sizes = [1 << k for k in range(largest.bit_length()) if 1 << k < largest]
    return (*sizes, largest)


class BatchBuckets:
    """Runs a session at the next larger allowed batch and gives back the items asked for.

    Every distinct batch that reaches a session takes one entry of its graph cache; through
    buckets only len(sizes) of them exist. A batch above the largest goes in several runs. The
    items that fill up a bucket are copies of the first: real input, so that no kernel meets
    values (zeros, NaN) it would not meet otherwise.
    """

    def __init__(self, session: Session, sizes: Sequence[int]) -> None:
        """sizes: allowed batches, e.g. powers_of_two(64). Raises ValueError if none or < 1."""
        self.sizes = tuple(sorted(set(sizes)))
        require(
            len(self.sizes) > 0 and self.sizes[0] >= 1,
            f'batch sizes are {tuple(sizes)}: give at least one, all at least 1',
        )
        self._session = session

    def size_for(self, batch: int) -> int:
        """Smallest allowed size that holds the batch; the largest where none does."""
        return next((size for size in self.sizes if size >= batch), self.sizes[-1])

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run on inputs of any batch >= 1 in each; outputs are the caller's own tensors."""
        batches = {name: len(tensor) for name, tensor in inputs.items()}
        batch = next(iter(batches.values()))
        require(
            batch >= 1 and len(set(batches.values())) == 1,
            f'batches are {batches}: they must be equal and at least 1',
        )
        parts = []
        for start in range(0, batch, self.sizes[-1]):
            stop = start + self.sizes[-1]
            parts.append(self._run_one({name: t[start:stop] for name, t in inputs.items()}))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _run_one(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        count = len(next(iter(inputs.values())))
        size = self.size_for(count)
        padded = {name: _padded(tensor, size) for name, tensor in inputs.items()}
        outputs = self._session.run(padded, clone=True)
        return {name: tensor[:count] for name, tensor in outputs.items()}


def _padded(tensor: torch.Tensor, size: int) -> torch.Tensor:
    missing = size - len(tensor)
    if missing > 0:
        return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])])
    aligned = tensor.data_ptr() % ALIGNMENT_BYTES == 0  # a slice from the middle may not be
    return tensor.contiguous() if aligned else tensor.clone()
