"""How exact torch is in float32 while a block runs; as before for what follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from .rungs import Rung


@contextmanager
def rounding(products: str, **cudnn: bool) -> Iterator[None]:
    """Set the precision of float32 products (torch.set_float32_matmul_precision) and flags of
    torch.backends.cudnn."""
    before = torch.get_float32_matmul_precision()
    flags = {name: getattr(torch.backends.cudnn, name) for name in cudnn}
    _set(products, cudnn)
    try:
        yield
    finally:
        _set(before, flags)


def _set(products: str, cudnn: dict[str, bool]) -> None:
    torch.set_float32_matmul_precision(products)
    for name, value in cudnn.items():
        setattr(torch.backends.cudnn, name, value)


def without_tf32() -> AbstractContextManager[None]:
    """Let fp32 mean fp32: torch lets convolutions round to TF32, rfdetr's import all products."""
    return rounding('highest', allow_tf32=False)


def as_told(rung: Rung) -> AbstractContextManager[None]:
    """Have fp32 mean fp32 where that is what a row says; TensorRT is built without TF32."""
    return without_tf32() if rung.precision == 'fp32' else nullcontext()
