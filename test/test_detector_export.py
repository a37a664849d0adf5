"""Exporting RF-DETR: with the reference package where it is installed; requests everywhere."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detector_rig import sample_image, scene, write_fixed

from foundationpose_trt.detection.backends import open_detector
from foundationpose_trt.detection.detector import Detector, DetectorSettings
from foundationpose_trt.detection.export import (
    DetectorExport,
    _digest,
    export_detector,
    known_manifest,
)
from foundationpose_trt.detection.images import ColorImage
from foundationpose_trt.detection.manifest import read_manifest
from foundationpose_trt.detection.preprocess import CpuPreprocessor, KernelPreprocessor
from foundationpose_trt.runtime.choice import BackendChoice
from foundationpose_trt.tools import cli


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'checkpoint': None}, 'random weights need a size: one of nano'),
        ({'checkpoint': None, 'size': 'huge'}, 'size is "huge", must be one of nano, small'),
        ({'checkpoint': Path('none.pth')}, 'none.pth: there is no such checkpoint'),
        ({'checkpoint': None, 'size': 'nano', 'batch': 0}, 'batch is 0'),
        (
            {'checkpoint': None, 'size': 'nano', 'compact': True, 'precisions': ('fp16',)},
            'a compact file computes in fp32',
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        DetectorExport(**arguments)


def test_without_the_reference_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rfdetr', None)
    with pytest.raises(
        ValueError, match=r"needs the package rfdetr .*pip install '\.\[detector\]"
    ):
        export_detector(DetectorExport(None, 'nano'), tmp_path)


@pytest.mark.parametrize('text', ['', '{"format": 0}', '[]'])
def test_a_manifest_that_must_be_written_anew_is_none(tmp_path, text):
    """To export again is what it asks for."""
    assert known_manifest(tmp_path) is None
    (tmp_path / 'detector.json').write_text(text)
    assert known_manifest(tmp_path) is None
    folder = write_fixed(tmp_path / 'good', *scene([]))
    assert known_manifest(folder) == read_manifest(folder)


def test_weights_of_another_order_are_others():
    """Their sum is not."""
    one = torch.nn.Linear(2, 1)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.weight.copy_(one.weight.flip(1))
    assert _digest(one) == _digest(copy.deepcopy(one)) != _digest(other)


@pytest.fixture(scope='module')
def reference():
    """The reference package's model of a size with random weights."""
    package = pytest.importorskip('rfdetr')
    models = {}

    def get(size: str):
        if size not in models:
            torch.manual_seed(0)
            kind = {'nano': package.RFDETRNano, 'seg-nano': package.RFDETRSegNano}[size]
            models[size] = kind(pretrain_weights=None, num_classes=4, device='cpu')
            # random logits of the class head are all alike: spread them
            torch.nn.init.normal_(models[size].model.model.class_embed.weight, std=0.5)
            models[size].model.class_names = ['box', 'can', 'drill', 'cup']
        return models[size]

    return get


@pytest.fixture(scope='module')
def exported(reference, tmp_path_factory):
    """The folder of such a model, exported as a checkpoint of it would be."""
    from foundationpose_trt.detection import export

    folders = {}

    def get(size: str) -> Path:
        if size not in folders:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(export, 'reference_model', lambda request: reference(size))
                folder = tmp_path_factory.mktemp('detectors') / size
                request = DetectorExport(
                    None, size, formats=('onnx', 'torchscript'),
                    batch=None if size == 'nano' else 1,
                )  # fmt: skip
                export_detector(request, folder)
            folders[size] = folder
        return folders[size]

    return get


SIZES = ['nano', 'seg-nano']


@pytest.mark.parametrize('size', SIZES)
def test_the_manifest_says_what_the_reference_is(reference, exported, size):
    model, manifest = reference(size), read_manifest(exported(size))
    assert manifest.resolution == (model.model.resolution,) * 2
    assert manifest.classes == ('box', 'can', 'drill', 'cup', None)
    assert (manifest.mean, manifest.deviation) == (tuple(model.means), tuple(model.stds))
    assert manifest.queries == {'nano': 300, 'seg-nano': 100}[size]
    assert bool(manifest.masks) == (size == 'seg-nano')
    assert {(f.kind, f.precision) for f in manifest.files} == {
        ('onnx', 'fp32'), ('onnx', 'fp16'), ('torchscript', 'fp32'),
    }  # fmt: skip
    assert manifest.source['package'] == 'rfdetr 1.11.2'


# The kernel rounds as torch does. OpenCV's weights are nearer to the truth; a network of random
# weights makes much of the difference.
LARGEST_SCORE_ERROR = {KernelPreprocessor: 1e-4, CpuPreprocessor: 0.05}


@pytest.mark.parametrize('preprocess', LARGEST_SCORE_ERROR)
@pytest.mark.parametrize('backend', ['onnxruntime', 'torchscript'])
@pytest.mark.parametrize('size', SIZES)
def test_whole_images_give_what_predict_gives(reference, exported, size, backend, preprocess):
    """As sets: near-equal queries change places."""
    opened = open_detector(exported(size), 'cpu', 'auto', BackendChoice(backend))
    detector = Detector(opened.manifest, opened.engine, DetectorSettings(threshold=0.02))
    detector._preprocess = preprocess(opened.manifest, torch.device('cpu'))
    for seed, shape in enumerate([(480, 640), (720, 1280), (1080, 1920)]):
        rgb = sample_image(*shape, seed)
        wanted = reference(size).predict(rgb, threshold=0.02)
        found = detector.detect(ColorImage.of_array(rgb)).detections
        keep = wanted.class_id < 4  # the reference also reports the background
        assert keep.sum() > 20
        same = np.abs(wanted.xyxy[keep][:, None] - found.boxes_px[None]).max(-1) < 1.0
        same &= wanted.class_id[keep][:, None] == found.columns[None]
        apart = np.abs(wanted.confidence[keep][:, None] - found.scores[None])
        same &= apart < LARGEST_SCORE_ERROR[preprocess]
        assert same.any(1).mean() > 0.97


def test_masks_of_whole_images_are_those_of_predict(reference, exported):
    opened = open_detector(exported('seg-nano'), 'cpu', 'auto')
    detector = Detector(opened.manifest, opened.engine, DetectorSettings(threshold=0.02))
    rgb = sample_image(480, 640)
    wanted = reference('seg-nano').predict(rgb, threshold=0.02)
    found, masks = detector.masks_of(ColorImage.of_array(rgb))
    best = [k for k in range(len(wanted)) if wanted.class_id[k] < 4][:5]
    for k in best:
        same = np.abs(found.boxes_px - wanted.xyxy[k]).max(1) < 0.5
        same &= found.columns == wanted.class_id[k]
        agreeing = [(masks[i] == wanted.mask[k]).mean() for i in np.flatnonzero(same)]
        assert max(agreeing, default=0) > 0.999


def test_a_checkpoint_of_the_reference_is_exported_end_to_end(reference, tmp_path):
    """Saved as its training saves them; loaded without trusting its pickle."""
    model = reference('nano')
    checkpoint = tmp_path / 'checkpoint_best_total.pth'
    torch.save(
        {
            'model': model.model.model.state_dict(),
            'model_name': 'RFDETRNano',
            'args': {'num_classes': 4, 'class_names': ['box', 'can', 'drill', 'cup']},
        },
        checkpoint,
    )
    out = tmp_path / 'mine'
    manifest = export_detector(DetectorExport(checkpoint, precisions=('fp32',)), out)
    assert manifest.name == 'mine' and manifest.classes == ('box', 'can', 'drill', 'cup', None)
    opened = open_detector(out, 'cpu', 'auto')
    detector = Detector(opened.manifest, opened.engine, DetectorSettings(threshold=0.02))
    rgb = sample_image(480, 640)
    wanted = model.predict(rgb, threshold=0.02)
    best = wanted.class_id < 4
    found = detector.detect(ColorImage.of_array(rgb)).detections
    np.testing.assert_allclose(found.scores[:5], wanted.confidence[best][:5], atol=2e-3)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    pytest.importorskip('rfdetr')
    file = tmp_path / 'x.pth'
    file.write_bytes(b'not a checkpoint')
    with pytest.raises(ValueError, match='does not load as an RF-DETR checkpoint'):
        export_detector(DetectorExport(file), tmp_path / 'out')


def test_the_command_writes_a_folder_that_opens(tmp_path, capsys):
    pytest.importorskip('rfdetr')
    out = tmp_path / 'random'
    words = ['export', 'detector', '--weights', 'none', '--size', 'nano', '--out', str(out)]
    out.mkdir()
    (out / 'detector.json').write_text('{"format": 0}')  # of an older version: written anew
    assert cli.main([*words, '--classes', 'box', 'can', '--precision', 'fp32']) == 0
    assert '2 classes: box, can' in capsys.readouterr().out
    opened = open_detector(out, 'cpu', 'auto')
    assert opened.manifest.classes == ('box', 'can', None)


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    words = ['export', 'detector', '--weights', 'none', '--out', str(tmp_path)]
    assert cli.main(words) == 2
    assert 'random weights need a size' in capsys.readouterr().err
    assert cli.main([*words, '--size', 'nano', '--batch', 'x']) == 2
    assert '--batch is x, must be a number from 1' in capsys.readouterr().err
    assert cli.main([*words, '--size', 'nano', '--compact', '--precision', 'fp16']) == 2
    assert 'a compact file computes in fp32' in capsys.readouterr().err
