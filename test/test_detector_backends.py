"""Which file and back end serve a detector, and every way in which they can fail to."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from detector_rig import manifest_of, scene, write_fixed

from foundationpose_trt.detection import backends
from foundationpose_trt.detection.agreement import (
    UntrustedEngineError,
    agreement,
    require_agreement,
    sample_inputs,
)
from foundationpose_trt.detection.backends import open_detector
from foundationpose_trt.detection.manifest import (
    add_file,
    checked_path,
    read_manifest,
    write_manifest,
)
from foundationpose_trt.runtime import engine_manifest
from foundationpose_trt.runtime.choice import BackendChoice
from foundationpose_trt.runtime.engine_manifest import Platform
from foundationpose_trt.runtime.onnx_engine import OnnxEngine
from foundationpose_trt.runtime.specs import TensorSpec
from foundationpose_trt.runtime.torch_engine import TorchEngine

FOUND = [(k % 3, 0.9 - 0.1 * k, (0.1 + 0.15 * k, 0.5, 0.2, 0.2)) for k in range(6)]


@pytest.fixture
def folder(tmp_path):
    return write_fixed(tmp_path / 'plain', *scene(FOUND))


def test_a_cpu_takes_onnx_runtime_and_without_it_torchscript(folder, monkeypatch):
    opened = open_detector(folder, 'cpu', 'auto')
    assert isinstance(opened.engine, OnnxEngine)
    assert opened.explanation == 'onnxruntime (faster than torch on a CPU)'
    monkeypatch.setattr(backends.importlib.util, 'find_spec', lambda name: None)
    opened = open_detector(folder, 'cpu', 'auto')
    assert isinstance(opened.engine, TorchEngine)
    assert opened.explanation == 'torchscript (onnxruntime not installed)'


def test_a_folder_without_onnx_runs_by_torchscript(folder):
    manifest = read_manifest(folder)
    scripts = tuple(f for f in manifest.files if f.kind == 'torchscript')
    write_manifest(dataclasses.replace(manifest, files=scripts), folder)
    assert open_detector(folder, 'cpu', 'auto').explanation.startswith('torchscript (')
    with pytest.raises(ValueError, match='holds no onnx file of precision fp32: export'):
        open_detector(folder, 'cpu', 'auto', BackendChoice('onnxruntime'))


@pytest.mark.parametrize(
    ('choice', 'precision', 'words'),
    [
        ('tensorrt', 'auto', 'does not run this network on device cpu: choose auto, torchscript,'),
        ('torch', 'auto', 'backend torch does not run this network'),
        ('auto', 'fp16', 'half precision needs CUDA'),
        ('auto', 'int8', 'precision is "int8", must be one of auto, fp32, fp16'),
    ],
)
def test_what_cannot_serve_is_refused(folder, choice, precision, words):
    with pytest.raises(ValueError, match=words):
        open_detector(folder, 'cpu', precision, BackendChoice(choice))


@pytest.mark.parametrize('name', ['detector_fp32.onnx', 'detector_cpu.torchscript'])
def test_a_changed_or_missing_file_is_refused(folder, name):
    backend = 'onnxruntime' if name.endswith('onnx') else 'torchscript'
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match='its detector.json says .* export the detector again'):
        open_detector(folder, 'cpu', 'auto', BackendChoice(backend))
    (folder / name).unlink()
    with pytest.raises(ValueError, match='is missing, though the detector.json beside it'):
        open_detector(folder, 'cpu', 'auto', BackendChoice(backend))


def edited(folder, **changes) -> None:
    path = folder / 'detector.json'
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v != 'gone'}))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'format': 7}, 'format is not 1'),
        ({'classes': 'gone'}, "KeyError: 'classes'"),
        ({'classes': [None]}, 'at least one must have a name'),
        ({'classes': ['a', 'a']}, 'no two the same'),
        ({'resolution': [0, 384]}, 'all must be positive'),
        ({'deviation': [0.2, 0.2]}, 'three numbers each'),
        ({'resize': 'letterbox'}, 'made for the resize rule "letterbox"'),
        ({'unheard': 1}, 'TypeError'),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, changes, words):
    edited(folder, **changes)
    with pytest.raises(ValueError, match=f'no detector manifest of this program .*{words}'):
        read_manifest(folder)


def test_a_folder_without_manifest_says_what_makes_one(tmp_path):
    with pytest.raises(ValueError, match='holds no detector.json: .*export detector --weights'):
        read_manifest(tmp_path)


def test_a_manifest_reads_back_and_files_replace_their_like(folder):
    manifest = read_manifest(folder)
    assert manifest == read_manifest(folder) and len(manifest.files) == 2
    newer = dataclasses.replace(manifest.files[1], sha256='0' * 64)
    again = add_file(manifest, newer)
    assert len(again.files) == 2 and again.find('onnx', 'fp32').sha256 == '0' * 64
    half = dataclasses.replace(newer, precision='fp16')
    assert len(add_file(again, half).files) == 3
    with pytest.raises(ValueError, match='sha256 is'):
        checked_path(folder, newer)


def engine_of(found: list, shift: float = 0.0) -> TorchEngine:
    """Gives these queries, the last of them first."""
    boxes, logits = (torch.from_numpy(a[:, ::-1].copy()) for a in scene(found))
    outputs = [TensorSpec(n, (1, 6, 4), torch.float32) for n in ('dets', 'labels')]
    image = TensorSpec('input', (1, 3, 384, 384), torch.float32)
    return TorchEngine('net', lambda _: (boxes + shift, logits), [image], outputs, 'cpu')


def test_engines_agree_whatever_the_order_of_their_queries(folder):
    reference = open_detector(folder, 'cpu', 'auto').engine
    found = agreement(manifest_of(), engine_of(FOUND), reference)
    assert found == {'found': 1.0, 'box': 0.0, 'score': pytest.approx(0, abs=1e-6)}
    require_agreement('engine', found)


@pytest.mark.parametrize('shift', [0.1, float('nan')])
def test_an_engine_that_computes_something_else_is_refused(folder, shift):
    reference = open_detector(folder, 'cpu', 'auto').engine
    found = agreement(manifest_of(), engine_of(FOUND, shift=shift), reference)
    with pytest.raises(ValueError, match='detector.engine: of the best 20 .* only 0%'):
        require_agreement('detector.engine', found)


def test_test_images_are_always_the_same_and_not_flat():
    images = sample_inputs(manifest_of())
    assert images.shape == (4, 3, 384, 384) and torch.equal(images, sample_inputs(manifest_of()))
    assert images.std() > 0.4 and images.isfinite().all()


def test_the_package_opens_detectors_without_the_reference(folder):
    assert 'rfdetr' not in sys.modules


def test_a_half_network_that_was_not_exported_is_made_once_beside_the_engines(tmp_path):
    import onnx

    folder = write_fixed(tmp_path / 'model', *scene([(0, 0.9, (0.5, 0.5, 0.2, 0.2))]))
    choice = BackendChoice('tensorrt', tmp_path / 'engines')
    opening = backends._Opening(folder, torch.device('cuda'), 'fp16', choice)
    path = opening.path('tensorrt')
    assert path.parent == opening.plan('tensorrt').parent.parent
    (port,) = onnx.load(str(path)).graph.input
    assert port.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    before = path.stat().st_mtime_ns
    assert opening.path('tensorrt') == path and path.stat().st_mtime_ns == before


class Half:
    """Stands for TensorRT: half engines that compute something else, and those in fp32."""

    here = Platform('tensorrt', '8.6.1', 'H100', '9.0')

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: float = 0.34) -> None:
        self.opened, self.compared, self.noted, self.found = [], [], {}, found
        monkeypatch.setattr(backends._Opening, 'chosen', lambda _: ('tensorrt', 'it fits'))
        monkeypatch.setattr(backends, 'TensorRtEngine', self._open)
        monkeypatch.setattr(backends, 'agreement', self._compare)
        monkeypatch.setattr(engine_manifest, 'record_tolerance', self._note)
        monkeypatch.setattr(backends, 'read_engine_manifest', self._manifest)
        monkeypatch.setattr(backends, 'load_api', lambda _: None)
        monkeypatch.setattr(backends, 'platform_of', lambda *_: self.here)

    def _manifest(self, plan):
        return SimpleNamespace(
            tolerance=self.noted.get(plan, {'random_inputs_relative': 0.5}), backend='tensorrt',
            version='8.6.1', version_compatible=False, gpu='H100', compute_capabilities=('9.0',),
        )  # fmt: skip

    def _open(self, plan, *_, **__):
        self.opened.append(plan.parts[-3].rsplit('_')[-1])
        return SimpleNamespace(plan=plan, manifest=self._manifest(plan))

    def _compare(self, manifest, engine, reference):
        self.compared.append(engine.plan)
        found = self.found if 'fp16' in str(engine.plan) else 1.0
        return {'found': found, 'box': 0.025, 'score': 0.1}

    def _note(self, plan, found):
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.with_name(f'{plan.name}.json').touch()
        self.noted[plan] = found


def test_half_that_computes_something_else_gives_way_to_fp32(folder, monkeypatch, caplog):
    engines = Half(monkeypatch)
    choice = BackendChoice(folder=folder / 'engines')
    for opened in (['fp16', 'fp32'], ['fp32']):
        engines.opened.clear()
        explanation = open_detector(folder, 'cuda', 'auto', choice).explanation
        assert engines.opened == opened, 'the second time it is known beforehand'
        assert explanation == (
            'tensorrt (it fits; in fp32, as its engine in half is not to be trusted)'
        )
    assert 'only 34% are those of the fp32 network' in caplog.text and len(engines.compared) == 2
    with pytest.raises(UntrustedEngineError, match='use precision fp32'):
        open_detector(folder, 'cuda', 'fp16', choice)


@pytest.mark.parametrize('change', [{'version': '10.13.3'}, {'gpu': 'RTX 4090'}])
def test_half_is_tried_again_where_another_tensorrt_or_gpu_runs_it(folder, monkeypatch, change):
    engines = Half(monkeypatch)
    choice = BackendChoice(folder=folder / 'engines')
    open_detector(folder, 'cuda', 'auto', choice)
    engines.opened.clear()
    engines.here = dataclasses.replace(engines.here, **change)
    open_detector(folder, 'cuda', 'auto', choice)
    assert engines.opened == ['fp16', 'fp32']


def test_half_that_is_right_runs(folder, monkeypatch):
    engines = Half(monkeypatch, found=0.9)
    choice = BackendChoice(folder=folder / 'engines')
    assert open_detector(folder, 'cuda', 'auto', choice).explanation == 'tensorrt (it fits)'
    assert engines.opened == ['fp16'] and len(engines.compared) == 1


def test_half_that_nothing_can_vouch_for_gives_way(folder, monkeypatch):
    engines = Half(monkeypatch)
    find = backends.importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util, 'find_spec', lambda n: None if n == 'onnxruntime' else find(n)
    )
    choice = BackendChoice(folder=folder / 'engines')
    assert 'not to be trusted' in open_detector(folder, 'cuda', 'auto', choice).explanation
    assert engines.opened == ['fp16', 'fp32']
    open_detector(folder, 'cuda', 'fp16', choice)  # asked for


def test_results_that_cannot_be_kept_still_count(folder, monkeypatch, caplog):
    engines = Half(monkeypatch)

    def refuse(*_):
        raise PermissionError('read-only')

    monkeypatch.setattr(engine_manifest, 'record_tolerance', refuse)
    open_detector(folder, 'cuda', 'auto', BackendChoice(folder=folder / 'engines'))
    assert engines.opened == ['fp16', 'fp32']
    assert 'read-only; it is compared at every start' in caplog.text


def test_what_would_serve_is_known_without_opening(folder, tmp_path, monkeypatch):
    assert backends.serving_backend(folder, 'cpu', BackendChoice()) == 'onnxruntime'
    monkeypatch.setattr(backends.importlib.util, 'find_spec', lambda name: None)
    assert backends.serving_backend(folder, 'cpu', BackendChoice()) == 'torchscript'
    manifest = read_manifest(folder)
    onnx = [file for file in manifest.files if file.kind == 'onnx']
    write_manifest(dataclasses.replace(manifest, files=tuple(onnx)), folder)
    with pytest.raises(
        ValueError, match=r'holds no torchscript file .* pip install onnx onnxruntime'
    ):
        backends.serving_backend(folder, 'cpu', BackendChoice())
