"""From the network's outputs to detections: fixed shapes on the device, one copy to the host.

The rules are those of rfdetr 1.11.2 (shared research, roboflow.md B3): sigmoid, the best pairs of
query and class over all queries and classes, scores strictly above the threshold, boxes as
centre and size in 0..1, masks resized to the image bilinearly and cut at 0. No non-maximum
suppression: the network suppresses doubles itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import warp as wp

from ..warp_launch import RecordedLaunch, as_warp, is_same_view, launch, stream_of

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

FIELDS = 7  # of a packed row: x0, y0, x1, y1, score, column, query
BYTES = FIELDS * 4
MOST_OBJECTS = 255  # a label image holds bytes
SIZE_PLACE = 4  # of the image's size among pack_rows' arguments


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    boxes_px: (N, 4) float32, x0, y0, x1, y1, edges of the image being 0 and its size. scores:
    (N,) float32 in 0..1. columns: (N,) int64, of the logits (DetectorManifest.classes). queries:
    (N,) int64, which of the network's queries it was.
    """

    boxes_px: np.ndarray
    scores: np.ndarray
    columns: np.ndarray
    queries: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@wp.kernel
def pack_rows(
    values: wp.array(dtype=float),
    pairs: wp.array(dtype=wp.int64),
    columns: wp.array(dtype=int),
    boxes: wp.array3d(dtype=Any),
    size: wp.vec2,
    packed: wp.array2d(dtype=float),
):
    """One detection: its box in pixels, inside the image of width and height, and the rest."""
    k = wp.tid()
    pair = int(pairs[k])
    query = pair / columns.shape[0]
    for axis in range(2):
        side = size[axis]
        center = float(boxes[0, query, axis])
        half = wp.max(float(boxes[0, query, axis + 2]), 0.0) / 2.0
        packed[k, axis] = wp.clamp((center - half) * side, 0.0, side)
        packed[k, axis + 2] = wp.clamp((center + half) * side, 0.0, side)
    packed[k, 4] = 1.0 / (1.0 + wp.exp(-values[k]))
    packed[k, 5] = float(columns[pair - query * columns.shape[0]])
    packed[k, 6] = float(query)


for _dtype in (wp.float32, wp.float16):  # before the first launch: each would build all anew
    wp.overload(pack_rows, {'boxes': wp.array3d(dtype=_dtype)})


class Selector:
    """Takes the best pairs of query and class among some classes. Not thread-safe.

    One kernel does what comes after the search, where torch would launch one for each operation.
    """

    def __init__(self, columns: list[int], select: int, device: torch.device) -> None:
        """columns: of the logits that count. select: how many pairs, at most."""
        self._columns = torch.tensor(columns, device=device)
        # copied from the host, which waits: a cast would run on this thread's stream, unordered
        self._kernel_columns = torch.tensor(columns, dtype=torch.int32, device=device)
        self._select, self._device = select, device
        self._best = torch.empty(0, device=device), self._columns[:0]  # values, pairs
        self._packed = torch.empty(0, FIELDS, device=device)
        self._boxes: torch.Tensor | None = None  # that the launch was recorded for
        self._size = (0, 0)
        self._launch: RecordedLaunch | None = None

    def __call__(
        self, boxes: torch.Tensor, logits: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """Return (K, FIELDS) float32, best first, of an image of size (height, width); no sync.

        boxes: (1, Q, 4) centre and size in 0..1; logits: (1, Q, C). The result is a buffer that
        the next call fills again.
        """
        wanted = logits[0].float().index_select(1, self._columns).flatten()
        count = min(self._select, len(wanted))
        if len(self._packed) != count:
            self._best = wanted.new_empty(count), self._columns.new_empty(count)
            self._packed = wanted.new_empty(count, FIELDS)
            self._launch = None
        torch.topk(wanted, count, out=self._best)  # of logits: as of their sigmoids, without ties
        self._prepared(boxes, size)((count,), stream_of(self._device))
        return self._packed

    def _prepared(self, boxes: torch.Tensor, size: tuple[int, int]) -> RecordedLaunch:
        """Return the launch for these boxes, recorded anew where they lie elsewhere."""
        if self._launch is None or self._boxes is None or not is_same_view(self._boxes, boxes):
            arrays = [as_warp(part) for part in (*self._best, self._kernel_columns, boxes)]
            arguments = [*arrays, wp.vec2(size[1], size[0]), as_warp(self._packed)]
            dim = (len(self._packed),)
            self._launch = RecordedLaunch(pack_rows, dim, arguments, self._device)
            self._boxes, self._size = boxes, size
        elif size != self._size:
            self._launch.replace(SIZE_PLACE, wp.vec2(size[1], size[0]))
            self._size = size
        return self._launch


def unpacked(packed: np.ndarray, threshold: float) -> Detections:
    """Read packed rows (K, FIELDS) on the host; keeps scores strictly above the threshold."""
    kept = packed[packed[:, 4] > threshold]
    return Detections(
        kept[:, :4].copy(), kept[:, 4].copy(), kept[:, 5].astype(np.int64),
        kept[:, 6].astype(np.int64),
    )  # fmt: skip


class HostSelector:
    """What Selector and unpacked give together, for outputs on a CPU.

    The few pairs above the threshold are sorted, instead of all: a tenth of the time.
    """

    def __init__(self, columns: list[int], count: int, select: int) -> None:
        """columns: of the logits that count, among all `count` of them. select: how many pairs."""
        self._counts = np.zeros(count, bool)
        self._counts[columns] = True
        self._select = select

    def __call__(
        self, boxes: np.ndarray, logits: np.ndarray, threshold: float, size: tuple[int, int]
    ) -> Detections:
        """Return the detections, best first; boxes (1, Q, 4) and logits (1, Q, C) float32."""
        values = logits.reshape(-1)
        # a little lower, as the logit is rounded; the sigmoids decide
        share = threshold / max(1 - threshold, 1e-9)
        pairs = np.flatnonzero(values > (math.log(share) - 0.01 if share > 0 else -math.inf))
        queries, columns = np.divmod(pairs, logits.shape[2])
        counts = self._counts[columns]
        chosen = values[pairs[counts]]
        order = np.argsort(-chosen, kind='stable')[: self._select]
        scores = 1 / (1 + np.exp(-chosen[order]))
        order = order[scores > threshold]
        queries, columns = queries[counts][order], columns[counts][order]
        box, corners = boxes[0, queries], np.empty((len(order), 4), np.float32)
        center, half = box[:, :2], np.maximum(box[:, 2:], 0) / 2
        np.subtract(center, half, out=corners[:, :2])
        np.add(center, half, out=corners[:, 2:])
        limits = np.array((size[1], size[0], size[1], size[0]), np.float32)
        corners = np.minimum(np.maximum(corners * limits, 0), limits)
        return Detections(corners, scores[: len(order)], columns, queries)


@wp.func
def mask_logit(masks: wp.array4d(dtype=float), query: int, y: float, x: float) -> float:
    """Bilinear between pixel centres at half integers, as torch's interpolate reads."""
    y = wp.max(y, 0.0)
    x = wp.max(x, 0.0)
    y0 = int(y)
    x0 = int(x)
    y1 = wp.min(y0 + 1, masks.shape[2] - 1)
    x1 = wp.min(x0 + 1, masks.shape[3] - 1)
    fy = y - float(y0)
    fx = x - float(x0)
    upper = masks[0, query, y0, x0] * (1.0 - fx) + masks[0, query, y0, x1] * fx
    lower = masks[0, query, y1, x0] * (1.0 - fx) + masks[0, query, y1, x1] * fx
    return upper * (1.0 - fy) + lower * fy


@wp.kernel
def paint_labels(
    packed: wp.array2d(dtype=float),
    labels: wp.array(dtype=int),
    masks: wp.array4d(dtype=float),
    threshold: float,
    out: wp.array2d(dtype=wp.uint8),
):
    """Each pixel: the label of the best row whose mask covers it; label 0 does not count."""
    j, i = wp.tid()
    y = (float(j) + 0.5) * float(masks.shape[2]) / float(out.shape[0]) - 0.5
    x = (float(i) + 0.5) * float(masks.shape[3]) / float(out.shape[1]) - 0.5
    out[j, i] = wp.uint8(0)
    for k in range(packed.shape[0]):
        if packed[k, 4] <= threshold:
            return
        if labels[k] > 0 and mask_logit(masks, int(packed[k, 6]), y, x) > 0.0:
            out[j, i] = wp.uint8(labels[k])
            return


class LabelPainter:
    """Label images from mask logits: pixel = 1-based index of an object, 0 = nothing."""

    def __init__(self, objects: list[int], columns: int, device: torch.device) -> None:
        """objects: the column of each object's class; columns: how many the logits have."""
        labels = torch.zeros(columns, dtype=torch.int32)
        labels[torch.tensor(objects)] = torch.arange(1, len(objects) + 1, dtype=torch.int32)
        self._labels = labels.to(device)

    def paint(
        self, packed: torch.Tensor, masks: torch.Tensor, threshold: float, out: torch.Tensor
    ) -> None:
        """Fill out (H, W) uint8 from packed rows and masks (1, Q, h, w); asynchronous.

        Of each object the mask of its best row; where masks overlap, the better one wins.
        """
        labels = self._labels[packed[:, 5].long()]
        # a query that overflowed is sorted before all others, and must not stand for its object
        labels = torch.where(packed[:, 4].isnan(), torch.zeros_like(labels), labels)
        seen_before = (labels[:, None] == labels[None]).tril(-1).any(1)
        labels = torch.where(seen_before, torch.zeros_like(labels), labels)
        arguments = [
            as_warp(packed), as_warp(labels), as_warp(masks.float().contiguous()),
            float(threshold), as_warp(out),
        ]  # fmt: skip
        launch(paint_labels, tuple(out.shape), arguments, out.device)


def instance_masks(
    masks: torch.Tensor, queries: np.ndarray, size: tuple[int, int]
) -> torch.Tensor:
    """Masks (N, H, W) bool of some queries, at the image's size; masks: (1, Q, h, w) logits."""
    chosen = masks[0, torch.from_numpy(queries).to(masks.device)].float()
    if len(queries) == 0:
        return torch.zeros((0, *size), dtype=torch.bool, device=masks.device)
    resized = torch.nn.functional.interpolate(
        chosen[:, None], size, mode='bilinear', align_corners=False
    )
    return resized[:, 0] > 0
