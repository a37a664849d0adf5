"""Does an engine find what the reference finds? Queries may come in another order, so as sets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..runtime.engine import Engine
from ..runtime.session import Session
from .manifest import DetectorManifest

IMAGES = 4
COARSE_PX = 6
BEST = 20  # queries of an image that are looked for
NEAR_BOX, NEAR_SCORE = 0.02, 0.05  # of the image's side; of 1
# Rounding lets a query or two at the edge of the two-stage selection come and go; a network that
# is built wrong, or NaN, finds next to nothing of the other's.
LEAST_FOUND = 0.7


def sample_inputs(manifest: DetectorManifest, seed: int = 0) -> torch.Tensor:
    """Normalised images (IMAGES, 3, H, W) of smooth blobs with hard edges, float32 on the CPU."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(IMAGES, 3, COARSE_PX, COARSE_PX, generator=g)
    smooth = torch.nn.functional.interpolate(
        coarse, manifest.resolution, mode='bicubic', align_corners=False
    )
    return (smooth + (smooth[:, :1] > 0.5) * 1.0).clamp(-2, 2)


def agreement(manifest: DetectorManifest, engine: Engine, reference: Engine) -> dict[str, float]:
    """Share of the reference's best queries that the engine has too, and how near they are.

    found: 0..1; box: median distance of their boxes in shares of the image's side; score: median
    difference of their best scores.
    """
    images = sample_inputs(manifest)
    found, box, score = [], [], []
    for image in images.split(1):
        wanted = _queries(manifest, reference, image)
        given = _queries(manifest, engine, image)
        best = wanted[np.argsort(-wanted[:, 4])[:BEST]]
        apart = np.abs(best[:, None] - given[None])
        box_apart, score_apart = apart[..., :4].max(-1), apart[..., 4]
        nearest = np.argmin(box_apart / NEAR_BOX + score_apart / NEAR_SCORE, 1)
        rows = np.arange(len(best))
        box.append(box_apart[rows, nearest])
        score.append(score_apart[rows, nearest])
        found.append((box[-1] < NEAR_BOX) & (score[-1] < NEAR_SCORE))
    return {
        'found': float(np.mean(found)),
        'box': float(np.median(box)),
        'score': float(np.median(score)),
    }


@torch.inference_mode()
def _queries(manifest: DetectorManifest, engine: Engine, image: torch.Tensor) -> np.ndarray:
    """Rows (Q, 5): box in 0..1 and best score; NaN is far from everything."""
    spec = engine.inputs[0]
    given = image.to(engine.device, spec.dtype).contiguous(memory_format=spec.layout)
    with Session(engine, None) as session:
        outputs = session.run({spec.name: given}, clone=True)
    boxes = outputs[manifest.boxes][0].float()
    scores = outputs[manifest.logits][0].float().sigmoid().amax(-1, keepdim=True)
    return torch.cat([boxes, scores], 1).nan_to_num(nan=1e3).cpu().numpy()


class UntrustedEngineError(ValueError):
    """An engine computes something else than its network, or nothing could tell."""


def is_agreement(found: Mapping[str, float]) -> bool:
    """Whether agreement() found enough of the reference's result."""
    return found['found'] >= LEAST_FOUND


def require_agreement(name: str, found: Mapping[str, float]) -> None:
    """Raise UntrustedEngineError when too little of the reference's result is there."""
    if not is_agreement(found):
        raise UntrustedEngineError(
            f'{name}: of the best {BEST} queries on test images only {found["found"]:.0%} are'
            f' those of the fp32 network (boxes apart by {found["box"]:.3g} of the side), at least'
            f' {LEAST_FOUND:.0%} must be: the engine computes something else; use precision fp32,'
            ' or backend torchscript, and report it with the .log file'
        )
