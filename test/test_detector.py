"""The detector from image to labels over every back end a CPU has, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detector_rig import manifest_of, sample_image, scene, write_fixed

from foundationpose_trt.detection.backends import open_detector
from foundationpose_trt.detection.detector import STAGES, Detector, DetectorSettings
from foundationpose_trt.detection.images import ColorImage
from foundationpose_trt.detection.manifest import read_manifest
from foundationpose_trt.runtime.choice import BackendChoice
from foundationpose_trt.runtime.specs import BATCH, TensorSpec
from foundationpose_trt.runtime.torch_engine import load_torchscript

FOUND = [
    (1, 0.9, (0.5, 0.5, 0.2, 0.4)),  # a can in the middle
    (0, 0.7, (0.25, 0.25, 0.1, 0.1)),  # a box
    (1, 0.6, (0.8, 0.8, 0.1, 0.1)),  # another can
    (2, 0.3, (0.1, 0.9, 0.1, 0.1)),  # perhaps a drill
    (3, 0.8, (0.5, 0.1, 0.1, 0.1)),  # background
]
IMAGE = ColorImage.of_array(sample_image(120, 200))


def square_masks() -> np.ndarray:
    masks = np.full((1, 6, 24, 24), -2.0, np.float32)
    masks[0, 0, 10:14, 10:14] = 2
    masks[0, 1, 4:8, 4:8] = 2
    return masks


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_fixed(tmp_path_factory.mktemp('detectors') / 'plain', *scene(FOUND))


@pytest.fixture(scope='module')
def masked(tmp_path_factory):
    path = tmp_path_factory.mktemp('detectors') / 'masked'
    return write_fixed(path, *scene(FOUND), square_masks())


def detector(folder, backend='auto', **settings) -> Detector:
    opened = open_detector(folder, 'cpu', 'auto', BackendChoice(backend))
    return Detector(opened.manifest, opened.engine, DetectorSettings(**settings))


@pytest.mark.parametrize('backend', ['onnxruntime', 'torchscript'])
def test_finds_what_the_network_says(folder, backend):
    found = detector(folder, backend).detect(IMAGE)
    detections = found.detections
    assert found.labels is None
    assert detections.columns.tolist() == [1, 0, 1]  # the background means nothing
    np.testing.assert_allclose(detections.scores, [0.9, 0.7, 0.6], atol=1e-5)
    np.testing.assert_allclose(detections.boxes_px[0], [80, 36, 120, 84], atol=1e-3)


@pytest.mark.parametrize('backend', ['onnxruntime', 'torchscript'])
def test_masks_become_labels_in_the_order_of_the_objects(masked, backend):
    labels = detector(masked, backend, objects=('box', 'can')).detect(IMAGE).labels
    assert labels.shape == (120, 200) and labels.dtype == np.uint8
    assert labels[60, 100] == 2 and labels[30, 50] == 1 and labels[5, 5] == 0
    np.testing.assert_allclose((labels == 2).sum(), 120 * 200 / 36, rtol=0.3)
    detections, masks = detector(masked, backend).masks_of(IMAGE)
    assert masks.shape == (3, 120, 200)
    np.testing.assert_array_equal(masks[0], labels == 2)


def test_thresholds_classes_and_objects(folder):
    assert detector(folder, threshold=0.25).detect(IMAGE).detections.columns.tolist()[3:] == [2]
    assert len(detector(folder, threshold=0.95).detect(IMAGE).detections) == 0
    only = detector(folder, classes=('drill', 'box'), threshold=0.2)
    assert only.detect(IMAGE).detections.columns.tolist() == [0, 2]
    assert only.objects == ('drill', 'box') and detector(folder).objects == ('box', 'can', 'drill')
    labels = only.labels_from_boxes(only.detect(IMAGE).detections, (120, 200))
    assert labels[30, 50] == 2 and labels[108, 20] == 1 and labels[60, 100] == 0


def test_an_object_that_is_no_class_of_interest_is_still_looked_for(folder):
    one = detector(folder, classes=('box',), objects=('can',))
    assert one.detect(IMAGE).detections.columns.tolist() == [1, 0, 1]


def test_images_of_other_sizes_and_encodings_follow(masked):
    one = detector(masked, objects=('can',))
    for height, width in ((60, 80), (120, 200), (30, 40)):
        pixels = sample_image(height, width)[..., 0].copy()
        found = one.detect(ColorImage.of_array(pixels, 'mono8'))
        assert found.labels.shape == (height, width) and found.labels[height // 2, width // 2] == 1
    one.warm_up()


def test_stages_are_marked_in_their_order(folder):
    marks: list[str] = []
    detector(folder).detect(IMAGE, marks.append)
    assert tuple(marks) == STAGES


def test_results_are_the_callers_own(masked):
    one = detector(masked)
    first = one.detect(IMAGE)
    kept = first.labels.copy(), first.detections.scores.copy()
    one.detect(ColorImage.of_array(sample_image(120, 200, seed=3)))
    np.testing.assert_array_equal(first.labels, kept[0])
    np.testing.assert_array_equal(first.detections.scores, kept[1])


def test_graphs_have_no_effect_on_a_cpu(folder):
    one = detector(folder, cuda_graph_cache_capacity=4)
    assert len(one.detect(IMAGE).detections) == 3 and one.stats() is None


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'classes': ('cup',)}, "knows no class 'cup'; it knows box, can, drill"),
        ({'objects': ('cup', 'mug')}, "knows no class 'cup', 'mug'"),
        ({'objects': ('can', 'can')}, 'each once'),
        ({'threshold': 1.5}, 'confidence_threshold is 1.5'),
        ({'threshold': -0.1}, 'confidence_threshold is -0.1'),
    ],
)
def test_wrong_settings_are_refused(folder, settings, words):
    with pytest.raises(ValueError, match=words):
        detector(folder, **settings)


def many(count: int) -> dict:
    """A manifest's changes for so many classes."""
    return {'classes': (*(f'thing {k}' for k in range(count)), None)}


def test_no_more_objects_than_a_label_image_tells_apart(tmp_path):
    boxes, logits = np.full((1, 2, 4), 0.5, np.float32), np.full((1, 2, 300), -9, np.float32)
    folder = write_fixed(tmp_path / 'many', boxes, logits, **many(299))
    for settings in ({}, {'classes': many(256)['classes'][:256]}):
        with pytest.raises(ValueError, match=r'objects are \d+ names, .*: at most 255, .* name'):
            detector(folder, **settings)
    assert len(detector(folder, objects=('thing 298',)).objects) == 1


def test_classes_named_twice_cannot_be_labels(folder):
    with pytest.raises(ValueError, match='each once'):
        detector(folder, classes=('can', 'can'))


def test_an_engine_of_several_images_at_once_is_refused(folder):
    opened = open_detector(folder, 'cpu', 'auto', BackendChoice('torchscript'))
    for batch, fits in ((4, False), (BATCH, True), (1, True)):
        opened.engine.inputs = (TensorSpec('input', (batch, 3, 384, 384), torch.float32),)
        if fits:
            assert len(Detector(opened.manifest, opened.engine).detect(IMAGE).detections) == 3
            continue
        with pytest.raises(ValueError, match='takes 4 images at once, .*--batch 1 or --batch dyn'):
            Detector(opened.manifest, opened.engine)


@pytest.mark.parametrize(('device', 'runs'), [('cpu', 1), ('cuda', 3)])
def test_torchscript_is_warmed_up_until_it_has_compiled(folder, monkeypatch, device, runs):
    """On CUDA; loaded here by a CPU's torch, which need not know."""
    load = torch.jit.load
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, 'load', lambda file, map_location: load(file))
        file = read_manifest(folder).find('torchscript', 'fp32', 'cpu')
        engine = load_torchscript(folder / file.file, file.sha256, (), (), device)
    assert engine.warm_up_runs == runs
    one = detector(folder, 'torchscript')
    one._session.engine.warm_up_runs = runs
    images = []
    monkeypatch.setattr(one, 'detect', images.append)
    one.warm_up(60, 80)
    assert [(image.height, image.width) for image in images] == [(60, 80)] * runs


def test_masks_are_not_to_be_had_of_a_detector_without(folder):
    with pytest.raises(ValueError, match='rig has no masks'):
        detector(folder).masks_of(IMAGE)


def test_an_engine_of_another_model_is_refused(folder, masked):
    engine = open_detector(folder, 'cpu', 'auto').engine
    for other in (
        read_manifest(masked),
        manifest_of(resolution=(312, 312)),
        manifest_of(classes=('box', 'can')),
    ):
        with pytest.raises(ValueError, match='it is an engine of another model'):
            Detector(other, engine)


def test_the_numbers_come_from_the_manifest(folder, tmp_path):
    """A manifest of other statistics gives the network another input."""
    seen = []
    opened = open_detector(folder, 'cpu', 'auto', BackendChoice('torchscript'))
    function = opened.engine.function
    opened.engine.function = lambda image: seen.append(image.clone()) or function(image)
    for mean in (0.0, 0.5):
        changed = manifest_of(**{**vars(opened.manifest), 'mean': (mean,) * 3})
        Detector(changed, opened.engine).detect(IMAGE)
    shift = 0.5 / torch.tensor(opened.manifest.deviation)[:, None, None]
    torch.testing.assert_close(seen[0] - seen[1], shift.expand_as(seen[0][0])[None])
    content = json.loads((folder / 'detector.json').read_text())
    assert content['queries'] == 6 and content['classes'] == ['box', 'can', 'drill', None]
