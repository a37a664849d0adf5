"""Choices of a PoseEstimator, and which of them may differ from object to object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..datatypes import require
from ..runtime.graph_cache import capacity_by_environment
from .symmetry import is_rotation

Judge = Literal['scorer', 'depth']


@dataclass(frozen=True)
class RegisterStage:
    """Refine all remaining hypotheses `iterations` times, then keep the `keep` best ones.

    judge: who says which are best: 'scorer', the network, or 'depth', how much of what is rendered
    the observed depth confirms (quality.confirmed): a small part of the network's cost. It cannot
    tell poses of one shape apart, so it may only sort out, not decide.
    """

    iterations: int
    keep: int
    judge: Judge = 'scorer'


# The published schedule: five refinements of all 252, one scoring (foundationpose.md §3.5).
FULL_SCHEDULE = (RegisterStage(5, 252),)
# Depth tells most of the hypotheses to be wrong after one refinement and more after two, the
# scorer the rest after three. docs/performance.md has times and errors of both schedules.
PRUNED_SCHEDULE = (
    RegisterStage(1, 96, 'depth'),
    RegisterStage(1, 64, 'depth'),
    RegisterStage(1, 16),
    RegisterStage(2, 16),
)

SHARED = ('chunk', 'cuda_graph_cache_capacity')  # by the objects of one estimator


@dataclass(frozen=True)
class EstimatorSettings:
    """Choices of one estimator for one object. Depths in metres.

    chunk: hypotheses of a registration that go through the networks at once; 0 takes 126 on CUDA,
    half of them all, and 16 on a CPU. Tracked objects are always one batch.
    """

    schedule: tuple[RegisterStage, ...] = FULL_SCHEDULE
    track_iterations: int = 2
    min_depth_m: float = 0.1
    max_depth_m: float = 10.0
    min_mask_depth_px: int = 4  # foundationpose.md §3.4
    chunk: int = 0
    symmetries: tuple[tuple[float, ...], ...] = ()  # row-major 3x3 rotations besides identity
    # graphs kept per network, one per number of crops; 0: none
    cuda_graph_cache_capacity: int = field(default_factory=capacity_by_environment)

    def __post_init__(self) -> None:
        require(len(self.schedule) > 0, 'schedule is empty: give at least one RegisterStage')
        for stage in self.schedule:
            require(
                stage.iterations >= 0 and stage.keep >= 1,
                f'{stage}: iterations must be >= 0 and keep >= 1',
            )
            require(
                stage.judge in get_args(Judge),
                f"{stage}: judge must be 'scorer' or 'depth'",
            )
        require(
            self.schedule[-1].judge == 'scorer',
            f'{self.schedule[-1]} is the last stage: its judge must be the scorer, depth cannot'
            ' tell poses of one shape apart',
        )
        require(
            self.track_iterations >= 1,
            f'track_iterations is {self.track_iterations}, must be at least 1',
        )
        require(
            0 <= self.min_depth_m < self.max_depth_m,
            f'depth range {self.min_depth_m}..{self.max_depth_m} m: min must be below max',
        )
        require(
            self.cuda_graph_cache_capacity >= 0,
            f'cuda_graph_cache_capacity is {self.cuda_graph_cache_capacity}, must be 0 (no CUDA'
            ' graphs) or more',
        )
        require(self.chunk >= 0, f'chunk is {self.chunk}, must be 0 (by device) or more')
        for symmetry in self.symmetries:
            require(
                is_rotation(symmetry),
                f'symmetry {symmetry} is no rotation matrix: give nine numbers, row by row',
            )


def settings_by_object(
    settings: EstimatorSettings | Sequence[EstimatorSettings] | None, objects: int
) -> tuple[EstimatorSettings, ...]:
    """Return the settings of each object: one for all (None: the defaults), or one for each.

    Raises ValueError for another number of them and where SHARED ones differ.
    """
    if settings is None or isinstance(settings, EstimatorSettings):
        return (settings or EstimatorSettings(),) * objects
    require(
        len(settings) == objects,
        f'{len(settings)} settings for {objects} objects: give one for all or one for each',
    )
    for name in SHARED:
        values = [getattr(one, name) for one in settings]
        require(
            len(set(values)) == 1,
            f'{name} is {", ".join(map(str, values))}: objects of one estimator share its buffers,'
            ' give all the same value',
        )
    return tuple(settings)
