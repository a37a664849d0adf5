"""After the network: the reference's record, closed forms, and label images from all sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detector_rig import FIXTURES, MASK_BLOCK, SIZES

from foundationpose_trt.detection.label_image import (
    box_slices,
    in_band,
    label_image,
    labels_of_masks,
)
from foundationpose_trt.detection.postprocess import (
    Detections,
    HostSelector,
    LabelPainter,
    Selector,
    instance_masks,
    unpacked,
)

CPU = torch.device('cpu')
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
RECORD = np.load(FIXTURES)


def selected(model: str, size: tuple[int, int], device: str = 'cpu') -> tuple[Detections, tuple]:
    boxes, logits = (
        torch.from_numpy(RECORD[f'{model}_raw_{key}']).to(device) for key in ('boxes', 'logits')
    )
    queries, columns = logits.shape[1:]
    packed = Selector(list(range(columns)), queries, torch.device(device))(boxes, logits, size)
    return unpacked(packed.cpu().numpy(), float(RECORD['threshold'])), (packed, logits)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', list(SIZES))
@pytest.mark.parametrize('model', ['nano', 'seg'])
def test_detections_are_those_of_the_reference_package(device, model, size):
    """Recorded from rfdetr 1.11.2's predict() (record_detector_fixtures.py), in its order."""
    found, _ = selected(model, SIZES[size], device)
    np.testing.assert_array_equal(found.columns, RECORD[f'{model}_columns_{size}'])
    np.testing.assert_allclose(found.scores, RECORD[f'{model}_scores_{size}'], atol=1e-6)
    np.testing.assert_allclose(found.boxes_px, RECORD[f'{model}_boxes_{size}'], atol=2e-3)
    assert (found.scores > RECORD['threshold']).all() and len(found) in (61, 159)


def raw_masks() -> np.ndarray:
    return np.kron(RECORD['seg_raw_coarse'], np.ones((1, 1, MASK_BLOCK, MASK_BLOCK), np.float32))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', list(SIZES))
def test_masks_are_those_of_the_reference_package(device, size):
    found, _ = selected('seg', SIZES[size])
    masks = torch.from_numpy(raw_masks()).to(device)
    actual = instance_masks(masks, found.queries[:4], SIZES[size]).cpu().numpy()
    bits = np.unpackbits(RECORD[f'seg_masks_{size}'], count=actual.size)
    assert (actual.reshape(-1) != bits).mean() < (0 if device == 'cpu' else 1e-5) + 1e-9
    assert 0.2 < bits.mean() < 0.8


def test_only_some_classes_count():
    logits = torch.full((1, 4, 5), -9.0)
    logits[0, 0, 1], logits[0, 1, 4], logits[0, 2, 2], logits[0, 3, 4] = 3.0, 2.0, 1.0, 0.0
    boxes = torch.full((1, 4, 4), 0.5)
    packed = Selector([4, 2], 10, CPU)(boxes, logits, (100, 200))
    found = unpacked(packed.numpy(), 0.4)
    assert found.columns.tolist() == [4, 2, 4] and found.queries.tolist() == [1, 2, 3]
    expected = 1 / (1 + np.exp([-2.0, -1.0, 0.0]))
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)
    assert len(Selector([4, 2], 2, CPU)(boxes, logits, (100, 200))) == 2


@pytest.mark.parametrize('threshold', [0.0, 0.02, 0.5, 0.7, 0.999, 1.0])
@pytest.mark.parametrize('columns', [[4, 2], list(range(7))])
def test_a_host_selects_what_the_device_selects(threshold, columns):
    g = torch.Generator().manual_seed(len(columns))
    for queries, select in ((1, 1), (50, 20), (300, 300)):
        logits = 4 * torch.randn(1, queries, 7, generator=g)
        boxes = torch.rand(1, queries, 4, generator=g) * 1.2 - 0.1
        packed = Selector(columns, select, CPU)(boxes, logits, (480, 640))
        wanted = unpacked(packed.numpy(), threshold)
        host = HostSelector(columns, 7, select)
        found = host(boxes.numpy(), logits.numpy(), threshold, (480, 640))
        assert found.queries.tolist() == wanted.queries.tolist()
        assert found.columns.tolist() == wanted.columns.tolist()
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5)
        np.testing.assert_allclose(found.boxes_px, wanted.boxes_px, atol=1e-3)


def test_the_threshold_is_strict():
    logits, boxes = torch.zeros(1, 1, 1), torch.full((1, 1, 4), 0.5)
    packed = Selector([0], 1, CPU)(boxes, logits, (10, 10)).numpy()
    assert len(unpacked(packed, 0.5)) == 0 and len(unpacked(packed, 0.49)) == 1
    host = HostSelector([0], 1, 1)
    for threshold, count in ((0.5, 0), (0.49, 1)):
        assert len(host(boxes.numpy(), logits.numpy(), threshold, (10, 10))) == count


@pytest.mark.parametrize(
    ('box', 'corners'),
    [
        ((0.5, 0.5, 0.5, 0.5), (50, 25, 150, 75)),
        ((0.0, 0.5, 0.5, 0.2), (0, 40, 50, 60)),
        ((1.0, 1.0, 0.4, 0.4), (160, 80, 200, 100)),
        ((0.5, 0.5, -1.0, 0.5), (100, 25, 100, 75)),
        ((7.0, -7.0, 0.1, 0.1), (200, 0, 200, 0)),
    ],
)
def test_boxes_are_corners_inside_the_image(box, corners):
    packed = Selector([0], 1, CPU)(torch.tensor([[box]]), torch.zeros(1, 1, 2), (100, 200))
    np.testing.assert_allclose(packed[0, :4], corners, atol=1e-4)


@pytest.mark.parametrize('device', DEVICES)
def test_a_selector_follows_other_boxes_sizes_and_types(device):
    """One after the other, as images of several cameras or engines come; by hand."""
    select = Selector([0, 1], 2, torch.device(device))
    logits = torch.tensor([[[1.0, -2.0], [-1.0, 3.0]]], device=device)
    kept = []
    for kind, size, shift in (
        (torch.float32, (100, 200), 0.0),
        (torch.float32, (100, 200), 0.1),
        (torch.float32, (50, 400), 0.1),
        (torch.float16, (50, 400), 0.25),
    ):
        boxes = torch.tensor([[[0.25, 0.5, 0.2, 0.5], [0.5, 0.25, 0.5, 0.5]]]) + shift
        boxes[..., 2:] -= shift
        packed = select(boxes.to(device, kind), logits, size).cpu().numpy().copy()
        kept.append(packed)
        half = np.array([[0.25, 0.25], [0.1, 0.25]])
        center = np.array([[0.5, 0.25], [0.25, 0.5]]) + shift
        corners = np.hstack([center - half, center + half]).clip(0, 1)
        expected = corners * (size[1], size[0], size[1], size[0])
        np.testing.assert_allclose(
            packed[:, :4], expected, atol=0.2 if kind.itemsize == 2 else 1e-4
        )
        np.testing.assert_allclose(packed[:, 4], [0.952574, 0.731059], atol=1e-5)
        np.testing.assert_array_equal(packed[:, 5:], [[1, 1], [0, 0]])


def detections(*rows: tuple[int, float, tuple[float, ...]], queries=None) -> Detections:
    boxes = np.array([row[2] for row in rows], np.float32).reshape(-1, 4)
    scores = np.array([row[1] for row in rows], np.float32)
    columns = np.array([row[0] for row in rows], np.int64)
    return Detections(boxes, scores, columns, np.arange(len(rows)))


@pytest.mark.parametrize('device', DEVICES)
def test_label_images_painted_by_the_kernel_are_those_of_the_host(device):
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.standard_normal((1, 100, 13, 17)).astype(np.float32))
    masks = torch.nn.functional.interpolate(masks, (60, 80), mode='bicubic').to(device)
    objects, size = [3, 50, 7, 90], (97, 131)
    for threshold in (0.3, 0.75, 0.99):
        found, (packed, logits) = selected('seg', size, device)
        found = unpacked(packed.cpu().numpy(), threshold)
        out = torch.full(size, 77, dtype=torch.uint8, device=device)
        painter = LabelPainter(objects, logits.shape[2], torch.device(device))
        painter.paint(packed, masks, threshold, out)
        expected = labels_of_masks(found, objects, masks.cpu(), size)
        assert (out.cpu().numpy() != expected).mean() < 1e-3
        assert set(np.unique(expected)) <= {0, 1, 2, 3, 4}
    assert (
        len(np.unique(labels_of_masks(selected('seg', size)[0], objects, masks.cpu(), size))) > 1
    )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('column', [0, 1, 2])
def test_a_query_that_overflowed_paints_nothing_and_hides_nothing(column, device):
    """Of either object or of neither."""
    masks = torch.full((1, 3, 8, 8), -1.0)
    masks[0, 0] = masks[0, 1, :, :5] = masks[0, 2, :, 3:] = 1.0
    logits = torch.full((1, 3, 3), -9.0)
    logits[0, 0, column], logits[0, 1, 0], logits[0, 2, 1] = float('nan'), 3.0, 2.0
    boxes = torch.full((1, 3, 4), 0.5, device=device)
    packed = Selector([0, 1, 2], 9, boxes.device)(boxes, logits.to(device), (8, 8))
    assert packed[0, 4].isnan() and packed[0, 6] == 0, 'sorted first'
    out = torch.full((8, 8), 77, dtype=torch.uint8, device=device)
    LabelPainter([0, 1], 3, boxes.device).paint(packed, masks.to(device), 0.5, out)
    np.testing.assert_array_equal(out.cpu(), [[1] * 5 + [2] * 3] * 8)


def test_of_an_object_the_best_mask_and_of_two_objects_the_better():
    masks = torch.full((1, 4, 8, 8), -1.0)
    masks[0, 0, :, :4] = 1  # can, best
    masks[0, 1, :, 2:6] = 1  # box, overlaps the can
    masks[0, 2] = 1  # a second can: everywhere, but not the best
    masks[0, 3, 6:] = 1  # of no object
    rows = [(1, 0.9, (0,) * 4), (0, 0.8, (0,) * 4), (1, 0.7, (0,) * 4), (2, 0.6, (0,) * 4)]
    labels = labels_of_masks(detections(*rows), [0, 1], masks, (8, 8))
    expected = np.zeros((8, 8))
    expected[:, :4], expected[:, 4:6] = 2, 1
    np.testing.assert_array_equal(labels, expected)


def test_without_masks_the_box_is_filled():
    rows = [
        (5, 0.9, (2.0, 1.0, 6.0, 4.0)),
        (7, 0.8, (4.0, 2.0, 9.0, 9.0)),
        (7, 0.7, (0, 0, 10, 10)),
    ]
    labels = label_image(detections(*rows), [7, 5], (8, 10))
    expected = np.zeros((8, 10))
    expected[2:8, 4:9] = 1
    expected[1:4, 2:6] = 2  # the better one wins where both are
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint8
    assert not label_image(detections(), [7, 5], (8, 10)).any()


@pytest.mark.parametrize(
    ('box', 'rows', 'columns'),
    [
        ((0.4, 0.4, 2.6, 2.6), (0, 3), (0, 3)),
        ((0.6, 0.5, 2.4, 2.5), (0, 2), (1, 2)),
        ((-5.0, -5.0, 50.0, 50.0), (0, 8), (0, 10)),
        ((9.9, 7.9, 9.95, 7.95), (8, 8), (10, 10)),
        ((20.0, 20.0, 30.0, 30.0), (8, 8), (10, 10)),
    ],
)
def test_a_box_holds_the_pixels_whose_centres_it_holds(box, rows, columns):
    actual = box_slices(np.array(box), (8, 10))
    assert [(s.start, s.stop) for s in actual] == [rows, columns]


def test_depth_parts_the_object_from_what_lies_behind_and_before():
    depth = np.full((40, 60), 2.0, np.float32)  # the wall
    depth[10:30, 15:45] = np.linspace(0.8, 0.88, 30)  # the object
    depth[10:14, 15:45] = 0.5  # a finger before it
    depth[20, 20] = 0  # no echo
    found = detections((0, 0.9, (10.0, 8.0, 50.0, 32.0)))
    labels = label_image(found, [0], depth.shape, depth, band_m=0.15)
    expected = (depth >= 0.8) & (depth < 1)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ('depth', 'expected'),
    [
        (np.zeros((4, 4)), np.zeros((4, 4))),
        (np.array([[1.0]]), [[1]]),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.array([[3.0, 1.0, 1.1, 3.0]] * 4), [[0, 1, 1, 0]] * 4),
        (np.array([[9.0, 1.0, 2.0, 9.0]] * 4), [[0, 1, 0, 0]] * 4),  # as many: the nearest
        (np.array([[3.0, np.inf, 1.1, np.nan]] * 4), [[0, 0, 1, 0]] * 4),
    ],
)
def test_the_band_that_holds_most_of_the_middle(depth, expected):
    np.testing.assert_array_equal(in_band(depth.astype(np.float32), 0.15), expected)
