"""`benchmark soak`: a short one for real, and what makes a long one fail."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.tools import benchmark_soak, cli
from foundationpose_trt.tools.benchmark_soak import Player, Stretch, faults_of

GOOD = Stretch(
    frames=10, p50_ms=1.0, p99_ms=1.5, max_ms=3.0, wrong=0, lost=0, host_mb=900.0, gpu_mb=2000.0
)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)


def test_a_sequence_is_tracked_to_and_fro(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_soak, 'SEQUENCE', 3)
    monkeypatch.setattr(benchmark_soak, 'WARM_UP', 2)
    file = tmp_path / 'soak.json'
    words = ['benchmark', 'soak', '--weights', 'small', '--frames', '20', '--json', str(file)]
    # another process may slow the last frames of so few; the pose and the memory it cannot change
    monkeypatch.setattr(benchmark_soak, 'MOST_SLOWING', 100.0)
    assert cli.main(words) == 0
    content = json.loads(file.read_text())
    assert [row['frames'] for row in content['stretches']] == [2] * 10
    assert all(row['wrong'] == row['lost'] == 0 for row in content['stretches'])
    assert '20 frames tracked with small' in capsys.readouterr().out


def test_fewer_frames_than_stretches_are_refused(capsys):
    assert cli.main(['benchmark', 'soak', '--frames', '9']) != 0
    assert '--frames is 9' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({}, []),
        ({'wrong': 1}, ['1 frames wrong']),
        ({'lost': 2}, ['2 frames lost']),
        ({'host_mb': 907.0, 'gpu_mb': 2007.0}, []),
        ({'host_mb': 909.0}, ['host_mb grew from 900.0 to 909.0']),
        ({'gpu_mb': 2100.0}, ['gpu_mb grew from 2000.0 to 2100.0']),
        ({'p50_ms': 1.3}, ['p50_ms rose from 1.00 to 1.30']),
        ({'host_mb': 100.0, 'p50_ms': 0.5}, []),
    ],
)
def test_what_a_long_run_must_not_show(change, words):
    assert faults_of([GOOD, replace(GOOD, **change)]) == words


class Shifted:
    """An estimator that answers the truth, moved: or nothing."""

    def __init__(self, moved_m, diameter_m=0.1):
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
        self.mesh = SimpleNamespace(diameter_m=diameter_m, vertices=corners * 0.03)
        self._moved_m = moved_m

    def step(self, frame, mask):
        pose = None if self._moved_m is None else np.eye(4)
        if pose is not None:
            pose[0, 3] = self._moved_m
        return SimpleNamespace(estimate=SimpleNamespace(camera_from_object=pose))


@pytest.mark.parametrize(
    ('moved_m', 'wrong', 'lost'), [(0.0, 0, 0), (0.009, 0, 0), (0.011, 7, 0), (None, 0, 7)]
)
def test_poses_off_by_a_tenth_of_the_diameter_are_wrong(moved_m, wrong, lost, monkeypatch):
    monkeypatch.setattr(benchmark_soak, 'ObjectTracker', lambda estimator: estimator)
    monkeypatch.setattr(benchmark_soak, 'surface_points', lambda mesh: mesh.vertices)
    k = CameraIntrinsics(50, 50, 8, 6, 16, 12)
    frame = Frame(np.zeros((12, 16, 3), np.uint8), np.ones((12, 16), np.float32), k)
    image = SimpleNamespace(frame=frame, mask=None, camera_from_object=np.eye(4))
    stretch = Player(Shifted(moved_m), [image]).play(7)
    assert (stretch.frames, stretch.wrong, stretch.lost) == (7, wrong, lost)
    assert stretch.host_mb > 1 and stretch.gpu_mb is None
