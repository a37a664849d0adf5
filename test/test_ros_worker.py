"""The single-slot worker: newest wins, skips are handed back, failures surface, stop stops."""

from __future__ import annotations

import random
import threading
import time

import pytest

from foundationpose_trt.ros import worker as worker_module
from foundationpose_trt.ros.throttle import RateLimit
from foundationpose_trt.ros.worker import NewestWorker, WorkerFailed

WAIT_S = 5.0


class Gate:
    """A handler that notes its items and waits for a permit on each."""

    def __init__(self):
        self.items, self.entered, self.permits = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, item):
        self.items.append(item)
        self.entered.release()
        assert self.permits.acquire(timeout=WAIT_S)


def test_newest_wins_while_busy_and_the_skipped_are_handed_back():
    gate = Gate()
    worker = NewestWorker(gate)
    worker.start()
    assert worker.offer(1) is None
    assert gate.entered.acquire(timeout=WAIT_S)
    assert [worker.offer(n) for n in (2, 3, 4)] == [None, 2, 3]
    gate.permits.release(2)
    assert gate.entered.acquire(timeout=WAIT_S)
    assert worker.stop() and gate.items == [1, 4]


def test_prefer_decides_which_of_two_waiting_items_stays():
    gate = Gate()
    worker = NewestWorker(gate, prefer=lambda new, pending: new > pending)
    worker.start()
    worker.offer(0)
    assert gate.entered.acquire(timeout=WAIT_S)
    assert worker.offer(5) is None and worker.offer(3) == 3 and worker.offer(7) == 5
    gate.permits.release(2)
    assert gate.entered.acquire(timeout=WAIT_S)
    assert worker.stop() and gate.items == [0, 7]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_an_exception_comes_out_of_raise_failure_with_its_cause():
    def handle(item):
        raise ZeroDivisionError(f'item {item}')

    worker = NewestWorker(handle)
    worker.start()
    worker.raise_failure()
    worker.offer(3)
    deadline = time.monotonic() + WAIT_S
    with pytest.raises(WorkerFailed, match='ZeroDivisionError: item 3') as caught:
        while time.monotonic() < deadline:
            worker.raise_failure()
            time.sleep(0.01)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert worker.stop()


def test_stop_drops_what_waits_and_reports_a_handler_that_runs_on():
    gate = Gate()
    worker = NewestWorker(gate)
    worker.start()
    worker.offer(1)
    assert gate.entered.acquire(timeout=WAIT_S)
    worker.offer(2)
    assert not worker.stop(timeout_s=0.05) and worker.stopping
    gate.permits.release(2)
    assert worker.stop() and gate.items == [1]


def test_stop_without_work_and_twice():
    worker = NewestWorker(print)
    worker.start()
    assert worker.stop() and worker.stop()


@pytest.mark.parametrize(
    ('rate_hz', 'highest_hz', 'expected'),
    [(30.0, 0.0, 30.0), (30.0, 15.0, 15.0), (30.0, 20.0, 20.0), (30.0, 100.0, 30.0)],
)
def test_a_rate_limit_lets_the_highest_mean_rate_through(rate_hz, highest_hz, expected):
    limit = RateLimit(highest_hz)
    jitter = random.Random(1)
    times = [k / rate_hz + jitter.uniform(0, 0.004) for k in range(3000)]
    passed = sum(limit.lets_through(now_s) for now_s in times)
    assert passed / times[-1] == pytest.approx(expected, rel=0.01)


def test_a_rate_limit_makes_up_for_no_pause():
    limit = RateLimit(10.0)
    assert limit.lets_through(0.0) and not limit.lets_through(0.05)
    assert limit.lets_through(5.0) and not limit.lets_through(5.05)


def wait_for(holds):
    end_s = time.monotonic() + WAIT_S
    while not holds() and time.monotonic() < end_s:
        time.sleep(0.005)
    return holds()


def test_without_items_it_makes_its_own_and_takes_those_that_come(monkeypatch):
    monkeypatch.setattr(worker_module, 'IDLE_S', 0.02)
    handled = []
    worker = NewestWorker(handled.append, idle=lambda: 'idle')
    worker.start()
    assert wait_for(lambda: handled.count('idle') >= 2)
    worker.offer('item')
    assert wait_for(lambda: 'item' in handled)
    assert worker.stop()
    count = len(handled)
    time.sleep(0.1)
    assert len(handled) == count
