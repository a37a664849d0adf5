"""A network ready to run: checked inputs, CUDA graphs behind a cache, whatever the back end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal

import torch

from ..datatypes import require
from .cuda_graph import GraphEntry
from .engine import Engine
from .graph_cache import (
    DEFAULT_CAPACITY,
    CudaGraphCache,
    establish_cuda_graph_cache,
)
from .specs import InputCheck, check_inputs, graph_key


class _Caches:
    """The entries of one session: with graphs, and costly executions without."""

    def __init__(self) -> None:
        self.plain: CudaGraphCache[GraphEntry] = CudaGraphCache(DEFAULT_CAPACITY)
        self.graphs: CudaGraphCache[GraphEntry] | None = None

    def retire(self) -> None:
        """Give back all entries; the session is not used again."""
        for cache in (self.plain, self.graphs):
            if cache is not None:
                cache.retire()


class Session:
    """Runs one engine; shared by threads.

    Outputs of an engine on CUDA are views into buffers of their shape's entry: they hold until
    the next run() at that shape, from whatever thread. Use them on the stream they were made on,
    or take clone=True, which two threads on one shape need; write into the buffers of input() on
    the stream of the last run. They are inference tensors. A hit makes no host sync and, where
    the inputs are the buffers of input(), no copy.

    close(), or leaving a with block, or dropping the session waits for the device and gives the
    memory back; what a caller holds of the outputs stays valid.
    """

    def __init__(
        self,
        engine: Engine,
        cuda_graph_cache: CudaGraphCache | None | Literal['environment'] = 'environment',
        buffers: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """cuda_graph_cache: None runs without graphs; it must serve no other engine. By default
        the environment decides (graph_cache.ENABLING_VARIABLE).

        buffers: one tensor per input, as large as the largest batch, that all shapes use from
        the front as their static input (for a producer that writes them in place). Without them
        every shape has its own. Raises ValueError for buffers the engine could not read.
        """
        self.engine = engine
        self._buffers = dict(buffers or {})
        if self._buffers:
            check_inputs(engine.inputs, self._buffers, engine.device)
        self._on_cuda = engine.device.type == 'cuda'
        self._check = InputCheck(engine.inputs, engine.device)
        self._caches = _Caches()
        self._finalizer = weakref.finalize(self, self._caches.retire)
        self._finalizer.atexit = False  # the process gives back all it has
        if cuda_graph_cache == 'environment':
            cuda_graph_cache = establish_cuda_graph_cache()
        self.set_cuda_graph_cache(cuda_graph_cache)

    @property
    def cuda_graph_cache(self) -> CudaGraphCache[GraphEntry] | None:
        """The cache in use, None when graphs are off (always, on a CPU)."""
        return self._caches.graphs

    def close(self) -> None:
        """Wait for the last launches and give back graphs, executions and buffers."""
        self._finalizer()
        self._caches = _Caches()
        self._finalizer = weakref.finalize(self, self._caches.retire)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def set_cuda_graph_cache(self, cache: CudaGraphCache | None) -> None:
        """Switch graphs on, off or to another cache; the old one's entries are purged.

        May be called while other threads run: their calls end with the cache they began with.
        """
        old = self._caches.graphs
        if cache is not None and cache is old:
            return
        if cache is not None:
            cache.bind(self.engine)
        self._caches.graphs = cache if self._on_cuda and self.engine.graphable else None
        if old is not None:
            old.retire()

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        disable_cuda_graphs: bool = False,
        clone: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Run the network on the current stream without waiting; outputs by name.

        Raises ValueError naming an input of wrong name, shape, dtype, device or layout.
        """
        key = self._check(inputs)
        cache = None if disable_cuda_graphs else self._caches.graphs
        if cache is None and (self.engine.light or not self._on_cuda):
            return self._run_plainly(inputs, clone)
        capture, cache = cache is not None, cache or self._caches.plain
        # not lease(), which costs microseconds more: launches of an engine exclude one another
        slot = cache.acquire(key, lambda: self._entry(inputs, capture))
        try:
            return slot.entry.launch(inputs, clone)
        finally:
            cache.release(slot)

    @torch.inference_mode()
    def _run_plainly(
        self, inputs: Mapping[str, torch.Tensor], clone: bool
    ) -> dict[str, torch.Tensor]:
        outputs = self.engine.execution(inputs).enqueue()
        return {name: out.clone() for name, out in outputs.items()} if clone else outputs

    def input(self, name: str, batch: int) -> torch.Tensor:
        """Return the static buffer of an input at a batch, for a producer to write in place.

        Given to run() in all inputs, nothing is copied. On a CPU or without graphs there is no
        such buffer: a new tensor comes instead (the shared one, if the session has buffers).
        Raises ValueError for an unknown name or a batch larger than the shared buffer.
        """
        spec = next((spec for spec in self.engine.inputs if spec.name == name), None)
        known = [spec.name for spec in self.engine.inputs]
        require(spec is not None, f'{self.engine.name} has no input "{name}", only {known}')
        assert spec is not None
        if name in self._buffers:
            whole = self._buffers[name]
            require(batch <= len(whole), f'batch is {batch}, the buffer {name} holds {len(whole)}')
            return whole[:batch]
        graphs = self._caches.graphs
        if graphs is None:
            return spec.empty(batch, self.engine.device)
        wanted = self._empty(batch)
        with graphs.lease(graph_key(wanted), lambda: self._entry(wanted, True)) as entry:
            return entry.inputs[name]

    def bare_replay(self, inputs: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Return the replay of the graph of these inputs' shape and nothing else, to measure by.

        Raises ValueError when there is no such graph yet.
        """
        graphs, key = self._caches.graphs, graph_key(self._ordered(inputs))
        require(
            graphs is not None and key in graphs,
            f'{self.engine.name} has no CUDA graph for {key}: run it once with a cache',
        )
        assert graphs is not None
        with graphs.lease(key, lambda: self._entry(inputs, True)) as entry:
            return entry.bare_replay()

    def _ordered(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {spec.name: inputs[spec.name] for spec in self.engine.inputs}

    def _empty(self, batch: int) -> dict[str, torch.Tensor]:
        return {spec.name: spec.empty(batch, self.engine.device) for spec in self.engine.inputs}

    def _entry(self, inputs: Mapping[str, torch.Tensor], capture: bool) -> GraphEntry:
        """Make the entry of these inputs' shape, with buffers of its own or the shared ones."""
        # no inference tensors: a producer outside inference mode could not write into those
        with torch.inference_mode(False):
            buffers = {
                name: self._buffer(name, given) for name, given in self._ordered(inputs).items()
            }
        with torch.inference_mode():
            return GraphEntry(self.engine, buffers, not self._buffers, capture)

    def _buffer(self, name: str, given: torch.Tensor) -> torch.Tensor:
        shared = self._buffers.get(name)
        if shared is None or len(given) > len(shared):
            return given.detach().clone()
        return shared[: len(given)]
