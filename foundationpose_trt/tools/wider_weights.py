"""A weight set doubled in width without changing what it computes, to measure larger networks."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from safetensors.torch import load_file

from ..datatypes import require
from ..pose.networks import RefineNet, ScoreNet
from ..pose.quantization import SCALES, read_scales, write_scales
from ..pose.weights import MANIFEST, manifest_entries, resolve_folder, save_network, write_manifest
from ..runtime.choice import default_folder
from ..runtime.engine_manifest import sha256_of
from ..training.widen import widened

logger = logging.getLogger(__name__)
NETWORKS = {'refiner': RefineNet, 'scorer': ScoreNet}


def use_wider_weights(options: argparse.Namespace) -> None:
    """Let options.weights name the set at options.width, made beside the engines; if one is given.

    Raises ValueError as wider_set.
    """
    if options.width:
        folder = (options.engines or default_folder()) / 'wider'
        options.weights = str(wider_set(options.weights, options.width, folder))


def wider_set(weights: str, width: float, folder: Path) -> Path:
    """Write the set at a width that is its own times a power of two; returns its folder.

    weights: a set with a manifest, as load_networks takes it. Raises ValueError for another width
    or an official set, which has width 1 already.
    """
    source = resolve_folder(weights)
    require(
        (source / MANIFEST).exists(), f'{source} holds no {MANIFEST}: its width cannot be changed'
    )
    out = folder / f'{source.name}_width{width:g}'
    out.mkdir(parents=True, exist_ok=True)
    for (kind, make), entry in zip(NETWORKS.items(), manifest_entries(source), strict=True):
        own = float(entry['width'])
        require(
            width in [own * 2**times for times in range(6)],
            f'--width is {width:g}, must be the width of {source.name}, {own:g}, or a doubling of'
            ' it',
        )
        network = make(own).eval()
        network.load_state_dict(load_file(source / entry['file']), strict=False)
        while own < width:
            own *= 2
            wider = make(own).eval()
            wider.load_state_dict(widened(network.state_dict(), wider.state_dict()))
            network = wider
        save_network(network, out / f'{kind}.safetensors')
        write_manifest(out, kind, {'width': width, 'widened_from': str(source)})
    _copy_scales(source, out)
    return out


def _copy_scales(source: Path, out: Path) -> None:
    """Give a wider set the scales of its source: its convolutions read the same, twice."""
    own = sha256_of(source / manifest_entries(source)[0]['file'])
    try:
        scales = read_scales(source, own)
    except ValueError as error:  # who wants int8 is told
        logger.info('%s', error)
        (out / SCALES).unlink(missing_ok=True)
    else:
        write_scales(out, sha256_of(out / 'refiner.safetensors'), scales)
