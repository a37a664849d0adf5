"""`foundationpose-trt train detector`: a narrow RF-DETR for the cast of the demo."""

from __future__ import annotations

import argparse
import json

import torch

from ..datatypes import require
from ..detection.export import DetectorExport, export_model
from ..runtime.engine_manifest import sha256_of
from ..synthesis.cast import CAST
from ..synthesis.tabletop import SceneSettings
from ..training import processes
from ..training.detector import train_detector, validate_detector
from ..training.detector_network import (
    GRID_PX,
    NarrowDetector,
    NarrowSize,
    as_reference,
    require_packages,
)
from ..training.detector_scenes import DetectionWorld, compose_stages
from ..training.loop import Trainer, TrainSettings

HELD_OUT_STAGES = 24
CHANNELS_PER_HEAD = 64
SEEDS_APART = 100_000  # of the stages of one --seed and the next


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only the detector has."""
    group = parser.add_argument_group('detector (needs the package rfdetr)')
    group.add_argument(
        '--stages', type=int, default=64, help='sets of objects of each process, default 64'
    )
    group.add_argument('--views', type=int, default=32, help='arrangements of each, default 32')
    group.add_argument('--layers', type=int, default=NarrowSize().layers, help='of the backbone')
    group.add_argument(
        '--backbone-width', type=int, default=NarrowSize().width,
        help=f'a multiple of {CHANNELS_PER_HEAD}, which each head has',
    )  # fmt: skip
    group.add_argument(
        '--resolution', type=int, default=NarrowSize().resolution, metavar='PX',
        help=f'side of the image that the network sees, a multiple of {GRID_PX}; default'
        f' {NarrowSize().resolution}',
    )  # fmt: skip
    group.add_argument('--image-width', type=int, default=640, help='of the training images')


def check_detector(options: argparse.Namespace) -> None:
    """Refuse before scenes are made what would fail after them."""
    require(
        min(options.stages, options.views) >= 1,
        f'--stages {options.stages} and --views {options.views} must be at least 1',
    )
    require(
        options.seconds > 0 or options.resume is not None,
        f'--seconds {options.seconds} trains nothing: give --resume FILE to judge and export that'
        ' as it is, or seconds',
    )
    require_packages(torch.device(options.device).type)


def trained_detector(
    options: argparse.Namespace, device: torch.device
) -> tuple[Trainer, NarrowDetector]:
    """Train one stretch: the trainer and the detector with its averaged weights."""
    settings = TrainSettings(
        seconds=options.seconds, batch=options.batch, learning_rate=options.learning_rate,
        seed=options.seed, compile=device.type == 'cuda' and not options.no_compile,
    )  # fmt: skip
    size = _size(options)
    world = make_world(options, device, held_out=False)
    return train_detector(world, settings, size, options.out, options.resume)


def judge_detector(
    options: argparse.Namespace, device: torch.device, trained: tuple[Trainer, NarrowDetector]
) -> None:
    """Judge a detector on held-out scenes and export it."""
    trainer, detector = trained
    held_out = make_world(options, device, held_out=True)
    metrics = validate_detector(detector, held_out, options.validation_batches, options.batch)
    print(json.dumps(metrics, indent=2))
    if options.json:
        options.json.write_text(json.dumps(metrics, indent=2) + '\n')
    request = DetectorExport(None, 'nano', classes=tuple(CAST), compact=True)
    source = {
        'checkpoint': 'foundationpose-trt train detector',
        'steps': trainer.step_count,
        'images_per_step': trainer.processes * options.batch,
    }
    if options.resume is not None and options.resume.suffix == '.safetensors':
        source['steps_before'] = f'those of {options.resume.name}, {sha256_of(options.resume)}'
    model = as_reference(detector, tuple(CAST), 'cpu')
    export_model(model, request, options.out, 'narrow', source)
    print(f'{options.out}: {trainer.step_count} steps, exported')


def _size(options: argparse.Namespace) -> NarrowSize:
    width = options.backbone_width
    require(
        width >= CHANNELS_PER_HEAD and width % CHANNELS_PER_HEAD == 0,
        f'--backbone-width is {width}, must be a multiple of {CHANNELS_PER_HEAD}',
    )
    return NarrowSize(
        width=width, heads=width // CHANNELS_PER_HEAD, layers=options.layers,
        resolution=options.resolution,
    )  # fmt: skip


def make_world(
    options: argparse.Namespace, device: torch.device, held_out: bool
) -> DetectionWorld:
    """Compose and upload scenes; held-out ones share neither strangers nor arrangements."""
    width = options.image_width
    settings = SceneSettings(
        width=width, height=width * 3 // 4, focal_px=600 * width / 640,
        distance_diameters=(2.2, 6.0), texture_px=512,
    )  # fmt: skip
    count = min(HELD_OUT_STAGES, options.stages) if held_out else options.stages
    if not held_out and options.seconds == 0:
        count = 1  # nothing is trained: what was resumed is judged and exported
    first = 0
    if not held_out:  # another stretch sees other scenes, and so does another process
        first = options.seed * SEEDS_APART + processes.rank() * count
    stages = compose_stages(range(first, first + count), options.views, settings, held_out)
    return DetectionWorld.build(stages, settings, device)
