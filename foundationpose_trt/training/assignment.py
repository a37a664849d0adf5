"""The assignment solver that RF-DETR's loss asks for on a GPU, for where its own is not installed.

The package (1.11.2, rfdetr/models/_assignment.py) imports torch_linear_assignment there, which is
no wheel: it has to be compiled with CUDA's own compiler.
"""

from __future__ import annotations

import importlib.util
import sys
import types

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

MODULE = 'torch_linear_assignment'


def batch_linear_assignment(cost: torch.Tensor) -> torch.Tensor:
    """Assign tasks to workers at the least total cost, each to at most one.

    cost: (N, workers, tasks) of N problems. Returns (N, workers) int64 on the same device: each
    worker's task, -1 for none.
    """
    costs = cost.detach().float().cpu().numpy()
    tasks = np.full(costs.shape[:2], -1, np.int64)
    for place, one in enumerate(costs):
        workers, assigned = linear_sum_assignment(one)
        tasks[place, workers] = assigned
    return torch.from_numpy(tasks).to(cost.device)


def provide_solver() -> None:
    """Let the package find this solver under the name it imports, unless it has the real one."""
    if MODULE in sys.modules or importlib.util.find_spec(MODULE) is not None:
        return
    module = types.ModuleType(MODULE)
    module.batch_linear_assignment = batch_linear_assignment  # type: ignore[attr-defined]
    sys.modules[MODULE] = module
