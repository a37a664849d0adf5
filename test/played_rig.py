"""Small scenes to play, and a detector that knows where their object is."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from detector_rig import scene as outputs
from detector_rig import write_fixed

from foundationpose_trt.scenes.bop import BopScene
from foundationpose_trt.tools import make_scene

WIDTH, HEIGHT = 320, 240


def render_scene(folder: Path, frames: int, speed: float) -> Path:
    """Render a scene of WIDTH x HEIGHT; speed: of the camera, 1 is hand-held."""
    parser = argparse.ArgumentParser()
    make_scene.add_arguments(parser)
    words = [str(folder), '--frames', str(frames), '--speed', str(speed)]
    words += ['--width', str(WIDTH), '--height', str(HEIGHT)]
    assert make_scene.run(parser.parse_args(words)) == 0
    return folder


def write_finder(scene: Path, folder: Path) -> Path:
    """A detector that finds a can where the first image's object is, and nothing else."""
    opened = BopScene.open(scene)
    mask = opened.mask(opened.frame_ids[0], opened.object_ids[0])
    rows, columns = np.nonzero(mask)
    low = np.array([columns.min(), rows.min()]) / mask.shape[::-1]
    high = np.array([columns.max() + 1, rows.max() + 1]) / mask.shape[::-1]
    box = (*(low + high) / 2, *(high - low))
    return write_fixed(folder, *outputs([(1, 0.9, box)]))
