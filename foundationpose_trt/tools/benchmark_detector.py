"""`foundationpose-trt benchmark detector`: each back end stage by stage, beside the reference."""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..datatypes import require
from ..detection.backends import open_detector
from ..detection.detector import STAGES, Detector, DetectorSettings
from ..detection.export import (
    SIZES,
    DetectorExport,
    export_detector,
    known_manifest,
    reference_model,
)
from ..detection.images import ColorImage
from ..detection.manifest import DetectorManifest, detector_folder, read_manifest
from ..runtime.choice import BackendChoice, default_folder
from ..runtime.tensorrt_api import installed
from .rounding import without_tf32
from .rungs import Rung

NETWORK = 'network'
CPU_BACKENDS = ('torchscript', 'onnxruntime')
WARM_UP = 3
WIDTHS = {480: 640}  # others are 16:9
THRESHOLD = 0.5
# What a back end or another version of the reference may raise; its figures alone are lost.
FAILURES = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def detector_ladder(on_cuda: bool) -> list[Rung]:
    """What can run here."""
    on_cpu = [Rung(backend, 'fp32', device='cpu') for backend in CPU_BACKENDS]
    if not on_cuda:
        return on_cpu
    rungs = [Rung('torchscript', 'fp32', graphs) for graphs in (False, True)]
    for backend in ('tensorrt', 'tensorrt_rtx'):
        if installed(backend):
            rungs += [Rung(backend, 'fp32'), Rung(backend, 'fp16')]
            rungs.append(Rung(backend, 'fp16', True))
    return rungs + on_cpu


def run_detector(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every rung and the reference; returns the figures, printed by print_detector."""
    require(
        min(options.heights) >= 1 and options.repeats >= 1,
        f'--heights {options.heights} and --repeats {options.repeats} must be at least 1',
    )
    on_cuda = torch.cuda.is_available()
    given = options.model and detector_folder(options.model)
    folder = given or random_model(options, on_cuda)
    manifest = read_manifest(folder)
    images = {height: image_of(height) for height in options.heights}
    words = options.only or ['']
    rungs = [r for r in detector_ladder(on_cuda) if any(w in r.name for w in words)]
    rows = [
        measured(rung.name, partial(measure, rung, folder, images, options))
        for rung in tqdm(rungs, desc='rungs')
    ]
    if manifest.variant in SIZES and importlib.util.find_spec('rfdetr') is not None:
        for device in ('cuda', 'cpu') if on_cuda else ('cpu',):
            rows += reference_rows(manifest, device, images, options.repeats)
    failed = [f'{row["name"]}: {row["failed"]}' for row in rows if 'failed' in row]
    require(len(failed) < len(rows) or not rows, f'nothing could be measured: {"; ".join(failed)}')
    return {'model': manifest.name, 'variant': manifest.variant, 'rungs': rows}


def measured(name: str, measure_it: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row, or one that says why there is none: it must not take the others along."""
    try:
        return measure_it()
    except FAILURES as error:
        reason = f'{type(error).__name__}: {error}'
        tqdm.write(f'{name} is left out: {reason}')
        return {'name': name, 'failed': reason}


def random_model(options: argparse.Namespace, on_cuda: bool) -> Path:
    """Export random weights of --size, unless that was done before; needs rfdetr once."""
    root = options.engines or default_folder()
    folder: Path = root / 'benchmark' / f'detector_{options.size}'
    for device in ('cuda', 'cpu') if on_cuda else ('cpu',):
        known = known_manifest(folder)
        if known is None or known.find('torchscript', 'fp32', device) is None:
            torch.manual_seed(0)  # the same weights for both devices
            formats = ('torchscript',) if known else ('onnx', 'torchscript')
            export_detector(
                DetectorExport(None, options.size, formats=formats, device=device), folder
            )
    return folder


def image_of(height: int) -> np.ndarray:
    """A colour image (H, W, 3) uint8 of a common shape: noise, so that nothing is cached away."""
    width = WIDTHS.get(height, height * 16 // 9)
    return np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)


def measure(
    rung: Rung, folder: Path, images: dict[int, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    """Return one row: milliseconds of each stage and of whole calls, by image height."""
    choice = BackendChoice(rung.backend, options.engines, build=True)
    with without_tf32():
        start_s = time.monotonic()
        opened = open_detector(folder, rung.device, rung.precision, choice)
        row: dict[str, Any] = {'name': rung.name, 'opened_s': time.monotonic() - start_s}
        settings = DetectorSettings(
            threshold=THRESHOLD, cuda_graph_cache_capacity=1 if rung.graphs else 0
        )
        detector = Detector(opened.manifest, opened.engine, settings)
        row['heights'] = {
            height: figures_of(detector, pixels, options.repeats)
            for height, pixels in images.items()
        }
    stats = detector.stats()
    if stats is not None and stats.failed_captures:
        row['name'] += ' (not captured)'
    return row


def figures_of(detector: Detector, pixels: np.ndarray, repeats: int) -> dict[str, Any]:
    """Return the milliseconds of one image size."""

    def detect() -> object:
        return detector.detect(ColorImage.of_array(pixels))

    detector.warm_up(*pixels.shape[:2])
    spent = stages(detector, ColorImage.of_array(pixels), repeats)
    around_ms = sum(value for stage, value in spent.items() if stage != NETWORK)
    return {
        **whole_call(detect, repeats), 'around_network_ms': around_ms, 'stages_ms': spent,
    }  # fmt: skip


def whole_call(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds from the image in memory to the result in memory, by the host's clock."""
    samples_ms = samples_of(call, repeats)
    return {f'p{share}_ms': float(np.percentile(samples_ms, share)) for share in (50, 99)}


def samples_of(call: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each of some calls after a warm-up."""
    for _ in range(WARM_UP):
        call()
    samples_ms = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        call()
        samples_ms.append(1e3 * (time.perf_counter() - start_s))
    return samples_ms


def stages(detector: Detector, image: ColorImage, repeats: int) -> dict[str, float]:
    """Median milliseconds of each stage: on CUDA of the device, gaps between launches included."""
    marks: list[Any] = []
    samples = []
    for _ in range(repeats):
        marks.clear()
        if detector.stream is None:
            marks.append(time.perf_counter())
            detector.detect(image, lambda stage: marks.append(time.perf_counter()))
            times = [1e3 * (b - a) for a, b in zip(marks, marks[1:], strict=False)]
        else:
            _mark(marks, detector.stream)
            detector.detect(image, lambda stage: _mark(marks, detector.stream))
            torch.cuda.synchronize()
            times = [a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False)]
        samples.append(times)
    return dict(zip(STAGES, np.median(samples, axis=0).tolist(), strict=True))


def _mark(marks: list[Any], stream: torch.cuda.Stream | None) -> None:
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    marks.append(event)


def reference_rows(
    manifest: DetectorManifest, device: str, images: dict[int, np.ndarray], repeats: int
) -> list[dict[str, Any]]:
    """predict() of the reference package with random weights of the same size, and what of it is
    not the network; with the TF32 that the package allows itself."""
    request = DetectorExport(None, manifest.variant, device=device)

    def row(name: str, optimized: bool) -> dict[str, Any]:
        model = reference_model(request)
        if optimized:
            model.inference()
        return _reference_row(name, model, images, repeats)

    names = {f'rfdetr predict(){"" if device == "cuda" else ", CPU"}': False}
    if device == 'cuda':
        names['rfdetr predict(), optimized'] = True
    return [measured(name, partial(row, name, optimized)) for name, optimized in names.items()]


def _reference_row(
    name: str, model: Any, images: dict[int, np.ndarray], repeats: int
) -> dict[str, Any]:
    heights = {}
    for height, pixels in images.items():

        def predict(pixels: np.ndarray = pixels) -> object:
            return model.predict(pixels, threshold=THRESHOLD)

        figures: dict[str, Any] = whole_call(predict, repeats)
        with _timed_network(model) as inside_ms:
            whole_ms = samples_of(predict, repeats)
        around_ms = np.subtract(whole_ms, inside_ms[WARM_UP:])
        heights[height] = {**figures, 'around_network_ms': float(np.median(around_ms))}
    return {'name': name, 'heights': heights}


@contextmanager
def _timed_network(model: Any) -> Iterator[list[float]]:
    """Have the reference's network note how many milliseconds each of its calls takes."""
    attribute = 'inference_model' if getattr(model.model, 'inference_model', None) else 'model'
    network = getattr(model.model, attribute)
    timer = _Timer(network)
    setattr(model.model, attribute, timer)
    try:
        yield timer.calls_ms
    finally:
        setattr(model.model, attribute, network)


class _Timer(torch.nn.Module):
    """Runs a network and waits for it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._network = network
        self.calls_ms: list[float] = []

    def forward(self, image: torch.Tensor) -> Any:
        if image.is_cuda:
            torch.cuda.synchronize()
        start_s = time.perf_counter()
        outputs = self._network(image)
        if image.is_cuda:
            torch.cuda.synchronize()
        self.calls_ms.append(1e3 * (time.perf_counter() - start_s))
        return outputs


def detector_tables(content: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """Title, columns and rows of a table per image height."""
    columns = ['', 'p50', 'p99', 'all but network', *STAGES]
    heights: Iterable[int] = next(
        (row['heights'] for row in content['rungs'] if 'heights' in row), []
    )
    for height in heights:
        rows = [_line(row, height) for row in content['rungs']]
        width = WIDTHS.get(height, height * 16 // 9)
        title = f'{content["model"]}: {width}x{height} image to detections, ms'
        yield title, columns, rows


def _line(row: dict[str, Any], height: int) -> list[Any]:
    figures = row.get('heights', {}).get(height, {})
    spent = figures.get('stages_ms', {})
    name = f'{row["name"]} (left out)' if 'failed' in row else row['name']
    whole = [figures.get(key) for key in ('p50_ms', 'p99_ms', 'around_network_ms')]
    return [name, *whole, *(spent.get(stage) for stage in STAGES)]
