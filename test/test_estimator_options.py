"""Schedules as text, and options that are refused before anything is loaded."""

from __future__ import annotations

import argparse

import pytest

from foundationpose_trt.pose.estimator import FULL_SCHEDULE, PRUNED_SCHEDULE, RegisterStage
from foundationpose_trt.tools import estimator_options
from foundationpose_trt.tools.estimator_options import (
    add_estimator_arguments,
    chosen_estimator,
    schedule_of,
)


def test_schedules_have_names_or_stages():
    assert schedule_of('full') == FULL_SCHEDULE and schedule_of('pruned') == PRUNED_SCHEDULE
    assert schedule_of('1:64:depth,1:32,3:32') == (
        RegisterStage(1, 64, 'depth'), RegisterStage(1, 32), RegisterStage(3, 32),
    )  # fmt: skip
    assert schedule_of('5:252') == FULL_SCHEDULE


@pytest.mark.parametrize('text', ['', 'fast', '5', '5:252,', '5:-1', 'a:b', '1:64:Depth', '1:2:3'])
def test_other_words_are_no_schedule(text):
    with pytest.raises(ValueError, match=f'schedule "{text}" must be one of full, pruned'):
        schedule_of(text)


@pytest.mark.parametrize(
    ('words', 'error'),
    [
        ('--schedule 0:0', 'keep >= 1'),
        ('--schedule 5:252:depth', 'its judge must be the scorer'),
        ('--schedule 1:64:nose,1:32', "judge must be 'scorer' or 'depth'"),
        ('--chunk -1', 'chunk is -1'),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(words, error, monkeypatch):
    monkeypatch.setattr(estimator_options, '_loaded', lambda choice: pytest.fail('loaded'))
    parser = argparse.ArgumentParser()
    add_estimator_arguments(parser)
    with pytest.raises(ValueError, match=error):
        chosen_estimator(parser.parse_args([*words.split(), '--device', 'cpu']))
