"""Training a detector: what its images and boxes are, and one whole stretch where rfdetr is."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detector_rig import sample_image
from scipy.spatial import ConvexHull

from foundationpose_trt.detection.backends import open_detector
from foundationpose_trt.detection.detector import Detector
from foundationpose_trt.detection.images import ColorImage
from foundationpose_trt.detection.manifest import read_manifest
from foundationpose_trt.synthesis.cast import CAST, cast_objects
from foundationpose_trt.synthesis.objects import is_held_out
from foundationpose_trt.synthesis.tabletop import NoRoomError, SceneSettings
from foundationpose_trt.tools import cli, train_detector
from foundationpose_trt.training import detector_scenes
from foundationpose_trt.training.detection_metrics import average_precision
from foundationpose_trt.training.detector import network_input
from foundationpose_trt.training.detector_network import NarrowSize, build_narrow
from foundationpose_trt.training.detector_scenes import (
    NONE,
    DetectionSampler,
    DetectionWorld,
    compose_stage,
    visible_boxes,
)

SETTINGS = SceneSettings(width=160, height=120, focal_px=150.0, texture_px=64)
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def stages():
    return [compose_stage(seed, 3, SETTINGS, held_out=False) for seed in (1, 2)]


@pytest.fixture(scope='module')
def world(stages):
    return DetectionWorld.build(stages, SETTINGS, CPU)


def sampler(world, count, seed=0, **options):
    return DetectionSampler(world, count, torch.Generator().manual_seed(seed), **options)


def test_the_cast_is_of_held_out_objects_and_all_differ():
    assert all(is_held_out(seed) for seed in CAST.values())
    assert len({mesh.name for mesh in cast_objects()}) == len(CAST) == 6


def test_objects_that_do_not_fit_are_drawn_again(monkeypatch):
    """A stage that failed would end a training before its first step."""
    drawn, compose = [], detector_scenes.compose_views

    def twice_full(target, others, views, rng, settings):
        drawn.append([target.name, *[mesh.name for mesh in others]])
        if len(drawn) < 3:
            raise NoRoomError('no room')
        return compose(target, others, views, rng, settings)

    monkeypatch.setattr(detector_scenes, 'compose_views', twice_full)
    stage = compose_stage(1, 2, SETTINGS, held_out=False)
    assert len(stage.scene) == 2 and len(drawn) == 3
    assert drawn[0] != drawn[1] != drawn[2]


def test_objects_that_never_fit_are_told(monkeypatch):
    def full(*_):
        raise NoRoomError('no room for a mug')

    monkeypatch.setattr(detector_scenes, 'compose_views', full)
    with pytest.raises(NoRoomError, match='no room for a mug'):
        compose_stage(1, 2, SETTINGS, held_out=False)


def test_stages_are_repeatable_and_held_out_ones_are_of_other_strangers(stages):
    again = compose_stage(1, 3, SETTINGS, held_out=False)
    held_out = compose_stage(1, 3, SETTINGS, held_out=True)
    names = [[m.name for m in stage.scene.meshes] for stage in (stages[0], again, held_out)]
    assert names[0] == names[1]
    poses = [stage.scene.camera_from_centered for stage in (stages[0], again)]
    assert np.array_equal(*poses)
    for stage, is_other in ((stages[0], False), (held_out, True)):
        strangers = [
            mesh.name
            for mesh, kind in zip(stage.scene.meshes, stage.classes, strict=True)
            if kind == NONE and mesh.name.split('_')[-1].isdigit()
        ]
        assert strangers
        assert all(is_held_out(int(n.split('_')[-1])) == is_other for n in strangers)


def test_classes_belong_to_the_slots_of_the_cast(stages):
    names = [mesh.name for mesh in cast_objects()]
    for stage in stages:
        for mesh, kind in zip(stage.scene.meshes, stage.classes, strict=True):
            assert (mesh.name in names) == (kind != NONE)
            if kind != NONE:
                assert mesh.name == names[kind]


def test_boxes_are_those_of_the_projected_objects_where_nothing_hides_them(world):
    """Against the projection of all vertices, by numpy."""
    batch = sampler(world, 6, noise=None, moves=False).draw(torch.arange(6))
    k, checked = SETTINGS.intrinsics(), 0
    for view in range(6):
        stage_meshes = world.meshes[view]
        for slot in torch.nonzero(batch.classes[view] != NONE).flatten().tolist():
            mesh = vertices_of(world, int(stage_meshes[slot]))
            pose = world.poses[view, slot].numpy()
            points = mesh @ pose[:3, :3].T + pose[:3, 3]
            pixels = points[:, :2] / points[:, 2:] * (k.fx, k.fy) + (k.cx, k.cy)
            low, high = pixels.min(0), pixels.max(0)
            inside = (low > 1).all() and (high < (SETTINGS.width - 2, SETTINGS.height - 2)).all()
            center, sides = batch.boxes[view, slot].view(2, 2).numpy() * (
                (SETTINGS.width, SETTINGS.height)
            )
            # what is seen lies within the projection; where it is all seen, it fills it
            assert (center - sides / 2 >= low - 1).all() and (
                center + sides / 2 <= high + 1.5
            ).all()
            if inside and alone(batch, view, slot):
                area = ConvexHull(pixels).volume
                if area > 60:
                    np.testing.assert_allclose(sides, high - low, atol=2.5)
                    checked += 1
    assert checked >= 2


def vertices_of(world, index):
    start = int(world.bank.face_start.numpy()[index])
    count = int(world.bank.face_count.numpy()[index])
    faces = world.bank.faces.numpy()[start : start + count]
    return world.bank.vertices.numpy()[np.unique(faces)]


def alone(batch, view, slot):
    """Whether no other box comes near."""
    boxes = batch.boxes[view]
    others = [k for k in range(len(boxes)) if k != slot and boxes[k, 2] > 0]
    gap = (boxes[others, :2] - boxes[slot, :2]).abs() - (boxes[others, 2:] + boxes[slot, 2:]) / 2
    return bool((gap.amax(1) > 0.05).all()) if others else True


def test_what_is_hardly_seen_is_no_target():
    slot = torch.full((2, 40, 40), -1)
    slot[0, 5:15, 10:30], slot[0, 20, 20] = 0, 1
    slot[1, 30:40, 0:10] = 2
    classes = torch.tensor([[3, 4, NONE], [NONE, NONE, 5]])
    whole = torch.tensor([[210, 300, 0], [0, 0, 900]])
    kinds, boxes = visible_boxes(slot, classes, whole)
    assert kinds.tolist() == [[3, NONE, NONE], [NONE, NONE, NONE]]
    assert boxes[0, 0].tolist() == [20 / 40, 10 / 40, 20 / 40, 10 / 40]
    kinds, boxes = visible_boxes(slot, classes, torch.tensor([[210, 300, 0], [0, 0, 400]]))
    assert kinds.tolist() == [[3, NONE, NONE], [NONE, NONE, 5]]
    assert boxes[1, 2].tolist() == [5 / 40, 35 / 40, 10 / 40, 10 / 40]
    large = torch.full((1, 480, 640), -1)
    large[0, :10, :10] = 0  # all of a tiny object
    kinds, _ = visible_boxes(large, torch.tensor([[1]]), torch.tensor([[100]]))
    assert kinds.tolist() == [[NONE]]


def test_batches_are_repeatable_differ_and_move(world):
    first, again, other = (sampler(world, 3, seed).sample() for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images) and torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.images, other.images)
    views = torch.tensor([0, 0, 0])
    moved = sampler(world, 3, noise=None).draw(views)
    assert not torch.allclose(moved.images[0], moved.images[1], atol=0.05)
    assert moved.images.min() >= 0 and moved.images.max() <= 1


def test_targets_hold_what_is_found_only(world):
    batch = sampler(world, 4).sample()
    for target, kinds in zip(batch.targets(), batch.classes, strict=True):
        assert len(target['labels']) == len(target['boxes']) == int((kinds != NONE).sum())
        assert (target['boxes'] >= 0).all() and (target['boxes'] <= 1).all()
        assert (target['labels'] >= 0).all() and (target['labels'] < len(CAST)).all()


def test_the_network_sees_what_it_will_see_at_run_time():
    from detector_rig import manifest_of

    from foundationpose_trt.detection.preprocess import KernelPreprocessor

    rgb = sample_image(120, 160)
    out = torch.empty(1, 3, 96, 96)
    preprocessor = KernelPreprocessor(manifest_of(), CPU)
    preprocessor.upload(ColorImage.of_array(rgb))
    preprocessor.write(out)
    actual = network_input(torch.from_numpy(rgb)[None] / 255, 96)
    torch.testing.assert_close(actual, out, atol=1e-4, rtol=0)


def test_a_backbone_must_divide_into_its_heads():
    with pytest.raises(ValueError, match='width 100 must be a multiple of heads 3'):
        NarrowSize(width=100)


def test_without_the_reference_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'rfdetr.config', None)
    monkeypatch.setitem(sys.modules, 'rfdetr', None)
    with pytest.raises(ValueError, match=r"needs rfdetr .*pip install '\.\[detector\]'"):
        build_narrow(NarrowSize(), 6, CPU)


@pytest.mark.parametrize(
    ('sizes', 'words'),
    [
        ({'heads': 0}, 'all sizes must be at least 1'),
        ({'layers': 4}, 'layers 4 of 3'),
        ({'layers': 0}, 'all sizes must be at least 1'),
        ({'resolution': 400}, 'resolution is 400, must be a multiple of 32'),
        ({'resolution': 0}, 'all sizes must be at least 1'),
    ],
)
def test_sizes_that_no_network_has_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        NarrowSize(**sizes)


@pytest.mark.parametrize(
    'package', ['rfdetr.config', 'supervision', 'onnx', 'torch_linear_assignment']
)
def test_a_missing_package_is_noticed_before_scenes_are_made(
    monkeypatch, tmp_path, capsys, package
):
    def there(name):
        if name == package:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    module = sys.modules['foundationpose_trt.training.detector_network']
    monkeypatch.setattr(module.importlib, 'import_module', there)
    with pytest.raises(ValueError, match=rf'needs {package.split(".")[0]} .*\.\[detector\]'):
        module.require_packages('cuda')
    monkeypatch.undo()
    monkeypatch.setattr(train_detector, 'compose_stages', lambda *_: pytest.fail('composed'))
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(['train', 'detector', '--out', str(tmp_path), '--device', 'cpu']) == 2
    assert "pip install '.[detector]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'error'),
    [
        ('--backbone-width 32', '--backbone-width is 32, must be a multiple of 64'),
        ('--backbone-width 100', '--backbone-width is 100, must be a multiple of 64'),
        ('--layers 4', 'layers 4 of 3'),
        ('--resolution 100', 'resolution is 100, must be a multiple of 32'),
        ('--stages 90', '90 stages of 32 views have 861 megapixels of textures, at most 716 fit:'),
    ],
)
def test_wrong_sizes_are_noticed_before_scenes_are_made(
    monkeypatch, tmp_path, capsys, words, error
):
    monkeypatch.setattr(train_detector, 'require_packages', lambda device_type: None)
    monkeypatch.setattr(detector_scenes, 'compose_stage', lambda *_: pytest.fail('composed'))
    words = ['train', 'detector', '--out', str(tmp_path), '--device', 'cpu', *words.split()]
    assert cli.main(words) == 2
    assert error in capsys.readouterr().err


def test_another_seed_trains_on_other_scenes_and_is_judged_on_the_same(monkeypatch):
    asked = []
    monkeypatch.setattr(
        train_detector, 'compose_stages', lambda seeds, *_: asked.append({*seeds}) or []
    )
    monkeypatch.setattr(train_detector.DetectionWorld, 'build', lambda *_: None)
    for seed in (0, 1):
        options = SimpleNamespace(seed=seed, stages=30, views=2, seconds=1.0, image_width=160)
        for held_out in (False, True):
            train_detector.make_world(options, torch.device('cpu'), held_out)
    assert [len(seeds) for seeds in asked] == [30, 24, 30, 24]
    assert not asked[0] & asked[2] and asked[1] == asked[3]


def test_textures_are_counted_before_they_are_drawn(world):
    """As the bank counts them that holds two stages of three views."""
    texels = len(world.bank.texels) // 3
    assert texels == 2 * detector_scenes.texels_of_stage(3, SETTINGS)


def test_average_precision_of_known_cases():
    """One class found, one found late, one missed: 100, 50 and 0 percent."""
    pytest.importorskip('supervision')
    box = np.array([[0.1, 0.1, 0.3, 0.4]])
    aside = np.array([[0.6, 0.6, 0.8, 0.8]])
    truth = [(np.concatenate([box, box, box]), np.array([0, 1, 2]))]
    found = [
        (
            np.concatenate([box, aside, box]),
            np.array([0, 1, 1]),
            np.array([0.9, 0.8, 0.7]),
        )
    ]
    result = average_precision(found, truth, ['a', 'b', 'c'])
    assert result['ap50_a'] == pytest.approx(100, abs=0.1)
    assert result['ap50_b'] == pytest.approx(50, abs=0.6)
    assert result['ap50_c'] == pytest.approx(0, abs=0.1)
    assert result['ap50'] == pytest.approx(50, abs=0.5)


def test_one_stretch_trains_judges_and_exports(tmp_path):
    pytest.importorskip('rfdetr')
    words = 'train detector --stages 1 --views 2 --seconds 1 --batch 4 --layers 3 --device cpu'
    words += ' --image-width 160 --validation-batches 1 --backbone-width 64 --resolution 192'
    temporary = set(Path(tempfile.gettempdir()).glob('rfdetr_backbone*'))
    out = tmp_path / 'narrow'
    file = tmp_path / 'figures.json'
    assert cli.main([*words.split(), '--out', str(out), '--json', str(file)]) == 0
    assert 0 <= json.loads(file.read_text())['ap50'] <= 100
    manifest = read_manifest(out)
    assert manifest.class_names == list(CAST) and manifest.queries == NarrowSize().queries
    assert manifest.variant == 'narrow' and manifest.resolution == (192, 192)
    assert manifest.source['checkpoint'] == 'foundationpose-trt train detector'
    assert manifest.source['steps'] > 0 and len(manifest.source['sha256']) == 64
    assert set(Path(tempfile.gettempdir()).glob('rfdetr_backbone*')) <= temporary
    assert [(f.kind, f.precision) for f in manifest.files] == [('onnx', 'fp32')]
    opened = open_detector(out, 'cpu', 'auto')
    found = Detector(opened.manifest, opened.engine).detect(
        ColorImage.of_array(sample_image(120, 160))
    )
    assert found.labels is None and len(found.detections) <= NarrowSize().queries
    judged = tmp_path / 'judged'
    more = f' --seconds 0 --resume {out}/detector.safetensors --out {judged}'
    assert cli.main([*words.replace(' --seconds 1', '').split(), *more.split()]) == 0
    again = read_manifest(judged)
    assert again.source['steps'] == 0 and 'detector.safetensors' in again.source['steps_before']
    before, after = ((f / 'detector.safetensors').read_bytes() for f in (out, judged))
    assert before == after, 'nothing was trained'
