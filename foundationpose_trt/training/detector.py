"""Training of a narrow RF-DETR on rendered scenes, with the reference package's own loss."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf

from ..synthesis.cast import CAST
from .detection_metrics import average_precision
from .detector_network import NarrowDetector, NarrowSize, build_narrow
from .detector_scenes import NONE, DetectionBatch, DetectionSampler, DetectionWorld
from .loop import Trainer, TrainSettings, run_stretch

NAME = 'detector'
# the statistics of ImageNet that RF-DETR normalises by (shared research, roboflow.md B2)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network_input(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (N, H, W, 3) 0..1 -> (N, 3, side, side), stretched and normalised as at run time."""
    planes = images.permute(0, 3, 1, 2)
    resized = nnf.interpolate(planes, (side, side), mode='bilinear', align_corners=False)
    mean, deviation = (
        torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, DEVIATION)
    )
    return (resized - mean) / deviation


def nested(inputs: torch.Tensor) -> object:
    """Images of one size (N, 3, H, W) as the package's NestedTensor, nothing of them padding."""
    padding = torch.zeros(len(inputs), *inputs.shape[2:], dtype=torch.bool, device=inputs.device)
    return importlib.import_module('rfdetr.utilities.tensors').NestedTensor(inputs, padding, True)


class DetectorStep:
    """One training step per call on fresh images."""

    def __init__(
        self, trainer: Trainer, detector: NarrowDetector, sampler: DetectionSampler
    ) -> None:
        self._trainer, self._detector, self._sampler = trainer, detector, sampler
        network = detector.network
        # launching its many small operations takes longer than a GPU needs for them
        self._network: Callable = torch.compile(network) if trainer.settings.compile else network

    def __call__(self, progress: float) -> torch.Tensor:
        loss = self.loss(self._sampler.sample())
        self._trainer.step(loss, progress)
        return loss.detach()

    def loss(self, batch: DetectionBatch) -> torch.Tensor:
        """Return the weighted sum of the package's losses of one batch."""
        inputs = network_input(batch.images, self._detector.size.resolution)
        targets = batch.targets()
        kind = inputs.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == 'cuda'):
            outputs = self._network(nested(inputs))
        losses = self._detector.criterion(_in_single(outputs), targets)
        weights: Any = self._detector.criterion.weight_dict
        total = sum(losses[name] * weight for name, weight in weights.items() if name in losses)
        assert isinstance(total, torch.Tensor)
        return total


def _in_single(outputs: object) -> object:
    """Outputs in float32: the losses of small boxes need it."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, dict):
        return {key: _in_single(value) for key, value in outputs.items()}
    if isinstance(outputs, list):
        return [_in_single(value) for value in outputs]
    return outputs


def train_detector(
    world: DetectionWorld,
    settings: TrainSettings,
    size: NarrowSize,
    folder: Path,
    resume: Path | None,
) -> tuple[Trainer, NarrowDetector]:
    """Train one stretch; returns the trainer and the detector with its averaged weights.

    Without seconds there is no step, not even those that compile: what was resumed is as it was.
    """
    device = world.meshes.device
    torch.manual_seed(settings.seed)
    detector = build_narrow(size, len(CAST), device)
    detector.network.train()
    trainer = Trainer(detector.network, settings, folder)
    if resume is not None:
        trainer.load(resume)
    if settings.seconds > 0:
        sampler = DetectionSampler(world, settings.batch, trainer.generator(device))
        step = DetectorStep(trainer, detector, sampler)
        run_stretch(trainer, NAME, step)
    else:
        trainer.save(NAME)
    averaged = trainer.average.network
    return trainer, NarrowDetector(averaged, detector.criterion, detector.config, size)


@torch.inference_mode()
def validate_detector(
    detector: NarrowDetector, world: DetectionWorld, batches: int, count: int
) -> dict[str, float]:
    """Average precision at IoU 0.5 over held-out views, in percent: of all, of each class."""
    device = world.meshes.device
    sampler = DetectionSampler(world, count, torch.Generator(device).manual_seed(5))
    detector.network.eval()
    found, truth = [], []
    for _ in range(batches):
        batch = sampler.sample()
        inputs = network_input(batch.images, detector.size.resolution)
        outputs = detector.network(nested(inputs))
        scores = outputs['pred_logits'][..., : len(CAST)].float().sigmoid()
        found += [*zip(_corners(outputs['pred_boxes'].float()), scores.cpu().numpy(), strict=True)]
        truth += [
            (boxes[kinds != NONE], kinds[kinds != NONE])
            for boxes, kinds in zip(
                _corners(batch.boxes), batch.classes.cpu().numpy(), strict=True
            )
        ]
    return average_precision([_flat(boxes, scores) for boxes, scores in found], truth, list(CAST))


def _corners(boxes: torch.Tensor) -> np.ndarray:
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1).cpu().numpy()


def _flat(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (K, 4), classes (K,) and scores (K,) of all pairs of query and class."""
    queries, kinds = np.indices(scores.shape).reshape(2, -1)
    return boxes[queries], kinds, scores.reshape(-1)
