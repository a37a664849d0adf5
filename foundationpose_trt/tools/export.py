"""`foundationpose-trt export`: weights as ONNX files, each with a manifest beside it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..datatypes import require
from ..pose.export import OUTPUTS, ensure_onnx, export_request
from ..pose.weights import PRECISIONS, load_networks

HELP = 'write refiner and scorer as ONNX files, for TensorRT or ONNX Runtime'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--weights', required=True, help='shipped set or folder of a weight set')
    parser.add_argument('--out', type=Path, required=True, help='folder of the ONNX files')
    parser.add_argument(
        '--precision',
        choices=list(PRECISIONS),
        default='fp32',
        help='fp16: strongly typed, the means and what follows them stay float32 (default fp32)',
    )
    parser.add_argument(
        '--batch', default='dynamic', help='crop pairs per call, or "dynamic": any (the default)'
    )
    parser.add_argument(
        '--networks',
        nargs='+',
        choices=list(OUTPUTS),
        default=['refiner', 'scorer'],
        help='default: refiner scorer; extractor is the scorer up to its ranking',
    )
    parser.add_argument('--force', action='store_true', help='write what is up to date, too')


def run(options: argparse.Namespace) -> int:
    """Write <out>/<network>.onnx and its manifest, for what is not up to date."""
    batch = _batch(options.batch)
    networks = load_networks(options.weights)
    for kind in dict.fromkeys(options.networks):
        path = options.out / f'{kind}.onnx'
        request = export_request(options.weights, kind, options.precision, batch)
        start = time.perf_counter()
        if not ensure_onnx(networks, request, path, options.force):
            print(f'{path} is up to date')
            continue
        seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
        print(
            f'{path}: {size:.1f} MB, {options.precision}, batch {options.batch}, {seconds:.1f} s'
        )
    return 0


def _batch(word: str) -> int | None:
    """Read --batch: a positive number, or None for 'dynamic'."""
    number = word.isdecimal() and int(word) >= 1
    require(
        number or word == 'dynamic', f'--batch is {word}, must be a number from 1, or "dynamic"'
    )
    return int(word) if number else None
