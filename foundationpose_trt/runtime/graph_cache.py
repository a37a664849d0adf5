"""A cache of captured CUDA graphs: bounded, least recently used out first, safe under threads.

Names and order follow roboflow/inference's TRTCudaGraphCache (shared research, roboflow.md A1);
what differs is what breaks there (A5): entries are leased, so that a purge never pulls one from
under a running call; two threads that miss the same key make it once; one cache serves one engine.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch

from ..datatypes import require
from .capture import CAPTURING
from .specs import GraphKey, normalized

ENABLING_VARIABLE = (
    'ENABLE_AUTO_CUDA_GRAPHS_FOR_TRT_BACKEND'  # the reference's name, roboflow.md A1
)
DEFAULT_CAPACITY = 8  # the reference's, in each of its models


class Entry(Protocol):
    """What a cache holds: device memory that a launch may still be using.

    nbytes: device memory. captured: whether it holds a graph (or was refused one).
    """

    nbytes: int
    captured: bool

    def wait(self) -> None:
        """Return when its last launch has finished on the device."""
        ...

    def close(self) -> None:
        """Give back its memory; it is never used again."""
        ...


E = TypeVar('E', bound=Entry)


@dataclass
class _Slot(Generic[E]):
    entry: E
    users: int = 0
    doomed: bool = False  # out of the cache while in use: its last user closes it
    flushing: bool = False  # and flushes, for a removal that could not
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class CacheStats:
    """Counters since the cache was made, and what it holds now (oldest first, in bytes)."""

    capacity: int
    hits: int
    misses: int
    captures: int
    failed_captures: int
    evictions: int
    entry_bytes: dict[GraphKey, int]

    @property
    def nbytes(self) -> int:
        """Device memory of all entries."""
        return sum(self.entry_bytes.values())


def _normalized_key(key: GraphKey) -> GraphKey:
    shape, dtype, device = key
    return tuple(shape), dtype, normalized(device)


def flush_allocator() -> None:
    """Give memory that nothing uses back to the GPU; for the end of things, it is slow."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        with CAPTURING:
            torch.cuda.empty_cache()


class Lease(Generic[E]):
    """An entry held alone while the with block lasts."""

    def __init__(self, cache: CudaGraphCache[E], key: GraphKey, make: Callable[[], E]) -> None:
        self._cache, self._key, self._make = cache, key, make

    def __enter__(self) -> E:
        self._slot = self._cache.acquire(self._key, self._make)
        try:
            self._slot.lock.acquire()
        except BaseException:  # Ctrl-C while another thread holds it
            self._cache.release(self._slot)
            raise
        return self._slot.entry

    def __exit__(self, *reason: object) -> None:
        self._slot.lock.release()
        self._cache.release(self._slot)


class CudaGraphCache(Generic[E]):
    """Up to `capacity` entries of one engine, by (input shape, dtype, device).

    Every method may be called from any thread at any time. flush is called once at the end of
    every purge and removal (not on eviction): by default torch's empty_cache.
    """

    def __init__(self, capacity: int, flush: Callable[[], None] = flush_allocator) -> None:
        self._check(capacity)
        self._capacity = capacity
        self._flush = flush
        self._slots: OrderedDict[GraphKey, _Slot[E]] = OrderedDict()
        self._building: set[GraphKey] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._owner: object | None = None
        self._sessions = 0  # bound to it and not retired
        self._retired = False
        self._hits = self._misses = self._captures = self._failures = self._evictions = 0

    @staticmethod
    def _check(capacity: int) -> None:
        require(
            isinstance(capacity, int) and capacity >= 1,
            f'CUDA graph cache capacity is {capacity}, must be a whole number of at least 1; to'
            ' run without graphs, use no cache',
        )

    @property
    def capacity(self) -> int:
        """Largest number of entries."""
        return self._capacity

    def resize(self, capacity: int) -> None:
        """Change the capacity; evicts what no longer fits."""
        self._check(capacity)
        with self._lock:
            self._capacity = capacity
            dropped = self._overflow()
        self._drop(dropped)

    def bind(self, engine: object) -> None:
        """Tie the cache to its engine; raises ValueError when it serves another one.

        Its keys hold no engine: shared, it would replay the other network's graph. One that was
        retired serves again.
        """
        with self._lock:
            require(
                self._owner is None or self._owner is engine,
                f'this CUDA graph cache serves {self._owner}, not {engine}: make one cache for'
                ' each engine',
            )
            self._owner = engine
            self._sessions += 1
            self._retired = False

    def get_current_size(self) -> int:
        """Number of entries."""
        with self._lock:
            return len(self._slots)

    def list_keys(self) -> list[GraphKey]:
        """Keys, least recently used first."""
        with self._lock:
            return list(self._slots)

    def __contains__(self, key: GraphKey) -> bool:
        with self._lock:
            return _normalized_key(key) in self._slots

    def safe_remove(self, key: GraphKey) -> None:
        """Remove one entry; nothing happens when there is none."""
        with self._lock:
            slot = self._slots.pop(_normalized_key(key), None)
        if slot is not None:
            self._drop([slot], flushing=True)
            self._flush()

    def purge(self, n_oldest: int | None = None) -> None:
        """Remove the n least recently used entries, or all; an entry in use goes with that use."""
        with self._lock:
            count = len(self._slots) if n_oldest is None else max(0, n_oldest)
            dropped = [self._pop_oldest() for _ in range(min(count, len(self._slots)))]
        self._drop(dropped, flushing=True)
        self._flush()

    def retire(self) -> None:
        """Purge, and keep nothing that a call now running may still add.

        As often as it was bound: sessions of one engine may share it, the last one clears it.
        """
        with self._lock:
            self._sessions = max(0, self._sessions - 1)
            if self._sessions:
                return
            self._retired = True
            empty = not self._slots and not self._building
        if not empty:
            self.purge()

    def stats(self) -> CacheStats:
        """Counters and memory."""
        with self._lock:
            return CacheStats(
                self._capacity, self._hits, self._misses, self._captures, self._failures,
                self._evictions, {key: slot.entry.nbytes for key, slot in self._slots.items()},
            )  # fmt: skip

    def lease(self, key: GraphKey, make: Callable[[], E]) -> Lease[E]:
        """Hold the entry of a key, alone, in a with block: made by make() on a miss, once.

        Until the block ends nothing releases the entry. What make raises passes through, and the
        next caller tries again.
        """
        return Lease(self, _normalized_key(key), make)

    def acquire(self, key: GraphKey, make: Callable[[], E]) -> _Slot[E]:
        """Take part in an entry, which others may use meanwhile; release() must follow.

        key: as specs.graph_key gives it, its device with an index.
        """
        with self._lock:
            while key in self._building:
                self._changed.wait()
            slot = self._slots.get(key)
            if slot is not None:
                self._slots.move_to_end(key)
                slot.users += 1
                self._hits += 1
                return slot
            self._building.add(key)
            self._misses += 1
        return self._add(key, make)

    def _add(self, key: GraphKey, make: Callable[[], E]) -> _Slot[E]:
        dropped: list[_Slot[E]] = []
        try:
            slot = _Slot(make(), users=1)
            with self._lock:
                self._slots[key] = slot
                self._captures += slot.entry.captured
                self._failures += not slot.entry.captured
                dropped = [self._slots.pop(key)] if self._retired else self._overflow()
        finally:
            with self._lock:
                self._building.discard(key)
                self._changed.notify_all()
        self._drop(dropped, flushing=self._retired)
        return slot

    def _overflow(self) -> list[_Slot[E]]:
        """Take out what exceeds the capacity; the caller holds the lock."""
        count = max(0, len(self._slots) - self._capacity)
        self._evictions += count
        return [self._pop_oldest() for _ in range(count)]

    def _pop_oldest(self) -> _Slot[E]:
        return self._slots.popitem(last=False)[1]

    def release(self, slot: _Slot[E]) -> None:
        """End what acquire() began."""
        with self._lock:
            slot.users -= 1
            closing = slot.doomed and slot.users == 0
        if closing:
            self._close(slot)
            if slot.flushing:
                self._flush()

    def _drop(self, slots: list[_Slot[E]], flushing: bool = False) -> None:
        """Close slots that are out of the cache, now or when their last user leaves."""
        for slot in slots:
            with self._lock:
                slot.doomed, slot.flushing = True, flushing
                closing = slot.users == 0
            if closing:
                self._close(slot)

    @staticmethod
    def _close(slot: _Slot[E]) -> None:
        slot.entry.wait()
        slot.entry.close()


def graphs_enabled_by_environment() -> bool:
    """Whether ENABLE_AUTO_CUDA_GRAPHS_FOR_TRT_BACKEND asks for graphs; unset means no.

    Raises ValueError for a word that is neither yes nor no.
    """
    word = os.environ.get(ENABLING_VARIABLE, '').strip().lower()
    require(
        word in ('', '0', '1', 'true', 'false', 'yes', 'no', 'on', 'off'),
        f'{ENABLING_VARIABLE} is "{word}", must be true or false',
    )
    return word in ('1', 'true', 'yes', 'on')


def capacity_by_environment() -> int:
    """Return the default capacity if the environment asks for graphs, else 0."""
    return DEFAULT_CAPACITY if graphs_enabled_by_environment() else 0


def establish_cuda_graph_cache(
    default_capacity: int = DEFAULT_CAPACITY, cache: CudaGraphCache | None = None
) -> CudaGraphCache | None:
    """Return the caller's cache, else a new one if the environment asks for graphs, else None."""
    if cache is not None:
        return cache
    return CudaGraphCache(default_capacity) if graphs_enabled_by_environment() else None
