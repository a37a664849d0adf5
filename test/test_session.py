"""Sessions on a CPU: what they refuse and what they give; batch buckets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from foundationpose_trt.runtime.buckets import BatchBuckets, powers_of_two
from foundationpose_trt.runtime.graph_cache import CudaGraphCache
from foundationpose_trt.runtime.session import Session
from foundationpose_trt.runtime.specs import BATCH, TensorSpec, check_inputs, normalized
from foundationpose_trt.runtime.torch_engine import TorchEngine, load_torchscript

CPU = torch.device('cpu')
WIDTH = 64  # floats of one item: 256 bytes, so that every slice is aligned
INPUTS = (
    TensorSpec('a', (BATCH, WIDTH), torch.float32),
    TensorSpec('b', (BATCH, WIDTH), torch.float32),
)
OUTPUTS = (
    TensorSpec('product', (BATCH, WIDTH), torch.float32),
    TensorSpec('sum', (BATCH,), torch.float32),
)


def arithmetic(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    return {'product': a * b + 1, 'sum': (a + b).sum(1)}


def engine_on(device: str | torch.device = CPU, function=arithmetic) -> TorchEngine:
    return TorchEngine('arithmetic', function, INPUTS, OUTPUTS, device)


def sample(batch: int, device: str | torch.device = CPU, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, WIDTH, generator=g).to(device) for name in 'ab'}


def assert_answers(
    outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]
) -> None:
    a, b = (inputs[name].cpu().double().numpy() for name in 'ab')
    np.testing.assert_allclose(outputs['product'].cpu(), a * b + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs['sum'].cpu(), (a + b).sum(1), rtol=1e-4, atol=1e-4)


# --- inputs --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'b': None}, r"missing \['b'\]"),
        ({'c': torch.zeros(2, WIDTH)}, r"unknown \['c'\]"),
        ({'a': torch.zeros(2, 7)}, r'input a has shape \(2, 7\)'),
        ({'a': torch.zeros(2, 1, WIDTH)}, r'input a has shape \(2, 1, 64\)'),
        ({'a': torch.zeros(2, WIDTH).half()}, r'input a is torch.float16, must be torch.float32'),
        ({'a': torch.zeros(WIDTH, 2).T}, r'input a has strides \(1, 2\).*contiguous'),
        ({'a': torch.zeros(2, WIDTH, device='meta')}, r'input a is on meta, must be on cpu'),
        ({'a': torch.zeros(3, WIDTH)}, r"differ in their batch: {'a': 3, 'b': 2}"),
    ],
)
def test_what_the_network_cannot_take_is_named(changes, message):
    inputs = {k: v for k, v in {**sample(2), **changes}.items() if v is not None}
    session = Session(engine_on())
    for _ in range(2):  # also after right ones, which the session remembers
        with pytest.raises(ValueError, match=message):
            session.run(inputs)
        assert_answers(session.run(sample(2)), sample(2))
        assert_answers(session.run(sample(2)), sample(2))


def test_misaligned_addresses_are_refused_on_cuda_only():
    whole = torch.zeros(3 * WIDTH + 1)
    part = whole[1 : 1 + 2 * WIDTH].view(2, WIDTH)
    check_inputs(INPUTS, {'a': part, 'b': part}, CPU)


def test_a_fixed_shape_is_kept_to():
    spec = (TensorSpec('x', (2, 3), torch.float32),)
    check_inputs(spec, {'x': torch.zeros(2, 3)}, CPU)
    with pytest.raises(ValueError, match=r'has shape \(1, 3\), must be \(2, 3\)'):
        check_inputs(spec, {'x': torch.zeros(1, 3)}, CPU)
    assert spec[0].sized(9) == (2, 3) and INPUTS[0].sized(9) == (9, WIDTH)


@pytest.mark.parametrize('shape', [(2, BATCH), (BATCH, 0), (0, 3)])
def test_only_the_batch_may_be_free(shape):
    with pytest.raises(ValueError, match='only the first size'):
        TensorSpec('x', shape, torch.float32)


def test_devices_have_an_index():
    assert normalized('cpu') == CPU
    assert normalized('cuda:3') == torch.device('cuda', 3)
    if not torch.cuda.is_available():
        assert normalized('cuda') == torch.device('cuda', 0)


# --- on a CPU ------------------------------------------------------------------------------------
@pytest.mark.parametrize('batch', [1, 5])
def test_a_session_gives_what_its_function_gives(batch):
    inputs = sample(batch)
    assert_answers(Session(engine_on()).run(inputs), inputs)


@pytest.mark.parametrize('shape_of_result', ['tuple', 'mapping'])
def test_outputs_are_named_by_order_or_by_name(shape_of_result):
    def function(a: torch.Tensor, b: torch.Tensor):
        result = arithmetic(a, b)
        return (
            tuple(result.values())
            if shape_of_result == 'tuple'
            else dict(reversed(result.items()))
        )

    inputs = sample(2)
    outputs = Session(engine_on(function=function)).run(inputs)
    assert list(outputs) == ['product', 'sum']
    assert_answers(outputs, inputs)


@pytest.mark.parametrize(
    ('result', 'message'),
    [
        (torch.zeros(1), r"gave 1 outputs, its specs name \['product', 'sum'\]"),
        ({'product': torch.zeros(1)}, r"gave outputs \['product'\]"),
    ],
)
def test_a_function_that_breaks_its_word_is_named(result, message):
    with pytest.raises(ValueError, match=message):
        Session(engine_on(function=lambda a, b: result)).run(sample(1))


def test_a_cache_changes_nothing_on_a_cpu():
    session = Session(engine_on(), CudaGraphCache(2))
    inputs = sample(3)
    assert_answers(session.run(inputs), inputs)
    assert session.cuda_graph_cache is None


def test_the_environment_gives_a_cache_where_none_is_given(monkeypatch):
    monkeypatch.setenv('ENABLE_AUTO_CUDA_GRAPHS_FOR_TRT_BACKEND', 'perhaps')
    with pytest.raises(ValueError, match='must be true or false'):
        Session(engine_on())
    Session(engine_on(), None)  # asks nobody


def test_two_sessions_may_not_share_a_cache():
    cache = CudaGraphCache(2)
    Session(engine_on(), cache)
    with pytest.raises(ValueError, match='one cache for each engine'):
        Session(engine_on(), cache)


def test_a_producer_may_write_into_the_buffers_of_the_session():
    big = {name: torch.zeros(6, WIDTH) for name in 'ab'}
    session = Session(engine_on(), buffers=big)
    inputs = {name: session.input(name, 4) for name in 'ab'}
    for name, value in sample(4).items():
        inputs[name].copy_(value)
    assert inputs['a'].data_ptr() == big['a'].data_ptr() and torch.equal(big['a'][:4], inputs['a'])
    assert_answers(session.run(inputs), inputs)
    with pytest.raises(ValueError, match='batch is 7, the buffer a holds 6'):
        session.input('a', 7)
    with pytest.raises(ValueError, match=r"no input \"x\", only \['a', 'b'\]"):
        session.input('x', 1)
    assert Session(engine_on()).input('b', 3).shape == (3, WIDTH)


def test_buffers_that_the_network_could_not_read_are_refused():
    with pytest.raises(ValueError, match=r"missing \['b'\]"):
        Session(engine_on(), buffers={'a': torch.zeros(6, WIDTH)})


def test_a_traced_file_runs_as_the_function_did(tmp_path):
    file = tmp_path / 'traced.pt'
    traced = torch.jit.trace(
        lambda a, b: tuple(arithmetic(a, b).values()), tuple(sample(2).values())
    )
    traced.save(str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    inputs = sample(2, seed=4)
    engine = load_torchscript(file, digest, INPUTS, OUTPUTS, 'cpu')
    assert_answers(Session(engine).run(inputs), inputs)
    with pytest.raises(ValueError, match='expected 00'):
        load_torchscript(file, '00', INPUTS, OUTPUTS, 'cpu')
    with pytest.raises(ValueError, match='no such TorchScript'):
        load_torchscript(tmp_path / 'absent.pt', digest, INPUTS, OUTPUTS, 'cpu')
    file.write_bytes(b'not a module')
    wrong = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match='no TorchScript that this torch reads'):
        load_torchscript(file, wrong, INPUTS, OUTPUTS, 'cpu')


# --- buckets -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('largest', 'sizes'), [(1, (1,)), (8, (1, 2, 4, 8)), (252, (1, 2, 4, 8, 16, 32, 64, 128, 252))]
)
def test_powers_of_two(largest, sizes):
    assert powers_of_two(largest) == sizes


class Recorder(Session):
    """Notes the batches that reach the network."""

    def run(self, inputs, **options):
        self.batches = [*getattr(self, 'batches', []), len(inputs['a'])]
        return super().run(inputs, **options)


@pytest.mark.parametrize(
    ('batch', 'runs'), [(1, [1]), (3, [4]), (4, [4]), (5, [8]), (8, [8]), (19, [8, 8, 4])]
)
def test_batches_are_rounded_up_and_cut_back(batch, runs):
    session = Recorder(engine_on())
    inputs = sample(batch)
    outputs = BatchBuckets(session, (1, 4, 8)).run(inputs)
    assert session.batches == runs and len(outputs['sum']) == batch
    assert_answers(outputs, inputs)


@pytest.mark.parametrize('sizes', [(), (0, 2)])
def test_buckets_need_sizes(sizes):
    with pytest.raises(ValueError, match='at least one'):
        BatchBuckets(Session(engine_on()), sizes)


def test_buckets_refuse_what_has_no_items():
    with pytest.raises(ValueError, match='at least 1'):
        BatchBuckets(Session(engine_on()), (4,)).run(sample(0))
    with pytest.raises(ValueError, match='at least 1'):
        powers_of_two(0)
