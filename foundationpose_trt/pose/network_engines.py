"""The two networks' engines as the estimator runs them: pairs of crops come in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..datatypes import require
from ..runtime.build import BuildOptions
from ..runtime.engine import Engine, Execution
from ..runtime.specs import TensorSpec
from ..runtime.tensorrt_engine import TensorRtEngine
from .crops import OBSERVED, PAIR, PAIRS, RENDERED


@dataclass(frozen=True)
class NetworkEngines:
    """The engines of one weight set. explanation: which back end, and why, for the log.

    largest: pairs of crops that both run at once, None for any number.
    """

    refiner: Engine
    features: Engine
    explanation: str
    largest: int | None = None

    @property
    def crops(self) -> TensorSpec:
        """What both take as pairs of crops: the buffer to write."""
        return self.refiner.inputs[0]


def trunk_options(options: BuildOptions) -> BuildOptions:
    """Return the options with which trunks are built.

    What comes before and behind lies in memory pixel after pixel. batches: of pairs; a trunk's
    input counts crops.
    """

    def crops(pairs: Sequence[int]) -> tuple[int, ...]:
        return tuple(PAIR * count for count in pairs)

    return replace(
        options,
        batches=None if options.batches is None else crops(options.batches),
        default_batches=crops(options.default_batches),
        channels_last=True,
        half_io=True,
    )


def largest_of(*trunks: TensorRtEngine) -> int:
    """Return how many pairs of crops all of these trunks run at once."""
    return min(trunk.manifest.batches[-1] for trunk in trunks) // PAIR


def halves_of(crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the rendered and the observed crops of pairs (2 N, ...), as views.

    Raises ValueError for an odd number.
    """
    require(len(crops) % PAIR == 0, f'{len(crops)} crops are no pairs: their number must be even')
    return crops.chunk(PAIR)


def of_pairs(function: Callable[..., Any]) -> Callable[[torch.Tensor], Any]:
    """Return a function of pairs of crops (2 N, ...), for one of rendered and observed ones."""
    return lambda crops: function(*halves_of(crops))


class PairedEngine:
    """What an exported network computes of pairs of crops (2 N, 6, 160, 160); nothing is copied.

    whole: the network's engine, with the inputs RENDERED and OBSERVED.
    """

    def __init__(self, whole: Engine) -> None:
        self.whole = whole
        self.name = whole.name
        self.inputs: tuple[TensorSpec, ...] = (replace(whole.inputs[0], name=PAIRS),)
        self.outputs, self.device = whole.outputs, whole.device
        self.graphable, self.light = whole.graphable, whole.light
        self.warm_up_runs = whole.warm_up_runs

    def __str__(self) -> str:
        return self.name

    def execution(self, inputs: Mapping[str, torch.Tensor]) -> Execution:
        """Set up for both halves; raises as the network's engine does."""
        return self.whole.execution(
            dict(zip((RENDERED, OBSERVED), halves_of(inputs[PAIRS]), strict=True))
        )
