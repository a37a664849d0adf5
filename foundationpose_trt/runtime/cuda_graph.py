"""One network at one shape on a CUDA device: its buffers and, if it can be captured, its graph."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch

from ..cuda_streams import handle_of_current_stream
from ..datatypes import require
from .capture import CAPTURING, captured
from .engine import Engine

logger = logging.getLogger(__name__)


def is_lasting(stream: torch.cuda.Stream) -> bool:
    """Whether a stream is torch's own, hence never destroyed.

    Torch numbers its default stream 0 and those of its pool with odd numbers; a stream of
    somebody else has the even number that is its address (c10/cuda/CUDAStream.cpp).
    """
    return stream.stream_id == 0 or stream.stream_id % 2 == 1


# Side streams of orders that are gone, for the next ones: cuBLAS keeps the workspace that it has
# made for a stream for good.
_spare_streams: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    try:
        return _spare_streams[device].pop()
    except IndexError:
        return torch.cuda.Stream(device, priority=-1)


class LaunchOrder:
    """Keeps all launches on one workspace apart, on the host and on the device.

    An engine's executions share one, and engines may: a lock orders threads, an event orders
    streams. Launches that stay on one stream wait for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Reentrant: a session that the garbage collector drops inside it waits here as well.
        self.lock = threading.RLock()
        # One for all captures: each new one would take another of torch's 32
        # shared streams, with cuBLAS workspaces of its own, and in the end some thread's.
        self.side = _side_stream(device)
        weakref.finalize(self, _spare_streams[device].append, self.side).atexit = False
        self._pool = torch.cuda.graph_pool_handle()  # scratch memory that all its graphs share
        self._graphs = 0
        self._event = torch.cuda.Event()
        self._stream: torch.cuda.Stream | None = None
        self._handle = -1  # of that stream

    def before(self) -> None:
        """Let the current stream wait for the last launch, if that was on another one.

        A launch on the same stream, the usual case, costs no call of CUDA.
        """
        if handle_of_current_stream(self.device) == self._handle:
            return
        stream = torch.cuda.current_stream(self.device)
        if self._stream is not None:
            self._mark()
            stream.wait_event(self._event)
        self._stream = stream
        # another stream may come to lie where a foreign one was
        self._handle = stream.cuda_stream if is_lasting(stream) else -1

    def after(self) -> None:
        """Note a launch made since before()."""
        if self._handle == -1 and self._stream is not None:
            self._event.record(self._stream)  # later it may be gone

    def wait(self) -> None:
        """Return when the last launch has finished on the device."""
        with self.lock:
            if self._stream is not None:
                self._mark()
                self._event.synchronize()

    def _mark(self) -> None:
        """Put the event behind the last launch, or behind what its stream got after it."""
        if self._handle != -1 and self._stream is not None:
            with CAPTURING:  # torch's pool may have given that stream to a capture as well
                self._event.record(self._stream)

    def capture(self, enqueue: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """Capture what enqueue launches; the caller holds the lock. Raises as capture.captured.

        A pool whose last graph is gone, or whose capture failed, is never used again: torch
        forbids the one and remembers the other as still recording.
        """
        try:
            graph = captured(enqueue, self.side, self._pool)
        except BaseException:
            self._pool = torch.cuda.graph_pool_handle()
            raise
        self._graphs += 1
        return graph

    def release(self, graph: torch.cuda.CUDAGraph) -> None:
        """Destroy a graph made by capture()."""
        with self.lock:
            with CAPTURING:
                graph.reset()
            self._graphs -= 1
            if self._graphs == 0:
                self._pool = torch.cuda.graph_pool_handle()


_orders: weakref.WeakKeyDictionary[object, LaunchOrder] = weakref.WeakKeyDictionary()
_orders_lock = threading.Lock()


def order_of(engine: Engine) -> LaunchOrder:
    """Return the one LaunchOrder of an engine, or of all engines that share its workspace."""
    shared = getattr(engine, 'workspace', engine)  # back ends of torch's allocator have none
    with _orders_lock:
        if shared not in _orders:
            _orders[shared] = LaunchOrder(engine.device)
        return _orders[shared]


class GraphEntry:
    """Static input buffers, an execution bound to them and the graph captured from it.

    Launches go to the caller's current stream: what it did before is done when the network
    reads, and what it does next finds the outputs. Without capture (not wanted, not possible or
    failed) a launch enqueues the execution itself.
    """

    def __init__(
        self, engine: Engine, inputs: Mapping[str, torch.Tensor], owned: bool, capture: bool
    ) -> None:
        """inputs: the buffers, kept by reference; with capture the network runs on them.

        owned: whether no other entry uses the buffers, so that their memory counts here.
        """
        self.inputs = dict(inputs)
        self.captured = False
        self._order = order_of(engine)
        self._light, self._warm_up_runs = engine.light, engine.warm_up_runs
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: dict[str, torch.Tensor] = {}
        with self._order.lock:
            self._execution = engine.execution(self.inputs)
            reserved = torch.cuda.memory_reserved(self._order.device)
            if capture:
                self._try_capture(engine.name)
            grown = torch.cuda.memory_reserved(self._order.device) - reserved
        held = self.inputs.values() if owned else ()
        # what torch had to reserve while capturing is the graph's, or shared by the first of them
        self.nbytes = self._execution.nbytes + max(0, grown) + sum(t.nbytes for t in held)

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
        """Run, for what only first runs do, then capture.

        Outputs lie outside the graphs' pool: there, another graph's scratch memory could take
        their place between two launches.
        """
        side, caller = self._order.side, torch.cuda.current_stream(self._order.device)
        side.wait_stream(caller)
        with torch.cuda.stream(side), torch.inference_mode():
            self._order.before()
            for _ in range(self._warm_up_runs):
                first = self._execution.enqueue()
            side.synchronize()
            owned = self._execution.nbytes > 0  # as TensorRT's are, at fixed addresses
            outputs = first if owned else {k: torch.empty_like(v) for k, v in first.items()}

        def enqueue() -> None:
            found = self._execution.enqueue()
            if not owned:
                for key, output in outputs.items():
                    output.copy_(found[key])

        with torch.inference_mode():
            graph = self._order.capture(enqueue)
        caller.wait_stream(side)
        return graph, dict(outputs)

    def launch(
        self, inputs: Mapping[str, torch.Tensor], clone: bool = False
    ) -> dict[str, torch.Tensor]:
        """Launch on the current stream; returns the outputs (views, or copies with clone).

        inputs that are not the buffers themselves are copied into them. No host sync.
        """
        order = self._order
        with order.lock:
            order.before()
            for name, buffer in self.inputs.items():
                given = inputs[name]
                if given is not buffer and given.data_ptr() != buffer.data_ptr():
                    with torch.inference_mode():
                        buffer.copy_(given, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
                outputs = self._outputs
            else:
                outputs = self._enqueue()
            if clone:
                with torch.inference_mode():
                    outputs = {name: tensor.clone() for name, tensor in outputs.items()}
            order.after()
        return dict(outputs)

    def _enqueue(self) -> dict[str, torch.Tensor]:
        """Launch without a graph; on the default stream TensorRT would wait for the device."""
        stream = torch.cuda.current_stream(self._order.device)
        # TorchExecution enters inference mode itself, TensorRT makes no tensors
        if self._light or stream != torch.cuda.default_stream(self._order.device):
            return self._execution.enqueue()
        side = self._order.side
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            outputs = self._execution.enqueue()
        stream.wait_stream(side)
        for output in outputs.values():
            output.record_stream(stream)
        return outputs

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
            self._order.release(self._graph)
        self._graph = None
        self._outputs, self.inputs = {}, {}
        del self._execution
