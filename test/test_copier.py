"""Copies beside the calling thread: made once, whole, whoever makes them."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from foundationpose_trt.pose import copier as module
from foundationpose_trt.pose.copier import Copier


def threads() -> int:
    return sum(thread.name == 'copier' for thread in threading.enumerate())


def waited(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_every_copy_is_there_when_finish_returns():
    copier, target = Copier(), np.zeros((480, 640, 3), np.uint8)
    rng = np.random.default_rng(0)
    for turn in range(300):
        source = np.full_like(target, turn % 256)
        copier.start(target, source)
        if turn % 3 == 0:
            time.sleep(rng.uniform(0, 0.002))
        assert copier.finish()
        assert (target == turn % 256).all()
        target[:] = 77  # nobody writes from here on


def test_the_other_thread_makes_the_copy(monkeypatch):
    makers, copy = [], np.copyto

    def copyto(*arrays: np.ndarray) -> None:
        makers.append(threading.current_thread().name)
        copy(*arrays)

    monkeypatch.setattr(module.np, 'copyto', copyto)
    copier, target = Copier(), np.zeros(4)
    copier.start(target, np.ones(4))
    assert waited(lambda: (target == 1).all())
    assert copier.finish() and makers == ['copier']


def test_what_nobody_has_begun_is_made_by_who_waits(monkeypatch):
    monkeypatch.setattr(threading.Thread, 'start', lambda self: None)
    copier, target = Copier(), np.zeros(4)
    for value in (1, 2, 3):
        copier.start(target, np.full(4, value))
        assert copier.finish()
        assert (target == value).all()


def test_without_a_start_there_is_nothing_to_finish():
    copier, target = Copier(), np.zeros(4)
    assert not copier.finish()
    copier.start(target, np.ones(4))
    assert copier.finish()
    assert not copier.finish()


def test_a_start_after_one_that_was_not_finished_makes_both():
    copier, one, other = Copier(), np.zeros(4), np.zeros(4)
    copier.start(one, np.ones(4))
    copier.start(other, np.ones(4))
    assert (one == 1).all()
    assert copier.finish() and (other == 1).all()


def test_an_error_reaches_who_waits_and_the_next_copy_is_made():
    copier, target = Copier(), np.zeros(4)
    for _ in range(20):
        copier.start(target, np.zeros(5))
        with pytest.raises(ValueError, match='could not broadcast'):
            copier.finish()
        copier.start(target, np.ones(4))
        assert copier.finish() and (target == 1).all()


def test_the_thread_ends_with_its_owner():
    gc.collect()
    before = threads()
    copier = Copier()
    assert threads() == before, 'none before there is work'
    copier.start(np.zeros(4), np.ones(4))
    copier.finish()
    assert threads() == before + 1
    del copier
    gc.collect()
    assert waited(lambda: threads() == before)
