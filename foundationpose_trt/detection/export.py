"""RF-DETR checkpoints to the files that run here, by the reference package rfdetr.

Only this needs rfdetr (and with it torchvision and transformers), and only when it is called;
a detector that was exported runs without.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import io
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..datatypes import require
from ..runtime.engine_manifest import sha256_of, write_atomically
from .half import stored_half, to_half
from .manifest import (
    DYNAMIC,
    FILE,
    DetectorManifest,
    ModelFile,
    add_file,
    read_manifest,
    write_manifest,
)

SIZES = {
    'nano': 'RFDETRNano', 'small': 'RFDETRSmall', 'medium': 'RFDETRMedium',
    'large': 'RFDETRLarge', 'seg-nano': 'RFDETRSegNano', 'seg-small': 'RFDETRSegSmall',
    'seg-medium': 'RFDETRSegMedium', 'seg-large': 'RFDETRSegLarge',
    'seg-xlarge': 'RFDETRSegXLarge', 'seg-2xlarge': 'RFDETRSeg2XLarge',
}  # fmt: skip  # the sizes under Apache-2.0, roboflow.md B1
OPSET = 17  # the newest that TensorRT 8.6 parses
FORMATS = ('onnx', 'torchscript')
PRECISIONS = ('fp32', 'fp16')
INPUT, BOXES, LOGITS, MASKS = 'input', 'dets', 'labels', 'masks'  # rfdetr's names, B4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectorExport:
    """What to export. checkpoint: a .pth of rfdetr, None for random weights. size: of SIZES;
    may be '' with a checkpoint, which tells. classes: names of the logits' columns in order, by
    default those of the checkpoint. batch: a number, or None for any. device: TorchScript is
    traced there and runs nowhere else. compact: one ONNX file that computes in float32 from
    weights stored in half; the one in fp16 is made of it where it is needed.
    """

    checkpoint: Path | None
    size: str = ''
    classes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ('onnx',)
    precisions: tuple[str, ...] = PRECISIONS
    batch: int | None = 1
    device: str = 'cpu'
    compact: bool = False

    def __post_init__(self) -> None:
        sizes = ', '.join(SIZES)
        require(self.size in ('', *SIZES), f'size is "{self.size}", must be one of {sizes}')
        require(
            bool(self.size) or self.checkpoint is not None,
            f'random weights need a size: one of {sizes}',
        )
        require(
            self.checkpoint is None or self.checkpoint.is_file(),
            f'{self.checkpoint}: there is no such checkpoint',
        )
        require(self.batch is None or self.batch >= 1, f'batch is {self.batch}, must be >= 1')
        require(
            not self.compact or 'fp32' in self.precisions,
            f'compact with precisions {self.precisions}: a compact file computes in fp32; leave'
            ' one of both away (what runs in fp16 is made of it where it is needed)',
        )


def export_detector(request: DetectorExport, folder: Path) -> DetectorManifest:
    """Write the files of a detector and its detector.json into a folder; returns the manifest.

    Files of other formats and precisions that are there already, of the same weights, stay
    listed. Raises ValueError when rfdetr is missing or the checkpoint does not load safely.
    """
    return export_model(reference_model(request), request, folder)


def export_model(
    model: Any,
    request: DetectorExport,
    folder: Path,
    variant: str = '',
    source: Mapping[str, Any] | None = None,
) -> DetectorManifest:
    """As export_detector, of a model of the reference package that is there already.

    variant, source: what the manifest says it is and where it comes from, where that is neither
    a published size nor a checkpoint's file.
    """
    manifest = _manifest(model, request, folder.name)
    known_source = {**manifest.source, **(source or {})}
    manifest = replace(manifest, variant=variant or manifest.variant, source=known_source)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _with_known_files(manifest, folder)
    if 'onnx' in request.formats:
        content = _onnx(model, request.batch)
        _state_shapes(content, manifest)
        for precision in ('fp32',) if request.compact else request.precisions:
            file = folder / f'detector_{precision}.onnx'
            network = stored_half(content) if request.compact else content
            network = network if precision == 'fp32' else to_half(network)
            write_atomically(file, network.SerializeToString())
            batch = DYNAMIC if request.batch is None else request.batch
            entry = ModelFile(file.name, sha256_of(file), 'onnx', precision, batch)
            manifest = add_file(manifest, entry)
    if 'torchscript' in request.formats:
        manifest = add_file(manifest, _torchscript(model, request, folder))
    write_manifest(manifest, folder)
    return manifest


def reference_model(request: DetectorExport) -> Any:
    """Load the reference package's model; its weights come from nowhere but the checkpoint.

    Raises ValueError when rfdetr is missing or the checkpoint does not load safely.
    """
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    try:
        package = importlib.import_module('rfdetr')
    except ImportError as error:
        raise ValueError(
            f"exporting a detector needs the package rfdetr ({error}): pip install '.[detector]'"
        ) from error
    options: dict[str, Any] = {'device': request.device}
    if request.checkpoint is None:
        if request.classes:
            options['num_classes'] = len(request.classes)
        return getattr(package, SIZES[request.size])(pretrain_weights=None, **options)
    kind = getattr(package, SIZES[request.size]) if request.size else package.RFDETR
    try:
        # rfdetr loads with torch.load(weights_only=True) unless it is told to trust the file
        return kind.from_checkpoint(str(request.checkpoint), **options)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{request.checkpoint} does not load as an RF-DETR checkpoint'
            f' ({type(error).__name__}: {str(error)[:300]})'
        ) from error


def _manifest(model: Any, request: DetectorExport, name: str) -> DetectorManifest:
    config = model.model_config
    side = int(model.model.resolution)
    network = model.model.model
    mask_side = side // int(config.mask_downsample_ratio)
    checkpoint = request.checkpoint
    return DetectorManifest(
        name=name,
        variant=request.size or type(model).__name__,
        classes=_columns(model, request),
        resolution=(side, side),
        mean=tuple(float(value) for value in model.means),
        deviation=tuple(float(value) for value in model.stds),
        queries=int(network.num_queries),
        select=int(config.num_select),
        files=(),
        masks=MASKS if config.segmentation_head else '',
        mask_size=(mask_side, mask_side) if config.segmentation_head else (0, 0),
        source={
            'package': f'rfdetr {importlib.metadata.version("rfdetr")}',
            'checkpoint': checkpoint.name if checkpoint else 'random weights',
            'sha256': sha256_of(checkpoint) if checkpoint else _digest(network),
        },
    )


def _digest(network: torch.nn.Module) -> str:
    """SHA-256 of all weights: the same on every device."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _columns(model: Any, request: DetectorExport) -> tuple[str | None, ...]:
    """Name the columns of the logits: COCO's own numbers, or the classes and a background."""
    count = int(model.model.model.class_embed.out_features)
    names = list(request.classes or model.class_names)
    coco = importlib.import_module('rfdetr.assets.coco_classes').COCO_CLASSES
    if not request.classes and names == list(coco.values()) and count > len(names) + 1:
        return tuple(coco.get(column) for column in range(count))
    require(
        len(names) in (count - 1, count),
        f'the checkpoint has {count} columns of logits, of which the last is the background;'
        f' {len(names)} classes are named: {names}; give {count - 1} with --classes',
    )
    return (*names, *[None] * (count - len(names)))


def _with_known_files(manifest: DetectorManifest, folder: Path) -> DetectorManifest:
    """Keep the files listed in the folder if they are of the same weights."""
    known = known_manifest(folder)
    if known is None or known.source.get('sha256') != manifest.source['sha256']:
        return manifest
    for file in known.files:
        manifest = add_file(manifest, file)
    return manifest


def known_manifest(folder: Path) -> DetectorManifest | None:
    """The manifest of a folder; None without one, and for one that must be written anew."""
    if not (folder / FILE).exists():
        return None
    try:
        return read_manifest(folder)
    except ValueError as error:
        logger.warning('%s', error)
        return None


def _onnx(model: Any, batch: int | None) -> Any:
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        path = model.export(
            output_dir=scratch, batch_size=batch or 1, dynamic_batch=batch is None,
            opset_version=OPSET, verbose=False,
        )  # fmt: skip
        content = onnx.load(str(path))
    names = [port.name for port in content.graph.output]
    require(
        names[:2] == [BOXES, LOGITS] and content.graph.input[0].name == INPUT,
        f'this rfdetr exports {names}, expected {[BOXES, LOGITS]} first: use rfdetr 1.11',
    )
    return content


def _state_shapes(content: Any, manifest: DetectorManifest) -> None:
    """Write the outputs' sizes, all but the batch, where the exporter left them open."""
    sizes: dict[str, tuple[int, ...]] = {
        manifest.boxes: (manifest.queries, 4),
        manifest.logits: (manifest.queries, len(manifest.classes)),
        manifest.masks: (manifest.queries, *manifest.mask_size),
    }
    for port in content.graph.output:
        dimensions = port.type.tensor_type.shape.dim
        for dimension, size in zip(dimensions[1:], sizes[port.name], strict=True):
            dimension.dim_value = size


@torch.no_grad()
def _torchscript(model: Any, request: DetectorExport, folder: Path) -> ModelFile:
    """Trace in float32: in half as a whole, RF-DETR's boxes collapse (roboflow.md B5)."""
    batch, side = request.batch or 1, int(model.model.resolution)
    network = copy.deepcopy(model.model.model).to(request.device).eval()
    network.export()
    for module in network.modules():
        # its mask head goes through a function that exists for training and cannot be traced
        if hasattr(module, '_depthwise_conv'):
            module._depthwise_conv = module.dwconv.forward
    traced = torch.jit.trace(network, torch.rand(batch, 3, side, side, device=request.device))
    file = folder / f'detector_{torch.device(request.device).type}.torchscript'
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    write_atomically(file, buffer.getvalue())
    kind = torch.device(request.device).type
    return ModelFile(file.name, sha256_of(file), 'torchscript', 'fp32', batch, kind)
