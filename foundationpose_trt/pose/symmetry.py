"""Rotations that map an object onto itself, from words such as x_180 and z_full."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..datatypes import require

FULL_STEP_DEG = 5  # samples of a continuous symmetry; hypotheses stand 30 degrees apart
MOST_ROTATIONS = 2000
SAME_COSINES = 3.0 - 1e-6  # sum of the products of two rotations' numbers; less than 0.1 degrees
WORD = re.compile(r'([xyz])_(full|[0-9]{1,3})')
ALLOWED = (
    'an axis of the mesh (x, y or z), "_" and "full" or whole degrees below 360 that divide 360,'
    ' e.g. "x_180" for an object that looks the same after half a turn about x, "z_90" for a'
    ' square one, "z_full" for a bottle'
)


def symmetry_rotations(axes: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Return the rotations, row by row, that words like 'x_180' generate, without the identity.

    axes: an axis in the mesh's frame and the smallest turn about it, in degrees, that changes
    nothing, or `full` for any turn (every 5 degrees stand for it). The result is what
    EstimatorSettings.symmetries takes: with the identity it is a group, closed under products.
    Raises ValueError for another word, and for turns that generate more than 2000 rotations,
    as those of a sphere do.
    """
    require(not isinstance(axes, str), f'symmetry axes are "{axes}", must be a list: ["{axes}"]')
    return _rotations(tuple(axes))


@lru_cache(maxsize=64)  # parameters are checked over and over
def _rotations(axes: tuple[str, ...]) -> tuple[tuple[float, ...], ...]:
    generators = [_turn(*_parsed(word)) for word in axes]
    group = _generated(generators)
    require(
        len(group) <= MOST_ROTATIONS,
        f'symmetry axes {", ".join(axes)} together generate more than {MOST_ROTATIONS} rotations:'
        ' beside "full" about one axis others may have 180 degrees at most; for a ball give'
        ' "x_90" and "y_90", for two turns that do not belong together only one of them',
    )
    return tuple(tuple(rotation.ravel().tolist()) for rotation in group[1:])


def is_rotation(numbers: Sequence[float]) -> bool:
    """Whether the numbers are a 3x3 rotation matrix, row by row."""
    if len(numbers) != 9:
        return False
    matrix = np.array(numbers, np.float64).reshape(3, 3)
    return np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-4) and np.linalg.det(matrix) > 0


def _parsed(word: str) -> tuple[int, int]:
    """Return the axis 0..2 and the smallest turn in degrees."""
    match = WORD.fullmatch(word)
    degrees = FULL_STEP_DEG if match is None or match[2] == 'full' else int(match[2])
    require(
        match is not None and 0 < degrees < 360 and 360 % degrees == 0,
        f'symmetry axis is "{word}", must be {ALLOWED}',
    )
    assert match is not None
    return 'xyz'.index(match[1]), degrees


def _turn(axis: int, degrees: int) -> np.ndarray:
    i, j = (axis + 1) % 3, (axis + 2) % 3
    angle = np.deg2rad(degrees)
    rotation = np.eye(3)
    rotation[i, i] = rotation[j, j] = np.cos(angle)
    rotation[j, i], rotation[i, j] = np.sin(angle), -np.sin(angle)
    return rotation


def _generated(generators: Sequence[np.ndarray]) -> np.ndarray:
    """Return the group (N, 3, 3), identity first; N ends one above MOST_ROTATIONS."""
    found = np.zeros((MOST_ROTATIONS + 1, 9))
    found[0], count, at = np.eye(3).ravel(), 1, 0
    while at < count <= MOST_ROTATIONS:
        for generator in generators:
            # rounded beyond what matters, so that quarter turns are whole numbers
            product = np.round(found[at].reshape(3, 3) @ generator, 14).ravel() + 0.0
            is_new = (found[:count] @ product).max() < SAME_COSINES
            if is_new and count <= MOST_ROTATIONS:
                found[count], count = product, count + 1
        at += 1
    return found[:count].reshape(-1, 3, 3)
