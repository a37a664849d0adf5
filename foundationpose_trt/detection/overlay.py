"""Draws detections onto their image: tinted label pixels, boxes, class and score."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from .postprocess import Detections

Color = tuple[int, int, int]
GOLDEN_SHARE = 0.618034  # of the colour circle: neighbours in the list get unlike hues
TINT = 0.35
DARK: Color = (20, 20, 20)
TEXT_PX = 14  # height of a line of text at 480 image rows


def draw_detections(
    rgb: np.ndarray,
    detections: Detections,
    names: list[str],
    labels: np.ndarray | None = None,
    object_columns: Sequence[int] = (),
) -> np.ndarray:
    """Return a copy of rgb (H, W, 3) uint8 with boxes, and with the label image as tint.

    names: the class of each detection. labels: (H, W) uint8, 0 = nothing. object_columns: which
    column of the logits each label stands for, from label 1 on, so that it has its box's colour.
    """
    image = rgb.copy()
    if labels is not None:
        _tint(image, labels, object_columns)
    scale = max(image.shape[0] / 480, 0.5)
    # the best last, so that it lies on top
    for index in reversed(range(len(detections))):
        text = f'{names[index]} {detections.scores[index]:.2f}'
        color = color_of(int(detections.columns[index]))
        _draw_box(image, detections.boxes_px[index], text, color, scale)
    return image


def color_of(index: int) -> Color:
    """A bright colour, R, G, B bytes, unlike those of the indices near it."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_SHARE % 1, 0.75, 1)
    return round(red * 255), round(green * 255), round(blue * 255)


def _tint(image: np.ndarray, labels: np.ndarray, object_columns: Sequence[int]) -> None:
    table = np.array([(0, 0, 0), *map(color_of, object_columns)], np.float32)
    found = labels > 0
    tinted = image[found] * (1 - TINT) + table[labels[found]] * TINT
    image[found] = tinted.astype(np.uint8)


def _draw_box(
    image: np.ndarray, box_px: np.ndarray, text: str, color: Color, scale: float
) -> None:
    low = (round(float(box_px[0])), round(float(box_px[1])))
    high = (round(float(box_px[2])) - 1, round(float(box_px[3])) - 1)
    cv2.rectangle(image, low, high, color, max(round(2 * scale), 1), cv2.LINE_AA)
    height = round(TEXT_PX * scale)
    size, thickness = height / 30, max(round(scale), 1)
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
    left = min(max(low[0], 0), max(image.shape[1] - width, 0))
    bottom = max(low[1], height + 4)
    cv2.rectangle(image, (left, bottom - height - 4), (left + width, bottom), DARK, -1)
    cv2.putText(
        image, text, (left, bottom - 4), cv2.FONT_HERSHEY_SIMPLEX, size, color, thickness,
        cv2.LINE_AA,
    )  # fmt: skip
