"""`foundationpose-trt export`: pose networks as ONNX files, RF-DETR as a detector's folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..datatypes import require
from ..detection.export import FORMATS, SIZES, DetectorExport, export_detector
from ..pose.export import OUTPUTS, ensure_onnx, export_request
from ..pose.weights import PRECISIONS, load_networks
from .estimator_options import checked_device

HELP = 'write refiner and scorer, or an RF-DETR detector, as files for TensorRT or ONNX Runtime'
SUBJECTS = ('pose', 'detector')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        'subject', nargs='?', choices=SUBJECTS, default='pose', help='default: pose'
    )
    parser.add_argument(
        '--weights', required=True, help='shipped set or folder of a weight set; of a detector its'
        ' .pth, or "none" for random weights',
    )  # fmt: skip
    parser.add_argument('--out', type=Path, required=True, help='folder of the files')
    parser.add_argument(
        '--precision', choices=list(PRECISIONS),
        help='fp16: strongly typed, what is sensitive stays float32; default fp32, of a detector'
        ' both',
    )  # fmt: skip
    parser.add_argument(
        '--batch', help='per call, or "dynamic": any; default dynamic, of a detector 1'
    )
    pose = parser.add_argument_group('pose')
    pose.add_argument(
        '--networks', nargs='+', choices=list(OUTPUTS), default=['refiner', 'scorer'],
        help='default: refiner scorer; extractor is the scorer up to its ranking, trunks are the'
        ' parts that TensorRT runs',
    )  # fmt: skip
    pose.add_argument('--force', action='store_true', help='write what is up to date, too')
    detector = parser.add_argument_group('detector (needs the package rfdetr)')
    detector.add_argument(
        '--size', default='', choices=['', *SIZES], help='of the model; a checkpoint tells itself'
    )
    detector.add_argument(
        '--classes', nargs='+', default=[], metavar='NAME', help='default: as the checkpoint says'
    )
    detector.add_argument(
        '--formats', nargs='+', choices=FORMATS, default=['onnx'], help='default: onnx'
    )
    detector.add_argument(
        '--device', default='cpu', help='TorchScript is traced there and runs there only'
    )
    detector.add_argument(
        '--compact', action='store_true', help='one ONNX file of half the size, which computes in'
        ' float32 from weights stored in half',
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Write what was asked for into --out."""
    return _export_detector(options) if options.subject == 'detector' else _export_pose(options)


def _export_pose(options: argparse.Namespace) -> int:
    """Write <out>/<network>.onnx and its manifest, for what is not up to date."""
    require(
        not options.size and not options.classes,
        '--size and --classes are of detectors: the weight set tells the networks of a pose',
    )
    batch = _batch(options.batch or 'dynamic')
    precision = options.precision or 'fp32'
    networks = load_networks(options.weights)
    for kind in dict.fromkeys(options.networks):
        path = options.out / f'{kind}.onnx'
        request = export_request(options.weights, kind, precision, batch)
        start = time.perf_counter()
        if not ensure_onnx(networks, request, path, options.force):
            print(f'{path} is up to date')
            continue
        seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
        word = 'dynamic' if batch is None else batch
        print(f'{path}: {size:.1f} MB, {precision}, batch {word}, {seconds:.1f} s')
    return 0


def _export_detector(options: argparse.Namespace) -> int:
    """Write the detector's files and <out>/detector.json."""
    checked_device(options.device)
    request = DetectorExport(
        checkpoint=None if options.weights == 'none' else Path(options.weights),
        size=options.size,
        classes=tuple(options.classes),
        formats=tuple(dict.fromkeys(options.formats)),
        precisions=(options.precision,) if options.precision else tuple(PRECISIONS),
        batch=_batch(options.batch or '1'),
        device=options.device,
        compact=options.compact,
    )
    manifest = export_detector(request, options.out)
    names = manifest.class_names
    print(f'{options.out}: {manifest.variant}, {len(names)} classes: {", ".join(names[:8])}')
    for file in manifest.files:
        size = (options.out / file.file).stat().st_size / 1e6
        print(f'  {file.file}: {size:.1f} MB, {file.precision}, batch {file.batch}')
    return 0


def _batch(word: str) -> int | None:
    """Read --batch: a positive number, or None for 'dynamic'."""
    number = word.isdecimal() and int(word) >= 1
    require(
        number or word == 'dynamic', f'--batch is {word}, must be a number from 1, or "dynamic"'
    )
    return int(word) if number else None
