"""Does an engine compute what the network does? Asked once, before it moves anything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..datatypes import require
from ..runtime.engine import Engine
from ..runtime.session import Session
from .crops import CROP_PX
from .weights import PoseNetworks

CROPS = 8
COARSE_PX = 5
# Rounding to half stays below a tenth (test_self_check.py holds it there); a network that is built
# wrong, or NaN, is far beyond.
LARGEST_DEVIATION = 0.25


def reference_of(networks: PoseNetworks, kind: str) -> Callable[..., Any]:
    """Return one network ('refiner' | 'extractor') in float32, run by torch where it is."""
    if kind == 'refiner':
        return copy.deepcopy(networks.refiner).float()
    return copy.deepcopy(networks.scorer).float().extract


def sample_crops(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of crops (count, 6, 160, 160) float32 on the CPU: one half noise, one half shapes.

    Shapes are smooth blobs on black, and nearly the same ones a little off, as a rendering and
    what the camera sees of it are.
    """
    g = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, count // 2, 6, CROP_PX, CROP_PX, generator=g) * 2 - 1
    coarse = torch.randn(count - count // 2, 6, COARSE_PX, COARSE_PX, generator=g)
    smooth = torch.nn.functional.interpolate(
        coarse, (CROP_PX, CROP_PX), mode='bicubic', align_corners=False
    ).clamp(-1, 1)
    shapes = smooth * (smooth[:, :1] > 0)
    pairs = torch.stack([shapes, shapes.roll((3, -5), (2, 3))])
    rendered, observed = torch.cat([noise, pairs], 1)
    return rendered, observed


@torch.inference_mode()
def deviations(engine: Engine, reference: Callable[..., Any], batch: int) -> dict[str, float]:
    """Largest difference of each output from the reference over the output's own size (rms).

    batch: pairs of crops in one run, which the engine must take. NaN counts as infinite.
    """
    session = Session(engine, None)
    pair = [half.to(engine.device) for half in sample_crops(CROPS)]

    def run(*halves: torch.Tensor) -> Mapping[str, torch.Tensor]:
        inputs = {
            spec.name: half.to(spec.dtype).contiguous(memory_format=spec.layout)
            for spec, half in zip(engine.inputs, halves, strict=True)
        }
        return session.run(inputs, clone=True)

    names = [spec.name for spec in engine.outputs]
    # float32 to the last bit: by default torch's convolutions round to TF32
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted = _outputs([reference(*pair)], names)
    places = [
        torch.arange(start, start + batch).clamp_max(CROPS - 1)  # the last run is filled up
        for start in range(0, CROPS, batch)
    ]
    given = _outputs([run(*(half[at.to(half.device)] for half in pair)) for at in places], names)
    return {name: _deviation(given[name], wanted[name]) for name in names}


def _outputs(results: Sequence[Any], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Join the outputs of runs over all crops, by name; a network of one output gives a tensor."""
    mappings = [r if isinstance(r, Mapping) else dict.fromkeys(names, r) for r in results]
    return {name: torch.cat([m[name] for m in mappings])[:CROPS].float() for name in names}


def _deviation(given: torch.Tensor, wanted: torch.Tensor) -> float:
    size = wanted.square().mean().sqrt().clamp_min(1e-6)
    worst = ((given - wanted).abs().max() / size).item()
    return worst if worst == worst else float('inf')


def require_agreement(name: str, found: Mapping[str, float], remedy: str) -> None:
    """Raise ValueError when an output is further from the reference than rounding explains."""
    for output, value in found.items():
        require(
            value <= LARGEST_DEVIATION,
            f'{name}: output {output} is off by {value:.3g} times its size on test crops, at most'
            f' {LARGEST_DEVIATION} is rounding: the engine computes something else; {remedy}',
        )
