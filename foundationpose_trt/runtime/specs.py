"""What a network takes and gives: names, shapes, types; the check of what a caller sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..datatypes import require

BATCH = -1  # in a shape's first place: any number of items
ALIGNMENT_BYTES = 256  # TensorRT's demand on every address (its guide, set_tensor_address)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one input or output; shape[0] may be BATCH, the rest is fixed.

    layout: the order in memory that the network reads (torch.channels_last for 4-D only).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.memory_format = torch.contiguous_format

    def __post_init__(self) -> None:
        fixed = self.shape[1:] if self.shape[:1] == (BATCH,) else self.shape
        require(
            all(size > 0 for size in fixed),
            f'tensor {self.name} has shape {self.shape}: only the first size may be {BATCH} (any'
            ' batch), the others must be positive',
        )

    def sized(self, batch: int) -> tuple[int, ...]:
        """Return the shape at a batch."""
        return (batch, *self.shape[1:]) if self.shape[:1] == (BATCH,) else self.shape

    def empty(self, batch: int, device: torch.device) -> torch.Tensor:
        """Return memory for a batch, in this layout, zeroed."""
        shape = self.sized(batch)
        return torch.zeros(shape, dtype=self.dtype, device=device).contiguous(
            memory_format=self.layout
        )

    def admits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape fits."""
        if len(shape) != len(self.shape):
            return False
        return all(want in (BATCH, size) for want, size in zip(self.shape, shape, strict=True))


def normalized(device: str | torch.device) -> torch.device:
    """Device with its index: `cuda` is `cuda:<current>`, `cuda:0` where none is chosen."""
    device = torch.device(device)
    if device.type != 'cuda' or device.index is not None:
        return device
    current = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return torch.device('cuda', current)


class InputCheck:
    """What a network demands of its inputs, laid out to be asked in microseconds at every run."""

    def __init__(self, specs: Sequence[TensorSpec], device: torch.device) -> None:
        self._device = device
        self._aligned = device.type == 'cuda'
        self._rows = [
            (spec.name, spec.shape, spec.shape[1:], spec.shape[:1] == (BATCH,), spec)
            for spec in specs
        ]

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> list[tuple[int, ...]]:
        """Return the shapes in the order of the specs; raises as check_inputs."""
        if len(inputs) != len(self._rows):
            raise self._wrong_names(inputs)
        shapes, batch = [], None
        for name, whole, rest, is_free, spec in self._rows:
            tensor = inputs.get(name)
            if tensor is None:
                raise self._wrong_names(inputs)
            shape = tuple(tensor.shape)
            fits = len(shape) == len(whole) and shape[1:] == rest if is_free else shape == whole
            takes = (
                fits
                and tensor.dtype is spec.dtype
                and tensor.device == self._device
                and tensor.is_contiguous(memory_format=spec.layout)
                and not (self._aligned and tensor.data_ptr() % ALIGNMENT_BYTES)
            )
            if not takes and (fault := _fault(spec, tensor, self._device)):
                raise ValueError(f'input {name} {fault}')
            if is_free:
                if batch not in (None, shape[0]):
                    raise self._differing(inputs)
                batch = shape[0]
            shapes.append(shape)
        return shapes

    def _wrong_names(self, inputs: Mapping[str, torch.Tensor]) -> ValueError:
        names = [row[0] for row in self._rows]
        missing, unknown = set(names) - set(inputs), set(inputs) - set(names)
        return ValueError(
            f'inputs are {sorted(inputs)}, must be {names}: missing {sorted(missing)}, unknown'
            f' {sorted(unknown)}'
        )

    def _differing(self, inputs: Mapping[str, torch.Tensor]) -> ValueError:
        batches = {row[0]: len(inputs[row[0]]) for row in self._rows if row[3]}
        return ValueError(
            f'inputs differ in their batch: {batches}; send the same number of items in each'
        )


def check_inputs(
    specs: Sequence[TensorSpec], inputs: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    """Raise ValueError naming the tensor that a network with these inputs cannot take.

    Every input must be there, nothing else; of the dtype and device of the network, of a shape
    its spec admits, contiguous, on CUDA at an address of 256 bytes' alignment, and all inputs
    with a free batch of the same batch.
    """
    InputCheck(specs, device)(inputs)


def _fault(spec: TensorSpec, tensor: torch.Tensor, device: torch.device) -> str:
    """What keeps a tensor from being this input, or ''."""
    if not spec.admits(tensor.shape):
        return f'has shape {tuple(tensor.shape)}, must be {spec.shape}, {BATCH} being any batch'
    if tensor.dtype != spec.dtype:
        return f'is {tensor.dtype}, must be {spec.dtype}: convert it with .to({spec.dtype})'
    if tensor.device != device:
        return f'is on {tensor.device}, must be on {device}: move it with .to({str(device)!r})'
    if not tensor.is_contiguous(memory_format=spec.layout):
        return (
            f'has strides {tensor.stride()} for shape {tuple(tensor.shape)}: it must be'
            f' contiguous ({spec.layout}), the network would read its memory in another order;'
            f' call .contiguous(memory_format={spec.layout})'
        )
    if device.type == 'cuda' and (offset := tensor.data_ptr() % ALIGNMENT_BYTES):
        return (
            f'begins {offset} bytes after a multiple of {ALIGNMENT_BYTES}: TensorRT needs aligned'
            ' addresses; do not pass a slice from the middle of a buffer, or .clone() it'
        )
    return ''
