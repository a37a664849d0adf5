"""Writes test/fixtures/rfdetr_1_11_2.npz: what the reference package does before and after the
network, for tests where it is not installed. Run by hand, in an environment with rfdetr 1.11.2:

    PYTHONPATH=. python test/record_detector_fixtures.py
"""

from __future__ import annotations

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import importlib.metadata

import numpy as np
import torch
from detector_rig import FIXTURES, MASK_BLOCK, SIZES, sample_image

POSITIONS = 1500
THRESHOLD = 0.75
COARSE = 13


class Recorder(torch.nn.Module):
    """Stands for the network: keeps what it is given, gives what it was told to."""

    def __init__(self, outputs: dict) -> None:
        super().__init__()
        self.outputs = outputs
        self.given: torch.Tensor | None = None

    def forward(self, image: torch.Tensor) -> dict:
        self.given = image
        return self.outputs


def raw_outputs(queries: int, columns: int, with_masks: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(queries)
    raw = {
        'boxes': rng.uniform(-0.05, 1.05, (1, queries, 4)).astype(np.float32),
        'logits': (rng.standard_normal((1, queries, columns)) * 2 - 4).astype(np.float32),
    }
    if with_masks:
        shape = (1, queries, COARSE, COARSE)
        raw['coarse'] = rng.standard_normal(shape).astype(np.float32)
    return raw


def main() -> None:
    from rfdetr import RFDETRNano, RFDETRSegNano

    assert importlib.metadata.version('rfdetr') == '1.11.2'
    content: dict[str, np.ndarray] = {}
    for name, kind, queries in (('nano', RFDETRNano, 300), ('seg', RFDETRSegNano, 100)):
        model = kind(pretrain_weights=None)
        raw = raw_outputs(queries, 91, name == 'seg')
        outputs = {'pred_boxes': raw['boxes'], 'pred_logits': raw['logits']}
        if name == 'seg':
            block = np.ones((1, 1, MASK_BLOCK, MASK_BLOCK), np.float32)
            outputs['pred_masks'] = np.kron(raw['coarse'], block)
        recorder = Recorder({key: torch.from_numpy(value) for key, value in outputs.items()})
        model.model.model = recorder
        content |= {f'{name}_raw_{key}': value for key, value in raw.items()}
        for size, (height, width) in SIZES.items():
            found = model.predict(sample_image(height, width), threshold=THRESHOLD)
            given = recorder.given.numpy()[0]
            places = np.random.default_rng(1).integers(0, given.size, POSITIONS)
            content[f'{name}_pre_{size}'] = given.reshape(-1)[places]
            content[f'{name}_boxes_{size}'] = found.xyxy.astype(np.float32)
            content[f'{name}_scores_{size}'] = found.confidence.astype(np.float32)
            content[f'{name}_columns_{size}'] = found.class_id.astype(np.int64)
            if name == 'seg':
                content[f'seg_masks_{size}'] = np.packbits(found.mask[:4])
        content[f'{name}_places'] = places
    FIXTURES.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURES, threshold=THRESHOLD, **content)


if __name__ == '__main__':
    main()
