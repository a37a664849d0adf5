"""How far two engines of one network are apart."""

from __future__ import annotations

import torch

from .engine import Engine
from .session import Session
from .specs import TensorSpec


def relative_deviation(given: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the size (rms) of what is wanted; NaN counts as infinite."""
    size = wanted.square().mean().sqrt().clamp_min(1e-6)
    worst = ((given - wanted).abs().max() / size).item()
    return worst if worst == worst else float('inf')


def random_deviations(engine: Engine, reference: Engine, batch: int) -> dict[str, float]:
    """relative_deviation of each output on uniform random inputs in -1..1, by name.

    Both engines have the same inputs and outputs by name, on devices of their own.
    """
    g = torch.Generator().manual_seed(0)
    values = {
        spec.name: torch.rand(spec.sized(batch), generator=g) * 2 - 1 for spec in engine.inputs
    }
    given, wanted = (_outputs(one, values) for one in (engine, reference))
    return {name: relative_deviation(given[name], wanted[name]) for name in given}


def _outputs(engine: Engine, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    def fitted(spec: TensorSpec) -> torch.Tensor:
        value = values[spec.name].to(engine.device, spec.dtype)
        return value.contiguous(memory_format=spec.layout)

    with Session(engine, None) as session:
        outputs = session.run({spec.name: fitted(spec) for spec in engine.inputs}, clone=True)
        # flat: the official scorers give a row, an engine made of them a vector
        return {name: output.float().cpu().flatten() for name, output in outputs.items()}
