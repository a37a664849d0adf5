"""`foundationpose-trt build`: ONNX files, or a set of weights, to TensorRT engines."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..datatypes import require
from ..pose.backends import exported, open_engines, plan_path
from ..pose.crops import PAIR
from ..pose.export import TRUNKS
from ..pose.network_engines import trunk_options
from ..pose.self_check import LARGEST_DEVIATION
from ..pose.weights import ALL_PRECISIONS, INT8, load_networks
from ..runtime.agreement import random_deviations
from ..runtime.build import (
    BACKENDS,
    DEFAULT_BATCHES,
    ENGINE_SUFFIX,
    PRECISIONS,
    BuildOptions,
    build_engine,
    choose_backend,
    ensure_engine,
    platform_of,
)
from ..runtime.choice import BackendChoice
from ..runtime.engine_manifest import (
    EngineManifest,
    beside,
    read_manifest,
    record_tolerance,
    runs_on,
)
from ..runtime.onnx_engine import OnnxEngine
from ..runtime.tensorrt_api import load_api
from ..runtime.tensorrt_engine import TensorRtEngine
from .report import print_table

logger = logging.getLogger(__name__)
HELP = 'build TensorRT engines from ONNX files or a weight set'
COLUMNS = ('engine', 'MB', 'precision', 'batches', 'build, s', 'off, %')
CHECKED_BATCH = 2  # ONNX Runtime computes the same on the CPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--onnx', type=Path, nargs='+', metavar='FILE')
    source.add_argument('--weights', help='shipped set or folder of a weight set')
    parser.add_argument(
        '--out',
        type=Path,
        help='folder of the engines; with --weights of exported files, too, as the nodes look'
        " for them (default then: the user's cache)",
    )
    parser.add_argument('--backend', choices=BACKENDS, default='auto')
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        default='auto',
        help='an ONNX file decides itself (auto); with --weights auto is fp32',
    )
    parser.add_argument(
        '--batches',
        type=int,
        nargs='+',
        metavar='N',
        help='sizes to tune for; all up to the largest run (default'
        f' {" ".join(map(str, DEFAULT_BATCHES))}; not for files of a fixed batch)',
    )
    parser.add_argument(
        '--workspace-mib', type=int, metavar='MIB', help="bound one layer's memory"
    )
    parser.add_argument(
        '--version-compatible', action='store_true', help='later TensorRTs load the engine, too'
    )
    parser.add_argument(
        '--compute-capability', nargs='+', default=[], metavar='X.Y', help='GPUs (RTX only)'
    )
    parser.add_argument('--if-needed', action='store_true', help='keep engines that fit')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the manifests')


def run(options: argparse.Namespace) -> int:
    """Build an engine with manifest and log for each file, or for each network of the weights."""
    settings = _settings(options)
    if options.weights is None:
        pairs = _files(options.onnx, options.out)
    else:
        settings = trunk_options(settings)
        pairs = _export(options.weights, options.out, settings)
        if settings.precision == INT8:  # the refiner's alone: each file decides
            settings = replace(settings, precision='auto')
    build = ensure_engine if options.if_needed else build_engine
    for onnx, plan in pairs:
        with _bar(onnx.stem) as progress:
            build(onnx, plan, settings, progress)
    plans = [plan for _, plan in pairs]
    if all(_runs_here(plan) for plan in plans):
        _check(options, pairs)
    built = {plan: read_manifest(plan) for plan in plans}
    # of weights they are told in poses, as they are asked for: each is of a pair of crops
    each = 1 if options.weights is None else PAIR
    print_table(_title(built), COLUMNS, [_row(*item, each) for item in built.items()])
    if options.json:
        content = {str(plan): json.loads(beside(plan, 'json').read_text()) for plan in built}
        options.json.write_text(json.dumps(content, indent=2) + '\n')
    return 0


def _runs_here(plan: Path) -> bool:
    manifest = read_manifest(plan)
    platform = platform_of(load_api(manifest.backend))
    return platform.gpu is not None and runs_on(manifest, platform)


def _check(options: argparse.Namespace, pairs: list[tuple[Path, Path]]) -> None:
    """Measure how far the engines are from the networks, into their manifests.

    Of a weight set torch runs them in float32; of ONNX files ONNX Runtime does, where there is
    one. Raises ValueError where the difference is more than rounding.
    """
    if options.weights is not None:
        precision = read_manifest(pairs[0][1]).precision
        networks = load_networks(options.weights, 'cuda', precision.replace('tf32', 'fp32'))
        open_engines(networks, BackendChoice(read_manifest(pairs[0][1]).backend, options.out))
        return
    for onnx, plan in pairs:
        try:
            reference = OnnxEngine(onnx, optimized=False)
        except ValueError as error:
            logger.warning('%s is not compared with its ONNX file: %s', plan, error)
            continue
        sizes = read_manifest(plan)
        batch = min(CHECKED_BATCH, sizes.batches[-1]) if sizes.any_batch else sizes.batches[0]
        found = random_deviations(TensorRtEngine(plan, onnx=onnx), reference, batch)
        record_tolerance(plan, {'random_inputs_relative': found})
        worst = max(found.values())
        require(
            worst <= LARGEST_DEVIATION,
            f'{plan}: an output is off by {worst:.3g} times its size from what ONNX Runtime makes'
            f' of {onnx} (all: {found}): the engine computes something else',
        )


def _settings(options: argparse.Namespace) -> BuildOptions:
    mib = options.workspace_mib
    return BuildOptions(
        precision=options.precision,
        batches=tuple(options.batches) if options.batches else None,
        workspace_bytes=None if mib is None else mib << 20,
        backend=options.backend,
        version_compatible=options.version_compatible,
        compute_capabilities=tuple(options.compute_capability),
    )


def _files(files: list[Path], out: Path | None) -> list[tuple[Path, Path]]:
    """Pair ONNX files with their engines, <out>/<stem>.engine."""
    require(out is not None, '--onnx needs --out, the folder of the engines')
    assert out is not None
    require(
        len({path.stem for path in files}) == len(files),
        f'--onnx names two files of one stem, {[str(path) for path in files]}: their engines'
        ' would replace each other; build them into two folders',
    )
    return [(onnx, out / (onnx.stem + ENGINE_SUFFIX)) for onnx in files]


def _export(weights: str, out: Path | None, settings: BuildOptions) -> list[tuple[Path, Path]]:
    """Write the ONNX files of a weight set that are not up to date; pairs them with engines."""
    precision = settings.precision if settings.precision in ALL_PRECISIONS else 'fp32'
    # fp16 loads on a GPU alone, and exporting needs none: only the files take the type
    dtype = ALL_PRECISIONS[precision]
    named = replace(load_networks(weights), dtype=dtype, int8=precision == INT8)
    choice, backend = BackendChoice(folder=out), choose_backend(settings.backend)
    which = [(named, kind, choice, backend) for kind in TRUNKS]
    return [(exported(*each), plan_path(*each)) for each in which]


@contextmanager
def _bar(name: str) -> Iterator[Callable[[float, str], None]]:
    with tqdm(total=100, desc=f'build {name}', unit='%', mininterval=0.5) as bar:

        def show(fraction: float, phase: str) -> None:
            bar.set_postfix_str(phase, refresh=False)
            bar.update(int(100 * fraction) - bar.n)

        yield show


def _title(built: dict[Path, EngineManifest]) -> str:
    plan, manifest = next(iter(built.items()))
    target = manifest.gpu or f'compute capability {", ".join(manifest.compute_capabilities)}'
    return f'{plan.parent}: {manifest.backend} {manifest.version}, for {target}'


def _row(plan: Path, built: EngineManifest, each: int) -> list[Any]:
    return [
        plan.name,
        plan.stat().st_size / 1e6,
        built.precision,
        ' '.join(str(size // each) for size in built.batches),
        built.build_seconds,
        _worst_percent(built),
    ]


def _worst_percent(built: EngineManifest) -> float | None:
    """Largest deviation of any output over its size, on whatever was measured."""
    measured = [found for found in built.tolerance.values() if isinstance(found, dict)]
    values = [value for found in measured for value in found.values()]
    return 100 * max(values) if values else None
