"""`foundationpose-trt train`: our own weights from rendered scenes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..datatypes import require
from ..pose.networks import RefineNet, ScoreNet
from ..pose.weights import write_manifest
from ..synthesis.objects import HELD_OUT_FROM_SEED
from ..training import processes
from ..training.loop import Trainer, TrainSettings
from ..training.refiner import train_refiner, validate_refiner
from ..training.scenes import TrainingWorld
from ..training.scorer import train_scorer, validate_scorer
from ..training.world import make_world
from .estimator_options import checked_device, default_device
from .rounding import rounding
from .train_detector import (
    add_detector_arguments,
    check_detector,
    judge_detector,
    trained_detector,
)

HELP = 'train the refiner, the scorer or a small detector on rendered scenes'
HELD_OUT_OBJECTS = 150


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    defaults = TrainSettings()
    parser.add_argument('network', choices=['refiner', 'scorer', 'detector'])
    parser.add_argument('--out', type=Path, required=True, help='folder of the weight set')
    parser.add_argument('--width', type=float, default=defaults.width, help='1 = official size')
    parser.add_argument('--seconds', type=float, default=defaults.seconds)
    parser.add_argument(
        '--batch', type=int, default=defaults.batch, help='crops or images per step'
    )
    parser.add_argument('--learning-rate', type=float, default=defaults.learning_rate)
    parser.add_argument('--objects', type=int, default=3000, help='procedural objects to make')
    parser.add_argument('--backgrounds', type=int, default=300)
    parser.add_argument('--device', default=default_device())
    parser.add_argument('--resume', type=Path, help='a .checkpoint.pt to go on from')
    parser.add_argument('--refiner', type=Path, help='refiner .checkpoint.pt (scorer training)')
    parser.add_argument('--validation-batches', type=int, default=16)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--no-compile', action='store_true')
    parser.add_argument('--json', type=Path, help='write the validation figures')
    add_detector_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Train one stretch, validate on held-out objects, export fp16 safetensors and manifest."""
    _check(options)
    is_detector = options.network == 'detector'
    train: Callable[..., Any] = trained_detector if is_detector else _train
    judge: Callable[..., None] = judge_detector if is_detector else _judge
    with rounding('high', benchmark=True):  # quick rather than exact
        with processes.joined(options.device):
            device = processes.own_device(options.device)
            trained, is_first = train(options, device), processes.rank() == 0
        if is_first:
            judge(options, device, trained)
    return 0


def _train(options: argparse.Namespace, device: torch.device) -> Trainer:
    settings = TrainSettings(
        width=options.width,
        seconds=options.seconds,
        batch=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
        compile=not options.no_compile,
    )
    world = make_world(range(options.objects), options.backgrounds, device)
    if options.network == 'refiner':
        return train_refiner(world, settings, options.out, options.resume)
    refiner = _averaged_refiner(options.refiner, device)
    return train_scorer(world, settings, options.out, options.resume, refiner)


def _judge(options: argparse.Namespace, device: torch.device, trainer: Trainer) -> None:
    held_out_count = min(HELD_OUT_OBJECTS, options.objects)
    held_out = make_world(
        range(HELD_OUT_FROM_SEED, HELD_OUT_FROM_SEED + held_out_count), options.backgrounds, device
    )
    metrics = _validate(trainer, held_out, options)
    print(json.dumps(metrics, indent=2))
    if options.json:
        options.json.write_text(json.dumps(metrics, indent=2) + '\n')
    _export(trainer, options, metrics)


def _check(options: argparse.Namespace) -> None:
    """Refuse before minutes of making objects what would fail after them."""
    require(
        0 < options.objects <= HELD_OUT_FROM_SEED,
        f'--objects is {options.objects}, must be 1..{HELD_OUT_FROM_SEED}: later seeds are held'
        ' out',
    )
    checked_device(options.device)
    require(options.backgrounds > 0, f'--backgrounds is {options.backgrounds}, must be positive')
    require(
        options.network != 'scorer' or options.refiner is not None,
        'training the scorer needs --refiner: the refiner .checkpoint.pt whose results it ranks',
    )
    for name in ('resume', 'refiner'):
        path = getattr(options, name)
        require(path is None or path.is_file(), f'--{name} {path}: there is no such file')
    if options.network == 'detector':
        check_detector(options)


def _averaged_refiner(path: Path, device: torch.device) -> RefineNet:
    state = torch.load(path, map_location=device, weights_only=True)
    network = RefineNet(state['settings']['width']).to(device)
    network.load_state_dict(state['average'])
    return network


def _validate(
    trainer: Trainer, held_out: TrainingWorld, options: argparse.Namespace
) -> dict[str, float]:
    network = trainer.average.network
    if isinstance(network, RefineNet):
        return validate_refiner(network, held_out, options.validation_batches, options.batch)
    assert isinstance(network, ScoreNet)
    device = next(network.parameters()).device
    refiner = _averaged_refiner(options.refiner, device).eval()
    return validate_scorer(network, refiner, held_out, options.validation_batches * 8)


def _export(trainer: Trainer, options: argparse.Namespace, metrics: dict[str, float]) -> None:
    network = trainer.average.network
    entry: dict[str, Any] = {
        'width': options.width,
        'parameters': sum(p.numel() for p in network.parameters()),
        'training': {
            'command': ' '.join(['foundationpose-trt', *sys.argv[1:]]),
            'commit': _commit(),
            'steps': trainer.step_count,
            'seconds': trainer.trained_seconds,
            'objects': options.objects,
        },
        'metrics_held_out': metrics,
    }
    write_manifest(options.out, options.network, entry)


def _commit() -> str:
    """Return the git commit of the code that trained, or 'unknown' outside a checkout."""
    try:
        result = subprocess.run(
            ['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return result.stdout.strip()
