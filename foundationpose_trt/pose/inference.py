"""The two networks behind sessions: the estimator cannot tell which back end runs them."""

from __future__ import annotations

import torch

from ..runtime.engine import Engine
from ..runtime.graph_cache import CacheStats, CudaGraphCache
from ..runtime.session import Session
from .backends import NetworkEngines
from .crops import PAIRS
from .weights import PoseNetworks


class PoseInference:
    """Refiner and feature extractor as sessions, and the ranking of what they find.

    Graphs are captured per number of crops. Outputs are views that the next call with the same
    number overwrites (runtime.session.Session); no host sync.
    """

    def __init__(
        self,
        engines: NetworkEngines,
        networks: PoseNetworks,
        crops: torch.Tensor,
        cuda_graph_cache_capacity: int = 0,
    ) -> None:
        """networks: whose scorer ranks. crops: the buffer that calls write (ViewWriter).

        cuda_graph_cache_capacity: graphs kept per network; 0 runs without graphs.
        """
        self._networks = networks
        self.refiner = _session(engines.refiner, crops)
        self.extractor = _session(engines.features, crops)
        self.set_cuda_graph_cache_capacity(cuda_graph_cache_capacity)

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

    def refine(self, crops: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return {'trans': (N, 3), 'rot': (N, 3)} of N pairs of crops (2 N, ...)."""
        return self.refiner.run({PAIRS: crops})

    def features(self, crops: torch.Tensor) -> torch.Tensor:
        """Return the scorer's features (N, d) of N pairs of crops, the caller's own copy."""
        return self.extractor.run({PAIRS: crops}, clone=True)['features']

    def rank(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, N) of features (1, N, d)."""
        return self._networks.scorer.rank(features.to(self._networks.dtype))

    def stats(self) -> dict[str, CacheStats]:
        """Return the graph caches' counters by network; empty without graphs."""
        sessions = {'refiner': self.refiner, 'scorer': self.extractor}
        caches = {name: session.cuda_graph_cache for name, session in sessions.items()}
        return {name: cache.stats() for name, cache in caches.items() if cache is not None}


def _session(engine: Engine, crops: torch.Tensor) -> Session:
    return Session(engine, None, {PAIRS: crops})
