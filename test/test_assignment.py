"""The assignment solver of the detector's training, against every permutation there is."""

from __future__ import annotations

import importlib
import sys
from itertools import permutations

import numpy as np
import pytest
import torch

from foundationpose_trt.training import assignment
from foundationpose_trt.training.assignment import MODULE, batch_linear_assignment, provide_solver


@pytest.mark.parametrize(('workers', 'tasks'), [(5, 3), (4, 4), (3, 5), (4, 1)])
def test_no_permutation_costs_less(workers, tasks):
    cost = torch.tensor(np.random.default_rng(workers).normal(size=(6, workers, tasks)))
    found = batch_linear_assignment(cost)
    assert found.shape == (6, workers) and found.dtype == torch.int64
    for one, chosen in zip(cost.numpy(), found.numpy(), strict=True):
        assigned = chosen[chosen >= 0]
        assert len(assigned) == len(set(assigned)) == min(workers, tasks)
        total = sum(one[w, t] for w, t in enumerate(chosen) if t >= 0)
        wide = one if workers <= tasks else one.T
        least = min(
            sum(wide[k, place] for k, place in enumerate(order))
            for order in permutations(range(wide.shape[1]), len(wide))
        )
        assert total == pytest.approx(least, abs=1e-5)


def test_nothing_to_assign():
    assert (batch_linear_assignment(torch.zeros(2, 3, 0)) == -1).all()


def test_the_package_finds_it_where_its_own_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setattr(assignment.importlib.util, 'find_spec', lambda name: None)
    provide_solver()
    try:
        found = importlib.import_module(MODULE)
        assert found.batch_linear_assignment is batch_linear_assignment
    finally:
        sys.modules.pop(MODULE, None)


def test_its_own_is_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setattr(assignment.importlib.util, 'find_spec', lambda name: object())
    provide_solver()
    assert MODULE not in sys.modules
