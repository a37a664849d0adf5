"""What keeps an engine from being loaded, and whether the command in the refusal mends it."""

from __future__ import annotations

import argparse
import dataclasses
import shlex

import pytest
import tensorrt_rig as rig
import torch
from engine_rig import HERE, RTX, built, digest, edit, needs_rtx, plan, tool_options

from foundationpose_trt.runtime import build
from foundationpose_trt.runtime.build import build_engine
from foundationpose_trt.runtime.engine_manifest import (
    check_engine,
    read_manifest,
    record_tolerance,
)
from foundationpose_trt.runtime.specs import TensorSpec
from foundationpose_trt.tools import build as tool

__all__ = ['built', 'plan']  # fixtures
pytestmark = needs_rtx


def test_the_manifest_reads_back(built):
    manifest = check_engine(built / 'net.engine', HERE, built / 'net.onnx')
    assert manifest == read_manifest(built / 'net.engine')
    assert manifest.inputs == (TensorSpec('x', (-1, 3, 16, 16), torch.float32),)
    assert manifest.batches == (1, 2, 4)


def test_a_build_killed_before_its_manifest_is_not_loaded(plan, monkeypatch):
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, 'write_manifest', killed)
    rig.write_tiny(plan.parent / 'net.onnx', seed=1)
    with pytest.raises(KeyboardInterrupt):
        build_engine(plan.parent / 'net.onnx', plan, RTX)
    with pytest.raises(ValueError, match='build it again'):  # over the old manifest
        check_engine(plan, HERE)
    edit(plan, onnx_sha256=digest(plan.parent / 'net.onnx'))
    with pytest.raises(ValueError, match='its manifest says .*its build was killed'):
        check_engine(plan, HERE)
    plan.with_name('net.engine.json').unlink()
    with pytest.raises(ValueError, match=r'has no net\.engine\.json beside it'):
        check_engine(plan, HERE)


def command_in(message: str) -> argparse.Namespace:
    """Parse the build command at a message's end as the command line would."""
    words = shlex.split(message[message.index('foundationpose-trt build') :])
    return tool_options(*words[2:])


OTHER_GPU = dataclasses.replace(HERE, gpu='NVIDIA RTX 3090', compute_capability='8.6')
REFUSALS = {
    'version': ({'version': '1.6.0'}, HERE, r'built with tensorrt_rtx 1\.6\.0, here runs'),
    'backend': ({'backend': 'tensorrt'}, HERE, 'built with tensorrt 1'),
    'capability': (
        {},
        dataclasses.replace(HERE, compute_capability='9.0'),
        r'runs on compute capability 8\.0, 8\.6, 8\.9, 12\.0\+, here is NVIDIA RTX 4090 \(9\.0\)',
    ),
    'gpu': (
        {'gpu': 'NVIDIA RTX 4090'},
        OTHER_GPU,
        'built for NVIDIA RTX 4090, here is NVIDIA RTX',
    ),
    'onnx': ({'onnx_sha256': '0' * 64}, HERE, r'built from another version of .*net\.onnx'),
    'plan': ({'plan_sha256': '0' * 64}, HERE, 'its manifest says 0000'),
}


@pytest.mark.parametrize('name', REFUSALS)
def test_an_engine_that_does_not_fit_is_refused_with_its_command(plan, name):
    changes, platform, words = REFUSALS[name]
    edit(plan, **changes)
    with pytest.raises(ValueError, match=words) as caught:
        check_engine(plan, platform)
    options = command_in(str(caught.value))
    assert options.onnx == [plan.parent / 'net.onnx'] and options.out == plan.parent
    assert (options.backend, options.precision) == ('tensorrt_rtx', 'fp32')
    assert options.batches == [1, 2, 4]


def test_the_command_mends_what_was_refused(plan):
    rig.write_tiny(plan.parent / 'net.onnx', seed=1)
    with pytest.raises(ValueError, match='another version') as caught:
        check_engine(plan, HERE)
    assert tool.run(command_in(str(caught.value))) == 0
    assert check_engine(plan, HERE).batches == (1, 2, 4)


@pytest.mark.parametrize('byte', [0, -1])
def test_one_flipped_bit_is_found(plan, byte):
    content = bytearray(plan.read_bytes())
    content[byte] ^= 1
    plan.write_bytes(content)
    with pytest.raises(ValueError, match='changed, cut short'):
        check_engine(plan, HERE)


@pytest.mark.parametrize(
    'text', ['', '[]', '{"format": 1}', '{"format": 2}', '{"format": 2, "x": 2}']
)
def test_a_manifest_that_is_none(plan, text):
    plan.with_name('net.engine.json').write_text(text)
    with pytest.raises(ValueError, match='not a manifest of this program .*build it: foundation'):
        check_engine(plan, HERE)


@pytest.mark.parametrize(
    ('version', 'fits'),
    [('1.7.0', False), ('1.7.2', True), ('1.10.0', True), ('2.0.0', False)],
)
def test_version_compatible_engines_run_on_later_minor_versions(plan, version, fits):
    edit(plan, version='1.7.1', version_compatible=True, backend='tensorrt', gpu=None)
    for backend in ('tensorrt', 'tensorrt_lean'):
        platform = dataclasses.replace(HERE, backend=backend, version=version)
        if fits:
            check_engine(plan, platform)
            continue
        with pytest.raises(ValueError, match='--backend tensorrt .*--version-compatible'):
            check_engine(plan, platform)


@pytest.mark.parametrize(
    ('capability', 'fits'),
    [('8.6', True), ('8.7', False), ('12.0', True), ('12.1', True), ('9.0', False)],
)
def test_later_gpus_run_rtx_engines(plan, capability, fits):
    platform = dataclasses.replace(HERE, compute_capability=capability)
    if fits:
        check_engine(plan, platform)
        return
    with pytest.raises(ValueError, match='runs on compute capability'):
        check_engine(plan, platform)


def test_a_missing_engine_comes_from_the_file_exported_for_it(tmp_path):
    (tmp_path / 'rtx').mkdir()
    rig.write_tiny(tmp_path / 'net.onnx')
    with pytest.raises(ValueError, match='no such engine') as caught:
        check_engine(tmp_path / 'rtx' / 'net.engine', HERE)
    options = command_in(str(caught.value))
    assert (options.onnx, options.out) == ([tmp_path / 'net.onnx'], tmp_path / 'rtx')
    assert options.backend == 'tensorrt_rtx'


def test_a_moved_onnx_file_is_no_fault_unless_named(plan):
    (plan.parent / 'net.onnx').unlink()
    check_engine(plan, HERE)
    with pytest.raises(ValueError, match=r'net\.onnx: there is no such ONNX file'):
        check_engine(plan, HERE, plan.parent / 'net.onnx')


def test_tolerances_are_added(plan):
    record_tolerance(plan, {'random_crops': {'rot': 1e-4}})
    assert record_tolerance(plan, {'real': 2}).tolerance['random_crops'] == {'rot': 1e-4}
    assert check_engine(plan, HERE).tolerance == {'random_crops': {'rot': 1e-4}, 'real': 2}
