"""A TensorRT plan as an engine: a context for each execution, one workspace for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..cuda_streams import handle_of_current_stream
from ..datatypes import require
from .build import platform_of
from .engine_manifest import check_engine, read_manifest, rebuild_command
from .specs import check_inputs, normalized
from .tensorrt_api import TensorRtApi, load_api
from .tensorrt_log import ErrorList
from .workspace import Workspace


class TensorRtExecution:
    """A context bound to input tensors of one shape, and the outputs it writes.

    nbytes: of the outputs; the workspace is the engine's.
    """

    def __init__(
        self, engine: TensorRtEngine, inputs: Mapping[str, torch.Tensor], profile: int
    ) -> None:
        self._engine = engine
        self._inputs = dict(inputs)  # their memory must stay where it is
        self.errors = ErrorList()
        with torch.cuda.device(engine.device), engine.api.relay.to(self.errors):
            self._context = self._checked(engine.new_context(), 'a new context')
            self._memory = engine.workspace.memory()
            self._select_profile(profile)
            self._bind_inputs()
            self.outputs = self._bind_outputs()
            engine.api.give_workspace(self._context, self._memory)
        self.nbytes = sum(tensor.nbytes for tensor in self.outputs.values())

    def enqueue(self) -> dict[str, torch.Tensor]:
        """Launch on the current stream without waiting; returns the outputs by name.

        On the default stream TensorRT synchronises the device, so use another. Raises
        RuntimeError when TensorRT cannot launch.
        """
        stream = handle_of_current_stream(self._engine.device)
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f'{self._engine.name}: TensorRT could not launch the network')
        return self.outputs

    def _select_profile(self, index: int) -> None:
        if not self._engine.manifest.any_batch:
            return  # there is one, and every context has it
        stream = torch.cuda.current_stream(self._engine.device)
        done = self._engine.api.select_profile(self._context, index, stream)
        self._checked(done, f'optimization profile {index}')

    def _bind_inputs(self) -> None:
        for name, tensor in self._inputs.items():
            shape = tuple(tensor.shape)
            self._checked(self._context.set_input_shape(name, shape), f'input {name} of {shape}')
            self._bind(name, tensor)
        missing = self._context.infer_shapes()
        if missing:
            raise RuntimeError(
                f'{self._engine.name}: TensorRT still lacks the shapes of {missing}'
            )

    def _bind_outputs(self) -> dict[str, torch.Tensor]:
        outputs = {}
        for spec in self._engine.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            if min(shape, default=0) < 0:
                raise RuntimeError(
                    f'{self._engine.name}: the shape of output {spec.name}, {shape}, depends on'
                    ' what the inputs hold; only shapes known beforehand can run here'
                )
            tensor = torch.empty(
                shape, dtype=spec.dtype, device=self._engine.device, memory_format=spec.layout
            )
            self._bind(spec.name, tensor)
            outputs[spec.name] = tensor
        return outputs

    def _bind(self, name: str, tensor: torch.Tensor) -> None:
        done = self._context.set_tensor_address(name, tensor.data_ptr())
        self._checked(done, f'the address of {name}')

    def _checked(self, result: Any, what: str) -> Any:
        """TensorRT tells failures by False or None."""
        if result is None or result is False:
            raise RuntimeError(f'{self._engine.name}: TensorRT refuses {what}: {self.errors}')
        return result


class TensorRtEngine:
    """A deserialised plan on one GPU.

    Its executions share one workspace, as large as the largest batch needs, so no two of them may
    run at the same time on the device.
    """

    light = False
    graphable = True
    warm_up_runs = 1

    def __init__(
        self,
        plan: Path,
        device: str | torch.device = 'cuda',
        onnx: Path | None = None,
        workspace: Workspace | None = None,
        backend: str | None = None,
        remedy: str = '',
    ) -> None:
        """plan: the engine file, its manifest beside it. onnx: what it must come from. workspace:
        to share with other engines of the device, which then never run at the same time; of its
        own by default, and where the given one is in use and too small.

        backend: 'tensorrt' | 'tensorrt_lean' | 'tensorrt_rtx', by default the one that built it.
        Raises ValueError when this TensorRT is missing, and with the remedy (by default the
        command that builds the engine again) when it does not fit this machine or the ONNX file,
        or is damaged.
        """
        self.name = plan.name
        self.device = normalized(device)
        self.api: TensorRtApi = load_api(backend or read_manifest(plan, remedy).backend)
        platform = platform_of(self.api, self.device)
        require(platform.gpu is not None, f'{plan} needs a GPU, and torch sees none')
        self.manifest = check_engine(plan, platform, onnx, remedy)
        errors = ErrorList()
        with torch.cuda.device(self.device), self.api.relay.to(errors):
            self._runtime, self._engine = self.api.deserialize(
                plan.read_bytes(), host_code=self.manifest.version_compatible
            )
        command = remedy or rebuild_command(plan, self.manifest, self.api.backend, onnx)
        require(
            self._engine is not None,
            f'{plan} is refused by {platform.backend} {platform.version}: {errors}; build it'
            f' again: {command}',
        )
        self.inputs, self.outputs = self.api.specs(self._engine)
        self.workspace_bytes = self.api.workspace_bytes(self._engine)
        if workspace is None or not workspace.reserve(self.workspace_bytes):
            workspace = Workspace(self.device)
            workspace.reserve(self.workspace_bytes)
        self.workspace = workspace

    def __str__(self) -> str:
        return self.name

    def execution(self, inputs: Mapping[str, torch.Tensor]) -> TensorRtExecution:
        """Set up a context for exactly these tensors: their shapes and their memory.

        Raises ValueError for inputs the engine cannot take, naming them; RuntimeError with
        TensorRT's words when it refuses (out of memory, mostly).
        """
        check_inputs(self.inputs, inputs, self.device)
        batch = len(next(iter(inputs.values())))
        profile = self.manifest.profile_of(batch)
        if profile is None:
            last = self.manifest.batches[-1]
            sizes = f'1..{last}' if self.manifest.any_batch else f'{last} alone'
            raise ValueError(
                f'{self.name} was built for batches of {sizes}, got {batch}: split or pad it, or'
                ' build with --batches that reach it'
            )
        return TensorRtExecution(self, inputs, profile)

    def new_context(self) -> Any:
        """Create an execution context without workspace; None when TensorRT cannot."""
        return self.api.context(self._engine)
