"""Loading and saving weight sets: our own safetensors with a manifest, official .pth and ONNX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..datatypes import require
from ..runtime.engine_manifest import sha256_of
from .networks import RefineNet, ScoreNet, fold_batch_norm
from .onnx_weights import state_from_onnx

WEIGHTS_FOLDER = Path(__file__).parents[1] / 'weights'
PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16}
INT8 = 'int8'  # fp16 but for convolutions of TensorRT's engines (quantization.py)
ALL_PRECISIONS = {**PRECISIONS, INT8: torch.float16}
# Where the published sets keep their two files (foundationpose.md §1.7 and §6.4).
OFFICIAL_LAYOUTS = (
    ('2023-10-28-18-33-37/model_best.pth', '2024-01-11-20-02-45/model_best.pth'),
    ('refine_model.onnx', 'score_model.onnx'),
    ('refiner_net.onnx', 'score_net.onnx'),
)
MANIFEST = 'manifest.json'


@dataclass(frozen=True)
class PoseNetworks:
    """Refiner and scorer in eval mode with batch norm folded, on one device and precision.

    source: the folder they came from, None for networks made in memory. int8: engines are to have
    convolutions in 8-bit integers.
    """

    refiner: RefineNet
    scorer: ScoreNet
    name: str
    device: torch.device
    dtype: torch.dtype
    source: Path | None = None
    int8: bool = False

    @property
    def precision(self) -> str:
        """The key of ALL_PRECISIONS."""
        if self.int8:
            return INT8
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)


def save_network(network: nn.Module, path: Path) -> None:
    """Write a network's floating point state as fp16 safetensors (counters are left out).

    Raises ValueError for a value that fp16 cannot hold.
    """
    state = {
        key: value.detach().to('cpu', torch.float16).contiguous()
        for key, value in network.state_dict().items()
        if value.is_floating_point()
    }
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    require(not broken, f'{path}: {broken[:4]} hold values that are not finite in fp16')
    save_file(state, path)


def write_manifest(folder: Path, kind: str, entry: Mapping[str, Any]) -> None:
    """Add or replace one network ('refiner' | 'scorer') in folder/manifest.json.

    The file's name and sha256 are filled in here; the entry brings width, training, metrics.
    """
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) if path.exists() else {'networks': {}}
    manifest.update(name=folder.name, license='Apache-2.0', format=1)
    file = f'{kind}.safetensors'
    manifest['networks'][kind] = {'file': file, 'sha256': sha256_of(folder / file), **entry}
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + '\n')


def resolve_folder(name_or_dir: str) -> Path:
    """Folder of a weight set: a shipped name or a path; raises ValueError naming the choices."""
    shipped = sorted(p.parent.name for p in WEIGHTS_FOLDER.glob(f'*/{MANIFEST}'))
    if name_or_dir in shipped:
        return WEIGHTS_FOLDER / name_or_dir
    folder = Path(name_or_dir).expanduser()
    require(
        folder.is_dir(),
        f'weights "{name_or_dir}": neither a shipped set ({", ".join(shipped) or "none"}) nor a'
        ' folder; give one of these names or the path of a folder with manifest.json, or with the'
        ' official .pth or .onnx files',
    )
    return folder


def load_networks(
    name_or_dir: str, device: str | torch.device = 'cpu', precision: str = 'fp32'
) -> PoseNetworks:
    """Load both networks ready for inference.

    name_or_dir: a shipped set ('small', 'base'), a folder with manifest.json, or a folder with
    an official set (OFFICIAL_LAYOUTS; width 1.0). precision: 'fp32', 'fp16', or 'int8', with which
    the weights here are fp16.
    Raises ValueError when a file is missing, differs from its manifest or does not fit.
    """
    require(
        precision in ALL_PRECISIONS,
        f'precision is "{precision}", must be one of {", ".join(ALL_PRECISIONS)}',
    )
    target = torch.device(device)
    require(
        precision == 'fp32' or target.type == 'cuda',
        f'precision {precision} on device {target}: half precision needs CUDA, choose fp32',
    )
    folder, dtype = resolve_folder(name_or_dir), ALL_PRECISIONS[precision]
    if (folder / MANIFEST).exists():
        refiner, scorer = _load_own(folder)
    else:
        refiner, scorer = _load_official(folder)
    for network in (refiner, scorer):
        fold_batch_norm(network)
        network.requires_grad_(False).to(target, dtype)
        if target.type == 'cuda':
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return PoseNetworks(refiner, scorer, folder.name, target, dtype, folder, precision == INT8)


def _load_own(folder: Path) -> tuple[RefineNet, ScoreNet]:
    entries = manifest_entries(folder)
    refiner, scorer = RefineNet(entries[0]['width']).eval(), ScoreNet(entries[1]['width']).eval()
    for network, entry in ((refiner, entries[0]), (scorer, entries[1])):
        file = folder / entry['file']
        require(file.exists(), f'{file} is missing, though the {MANIFEST} beside it lists it')
        actual = sha256_of(file)
        require(
            actual == entry['sha256'],
            f'{file}: sha256 is {actual}, its {MANIFEST} says {entry["sha256"]}: the file was'
            ' changed or cut short; restore it or export the set again',
        )
        load_state(network, load_file(file), file)
    return refiner, scorer


def manifest_entries(folder: Path) -> list[dict[str, Any]]:
    """Return what manifest.json says of refiner and scorer: file, sha256 and width.

    Raises ValueError unless both are complete.
    """
    path = folder / MANIFEST
    try:
        networks = json.loads(path.read_text())['networks']
        return [
            {key: networks[kind][key] for key in ('file', 'sha256', 'width')}
            for kind in ('refiner', 'scorer')
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: not a manifest with file, sha256 and width of a refiner and a scorer'
            f' ({type(error).__name__}: {error}); restore it or export the set again'
        ) from error


def _load_official(folder: Path) -> tuple[RefineNet, ScoreNet]:
    for names in OFFICIAL_LAYOUTS:
        files = [folder / name for name in names]
        if all(file.exists() for file in files):
            refiner, scorer = RefineNet(1.0).eval(), ScoreNet(1.0).eval()
            _load_official_file(refiner, files[0])
            _load_official_file(scorer, files[1])
            return refiner, scorer
    layouts = '; '.join(' + '.join(names) for names in OFFICIAL_LAYOUTS)
    raise ValueError(f'{folder} holds no {MANIFEST} and no official set ({layouts})')


def _load_official_file(network: RefineNet | ScoreNet, file: Path) -> None:
    if file.suffix == '.onnx':
        fold_batch_norm(network)  # the published ONNX files have it folded as well
        load_state(network, state_from_onnx(file, network), file)
        return
    load_state(network, _read_checkpoint(file), file, strict_counters=True)


def _read_checkpoint(file: Path) -> Mapping[str, torch.Tensor]:
    """Return the state_dict of an official .pth: the file itself or its key `model`."""
    try:
        content = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises pickle's, zipfile's and its own types
        raise ValueError(
            f'{file} is not a checkpoint of tensors alone, or is cut short: download it again'
            f' ({type(error).__name__}: {str(error)[:100]})'
        ) from error
    state = content.get('model', content) if isinstance(content, Mapping) else content
    require(
        isinstance(state, Mapping) and all(isinstance(v, torch.Tensor) for v in state.values()),
        f'{file} holds no state_dict: expected tensors by name, or such a dict under "model"',
    )
    return state


def load_state(
    network: nn.Module,
    state: Mapping[str, torch.Tensor],
    file: Path,
    strict_counters: bool = False,
) -> None:
    """Load a state_dict strictly; raises ValueError listing what does not fit.

    Our own files leave out BatchNorm's num_batches_tracked, which inference never reads.
    """
    own = network.state_dict()
    missing = [
        key
        for key in own
        if key not in state and (strict_counters or not key.endswith('num_batches_tracked'))
    ]
    unknown = [key for key in state if key not in own]
    shapes = [
        f'{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}'
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f'{file} does not fit {type(network).__name__} of width {network.width}:'
            f' missing {missing[:4]} ({len(missing)}), unknown {unknown[:4]} ({len(unknown)}),'
            f' wrong shape {shapes[:4]} ({len(shapes)})'
        )
    network.load_state_dict({**own, **{key: value.float() for key, value in state.items()}})
