"""The benchmark of the detector: every stage of every back end, beside the reference package."""

from __future__ import annotations

import json

import pytest
from detector_rig import scene, write_fixed

from foundationpose_trt.detection.detector import STAGES
from foundationpose_trt.tools import benchmark_detector, cli

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
