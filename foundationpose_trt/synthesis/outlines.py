"""Random flat outlines for extrusions: lists of loops (n, 2), the outer one first, then holes."""

from __future__ import annotations

import numpy as np


def outline(rng: np.random.Generator) -> list[np.ndarray]:
    """Return a random outline of about unit radius with no, one or several holes."""
    kinds = (polygon, gear, star, profile, profile, wavy)
    return kinds[int(rng.integers(len(kinds)))](rng)


def circle(radius: float, count: int, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return a regular polygon, (count, 2)."""
    angle = np.arange(count) * 2 * np.pi / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1) + center


def _with_bore(rng: np.random.Generator, loop: np.ndarray, largest: float) -> list[np.ndarray]:
    if rng.random() < 0.4:
        return [loop]
    return [loop, circle(rng.uniform(0.3, 0.8) * largest, int(rng.choice([4, 6, 20, 20])))]


def polygon(rng: np.random.Generator) -> list[np.ndarray]:
    """Return a polygon of 3 to 8 corners, regular or not."""
    count = int(rng.integers(3, 9))
    loop = circle(1.0, count)
    if rng.random() < 0.6:
        loop = loop * rng.uniform(0.7, 1.1, (count, 1)) * (1, rng.uniform(0.5, 1))
        return [loop]
    return _with_bore(rng, loop, 0.45)


def gear(rng: np.random.Generator) -> list[np.ndarray]:
    """Return a toothed wheel."""
    teeth, depth = int(rng.integers(6, 15)), rng.uniform(0.12, 0.25)
    angle = (np.arange(4 * teeth) + 0.5) * np.pi / (2 * teeth)
    radius = np.where(np.arange(4 * teeth) % 4 < 2, 1.0, 1 - depth)
    return _with_bore(rng, np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None], 0.6)


def star(rng: np.random.Generator) -> list[np.ndarray]:
    """Return a star or cross with blunt or sharp tips."""
    count = int(rng.integers(3, 8))
    angle = np.arange(2 * count) * np.pi / count
    radius = np.where(np.arange(2 * count) % 2, rng.uniform(0.4, 0.75), 1.0)
    return _with_bore(rng, np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None], 0.35)


def wavy(rng: np.random.Generator) -> list[np.ndarray]:
    """Return a smooth closed curve: hearts, beans, puzzle pieces, flowers."""
    angle = np.arange(40) * 2 * np.pi / 40
    radius = np.ones(40)
    for order in range(2, 6):
        radius += rng.normal(0, 0.3 / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.4)
    return _with_bore(rng, np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None], 0.3)


def profile(rng: np.random.Generator) -> list[np.ndarray]:
    """Return an L, T, U, Z, plus or frame profile, or an L bracket with screw holes."""
    w, t = rng.uniform(0.6, 1.0), rng.uniform(0.2, 0.4)
    corners = {
        'L': [(0, 0), (w, 0), (w, t), (t, t), (t, 1), (0, 1)],
        'T': [(0, 1), (0, 1 - t), (w / 2 - t / 2, 1 - t), (w / 2 - t / 2, 0)]
        + [(w / 2 + t / 2, 0), (w / 2 + t / 2, 1 - t), (w, 1 - t), (w, 1)],
        'U': [(0, 0), (1.2, 0), (1.2, w), (1.2 - t, w), (1.2 - t, t), (t, t), (t, 1), (0, 1)],
        'Z': [(0, 0), (w, 0), (w, 1), (w + 0.5, 1), (w + 0.5, 1 + t), (w - t, 1 + t)]
        + [(w - t, t), (0, t)],
        'O': [(0, 0), (1, 0), (1, w), (0, w)],
    }
    letter = str(rng.choice(list(corners)))
    loops = [np.array(corners[letter], dtype=float) - 0.5]
    if letter == 'O':
        loops.append(np.array([(t, t), (1 - t, t), (1 - t, w - t), (t, w - t)]) - 0.5)
        return loops if w - 2 * t > 0.15 else loops[:1]
    if letter == 'L' and t > 0.25 and rng.random() < 0.6:
        loops.append(circle(0.3 * t, 12, (t / 2 - 0.5, 0.25)))
        loops.append(circle(0.3 * t, 12, (w - t / 2 - 0.5, t / 2 - 0.5)))
    return loops
