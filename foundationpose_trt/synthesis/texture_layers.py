"""Layers of textures: colours, noise, cells, shapes, wear; images are float 0..255."""

from __future__ import annotations

import cv2
import numpy as np


def palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return colours (count, 3) float 0..255: a third grey, a third muted, the rest vivid."""
    # Things people make are warm or blue more often than green or purple.
    base = rng.choice(
        [rng.normal(0.07, 0.06), rng.normal(0.6, 0.05), rng.random()], p=[0.5, 0.2, 0.3]
    )
    hue = (base + rng.normal(0, 0.1, count) + (rng.random(count) < 0.35) * rng.random(count)) % 1.0
    kind = rng.choice(3, count, p=[0.36, 0.34, 0.30])
    saturation = np.choose(kind, [rng.beta(1, 9, count) * 0.5, rng.beta(3, 4, count), 0.8])
    saturation = np.clip(saturation + (kind == 2) * rng.uniform(-0.2, 0.2, count), 0, 1)
    value = np.where(kind == 0, rng.beta(0.8, 0.7, count), rng.beta(2.5, 1.6, count))
    hsv = np.stack([hue * 360, saturation, 0.06 + 0.9 * value], axis=1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].astype(np.float64) * 255


def noise(rng: np.random.Generator, size: int, octaves: int) -> np.ndarray:
    """Return wrapping multi-octave noise, (size, size) float32, stretched to 0..1."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells_across = min(2 ** (octave + 1), size)
        coarse = rng.random((cells_across, cells_across), dtype=np.float32)
        padded = cv2.copyMakeBorder(coarse, 2, 2, 2, 2, cv2.BORDER_WRAP)
        scale = size // cells_across
        fine = cv2.resize(padded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        total += fine[2 * scale : 2 * scale + size, 2 * scale : 2 * scale + size] * 0.6**octave
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return first + weight * (second - first) for colours or images and weights (h, w)."""
    return first + weight[..., None] * (second - first)


def shade(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return the image darkened and lightened by smooth blotches, as dirt and baked light do."""
    tone = 1 + (noise(rng, len(image), int(rng.integers(1, 4))) - 0.6) * strength
    return image * tone[..., None]


def speckle(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Return the image with independent noise of sigma grey levels."""
    return image + rng.standard_normal(image.shape, dtype=np.float32) * sigma


def scratches(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image with thin straight scratches, lighter or darker than the ground."""
    size, layer = len(image), np.zeros(image.shape[:2], np.float32)
    for _ in range(int(rng.integers(3, 30))):
        start = rng.uniform(0, size, 2)
        stop = start + rng.normal(0, size * 0.15, 2)
        first, last = start.astype(int).tolist(), stop.astype(int).tolist()
        cv2.line(layer, first, last, rng.uniform(0.1, 0.6), 1, cv2.LINE_AA)
    return blend(image, np.full(3, rng.choice([20.0, 230.0])), layer)


def cells(rng: np.random.Generator, size: int, colors: np.ndarray) -> np.ndarray:
    """Return wrapping Voronoi cells filled with the colours, with or without joints."""
    count = int(rng.integers(6, 70))
    sites = rng.integers(0, size, (count, 2))
    mask = np.full((2 * size, 2 * size), 255, np.uint8)
    for shift in ((0, 0), (0, size), (size, 0), (size, size)):
        mask[tuple((sites + shift).T)] = 0
    kind = cv2.DIST_LABEL_PIXEL
    distance, owner = cv2.distanceTransformWithLabels(mask, cv2.DIST_L2, 5, labelType=kind)
    half = slice(size // 2, size // 2 + size)
    pick = rng.integers(0, len(colors), int(owner.max()) + 1)
    image = colors[pick[owner[half, half]]]
    if rng.random() < 0.5:
        distance = distance[half, half]
        image = (
            image * np.clip(1.3 - distance / max(float(distance.max()), 1.0), 0.3, 1)[..., None]
        )
    return image


def leaves(image: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Return the image under opaque shapes whose sizes follow a power law ('dead leaves')."""
    size, colors = len(image), palette(rng, int(rng.integers(3, 12)))
    canvas = np.ascontiguousarray(image, dtype=np.float64)
    radii = size * 0.35 * (1 + rng.random(count) * 30) ** -0.9
    for radius in np.sort(radii)[::-1]:
        color = colors[int(rng.integers(len(colors)))] * rng.uniform(0.8, 1.15)
        _leaf(canvas, rng, radius, np.clip(color, 0, 255).tolist())
    return canvas


def _leaf(canvas: np.ndarray, rng: np.random.Generator, radius: float, color: list) -> None:
    x, y = rng.uniform(0, len(canvas), 2)
    if rng.random() < 0.5:
        axes = (max(1, int(radius)), max(1, int(radius * rng.uniform(0.3, 1))))
        turn = rng.uniform(0, 180)
        cv2.ellipse(canvas, (int(x), int(y)), axes, turn, 0, 360, color, -1, cv2.LINE_AA)
        return
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
    reach = radius * rng.uniform(0.6, 1.2, len(angles))
    corners = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)
    cv2.fillPoly(canvas, [corners.astype(np.int32)], color, cv2.LINE_AA)
