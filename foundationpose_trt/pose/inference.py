"""The two networks behind sessions: the estimator cannot tell which back end runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..runtime.graph_cache import CacheStats, CudaGraphCache
from ..runtime.session import Session
from ..runtime.specs import BATCH, TensorSpec
from ..runtime.torch_engine import TorchEngine
from .networks import scaled
from .weights import PoseNetworks

FEATURES = 512  # of a crop at width 1, foundationpose.md §1
RENDERED, OBSERVED = 'inputA', 'inputB'  # foundationpose.md §6.4: rendered first


class PoseInference:
    """Refiner, feature extractor and ranking of one network set, each a session.

    Graphs are captured per number of crops. Outputs are views that the next call with the same
    number overwrites (runtime.session.Session); no host sync.
    """

    def __init__(
        self,
        networks: PoseNetworks,
        crops: Mapping[str, torch.Tensor],
        cuda_graph_cache_capacity: int = 0,
    ) -> None:
        """crops: the buffers inputA and inputB, (capacity, 6, 160, 160), that all calls write.

        cuda_graph_cache_capacity: graphs kept per network; 0 runs without graphs.
        """
        self._networks = networks
        self._crops = dict(crops)
        channels = scaled(FEATURES, networks.scorer.width)
        self.refiner = self._session('refiner', networks.refiner, {'trans': 3, 'rot': 3})
        self.extractor = self._session('scorer', networks.scorer.extract, {'features': channels})
        self.set_cuda_graph_cache_capacity(cuda_graph_cache_capacity)

    def _session(
        self, name: str, function: Callable[..., Any], outputs: Mapping[str, int]
    ) -> Session:
        """Wrap one function of both crops; outputs: numbers per crop, by name."""
        buffer = self._crops[RENDERED]
        layout = (
            torch.contiguous_format
            if buffer.is_contiguous()
            else torch.channels_last  # as ViewWriter lays crops out on CUDA
        )
        shape = (BATCH, *buffer.shape[1:])
        inputs = [TensorSpec(n, shape, buffer.dtype, layout) for n in (RENDERED, OBSERVED)]
        engine = TorchEngine(
            f'{name} {self._networks.name}',
            function,
            inputs,
            [TensorSpec(n, (BATCH, size), buffer.dtype) for n, size in outputs.items()],
            buffer.device,
        )
        return Session(engine, None, self._crops)

    def set_cuda_graph_cache_capacity(self, capacity: int) -> None:
        """Keep this many graphs per network from now on, or none (0); safe between calls."""
        for session in (self.refiner, self.extractor):
            cache = session.cuda_graph_cache
            if capacity == 0:
                session.set_cuda_graph_cache(None)
            elif cache is not None:
                cache.resize(capacity)
            else:
                session.set_cuda_graph_cache(CudaGraphCache(capacity))

    def refine(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return {'trans': (N, 3), 'rot': (N, 3)} of crops (N, 6, 160, 160)."""
        return self.refiner.run({RENDERED: rendered, OBSERVED: observed})

    def features(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """Return the scorer's features (N, d), the caller's own copy."""
        inputs = {RENDERED: rendered, OBSERVED: observed}
        return self.extractor.run(inputs, clone=True)['features']

    def rank(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, N) of features (1, N, d)."""
        return self._networks.scorer.rank(features)

    def stats(self) -> dict[str, CacheStats]:
        """Return the graph caches' counters by network; empty without graphs."""
        sessions = {'refiner': self.refiner, 'scorer': self.extractor}
        caches = {name: session.cuda_graph_cache for name, session in sessions.items()}
        return {name: cache.stats() for name, cache in caches.items() if cache is not None}
