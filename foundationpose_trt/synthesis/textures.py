"""Procedural textures, (size, size, 3) uint8 RGB, deterministic per seed."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .texture_layers import (
    blend,
    cells,
    leaves,
    noise,
    palette,
    scratches,
    shade,
    speckle,
)
from .texture_print import label

Painter = Callable[[np.random.Generator, int], np.ndarray]


def make_texture(seed: int, size_px: int = 256) -> np.ndarray:
    """Return an object's texture, (size_px, size_px, 3) uint8 RGB."""
    rng = np.random.default_rng([seed, 11])
    painter = _drawn(rng, OBJECT_PAINTERS)
    image = painter(rng, size_px)
    if painter not in (plain, faded) and rng.random() < 0.35:
        image = shade(image, rng, 0.25)
    if rng.random() < 0.25:
        image = scratches(image, rng)
    return _as_bytes(speckle(image, rng, rng.choice([0.0, 1.0, 2.0, 4.0])))


def make_plain_texture(seed: int, size_px: int = 256) -> np.ndarray:
    """Return a nearly uniform texture, (size_px, size_px, 3) uint8 RGB."""
    rng = np.random.default_rng([seed, 13])
    return _as_bytes(speckle(plain(rng, size_px), rng, rng.choice([0.0, 1.0, 3.0])))


def make_background_texture(seed: int, size_px: int = 256) -> np.ndarray:
    """Return the texture of a table, floor or wall, (size_px, size_px, 3) uint8 RGB."""
    rng = np.random.default_rng([seed, 12])
    image = _drawn(rng, BACKGROUND_PAINTERS)(rng, size_px)
    if rng.random() < 0.5:
        image = shade(image, rng, 0.3)
    if rng.random() < 0.3:
        image = scratches(image, rng)
    return _as_bytes(speckle(image, rng, rng.choice([1.0, 2.0, 4.0, 8.0])))


def _drawn(rng: np.random.Generator, table: dict[Painter, float]) -> Painter:
    painters, weights = list(table), np.array(list(table.values()))
    return painters[int(rng.choice(len(painters), p=weights / weights.sum()))]


def _as_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def plain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return one colour with hardly visible unevenness."""
    tone = 1 + (noise(rng, size, 3) - 0.5) * rng.uniform(0.0, 0.06)
    return palette(rng, 1)[0] * tone[..., None]


def faded(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a gradient between two or three colours."""
    colors = palette(rng, 3)
    axis = np.linspace(0, 1, size)
    ramp = np.abs(1 - 2 * axis)[:, None] * np.ones((1, size))
    ramp = ramp if rng.random() < 0.5 else ramp.T
    image = blend(colors[0], colors[1], ramp)
    return image if rng.random() < 0.6 else blend(image, colors[2], noise(rng, size, 2))


def photo(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return photo-like statistics: overlapping shapes of all sizes over cloudy colour."""
    image = clouds(rng, size)
    return leaves(image, rng, int(rng.integers(15, 120)))


def clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return multi-octave colour noise between a few colours."""
    colors = palette(rng, 3)
    image = blend(colors[0], colors[1], noise(rng, size, int(rng.integers(2, 6))))
    return blend(image, colors[2], noise(rng, size, 5) ** 2)


def stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return straight or wavy bands of two to four colours, wrapping around."""
    colors = palette(rng, int(rng.integers(2, 5)))
    y, x = np.mgrid[:size, :size] / size
    turns = rng.integers(1, 9) * np.array([[1, 0], [0, 1], [1, 1], [1, -1]])[rng.integers(4)]
    phase = turns[0] * x + turns[1] * y
    if rng.random() < 0.4:
        phase = phase + rng.uniform(0.2, 1.5) * noise(rng, size, 2)
    edges = np.sort(rng.random(len(colors) - 1))
    return colors[np.searchsorted(edges, phase % 1.0)]


def checkers(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a checkerboard, a grid of lines or a mosaic of random tiles."""
    count = int(rng.choice([2, 4, 6, 8, 12, 16]))
    kind, colors = rng.integers(3), palette(rng, 6)
    row, column = np.mgrid[:size, :size] * count // size
    if kind == 0:
        return colors[(row + column) % 2]
    if kind == 1:
        place = np.mgrid[:size, :size] * count % size
        line = (place < size * rng.uniform(0.08, 0.25)).any(axis=0)
        return colors[line.astype(int)]
    return colors[rng.integers(0, 6, (count, count))[row, column]]


def spots(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return dots or blotches of some colours on one ground."""
    if rng.random() < 0.5:
        colors = palette(rng, 2)
        edge = rng.uniform(0.4, 0.6)
        mask = np.clip((noise(rng, size, 3) - edge) * rng.uniform(8, 60), 0, 1)
        return blend(colors[0], colors[1], mask)
    colors = palette(rng, 4)
    image = np.ascontiguousarray(np.broadcast_to(colors[0], (size, size, 3)))
    radius = size * rng.uniform(0.015, 0.1)
    for x, y in rng.integers(0, size, (int(rng.integers(8, 90)), 2)).tolist():
        color = colors[int(rng.integers(1, 4))].tolist()
        spread = max(1, int(radius * rng.uniform(0.6, 1.4)))
        cv2.circle(image, (x, y), spread, color, -1, cv2.LINE_AA)
    return image


def wood(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return stretched grain with rings in wooden colours."""
    dark = np.array([90, 55, 30]) * rng.uniform(0.5, 1.6) + rng.normal(0, 8, 3)
    light = dark + rng.uniform(20, 90) * np.array([1.0, 0.85, 0.65])
    grain = cv2.resize(noise(rng, size, 4)[: max(8, size // 8)], (size, size))
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(3, 14) * grain)
    fibre = cv2.resize(rng.random((size, 8)), (size, size))
    image = blend(light, dark, 0.65 * rings + 0.35 * fibre.T)
    if rng.random() < 0.4:
        plank = size // int(rng.choice([2, 3, 4]))
        image[::plank] = dark * 0.5
    return image


def marble(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return veins along the zero lines of noise."""
    colors = palette(rng, 2)
    vein = np.abs(noise(rng, size, 5) - 0.5) * rng.uniform(6, 25)
    return blend(colors[0], colors[1], np.exp(-vein))


def metal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return brushed grey with scratches and stains."""
    grey = rng.uniform(60, 210) * np.array([1.0, 1.0, 1.0]) + rng.normal(0, 6, 3)
    brush = cv2.resize(rng.normal(0, 1, (size, 3)), (size, size))
    image = grey + brush[..., None] * rng.uniform(2, 12)
    image = blend(image, image * 0.6, noise(rng, size, 3) ** 3)
    return scratches(image, rng)


def mosaic(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return Voronoi cells of a few colours: stones, leather, camouflage."""
    return cells(rng, size, palette(rng, int(rng.integers(2, 7))))


OBJECT_PAINTERS: dict[Painter, float] = {
    plain: 0.12,
    faded: 0.05,
    label: 0.34,
    photo: 0.15,
    clouds: 0.05,
    stripes: 0.06,
    checkers: 0.04,
    spots: 0.05,
    wood: 0.04,
    marble: 0.03,
    metal: 0.04,
    mosaic: 0.03,
}
BACKGROUND_PAINTERS: dict[Painter, float] = {
    plain: 0.2,
    faded: 0.08,
    label: 0.05,
    photo: 0.15,
    clouds: 0.12,
    stripes: 0.05,
    checkers: 0.08,
    wood: 0.14,
    marble: 0.06,
    metal: 0.04,
    mosaic: 0.03,
}
