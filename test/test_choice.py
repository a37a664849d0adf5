"""Which TensorRT serves a GPU: those that build for it, and those whose engines are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foundationpose_trt.runtime import choice
from foundationpose_trt.runtime.choice import fitting_tensorrt
from foundationpose_trt.runtime.engine_manifest import Platform, covers

CUDA = torch.device('cuda')


class Rtx:
    """Of TensorRT-RTX 1.7: what it can be told to build for."""

    backend, version, is_rtx = 'tensorrt_rtx', '1.7', True

    def can_target(self, capability: str) -> bool:
        return capability in ('7.5', '8.0', '8.6', '8.9', '12.0', '12.1')


@pytest.fixture
def on_gpu(monkeypatch):
    """Only RTX is installed; the GPU has the compute capability given."""

    def use(capability: str) -> None:
        platform = Platform('tensorrt_rtx', '1.7', 'the GPU', capability)
        monkeypatch.setattr(choice, 'installed', lambda backend: backend == 'tensorrt_rtx')
        monkeypatch.setattr(choice, 'load_api', lambda backend: Rtx())
        monkeypatch.setattr(choice, 'platform_of', lambda api, device: platform)

    return use


@pytest.mark.parametrize('capability', ['7.5', '8.0', '8.6', '8.9', '12.0', '12.1'])
def test_rtx_serves_the_gpus_it_builds_for(on_gpu, capability):
    on_gpu(capability)
    assert fitting_tensorrt(lambda _: [], CUDA, True)[0] == 'tensorrt_rtx'


@pytest.mark.parametrize('capability', ['8.7', '9.0', '10.0'])
def test_rtx_is_passed_over_where_it_builds_nothing_that_runs(on_gpu, capability):
    on_gpu(capability)
    backend, reason = fitting_tensorrt(lambda _: [], CUDA, True)
    assert backend is None
    assert f'builds no engine for the GPU (compute capability {capability})' in reason


def test_engines_are_judged_by_the_check_given(on_gpu):
    on_gpu('8.9')
    asked = []

    def check(plan: Path, platform: Platform) -> None:
        asked.append((plan, platform.backend))
        if plan.name == 'bad':
            raise ValueError('bad one')

    good = fitting_tensorrt(lambda _: [Path('a'), Path('b')], CUDA, False, check)
    assert good == ('tensorrt_rtx', 'its engines are there and fit')
    assert asked == [(Path('a'), 'tensorrt_rtx'), (Path('b'), 'tensorrt_rtx')]
    bad = fitting_tensorrt(lambda _: [Path('a'), Path('bad')], CUDA, False, check)
    assert bad == (None, 'tensorrt is not installed; bad one')


@pytest.mark.parametrize(
    ('targets', 'capability', 'covered'),
    [
        (('8.9',), '8.9', True),
        (('8.9',), '9.0', False),
        (('8.9', '12.0+'), '12.1', True),
        (('12.0+',), '8.9', False),
        ((), '8.9', False),
    ],
)
def test_targets_cover_a_capability(targets, capability, covered):
    assert covers(targets, capability) == covered
