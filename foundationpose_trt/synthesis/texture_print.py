"""Printed-product textures: panels, bands, lettering, logos, bar codes, tables of small print."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .texture_layers import blend, leaves, noise, palette

FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_COMPLEX_SMALL,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)
# fmt: off
WORDS = (
    'ORIGINAL', 'Fresh', 'NATURAL', 'Crunchy', 'SUGAR', 'Honey', 'CHOCOLATE', 'Classic',
    'MUSTARD', 'Tomato', 'SOUP', 'Coffee', 'TEA', 'Milk', 'WHEAT', 'Corn', 'RICE', 'Pasta',
    'SALT', 'Pepper', 'CLEAN', 'Soft', 'POWER', 'Volt', 'TURBO', 'Max', 'ULTRA', 'Pro', 'SAFETY',
    'Warning', 'FRAGILE', '100%', 'NEW', 'Best', 'FAMILY', 'Size', 'NET', '12oz', '500g', '350ml',
    '1L', 'Organic', 'LIGHT', 'Zero', 'EXTRA', 'Strong', 'LEMON', 'Mint', 'BERRY', 'Vanilla',
    'SPICY', 'Garden', 'FARM', 'Ocean', 'STAR', 'Royal', 'GOLD',
)
# fmt: on
LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789%&*#+-'


@dataclass
class Sheet:
    """A canvas (size, size, 3) float 0..255, its random source and its few printing colours."""

    image: np.ndarray
    rng: np.random.Generator
    inks: np.ndarray

    def ink(self) -> list[float]:
        """Return one of the printing colours."""
        return self.inks[int(self.rng.integers(len(self.inks)))].tolist()

    def word(self) -> str:
        """Return a word or a random string."""
        if self.rng.random() < 0.75:
            return WORDS[int(self.rng.integers(len(WORDS)))]
        picks = self.rng.integers(0, len(LETTERS), int(self.rng.integers(2, 9)))
        return ''.join(LETTERS[int(pick)] for pick in picks)


@dataclass(frozen=True)
class Area:
    """A rectangle of the canvas in pixels."""

    x: int
    y: int
    width: int
    height: int


def label(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a product label, (size, size, 3) float 0..255."""
    sheet = Sheet(_ground(rng, size), rng, palette(rng, int(rng.integers(2, 6))))
    area = Area(0, 0, size, size)
    if rng.random() < 0.3:
        area = _inner_label(sheet)
    for _ in range(int(rng.integers(0, 4))):
        _panel(sheet, area)
    if rng.random() < 0.35:
        _picture(sheet, _part_of(rng, area, 0.3, 0.7))
    if rng.random() < 0.5:
        _logo(sheet, _part_of(rng, area, 0.2, 0.5))
    for _ in range(int(rng.integers(1, 4))):
        _headline(sheet, area)
    for _ in range(int(rng.integers(0, 3))):
        _small_print(sheet, _part_of(rng, area, 0.2, 0.5))
    if rng.random() < 0.4:
        _bar_code(sheet, _part_of(rng, area, 0.15, 0.35))
    return sheet.image


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    colors = palette(rng, 2)
    image = np.ascontiguousarray(np.broadcast_to(colors[0], (size, size, 3)))
    if rng.random() < 0.3:
        return np.ascontiguousarray(blend(colors[0], colors[1], noise(rng, size, 2)))
    return image


def _part_of(rng: np.random.Generator, area: Area, least: float, most: float) -> Area:
    width = max(4, int(area.width * rng.uniform(least, most)))
    height = max(4, int(area.height * rng.uniform(least, most)))
    x = area.x + int(rng.integers(0, max(1, area.width - width)))
    y = area.y + int(rng.integers(0, max(1, area.height - height)))
    return Area(x, y, width, height)


def _fill(sheet: Sheet, area: Area, color: list[float]) -> None:
    end = (area.x + area.width, area.y + area.height)
    cv2.rectangle(sheet.image, (area.x, area.y), end, color, -1)


def _inner_label(sheet: Sheet) -> Area:
    """Stick a label on a ground that stays plain around it, as on bottles and jars."""
    size = len(sheet.image)
    height = int(size * sheet.rng.uniform(0.35, 0.65))
    width = size if sheet.rng.random() < 0.4 else int(size * sheet.rng.uniform(0.4, 0.9))
    y = int(sheet.rng.integers(0, size - height))
    area = Area((size - width) // 2, y, width, height)
    _fill(sheet, area, sheet.ink())
    return area


def _panel(sheet: Sheet, area: Area) -> None:
    """Draw a band across the area or a rectangle, filled or framed."""
    rng = sheet.rng
    part = _part_of(rng, area, 0.1, 0.8)
    if rng.random() < 0.5:
        band = Area(area.x, part.y, area.width, max(3, part.height // 2))
        _fill(sheet, band, sheet.ink())
        return
    thickness = -1 if rng.random() < 0.6 else int(rng.integers(1, 6))
    end = (part.x + part.width, part.y + part.height)
    cv2.rectangle(sheet.image, (part.x, part.y), end, sheet.ink(), thickness, cv2.LINE_AA)


def _picture(sheet: Sheet, area: Area) -> None:
    side = max(area.width, area.height)
    patch = np.ascontiguousarray(np.broadcast_to(np.array(sheet.ink()), (side, side, 3)))
    patch = leaves(patch, sheet.rng, int(sheet.rng.integers(8, 40)))[: area.height, : area.width]
    rows, columns = slice(area.y, area.y + area.height), slice(area.x, area.x + area.width)
    target = sheet.image[rows, columns]
    target[:] = patch[: target.shape[0], : target.shape[1]]


def _logo(sheet: Sheet, area: Area) -> None:
    """Draw nested discs, a star or a slanted badge."""
    rng, radius = sheet.rng, max(3, min(area.width, area.height) // 2)
    center = (area.x + area.width // 2, area.y + area.height // 2)
    kind = rng.integers(3)
    if kind == 0:
        axes = np.array([radius, max(2, int(radius * rng.uniform(0.5, 1)))])
        for factor in (1.0, 0.85, 0.5)[: int(rng.integers(1, 4))]:
            inner = np.maximum((axes * factor).astype(int), 1).tolist()
            cv2.ellipse(sheet.image, center, inner, 0, 0, 360, sheet.ink(), -1, cv2.LINE_AA)
        return
    points = int(rng.integers(3, 9))
    angle = np.arange(2 * points) * np.pi / points + rng.uniform(0, np.pi)
    reach = np.where(np.arange(2 * points) % 2, rng.uniform(0.35, 1), 1.0) * radius
    corners = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None] + center
    cv2.fillPoly(sheet.image, [corners.astype(np.int32)], sheet.ink(), cv2.LINE_AA)


def _headline(sheet: Sheet, area: Area) -> None:
    """Write one or two large words, sometimes outlined, sometimes upright."""
    rng = sheet.rng
    font, text = int(rng.choice(FONTS)), sheet.word()
    (width, height), _ = cv2.getTextSize(text, font, 1.0, 2)
    scale = max(0.35, area.width * rng.uniform(0.3, 0.95) / max(width, 1))
    scale = min(scale, 0.6 * area.height / max(height, 1))
    x = area.x + int(max(0.0, area.width - width * scale) * rng.uniform(0, 1))
    y = area.y + int(height * scale + max(0.0, area.height - height * scale) * rng.random())
    thickness = max(1, int(scale * rng.uniform(1, 4)))
    if rng.random() < 0.35:
        _write(sheet, text, (x, y), (font, scale, thickness + 3))
    _write(sheet, text, (x, y), (font, scale, thickness))


def _write(sheet: Sheet, text: str, place: tuple[int, int], style: tuple[int, float, int]) -> None:
    font, scale, thickness = style
    # OpenCV 5 draws text on 8-bit images only.
    canvas = np.zeros(sheet.image.shape[:2], np.uint8)
    cv2.putText(canvas, text, place, font, scale, 255, thickness, cv2.LINE_AA)
    sheet.image[:] = blend(sheet.image, np.array(sheet.ink()), canvas / 255.0)


def _small_print(sheet: Sheet, area: Area) -> None:
    """Write lines of tiny text, or draw a table of it."""
    rng, ink = sheet.rng, sheet.ink()
    pitch = int(rng.integers(5, 12))
    if rng.random() < 0.4:
        _fill(sheet, area, sheet.ink())
    for y in range(area.y + pitch, area.y + area.height, pitch):
        x = area.x + 2
        while x < area.x + area.width - 4:
            length = int(rng.integers(2, 14))
            end = min(x + length, area.x + area.width - 2)
            cv2.line(sheet.image, (x, y), (end, y), ink, max(1, pitch // 4))
            x = end + 3
    if rng.random() < 0.3:
        corner = (area.x + area.width, area.y + area.height)
        cv2.rectangle(sheet.image, (area.x, area.y), corner, ink, 1)


def _bar_code(sheet: Sheet, area: Area) -> None:
    _fill(sheet, area, [245.0, 245.0, 245.0])
    x = area.x + 2
    while x < area.x + area.width - 3:
        width = int(sheet.rng.integers(1, 4))
        bar = Area(x, area.y + 2, width - 1, max(2, area.height - 6))
        _fill(sheet, bar, [20.0, 20.0, 20.0])
        x += width + int(sheet.rng.integers(1, 4))
