"""The objects that the demo's detector knows: names and seeds, chosen by eye among held-out ones.

Two of them are drills, so that it must look at more than the kind of thing.
"""

from __future__ import annotations

from ..pose.mesh import ObjectMesh
from .objects import HELD_OUT_FROM_SEED, make_object

CAST = {
    'drill': HELD_OUT_FROM_SEED + 213,  # what the demo tracks
    'red_vase': HELD_OUT_FROM_SEED + 3931,
    'ball': HELD_OUT_FROM_SEED + 4793,
    'mosaic_box': HELD_OUT_FROM_SEED + 3389,
    'green_drill': HELD_OUT_FROM_SEED + 7331,
    'can': HELD_OUT_FROM_SEED + 8545,
}


def cast_objects() -> list[ObjectMesh]:
    """Return the meshes in the order of CAST."""
    return [make_object(seed) for seed in CAST.values()]
