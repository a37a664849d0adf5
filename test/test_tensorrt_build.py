"""Engines built for real by TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from enum import IntEnum
from types import SimpleNamespace

import pytest
import tensorrt_rig as rig
import torch
from engine_rig import HERE, RTX, VERSION, built, digest, needs_rtx, plan, tool_options

from foundationpose_trt.pose.export import TRUNKS
from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.pose.quantization import quantized_convolutions, write_scales
from foundationpose_trt.pose.weights import save_network, write_manifest
from foundationpose_trt.runtime import build
from foundationpose_trt.runtime.build import BuildOptions, build_engine, ensure_engine
from foundationpose_trt.runtime.build_progress import BuildMonitor
from foundationpose_trt.runtime.engine_manifest import check_engine, sha256_of
from foundationpose_trt.runtime.specs import TensorSpec
from foundationpose_trt.runtime.tensorrt_api import TensorRtApi
from foundationpose_trt.tools import build as tool

__all__ = ['built', 'plan']  # fixtures
pytestmark = needs_rtx


def test_the_manifest_says_what_was_built(built):
    content = json.loads((built / 'net.engine.json').read_text())
    assert content.pop('build_seconds') > 0
    assert content == {
        'format': 2,
        'onnx': str(built / 'net.onnx'),
        'onnx_sha256': digest(built / 'net.onnx'),
        'plan_sha256': digest(built / 'net.engine'),
        'backend': 'tensorrt_rtx',
        'version': VERSION,
        'version_compatible': False,
        'gpu': None,
        'compute_capabilities': ['8.0', '8.6', '8.9', '12.0+'],
        'precision': 'fp32',
        'inputs': [{'name': 'x', 'shape': [-1, 3, 16, 16], 'dtype': 'float32'}],
        'outputs': [{'name': 'y', 'shape': [-1, 8], 'dtype': 'float32'}],
        'batches': [1, 2, 4],
        'tolerance': {},
    }
    files = {path.name for path in built.iterdir()}
    assert files == {'net.onnx', 'net.engine', 'net.engine.json', 'net.engine.log'}
    log = (built / 'net.engine.log').read_text()
    assert 'INFO ' in log and 'VERBOSE' not in log


def test_an_fp16_file_gives_an_fp16_engine_with_its_casts(tmp_path):
    onnx = rig.write_tiny(tmp_path / 'net.onnx', half=True)
    manifest = build_engine(onnx, tmp_path / 'net.engine', RTX)
    assert manifest.precision == 'fp16'
    assert manifest.inputs[0].dtype == torch.float16
    assert manifest.outputs[0].dtype == torch.float32


def test_weights_stored_in_half_make_no_half_engine(tmp_path, monkeypatch):
    import onnx

    from foundationpose_trt.detection import half

    monkeypatch.setattr(half, 'FEWEST_STORED', 100)
    model = half.stored_half(onnx.load(str(rig.write_tiny(tmp_path / 'tiny.onnx'))))
    assert onnx.TensorProto.FLOAT16 in {t.data_type for t in model.graph.initializer}
    onnx.save(model, str(tmp_path / 'net.onnx'))
    manifest = build_engine(tmp_path / 'net.onnx', tmp_path / 'net.engine', RTX)
    assert manifest.precision == 'fp32' and manifest.inputs[0].dtype == torch.float32


def test_tf32_is_built_when_asked(tmp_path):
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    options = dataclasses.replace(RTX, precision='tf32')
    assert build_engine(onnx, tmp_path / 'net.engine', options).precision == 'tf32'


@pytest.mark.parametrize(
    ('half', 'asked', 'words'),
    [
        (False, 'fp16', 'is fp32, not fp16: .*export --precision fp16'),
        (True, 'fp32', 'is fp16, not fp32: .*export --precision fp32'),
        (True, 'tf32', 'is fp16, not tf32: .*export --precision fp32'),
    ],
)
def test_the_file_decides_the_precision(tmp_path, half, asked, words):
    onnx = rig.write_tiny(tmp_path / 'net.onnx', half)
    with pytest.raises(ValueError, match=words):
        build_engine(onnx, tmp_path / 'e', dataclasses.replace(RTX, precision=asked))


def test_a_fixed_batch_stays(tmp_path):
    onnx = rig.write_tiny(tmp_path / 'net.onnx', batch=3)
    options = dataclasses.replace(RTX, batches=None)
    manifest = build_engine(onnx, tmp_path / 'net.engine', options)
    assert manifest.batches == (3,) and manifest.inputs[0].shape == (3, 3, 16, 16)
    with pytest.raises(ValueError, match='fixed batch of 3, .*--batch dynamic'):
        build_engine(onnx, tmp_path / 'net.engine', RTX)


def test_a_row_of_scores_becomes_a_vector(tmp_path):
    manifest = build_engine(rig.write_row(tmp_path / 'net.onnx'), tmp_path / 'net.engine', RTX)
    assert manifest.outputs == (TensorSpec('y', (-1,), torch.float32),)


def test_only_the_batch_may_be_free(tmp_path):
    onnx = rig.write_one_node(tmp_path / 'n.onnx', 'Relu', [1, 3, 'h', 4], [1, 3, 'h', 4])
    with pytest.raises(ValueError, match=r'n\.onnx: tensor x has shape \(1, 3, -1, 4\)'):
        build_engine(onnx, tmp_path / 'net.engine', RTX)


def test_an_operator_that_does_not_parse_is_named(tmp_path):
    onnx = rig.write_one_node(tmp_path / 'net.onnx', 'Nonsense', [1, 4], [1, 4])
    with pytest.raises(ValueError, match=r'does not parse with tensorrt_rtx .*the_node.*Nonsense'):
        build_engine(onnx, tmp_path / 'net.engine', RTX)
    assert not (tmp_path / 'net.engine').exists()


def test_a_file_cut_short_and_no_file(tmp_path):
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    onnx.write_bytes(onnx.read_bytes()[:200])
    with pytest.raises(ValueError, match='does not parse .*[Ff]ailed to parse.*net.engine.log'):
        build_engine(onnx, tmp_path / 'net.engine', RTX)
    with pytest.raises(ValueError, match='none.onnx: there is no such ONNX file'):
        build_engine(tmp_path / 'none.onnx', tmp_path / 'net.engine', RTX)


def test_a_network_that_cannot_be_built_is_told(tmp_path):
    onnx = rig.write_reshape(tmp_path / 'net.onnx', size=12)
    with pytest.raises(
        ValueError, match=r'cannot build net\.engine: .*[Rr]eshape.*net\.engine\.log'
    ):
        build_engine(onnx, tmp_path / 'net.engine', RTX)
    assert not (tmp_path / 'net.engine').exists()


def test_compute_capabilities(tmp_path):
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    options = dataclasses.replace(RTX, compute_capabilities=('7.5', '8.9'))
    assert build_engine(onnx, tmp_path / 'e', options).compute_capabilities == ('7.5', '8.9')
    options = dataclasses.replace(RTX, compute_capabilities=('9.0',))
    with pytest.raises(ValueError, match=r'capability "9\.0" is not among .*SM89'):
        build_engine(onnx, tmp_path / 'e', options)


@pytest.fixture
def on_gpu(monkeypatch):
    """Pretend that the GPU here has a compute capability."""

    def use(capability: str) -> None:
        here = dataclasses.replace(HERE, gpu='the GPU', compute_capability=capability)
        monkeypatch.setattr(build, 'platform_of', lambda api: here)

    return use


@pytest.mark.parametrize(
    ('capability', 'targets'),
    [
        ('7.5', ('7.5',)),  # not among RTX's own, but it can
        ('8.6', build.RTX_CAPABILITIES),
        ('12.1', build.RTX_CAPABILITIES),
        ('9.0', build.RTX_CAPABILITIES),  # it cannot; the engine may be for another machine
    ],
)
def test_rtx_builds_for_the_gpu_here_where_it_can(tmp_path, on_gpu, capability, targets):
    on_gpu(capability)
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    assert build_engine(onnx, tmp_path / 'e', RTX).compute_capabilities == targets
    told = dataclasses.replace(RTX, compute_capabilities=('8.9',))
    assert build_engine(onnx, tmp_path / 'e', told).compute_capabilities == ('8.9',)


@pytest.mark.parametrize('capability', ['8.7', '9.0', '10.0'])
def test_no_engine_is_ensured_that_the_gpu_here_could_not_run(tmp_path, on_gpu, capability):
    on_gpu(capability)
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    with pytest.raises(ValueError, match='builds no engine for the GPU .*install tensorrt'):
        ensure_engine(onnx, tmp_path / 'net.engine', RTX)
    assert not (tmp_path / 'net.engine').exists()


def test_progress_never_falls_and_ends_at_one(tmp_path):
    told: list[tuple[float, str]] = []
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    build_engine(onnx, tmp_path / 'e', RTX, lambda *news: told.append(news))
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and fractions[0] == 0 and told[-1] == (1.0, 'built')
    assert len(set(fractions)) > 10 and len({phase for _, phase in told}) > 3


def test_progress_of_phases_within_phases():
    told: list[tuple[float, str]] = []
    monitor = BuildMonitor(lambda *news: told.append(news))
    monitor.phase_start('all', None, 2)
    monitor.phase_start('part', 'all', 4)
    monitor.step_complete('part', 0)
    monitor.step_complete('part', 1)
    monitor.phase_finish('part')
    monitor.step_complete('all', 0)
    monitor.step_complete('unheard of', 0)
    assert [fraction for fraction, _ in told] == [0, 0, 1 / 8, 2 / 8, 1 / 2, 1 / 2]


@pytest.mark.parametrize('reason', [KeyboardInterrupt, ValueError('stop'), RuntimeError('stop')])
def test_a_build_that_is_ended_changes_nothing(plan, reason):
    def report(fraction: float, phase: str) -> None:
        if fraction > 0:
            raise reason

    before = {path.name: path.read_bytes() for path in plan.parent.iterdir()}
    rig.write_tiny(plan.parent / 'other.onnx', seed=1)
    with pytest.raises(reason if isinstance(reason, type) else type(reason)):
        build_engine(plan.parent / 'other.onnx', plan, RTX, report)
    (plan.parent / 'other.onnx').unlink()
    after = {path.name: path.read_bytes() for path in plan.parent.iterdir()}
    assert {**after, 'net.engine.log': b''} == {**before, 'net.engine.log': b''}


KILLED = """
import os, signal, sys
from pathlib import Path
from foundationpose_trt.runtime.build import BuildOptions, build_engine

def report(fraction, phase):
    if fraction > 0.3:
        os.kill(os.getpid(), signal.SIGKILL)

build_engine(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions(backend='tensorrt_rtx'), report)
"""


def test_a_killed_build_leaves_no_engine(tmp_path):
    onnx, plan = rig.write_tiny(tmp_path / 'net.onnx'), tmp_path / 'net.engine'
    command = [sys.executable, '-c', KILLED, str(onnx), str(plan)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {'net.onnx', 'net.engine.log'}
    with pytest.raises(ValueError, match='no such engine; build it: foundationpose-trt build'):
        check_engine(plan, HERE)


def test_ensure_builds_only_what_is_missing(plan):
    onnx, before = plan.parent / 'net.onnx', plan.stat().st_mtime_ns
    assert ensure_engine(onnx, plan, RTX).batches == (1, 2, 4)
    assert plan.stat().st_mtime_ns == before
    wider = dataclasses.replace(RTX, batches=(1, 2, 8))
    assert ensure_engine(onnx, plan, wider).batches == (1, 2, 8)
    plan.unlink()
    assert ensure_engine(onnx, plan, wider).batches == (1, 2, 8) and plan.exists()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'precision': 'int4'},
            'precision is "int4", must be one of auto, fp32, .*, int8',
        ),
        ({'backend': 'cuda'}, 'backend is "cuda", must be one of auto, tensorrt, tensorrt_rtx'),
        ({'batches': (4, 2, 8)}, r'batches are \(4, 2, 8\), must be one or more rising'),
        ({'batches': (0, 2, 8)}, r'batches are \(0, 2, 8\)'),
        ({'batches': (2, 2)}, r'batches are \(2, 2\)'),
        ({'batches': ()}, r'batches are \(\)'),
        ({'workspace_bytes': 0}, 'workspace_bytes is 0'),
    ],
)
def test_wrong_options_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        BuildOptions(**changes)


def test_auto_builds_with_rtx_where_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    assert build_engine(onnx, tmp_path / 'net.engine').backend == 'tensorrt_rtx'
    monkeypatch.setitem(sys.modules, 'tensorrt', rig.Stub('10.13.3.9'))
    with pytest.raises(ValueError, match='tensorrt builds for the GPU of this machine'):
        build_engine(onnx, tmp_path / 'net.engine', BuildOptions(backend='tensorrt'))


def tool_run(*words: str) -> int:
    return tool.run(tool_options(*words))


def test_the_tool_builds_several_files_and_writes_their_manifests(tmp_path, capsys):
    files = [str(rig.write_tiny(tmp_path / f'{name}.onnx')) for name in ('a', 'b')]
    out, report = tmp_path / 'out', tmp_path / 'report.json'
    words = ('--out', str(out), '--backend', 'tensorrt_rtx', '--batches', '1', '9')
    assert tool_run('--onnx', *files, *words, '--json', str(report)) == 0
    content = json.loads(report.read_text())
    assert list(content) == [str(out / 'a.engine'), str(out / 'b.engine')]
    assert all(entry['batches'] == [1, 9] for entry in content.values())
    shown = capsys.readouterr()
    assert 'a.engine' in shown.out and '100%' in shown.err
    with pytest.raises(ValueError, match='--onnx needs --out'):
        tool_run('--onnx', files[0])
    with pytest.raises(ValueError, match='two files of one stem'):
        tool_run('--onnx', files[0], files[0], *words)


@pytest.mark.parametrize(
    ('shape', 'dtype', 'allowed'),
    [
        ((-1, 32, 20, 20), rig.DataType.HALF, 1 << rig.Format.HWC8.value),
        ((-1, 32, 20, 20), rig.DataType.FLOAT, None),  # TensorRT has it in half alone
        ((-1, 12, 20, 20), rig.DataType.HALF, None),  # would be padded
        ((-1, 32), rig.DataType.HALF, None),
    ],
)
def test_images_in_half_lie_pixel_by_pixel_where_asked(shape, dtype, allowed):
    formats = {format.name: format.value for format in rig.Format}
    module = SimpleNamespace(TensorFormat=IntEnum('TensorFormat', formats))
    first, last = (SimpleNamespace(shape=shape, dtype=dtype, allowed_formats=None) for _ in '12')
    network = SimpleNamespace(
        num_inputs=1, get_input=lambda index: first, num_outputs=1, get_output=lambda index: last
    )
    TensorRtApi(module, 'tensorrt').order_channels_last(network)
    assert first.allowed_formats == last.allowed_formats == allowed


@pytest.mark.parametrize('asked', [False, True])
def test_the_option_reaches_the_network(tmp_path, monkeypatch, asked):
    asked_of = []
    monkeypatch.setattr(TensorRtApi, 'order_channels_last', lambda self, n: asked_of.append(n))
    options = BuildOptions(backend='tensorrt_rtx', batches=(1,), channels_last=asked)
    build_engine(rig.write_tiny(tmp_path / 'x.onnx'), tmp_path / 'x.engine', options)
    assert len(asked_of) == asked


@pytest.mark.parametrize('precision', ['fp16', 'int8'])
def test_the_tool_goes_from_weights_to_engines(tmp_path, precision):
    folder, out = tmp_path / 'mine', tmp_path / 'out'
    folder.mkdir()
    for kind, make in (('refiner', RefineNet), ('scorer', ScoreNet)):
        torch.manual_seed(0)
        save_network(make(0.0625), folder / f'{kind}.safetensors')
        write_manifest(folder, kind, {'width': 0.0625})
    scales = dict.fromkeys(quantized_convolutions(RefineNet(0.0625)), 0.05)
    write_scales(folder, sha256_of(folder / 'refiner.safetensors'), scales)
    words = ('--weights', str(folder), '--out', str(out), '--backend', 'tensorrt_rtx')
    assert tool_run(*words, '--precision', precision) == 0
    folder = out / f'mine_{precision}'
    plans = {kind: folder / 'tensorrt_rtx' / f'{kind}.engine' for kind in TRUNKS}
    for kind, engine in plans.items():
        manifest = check_engine(engine, HERE, folder / f'{kind}.onnx')
        inputs = [(s.name, s.shape, s.dtype) for s in manifest.inputs]
        assert inputs == [('crops', (-1, 96, 40, 40), torch.float16)]
        assert manifest.precision == (precision if kind == 'refiner_trunk' else 'fp16')
        assert manifest.batches == (2, 16, 128, 252)
        outputs = [(s.name, s.shape, s.dtype) for s in manifest.outputs]
        assert outputs == [('image', (-1, 32, 20, 20), torch.float16)]
    before = plans[TRUNKS[0]].stat().st_mtime_ns
    assert tool_run(*words, '--precision', precision, '--if-needed') == 0
    assert plans[TRUNKS[0]].stat().st_mtime_ns == before
