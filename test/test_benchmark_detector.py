"""The benchmark of the detector: every stage of every back end, beside the reference package."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from detector_rig import manifest_of, scene, write_fixed

from foundationpose_trt.detection.detector import STAGES
from foundationpose_trt.detection.manifest import read_manifest, write_manifest
from foundationpose_trt.tools import benchmark_detector, cli
from foundationpose_trt.tools.rungs import Rung

BOX = (0, 0.9, (0.5, 0.5, 0.2, 0.2))


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)


def test_every_rung_and_stage_is_measured(tmp_path, capsys):
    model = write_fixed(tmp_path / 'model', *scene([BOX]), variant='own')
    words = ['benchmark', 'detector', '--model', str(model), '--repeats', '3']
    file = tmp_path / 'detector.json'
    assert cli.main([*words, '--heights', '120', '480', '--json', str(file)]) == 0
    content = json.loads(file.read_text())
    names = [row['name'] for row in content['rungs']]
    assert names == ['torchscript fp32, CPU', 'onnxruntime fp32, CPU']
    for row in content['rungs']:
        assert list(row['heights']) == ['120', '480']
        for figures in row['heights'].values():
            spent = figures['stages_ms']
            assert list(spent) == list(STAGES) and min(spent.values()) >= 0
            assert 0 < figures['p50_ms'] <= figures['p99_ms'] < 5000
            rest = sum(spent[name] for name in STAGES if name != 'network')
            assert figures['around_network_ms'] == pytest.approx(rest)
    text = capsys.readouterr().out
    assert '213x120 image' in text and '640x480 image' in text


def test_rungs_by_name(tmp_path):
    model = write_fixed(tmp_path / 'model', *scene([BOX]), variant='own')
    words = ['benchmark', 'detector', '--model', str(model), '--repeats', '1']
    file = tmp_path / 'detector.json'
    assert cli.main([*words, '--only', 'onnx', '--heights', '60', '--json', str(file)]) == 0
    assert [r['name'] for r in json.loads(file.read_text())['rungs']] == ['onnxruntime fp32, CPU']


def test_rungs_of_a_gpu(monkeypatch):
    monkeypatch.setattr(benchmark_detector, 'installed', lambda backend: backend == 'tensorrt')
    assert [rung.name for rung in benchmark_detector.detector_ladder(True)] == [
        'torchscript fp32', 'torchscript fp32 + graph', 'tensorrt fp32', 'tensorrt fp16',
        'tensorrt fp16 + graph', 'torchscript fp32, CPU', 'onnxruntime fp32, CPU',
    ]  # fmt: skip


def rows_of(tmp_path, model, *words) -> dict:
    file = tmp_path / 'figures.json'
    start = ['benchmark', 'detector', '--model', str(model), '--repeats', '1', '--heights', '120']
    assert cli.main([*start, *words, '--json', str(file)]) == 0
    return {row['name']: row for row in json.loads(file.read_text())['rungs']}


def test_a_rung_without_its_file_is_left_out_and_says_so(tmp_path, capsys):
    model = write_fixed(tmp_path / 'model', *scene([BOX]), variant='own')
    manifest = read_manifest(model)
    files = tuple(file for file in manifest.files if file.kind == 'onnx')
    write_manifest(dataclasses.replace(manifest, files=files), model)
    rows = rows_of(tmp_path, model)
    assert 'holds no torchscript file' in rows['torchscript fp32, CPU']['failed']
    assert rows['onnxruntime fp32, CPU']['heights']['120']['p50_ms'] > 0
    assert 'torchscript fp32, CPU is left out: ValueError: ' in capsys.readouterr().out
    figures = rows['onnxruntime fp32, CPU']
    figures['heights'] = {120: figures['heights']['120']}
    content = {'model': 'own', 'rungs': list(rows.values())}
    ((_, columns, lines),) = benchmark_detector.detector_tables(content)
    assert lines[0] == ['torchscript fp32, CPU (left out)', *[None] * (len(columns) - 1)]
    assert None not in lines[1]


def test_nothing_measured_is_an_error(tmp_path, capsys):
    model = write_fixed(tmp_path / 'model', *scene([BOX]), variant='own')
    write_manifest(dataclasses.replace(read_manifest(model), files=()), model)
    assert cli.main(['benchmark', 'detector', '--model', str(model)]) == 2
    assert 'nothing could be measured: torchscript fp32, CPU: ' in capsys.readouterr().err


class Reference:
    """A model of the reference package. faults: names of calls that it has not, or that fail."""

    def __init__(self, faults=()):
        self.model = SimpleNamespace(model=torch.nn.Identity(), inference_model=None)
        if 'inference' not in faults:
            self.inference = self._optimize
        self._faults = faults

    def _optimize(self):
        self.model.inference_model = torch.nn.Identity()

    def predict(self, pixels, threshold):
        if 'predict' in self._faults:
            raise RuntimeError('CUDA error: no kernel image')
        network = self.model.inference_model or self.model.model
        return network(torch.from_numpy(pixels))


@pytest.mark.parametrize(
    ('faults', 'failed'),
    [((), []), (('inference',), [1]), (('predict',), [0, 1])],
)
def test_what_fails_of_the_reference_loses_no_other_row(monkeypatch, capsys, faults, failed):
    monkeypatch.setattr(benchmark_detector, 'reference_model', lambda request: Reference(faults))
    images = {120: benchmark_detector.image_of(120)}
    rows = benchmark_detector.reference_rows(manifest_of(), 'cuda', images, 2)
    assert [row['name'] for row in rows] == ['rfdetr predict()', 'rfdetr predict(), optimized']
    for place, row in enumerate(rows):
        assert ('failed' in row) == (place in failed)
        assert ('heights' in row) == (place not in failed)
    assert capsys.readouterr().out.count('is left out') == len(failed)


def test_the_reference_optimizes_as_the_benchmark_asks(monkeypatch):
    pytest.importorskip('rfdetr')
    real = benchmark_detector.reference_model
    monkeypatch.setattr(
        benchmark_detector, 'reference_model', lambda r: real(dataclasses.replace(r, device='cpu'))
    )
    images = {120: benchmark_detector.image_of(120)}
    manifest = manifest_of(variant='nano')
    rows = benchmark_detector.reference_rows(manifest, 'cuda', images, 1)
    assert all(row['heights'][120]['p50_ms'] > 0 for row in rows) and len(rows) == 2


def test_fp32_is_measured_without_tf32(tmp_path, monkeypatch):
    model = write_fixed(tmp_path / 'model', *scene([BOX]), variant='own')
    seen, opened = [], benchmark_detector.open_detector

    def policy():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    def open_detector(*arguments):
        seen.append(policy())
        return opened(*arguments)

    monkeypatch.setattr(benchmark_detector, 'open_detector', open_detector)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('high')
    try:
        rows_of(tmp_path, model)
        assert seen == [(False, False)] * 2 and policy() == (True, True)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(('failed', 'name'), [(0, ''), (1, ' (not captured)')])
def test_a_graph_that_could_not_be_captured_is_no_row_with_a_graph(
    tmp_path, monkeypatch, failed, name
):
    model = write_fixed(tmp_path / 'model', *scene([BOX]), variant='own')
    stats = SimpleNamespace(failed_captures=failed)
    monkeypatch.setattr(benchmark_detector.Detector, 'stats', lambda self: stats)
    rung = Rung('torchscript', 'fp32', graphs=True, device='cpu')
    options = SimpleNamespace(engines=tmp_path, repeats=1)
    images = {60: benchmark_detector.image_of(60)}
    row = benchmark_detector.measure(rung, model, images, options)
    assert row['name'] == f'torchscript fp32 + graph, CPU{name}'


@pytest.mark.parametrize('option', ['--heights', '--repeats'])
def test_counts_below_one_are_refused(tmp_path, option, capsys):
    assert cli.main(['benchmark', 'detector', '--model', str(tmp_path), option, '0']) == 2
    assert option in capsys.readouterr().err


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    assert cli.main(['benchmark', 'detector', '--model', str(tmp_path)]) == 2
    assert 'holds no detector.json' in capsys.readouterr().err


def test_the_reference_is_measured_where_it_is_installed(tmp_path):
    pytest.importorskip('rfdetr')
    file = tmp_path / 'detector.json'
    words = ['benchmark', 'detector', '--repeats', '1', '--heights', '480', '--only', 'torch']
    assert cli.main([*words, '--engines', str(tmp_path), '--json', str(file)]) == 0
    rows = {row['name']: row['heights']['480'] for row in json.loads(file.read_text())['rungs']}
    assert list(rows) == ['torchscript fp32, CPU', 'rfdetr predict(), CPU']
    for figures in rows.values():
        assert 0 < figures['around_network_ms'] < figures['p50_ms']
