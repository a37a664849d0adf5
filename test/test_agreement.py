"""How far two engines of one network are apart: closed-form cases."""

from __future__ import annotations

import math

import pytest
import torch

from foundationpose_trt.runtime.agreement import random_deviations, relative_deviation
from foundationpose_trt.runtime.specs import BATCH, TensorSpec
from foundationpose_trt.runtime.torch_engine import TorchEngine

X = TensorSpec('x', (BATCH, 64), torch.float32)


def engine(function) -> TorchEngine:
    outputs = (TensorSpec('y', (BATCH, 64), torch.float32),)
    return TorchEngine('net', function, (X,), outputs, 'cpu')


def test_the_largest_difference_counts_over_the_size_of_what_is_wanted():
    wanted = torch.tensor([3.0, -3.0, 3.0, -3.0])
    assert relative_deviation(wanted + torch.tensor([0.0, 0.3, 0, -0.6]), wanted) == (
        pytest.approx(0.2)
    )
    assert relative_deviation(torch.full((4,), math.nan), wanted) == math.inf
    assert relative_deviation(torch.zeros(3), torch.zeros(3)) == 0


def test_engines_are_compared_on_the_same_inputs():
    assert random_deviations(engine(lambda x: x * 2), engine(lambda x: x + x), 5) == {'y': 0}
    # uniform in -1..1 has an rms of 1 / sqrt(3): 1 % more of the largest value, 1, of that
    found = random_deviations(engine(lambda x: x * 1.01), engine(lambda x: x * 1), 500)['y']
    assert found == pytest.approx(0.01 * math.sqrt(3), rel=0.02)
