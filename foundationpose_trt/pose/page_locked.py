"""Images in page-locked memory: a GPU reads them where they are, the host copies nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

WORD = 8  # bytes that a thread of a GPU reads


def page_locked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array of a numpy dtype, not initialised, in page-locked memory.

    For what becomes the images of a Frame: tracking on CUDA then reads them in place, if they are
    FETCHED_PX (8) times so many pixels wide and no view of them is given instead; else the host
    packs them as any other. Torch keeps the memory of arrays that are gone for the next ones, so
    that only the first few take long. It is the host's: anything may read and write it. Raises
    RuntimeError without CUDA.
    """
    return torch.empty(shape, dtype=_torch_dtype(np.dtype(dtype)), pin_memory=True).numpy()


@lru_cache(maxsize=16)
def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def device_address(array: np.ndarray) -> int:
    """Return where a GPU finds an array that page_locked_empty() made, a multiple of WORD.

    0 for all else, also for views of one: what is there must be the whole of a torch tensor, and
    CUDA is asked whether it is page-locked. With unified addressing, as all 64-bit systems have,
    the host's address is the GPU's (CUDA C++ Programming Guide, "Mapped Memory").
    """
    owner = array.base
    if type(owner) is not torch.Tensor or not array.flags.c_contiguous:
        return 0
    address = owner.data_ptr()
    whole = owner.nbytes == array.nbytes and address % WORD == 0
    return address if whole and owner.is_pinned() else 0
