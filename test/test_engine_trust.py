"""Engines of the pose networks are run only where they compute what these weights do."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from foundationpose_trt.pose import backends
from foundationpose_trt.pose.backends import exported, onnx_path, open_engines
from foundationpose_trt.pose.crops import pairs_spec
from foundationpose_trt.pose.weights import PoseNetworks, load_networks, resolve_folder
from foundationpose_trt.runtime import engine_manifest
from foundationpose_trt.runtime.choice import BackendChoice

RIGHT, WRONG = {'trans': 0.02, 'rot': 0.03}, {'trans': 0.02, 'rot': 0.9}
RENDERED = 'rendered_crops_relative'
BOTH = ['refiner_trunk', 'extractor_trunk']


class Engines:
    """Stands for TensorRT: engines that are there, and how far off they are found to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **tolerance: object) -> None:
        self.tolerance: dict[str, dict[str, object]] = {}
        self.precision, self.inputs, self.output = 'fp32', ['crops'], 'image'
        self.batches, self.pairs = (2, 16, 128, 252), []
        self.layouts = [torch.contiguous_format] * 2
        self.first, self.found, self.compared, self.writable = tolerance, RIGHT, [], True
        monkeypatch.setattr(backends, 'require_serves', lambda *_: None)
        monkeypatch.setattr(backends, 'TensorRtEngine', self._open)
        monkeypatch.setattr(backends, 'measured_tolerance', self._measure)
        monkeypatch.setattr(engine_manifest, 'record_tolerance', self._record)

    def _open(self, plan: Path, *_: object, **__: object) -> SimpleNamespace:
        tolerance = self.tolerance.setdefault(plan.stem, dict(self.first))
        manifest = SimpleNamespace(
            tolerance=tolerance, batches=self.batches, any_batch=True,
            precision=self.precision, outputs=(SimpleNamespace(name=self.output),),
            inputs=tuple(SimpleNamespace(name=name) for name in self.inputs),
        )  # fmt: skip
        return SimpleNamespace(
            name=plan.name, plan=plan, manifest=manifest, outputs=(), device=None,
            inputs=(pairs_spec(torch.float32, self.layouts[BOTH.index(plan.stem)]),),
            graphable=True, warm_up_runs=1,
        )  # fmt: skip

    def _measure(
        self, engine: SimpleNamespace, _: object, batch: int
    ) -> dict[str, dict[str, float]]:
        self.pairs.append(batch)
        self.compared.append(engine.first.plan.stem)
        return {'random_crops_relative': RIGHT, RENDERED: self.found}

    def _record(self, plan: Path, found: dict[str, object]) -> None:
        if not self.writable:
            raise PermissionError(f'{plan} is read-only')
        self.tolerance[plan.stem] |= found


@pytest.fixture(scope='module')
def networks() -> PoseNetworks:
    return load_networks('small')


@pytest.fixture
def choice(tmp_path) -> BackendChoice:
    return BackendChoice('tensorrt', tmp_path)


def test_an_engine_is_compared_once(networks, choice, monkeypatch):
    engines = Engines(monkeypatch)
    for _ in range(3):
        open_engines(networks, choice)
    assert engines.compared == BOTH


def test_two_crops_make_one_pose(networks, choice, monkeypatch):
    engines = Engines(monkeypatch)
    opened = open_engines(networks, choice)
    assert opened.largest == 126 and opened.explanation == 'tensorrt (asked for)'
    assert engines.pairs == [8, 8], 'as many as the comparison has'
    engines.batches, engines.tolerance = (2, 8), {}
    opened = open_engines(networks, choice)
    assert opened.largest == 4
    assert opened.explanation == 'tensorrt (asked for), its engines tuned for 1, 4 poses'
    assert engines.pairs[2:] == [4, 4]
    for engine, name, size in ((opened.refiner, 'rot', 3), (opened.features, 'features', 128)):
        monkeypatch.setattr(engine, 'device', 'cpu')
        engine.first.execution = lambda inputs: SimpleNamespace(nbytes=0)
        crops = {'crops': torch.zeros(6, 1)}
        assert engine.execution(crops).outputs[name].shape == (3, size)


@pytest.mark.parametrize(
    ('batches', 'layout'), [((2, 16), torch.channels_last), ((1,), torch.contiguous_format)]
)
def test_engines_that_read_crops_otherwise_or_no_pair_are_refused(
    networks, choice, monkeypatch, batches, layout
):
    """As `build --onnx` makes them of a trunk's file, without the options of trunks."""
    engines = Engines(monkeypatch)
    engines.batches, engines.layouts[1] = batches, layout
    told = (
        r'refiner_trunk.engine takes \d+ crops \(6, 160, 160\) of torch.float32 in torch.contig.*'
        r' and .*extractor_trunk.engine .*, and pairs; build both again: `foundationpose-trt build'
    )
    with pytest.raises(ValueError, match=told):
        open_engines(networks, choice)
    assert engines.compared == []


def test_what_was_found_is_judged_at_every_start(networks, choice, monkeypatch):
    engines = Engines(monkeypatch)
    engines.found = WRONG
    for _ in range(2):
        with pytest.raises(ValueError, match='output rot is off by 0.9 .*computes something else'):
            open_engines(networks, choice)
    assert engines.compared == BOTH[:1], 'the second time it is known'


def test_what_a_build_of_onnx_files_found_is_no_comparison_with_the_weights(
    networks, choice, monkeypatch
):
    engines = Engines(monkeypatch, random_inputs_relative=RIGHT)
    open_engines(networks, choice)
    assert engines.compared == BOTH


def test_an_engine_is_compared_again_with_other_weights(networks, choice, monkeypatch, tmp_path):
    """As after training into the same folder."""
    engines = Engines(monkeypatch)
    open_engines(networks, choice)
    monkeypatch.setattr(backends, 'weights_sha256', lambda *_: 'another')
    open_engines(networks, choice)
    assert engines.compared == BOTH * 2


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(backends.torch, '__version__'), (backends.wp, '__version__'), (backends.heads, 'FORM')],
)
def test_an_engine_is_compared_again_with_another_program_behind_it(
    networks, choice, monkeypatch, owner, name
):
    """Attention and heads are in no plan: torch and Warp compute them."""
    engines = Engines(monkeypatch)
    open_engines(networks, choice)
    monkeypatch.setattr(owner, name, 'another')
    for _ in range(2):
        open_engines(networks, choice)
    assert engines.compared == BOTH * 2


def test_a_folder_that_cannot_be_written_costs_a_comparison_each_time(
    networks, choice, monkeypatch, caplog
):
    engines = Engines(monkeypatch)
    engines.writable = False
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            open_engines(networks, choice)
    assert engines.compared == BOTH * 2
    assert 'is compared at every start' in caplog.text


def test_engines_of_weights_that_were_replaced_are_refused(monkeypatch, tmp_path):
    pytest.importorskip('onnx')
    folder = tmp_path / 'mine'
    shutil.copytree(resolve_folder('small'), folder)
    networks, choice = load_networks(str(folder)), BackendChoice('tensorrt', tmp_path / 'engines')
    for kind in BOTH:
        exported(networks, kind, choice, 'tensorrt')
    engines = Engines(monkeypatch)
    open_engines(networks, choice)
    manifest = onnx_path(networks, 'extractor_trunk', choice, 'tensorrt')
    manifest = manifest.with_name('extractor_trunk.onnx.json')
    content = json.loads(manifest.read_text())
    content['weights']['sha256'] = 64 * '0'
    manifest.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=f'extractor_trunk.engine is of other weights than {folder}'
    ):
        open_engines(networks, choice)
    manifest.unlink()  # nothing tells; what was compared with these weights still counts
    open_engines(networks, choice)
    assert engines.compared == BOTH


def test_an_engine_of_a_version_that_had_more_in_it_is_refused(networks, choice, monkeypatch):
    """Until format 6 the positional code was in it, which would be added twice."""
    engines = Engines(monkeypatch)
    engines.output = 'trunk'
    with pytest.raises(
        ValueError, match=r'refiner_trunk.engine gives trunk, not image: .*again: `foundationpose'
    ):
        open_engines(networks, choice)
    assert engines.compared == []


def test_an_engine_that_takes_the_halves_apart_is_refused(networks, choice, monkeypatch):
    """Until format 7."""
    engines = Engines(monkeypatch)
    engines.inputs = ['inputA', 'inputB']
    with pytest.raises(
        ValueError, match=r'refiner_trunk.engine takes inputA, inputB, not crops: .*built by an'
    ):
        open_engines(networks, choice)
    assert engines.compared == []


def test_an_automatic_choice_passes_over_such_engines(networks, choice, monkeypatch):
    ports = {side: (SimpleNamespace(name=side),) for side in ('crops', 'trunk')}
    old = SimpleNamespace(inputs=ports['crops'], outputs=ports['trunk'])
    monkeypatch.setattr(backends, 'check_engine', lambda *_, **__: None)
    monkeypatch.setattr(backends, 'read_manifest', lambda *_: old)

    def fitting(plans_of, device, may_build, check):
        for plan in plans_of('tensorrt'):
            with pytest.raises(ValueError, match='gives trunk, not image'):
                check(plan, SimpleNamespace(backend='tensorrt'))
        return None, 'too old'

    monkeypatch.setattr(backends, 'fitting_tensorrt', fitting)
    assert backends._automatic_on_cuda(networks, choice) == ('torch', 'too old')


def test_an_engine_in_integers_serves_no_other_precision(networks, choice, monkeypatch):
    engines = Engines(monkeypatch)
    engines.precision = 'int8'
    with pytest.raises(ValueError, match=r'refiner_trunk.engine is int8: build it again: `found'):
        open_engines(networks, choice)
