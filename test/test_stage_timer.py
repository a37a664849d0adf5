"""Times of stages: by the clock on a CPU, by events that the GPU may not have passed yet."""

from __future__ import annotations

import time

import pytest
import torch

from foundationpose_trt.runtime import stage_timer
from foundationpose_trt.runtime.stage_timer import PENDING, StageTimer


class FakeEvent:
    """Passed when the test says so; recorded at a time of the test's own."""

    now_ms = 0.0
    passed_until_ms = 0.0

    def __init__(self, enable_timing=False):
        assert enable_timing, 'such events have no times'

    def record(self, stream):
        assert stream == 'stream of cuda', 'not of the device that is timed'
        self.at_ms = FakeEvent.now_ms

    def query(self):
        return self.at_ms <= FakeEvent.passed_until_ms

    def elapsed_time(self, other):
        assert self.query() and other.query(), 'reading this pair would wait'
        return other.at_ms - self.at_ms


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(stage_timer.torch.cuda, 'Event', FakeEvent)
    # torch's own asks the driver, if torch is built for CUDA
    monkeypatch.setattr(stage_timer, 'current_stream', lambda d: f'stream of {d}')
    FakeEvent.now_ms = FakeEvent.passed_until_ms = 0.0


@pytest.fixture
def timer(cuda):
    return StageTimer(torch.device('cuda'))


def measure(timer, start_ms, end_ms):
    FakeEvent.now_ms = start_ms
    with timer:
        FakeEvent.now_ms = end_ms


def test_a_measurement_is_read_once_the_gpu_has_passed_it(timer):
    assert timer.last_ms() is None
    measure(timer, 10, 13)
    assert timer.last_ms() is None, 'not passed yet'
    FakeEvent.passed_until_ms = 12
    assert timer.last_ms() is None
    measure(timer, 20, 27)
    FakeEvent.passed_until_ms = 25
    assert timer.last_ms() == 3
    FakeEvent.passed_until_ms = 30
    assert timer.last_ms() == 7


def test_a_gpu_that_lags_costs_old_measurements_and_no_memory(timer):
    for k in range(20):
        measure(timer, 10 * k, 10 * k + k)
    assert len(timer._pending) == PENDING
    FakeEvent.passed_until_ms = 1e9
    assert timer.last_ms() == 19


def test_where_events_would_cost_too_much_one_of_many_is_measured(cuda):
    timer = StageTimer(torch.device('cuda'), every=3)
    FakeEvent.passed_until_ms = 1e9
    found = []
    for k in range(7):
        measure(timer, 100 * k, 100 * k + k + 1)
        found.append(timer.take_ms())
    assert found == [1, None, None, 4, None, None, 7]


def test_a_stage_that_fails_is_not_taken_for_the_next_ones_beginning(cuda):
    timer = StageTimer(torch.device('cuda'), every=2)
    FakeEvent.passed_until_ms = 1e9
    with pytest.raises(KeyError), timer:
        raise KeyError
    measure(timer, 10, 15)
    assert len(timer._pending) == 1


def test_on_a_cpu_the_clock_counts():
    timer = StageTimer(torch.device('cpu'))
    assert timer.last_ms() is None
    with timer:
        time.sleep(0.02)
    assert 20 <= timer.last_ms() < 200
