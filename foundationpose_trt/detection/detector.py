"""From a colour image to detections and a label image: one upload, one network, one copy back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..datatypes import require
from ..runtime.engine import Engine
from ..runtime.graph_cache import CacheStats, CudaGraphCache
from ..runtime.session import Session
from ..runtime.specs import BATCH
from ..runtime.stage_timer import StageTimer
from .images import ColorImage
from .label_image import DEFAULT_BAND_M, label_image, labels_of_masks
from .manifest import DetectorManifest
from .postprocess import (
    BYTES,
    FIELDS,
    MOST_OBJECTS,
    Detections,
    HostSelector,
    LabelPainter,
    Selector,
    instance_masks,
    unpacked,
)
from .preprocess import make_preprocessor

STAGES = ('upload', 'pre', 'network', 'post', 'download')


@dataclass(frozen=True)
class DetectorSettings:
    """classes: names that count, () for all. objects: names in the order of their labels in label
    images, by default the classes. threshold: scores must be above it."""

    classes: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    threshold: float = 0.5
    cuda_graph_cache_capacity: int = 0

    def __post_init__(self) -> None:
        require(
            0 <= self.threshold <= 1, f'confidence_threshold is {self.threshold}, must be 0..1'
        )
        require_labels(self.objects)


@dataclass(frozen=True)
class Found:
    """What one image holds. labels: (H, W) uint8 from the network's masks, None without them."""

    detections: Detections
    labels: np.ndarray | None


def ignore(stage: str) -> None:
    """Take no note of a stage."""


class Detector:
    """Runs one engine on images of any size. Not thread-safe.

    Work goes to a stream of its own on CUDA; detect() waits for its one result.
    """

    def __init__(
        self, manifest: DetectorManifest, engine: Engine, settings: DetectorSettings | None = None
    ) -> None:
        """Raises ValueError for classes the detector does not know, or an engine of another."""
        self.manifest = manifest
        self.settings = settings or DetectorSettings()
        self.device = engine.device
        require_fit(manifest, engine)
        classes = self.settings.classes or tuple(manifest.class_names)
        self.objects = self.settings.objects or classes
        require_labels(self.objects)
        self.object_columns = manifest.columns_of(self.objects)
        columns = manifest.columns_of(tuple(dict.fromkeys((*classes, *self.objects))))
        self._select_on_host = HostSelector(columns, len(manifest.classes), manifest.select)
        self._select = Selector(columns, manifest.select, self.device)
        self._painter = LabelPainter(self.object_columns, len(manifest.classes), self.device)
        self._preprocess = make_preprocessor(manifest, self.device)
        self.upload_timer = StageTimer(self.device)
        self._session = Session(engine, None)
        self.set_cuda_graph_cache_capacity(self.settings.cuda_graph_cache_capacity)
        on_cuda = self.device.type == 'cuda'
        self._paints = on_cuda and bool(manifest.masks)
        self.stream = torch.cuda.Stream(self.device) if on_cuda else None
        self._input: torch.Tensor | None = None
        self._result = torch.empty(0, dtype=torch.uint8, device=self.device)
        self._on_host = torch.empty(0, dtype=torch.uint8)

    def set_cuda_graph_cache_capacity(self, capacity: int) -> None:
        """Keep so many CUDA graphs, 0: none; safe between calls."""
        self._session.set_cuda_graph_cache(CudaGraphCache(capacity) if capacity else None)
        self._input = None  # a graph has an input buffer of its own

    def set_threshold(self, threshold: float) -> None:
        """Count scores above this from the next call on. Raises ValueError outside 0..1."""
        self.settings = replace(self.settings, threshold=threshold)

    def stats(self) -> CacheStats | None:
        """Counters of the graph cache, None without graphs."""
        cache = self._session.cuda_graph_cache
        return None if cache is None else cache.stats()

    def warm_up(self, height: int = 480, width: int = 640) -> None:
        """Run the real path on a gray image of the camera's size until it is as fast as later."""
        image = ColorImage.of_array(np.full((height, width, 3), 114, np.uint8))
        for _ in range(self._session.engine.warm_up_runs):
            self.detect(image)

    @torch.inference_mode()
    def detect(self, image: ColorImage, mark: Callable[[str], None] = ignore) -> Found:
        """Find the objects in an image.

        mark: called with each of STAGES when its work has been launched, on the stream where it
        runs (to measure).
        """
        size = (image.height, image.width)
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            with self.upload_timer:
                self._preprocess.upload(image)
            mark('upload')
            self._preprocess.write(self._input_buffer())
            mark('pre')
            outputs = self._session.run({self.manifest.input: self._input_buffer()})
            mark('network')
            if self.stream is None:
                found = self._found_on_host(outputs, size)
                mark('post')
                mark('download')
                return found
            packed = self._postprocess(outputs, size)
            mark('post')
            rows, labels = self._download(len(packed), size if self._paints else None)
            mark('download')
        return Found(unpacked(rows, self.settings.threshold), labels)

    def _found_on_host(self, outputs: dict[str, torch.Tensor], size: tuple[int, int]) -> Found:
        """Post-processing of a CPU, where the masks of the few objects found are resized."""
        boxes, logits = (
            outputs[name].float().numpy() for name in (self.manifest.boxes, self.manifest.logits)
        )
        detections = self._select_on_host(boxes, logits, self.settings.threshold, size)
        if not self.manifest.masks:
            return Found(detections, None)
        masks = outputs[self.manifest.masks]
        return Found(detections, labels_of_masks(detections, self.object_columns, masks, size))

    def labels_from_boxes(
        self,
        detections: Detections,
        size: tuple[int, int],
        depth_m: np.ndarray | None = None,
        band_m: float = DEFAULT_BAND_M,
    ) -> np.ndarray:
        """Label image (H, W) uint8 of a detector without masks (label_image.label_image)."""
        return label_image(detections, self.object_columns, size, depth_m, band_m)

    @torch.inference_mode()
    def masks_of(self, image: ColorImage) -> tuple[Detections, np.ndarray]:
        """Detect, and return all detections' masks (N, H, W) bool; raises ValueError without."""
        require(bool(self.manifest.masks), f'{self.manifest.name} has no masks')
        detections = self.detect(image).detections
        outputs = self._session.run({self.manifest.input: self._input_buffer()})
        size = (image.height, image.width)
        masks = instance_masks(outputs[self.manifest.masks], detections.queries, size)
        return detections, masks.cpu().numpy()

    def _input_buffer(self) -> torch.Tensor:
        if self._input is None:
            self._input = self._session.input(self.manifest.input, 1)
        return self._input

    def _postprocess(
        self, outputs: dict[str, torch.Tensor], size: tuple[int, int]
    ) -> torch.Tensor:
        """Fill the result: packed rows, then the label image; returns the rows."""
        boxes, logits = outputs[self.manifest.boxes], outputs[self.manifest.logits]
        packed = self._select(boxes, logits, size)
        pixels = size[0] * size[1] if self._paints else 0
        needed = len(packed) * BYTES + pixels
        if len(self._result) < needed:
            self._result = torch.empty(needed, dtype=torch.uint8, device=self.device)
        self._result[: len(packed) * BYTES] = packed.contiguous().view(torch.uint8).flatten()
        if self._paints:
            masks = outputs[self.manifest.masks]
            labels = self._result[needed - pixels : needed].view(size)
            self._painter.paint(packed, masks, self.settings.threshold, labels)
        return packed

    def _download(
        self, count: int, size: tuple[int, int] | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Bring the result to the host: the only wait of a call."""
        head = count * BYTES
        total = head + (size[0] * size[1] if size else 0)
        if len(self._on_host) < total:
            self._on_host = torch.empty(total, dtype=torch.uint8, pin_memory=True)
        self._on_host[:total].copy_(self._result[:total], non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        done.synchronize()
        content = self._on_host[:total].numpy().copy()
        rows = content[:head].view(np.float32).reshape(count, FIELDS)
        return rows, content[head:].reshape(size) if size else None


def require_labels(objects: tuple[str, ...]) -> None:
    """Raise ValueError for names that cannot be told apart in a label image."""
    require(
        len(objects) <= MOST_OBJECTS and len(set(objects)) == len(objects),
        f'objects are {len(objects)} names, {", ".join(objects[:8])} ...: at most {MOST_OBJECTS},'
        ' each once; name those to be labelled as objects',
    )


def require_fit(manifest: DetectorManifest, engine: Engine) -> None:
    """Raise ValueError unless an engine takes and gives what the manifest says."""
    inputs = {spec.name: spec.shape for spec in engine.inputs}
    outputs = {spec.name: spec.shape for spec in engine.outputs}
    names = [manifest.boxes, manifest.logits, *filter(None, [manifest.masks])]
    wanted = (3, *manifest.resolution)
    fits = inputs.get(manifest.input, ())[1:] == wanted and len(inputs) == 1
    fits = fits and all(name in outputs for name in names)
    fits = fits and outputs[manifest.logits][-1] == len(manifest.classes)
    require(
        fits,
        f'{engine.name} takes {inputs} and gives {outputs}; the manifest of {manifest.name} says'
        f' input {manifest.input} of {wanted}, outputs {names} and {len(manifest.classes)} columns'
        f' of {manifest.logits}: it is an engine of another model, build it from this one',
    )
    batch = inputs[manifest.input][0]
    require(
        batch in (1, BATCH),
        f'{engine.name} takes {batch} images at once, a detector is given one: export it with'
        ' --batch 1 or --batch dynamic',
    )
