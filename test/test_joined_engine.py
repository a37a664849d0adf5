"""An engine and what follows it, as one: outputs, memory, and the graph that holds both."""

from __future__ import annotations

import pytest
import torch

from foundationpose_trt.runtime.cuda_graph import order_of
from foundationpose_trt.runtime.graph_cache import CudaGraphCache
from foundationpose_trt.runtime.joined_engine import JoinedEngine
from foundationpose_trt.runtime.session import Session
from foundationpose_trt.runtime.specs import BATCH, TensorSpec
from foundationpose_trt.runtime.torch_engine import TorchEngine

X, Y, Z = (TensorSpec(name, (BATCH, 4), torch.float32) for name in 'xyz')
SUM = TensorSpec('sum', (BATCH, 4), torch.float32)
MOST = TensorSpec('most', (BATCH, 1), torch.float32)


def first(device: str) -> TorchEngine:
    return TorchEngine('first', lambda x: (x + 1, x * 10), [X], [Y, Z], device)


def ending(y: torch.Tensor, z: torch.Tensor, total: torch.Tensor, most: torch.Tensor) -> None:
    torch.add(y, z, out=total)
    torch.amax(z, 1, keepdim=True, out=most)


def joined(device: str = 'cpu') -> JoinedEngine:
    return JoinedEngine(first(device), ending, [SUM, MOST])


def test_the_ending_gets_the_outputs_in_the_order_of_their_specs():
    x = torch.arange(8.0).view(2, 4)
    with Session(joined(), None) as session:
        found = session.run({'x': x})
    assert list(found) == ['sum', 'most']
    torch.testing.assert_close(found['sum'], 11 * x + 1)
    torch.testing.assert_close(found['most'], torch.tensor([[30.0], [70.0]]))


def test_outputs_lie_where_they_lay_and_count_as_memory():
    execution = joined().execution({'x': torch.zeros(3, 4)})
    one, other = execution.enqueue(), execution.enqueue()
    assert [t.data_ptr() for t in one.values()] == [t.data_ptr() for t in other.values()]
    assert execution.nbytes == 4 * (3 * 4 + 3 * 1)


def test_it_is_the_first_engine_in_all_else():
    engine, alone = joined(), first('cpu')
    for name in ('name', 'inputs', 'device', 'graphable', 'warm_up_runs'):
        assert getattr(engine, name) == getattr(alone, name)
    assert not engine.light


@pytest.mark.gpu
def test_launches_take_turns_with_those_of_other_engines_on_the_workspace():
    one, other = joined('cuda'), joined('cuda')
    other.workspace = one.workspace
    assert order_of(one) is order_of(other)
    assert order_of(joined('cuda')) is not order_of(one)


@pytest.mark.gpu
def test_one_graph_holds_both():
    session = Session(joined('cuda'), CudaGraphCache(2))
    x = torch.zeros(2, 4, device='cuda')
    for value in (1.0, 5.0):
        x.fill_(value)
        found = session.run({'x': x}, clone=True)
        torch.testing.assert_close(found['sum'], 11 * x + 1)
    stats = session.cuda_graph_cache.stats()
    assert (stats.captures, stats.hits) == (1, 1)
    session.close()


def test_two_items_of_the_inputs_may_make_one_of_the_outputs():
    def of_halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one, other = x.chunk(2)
        return one + other, one * other

    first = TorchEngine('first', of_halves, [X], [Y, Z], 'cpu')
    engine = JoinedEngine(first, ending, [SUM, MOST], per_output=2)
    x = torch.arange(24.0).view(6, 4)
    with Session(engine, None) as session:
        found = session.run({'x': x})
    torch.testing.assert_close(found['sum'], x[:3] + x[3:] + x[:3] * x[3:])
    assert found['most'].shape == (3, 1)
    with pytest.raises(ValueError, match='first got 5 items, must be a multiple of 2'):
        engine.execution({'x': x[:5]})
