"""What the parameters of both nodes say about devices and back ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from foundationpose_trt.runtime.choice import BackendChoice


class BackendParameters(Protocol):
    """The parameters that choose a back end."""

    @property
    def backend(self) -> str:
        """Its name, or auto."""

    @property
    def engines_folder(self) -> str:
        """Where engines are; '' for the user's cache."""

    @property
    def build_engines(self) -> bool:
        """Whether missing ones are built."""


def choose_device(device: str) -> str:
    """Return 'cpu' or 'cuda'; raises ValueError when CUDA is asked for and not there."""
    if device == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            f'device is cuda, but torch {torch.__version__} finds no CUDA GPU: install a CUDA'
            ' build of torch and a driver, or set device to auto or cpu'
        )
    return device


def backend_choice(parameters: BackendParameters) -> BackendChoice:
    """Map the parameters to the choice of the back end."""
    folder = Path(parameters.engines_folder).expanduser() if parameters.engines_folder else None
    return BackendChoice(parameters.backend, folder, parameters.build_engines)


@contextmanager
def naming(parameter: str) -> Iterator[None]:
    """Name the parameter in the errors of a block, all as ValueError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f'parameter {parameter}: {error}') from error
