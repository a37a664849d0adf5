"""Contexts of rclpy that are gone when they have ended.

Two participants in one process can lock each other up while they discover one another (Fast DDS
3.2 hands discovery over directly: seen in PDPListener and WriterProxy, 2026-11-25). Nodes run in
processes with one context each; only here many come after one another, so none may stay behind.
"""

from __future__ import annotations

import gc

import rclpy


def begin_context() -> rclpy.Context:
    """Return a context that is initialised, alone in this process."""
    gc.unfreeze()  # a node that was configured freezes all there is
    gc.collect()  # of earlier nodes, which refer to each other in circles
    context = rclpy.Context()
    rclpy.init(context=context)
    return context


def end_context(context: rclpy.Context) -> None:
    """Shut down, and let the participant go with the last reference."""
    context.try_shutdown()
    context.destroy()
