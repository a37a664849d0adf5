"""What a detector runs on with a GPU: the choice, its files, its errors, by stand-ins of both."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from detector_rig import scene, write_fixed

from foundationpose_trt.detection import backends
from foundationpose_trt.detection.backends import open_detector
from foundationpose_trt.detection.manifest import add_file, read_manifest, write_manifest
from foundationpose_trt.runtime import choice, tensorrt_engine
from foundationpose_trt.runtime.choice import BackendChoice
from foundationpose_trt.runtime.engine_manifest import (
    EngineManifest,
    Platform,
    sha256_of,
)
from foundationpose_trt.runtime.engine_manifest import write_manifest as write_engine_manifest
from foundationpose_trt.runtime.specs import TensorSpec

HERE = Platform('tensorrt', '10.13', 'NVIDIA H100', '9.0')
FOUND = [(0, 0.9, (0.5, 0.5, 0.2, 0.2))]
OTHER = [(1, 0.8, (0.4, 0.5, 0.2, 0.2))]


class Api:
    backend, version, is_rtx = 'tensorrt', '10.13', False


@pytest.fixture(autouse=True)
def tensorrt(monkeypatch):
    """TensorRT for one GPU, installed unless the list is emptied."""
    there = ['tensorrt']
    monkeypatch.setattr(choice, 'installed', lambda backend: backend in there)
    for module in (choice, tensorrt_engine):
        monkeypatch.setattr(module, 'load_api', lambda backend: Api())
        monkeypatch.setattr(module, 'platform_of', lambda api, device: HERE)
    monkeypatch.setattr(backends, 'load_torchscript', lambda path, *_: path.name)
    return there


@pytest.fixture
def engines(tmp_path):
    return tmp_path / 'engines'


def traced_for_cuda(folder):
    """List the TorchScript file as one for CUDA, too."""
    manifest = read_manifest(folder)
    script = manifest.find('torchscript', 'fp32', 'cpu')
    write_manifest(add_file(manifest, dataclasses.replace(script, device='cuda')), folder)
    return folder


def opening_of(folder, engines, precision='auto'):
    choice = BackendChoice('auto', engines)
    return backends._Opening(folder, torch.device('cuda'), precision, choice)


def built(opening) -> None:
    """Put an engine of the opening's ONNX file where it belongs."""
    onnx, plan = opening.path('tensorrt'), opening.plan('tensorrt')
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b'engine')
    image = TensorSpec('input', (1, 3, 384, 384), torch.float32)
    manifest = EngineManifest(
        str(onnx), sha256_of(onnx), sha256_of(plan), 'tensorrt', '10.13', False, 'NVIDIA H100',
        ('9.0',), 'fp32', (image,), (), (1,), 1.0,
    )  # fmt: skip
    write_engine_manifest(manifest, plan)


def test_without_an_engine_torchscript_serves_in_its_own_precision(tmp_path, engines):
    """Though TensorRT would run in half."""
    folder = traced_for_cuda(write_fixed(tmp_path / 'mug', *scene(FOUND)))
    opening = opening_of(folder, engines)
    assert opening.precision_on('tensorrt') == 'fp16'
    opened = open_detector(folder, 'cuda', 'auto', BackendChoice('auto', engines))
    assert opened.engine == 'detector_cpu.torchscript'
    assert opened.explanation.startswith('torchscript (') and 'no such engine' in (
        opened.explanation
    )


def test_the_error_says_why_not_tensorrt_and_both_remedies(tmp_path, engines, tensorrt):
    folder = write_fixed(tmp_path / 'mug', *scene(FOUND))
    remedies = r'build_engines:=true.*export detector --weights FILE --out .*mug --formats'
    with pytest.raises(ValueError, match=f'there is no such engine.*{remedies} torchscript --d'):
        open_detector(folder, 'cuda', 'auto', BackendChoice('auto', engines))
    tensorrt.clear()
    with pytest.raises(
        ValueError, match=f'tensorrt is not installed; tensorrt_rtx is.*{remedies}'
    ):
        open_detector(folder, 'cuda', 'auto', BackendChoice('auto', engines, build=True))


def test_a_folder_without_onnx_is_left_to_torchscript(tmp_path, engines):
    folder = traced_for_cuda(write_fixed(tmp_path / 'mug', *scene(FOUND)))
    manifest = read_manifest(folder)
    scripts = tuple(file for file in manifest.files if file.kind == 'torchscript')
    write_manifest(dataclasses.replace(manifest, files=scripts), folder)
    opened = open_detector(folder, 'cuda', 'auto', BackendChoice('auto', engines, build=True))
    assert 'holds no ONNX file' in opened.explanation
    with pytest.raises(ValueError, match='holds no onnx file of precision fp32: export'):
        open_detector(folder, 'cuda', 'fp32', BackendChoice('tensorrt', engines))


@pytest.mark.parametrize('backend', ['torchscript', 'auto'])
def test_half_is_not_asked_of_torchscript(tmp_path, engines, tensorrt, backend):
    tensorrt.clear()
    folder = traced_for_cuda(write_fixed(tmp_path / 'mug', *scene(FOUND)))
    with pytest.raises(ValueError, match='no TorchScript in half, choose precision auto or fp32'):
        open_detector(folder, 'cuda', 'fp16', BackendChoice(backend, engines))


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_an_engine_serves_the_weights_it_was_built_from_alone(tmp_path, engines, precision):
    """Not those trained since in the same place, nor another folder's of the same name."""
    folder = write_fixed(tmp_path / 'a' / 'mug', *scene(FOUND))
    built(opening_of(folder, engines, precision))
    assert opening_of(folder, engines, precision).chosen() == (
        'tensorrt', 'its engines are there and fit',
    )  # fmt: skip
    namesake = write_fixed(tmp_path / 'b' / 'mug', *scene(OTHER))
    write_fixed(folder, *scene(OTHER))
    for other in (namesake, folder):
        backend, reason = opening_of(other, engines, precision).chosen()
        assert backend == 'torchscript' and 'there is no such engine' in reason


def test_a_copied_model_shares_the_engine_whatever_becomes_of_the_first(tmp_path, engines):
    folder = write_fixed(tmp_path / 'a' / 'mug', *scene(FOUND))
    built(opening_of(folder, engines, 'fp32'))
    copy = shutil.copytree(folder, tmp_path / 'b' / 'mug')
    write_fixed(folder, *scene(OTHER))
    assert opening_of(copy, engines, 'fp32').chosen()[0] == 'tensorrt'


@pytest.mark.parametrize('fault', ['missing', 'without manifest', 'stale'])
def test_the_remedy_for_an_engine_is_one_that_works(tmp_path, engines, fault):
    """`foundationpose-trt build` writes engines of other names, tuned for other batches."""
    folder = write_fixed(tmp_path / 'mug', *scene(FOUND))
    opening = opening_of(folder, engines, 'fp32')
    if fault != 'missing':
        built(opening)
        plan = opening.plan('tensorrt')
        if fault == 'stale':
            plan.write_bytes(b'another')
        else:
            plan.with_name('detector.engine.json').unlink()
    asked = BackendChoice('tensorrt', engines)
    with pytest.raises(ValueError, match='start the node with build_engines:=true') as caught:
        open_detector(folder, 'cuda', 'fp32', asked)
    assert 'foundationpose-trt build' not in str(caught.value)
