"""Engines are built on the GPU that will run them, which need not be the first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detector_rig import scene, write_fixed

from foundationpose_trt.detection import backends as detector_backends
from foundationpose_trt.pose import backends as pose_backends
from foundationpose_trt.runtime.build import current
from foundationpose_trt.runtime.choice import BackendChoice

SECOND = torch.device('cuda:1')


class Gpus:
    """Stands for CUDA: notes which GPU is the current one when an engine is built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.built_on = [], []
        monkeypatch.setattr(torch.cuda, 'device', self._device)
        for module in (pose_backends, detector_backends):
            monkeypatch.setattr(module, 'ensure_engine', self._build)
            monkeypatch.setattr(module, 'TensorRtEngine', self._open)

    def _device(self, device: torch.device):
        stack = self.now

        class Guard:
            def __enter__(self) -> None:
                stack.append(device)

            def __exit__(self, *_: object) -> None:
                stack.pop()

        return Guard()

    def _build(self, *_: object) -> None:
        self.built_on.append(list(self.now))

    def _open(self, *_: object, **__: object) -> None:
        raise ValueError('enough')


def test_only_a_gpu_is_made_the_current_one(monkeypatch):
    gpus = Gpus(monkeypatch)
    with current(torch.device('cpu')):
        assert gpus.now == []
    with current(SECOND):
        assert gpus.now == [SECOND]
    assert gpus.now == []


def test_pose_engines_are_built_on_the_gpu_of_the_networks(tmp_path, monkeypatch):
    gpus, file = Gpus(monkeypatch), tmp_path / 'net.onnx'
    for name in ('plan_path', 'onnx_path', 'exported', 'build_command'):
        monkeypatch.setattr(pose_backends, name, lambda *_: file)
    networks, choice = SimpleNamespace(device=SECOND), BackendChoice('tensorrt', build=True)
    plans = pose_backends._Plans(networks, choice, 'tensorrt', None)
    with pytest.raises(ValueError, match='enough'):
        plans._engine('refiner', None)
    assert gpus.built_on == [[SECOND]] and gpus.now == []


def test_a_detector_engine_is_built_on_its_gpu(tmp_path, monkeypatch):
    folder = write_fixed(tmp_path / 'model', *scene([]))
    gpus, choice = Gpus(monkeypatch), BackendChoice('tensorrt', tmp_path, build=True)
    opening = detector_backends._Opening(folder, SECOND, 'fp32', choice)
    with pytest.raises(ValueError, match='enough'):
        opening.tensorrt('tensorrt', None)
    assert gpus.built_on == [[SECOND]] and gpus.now == []
