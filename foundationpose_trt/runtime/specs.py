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


GraphKey = tuple[tuple, torch.dtype, torch.device]


def graph_key(inputs: Mapping[str, torch.Tensor]) -> GraphKey:
    """Return (shape, dtype, device); of several inputs that differ, tuples of shapes.

    The dtype and device are the first input's: an engine's specs fix the others.
    """
    shapes = [tuple(tensor.shape) for tensor in inputs.values()]
    first = next(iter(inputs.values()))
    same = all(shape == shapes[0] for shape in shapes)
    return shapes[0] if same else tuple(shapes), first.dtype, normalized(first.device)


class InputCheck:
    """What a network demands of its inputs, asked in microseconds at every run.

    As long as shapes and strides are those accepted last, they are only compared with these.
    """

    def __init__(self, specs: Sequence[TensorSpec], device: torch.device) -> None:
        self._specs = tuple(specs)
        self._device = device
        self._alignment = ALIGNMENT_BYTES if device.type == 'cuda' else 1
        self._accepted: tuple[list[tuple], GraphKey | None] = ([], None)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> GraphKey:
        """Return the inputs' graph_key, in the order of the specs; raises as check_inputs."""
        device, alignment = self._device, self._alignment
        rows, key = self._accepted
        if key is None or len(inputs) != len(rows):
            return self._accept(inputs)
        for name, dtype, shape, strides in rows:
            tensor = inputs.get(name)
            if (
                tensor is None
                or tensor.shape != shape
                or tensor.stride() != strides
                or tensor.dtype is not dtype
                or tensor.device != device
                or tensor.data_ptr() % alignment
            ):
                return self._accept(inputs)
        return key

    def _accept(self, inputs: Mapping[str, torch.Tensor]) -> GraphKey:
        """Check everything, and accept the same shapes and strides from now on."""
        if set(inputs) != {spec.name for spec in self._specs}:
            raise self._wrong_names(inputs)
        for spec in self._specs:
            if fault := _fault(spec, inputs[spec.name], self._device):
                raise ValueError(f'input {spec.name} {fault}')
        batches = {s.name: len(inputs[s.name]) for s in self._specs if s.shape[:1] == (BATCH,)}
        if len(set(batches.values())) > 1:
            raise ValueError(
                f'inputs differ in their batch: {batches}; send the same number of items in each'
            )
        ordered = {spec.name: inputs[spec.name] for spec in self._specs}
        rows = [(n, t.dtype, tuple(t.shape), t.stride()) for n, t in ordered.items()]
        key = graph_key(ordered)
        self._accepted = rows, key  # at once, for other threads
        return key

    def _wrong_names(self, inputs: Mapping[str, torch.Tensor]) -> ValueError:
        names = [spec.name for spec in self._specs]
        missing, unknown = set(names) - set(inputs), set(inputs) - set(names)
        return ValueError(
            f'inputs are {sorted(inputs)}, must be {names}: missing {sorted(missing)}, unknown'
            f' {sorted(unknown)}'
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
