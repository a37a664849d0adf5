"""8-bit integers for the refiner's convolutions: which of them, and the scales of what they read.

Symmetric, as ONNX's QuantizeLinear and TensorRT have it: a real value is a scale times an integer
from -128 to 127; weights have a scale for each output channel, what a convolution reads has one,
which is measured (Nagel et al., "A White Paper on Neural Network Quantization", 2021, 2.2 and
3.1). Quantized is the stage over both images, three quarters of the arithmetic: in the one before
it moves poses further from float32's. The scorer stays as it is: it takes little of the time, and
its features come out further off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..datatypes import require
from ..runtime.engine_manifest import write_atomically
from .networks import RefineNet

SCALES = 'int8.json'  # beside the weights
LARGEST = 127
CANDIDATES = 160  # of a scale
KEPT = 4_000  # values of each input of a convolution
MOST = 1_000_000  # values of all of them
FORMAT = 1


def quantized_convolutions(network: RefineNet) -> dict[str, nn.Conv2d]:
    """Return the convolutions that are quantized, by their place in the stage over both images."""
    return convolutions_of(network.encodeAB)


def convolutions_of(module: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions in a module, by name."""
    named = module.named_modules()
    return {name: layer for name, layer in named if isinstance(layer, nn.Conv2d)}


class Observed:
    """Sizes of the values that each quantized convolution of a network has read."""

    def __init__(self) -> None:
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._largest: dict[str, float] = {}
        self._random = torch.Generator().manual_seed(0)

    def note(self, name: str, values: torch.Tensor) -> None:
        """Keep some of what a convolution reads, and the largest of all."""
        sizes = values.detach().abs().float().flatten()
        # by chance: with steps of a constant length they would be of a few columns of the images
        self._kept.setdefault(name, []).append(_some(sizes, KEPT, self._random).cpu())
        self._largest[name] = max(self._largest.get(name, 0.0), float(sizes.max()))

    def scales(self) -> dict[str, float]:
        """Return the best scale of each (best_scale). Raises ValueError where nothing was seen."""
        require(len(self._kept) > 0, 'no convolution has read anything: nothing to measure')
        own = torch.Generator().manual_seed(1)
        return {
            name: best_scale(_some(torch.cat(kept), MOST, own), self._largest[name])
            for name, kept in self._kept.items()
        }


def _some(values: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Choose so many at most of values (N,)."""
    chosen = torch.randint(len(values), (min(most, len(values)),), generator=generator)
    return values[chosen.to(values.device)]


@contextmanager
def observing(network: RefineNet) -> Iterator[Observed]:
    """Watch what the quantized convolutions of a network read while the block runs."""
    observed = Observed()

    def watch(name: str, layer: nn.Conv2d) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_pre_hook(lambda _, given: observed.note(name, given[0]))

    handles = [watch(*item) for item in quantized_convolutions(network).items()]
    try:
        yield observed
    finally:
        for handle in handles:
            handle.remove()


def best_scale(sizes: torch.Tensor, largest: float) -> float:
    """Return the scale that keeps values nearest, by the mean of the squared errors.

    sizes: some absolute values, flat; largest: of all. Values beyond 127 scales become that.
    Raises ValueError for a largest that is not positive and finite.
    """
    require(
        0 < largest < float('inf'), f'the largest value is {largest}, must be positive and finite'
    )
    sizes = torch.cat([sizes.double().flatten(), torch.tensor([largest], dtype=torch.float64)])

    def error(scale: float) -> float:
        kept = (sizes / scale).round().clamp(max=LARGEST) * scale
        return float((kept - sizes).square().mean())

    scales = [largest / LARGEST * k / CANDIDATES for k in range(1, CANDIDATES + 1)]
    return min(scales, key=error)


def write_scales(folder: Path, weights_sha256: str, scales: Mapping[str, float]) -> Path:
    """Write folder/int8.json; weights_sha256: of the file with the refiner's weights."""
    path = folder / SCALES
    content = {'format': FORMAT, 'weights_sha256': weights_sha256, 'scales': dict(scales)}
    write_atomically(path, (json.dumps(content, indent=2) + '\n').encode())
    return path


def read_scales(folder: Path, weights_sha256: str) -> dict[str, float]:
    """Return the scales of the refiner of a weight set.

    weights_sha256: of the file with its weights. Raises ValueError, naming the remedy, where the
    file is missing, not whole, or of other weights.
    """
    path, remedy = folder / SCALES, f'run `foundationpose-trt calibrate --weights {folder}`'
    require(path.is_file(), f'{path}, with the scales for precision int8, is missing: {remedy}')
    try:
        content = json.loads(path.read_text())
        version, told = content['format'], content['weights_sha256']
        scales = {str(name): float(value) for name, value in content['scales'].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} holds no scales ({type(error).__name__}: {error}): {remedy}'
        ) from error
    require(version == FORMAT, f'{path} has format {version}, must be {FORMAT}: {remedy}')
    require(told == weights_sha256, f'{path} is of another refiner than the one here: {remedy}')
    wrong = {name: value for name, value in scales.items() if not 0 < value < float('inf')}
    require(not wrong, f'{path}: scales must be positive and finite, not {wrong}: {remedy}')
    return scales
