"""`benchmark track|register`: figures of real runs, and a failure where poses get worse."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest
from raster_rig import box_parts, mesh

from foundationpose_trt.pose.estimator import PRUNED_SCHEDULE
from foundationpose_trt.tools import benchmark_speed, cli, speed_measures
from foundationpose_trt.tools.benchmark_speed import EAGER, register_runners, track_runners
from foundationpose_trt.tools.speed_measures import (
    TOGETHER,
    Refreshed,
    accuracy,
    is_worse,
    spread,
    timed_frame,
    timings,
)
from foundationpose_trt.tools.speed_tables import speed_tables
from foundationpose_trt.tools.timeline import NETWORKS, stage_of

QUICK = ['--weights', 'small', '--repeats', '2', '--objects', '1', '--views', '1']
QUICK += ['--heights', '120']


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)


def test_tracking_is_measured_beside_the_plain_pipeline(tmp_path, capsys):
    file = tmp_path / 'track.json'
    command = ['benchmark', 'track', *QUICK, '--only', 'onnx', '--json', str(file)]
    assert cli.main(command) == 0
    content = json.loads(file.read_text())
    plain, fast = content['rows']
    assert plain['name'] == f'{EAGER} fp32' and fast['name'] == 'onnxruntime fp32, CPU'
    for row in content['rows']:
        figures = row['sizes']['120']
        assert 0 < figures['p50_ms'] <= figures['max_ms'] and figures['cpu_ms'] > 0
        assert figures['p99_ms'] is None and figures['repeats'] == 2
    # two pipelines that share no code but the networks come to the same pose
    for key in ('rotation_deg', 'translation_mm', 'add_s_auc'):
        assert fast['pose'][key] == pytest.approx(plain['pose'][key], abs=0.3)
    assert fast['together']['p50_ms'] > fast['sizes']['120']['p50_ms']
    assert content['worse'] == []
    out = capsys.readouterr().out
    assert 'errors of 1 views' in out and '8 objects' in out


class Guess:
    """Stands in for a PoseEstimator: off the truth by more with every one that is made."""

    made = 0
    step_m = 0.0

    def __init__(self, *_):
        Guess.made += 1
        self._off_m = Guess.step_m * (Guess.made - 1)

    def register(self, frame, mask):
        assert mask.shape == frame.depth_m.shape and mask.any()
        pose = np.eye(4)
        pose[0, 3] = self._off_m
        return SimpleNamespace(camera_from_object=pose)


@pytest.mark.parametrize(('step_m', 'status'), [(0.00005, 0), (0.002, 1)])
def test_registration_that_gets_worse_fails_the_command(step_m, status, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_speed, 'PoseEstimator', Guess)
    monkeypatch.setattr(benchmark_speed, 'open_engines', lambda *_: None)
    monkeypatch.setattr(Guess, 'made', 0)
    monkeypatch.setattr(Guess, 'step_m', step_m)
    made = benchmark_speed.make_tasks

    def at_the_origin(*args):
        return [SimpleNamespace(**{**vars(task), 'truth': np.eye(4)}) for task in made(*args)]

    monkeypatch.setattr(benchmark_speed, 'make_tasks', at_the_origin)
    file = tmp_path / 'register.json'
    assert cli.main(['benchmark', 'register', *QUICK, '--json', str(file)]) == status
    content = json.loads(file.read_text())
    names = [row['name'] for row in content['rows']]
    assert names == [f'onnxruntime fp32, CPU, {name}' for name in ('full', 'pruned')]
    assert content['worse'] == (names[1:] if status else [])
    assert content['rows'][0]['pose']['translation_mm'] < 1.1 * step_m * 1e3


def test_rows_of_a_gpu(monkeypatch):
    monkeypatch.setattr(benchmark_speed, 'installed', lambda backend: backend == 'tensorrt')
    assert [runner.name for runner in track_runners(True)] == [
        f'{EAGER} fp32', f'{EAGER} fp16', 'torch fp32', 'torch fp16 + graph',
        'tensorrt fp16 + graph',
    ]  # fmt: skip
    assert [(runner.name, runner.eager) for runner in register_runners(True)] == [
        (f'{EAGER} fp32, full', True),
        (f'{EAGER} fp16, full', True),
        ('torch fp16 + graph, full', False),
        ('tensorrt fp16 + graph, full', False),
        ('tensorrt fp16 + graph, pruned', False),
    ]
    more = [r.name for r in track_runners(True, ('fp16', 'int8')) if 'int8' in r.name]
    more += [r.name for r in register_runners(True, ('fp16', 'int8')) if 'int8' in r.name]
    ending = ' + graph', ' + graph, full', ' + graph, pruned'
    assert more == [f'tensorrt int8{words}' for words in ending]


def test_what_is_worse():
    def row(views=50, add_s=96.0, add=90.0, more_deg=0.0, more_mm=0.0, of=1):
        errors = np.linspace(0.5, 10, views)
        more = np.arange(views) % of == 0
        by_view = {
            'rotation_deg': errors + more_deg * more,
            'translation_mm': errors + more_mm * more,
        }
        return {'pose': {'add_s_auc': add_s, 'add_auc': add}, 'by_view': by_view}

    assert not is_worse(row(), row())
    near = {'add_s': 95.6, 'add': 87.6, 'more_deg': 0.2, 'more_mm': 0.2}
    assert not is_worse(row(**near), row())  # one view of 50 may be turned round
    assert is_worse(row(400, **near), row(400))
    assert not is_worse(row(more_deg=170.0, of=3), row()), 'no median is'
    far = {'add_s': 95.4, 'add': 87.4, 'more_deg': 0.4, 'more_mm': 0.4}
    for key, value in far.items():
        assert is_worse(row(**{key: value}), row())


def test_views_without_a_pose_are_as_bad_as_one_another():
    none = {'rotation_deg': [np.inf, 1.0, 2.0], 'translation_mm': [np.inf, 1.0, 2.0]}
    pose = {'add_s_auc': 60.0, 'add_auc': 60.0}
    row = {'pose': pose, 'by_view': none}
    assert not is_worse(row, row)
    found = {'pose': pose, 'by_view': {name: [3.0, 1.0, 2.0] for name in none}}
    assert not is_worse(found, row)
    lost = {'pose': pose, 'by_view': {name: [3.0, np.inf, np.inf] for name in none}}
    assert is_worse(lost, found)


def test_errors_are_the_tables():
    points = np.random.default_rng(0).normal(0, 0.05, (50, 3))
    task = SimpleNamespace(points=points, truth=np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 0.0195
    found = accuracy([task, task, task], [moved, moved, None])['pose']
    assert found['translation_mm'] == pytest.approx(19.5)
    # an ADD of 19.5 mm scores 0.805, no pose 0 (metrics.auc)
    assert found['add_auc'] == pytest.approx(100 * 2 * 0.805 / 3, abs=0.2)


@pytest.mark.parametrize('height', [480, 720])
def test_the_timed_object_is_where_the_camera_looks(height):
    plain = mesh(*box_parts(np.array([0.05, 0.04, 0.03]))[:2])
    box = replace(plain, center_m=np.array([0.2, 0, 0.1]))
    frame, pose, mask = timed_frame(height, box)
    assert frame.rgb.shape == (height, 640 if height == 480 else 1280, 3)
    center = (pose @ [0.2, 0, 0.1, 1])[:3]
    np.testing.assert_allclose(center, [0, 0, 3 * box.diameter_m], atol=1e-9)
    crop_px = 1.2 * frame.intrinsics.fx * box.diameter_m / center[2]
    assert crop_px == pytest.approx(0.376 * frame.rgb.shape[1])
    rows, columns = np.nonzero(mask)
    assert abs(np.median(rows) - height / 2) < 2
    assert abs(np.median(columns) - frame.rgb.shape[1] / 2) < 2


def test_kernels_of_a_profile_have_names_of_ours():
    assert stage_of('write_crops_1f2e3d_cuda_kernel_forward') == 'write_crops'
    assert stage_of('start_77_cuda_kernel_forward') == 'start'
    assert stage_of('fetch_1f2e3d_cuda_kernel_forward') == 'fetch'
    assert stage_of('fetch_in_place_1f2e3d_cuda_kernel_forward') == 'fetch_in_place'
    assert stage_of('Memcpy HtoD (Pinned -> Device)') == 'copy to the GPU'
    assert stage_of('sm90_xmma_fprop_implicit_gemm') == NETWORKS


def test_what_the_pruned_schedule_keeps_is_refined_as_often_as_in_the_full_one():
    assert PRUNED_SCHEDULE[-1].judge == 'scorer'
    assert sum(stage.iterations for stage in PRUNED_SCHEDULE) == 5


def test_objects_tracked_together_are_all_over_the_image():
    box = mesh(*box_parts(np.array([0.05, 0.04, 0.03]))[:2])
    frame, pose, _ = timed_frame(480, box)
    poses = spread(frame, pose, box)
    assert len(poses) == TOGETHER
    k = frame.intrinsics
    places = [p[:2, 3] / p[2, 3] * (k.fx, k.fy) + (k.cx, k.cy) for p in poses]
    np.testing.assert_allclose(
        sorted(tuple(place) for place in places),
        sorted((80 + 160 * i, 120 + 240 * j) for i in range(4) for j in range(2)),
    )


def test_a_percentile_needs_samples():
    (few,), (many,) = timings(lambda: None, repeats=99), timings(lambda: None, repeats=100)
    assert few['p99_ms'] is None and few['repeats'] == 99
    assert many['p50_ms'] <= many['p99_ms'] <= many['max_ms']


def test_calls_that_are_compared_take_turns():
    """On a host that is slow for a while, both are."""
    log: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], None]:
        return lambda: (log.append(name), time.sleep(seconds))

    quick, slow = timings(call('quick', 0.001), call('slow', 0.004), repeats=50)
    assert quick['repeats'] == slow['repeats'] == 50
    assert 1.0 <= quick['p50_ms'] < 4.0 <= slow['p50_ms']
    order = [name for name, _ in groupby(log)]
    assert order == ['quick', 'slow'] * 6, 'once to see how slow they are, then five turns'
    assert log.count('quick') == 50 + 2 + 20 + 5 * 3


def test_what_is_done_before_a_call_does_not_count():
    log: list[str] = []

    def refresh() -> None:
        log.append('refresh')
        end_s = time.process_time() + 0.004
        while time.process_time() < end_s:
            pass

    call = Refreshed(lambda: (log.append('call'), time.sleep(0.001)), refresh)
    (found,) = timings(call, repeats=30)
    assert found['p50_ms'] < 3.0 and found['cpu_ms'] < 3.0 and found['repeats'] == 30
    turns = [name for name, _ in groupby(log)]
    assert turns == ['refresh', 'call'] * (1 + 30 + 5 * 3), 'before each, but for warming up'


def test_slow_calls_are_measured_as_often_as_the_time_allows(monkeypatch):
    monkeypatch.setattr(speed_measures, 'LIMIT_S', 0.05)
    calls: list[None] = []
    (found,) = timings(lambda: (calls.append(None), time.sleep(0.02)), repeats=50)
    assert found['repeats'] == 3 and len(calls) == 3 + 2 + 20


def test_a_row_that_fails_takes_no_other_along(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_speed, 'PoseEstimator', Guess)
    monkeypatch.setattr(Guess, 'made', 0)
    names = iter(['full', 'pruned'])

    def opened(*_):
        if next(names) == 'pruned':
            raise RuntimeError('out of memory')

    monkeypatch.setattr(benchmark_speed, 'open_engines', opened)
    file = tmp_path / 'register.json'
    assert cli.main(['benchmark', 'register', *QUICK, '--json', str(file)]) == 1
    content = json.loads(file.read_text())
    assert content['failed'] == ['onnxruntime fp32, CPU, pruned'] and content['worse'] == []
    assert ['failed' in row for row in content['rows']] == [False, True]


def test_figures_of_a_gpu_have_tables():
    figures = {'p50_ms': 1.0, 'p99_ms': 2.0, 'max_ms': 3.0, 'cpu_ms': 0.5, 'repeats': 100}
    row = {
        'name': 'tensorrt', 'sizes': {480: figures}, 'together': figures, 'memory_mb': 900.0,
        'weights_mb': 60.0, 'page_locked': {'sizes': {480: figures}, 'together': figures},
        'timelines': {'one object': [{'name': 'move', 'us': 3.0, 'launches': 2.0}]},
        'pose': {'add_s_auc': 96.0, 'add_auc': 90.0, 'rotation_deg': 2.0, 'translation_mm': 1.5},
    }  # fmt: skip
    content = {'weights': 'base', 'views': 8, 'rows': [row], 'worse': ['other']}
    tables = speed_tables(content)
    assert all(len(line) == len(columns) for _, columns, lines in tables for line in lines)
    titles = [title for title, _, _ in tables]
    for words, count in {
        'ms from images': 1, 'errors of 8': 1, 'in one batch': 2, 'in page-locked memory': 2,
        'GPU memory': 1, 'what the GPU does': 1,
    }.items():  # fmt: skip
        assert sum(words in title for title in titles) == count, words
    assert titles[-1] == 'other: POSES ARE WORSE THAN tensorrt'
