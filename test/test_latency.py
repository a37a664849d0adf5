"""Percentiles and stage times against closed forms and a clock of the test's own."""

from __future__ import annotations

import math

import pytest

from foundationpose_trt import latency
from foundationpose_trt.latency import StageTimes, summarize_ms


class Clock:
    """Stands in for time.perf_counter; the test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latency.time, 'perf_counter', made)
    return made


def test_percentiles_interpolate_between_samples():
    # of 0..100 in any order, the p-th percentile is p
    samples = [float(value) for value in (*range(100, 50, -1), *range(51))]
    assert summarize_ms(samples) == {'p50': 50.0, 'p95': 95.0, 'max': 100.0}
    assert summarize_ms([1.0, 3.0]) == pytest.approx({'p50': 2.0, 'p95': 2.9, 'max': 3.0})


def test_one_sample_is_every_percentile():
    assert summarize_ms([7.5]) == {'p50': 7.5, 'p95': 7.5, 'max': 7.5}


def test_no_samples_have_no_summary():
    assert summarize_ms([]) == {}


def test_stages_are_measured_apart_in_milliseconds(clock):
    times = StageTimes()
    for seconds in (0.010, 0.030):
        with times.measure('register'):
            clock.now_s += seconds
    with times.measure('track'):
        clock.now_s += 0.002
    times.add('publish', 4)
    assert times.last_ms('register') == pytest.approx(30)
    assert times.summary()['register'] == pytest.approx({'p50': 20, 'p95': 29, 'max': 30})
    assert times.summary()['track']['max'] == pytest.approx(2)
    assert times.summary()['publish'] == {'p50': 4.0, 'p95': 4.0, 'max': 4.0}
    assert isinstance(times.last_ms('publish'), float)


def test_stages_nest(clock):
    times = StageTimes()
    with times.measure('frame'):
        clock.now_s += 0.001
        with times.measure('track'):
            clock.now_s += 0.005
    assert times.last_ms('track') == pytest.approx(5)
    assert times.last_ms('frame') == pytest.approx(6)


def test_a_stage_that_raises_is_counted_and_the_error_goes_on(clock):
    times = StageTimes()
    with pytest.raises(KeyError), times.measure('track'):
        clock.now_s += 0.007
        raise KeyError
    assert times.last_ms('track') == pytest.approx(7)


def test_asking_for_an_unknown_stage_fails_and_leaves_no_trace():
    times = StageTimes()
    with pytest.raises(IndexError):
        times.last_ms('register')
    assert times.summary() == {}


def test_real_clock_moves():
    times = StageTimes()
    with times.measure('sum'):
        math.fsum(range(1000))
    assert 0 < times.last_ms('sum') < 1000
