"""One network at one shape on a CUDA device: its buffers and, if it can be captured, its graph."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import torch

from ..datatypes import require
from .engine import Engine

logger = logging.getLogger(__name__)


class LaunchOrder:
    """Keeps all launches of one engine apart, on the host and on the device.

    Its executions share a workspace, so no two may overlap: a lock orders threads, an event
    orders streams. Launches that stay on one stream wait for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lock = threading.Lock()
        self.pool = torch.cuda.graph_pool_handle()  # memory that all graphs of the engine share
        self._event = torch.cuda.Event()
        self._stream: torch.cuda.Stream | None = None

    def before(self, stream: torch.cuda.Stream) -> None:
        """Let the stream wait for the last launch, if that was on another stream."""
        if self._stream is not None and self._stream != stream:
            stream.wait_event(self._event)

    def after(self, stream: torch.cuda.Stream) -> None:
        """Remember the launch just made on the stream."""
        self._event.record(stream)
        self._stream = stream

    def wait(self) -> None:
        """Return when the last launch has finished on the device."""
        with self.lock:
            if self._stream is not None:
                self._event.synchronize()


class GraphEntry:
    """Static input buffers, an execution bound to them and the graph captured from it.

    Launches go to the caller's current stream: what it did before is done when the network
    reads, and what it does next finds the outputs. Without capture (not wanted, not possible or
    failed) a launch enqueues the execution itself.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Mapping[str, torch.Tensor],
        order: LaunchOrder,
        capture: bool,
    ) -> None:
        """inputs: the buffers, kept by reference; with capture the network runs once on them."""
        self.inputs = dict(inputs)
        self.captured = False
        self._order = order
        self._execution = engine.execution(self.inputs)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: dict[str, torch.Tensor] = {}
        if capture:
            with order.lock:
                self._try_capture(engine.name)
        # an execution that owns its outputs has counted them
        outputs = {} if self._execution.nbytes else self._outputs
        tensors = [*self.inputs.values(), *outputs.values()]
        self.nbytes = self._execution.nbytes + sum(tensor.nbytes for tensor in tensors)

    def _try_capture(self, name: str) -> None:
        try:
            self._graph, self._outputs = self._capture()
            self.captured = True
        except RuntimeError as error:  # torch reports every CUDA error as one
            shapes = {key: tuple(tensor.shape) for key, tensor in self.inputs.items()}
            logger.warning(
                '%s cannot be captured in a CUDA graph at %s (%s): it runs without one there',
                name, shapes, str(error).splitlines()[0],
            )  # fmt: skip

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor]]:
        """Run once, for what only a first run does, then capture on a stream of its own.

        Not torch.cuda.graph(): that waits for the whole device and empties the allocator's
        cache, which would stall every other thread. Thread-local mode leaves their calls alone.
        """
        device = self._order.device
        caller, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        self._order.before(side)
        side.wait_stream(caller)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(side):
            self._execution.enqueue()
            side.synchronize()
            graph.capture_begin(pool=self._order.pool, capture_error_mode='thread_local')
            try:
                outputs = self._execution.enqueue()
            finally:
                graph.capture_end()
        caller.wait_stream(side)
        return graph, outputs

    def launch(
        self, inputs: Mapping[str, torch.Tensor], clone: bool = False
    ) -> dict[str, torch.Tensor]:
        """Launch on the current stream; returns the outputs (views, or copies with clone).

        inputs that are not the buffers themselves are copied into them. No host sync.
        """
        stream = torch.cuda.current_stream(self._order.device)
        with self._order.lock:
            self._order.before(stream)
            for name, buffer in self.inputs.items():
                given = inputs[name]
                if given.data_ptr() != buffer.data_ptr():
                    buffer.copy_(given, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
                outputs = self._outputs
            else:
                outputs = self._execution.enqueue()
            if clone:
                outputs = {name: tensor.clone() for name, tensor in outputs.items()}
            self._order.after(stream)
        return dict(outputs)

    def bare_replay(self) -> Callable[[], None]:
        """Return the graph's own replay, unordered; raises ValueError where there is none."""
        require(self._graph is not None, 'this shape runs without a CUDA graph')
        assert self._graph is not None
        return self._graph.replay

    def wait(self) -> None:
        """Return when the engine's last launch, hence this entry's, has finished."""
        self._order.wait()

    def close(self) -> None:
        """Give back graph, buffers and execution; outputs that a caller holds stay valid."""
        if self._graph is not None:
            self._graph.reset()
        self._graph = None
        self._outputs, self.inputs = {}, {}
        del self._execution
