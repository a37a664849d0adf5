"""Back ends of the pose networks: which is chosen and why; the pose does not depend on it."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracle_rig import CAMERA, ellipsoid, errors, frame_of, oracle_networks, pose_of

from foundationpose_trt.pose import backends
from foundationpose_trt.pose.backends import exported, onnx_path, open_engines, plan_path
from foundationpose_trt.pose.estimator import EstimatorSettings, PoseEstimator
from foundationpose_trt.pose.export import TRUNKS
from foundationpose_trt.pose.weights import ALL_PRECISIONS, PoseNetworks, load_networks
from foundationpose_trt.runtime.choice import BackendChoice
from foundationpose_trt.runtime.onnx_engine import OnnxEngine
from foundationpose_trt.runtime.torch_engine import TorchEngine
from foundationpose_trt.tools import build

needs_onnx = pytest.mark.skipif(
    not all(backends.importlib.util.find_spec(name) for name in ('onnx', 'onnxruntime')),
    reason='onnx and onnxruntime are not installed',
)


@pytest.fixture(scope='module')
def networks() -> PoseNetworks:
    return load_networks('small')


def hidden(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look absent to the choice."""
    find = backends.importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util, 'find_spec', lambda n: None if n in names else find(n)
    )


@needs_onnx
def test_a_cpu_takes_onnx_runtime_where_it_is_installed(networks, tmp_path):
    engines = open_engines(networks, BackendChoice(folder=tmp_path))
    assert isinstance(engines.refiner.whole, OnnxEngine)
    assert isinstance(engines.features.whole, OnnxEngine)
    assert engines.explanation == 'onnxruntime (faster than torch on a CPU)'
    assert sorted(p.name for p in tmp_path.rglob('*.onnx')) == ['extractor.onnx', 'refiner.onnx']


def test_without_onnx_runtime_torch_serves_and_says_what_is_missing(
    networks, monkeypatch, tmp_path
):
    hidden(monkeypatch, 'onnxruntime')
    engines = open_engines(networks, BackendChoice(folder=tmp_path))
    assert isinstance(engines.refiner, TorchEngine)
    assert engines.explanation == 'torch (onnxruntime not installed)'
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_where_nothing_can_be_written_torch_serves_and_says_so(networks, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    engines = open_engines(networks, BackendChoice(folder=tmp_path / 'file' / 'folder'))
    assert isinstance(engines.refiner, TorchEngine)
    assert 'cannot be written' in engines.explanation
    with pytest.raises(OSError, match='file'):  # asked for, it is not replaced
        open_engines(networks, BackendChoice('onnxruntime', tmp_path / 'file' / 'folder'))


def test_networks_made_in_memory_run_on_torch():
    engines = open_engines(oracle_networks())
    assert engines.explanation.startswith('torch (the networks are no weight set')
    with pytest.raises(ValueError, match='only backend torch can run them'):
        open_engines(oracle_networks(), BackendChoice('onnxruntime'))


@pytest.mark.parametrize('backend', ['tensorrt', 'tensorrt_rtx'])
def test_a_back_end_that_cannot_serve_the_device_is_refused(networks, backend):
    with pytest.raises(
        ValueError, match=f'{backend} does not run .* device cpu: choose auto, torch, on'
    ):
        open_engines(networks, BackendChoice(backend))


def test_an_unknown_back_end_is_refused():
    with pytest.raises(ValueError, match='backend is "openvino", must be one of auto, torch'):
        BackendChoice('openvino')


def test_files_are_told_apart_by_set_precision_and_back_end(networks, tmp_path, monkeypatch):
    choice = BackendChoice(folder=tmp_path)
    onnx = onnx_path(networks, 'refiner', choice, 'tensorrt')
    assert onnx == tmp_path / 'small_fp32' / 'refiner.onnx'
    plan = plan_path(networks, 'refiner', choice, 'tensorrt')
    assert plan == tmp_path / 'small_fp32' / 'tensorrt' / 'refiner.engine'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    default = onnx_path(networks, 'refiner', BackendChoice(), 'tensorrt')
    assert default.is_relative_to(tmp_path / 'cache' / 'foundationpose_trt')


def installed_as(
    monkeypatch: pytest.MonkeyPatch,
    weakly_typed: bool,
    capability: tuple[int, int] | None = (9, 0),
) -> None:
    api = SimpleNamespace(weakly_typed=weakly_typed)
    monkeypatch.setattr(backends, 'installed', lambda backend: True)
    monkeypatch.setattr(backends, 'load_api', lambda backend: api)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)


@pytest.mark.parametrize(
    ('where', 'weakly_typed', 'capability', 'file'),
    [
        (('refiner_trunk', 'fp16', 'tensorrt'), True, (9, 0), 'refiner_trunk_apart.onnx'),
        (('extractor_trunk', 'fp16', 'tensorrt'), True, (9, 0), 'extractor_trunk_apart.onnx'),
        (('refiner_trunk', 'fp16', 'tensorrt'), False, (9, 0), 'refiner_trunk.onnx'),
        (('refiner_trunk', 'fp16', 'tensorrt'), True, (8, 9), 'refiner_trunk.onnx'),
        (('refiner_trunk', 'fp16', 'tensorrt'), True, None, 'refiner_trunk.onnx'),
        (('refiner_trunk', 'fp16', 'tensorrt_rtx'), True, (9, 0), 'refiner_trunk.onnx'),
        (('refiner_trunk', 'fp32', 'tensorrt'), True, (9, 0), 'refiner_trunk.onnx'),
        (('refiner', 'fp16', 'onnxruntime'), True, (9, 0), 'refiner.onnx'),
        (('refiner_trunk', 'int8', 'tensorrt'), True, (9, 0), 'refiner_trunk_untyped.onnx'),
        (('refiner_trunk', 'int8', 'tensorrt'), True, (8, 7), 'refiner_trunk_untyped.onnx'),
        (('refiner_trunk', 'int8', 'tensorrt'), False, (9, 0), 'refiner_trunk.onnx'),
        (('refiner_trunk', 'int8', 'tensorrt_rtx'), True, (8, 9), 'refiner_trunk.onnx'),
        (('extractor_trunk', 'int8', 'tensorrt'), True, (9, 0), 'extractor_trunk_apart.onnx'),
        (('extractor_trunk', 'int8', 'tensorrt'), True, (8, 7), 'extractor_trunk.onnx'),
    ],
)
def test_tensorrt_8_has_forms_of_its_own(
    networks, monkeypatch, where, weakly_typed, capability, file
):
    installed_as(monkeypatch, weakly_typed, capability)
    (kind, precision, backend), choice = where, BackendChoice(folder=Path('x'))
    typed, folder = (
        replace(networks, dtype=ALL_PRECISIONS[precision], int8=precision == 'int8'),
        Path('x') / f'small_{precision}',
    )
    assert onnx_path(typed, kind, choice, backend) == folder / file
    assert plan_path(typed, kind, choice, backend) == folder / backend / f'{kind}.engine'


def test_weights_are_compared_with_the_form_that_an_engine_was_built_from(
    networks, tmp_path, monkeypatch
):
    """An engine of the other form, as built by TensorRT 10 or before there were two."""
    onnx, plan = tmp_path / 'refiner_trunk.onnx', tmp_path / 'tensorrt' / 'refiner_trunk.engine'
    onnx.write_bytes(b'')
    (tmp_path / 'refiner_trunk.onnx.json').write_text(
        json.dumps({'weights': {'sha256': 'others'}})
    )
    apart = tmp_path / 'refiner_trunk_apart.onnx'
    assert backends.source_of(plan, apart) is None, 'no manifest tells'
    built = SimpleNamespace(onnx='/where/it/was/refiner_trunk.onnx')
    monkeypatch.setattr(backends, 'read_manifest', lambda plan: built)
    assert backends.source_of(plan, apart) == onnx
    with pytest.raises(ValueError, match='is of other weights than .*: build it again: THUS'):
        backends.require_same_weights(networks, plan, onnx, 'THUS')


@pytest.mark.parametrize('folder', ['engines of mine', None])
def test_the_command_that_is_advised_builds_what_is_looked_for(networks, tmp_path, folder):
    choice = BackendChoice(folder=tmp_path / folder if folder else None)
    told = backends.build_command(networks, choice, 'tensorrt').split('`')[1]
    program, subject, *words = shlex.split(told)
    assert (program, subject) == ('foundationpose-trt', 'build')
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    options = parser.parse_args(words)
    same = load_networks(options.weights)
    assert (options.precision, options.backend) == ('fp32', 'tensorrt')
    of_command = plan_path(same, 'refiner', BackendChoice(folder=options.out), options.backend)
    assert of_command == plan_path(networks, 'refiner', choice, 'tensorrt')


@pytest.mark.parametrize('kind', TRUNKS)
def test_an_engine_that_is_missing_is_built_by_the_command_for_weights(
    networks, tmp_path, monkeypatch, kind
):
    asked = []

    def missing(plan: Path, *_: object, remedy: str, **__: object) -> None:
        asked.append((plan.stem, remedy))
        raise ValueError(remedy)

    monkeypatch.setattr(backends, 'TensorRtEngine', missing)
    choice = BackendChoice('tensorrt', tmp_path)
    with pytest.raises(ValueError, match='build --weights'):
        backends._Plans(networks, choice, 'tensorrt', None)._engine(kind, None)
    assert asked == [(kind, backends.build_command(networks, choice, 'tensorrt'))]


@needs_onnx
def test_both_forms_of_a_trunk_stand_side_by_side(networks, tmp_path, monkeypatch):
    half, choice = replace(networks, dtype=torch.float16), BackendChoice(folder=tmp_path)
    installed_as(monkeypatch, True)
    for backend, form in (('tensorrt', 'apart'), ('tensorrt_rtx', 'fused')) * 2:
        path = exported(half, 'refiner_trunk', choice, backend)
        assert json.loads(path.with_name(f'{path.name}.json').read_text())['form'] == form
    assert sorted(file.name for file in (tmp_path / 'small_fp16').glob('*.onnx')) == [
        'refiner_trunk.onnx', 'refiner_trunk_apart.onnx',
    ]  # fmt: skip


@needs_onnx
def test_an_export_is_made_once_and_again_when_it_is_not_of_these_weights(networks, tmp_path):
    choice = BackendChoice('onnxruntime', tmp_path)
    path = onnx_path(networks, 'refiner', choice, 'onnxruntime')

    def opened() -> tuple[int, bytes]:
        open_engines(networks, choice)
        return path.stat().st_mtime_ns, path.read_bytes()

    first = opened()
    assert opened() == first
    manifest = path.with_name('refiner.onnx.json')
    content = json.loads(manifest.read_text())
    content['weights'] = {key: 'another' for key in content['weights']}
    manifest.write_text(json.dumps(content))
    assert opened()[0] > first[0]
    path.write_bytes(b'cut short')
    assert opened()[1] == first[1]


def scene(tmp_path: Path, networks: PoseNetworks, backend: str) -> PoseEstimator:
    settings = EstimatorSettings(chunk=16)
    engines = open_engines(networks, BackendChoice(backend, tmp_path))
    return PoseEstimator(ellipsoid(), networks, settings, engines)


@needs_onnx
def test_the_pose_does_not_depend_on_the_back_end(networks, tmp_path):
    """Nor do the scores, also where the crops go through the network in two parts."""
    truth = pose_of(5)
    frame, _ = frame_of(truth, wall_m=1.0)
    torch_one, onnx_one = (scene(tmp_path, networks, b) for b in ('torch', 'onnxruntime'))
    tracked = [e.track(frame, truth).camera_from_object for e in (torch_one, onnx_one)]
    assert max(errors(*tracked)) < 0.01
    poses = np.stack([pose_of(seed) for seed in range(20)])
    scores = [e.score(frame, poses) for e in (torch_one, onnx_one)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
    assert np.ptp(scores[0]) > 0.1


@pytest.mark.gpu
def test_cuda_falls_back_to_torch_and_says_why(tmp_path):
    engines = open_engines(load_networks('small', 'cuda', 'fp16'), BackendChoice(folder=tmp_path))
    assert isinstance(engines.refiner, TorchEngine)
    assert 'tensorrt' in engines.explanation
    assert engines.crops.dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('graphs', [0, 8])
def test_tensorrt_gives_the_pose_that_torch_gives(
    tmp_path_factory, monkeypatch, precision, graphs
):
    pytest.importorskip('tensorrt')
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)  # nor does the engine
    folder = tmp_path_factory.getbasetemp() / 'engines'  # built once for all parameters
    networks = load_networks('small', 'cuda', precision)
    truth = pose_of(5)
    frame, _ = frame_of(truth, wall_m=1.0)
    settings = EstimatorSettings(cuda_graph_cache_capacity=graphs)
    candidates = np.stack([pose_of(seed) for seed in range(20)])
    tracked, scores = [], []
    tensorrt = BackendChoice('tensorrt', folder, build=True, batches=(1, 32))  # soon built
    for choice in (BackendChoice('torch'), tensorrt):
        engines = open_engines(networks, choice)
        estimator = PoseEstimator(ellipsoid(), networks, settings, engines)
        estimator.warm_up(CAMERA)
        tracked.append(estimator.track(frame, truth).camera_from_object)
        scores.append(estimator.score(frame, candidates))
    limit = 0.05 if precision == 'fp32' else 0.3
    assert max(errors(*tracked)) < limit
    assert np.abs(scores[1] - scores[0]).max() < limit * np.ptp(scores[0])


def test_engines_for_other_batches_have_a_place_of_their_own(networks, tmp_path):
    usual = plan_path(networks, 'refiner', BackendChoice(folder=tmp_path), 'tensorrt')
    other = BackendChoice(folder=tmp_path, batches=(1, 64, 252))
    plan = plan_path(networks, 'refiner', other, 'tensorrt')
    assert usual.parent.name == 'tensorrt' and plan.parent.name == 'tensorrt_1_64_252'
    assert plan.parents[1] == usual.parents[1], 'of the same ONNX file'
