"""Training by several processes: two real ones that torchrun starts, and one alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundationpose_trt.training import processes

RIG = Path(__file__).with_name('processes_rig.py')


@pytest.fixture(scope='module')
def both(tmp_path_factory) -> list[dict]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp('processes')
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    paths = os.pathsep.join([str(RIG.parents[1]), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [*run, str(RIG), str(folder)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, 'PYTHONPATH': paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('train sum') > 0  # the bar
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in range(2)]


def test_they_train_on_the_mean_of_their_gradients(both):
    # of (1, 2) and five times that
    assert [seen['gradients'] for seen in both] == [[3.0, 6.0]] * 2
    assert [seen['count'] for seen in both] == [seen['processes'] for seen in both] == [2, 2]


def test_they_take_the_same_steps_with_the_same_weights_on_other_numbers(both):
    first, second = both
    assert first['steps'] == second['steps'] > 10
    assert first['weights'] == second['weights']
    assert not set(first['drawn']) & set(second['drawn'])
    assert [seen['shared'] for seen in both] == [10.0, 10.0]


def test_the_first_alone_saves_and_afterwards_each_is_alone(both):
    assert [seen['saved'] for seen in both] == [['sum.checkpoint.pt', 'sum.safetensors'], []]
    assert [seen['left'] for seen in both] == [1, 1]


def test_one_process_is_the_only_one():
    with processes.joined('cpu'):
        assert (processes.rank(), processes.count()) == (0, 1)
        assert processes.cores() == os.cpu_count()
        assert processes.of_first(3.5) == 3.5
    weight = torch.nn.Parameter(torch.ones(2))
    weight.sum().backward()
    processes.average_gradients([weight])
    torch.testing.assert_close(weight.grad, torch.ones(2))


def test_processes_share_gpus_in_turn(monkeypatch):
    taken = []
    monkeypatch.setattr(processes, 'count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', taken.append)
    for rank in range(4):
        monkeypatch.setenv('LOCAL_RANK', str(rank))
        processes.own_device('cuda')
        assert processes.own_device('cuda:1') == torch.device('cuda', 1)
    assert [device.index for device in taken] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ('gpus', 'nccl', 'device', 'backend'),
    [
        (4, True, 'cuda', 'cpu:gloo,cuda:nccl'),
        (2, True, 'cuda', 'gloo'),
        (4, True, 'cuda:0', 'gloo'),
        (4, False, 'cuda', 'gloo'),
        (0, True, 'cpu', 'gloo'),
    ],
)
def test_nccl_serves_only_processes_with_a_gpu_each(gpus, nccl, device, backend, monkeypatch):
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(processes.dist, 'is_nccl_available', lambda: nccl)
    assert processes._backend(device) == backend
