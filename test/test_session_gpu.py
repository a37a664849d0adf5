"""Sessions on a GPU: a graph changes nothing but the time, under threads and across streams."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foundationpose_trt.runtime.build import BuildOptions, build_engine
from foundationpose_trt.runtime.cuda_graph import is_lasting
from foundationpose_trt.runtime.graph_cache import CudaGraphCache
from foundationpose_trt.runtime.session import Session
from foundationpose_trt.runtime.specs import BATCH, TensorSpec
from foundationpose_trt.runtime.tensorrt_engine import TensorRtEngine
from foundationpose_trt.runtime.torch_engine import TorchEngine

pytestmark = pytest.mark.gpu
WIDTH = 64  # floats of one item: 256 bytes, so that every slice is aligned
INPUT = TensorSpec('a', (BATCH, WIDTH), torch.float32)
OUTPUT = TensorSpec('y', (BATCH, WIDTH), torch.float32)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, 256), torch.nn.GELU(), torch.nn.Linear(256, WIDTH)]
    return torch.nn.Sequential(*layers).cuda().eval()


@pytest.fixture(scope='module')
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a TensorRT engine, built once."""
    pytest.importorskip('tensorrt')
    folder = tmp_path_factory.mktemp('plan')
    torch.onnx.export(
        network().cpu(), (torch.zeros(2, WIDTH),), str(folder / 'net.onnx'), dynamo=False,
        input_names=['a'], output_names=['y'], opset_version=17,
        dynamic_axes={'a': {0: 'batch'}, 'y': {0: 'batch'}},
    )  # fmt: skip
    options = BuildOptions(backend='tensorrt', batches=(1, 4, 64))
    build_engine(folder / 'net.onnx', folder / 'net.engine', options)
    return folder / 'net.engine'


Graphed = Callable[..., tuple[Session, torch.nn.Module]]


@pytest.fixture(params=['torch', 'tensorrt'])
def graphed(request: pytest.FixtureRequest) -> Graphed:
    """Makes a session with a cache over either engine of the network, and the network."""
    plan = request.getfixturevalue('plan') if request.param == 'tensorrt' else None

    def make(capacity: int = 4) -> tuple[Session, torch.nn.Module]:
        return session_of(plan, capacity)

    return make


def session_of(plan: Path | None, capacity: int) -> tuple[Session, torch.nn.Module]:
    net = network()
    own = TorchEngine('net', net, (INPUT,), (OUTPUT,), 'cuda')
    engine = own if plan is None else TensorRtEngine(plan)
    return Session(engine, CudaGraphCache(capacity)), net


def noise(batch: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.mark.parametrize('batch', [1, 4, 17])
def test_capture_replay_and_eager_agree_and_follow_their_input(graphed, batch):
    session, _ = graphed()
    first, second = noise(batch, 1), noise(batch, 2)
    eager = [
        session.run({'a': x}, disable_cuda_graphs=True, clone=True)['y'] for x in (first, second)
    ]
    captured = session.run({'a': first}, clone=True)['y']
    replayed = [session.run({'a': x}, clone=True)['y'] for x in (first, second, first)]
    assert torch.equal(captured, eager[0]) and torch.equal(replayed[0], eager[0])
    assert torch.equal(replayed[1], eager[1]) and torch.equal(replayed[2], eager[0])
    assert not torch.equal(replayed[0], replayed[1])
    stats = session.cuda_graph_cache.stats()
    assert (stats.captures, stats.hits, stats.misses, stats.failed_captures) == (1, 3, 1, 0)
    assert stats.nbytes >= 2 * batch * WIDTH * 4


@pytest.mark.parametrize(('word', 'enabled'), [('true', True), ('false', False)])
def test_the_environment_switches_graphs_on_and_a_call_off(monkeypatch, word, enabled):
    monkeypatch.setenv('ENABLE_AUTO_CUDA_GRAPHS_FOR_TRT_BACKEND', word)
    session = Session(TorchEngine('net', network(), (INPUT,), (OUTPUT,), 'cuda'))
    assert (session.cuda_graph_cache is not None) == enabled
    x = noise(2, 1)
    session.run({'a': x}, disable_cuda_graphs=True)
    assert not enabled or session.cuda_graph_cache.get_current_size() == 0
    session.run({'a': x})
    assert not enabled or session.cuda_graph_cache.get_current_size() == 1


def key_of(batch: int) -> tuple:
    return (batch, WIDTH), torch.float32, torch.device('cuda', 0)


def assert_replays_equal_eager(session: Session, batch: int) -> None:
    for seed in (batch, batch + 100):
        x = noise(batch, seed)
        eager = session.run({'a': x}, disable_cuda_graphs=True, clone=True)['y']
        assert torch.equal(session.run({'a': x}, clone=True)['y'], eager)
        assert eager.shape == (batch, WIDTH)


def test_a_shape_seen_before_is_never_captured_again(graphed):
    """The reference's own sequence of batches (roboflow.md A6)."""
    session, _ = graphed(16)
    cache, seen = session.cuda_graph_cache, set()
    for batch in (1, 2, 1, 4, 2, 1, 4, 3, 3):
        assert_replays_equal_eager(session, batch)
        seen.add(key_of(batch))
        assert cache.get_current_size() == len(seen)
    assert set(cache.list_keys()) == seen and cache.stats().captures == 4


def test_the_least_recently_used_shape_goes_and_the_others_still_replay(graphed):
    session, _ = graphed(3)
    for batch in (1, 2, 3, 4):
        assert_replays_equal_eager(session, batch)
    assert session.cuda_graph_cache.list_keys() == [key_of(2), key_of(3), key_of(4)]
    for batch in (2, 5):
        assert_replays_equal_eager(session, batch)
    assert session.cuda_graph_cache.list_keys() == [key_of(4), key_of(2), key_of(5)]
    for batch in (4, 2, 5):
        assert_replays_equal_eager(session, batch)
    assert session.cuda_graph_cache.stats().evictions == 2


def test_a_closed_or_dropped_session_gives_its_memory_back(graphed):
    session, net = graphed()
    x = noise(64, 1)
    view = session.run({'a': x})['y']
    cache = session.cuda_graph_cache
    session.close()
    assert cache.get_current_size() == 0 and session.cuda_graph_cache is None
    torch.testing.assert_close(view, net(x))  # the caller's still
    torch.testing.assert_close(session.run({'a': x}, clone=True)['y'], net(x))
    dropped, _ = graphed()
    dropped.run({'a': x})
    cache, gone = dropped.cuda_graph_cache, weakref.ref(dropped)
    del dropped
    gc.collect()
    assert gone() is None and cache.get_current_size() == 0


def test_outputs_are_views_that_the_next_run_overwrites(graphed):
    session, _ = graphed()
    view = session.run({'a': noise(2, 1)})['y']
    kept = view.clone()
    again = session.run({'a': noise(2, 2)})['y']
    assert view.data_ptr() == again.data_ptr() and not torch.equal(view, kept)
    copy = session.run({'a': noise(2, 1)}, clone=True)['y']
    session.run({'a': noise(2, 2)})
    assert torch.equal(copy, kept)


def test_a_hit_neither_waits_nor_allocates(graphed):
    session, _ = graphed()
    buffer = session.input('a', 3)
    buffer.copy_(noise(3, 1))
    session.run({'a': buffer})
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()['allocation.all.allocated']
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(10):
            session.run({'a': buffer})
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.cuda.memory_stats()['allocation.all.allocated'] == before


def test_streams_wait_for_one_another(graphed):
    """The producer is slow and on another stream; nobody waits on the host."""
    session, net = graphed()
    session.run({'a': noise(64, 0)})
    expected = net(noise(64, 3))
    for _ in range(20):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            late = torch.zeros(64, WIDTH, device='cuda')
            torch.cuda._sleep(2_000_000)
            late.copy_(noise(64, 3))
            got = session.run({'a': late}, clone=True)['y']
        torch.cuda.current_stream().wait_stream(stream)
        torch.testing.assert_close(got, expected)


def test_streams_of_others_are_waited_for_too(graphed):
    own, other = torch.cuda.Stream(), torch.cuda.Stream()
    foreign = torch.cuda.ExternalStream(torch.cuda.Stream().cuda_stream)
    assert [is_lasting(s) for s in (own, torch.cuda.default_stream(), foreign)] == [
        True, True, False,
    ]  # fmt: skip
    session, net = graphed()
    session.run({'a': noise(8, 0)})
    results = []
    torch.cuda.synchronize()
    for step, stream in enumerate((own, foreign, foreign, other, foreign, own) * 5):
        with torch.cuda.stream(stream):
            x = noise(8, step)
            torch.cuda._sleep(200_000)
            results.append((session.run({'a': x}, clone=True)['y'], step))
    torch.cuda.synchronize()
    for got, step in results:
        torch.testing.assert_close(got, net(noise(8, step)))


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so_once(caplog):
    def waits(a: torch.Tensor) -> torch.Tensor:
        return a * float(a.sum().item() * 0 + 2)  # .item() is forbidden during capture

    engine = TorchEngine('waits', waits, (INPUT,), (OUTPUT,), 'cuda')
    session = Session(engine, CudaGraphCache(2))
    x = noise(2, 1)
    for _ in range(3):
        torch.testing.assert_close(session.run({'a': x}, clone=True)['y'], x * 2)
    assert len([r for r in caplog.records if 'cannot be captured' in r.message]) == 1
    stats = session.cuda_graph_cache.stats()
    assert (stats.failed_captures, stats.captures, stats.hits) == (1, 0, 2)
    # torch is whole afterwards: random numbers, other captures, freed memory
    assert torch.rand(3, device='cuda').isfinite().all()
    other, net = session_of(None, 4)
    torch.testing.assert_close(other.run({'a': x}, clone=True)['y'], net(x))
    assert other.cuda_graph_cache.stats().captures == 1
    big = torch.empty(256 << 20, dtype=torch.uint8, device='cuda')
    reserved = torch.cuda.memory_reserved()
    del big
    other.cuda_graph_cache.purge()
    assert torch.cuda.memory_reserved() <= reserved - (256 << 20)


def test_a_network_runs_as_often_as_it_must_before_it_is_captured():
    """TorchScript compiles in its second run."""
    capturing = []

    def noting(a: torch.Tensor) -> torch.Tensor:
        capturing.append(torch.cuda.is_current_stream_capturing())
        return a * 2

    engine = TorchEngine('notes', noting, (INPUT,), (OUTPUT,), 'cuda', warm_up_runs=3)
    session = Session(engine, CudaGraphCache(2))
    x = noise(2, 1)
    torch.testing.assert_close(session.run({'a': x}, clone=True)['y'], x * 2)
    assert capturing == [False] * 3 + [True]


def test_an_engine_that_lost_all_its_graphs_captures_again(graphed):
    session, net = graphed()
    x = noise(3, 1)
    view = session.run({'a': x})['y']
    for _ in range(3):
        session.cuda_graph_cache.purge()
        torch.testing.assert_close(session.run({'a': x}, clone=True)['y'], net(x))
    assert session.cuda_graph_cache.stats().captures == 4
    torch.testing.assert_close(view, net(x))  # held by the caller all the while


def test_outputs_of_one_shape_outlive_launches_of_another(graphed):
    session, net = graphed(4)
    samples = {batch: noise(batch, batch) for batch in (64, 1, 32, 2)}
    views = {batch: session.run({'a': x})['y'] for batch, x in samples.items()}
    for batch, x in samples.items():
        torch.testing.assert_close(views[batch], net(x))


def test_ten_thousand_mixed_shapes_with_purges_from_another_thread_keep_memory_flat(graphed):
    session, net = graphed(3)
    samples = {batch: noise(batch, batch) for batch in range(1, 7)}
    expected = {batch: net(x).clone() for batch, x in samples.items()}
    stop = threading.Event()

    def purge() -> None:
        while not stop.wait(0.02):
            session.cuda_graph_cache.purge(1)

    def rounds(count: int) -> None:
        for step in range(count):
            batch = 1 + (step * 5) % 6 if step % 50 == 0 else 1 + step // 50 % 3
            got = session.run({'a': samples[batch]}, clone=True)['y']
            if step % 97 == 0:
                torch.testing.assert_close(got, expected[batch])

    purger = threading.Thread(target=purge)
    purger.start()
    try:
        rounds(2000)
        torch.cuda.synchronize()
        before, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
        rounds(8000)
    finally:
        stop.set()
        purger.join(10)
    session.cuda_graph_cache.purge()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    assert torch.cuda.mem_get_info()[0] >= free - (32 << 20)  # TensorRT's own memory, too


def test_threads_that_share_a_session_get_their_own_answers(graphed):
    session, net = graphed(2)
    failures: list[int] = []

    def work(seed: int) -> None:
        x = noise(4, seed)
        want = net(x)
        for _ in range(200):
            got = session.run({'a': x}, clone=True)['y']
            if not torch.allclose(got, want, atol=1e-5):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and session.cuda_graph_cache.stats().captures == 1


def test_a_graph_may_be_captured_while_another_thread_uses_the_device(graphed):
    session, net = graphed(16)
    stop, errors = threading.Event(), []
    own = torch.Generator('cuda')  # before torch 2.12 a capture holds the default one

    def busy() -> None:
        while not stop.is_set():
            x = torch.randn(256, 256, device='cuda', generator=own)
            if not bool((x @ x).isfinite().all()):
                errors.append('not finite')

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for batch in range(1, 13):
            x = noise(batch, batch)
            torch.testing.assert_close(session.run({'a': x}, clone=True)['y'], net(x))
    finally:
        stop.set()
        thread.join(10)
    assert not errors and session.cuda_graph_cache.stats().captures == 12
