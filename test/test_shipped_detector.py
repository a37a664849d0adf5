"""The detector that ships: whole, small, and right about the scene that the demo renders."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from foundationpose_trt.detection.backends import open_detector
from foundationpose_trt.detection.detector import Detector, DetectorSettings
from foundationpose_trt.detection.images import ColorImage
from foundationpose_trt.detection.manifest import SHIPPED, detector_folder, read_manifest
from foundationpose_trt.scenes.bop import BopScene
from foundationpose_trt.synthesis.cast import CAST, cast_objects
from foundationpose_trt.tools import make_scene

MOST_BYTES = 12e6


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    make_scene.add_arguments(parser)
    return parser.parse_args(words)


def test_it_is_small_and_knows_the_cast():
    folder = detector_folder(SHIPPED)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
    manifest = read_manifest(folder)
    assert manifest.class_names == list(CAST) and manifest.name == SHIPPED
    assert (folder / 'MODEL_CARD.md').is_file()


def test_other_names_are_paths(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert detector_folder('~/mug') == tmp_path / 'mug'


def test_the_cast_is_beside_the_target_of_the_demo():
    scene = make_scene.compose_demo(options('nowhere', '--frames', '2'))
    names = [mesh.name for mesh in scene.meshes]
    cast = [mesh.name for mesh in cast_objects()]
    assert names[0] == cast[0] and set(cast) < set(names[:-4]), 'and strangers'


@pytest.fixture(scope='module')
def scene(tmp_path_factory) -> BopScene:
    folder = tmp_path_factory.mktemp('demo') / 'scene'
    assert make_scene.run(options(str(folder), '--frames', '6', '--speed', '20')) == 0
    return BopScene.open(folder)


def test_it_finds_the_target_among_the_cast(scene):
    """In each frame the best drill is where the true mask is, most of it within the label."""
    opened = open_detector(detector_folder(SHIPPED), 'cpu', 'auto')
    detector = Detector(opened.manifest, opened.engine, DetectorSettings(objects=('drill',)))
    for frame_id in scene.frame_ids:
        frame, mask = scene.frame(frame_id), scene.mask(frame_id, 1)
        found = detector.detect(ColorImage.of_array(frame.rgb)).detections
        column = opened.manifest.classes.index('drill')
        box = found.boxes_px[found.columns == column][0]
        rows, columns = np.nonzero(mask)
        true = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(box - true).max() < 0.15 * (true[2:] - true[:2]).max(), frame_id
        labels = detector.labels_from_boxes(found, mask.shape, frame.valid_depth_m)
        assert (labels[mask] == 1).mean() > 0.7 and mask[labels == 1].mean() > 0.5
        assert {name for name in CAST if opened.manifest.classes.index(name) in found.columns} > {
            'drill'
        }, 'others are there, and told apart'
