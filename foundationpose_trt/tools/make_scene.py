"""`foundationpose-trt make-scene`: render an object on a cluttered table as a BOP scene."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..datatypes import require
from ..pose.mesh import ObjectMesh
from ..scenes.bop import BopWriter
from ..synthesis.camera_path import MotionLimits
from ..synthesis.objects import HELD_OUT_FROM_SEED, make_object
from ..synthesis.tabletop import (
    Motion,
    NoRoomError,
    SceneSettings,
    TabletopScene,
    compose_sequence,
)
from ..synthesis.tabletop_images import SensorNoise, TabletopImage, TabletopRenderer
from ..synthesis.textures import wood
from .estimator_options import checked_device, default_device

HELP = 'render a BOP scene: a textured object on a cluttered table, with ground truth'
OBJECT_ID = 1
# The demo's cast, chosen by eye among held-out seeds.
DEMO_TARGET = HELD_OUT_FROM_SEED + 213
DEMO_DIAMETER_M = 0.18
# CAD files are rarely centred; a scene that is would hide mistakes with the mesh's own frame.
MODEL_CENTER_M = (0.02, -0.012, 0.03)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('out', type=Path, metavar='OUT', help='folder of the new scene')
    parser.add_argument('--seed', type=int, default=4, help='of table, motion and noise')
    parser.add_argument('--frames', type=int, default=150, help='at 30 Hz (default 150)')
    parser.add_argument(
        '--object-seed', type=int, default=DEMO_TARGET, help='of the procedural object'
    )
    parser.add_argument(
        '--clutter', type=int, default=6, help='objects beside the target, at least 1'
    )
    parser.add_argument('--width', type=int, default=640)
    parser.add_argument('--height', type=int, default=480)
    parser.add_argument(
        '--speed', type=float, default=1.0, help='1 = hand-held: at most 6 mm, 1 degree per frame'
    )
    parser.add_argument('--held', action='store_true', help='the target moves, as if in a hand')
    parser.add_argument('--no-noise', action='store_true', help='a perfect RGB-D camera')
    parser.add_argument('--device', default=default_device())


def run(options: argparse.Namespace) -> int:
    """Compose, render and write the scene."""
    require(options.speed > 0, f'--speed is {options.speed}, must be positive')
    require(options.clutter >= 1, f'--clutter is {options.clutter}, must be at least 1')
    require(options.frames >= 1, f'--frames is {options.frames}, must be at least 1')
    for name, least in (('width', 16), ('height', 16), ('seed', 0), ('object_seed', 0)):
        value, word = getattr(options, name), name.replace('_', '-')
        require(value >= least, f'--{word} is {value}, must be at least {least}')
    device = checked_device(options.device)
    try:
        scene = compose_demo(options)
    except NoRoomError as error:
        raise ValueError(f'--clutter {options.clutter}: {error}') from error
    with BopWriter(options.out) as writer:
        writer.add_model(OBJECT_ID, scene.meshes[0])
        noise = SensorNoise.none() if options.no_noise else SensorNoise.video()
        images = TabletopRenderer(scene, device, batch=4).images(options.seed, noise)
        _write(writer, tqdm(images, 'rendering', len(scene), unit='frame'))
    print(f'{options.out}: {len(scene)} frames of object {OBJECT_ID}, {scene.meshes[0].name}')
    return 0


def _write(writer: BopWriter, images: Iterable[TabletopImage]) -> None:
    """Write frames while the next ones render; a few at most wait in memory."""
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for index, image in enumerate(images):
            truth = (OBJECT_ID, image.camera_from_object, image.mask)
            pending.append(pool.submit(writer.add_frame, index, image.frame, [truth]))
            if len(pending) > 8:
                pending.popleft().result()
        for write in pending:
            write.result()


def compose_demo(options: argparse.Namespace) -> TabletopScene:
    """Compose the scene that the options describe."""
    rng = np.random.default_rng(options.seed)
    settings = SceneSettings(
        width=options.width,
        height=options.height,
        focal_px=600.0 * options.width / 640,
        distance_diameters=(3.0, 3.4),
        table_texture=np.clip(wood(rng, 1024), 0, 255).astype(np.uint8),
    )
    limits = MotionLimits()
    limits = replace(
        limits, step_m=limits.step_m * options.speed, step_rad=limits.step_rad * options.speed
    )
    seeds = HELD_OUT_FROM_SEED + 500 + rng.integers(0, 10_000, options.clutter + 1)
    others = [make_object(int(seed)) for seed in seeds]
    target = demo_target(options.object_seed)
    return compose_sequence(
        target, others, options.frames, rng, settings, Motion(limits, options.held)
    )


def demo_target(seed: int) -> ObjectMesh:
    """Return the object of a seed at a handy size, off its file's origin."""
    mesh = make_object(seed)
    factor = DEMO_DIAMETER_M / mesh.diameter_m
    return replace(
        mesh,
        vertices=mesh.vertices * np.float32(factor),
        diameter_m=DEMO_DIAMETER_M,
        center_m=np.array(MODEL_CENTER_M),
    )
