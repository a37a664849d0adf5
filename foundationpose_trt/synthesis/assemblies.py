"""Objects of several bodies: tools, random composites, blobs and figures melted together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import families, shapes
from .families import Draft, Source, part
from .shapes import Surface

AXIS_TURNS = {
    'x': np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
    'y': np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    'z': np.eye(3),
}


def drill(source: Source) -> Draft:
    """Return a pistol-shaped tool: barrel, chuck, handle, foot, perhaps a bit."""
    between = source.between
    section = shapes.section_superellipse(source.count(18), between(2, 5), between(0.8, 1.2))
    length, radius = between(1.2, 2.0), between(0.28, 0.45)
    knots = np.array([[0.85, 0], [1, 0.15], [1, 0.7], [between(0.5, 0.8), 1]]) * (radius, length)
    barrel = families.smooth_profile(source, knots, 12)
    barrel = np.concatenate([[[0, 0]], barrel, [[0, length]]])
    lying = AXIS_TURNS['x']
    surfaces = [piece.moved(lying) for piece in shapes.lathe(barrel, section)]
    tip = between(0.2, 0.5)
    chuck = np.array([[0, 0], [0.6, 0], [0.55, tip], [0.15, tip * 1.4], [0, tip * 1.4]])
    chuck = chuck * (radius, 1) + (0, length)
    round_section = shapes.section_circle(source.count(14))
    surfaces += part([piece.moved(lying) for piece in shapes.lathe(chuck, round_section)], 1)
    grip = between(0.9, 1.5)
    path = np.linspace((0.25 * length, 0, -0.5 * radius), (between(0, 0.3), 0, -grip), 8)
    flat = shapes.section_superellipse(source.count(14), 3, between(0.6, 0.9))
    surfaces += part(shapes.tube(path, np.linspace(0.8, 0.65, 8) * radius, flat), 2)
    if source.chance(0.7):
        extents = (between(0.6, 1.1), between(1.2, 2.0) * radius, between(0.2, 0.4))
        foot = shapes.rounded_box(shapes.cube_sphere(source.count(6, 4)), extents, 0.09)
        surfaces += part([piece.moved(np.eye(3), path[-1]) for piece in foot], 3)
    return Draft(surfaces)


def hand_tool(source: Source) -> Draft:
    """Return a handle with a head across: hammers, brushes, spoons, rackets, screwdrivers."""
    between = source.between
    knots = np.column_stack([source.rng.uniform(0.1, 0.2, 4), [0, 0.8, 1.6, 2.4]])
    handle = families.smooth_profile(source, knots, 14)
    handle = np.concatenate([[[0, 0]], handle, [[0, 2.4]]])
    section = shapes.section_superellipse(source.count(14), between(2, 4), between(0.6, 1))
    surfaces = shapes.lathe(handle, section)
    head = _primitive(Source(source.rng, source.detail * 0.8))
    turn = AXIS_TURNS[str(source.rng.choice(['x', 'y', 'z']))]
    for piece in _fitted(head, source.rng.uniform(0.2, 0.9, 3)):
        surfaces = surfaces + part([piece.moved(turn, (0, 0, 2.4))], 1)
    return Draft(surfaces)


def composite(source: Source) -> Draft:
    """Return two to four primitives stuck into each other."""
    coarse = Source(source.rng, source.detail * 0.75)
    surfaces: list[Surface] = []
    for number in range(int(source.rng.integers(2, 5))):
        body = _fitted(_primitive(coarse), source.rng.uniform(0.3, 1.0, 3) * 0.85**number)
        turn = _random_rotation(source.rng) if source.chance(0.4) else np.eye(3)
        offset = source.rng.uniform(-0.45, 0.45, 3) if number else np.zeros(3)
        surfaces += part([piece.moved(turn, offset) for piece in body], number)
    return Draft(surfaces)


def _primitive(source: Source) -> list[Surface]:
    makers = (
        families.cuboid,
        families.rounded,
        families.superquadric,
        families.can,
        families.can,
        families.cone,
        families.capsule,
        families.ring,
        families.extruded,
    )
    return makers[int(source.rng.integers(len(makers)))](source).surfaces


def _fitted(surfaces: list[Surface], extents: np.ndarray) -> list[Surface]:
    """Return the surfaces centred and stretched to a bounding box of these extents."""
    points = np.concatenate([surface.vertices for surface in surfaces])
    low, high = points.min(axis=0), points.max(axis=0)
    factors = np.diag(np.asarray(extents) / np.maximum(high - low, 1e-9))
    return [surface.moved(factors, -factors @ (low + high) / 2) for surface in surfaces]


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    turn, triangle = np.linalg.qr(rng.normal(size=(3, 3)))
    turn = turn * np.sign(np.diag(triangle))
    return turn if np.linalg.det(turn) > 0 else -turn


def blob(source: Source) -> Draft:
    """Return a smoothly dented sphere: fruit, stones, soft toys."""
    waves = source.rng.normal(0, 2.2, (6, 3))
    phase, height = source.rng.uniform(0, 2 * np.pi, 6), source.rng.uniform(0.02, 0.14, 6)
    sides = []
    for side in shapes.cube_sphere(source.count(16)):
        bump = 1 + (np.sin(side.vertices @ waves.T + phase) * height).sum(axis=1, keepdims=True)
        sides.append(Surface(side.vertices * bump, side.faces, side.uv))
    return Draft(families.stretched(sides, source.rng.uniform(0.5, 1, 3)))


def figure(source: Source) -> Draft:
    """Return an animal- or doll-like body: head, trunk and limbs melted together."""
    rng = source.rng
    trunk = np.array([1.0, source.between(0.4, 0.8), source.between(0.4, 0.8)])
    balls = [
        (np.zeros(3), trunk),
        (rng.normal(0, 0.15, 3) + (1.0, 0, 0.6), rng.uniform(0.3, 0.6, 3)),
    ]
    limb, spread = rng.uniform(0.14, 0.28), rng.uniform(0.25, 0.5)
    for x, y in ((0.6, 1), (0.6, -1), (-0.6, 1), (-0.6, -1)):
        balls.append((np.array([x, y * spread, -0.7]), np.array([limb, limb, 0.6])))
    for _ in range(int(rng.integers(0, 4))):
        balls.append((rng.uniform(-1.2, 1.2, 3) * (1, 0.6, 0.8), rng.uniform(0.12, 0.4, 3)))
    return _molten(source, _union([_ellipsoid(*ball) for ball in balls], source.between(5, 20)))


def sculpture(source: Source) -> Draft:
    """Return rounded bodies joined and drilled: handles, knobs, castings, housings."""
    rng = source.rng
    bodies = [
        _brick(rng.uniform(-0.4, 0.4, 3), rng.uniform(0.25, 0.8, 3), source.between(0.05, 0.2))
    ]
    for _ in range(int(rng.integers(1, 4))):
        bodies.append(_rod(rng))
    solid = _union(bodies, source.between(8, 30))
    holes = [_rod(rng) for _ in range(int(rng.integers(0, 3)))]

    def drilled(points: np.ndarray) -> np.ndarray:
        distance = solid(points)
        for hole in holes:
            distance = np.maximum(distance, -hole(points))
        return distance

    return _molten(source, drilled if holes else solid)


Field = Callable[[np.ndarray], np.ndarray]


def _ellipsoid(center: np.ndarray, radii: np.ndarray) -> Field:
    def distance(points: np.ndarray) -> np.ndarray:
        scaled = np.linalg.norm((points - center) / radii, axis=1)
        slope = np.linalg.norm((points - center) / radii**2, axis=1)
        return scaled * (scaled - 1) / np.maximum(slope, 1e-9)

    return distance


def _brick(center: np.ndarray, half: np.ndarray, radius: float) -> Field:
    def distance(points: np.ndarray) -> np.ndarray:
        gap = np.abs(points - center) - (half - radius)
        outer = np.linalg.norm(np.maximum(gap, 0), axis=1)
        return outer + np.minimum(gap.max(axis=1), 0) - radius

    return distance


def _rod(rng: np.random.Generator) -> Field:
    start, stop = rng.uniform(-0.3, 0.3, 3), rng.uniform(-1.2, 1.2, 3)
    radius, along = rng.uniform(0.15, 0.4), stop - start

    def distance(points: np.ndarray) -> np.ndarray:
        fraction = np.clip((points - start) @ along / max(float(along @ along), 1e-6), 0, 1)
        return np.linalg.norm(points - start - fraction[:, None] * along, axis=1) - radius

    return distance


def _union(fields: list[Field], sharpness: float) -> Field:
    """Return a union whose joints are filleted over about 1 / sharpness."""

    def distance(points: np.ndarray) -> np.ndarray:
        values = np.stack([field(points) for field in fields])
        return -np.log(np.exp(-sharpness * np.clip(values, -2, 2)).sum(axis=0)) / sharpness

    return distance


def _molten(source: Source, field: Field) -> Draft:
    surface = shapes.isosurface(field, 1.75, source.count(32))
    return Draft(shapes.project_sides(surface))


ASSEMBLIES: dict[str, tuple[float, Callable[[Source], Draft]]] = {
    'drill': (0.05, drill),
    'hand_tool': (0.05, hand_tool),
    'composite': (0.08, composite),
    'blob': (0.04, blob),
    'figure': (0.05, figure),
    'sculpture': (0.04, sculpture),
}
