"""Families of procedural objects: each draws the surfaces of one object, about unit size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import PchipInterpolator

from . import outlines, shapes
from .shapes import Surface


@dataclass(frozen=True)
class Draft:
    """Surfaces of an object; `period` is the wall length once around, if any."""

    surfaces: list[Surface]
    period: float | None = None


@dataclass(frozen=True)
class Source:
    """A random source with the mesh density (1 = normal, less = coarser)."""

    rng: np.random.Generator
    detail: float = 1.0

    def count(self, normal: int, least: int = 8) -> int:
        """Return a number of segments scaled by the density, even."""
        return max(least, 2 * int(round(normal * self.detail / 2)))

    def between(self, low: float, high: float) -> float:
        """Return a uniform number."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return bool(self.rng.random() < probability)


def cuboid(source: Source) -> Draft:
    """Return a box: flat like a cereal carton, long, or of any proportions."""
    thickness = source.rng.choice([source.between(0.08, 0.3), source.between(0.3, 1.0)])
    return Draft(shapes.box((source.between(0.5, 1.0), float(thickness), 1.0)))


def cube(source: Source) -> Draft:
    """Return a cube, sharp or rounded."""
    if source.chance(0.6):
        return Draft(shapes.box((1, 1, 1)))
    sphere = shapes.cube_sphere(source.count(6, 4))
    return Draft(shapes.rounded_box(sphere, (1, 1, 1), source.between(0.04, 0.2)))


def rounded(source: Source) -> Draft:
    """Return a rounded box."""
    extents = np.sort(source.rng.uniform(0.2, 1.0, 3))
    radius = source.between(0.1, 0.48) * extents[0]
    return Draft(shapes.rounded_box(shapes.cube_sphere(source.count(8, 4)), extents, radius))


def superquadric(source: Source) -> Draft:
    """Return an ellipsoid, pillow, pebble or spindle."""
    exponents = np.repeat(source.rng.choice([2.0, 1.4, 3.0, 5.0]), 3)
    if source.chance(0.5):
        exponents[2] = source.rng.choice([1.3, 2.0, 6.0])
    sides = shapes.superquadric(shapes.cube_sphere(source.count(14)), exponents)
    return Draft(stretched(sides, source.rng.uniform(0.35, 1.0, 3)))


def stretched(surfaces: list[Surface], factors: np.ndarray) -> list[Surface]:
    """Return surfaces scaled along the axes; texture lengths stay as they were."""
    return [surface.moved(np.diag(factors)) for surface in surfaces]


def part(surfaces: list[Surface], number: int) -> list[Surface]:
    """Return the surfaces as one part of an object with its own material."""
    return [replace(surface, part=number) for surface in surfaces]


def turned(source: Source, profile: np.ndarray, section: np.ndarray | None = None) -> Draft:
    """Return a body of revolution (or of another cross-section)."""
    if section is None:
        section = shapes.section_circle(source.count(28))
    around = float(np.linalg.norm(np.diff(section, axis=0), axis=1).sum() * profile[:, 0].max())
    return Draft(shapes.lathe(profile, section), around)


def can(source: Source) -> Draft:
    """Return a cylinder, with rims like a tin or without, flat like a puck or long like a tube."""
    height = float(np.exp(source.between(np.log(0.25), np.log(6.0))))
    if source.chance(0.5):
        profile = np.array([[0, 0], [1, 0], [1, height], [0, height]], dtype=float)
        return turned(source, profile)
    rim, inset = source.between(0.03, 0.08), source.between(0.03, 0.1)
    low = [[0, rim], [1 - inset, rim], [1 - inset / 2, 0], [1, rim / 2], [1 - inset / 3, rim]]
    high = [[r, height - z] for r, z in reversed(low)]
    return turned(source, np.array(low + high))


def smooth_profile(source: Source, knots: np.ndarray, rows: int = 26) -> np.ndarray:
    """Return a (rows, 2) profile through knots (n, 2) of radius and strictly rising z."""
    z = np.linspace(knots[0, 1], knots[-1, 1], source.count(rows))
    return np.column_stack([PchipInterpolator(knots[:, 1], knots[:, 0])(z), z])


def bottle(source: Source) -> Draft:
    """Return a bottle or jar with shoulder, neck and a cap of its own material."""
    height, neck = source.between(1.8, 4.2), source.between(0.25, 0.6)
    waist, shoulder = source.between(0.75, 1.05), source.between(0.5, 0.8)
    levels = np.array([0.0, 0.04, 0.3, 0.55, shoulder + 0.02, 0.92, 1.0]) * height
    radii = [source.between(0.8, 0.97), 1.0, waist, source.between(0.85, 1.05)]
    knots = np.column_stack([radii + [source.between(0.8, 1.0), neck, neck], np.sort(levels)])
    body = smooth_profile(source, knots)
    body = np.concatenate([[[0, 0]], body, [[0, height]]])
    section = shapes.section_circle(source.count(26))
    if source.chance(0.35):
        aspect = source.between(0.45, 0.9)
        section = shapes.section_superellipse(source.count(28), source.between(2, 4), aspect)
    draft = turned(source, body, section)
    cap_radius, cap = neck * source.between(1.05, 1.3), source.between(0.12, 0.4)
    top = source.between(0.3, 1.0) * cap_radius
    lid = [[0, 0], [cap_radius, 0], [cap_radius, cap * 0.7], [top, cap], [0, cap]]
    start = height - 0.3 * cap
    closing = shapes.lathe(np.array(lid) + [0, start], shapes.section_circle(source.count(20)))
    return Draft(draft.surfaces + part(closing, 1), draft.period)


def vase(source: Source) -> Draft:
    """Return a body of revolution of a free smooth profile: pawns, vases, tops, lamps."""
    count = int(source.rng.integers(4, 9))
    z = np.sort(source.rng.uniform(0.05, 0.95, count - 2))
    z = np.concatenate([[0.0], z, [1.0]]) + np.arange(count) * 0.02
    height = source.between(1.2, 4.5)
    body = smooth_profile(source, np.column_stack([source.rng.uniform(0.2, 1, count), z * height]))
    body = np.concatenate([[[0, body[0, 1]]], body, [[0, body[-1, 1]]]])
    return turned(source, body)


def mug(source: Source) -> Draft:
    """Return a cup, most with a handle; the hollow is open at the top."""
    height, wall = source.between(1.3, 3.0), source.between(0.06, 0.14)
    foot, swell = source.between(0.6, 1.0), source.between(0.9, 1.1)
    z = np.array([0, 0.5, 1.0]) * height
    outer = smooth_profile(source, np.column_stack([[foot, swell, 1.0], z]), 10)
    inner = (outer - [wall, 0])[::-1]
    inner[:, 1] = np.maximum(inner[:, 1], wall)
    bottom, floor = [[0.0, 0.0]], [[0.0, wall]]
    draft = turned(source, np.concatenate([bottom, outer, inner, floor]))
    if source.chance(0.2):
        return draft
    reach, radius = source.between(0.5, 0.9), source.between(0.07, 0.14)
    angle = np.linspace(-0.5, 0.5, source.count(16)) * np.pi
    path = np.zeros((len(angle), 3))
    path[:, 0] = 0.92 + reach * np.cos(angle)
    path[:, 2] = height * (0.5 + source.between(0.25, 0.38) * np.sin(angle))
    thickness = np.full(len(path), radius)
    section = shapes.section_superellipse(10, 2.5, source.between(1, 2))
    handle = shapes.tube(path, thickness, section)
    return Draft(draft.surfaces + part(handle, int(source.rng.integers(0, 2))), draft.period)


def bowl(source: Source) -> Draft:
    """Return a bowl, dish or plate, hollow at the top."""
    height, wall = source.between(0.15, 0.9), source.between(0.03, 0.08)
    foot, bulge = source.between(0.3, 0.7), source.between(0.5, 1.0)
    t = np.linspace(0, 1, source.count(12))
    outer = np.column_stack([foot + (1 - foot) * t**bulge, height * t ** (1 / bulge + 0.4)])
    inner = np.column_stack([outer[:, 0] - wall, np.maximum(outer[:, 1], wall)])[::-1]
    return turned(source, np.concatenate([[[0, 0]], outer, inner, [[0, wall]]]))


def cone(source: Source) -> Draft:
    """Return a cone, frustum, pyramid or funnel."""
    height, tip = source.between(0.7, 3.0), source.rng.choice([0.0, source.between(0.1, 0.8)])
    profile = np.array([[0, 0], [1, 0], [tip, height], [0, height]], dtype=float)
    sides = source.rng.choice([3, 4, 6, source.count(28), source.count(28)])
    return turned(source, profile if tip else profile[:3], shapes.section_circle(int(sides)))


def capsule(source: Source) -> Draft:
    """Return a capsule, pill or egg."""
    length, squeeze = source.between(0.0, 3.0), source.between(0.5, 1.3)
    angle = np.linspace(-np.pi / 2, 0, source.count(10))
    low = np.column_stack([np.cos(angle), np.sin(angle)])
    high = np.column_stack([low[::-1, 0], length - low[::-1, 1] * squeeze])
    profile = np.concatenate([low, high])
    profile[[0, -1], 0] = 0
    return turned(source, profile)


def ring(source: Source) -> Draft:
    """Return a torus, tyre or bracelet."""
    angle = np.linspace(0, 2 * np.pi, source.count(32) + 1)
    path = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(len(angle))])
    path[-1] = path[0]
    section = shapes.section_superellipse(
        source.count(14), source.between(2, 5), source.between(0.5, 2)
    )
    radii = np.full(len(path), source.between(0.1, 0.4))
    return Draft(shapes.tube(path, radii, section))


def bent_tube(source: Source) -> Draft:
    """Return a pipe, hook, banana or cable along a smooth random curve."""
    knots = source.rng.normal(0, 1, (int(source.rng.integers(3, 6)), 3)) * (1, 0.7, 0.5)
    knots += np.arange(len(knots))[:, None] * (0.9, 0, 0)
    t = np.linspace(0, len(knots) - 1, source.count(40))
    path = PchipInterpolator(np.arange(len(knots)), knots)(t)
    radius = source.between(0.15, 0.5)
    taper = 1 - source.rng.choice([0.0, 0.7]) * np.linspace(0, 1, len(path)) ** 2
    section = shapes.section_superellipse(source.count(16), source.rng.choice([2, 2, 6]), 1.0)
    return Draft(shapes.tube(path, radius * taper, section))


def extruded(source: Source) -> Draft:
    """Return a plate or bar of a random outline: gears, brackets, profiles, stars, letters."""
    loops = outlines.outline(source.rng)
    height = float(np.exp(source.between(np.log(0.12), np.log(2.5))))
    return Draft(shapes.extrusion(loops, height, 0.09 / source.detail))


FAMILIES: dict[str, tuple[float, Callable[[Source], Draft]]] = {
    'box': (0.13, cuboid),
    'cube': (0.04, cube),
    'rounded_box': (0.07, rounded),
    'superquadric': (0.05, superquadric),
    'can': (0.10, can),
    'bottle': (0.11, bottle),
    'vase': (0.05, vase),
    'mug': (0.06, mug),
    'bowl': (0.05, bowl),
    'cone': (0.03, cone),
    'capsule': (0.02, capsule),
    'ring': (0.03, ring),
    'tube': (0.04, bent_tube),
    'extrusion': (0.10, extruded),
}
