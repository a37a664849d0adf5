"""Judging a detector: figures of detectors whose quality is known."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detector_rig import scene, write_fixed

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.detection.postprocess import Detections
from foundationpose_trt.runtime.choice import BackendChoice
from foundationpose_trt.scenes.metrics import PoseErrors
from foundationpose_trt.synthesis.cast import CAST
from foundationpose_trt.synthesis.tabletop import SceneSettings
from foundationpose_trt.tools import cli, demo, evaluate_detector

SMALL = SceneSettings(width=160, height=120, focal_px=150.0, texture_px=64)


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    monkeypatch.setattr(evaluate_detector, 'SETTINGS', SMALL)
    monkeypatch.setattr(evaluate_detector, 'MIN_MASK_PX', 20)


@pytest.fixture
def without_metric(monkeypatch):
    """For tests that compute no average precision: supervision need not be there."""
    monkeypatch.setattr(evaluate_detector, 'require_metric', lambda: None)


class Oracle:
    """Finds what the sampler says is there; `shift` moves its boxes sideways by their width."""

    object_columns = list(range(len(CAST)))

    def __init__(self, shift=0.0):
        self.shift, self.truth = shift, []

    def detect(self, image):
        boxes, kinds = self.truth.pop(0)
        boxes = boxes * (image.width, image.height, image.width, image.height)
        boxes[:, [0, 2]] += self.shift * (boxes[:, [2]] - boxes[:, [0]])
        scores = np.full(len(kinds), 0.9, np.float32)
        return SimpleNamespace(detections=Detections(boxes, scores, kinds, kinds), labels=None)


def box_figures(oracle, monkeypatch, views=8, first=0):
    truth = evaluate_detector._truth

    def noting(batch):
        found = truth(batch)
        oracle.truth += [(boxes.copy(), kinds) for boxes, kinds in found]
        return found

    monkeypatch.setattr(evaluate_detector, '_truth', noting)
    options = SimpleNamespace(stages=1, first_stage=first, views=views)
    return evaluate_detector.box_figures(oracle, options, 'cpu')


def test_a_detector_that_is_right_has_full_average_precision(monkeypatch):
    pytest.importorskip('supervision')
    figures = box_figures(Oracle(), monkeypatch)
    assert figures['boxes']['ap50'] == pytest.approx(100, abs=0.01)
    assert figures['thresholds'][0.5] == {'recall': 100.0, 'precision': 100.0, 'f1': 100.0}


def test_other_stages_hold_other_views(monkeypatch):
    views = []
    monkeypatch.setattr(evaluate_detector, 'average_precision', lambda *_: {})
    monkeypatch.setattr(
        evaluate_detector, 'threshold_figures', lambda found, truth, _: views.append(truth)
    )
    for first in (0, 0, 200):
        box_figures(Oracle(), monkeypatch, 3, first)
    first, again, other = (np.concatenate([boxes for boxes, _ in truth]) for truth in views)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize('views', [3, 11])
def test_every_view_counts_once(monkeypatch, views):
    """Also those that fill no batch."""
    judged = []

    def note(found, truth, names):
        judged.extend([found, truth])
        return {}

    monkeypatch.setattr(evaluate_detector, 'average_precision', note)
    monkeypatch.setattr(evaluate_detector, 'threshold_figures', lambda *_: {})
    oracle = Oracle()
    box_figures(oracle, monkeypatch, views)
    found, truth = judged
    assert len(found) == len(truth) == views
    for (boxes, kinds, _), (true_boxes, true_kinds) in zip(found, truth, strict=True):
        np.testing.assert_allclose(boxes, true_boxes, atol=1e-6)
        assert kinds.tolist() == true_kinds.tolist()


def test_boxes_half_a_width_aside_do_not_count(monkeypatch):
    pytest.importorskip('supervision')
    figures = box_figures(Oracle(shift=0.5), monkeypatch)
    assert figures['boxes']['ap50'] < 5
    assert figures['thresholds'][0.5]['recall'] < 5


class Choice:
    """An estimator that is right where the mask covers enough of the object, else far off."""

    device = 'cpu'
    truth: list = []  # noqa: RUF012

    def estimator(self, mesh):
        def register(frame, mask):
            mask_true, pose = Choice.truth[-1]
            overlap = (mask & mask_true).sum() / mask_true.sum()
            moved = pose.copy()
            moved[0, 3] += 0 if overlap > 0.9 else 1.0
            return SimpleNamespace(camera_from_object=moved)

        return SimpleNamespace(register=register)


@pytest.mark.parametrize(
    ('share', 'expected', 'found'), [(1.0, 100.0, 100.0), (0.6, 0.0, 100.0), (0.3, 0.0, 0.0)]
)
def test_registration_is_judged_from_both_masks(monkeypatch, share, expected, found):
    def mask_of(detector, image, label):
        Choice.truth.append((image.mask, image.camera_from_object))
        rows = np.cumsum(image.mask) <= share * image.mask.sum()
        return image.mask & rows.reshape(image.mask.shape)

    monkeypatch.setattr(evaluate_detector, 'detected_mask', mask_of)
    monkeypatch.setattr(evaluate_detector, 'CAST', {'drill': CAST['drill'], 'can': CAST['can']})
    meshes = evaluate_detector.cast_objects()
    monkeypatch.setattr(evaluate_detector, 'cast_objects', lambda: [meshes[0], meshes[-1]])
    figures = evaluate_detector.registration_figures(None, Choice(), 2, [7000])
    assert list(figures) == ['drill', 'can', 'all']
    for row in figures.values():
        where = [row.pop(f'{name} masks, if found') for name in ('true', 'detected')]
        assert row == {'true masks': 100.0, 'detected masks': expected, 'found': found}
        assert where == ([100.0, expected] if found else pytest.approx([np.nan] * 2, nan_ok=True))


def test_an_object_that_no_view_shows_has_no_figures(monkeypatch):
    exact = PoseErrors(0.0, 0.0, 0.0, 0.0)

    def views(detector, choice, place, count, seed):
        assert seed in (5, 6)
        if place == 1:
            yield evaluate_detector.Registered('can', 0.1, (exact, exact), True)

    monkeypatch.setattr(evaluate_detector, 'register_views', views)
    monkeypatch.setattr(evaluate_detector, 'CAST', {'drill': CAST['drill'], 'can': CAST['can']})
    figures = evaluate_detector.registration_figures(None, None, 2, [5, 6])
    assert all(np.isnan(value) for value in figures['drill'].values())
    assert set(figures['can'].values()) == set(figures['all'].values()) == {100.0}


def test_masks_are_those_that_the_node_would_publish(tmp_path):
    model = write_fixed(
        tmp_path / 'm', *scene([(1, 0.9, (0.5, 0.5, 0.5, 0.5))]),
        classes=('a', 'b', 'c', None),
    )  # fmt: skip
    from foundationpose_trt.detection.backends import open_detector
    from foundationpose_trt.detection.detector import Detector

    opened = open_detector(model, 'cpu', 'auto')
    detector = Detector(opened.manifest, opened.engine)
    depth_m = np.full((48, 64), 2.0, np.float32)
    depth_m[:, :32] = 0.7
    k = CameraIntrinsics(60.0, 60.0, 32.0, 24.0, 64, 48)
    frame = Frame(np.zeros((48, 64, 3), np.uint8), depth_m, k)
    mask = evaluate_detector.detected_mask(detector, SimpleNamespace(frame=frame), 2)
    expected = np.zeros((48, 64), bool)
    expected[12:36, 16:32] = True
    assert np.array_equal(mask, expected)
    assert not evaluate_detector.detected_mask(detector, SimpleNamespace(frame=frame), 1).any()


def test_a_detector_may_know_more_than_the_cast(tmp_path):
    logits = np.full((1, 6, len(CAST) + 2), -9, np.float32)
    logits[0, 0, len(CAST)] = 3  # a mug, for certain
    logits[0, 1, 2] = 2
    boxes = np.full((1, 6, 4), 0.5, np.float32)
    model = write_fixed(tmp_path / 'm', boxes, logits, classes=(*CAST, 'mug', None))
    detector = evaluate_detector._opened(model, SimpleNamespace(engines=None, device='cpu'))
    _, kinds, scores = evaluate_detector._found(detector, np.zeros((120, 160, 3), np.uint8))
    assert kinds[scores > 0.5].tolist() == [2]


def test_engines_are_built_where_they_are_missing(tmp_path, monkeypatch):
    choices = []

    def opened(folder, device, precision, choice):
        choices.append(choice)
        raise ValueError('enough')

    monkeypatch.setattr(evaluate_detector, 'open_detector', opened)
    monkeypatch.setattr(evaluate_detector, 'detector_device', lambda *_: {'device': 'cuda'})
    with pytest.raises(ValueError, match='enough'):
        evaluate_detector._opened(tmp_path, SimpleNamespace(engines=tmp_path, device='cuda'))
    assert choices == [BackendChoice('auto', tmp_path, build=True)]


def test_a_detector_that_the_gpu_cannot_run_is_judged_on_the_cpu(tmp_path, monkeypatch, capsys):
    def serving(folder, device, choice):
        if device == 'cuda':
            raise ValueError('no TensorRT here')
        return 'torchscript'

    nothing = np.full((1, 6, 4), 0.5, np.float32), np.full((1, 6, len(CAST) + 1), -9, np.float32)
    model = write_fixed(tmp_path / 'm', *nothing, classes=(*CAST, None))
    monkeypatch.setattr(demo.torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(demo, 'serving_backend', serving)
    detector = evaluate_detector._opened(model, SimpleNamespace(engines=None, device='cuda'))
    assert detector.device.type == 'cpu'
    assert 'runs on the CPU: no TensorRT here' in capsys.readouterr().out


def test_without_supervision_the_remedy_comes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'supervision', None)
    assert cli.main(['evaluate-detector', '--model', str(tmp_path / 'none')]) == 2
    error = capsys.readouterr().err
    assert 'supervision' in error and 'pip install supervision' in error
    assert len(error.splitlines()) == 1


@pytest.mark.usefixtures('without_metric')
def test_a_detector_of_other_things_is_refused(tmp_path, capsys):
    model = write_fixed(tmp_path / 'm', *scene([]))
    assert cli.main(['evaluate-detector', '--model', str(model)]) == 2
    error = capsys.readouterr().err
    assert 'does not know ball, green_drill, mosaic_box, red_vase of the cast' in error


def test_counts_below_one_are_refused(tmp_path, capsys):
    assert cli.main(['evaluate-detector', '--model', str(tmp_path), '--stages', '0']) == 2
    assert '--stages 0' in capsys.readouterr().err


def test_every_arrangement_is_another_and_counts(monkeypatch):
    names, shares = [], iter([1.0, 1.0, 0.0, 0.0])

    def cluttered(rng):
        names.append(rng.bit_generator.state['state']['state'])
        return clutter(rng)

    def mask_of(detector, image, label):
        Choice.truth.append((image.mask, image.camera_from_object))
        return image.mask * (next(shares) > 0.5)

    clutter = evaluate_detector.clutter
    monkeypatch.setattr(evaluate_detector, 'clutter', cluttered)
    monkeypatch.setattr(evaluate_detector, 'detected_mask', mask_of)
    monkeypatch.setattr(evaluate_detector, 'CAST', {'drill': CAST['drill']})
    figures = evaluate_detector.registration_figures(None, Choice(), 2, [7000, 7001])
    assert len(set(names)) == 2
    assert figures['all']['detected masks'] == figures['all']['found'] == 50.0
    assert figures['all']['true masks'] == 100.0


def test_arrangements_follow_the_first_stage(tmp_path, monkeypatch):
    model = write_fixed(
        tmp_path / 'm', np.zeros((1, 6, 4), np.float32), np.full((1, 6, 7), -9.0, np.float32),
        classes=(*CAST, None),
    )  # fmt: skip
    asked = []
    monkeypatch.setattr(evaluate_detector, 'require_metric', lambda: None)
    monkeypatch.setattr(
        evaluate_detector, 'box_figures', lambda *_: {'boxes': {}, 'thresholds': {}}
    )

    def figures(*words: object) -> dict:
        asked.append(words)
        return {'all': {}}

    monkeypatch.setattr(evaluate_detector, 'registration_figures', figures)
    words = ['--registrations', '5', '--first-stage', '30', '--arrangements', '3']
    assert cli.main(['evaluate-detector', '--model', str(model), *words]) == 0
    assert asked[0][2] == 5 and list(asked[0][3]) == [7030, 7031, 7032]


@pytest.mark.parametrize('threshold', ['2', '1', '-0.1', 'nan'])
def test_a_threshold_that_no_score_can_pass_is_refused_first(tmp_path, capsys, threshold):
    words = ['--model', str(tmp_path / 'none'), f'--threshold={threshold}']
    assert cli.main(['evaluate-detector', *words]) == 2
    error = capsys.readouterr().err
    assert f'--threshold {float(threshold)} must be' in error and len(error.splitlines()) == 1


@pytest.mark.usefixtures('without_metric')
def test_the_command_prints_and_writes_both_tables(tmp_path, monkeypatch, capsys):
    classes = (*CAST, None)
    boxes = torch.full((1, 6, 4), 0.5).numpy()
    model = write_fixed(
        tmp_path / 'm', boxes, np.full((1, 6, 7), -9.0, np.float32), classes=classes
    )
    figures = dict.fromkeys(('ap50', *(f'ap50_{name}' for name in CAST)), 50.0)
    lines = {0.4: {'recall': 97.5, 'precision': 96.5, 'f1': 97.0}}
    judged = {'boxes': figures, 'thresholds': lines}
    monkeypatch.setattr(evaluate_detector, 'box_figures', lambda *_: judged)
    rows = {name: {'true masks': 90.0, 'detected masks': 89.0} for name in (*CAST, 'all')}
    monkeypatch.setattr(evaluate_detector, 'registration_figures', lambda *_: rows)
    file = tmp_path / 'f.json'
    assert cli.main(['evaluate-detector', '--model', str(model), '--json', str(file)]) == 0
    written = {'boxes': figures, 'thresholds': {'0.4': lines[0.4]}, 'registration': rows}
    assert json.loads(file.read_text()) == written
    text = capsys.readouterr().out
    assert 'AP50' in text and 'detected masks' in text and '97.5' in text
