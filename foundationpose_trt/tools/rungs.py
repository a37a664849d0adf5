"""The rungs of the benchmarks' ladders, from a plain reference upwards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One row of a table: a back end at a precision, with or without CUDA graphs."""

    backend: str
    precision: str
    graphs: bool = False
    device: str = 'cuda'

    @property
    def name(self) -> str:
        """How the table calls it."""
        graph = ' + graph' if self.graphs else ''
        where = '' if self.device == 'cuda' else ', CPU'
        return f'{self.backend} {self.precision}{graph}{where}'
