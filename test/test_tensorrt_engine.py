"""Plans run through stand-ins of TensorRT 8.6, 10 and 11; with a GPU, through the real one."""

from __future__ import annotations

import gc
import sys
import types
from collections import defaultdict
from pathlib import Path

import pytest
import tensorrt_rig as rig
import torch

from foundationpose_trt.runtime import cuda_graph, tensorrt_engine
from foundationpose_trt.runtime.build import BuildOptions, build_engine
from foundationpose_trt.runtime.engine_manifest import read_manifest
from foundationpose_trt.runtime.specs import TensorSpec
from foundationpose_trt.runtime.tensorrt_api import load_api
from foundationpose_trt.runtime.tensorrt_engine import TensorRtEngine
from foundationpose_trt.runtime.workspace import Workspace
from foundationpose_trt.tools import cli

VERSIONS = ('8.6.1', '10.13.3.9', '11.4.0.106')
STREAM = 1234


class NoGuard:
    def __init__(self, device: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *reasons: object) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU whose memory is the host's."""
    properties = types.SimpleNamespace(name='Stand-in', major=9, minor=0)
    stream = types.SimpleNamespace(cuda_stream=STREAM, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: stream)
    monkeypatch.setattr(tensorrt_engine.torch.cuda, 'device', NoGuard)
    return properties


@pytest.fixture(params=VERSIONS)
def stub(request, gpu, monkeypatch) -> rig.Stub:
    module = rig.Stub(request.param)
    monkeypatch.setitem(sys.modules, 'tensorrt', module)
    return module


@pytest.fixture
def plan(stub, tmp_path) -> Path:
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    build_engine(onnx, tmp_path / 'net.engine', BuildOptions(batches=(1, 2, 4)))
    return tmp_path / 'net.engine'


def crops(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {'x': torch.rand(batch, *rig.INPUT_SHAPE, generator=generator)}


def test_an_output_that_lies_pixel_by_pixel_is_told_and_given_so(plan, monkeypatch):
    formats = {'x': rig.Format.LINEAR, 'y': rig.Format.HWC8}
    monkeypatch.setattr(rig.Engine, 'get_tensor_format', lambda self, name: formats[name])
    engine = TensorRtEngine(plan, 'cpu')
    assert engine.inputs[0].layout is torch.contiguous_format
    assert engine.outputs[0].layout is torch.channels_last
    output = engine.execution({'x': torch.zeros(2, *rig.INPUT_SHAPE)}).outputs['y']
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert not output.is_contiguous()


def test_reads_its_inputs_and_writes_its_outputs(plan, stub):
    engine = TensorRtEngine(plan, 'cpu')
    given = crops(3)
    execution = engine.execution(given)
    for seed in (1, 2):
        given['x'].copy_(crops(3, seed)['x'])
        assert torch.equal(execution.enqueue()['y'], 2 * crops(3, seed)['x'])
    assert execution.nbytes == given['x'].nbytes


def test_specs_come_from_the_plan(plan):
    engine = TensorRtEngine(plan, 'cpu')
    shape = (-1, *rig.INPUT_SHAPE)
    assert engine.inputs == (TensorSpec('x', shape, torch.float32),)
    assert engine.outputs == (TensorSpec('y', shape, torch.float32),)
    assert (engine.name, engine.graphable, engine.light) == ('net.engine', True, False)
    assert engine.workspace_bytes == rig.WORKSPACE


def test_all_is_set_once_and_before_the_launches(plan, stub):
    execution = TensorRtEngine(plan, 'cpu').execution(crops(2))
    before = [call[0] for call in stub.trace]
    old = stub.__version__.startswith('8')
    assert before == [
        'context',
        'set_optimization_profile_async',
        'set_input_shape',
        'set_tensor_address',
        'infer_shapes',
        'get_tensor_shape',
        'set_tensor_address',
        'device_memory =' if old else 'set_device_memory',
    ]
    assert stub.trace[0] == (('context',) if old else ('context', 'USER_MANAGED'))
    stub.trace.clear()
    execution.enqueue()
    execution.enqueue()
    assert stub.trace == [('execute_async_v3', STREAM)] * 2


def workspaces(stub: rig.Stub) -> list[int]:
    return [call[1] for call in stub.trace if call[0] in ('device_memory =', 'set_device_memory')]


def test_executions_share_one_workspace(plan, stub):
    engine = TensorRtEngine(plan, 'cpu')
    kept = [engine.execution(crops(batch)) for batch in (1, 4, 2)]
    assert len(set(workspaces(stub))) == 1 and len(kept) == 3


def test_engines_share_one_as_large_as_the_most_demanding_needs(plan, stub):
    shared = Workspace(torch.device('cpu'))
    first, second = (TensorRtEngine(plan, 'cpu', workspace=shared) for _ in range(2))
    shared.reserve(3 * rig.WORKSPACE)
    kept = [engine.execution(crops(1)) for engine in (first, second)]
    assert len(set(workspaces(stub))) == 1
    assert first.workspace.memory().nbytes == 3 * rig.WORKSPACE
    assert {execution.nbytes for execution in kept} == {crops(1)['x'].nbytes}


def test_one_in_use_is_not_taken_for_what_needs_more(plan, stub):
    shared = Workspace(torch.device('cpu'))
    shared.reserve(rig.WORKSPACE - 1)
    address = shared.memory().data_ptr()
    engine = TensorRtEngine(plan, 'cpu', workspace=shared)
    engine.execution(crops(1))
    assert engine.workspace is not shared and workspaces(stub) != [address]
    assert not shared.reserve(rig.WORKSPACE) and shared.memory().data_ptr() == address


def test_streams_of_engines_that_are_gone_serve_others(monkeypatch):
    """Each has workspaces of cuBLAS that nobody frees: a node that is configured again and again
    would take more and more."""
    made = []
    monkeypatch.setattr(torch.cuda, 'Stream', lambda *_, **__: made.append(object()) or made[-1])
    monkeypatch.setattr(torch.cuda, 'Event', object)
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: (0, 1))
    monkeypatch.setattr(cuda_graph, '_spare_streams', defaultdict(list))
    device = torch.device('cuda', 0)
    first, second = (cuda_graph.LaunchOrder(device) for _ in range(2))
    assert first.side is not second.side
    for _ in range(5):
        del second
        gc.collect()
        second = cuda_graph.LaunchOrder(device)
        assert second.side is not first.side
    assert len(made) == 2
    assert cuda_graph.LaunchOrder(torch.device('cuda', 1)).side is made[2]


def test_engines_on_one_workspace_are_launched_one_after_the_other(plan, stub, monkeypatch):
    monkeypatch.setattr(cuda_graph, 'LaunchOrder', lambda device: object())
    shared = Workspace(torch.device('cpu'))
    both = [TensorRtEngine(plan, 'cpu', workspace=shared) for _ in range(2)]
    alone = TensorRtEngine(plan, 'cpu')
    assert cuda_graph.order_of(both[0]) is cuda_graph.order_of(both[1])
    assert cuda_graph.order_of(alone) is not cuda_graph.order_of(both[0])


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        ('context', 'refuses a new context'),
        ('set_optimization_profile_async', 'refuses optimization profile 1'),
        ('set_input_shape', r'refuses input x of \(2, 3, 16, 16\): no set_input_shape today'),
        ('set_tensor_address', 'refuses the address of x: no set_tensor_address today'),
        ('infer_shapes', r"lacks the shapes of \['x'\]"),
        ('get_tensor_shape', 'the shape of output y, .* depends on what the inputs hold'),
    ],
)
def test_each_refusal_is_told(plan, stub, call, words):
    engine = TensorRtEngine(plan, 'cpu')
    stub.fails.add(call)
    with pytest.raises(RuntimeError, match=f'net.engine: .*{words}'):
        engine.execution(crops(2))


def test_a_launch_that_fails_is_told(plan, stub):
    execution = TensorRtEngine(plan, 'cpu').execution(crops(2))
    stub.fails.add('execute_async_v3')
    with pytest.raises(RuntimeError, match='net.engine: TensorRT could not launch'):
        execution.enqueue()


@pytest.mark.parametrize(('batch', 'profile'), [(1, 0), (2, 1), (3, 2), (4, 3)])
def test_each_batch_takes_the_profile_tuned_for_it(plan, stub, batch, profile):
    execution = TensorRtEngine(plan, 'cpu').execution(crops(batch))
    assert ('set_optimization_profile_async', profile, STREAM) in stub.trace
    assert torch.equal(execution.enqueue()['y'], 2 * crops(batch)['x'])


def test_batches_outside_the_profile_are_refused(plan):
    with pytest.raises(ValueError, match=r'batches of 1\.\.4, got 5: .*--batches'):
        TensorRtEngine(plan, 'cpu').execution(crops(5))


def test_wrong_inputs_are_refused(plan):
    with pytest.raises(ValueError, match='input x is torch.float16'):
        TensorRtEngine(plan, 'cpu').execution({'x': crops(2)['x'].half()})


def test_a_plan_that_tensorrt_refuses(plan, stub):
    stub.fails.add('deserialize')
    with pytest.raises(ValueError, match='bad magic number; build it again: foundationpose-trt'):
        TensorRtEngine(plan, 'cpu')


def test_another_gpu_and_no_gpu(plan, gpu, monkeypatch):
    gpu.name = 'Other'
    with pytest.raises(ValueError, match='was built for Stand-in, here is Other'):
        TensorRtEngine(plan, 'cpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='needs a GPU'):
        TensorRtEngine(plan, 'cpu')


def test_typing_by_version(stub, tmp_path):
    stub.half = True
    onnx = rig.write_tiny(tmp_path / 'net.onnx', half=True)
    manifest = build_engine(onnx, tmp_path / 'net.engine', BuildOptions(precision='fp16'))
    assert manifest.precision == 'fp16'
    major = int(stub.__version__.split('.')[0])
    assert stub.networks[0][0] == {8: 1 << 0, 10: 1 << 1, 11: 0}[major]
    weak = {'FP16': True} if major == 8 else {}
    assert stub.configs[0].flags == {'TF32': False, **weak}


def test_single_precision_sets_no_half(stub, tmp_path):
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    build_engine(onnx, tmp_path / 'a.engine')
    build_engine(onnx, tmp_path / 'b.engine', BuildOptions(precision='tf32'))
    assert [config.flags for config in stub.configs] == [{'TF32': False}, {'TF32': True}]


def test_what_is_quantized_takes_and_gives_half(stub, tmp_path):
    """TensorRT 8.6, which types layers itself, is told; later ones read a file in half."""
    stub.quantized, weak = True, stub.__version__.startswith('8')
    stub.half = not weak
    onnx = rig.write_tiny(tmp_path / 'net.onnx', half=not weak)
    manifest = build_engine(onnx, tmp_path / 'a.engine', BuildOptions('int8', half_io=True))
    assert (manifest.precision, manifest.inputs[0].dtype) == ('int8', torch.float16)
    told = {'FP16': True, 'INT8': True} if weak else {}
    assert stub.configs[0].flags == {'TF32': False, **told}
    if weak:  # a file of somebody else keeps what it says
        assert build_engine(onnx, tmp_path / 'b.engine').inputs[0].dtype == torch.float32


def test_options_reach_the_builder(stub, tmp_path):
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    options = BuildOptions(batches=(2, 3, 5), workspace_bytes=1 << 20, version_compatible=True)
    build_engine(onnx, tmp_path / 'net.engine', options)
    # smallest, tuned for, largest of each profile; the last size has one for itself
    ranges = [(1, 2, 2), (3, 3, 3), (4, 5, 5), (5, 5, 5)]
    shapes = [tuple((size, *rig.INPUT_SHAPE) for size in sizes) for sizes in ranges]
    assert [profile.shapes for profile in stub.profiles] == [{'x': s} for s in shapes]
    assert stub.configs[0].limits == {'WORKSPACE': 1 << 20}
    assert stub.configs[0].flags['VERSION_COMPATIBLE'] is True


def test_contexts_may_share_a_profile(stub, tmp_path):
    build_engine(rig.write_tiny(tmp_path / 'net.onnx'), tmp_path / 'net.engine')
    asked = {'PROFILE_SHARING_0806': True} if stub.__version__.startswith('8') else {}
    assert stub.configs[0].previews == asked


def test_timings_are_kept_and_foreign_ones_dropped(stub, tmp_path):
    onnx, plan = rig.write_tiny(tmp_path / 'net.onnx'), tmp_path / 'net.engine'
    timing = tmp_path / 'net.engine.timing'
    build_engine(onnx, plan)
    assert timing.read_bytes() == b'timings'
    build_engine(onnx, plan)
    timing.write_bytes(b'of another GPU')
    build_engine(onnx, plan)
    assert [config.cache for config in stub.configs] == [b'', b'timings', b'']


def test_progress_where_the_version_tells_it(stub, tmp_path):
    told = []
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    build_engine(onnx, tmp_path / 'net.engine', progress=lambda *news: told.append(news))
    phases = [] if stub.__version__.startswith('8') else [(0.0, 'build'), (0.5, 'build')]
    assert told == [*phases, (1.0, 'built')]


def test_a_failed_build_gives_the_reason_and_leaves_no_engine(stub, tmp_path):
    stub.fails.add('build')
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    with pytest.raises(ValueError, match=r'cannot build net\.engine: no tactic; .*\.log'):
        build_engine(onnx, tmp_path / 'net.engine')
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {'net.onnx', 'net.engine.log'}
    assert 'ERROR no tactic' in (tmp_path / 'net.engine.log').read_text()


def test_only_rtx_builds_for_other_gpus(stub, tmp_path):
    onnx = rig.write_tiny(tmp_path / 'net.onnx')
    options = BuildOptions(compute_capabilities=('8.9',))
    with pytest.raises(ValueError, match='tensorrt builds for the GPU it runs on.*tensorrt_rtx'):
        build_engine(onnx, tmp_path / 'net.engine', options)


def test_a_missing_or_broken_tensorrt_is_told(monkeypatch, tmp_path):
    for name in ('tensorrt_lean', 'tensorrt_lean_bindings'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match='tensorrt_lean is .*pip install tensorrt_lean'):
        load_api('tensorrt_lean')
    (tmp_path / 'tensorrt_lean.py').write_text("raise OSError('libcudart.so.12: missing')")
    monkeypatch.delitem(sys.modules, 'tensorrt_lean')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r'does not load \(libcudart\.so\.12: missing\)'):
        load_api('tensorrt_lean')
    with pytest.raises(ValueError, match='backend is "cuda", must be one of tensorrt,'):
        load_api('cuda')


def torch_reference(onnx: Path, x: torch.Tensor) -> torch.Tensor:
    """The tiny network by torch's own functions in double precision."""
    import onnx as onnx_package
    from onnx import numpy_helper

    graph = onnx_package.load(str(onnx)).graph
    weights = {
        w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.initializer
    }
    mean = torch.conv2d(x.double(), weights['w'].double(), padding=1).relu().mean((2, 3))
    return torch.layer_norm(mean, (8,)).float()


@pytest.mark.gpu
@pytest.mark.parametrize('half', [False, True])
def test_a_real_engine_agrees_with_torch(tmp_path, half):
    pytest.importorskip('tensorrt')
    onnx, plan = rig.write_tiny(tmp_path / 'net.onnx', half), tmp_path / 'net.engine'
    build_engine(onnx, plan, BuildOptions(backend='tensorrt', batches=(1, 4, 8)))
    engine = TensorRtEngine(plan, onnx=onnx)
    with torch.cuda.stream(torch.cuda.Stream()):
        executions = {}
        for batch in (1, 8, 3):
            x = crops(batch)['x'].to('cuda', engine.inputs[0].dtype)
            executions[batch] = (engine.execution({'x': x}), x)
        for execution, x in [*executions.values(), *reversed(executions.values())]:
            given = torch.rand(x.shape, device='cuda').to(x.dtype)
            x.copy_(given)
            result = execution.enqueue()['y'].cpu()
            expected = torch_reference(onnx, given.cpu())
            tolerance = 2e-2 if half else 1e-4
            torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
def test_a_captured_graph_replays_what_the_engine_does(tmp_path):
    pytest.importorskip('tensorrt')
    onnx, plan = rig.write_tiny(tmp_path / 'net.onnx'), tmp_path / 'net.engine'
    build_engine(onnx, plan, BuildOptions(backend='tensorrt', batches=(1, 4, 8)))
    engine = TensorRtEngine(plan)
    x = crops(4)['x'].cuda()
    execution, graph = engine.execution({'x': x}), torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        execution.enqueue()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            outputs = execution.enqueue()
        for seed in (1, 2):
            x.copy_(crops(4, seed)['x'])
            graph.replay()
            replayed = outputs['y'].clone()
            assert torch.equal(replayed, execution.enqueue()['y'])


@pytest.mark.gpu
@pytest.mark.parametrize('half', [False, True])
def test_the_tool_notes_how_near_the_engine_is_to_its_file(tmp_path, capsys, half):
    pytest.importorskip('tensorrt')
    onnx, out = rig.write_tiny(tmp_path / 'net.onnx', half), str(tmp_path)
    words = ['build', '--onnx', str(onnx), '--out', out, '--backend', 'tensorrt', '--batches']
    assert cli.main([*words, '1', '4']) == 0
    found = read_manifest(tmp_path / 'net.engine').tolerance['random_inputs_relative']
    assert list(found) == ['y'] and 0 <= found['y'] < (0.05 if half else 1e-3)
    assert 'off, %' in capsys.readouterr().out
