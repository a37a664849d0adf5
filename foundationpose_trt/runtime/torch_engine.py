"""PyTorch modules, TorchScript files and plain functions of tensors as engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..datatypes import require
from .engine_manifest import sha256_of
from .specs import TensorSpec, normalized

Function = Callable[..., Any]
# The first run of a TorchScript module records shapes, the second compiles for them (on CUDA with
# nvrtc, which loads modules: nothing to do in a graph's capture), the third is as all later ones.
SCRIPT_WARM_UP_RUNS = 3


@dataclass(frozen=True)
class TorchExecution:
    """A function and the tensors it reads. Memory is torch's own: nbytes is 0."""

    engine: TorchEngine
    inputs: tuple[torch.Tensor, ...]
    nbytes: int = 0

    @torch.inference_mode()
    def enqueue(self) -> dict[str, torch.Tensor]:
        """Call the function; new outputs each time, except in a captured graph."""
        return self.engine.named(self.engine.function(*self.inputs))


class TorchEngine:
    """A function of tensors, called with the inputs in the order of their specs.

    function gives a tensor, a tuple in the order of the output specs, or a mapping by name.
    """

    light = True

    def __init__(
        self,
        name: str,
        function: Function,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        device: str | torch.device,
        warm_up_runs: int = 1,
    ) -> None:
        self.name = name
        self.function = function
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.device = normalized(device)
        self.graphable = self.device.type == 'cuda'
        self.warm_up_runs = warm_up_runs

    def execution(self, inputs: Mapping[str, torch.Tensor]) -> TorchExecution:
        """Bind the function to these tensors."""
        return TorchExecution(self, tuple(inputs[spec.name] for spec in self.inputs))

    def named(self, result: Any) -> dict[str, torch.Tensor]:
        """Name what the function gave; raises ValueError when it is not what the specs say."""
        names = [spec.name for spec in self.outputs]
        if isinstance(result, torch.Tensor):
            result = (result,)
        if not isinstance(result, Mapping):
            require(
                len(result) == len(names),
                f'{self.name} gave {len(result)} outputs, its specs name {names}',
            )
            return dict(zip(names, result, strict=True))
        require(
            set(result) == set(names),
            f'{self.name} gave outputs {sorted(result)}, its specs name {names}',
        )
        return {name: result[name] for name in names}


def load_torchscript(
    file: Path, sha256: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
    device: str | torch.device,
) -> TorchEngine:  # fmt: skip
    """Load a traced module as an engine.

    sha256: hex digest the file must have: TorchScript is code, run only what you expect. Raises
    ValueError when the file is missing, differs, or is no TorchScript.
    """
    require(file.is_file(), f'{file}: there is no such TorchScript file')
    actual = sha256_of(file)
    require(
        actual == sha256,
        f'{file}: sha256 is {actual}, expected {sha256}: the file was changed or cut short;'
        ' export it again',
    )
    try:
        module = torch.jit.load(str(file), map_location=torch.device(device)).eval()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'{file} is no TorchScript that this torch reads: {reason}') from error
    runs = SCRIPT_WARM_UP_RUNS if torch.device(device).type == 'cuda' else 1
    return TorchEngine(file.name, module, inputs, outputs, device, runs)
