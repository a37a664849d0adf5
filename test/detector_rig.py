"""Images and raw network outputs for tests of the detector; manifests, tiny networks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from foundationpose_trt.detection.manifest import DetectorManifest, ModelFile, write_manifest

FIXTURES = Path(__file__).parent / 'fixtures' / 'rfdetr_1_11_2.npz'
SIZES = {'vga': (480, 640), 'hd': (720, 1280), 'full_hd': (1080, 1920), 'small': (97, 131)}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MASK_BLOCK = 6  # raw masks are blocks of equal logits: small to keep, exact to expand


def sample_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: slopes, edges and noise, by whole-number arithmetic alone."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 3 + y, x + y * 2, (x // 16 + y // 12) % 2 * 200], -1)
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    return ((base + noise) % 256).astype(np.uint8)


def manifest_of(**changes: object) -> DetectorManifest:
    """A manifest of three classes and a background."""
    values: dict = {
        'name': 'rig', 'variant': 'nano', 'classes': ('box', 'can', 'drill', None),
        'resolution': (384, 384), 'mean': MEAN, 'deviation': DEVIATION, 'queries': 6,
        'select': 6, 'files': (),
    }  # fmt: skip
    return DetectorManifest(**{**values, **changes})


class FixedNetwork(torch.nn.Module):
    """Gives the same boxes and logits whatever it sees, plus nothing of the image's mean."""

    def __init__(self, boxes: np.ndarray, logits: np.ndarray, masks: np.ndarray | None) -> None:
        super().__init__()
        self.boxes, self.logits = torch.from_numpy(boxes), torch.from_numpy(logits)
        self.masks = None if masks is None else torch.from_numpy(masks)

    def forward(self, image: torch.Tensor):
        zero = image.mean() * 0
        outputs = (self.boxes + zero, self.logits + zero)
        return outputs if self.masks is None else (*outputs, self.masks + zero)


def write_fixed(
    folder: Path, boxes: np.ndarray, logits: np.ndarray, masks: np.ndarray | None = None,
    **changes: object,
) -> Path:  # fmt: skip
    """A detector folder with TorchScript and (where onnx is installed) ONNX of a FixedNetwork."""
    folder.mkdir(parents=True, exist_ok=True)
    queries, columns = logits.shape[1:]
    values = {'queries': queries, 'select': queries, **changes}
    if masks is not None:
        values |= {'masks': 'masks', 'mask_size': masks.shape[2:]}
    manifest = manifest_of(**values)
    assert columns == len(manifest.classes)
    network = FixedNetwork(boxes, logits, masks)
    image = torch.zeros(1, 3, *manifest.resolution)
    script = folder / 'detector_cpu.torchscript'
    torch.jit.trace(network, image).save(str(script))
    files = [entry(script, 'torchscript', 'cpu')]
    names = ['dets', 'labels', *(['masks'] if masks is not None else [])]
    onnx = folder / 'detector_fp32.onnx'
    torch.onnx.export(
        network, (image,), str(onnx), dynamo=False, opset_version=17, input_names=['input'],
        output_names=names,
    )  # fmt: skip
    files.append(entry(onnx, 'onnx', ''))
    write_manifest(manifest_of(**values, files=tuple(files)), folder)
    return folder


def entry(path: Path, kind: str, device: str) -> ModelFile:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelFile(path.name, digest, kind, 'fp32', 1, device)


def scene(found: list[tuple[int, float, tuple[float, float, float, float]]], queries: int = 6):
    """Boxes (1, Q, 4) and logits (1, Q, 4) of a FixedNetwork: (column, score, box) per query."""
    boxes = np.full((1, queries, 4), 0.5, np.float32)
    logits = np.full((1, queries, 4), -9.0, np.float32)
    for query, (column, score, box) in enumerate(found):
        boxes[0, query] = box
        logits[0, query, column] = np.log(score / (1 - score))
    return boxes, logits
