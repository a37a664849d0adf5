"""Narrow relatives of RF-DETR nano, built by the reference package from its own parts.

The published sizes start at a backbone of 21 M parameters; a few known objects need less.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..datatypes import require

BACKBONE = 'tiny'  # a name the package knows the width of, and ships no configuration for
REMEDY = "pip install '.[detector]'"
GRID_PX = 32  # the image is cut into patches of 16 pixels, in windows of two by two


@dataclass(frozen=True)
class NarrowSize:
    """Where the network differs from nano. width, heads, layers: of the backbone; decoder,
    decoder_layers, feedforward: of the transformer on top; queries: per image; groups: of
    queries in training.
    """

    width: int = 192
    heads: int = 3
    layers: int = 9
    decoder: int = 128
    decoder_layers: int = 2
    feedforward: int = 512
    queries: int = 50
    groups: int = 6
    resolution: int = 384

    def __post_init__(self) -> None:
        require(
            min(self.width, self.heads, self.layers, self.resolution) >= 1,
            f'{self}: all sizes must be at least 1',
        )
        require(
            self.width % self.heads == 0 and self.layers % 3 == 0,
            f'width {self.width} must be a multiple of heads {self.heads}, layers {self.layers} of'
            ' 3',
        )
        require(
            self.resolution % GRID_PX == 0,
            f'resolution is {self.resolution}, must be a multiple of {GRID_PX}',
        )


@dataclass(frozen=True)
class NarrowDetector:
    """A network with its loss, and the configuration it was built from."""

    network: torch.nn.Module
    criterion: torch.nn.Module
    config: Any
    size: NarrowSize


def build_narrow(size: NarrowSize, classes: int, device: torch.device) -> NarrowDetector:
    """Build network and loss with random weights. Raises ValueError without rfdetr."""
    require_packages(device.type)
    config, defaults = _configuration(size, classes, device)
    builder = importlib.import_module('rfdetr.models.lwdetr')
    train_config = importlib.import_module('rfdetr.config').TrainConfig(
        dataset_dir='.', output_dir='.'
    )
    with _registered_backbone(size):
        network = builder.build_model_from_config(config, None, defaults).to(device)
    criterion, _ = builder.build_criterion_from_config(config, train_config, defaults)
    return NarrowDetector(network, criterion.to(device), config, size)


def require_packages(device_type: str) -> None:
    """Raise ValueError where a package is missing that training, judging or exporting needs.

    device_type: cpu or cuda; there the package's loss wants a solver of assignments.
    """
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    solver = ['torch_linear_assignment'] if device_type == 'cuda' else []
    for name in ('rfdetr.config', 'supervision', 'onnx', *solver):
        try:
            importlib.import_module(name)
        except ImportError as error:
            package = name.split('.')[0]
            raise ValueError(f'training a detector needs {package} ({error}): {REMEDY}') from error


def _configuration(size: NarrowSize, classes: int, device: torch.device) -> tuple[Any, Any]:
    package = importlib.import_module('rfdetr.config')
    config = package.RFDETRNanoConfig(
        pretrain_weights=None, num_classes=classes, num_queries=size.queries,
        num_select=size.queries, hidden_dim=size.decoder, sa_nheads=4, ca_nheads=8,
        dec_layers=size.decoder_layers, group_detr=size.groups, resolution=size.resolution,
        positional_encoding_size=size.resolution // 16, device=str(device),
        out_feature_indexes=[size.layers * k // 3 for k in (1, 2, 3)],
    )  # fmt: skip
    object.__setattr__(config, 'encoder', f'dinov2_windowed_{BACKBONE}')  # its type lists others
    defaults = importlib.import_module('rfdetr.models._defaults').MODEL_DEFAULTS
    return config, dataclasses.replace(defaults, dim_feedforward=size.feedforward)


@contextmanager
def _registered_backbone(size: NarrowSize) -> Iterator[None]:
    """Let the package know a backbone of this size; it reads configurations from files."""
    backbone = importlib.import_module('rfdetr.models.backbone.dinov2')
    values = backbone.get_config('small', use_registers=False)
    values |= {
        'hidden_size': size.width,
        'num_attention_heads': size.heads,
        'num_hidden_layers': size.layers,
    }
    with tempfile.TemporaryDirectory(prefix='rfdetr_backbone_') as scratch:
        path = Path(scratch) / 'backbone.json'
        path.write_text(json.dumps(values))
        backbone.size_to_config[BACKBONE] = str(path)  # absolute: joined to a folder, it stays
        backbone.size_to_width[BACKBONE] = size.width
        yield


def as_reference(detector: NarrowDetector, names: tuple[str, ...], device: str) -> Any:
    """Wrap the network as a model of the package, which then exports it and predicts with it."""
    package = importlib.import_module('rfdetr')
    model = package.RFDETRNano(
        pretrain_weights=None, num_classes=len(names), device=device,
        resolution=detector.size.resolution,
    )  # fmt: skip
    model.model.model = detector.network.to(device).eval()
    model.model.class_names = list(names)
    model.model_config = detector.config
    return model
