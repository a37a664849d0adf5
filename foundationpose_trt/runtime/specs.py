"""What a network takes and gives: names, shapes, types; the check of what a caller sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..datatypes import require

BATCH = -1  # in a shape's first place: any number of items
ALIGNMENT_BYTES = (
    256  # TensorRT's demand on every address (NVIDIA developer guide, set_tensor_address)
)


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


def check_inputs(
    specs: Sequence[TensorSpec], inputs: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    """Raise ValueError naming the tensor that a network with these inputs cannot take.

    Every input must be there, nothing else; of the dtype and device of the network, of a shape
    its spec admits, contiguous, on CUDA at an address of 256 bytes' alignment, and all inputs
    with a free batch of the same batch.
    """
    if all(_fits(spec, inputs.get(spec.name), device) for spec in specs) and len(inputs) == len(
        specs
    ):
        lengths = {len(inputs[spec.name]) for spec in specs if spec.shape[:1] == (BATCH,)}
        if len(lengths) <= 1:
            return
    _explain(specs, inputs, device)


def _fits(spec: TensorSpec, tensor: torch.Tensor | None, device: torch.device) -> bool:
    return (
        tensor is not None
        and spec.admits(tensor.shape)
        and tensor.dtype == spec.dtype
        and tensor.device == device
        and tensor.is_contiguous(memory_format=spec.layout)
        and (device.type != 'cuda' or tensor.data_ptr() % ALIGNMENT_BYTES == 0)
    )


def _explain(
    specs: Sequence[TensorSpec], inputs: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    names = [spec.name for spec in specs]
    missing, unknown = set(names) - set(inputs), set(inputs) - set(names)
    require(
        not missing and not unknown,
        f'inputs are {sorted(inputs)}, must be {names}: missing {sorted(missing)}, unknown'
        f' {sorted(unknown)}',
    )
    for spec in specs:
        _check_one(spec, inputs[spec.name], device)
    batches = {spec.name: len(inputs[spec.name]) for spec in specs if spec.shape[:1] == (BATCH,)}
    require(
        len(set(batches.values())) <= 1,
        f'inputs differ in their batch: {batches}; send the same number of items in each',
    )


def _check_one(spec: TensorSpec, tensor: torch.Tensor, device: torch.device) -> None:
    name = spec.name
    require(
        spec.admits(tensor.shape),
        f'input {name} has shape {tuple(tensor.shape)}, must be {spec.shape},'
        f' {BATCH} being any batch',
    )
    require(
        tensor.dtype == spec.dtype,
        f'input {name} is {tensor.dtype}, must be {spec.dtype}: convert it with .to({spec.dtype})',
    )
    require(
        normalized(tensor.device) == device,
        f'input {name} is on {tensor.device}, must be on {device}: move it with'
        f' .to({str(device)!r})',
    )
    require(
        tensor.is_contiguous(memory_format=spec.layout),
        f'input {name} has strides {tensor.stride()} for shape {tuple(tensor.shape)}: it must be'
        f' contiguous ({spec.layout}), the network would read its memory in another order; call'
        f' .contiguous(memory_format={spec.layout})',
    )
    require(
        device.type != 'cuda' or tensor.data_ptr() % ALIGNMENT_BYTES == 0,
        f'input {name} begins {tensor.data_ptr() % ALIGNMENT_BYTES} bytes after a multiple of'
        f' {ALIGNMENT_BYTES}: TensorRT needs aligned addresses; do not pass a slice from the'
        ' middle of a buffer, or .clone() it',
    )
