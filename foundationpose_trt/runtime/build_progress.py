"""TensorRT's phases within phases as one fraction that never falls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

# What a caller's report may raise to end a build; it must not reach TensorRT's C++ as exception.
REASONS = (KeyboardInterrupt, ValueError, RuntimeError, OSError)


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildMonitor:
    """Told by TensorRT, from any thread, how far a build is; tells report(fraction, phase).

    What report raises ends the build: raise_failure() raises it again afterwards.
    """

    def __init__(self, report: Callable[[float, str], None] | None) -> None:
        self._report = report or (lambda fraction, phase: None)
        self._open: dict[str, _Phase] = {}
        self._fraction = 0.0
        self._failure: BaseException | None = None
        self._lock = threading.RLock()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Take note of a phase of `steps` steps, within its parent's current step."""
        with self._lock:
            self._open[name] = _Phase(parent, max(1, steps))
            self._tell(name)

    def step_complete(self, name: str, step: int) -> bool:
        """Take note of a step, counted from 0; returns whether the build shall go on."""
        with self._lock:
            phase = self._open.get(name)
            if phase is not None:
                phase.done = min(phase.steps, max(phase.done, step + 1))
            self._tell(name)
            return self._failure is None

    def phase_finish(self, name: str) -> None:
        """Forget a phase; its parent's step that held it may still go on."""
        with self._lock:
            self._open.pop(name, None)

    def finish(self) -> None:
        """Report the end of the build."""
        with self._lock:
            self._fraction = 1.0
            self._tell('built')
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what report raised, if it did."""
        if self._failure is not None:
            raise self._failure

    def _tell(self, phase: str) -> None:
        if self._failure is not None:
            return
        inner = max(
            (self._part(n) for n, p in self._open.items() if p.parent is None), default=0.0
        )
        self._fraction = min(1.0, max(self._fraction, inner))
        try:
            self._report(self._fraction, phase)
        except REASONS as reason:
            self._failure = reason

    def _part(self, name: str) -> float:
        phase = self._open[name]
        children = (self._part(n) for n, p in self._open.items() if p.parent == name)
        within = 0.0 if phase.done == phase.steps else max(children, default=0.0)
        return (phase.done + within) / phase.steps
