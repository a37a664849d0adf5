"""Pairs of crops in one tensor, for networks that take their halves apart."""

from __future__ import annotations

import pytest
import torch

from foundationpose_trt.pose.network_engines import PairedEngine, of_pairs, trunk_options
from foundationpose_trt.runtime.build import BuildOptions
from foundationpose_trt.runtime.session import Session
from foundationpose_trt.runtime.specs import BATCH, TensorSpec
from foundationpose_trt.runtime.torch_engine import TorchEngine

SHAPE = (BATCH, 2, 3)
HALVES = [TensorSpec(name, SHAPE, torch.float32) for name in ('inputA', 'inputB')]
OUTPUT = TensorSpec('y', SHAPE, torch.float32)


def whole(seen: list[torch.Tensor]) -> TorchEngine:
    def apart(rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        seen.extend([rendered, observed])
        return rendered - 10 * observed

    return TorchEngine('whole', apart, HALVES, [OUTPUT], 'cpu')


def test_the_first_half_is_rendered_and_nothing_is_copied():
    seen: list[torch.Tensor] = []
    engine = PairedEngine(whole(seen))
    assert engine.inputs == (TensorSpec('crops', SHAPE, torch.float32),)
    pairs = torch.arange(24.0).view(4, 2, 3)
    with Session(engine, None) as session:
        found = session.run({'crops': pairs})['y']
    torch.testing.assert_close(found, pairs[:2] - 10 * pairs[2:], atol=0, rtol=0)
    assert [half.data_ptr() for half in seen] == [pairs.data_ptr(), pairs[2:].data_ptr()]


def test_it_is_the_whole_engine_in_all_else():
    inner = whole([])
    engine = PairedEngine(inner)
    for name in ('name', 'outputs', 'device', 'graphable', 'light', 'warm_up_runs'):
        assert getattr(engine, name) == getattr(inner, name)
    assert str(engine) == 'whole'


def test_an_odd_number_of_crops_is_refused():
    """It would be two halves of different length."""
    with pytest.raises(ValueError, match='3 crops are no pairs'):
        PairedEngine(whole([])).execution({'crops': torch.zeros(3, 2, 3)})
    with pytest.raises(ValueError, match='3 crops are no pairs'):
        of_pairs(lambda one, other: one)(torch.zeros(3, 2, 3))


def test_trunks_are_built_for_twice_as_many_crops_as_poses():
    """Where nobody names a number, an engine that is there may have others."""
    named, default = (trunk_options(BuildOptions(batches=n)) for n in ((1, 8), None))
    assert named.batches == (2, 16)
    assert default.batches is None and default.default_batches == (2, 16, 128, 252)
    assert named.channels_last and named.half_io
