"""The benchmark of the runtime: what it prints is there, and it fails where a pose moves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from foundationpose_trt.runtime.session import Session
from foundationpose_trt.runtime.specs import BATCH, TensorSpec
from foundationpose_trt.runtime.torch_engine import TorchEngine
from foundationpose_trt.tools import benchmark, benchmark_poses, cli
from foundationpose_trt.tools.benchmark import Rung, ladder

QUICK = [
    '--weights',
    'small',
    '--batches',
    '1',
    '--repeats',
    '2',
    '--objects',
    '1',
    '--views',
    '1',
]


def test_the_ladder_is_measured_on_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    file = tmp_path / 'runtime.json'
    assert cli.main(['benchmark', 'runtime', *QUICK, '--json', str(file)]) == 0
    content = json.loads(file.read_text())
    assert [row['name'] for row in content['rungs']] == [
        'torch fp32, CPU',
        'onnxruntime fp32, CPU',
    ]
    for row in content['rungs']:
        for network in ('refiner', 'scorer'):
            figures = row['networks'][network]['1']
            assert 0.5 < figures['p50_ms'] <= figures['p99_ms'] < 60_000
        assert 0 < row['pose']['rotation_deg'] < 30 and 0 < row['pose']['add_s_mm'] < 50
        assert row['pose']['from_reference_deg'] < 0.01 and row['pose']['from_reference_mm'] < 0.01
    assert content['machine']['gpu'] is None and content['machine']['torch']
    assert 'pose error of 1 tracked views' in capsys.readouterr().out


def test_a_rung_that_moves_the_pose_fails_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr(benchmark, 'timings', lambda *_: {'p50_ms': 1.0, 'p99_ms': 1.0})
    shifted = []

    def moved(tasks, make):
        shifted.append(0.0004 * len(shifted) ** 2)
        pose = tasks[0].truth.copy()
        pose[0, 3] += shifted[-1]
        return [pose]

    monkeypatch.setattr(benchmark, 'run_tasks', moved)
    rungs = [Rung('torch', 'fp32', device='cpu')] * 2
    monkeypatch.setattr(benchmark, 'ladder', lambda _: rungs)
    command = ['benchmark', 'runtime', *QUICK]
    assert cli.main(command) == 0  # 0.4 mm
    shifted[:] = [0.0, 0.0]
    assert cli.main(command) == 1  # 2 mm and more


def test_only_some_rungs_and_what_they_are_held_against(monkeypatch):
    monkeypatch.setattr(benchmark, 'installed', lambda backend: backend == 'tensorrt')

    def chosen(*words):
        return [r.name for r in ladder(True) if benchmark._is_chosen(r, list(words), True)]

    assert chosen('graph') == ['torch fp32', 'torch fp16 + graph', 'tensorrt fp16 + graph']
    assert chosen('onnx') == ['torch fp32, CPU', 'onnxruntime fp32, CPU']
    assert len(chosen()) == 7


def test_a_set_of_twice_the_width_gives_the_same_poses(tmp_path, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    own, wide = tmp_path / 'own.json', tmp_path / 'wide.json'
    words = ['benchmark', 'runtime', *QUICK, '--only', 'torch', '--engines', str(tmp_path)]
    assert cli.main([*words, '--json', str(own)]) == 0
    assert cli.main([*words, '--width', '0.5', '--json', str(wide)]) == 0
    poses = [json.loads(file.read_text())['rungs'][0]['pose'] for file in (own, wide)]
    for key in ('rotation_deg', 'translation_mm', 'add_s_mm'):
        assert poses[1][key] == pytest.approx(poses[0][key], abs=0.1)
    assert cli.main([*words, '--width', '0.3']) == 2


def test_rungs_of_a_gpu(monkeypatch):
    monkeypatch.setattr(benchmark, 'installed', lambda backend: backend == 'tensorrt')
    assert [rung.name for rung in ladder(True)] == [
        'torch fp32', 'torch fp16', 'torch fp16 + graph', 'tensorrt fp16',
        'tensorrt fp16 + graph', 'torch fp32, CPU', 'onnxruntime fp32, CPU',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('option', 'word'), [('--batches', 'batches'), ('--repeats', 'repeats'), ('--views', 'views')]
)
def test_counts_below_one_are_refused(option, word, capsys):
    assert cli.main(['benchmark', 'runtime', *QUICK, option, '0']) == 2
    assert f'--{word}' in capsys.readouterr().err


def test_poses_are_compared_in_degrees_and_millimetres():
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0, 0, np.radians(3)]).as_matrix()
    pose[:3, 3] = 0.003, 0, 0.004
    turn, shift = benchmark_poses._distance(pose, np.eye(4))
    assert (turn, shift) == (pytest.approx(3), pytest.approx(5))
    assert benchmark_poses._distance(None, None) == (0, 0)
    assert benchmark_poses._distance(None, pose) == (np.inf, np.inf)


@pytest.mark.parametrize(
    ('batches', 'expected'),
    [([1, 16], None), ([1, 64, 126], None), ([64, 252, 1], (1, 64, 252)), ([252], (1, 252))],
)
def test_engines_are_built_for_what_the_usual_ones_cannot_run(batches, expected):
    assert benchmark.tuned_for(batches) == expected


@pytest.mark.parametrize('batch', [1, 3])
def test_a_batch_is_of_pairs_of_crops(monkeypatch, batch):
    monkeypatch.setattr(benchmark, 'WARM_UP', 0)
    spec, called = TensorSpec('crops', (BATCH, 2), torch.float32), []
    engine = TorchEngine('net', lambda crops: crops, [spec], [spec], 'cpu')
    with Session(engine, None) as session:
        benchmark.timings(called.append, session, batch, 2)
    assert [len(inputs['crops']) for inputs in called] == [2 * batch] * 2
