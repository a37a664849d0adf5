"""The graph cache: the reference's behaviour row by row, and its holes (roboflow.md A1, A5)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch

from foundationpose_trt.runtime.graph_cache import (
    ENABLING_VARIABLE,
    CudaGraphCache,
    establish_cuda_graph_cache,
)
from foundationpose_trt.runtime.specs import graph_key

CUDA = torch.device('cuda', 0)


def key_of(batch: int, device: torch.device | str = CUDA) -> tuple:
    return (batch, 3, 8, 8), torch.float32, device


@dataclass
class FakeEntry:
    """Stands for a captured graph; notes what happens to it."""

    name: int = 0
    captured: bool = True
    nbytes: int = 100
    log: list[str] = field(default_factory=list)

    def wait(self) -> None:
        self.log.append('wait')

    def close(self) -> None:
        self.log.append('close')


class Rig:
    """A cache with a counting flush and a record of every entry ever made."""

    def __init__(self, capacity: int) -> None:
        self.flushes = 0
        self.made: list[FakeEntry] = []
        self.cache: CudaGraphCache[FakeEntry] = CudaGraphCache(capacity, self._flush)

    def _flush(self) -> None:
        self.flushes += 1

    def make(self, batch: int, **changes) -> FakeEntry:
        entry = FakeEntry(batch, **changes)
        self.made.append(entry)
        return entry

    def use(self, *batches: int) -> None:
        for batch in batches:
            with self.cache.lease(key_of(batch), lambda b=batch: self.make(b)) as entry:
                assert entry.name == batch

    def order(self) -> list[int]:
        return [key[0][0] for key in self.cache.list_keys()]

    def closed(self) -> list[int]:
        return [entry.name for entry in self.made if 'close' in entry.log]


# --- the reference's behaviour (A1, A6) ----------------------------------------------------------
def test_size_grows_on_first_sight_of_a_shape_and_never_on_repeats():
    rig, seen = Rig(16), set()
    for batch in (1, 2, 1, 4, 2, 1, 4, 3, 3):
        before = rig.cache.get_current_size()
        rig.use(batch)
        assert rig.cache.get_current_size() - before == (batch not in seen)
        seen.add(batch)
    assert set(rig.order()) == seen and len(rig.made) == 4


def test_the_least_recently_used_goes_first():
    rig = Rig(3)
    rig.use(1, 2, 3)
    assert rig.order() == [1, 2, 3]
    rig.use(4)
    assert rig.order() == [2, 3, 4] and rig.closed() == [1]
    rig.use(2)
    rig.use(5)
    assert rig.order() == [4, 2, 5] and rig.closed() == [1, 3]


def test_asking_whether_a_key_is_there_leaves_the_order():
    rig = Rig(2)
    rig.use(1, 2)
    assert key_of(1) in rig.cache and key_of(7) not in rig.cache
    rig.use(3)
    assert rig.order() == [2, 3]


def test_the_device_without_an_index_is_the_first():
    rig = Rig(4)
    rig.use(1)
    assert key_of(1, 'cuda') in rig.cache and key_of(1, torch.device('cuda')) in rig.cache
    assert key_of(1, 'cuda:1') not in rig.cache
    rig.cache.safe_remove(key_of(1, 'cuda'))
    assert rig.cache.get_current_size() == 0


def test_removal_is_silent_when_there_is_nothing():
    rig = Rig(4)
    rig.use(1, 2)
    rig.cache.safe_remove(key_of(9))
    assert (rig.cache.get_current_size(), rig.flushes) == (2, 0)
    rig.cache.safe_remove(key_of(1))
    assert (rig.order(), rig.closed(), rig.flushes) == ([2], [1], 1)


@pytest.mark.parametrize(
    ('count', 'left'),
    [(None, []), (0, [1, 2, 3]), (-2, [1, 2, 3]), (2, [3]), (3, []), (99, [])],
)
def test_purge_takes_the_oldest_and_flushes_once(count, left):
    rig = Rig(4)
    rig.use(1, 2, 3)
    rig.cache.purge(count)
    assert rig.order() == left and rig.flushes == 1
    assert rig.closed() == [n for n in (1, 2, 3) if n not in left]


def test_eviction_does_not_flush_the_allocator():
    rig = Rig(1)
    rig.use(1, 2, 3)
    assert rig.closed() == [1, 2] and rig.flushes == 0


@pytest.mark.parametrize('capacity', [0, -1, 2.5, '8'])
def test_a_capacity_that_holds_nothing_is_refused(capacity):
    with pytest.raises(ValueError, match='at least 1'):
        CudaGraphCache(capacity)
    with pytest.raises(ValueError, match='at least 1'):
        CudaGraphCache(1).resize(capacity)


def test_the_capacity_may_shrink_and_grow():
    rig = Rig(4)
    rig.use(1, 2, 3, 4)
    rig.cache.resize(2)
    assert (rig.order(), rig.cache.capacity) == ([3, 4], 2)
    rig.cache.resize(3)
    rig.use(5)
    assert rig.order() == [3, 4, 5]


def test_a_retired_cache_keeps_nothing_that_comes_late():
    rig = Rig(4)
    rig.use(1)
    with rig.cache.lease(key_of(2), lambda: rig.cache.retire() or rig.make(2)) as entry:
        assert entry.log == []
    assert rig.order() == [] and rig.closed() == [1, 2] and rig.flushes == 2


def test_a_retired_cache_that_is_bound_again_serves_again():
    rig, engine = Rig(capacity=3), object()
    rig.cache.bind(engine)
    rig.cache.retire()
    rig.cache.bind(engine)
    for _ in range(3):
        with rig.cache.lease(key_of(1), lambda: rig.make(1)):
            pass
    stats = rig.cache.stats()
    assert (stats.hits, stats.misses, rig.cache.get_current_size()) == (2, 1, 1)


def test_a_cache_that_two_sessions_share_is_cleared_by_the_last():
    rig, engine = Rig(capacity=3), object()
    rig.cache.bind(engine)
    rig.cache.bind(engine)
    with rig.cache.lease(key_of(1), lambda: rig.make(1)):
        pass
    rig.cache.retire()
    assert key_of(1) in rig.cache
    rig.cache.retire()
    assert rig.cache.get_current_size() == 0


def test_one_cache_serves_one_engine():
    cache, engine = CudaGraphCache(2), object()
    cache.bind(engine)
    cache.bind(engine)
    with pytest.raises(ValueError, match='one cache for each engine'):
        cache.bind(object())


def test_counters_and_memory():
    rig = Rig(2)
    rig.use(1, 1, 1, 2)
    with rig.cache.lease(key_of(3), lambda: rig.make(3, captured=False, nbytes=7)):
        pass
    stats = rig.cache.stats()
    assert (stats.hits, stats.misses, stats.captures, stats.failed_captures) == (2, 3, 2, 1)
    assert (stats.evictions, stats.capacity, stats.nbytes) == (1, 2, 107)
    assert list(stats.entry_bytes.values()) == [100, 7]


@pytest.mark.parametrize(
    ('word', 'enabled'),
    [(None, False), ('', False), ('False', False), ('1', True), ('TRUE', True)],
)
def test_the_environment_switches_graphs_on(monkeypatch, word, enabled):
    monkeypatch.delenv(ENABLING_VARIABLE, raising=False)
    if word is not None:
        monkeypatch.setenv(ENABLING_VARIABLE, word)
    cache = establish_cuda_graph_cache(5)
    assert (cache is not None) == enabled
    assert cache is None or cache.capacity == 5
    mine = CudaGraphCache(2)
    assert establish_cuda_graph_cache(5, mine) is mine


def test_a_word_that_is_neither_yes_nor_no_is_refused(monkeypatch):
    monkeypatch.setenv(ENABLING_VARIABLE, 'maybe')
    with pytest.raises(ValueError, match='"maybe", must be true or false'):
        establish_cuda_graph_cache()


def test_keys_are_shape_dtype_and_device():
    one, other = torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.float16)
    assert graph_key({'a': one, 'b': one}) == ((2, 3), torch.float32, torch.device('cpu'))
    assert graph_key({'a': one, 'b': other})[0] == ((2, 3), (2, 4))


# --- what breaks in the reference (A5) -----------------------------------------------------------
def test_what_is_in_use_outlives_its_removal():
    """A5 holes 1 and 2: a purge during a call neither raises nor releases under it."""
    rig = Rig(2)
    with rig.cache.lease(key_of(1), lambda: rig.make(1)) as entry:
        rig.cache.purge()
        rig.cache.safe_remove(key_of(1))
        assert rig.order() == [] and entry.log == []
        with rig.cache.lease(key_of(2), lambda: rig.make(2)):
            pass
    assert entry.log == ['wait', 'close']  # its last launch is waited for, then it goes
    assert rig.flushes == 2  # at the end of the purge, and when the memory came free
    assert rig.order() == [2]


def test_an_entry_with_two_users_goes_with_the_second():
    rig, inside, leave = Rig(1), threading.Event(), threading.Event()

    def first() -> None:
        with rig.cache.lease(key_of(1), lambda: rig.make(1)):
            inside.set()
            leave.wait(5)

    def second() -> None:
        with rig.cache.lease(key_of(1), lambda: rig.make(-1)) as entry:
            assert entry.name == 1 and entry.log == []

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(5)
    threads[1].start()
    while rig.cache.stats().hits == 0:
        time.sleep(0.001)
    rig.cache.purge()
    leave.set()
    for thread in threads:
        thread.join(5)
    assert rig.made[0].log == ['wait', 'close'] and len(rig.made) == 1


def test_two_threads_that_miss_one_key_make_it_once():
    """A5 hole 3."""
    rig, barrier = Rig(4), threading.Barrier(6)

    def slow() -> FakeEntry:
        time.sleep(0.05)
        return rig.make(1)

    def work() -> None:
        barrier.wait(5)
        with rig.cache.lease(key_of(1), slow):
            pass

    run_all([work] * 6)
    stats = rig.cache.stats()
    assert (len(rig.made), stats.misses, stats.hits) == (1, 1, 5)


def run_all(jobs: list) -> None:
    """Run every job in a thread of its own; what one raises, this raises."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for result in [pool.submit(job) for job in jobs]:
            result.result(60)


def test_one_slow_key_does_not_hold_up_another():
    rig, building, go_on = Rig(4), threading.Event(), threading.Event()

    def slow() -> FakeEntry:
        building.set()
        assert go_on.wait(5)
        return rig.make(1)

    thread = threading.Thread(target=lambda: rig.cache.lease(key_of(1), slow).__enter__())
    thread.start()
    assert building.wait(5)
    rig.use(2)  # would hang if building held the lock
    go_on.set()
    thread.join(5)
    assert rig.order() == [2, 1]


def test_calls_on_one_key_come_one_after_the_other():
    """A5 hole 4: they share buffers."""
    rig, inside = Rig(2), []

    def work() -> None:
        for _ in range(20):
            with rig.cache.lease(key_of(1), lambda: rig.make(1)):
                inside.append(1)
                assert len(inside) == 1
                time.sleep(0.0005)
                inside.pop()

    run_all([work] * 4)


def test_a_failed_making_is_tried_again_and_blocks_nobody():
    rig = Rig(2)

    def broken() -> FakeEntry:
        raise MemoryError('out of device memory')

    for _ in range(2):
        with pytest.raises(MemoryError), rig.cache.lease(key_of(1), broken):
            pass
    rig.use(1)
    assert rig.order() == [1]


def test_ten_thousand_mixed_calls_with_purges_from_another_thread():
    rig, stop = Rig(3), threading.Event()

    def work(offset: int) -> None:
        for step in range(2500):
            batch = 1 + (step * 7 + offset) % 6
            with rig.cache.lease(key_of(batch), lambda b=batch: rig.make(b)) as entry:
                assert entry.name == batch and 'close' not in entry.log

    def purge() -> None:
        while not stop.is_set():
            rig.cache.purge(1)
            rig.cache.safe_remove(key_of(2))
            time.sleep(0.0002)

    purger = threading.Thread(target=purge)
    purger.start()
    try:
        run_all([lambda n=n: work(n) for n in range(4)])
    finally:
        stop.set()
        purger.join(5)
    stats = rig.cache.stats()
    assert stats.hits + stats.misses == 10_000 and stats.misses == len(rig.made)
    rig.cache.purge()
    assert all(entry.log == ['wait', 'close'] for entry in rig.made)  # each closed once
