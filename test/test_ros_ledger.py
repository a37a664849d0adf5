"""Counting frames that were never handled: against a list of events, one end for each frame."""

from __future__ import annotations

import random
from collections import Counter

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from foundationpose_trt.ros.ledger import FrameLedger


def test_a_frame_is_dropped_once_and_never_after_it_was_handled():
    ledger = FrameLedger()
    ledger.handle(1)
    for stamp in (1, 2, 2):
        ledger.drop(stamp)
    assert ledger.dropped == 1 and ledger.was_dropped(2) and not ledger.was_dropped(1)


def test_a_frame_set_aside_counts_when_it_is_pushed_out_or_given_up():
    ledger = FrameLedger(waiting=2)
    for stamp in (1, 2, 3):
        ledger.set_aside(stamp)
    assert ledger.dropped == 1 and ledger.was_dropped(1)
    ledger.handle(3)
    ledger.expect_none()
    assert ledger.dropped == 2 and not ledger.was_dropped(3)


def test_a_bag_that_loops_is_counted_anew_but_what_is_still_in_work_is_not_forgotten():
    ledger = FrameLedger()
    for stamp in (1, 2_000_000_000):
        ledger.meet(stamp)
        ledger.handle(stamp)
        ledger.handle(stamp)  # tracked in and registered from
    ledger.meet(1)  # the next run begins while the worker is at the last frame of this one
    ledger.drop(2_000_000_000)
    assert ledger.dropped == 0
    assert not ledger.was_handled(1)
    ledger.drop(1)
    ledger.meet(1)
    ledger.drop(1)
    assert ledger.dropped == 2


def test_every_frame_ends_exactly_once_whatever_the_order():
    rng = random.Random(3)
    ledger, ends = FrameLedger(waiting=5), Counter()
    for stamp in range(500):
        way = rng.choice(['handle', 'drop', 'aside', 'aside and back'])
        if way.startswith('aside'):
            ledger.set_aside(stamp)
        back = way == 'aside and back' and not ledger.was_dropped(stamp)
        if way == 'handle' or back:
            ledger.handle(stamp)
            ends['handled'] += 1
        if way == 'drop' or rng.random() < 0.2:
            ledger.drop(stamp)  # of no effect for those that were handled
    ledger.expect_none()
    assert ledger.dropped + ends['handled'] == 500
