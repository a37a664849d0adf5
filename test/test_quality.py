"""Depth evidence of a pose, counted on crops built in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evidence_rig import depth_evidence

from foundationpose_trt.datatypes import PoseQuality
from foundationpose_trt.pose.quality import confirmed

RADIUS_M = 0.05
DEPTH_M = 0.8
# 4 % of the diameter is less than 6 mm + 4 mm * z^2 here
TOLERANCE_M = 0.006 + 0.004 * DEPTH_M**2


def crop(
    gap_m: np.ndarray,
    drawn: np.ndarray,
    valid: np.ndarray,
    radius_m: float = RADIUS_M,
    depth_m: float = DEPTH_M,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (1, 6, 160, 160) of a slanted surface, and observed depth gap_m (160, 160) behind it."""
    surface_m = np.linspace(-0.03, 0.041, 160)[None].repeat(160, 0)
    rendered = np.zeros((6, 160, 160))
    rendered[:3], rendered[3:5], rendered[5] = 0.4, 0.3, surface_m / radius_m
    observed = (depth_m + surface_m + gap_m) * valid
    return (
        torch.from_numpy(rendered * drawn)[None].float(),
        torch.from_numpy(observed)[None].float(),
    )


def count(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], **changes: torch.Tensor
) -> list[list[int]]:
    rendered, observed = (torch.cat(halves) for halves in zip(*pairs, strict=True))
    translations = torch.tensor([[0.1, -0.2, DEPTH_M]]).repeat(len(rendered), 1)
    arguments = {'translations': translations, 'radius_m': torch.tensor([RADIUS_M]), **changes}
    evidence = depth_evidence(rendered, observed, **arguments)
    assert evidence.dtype == torch.int64 and evidence.shape == (len(rendered), 4)
    return evidence.tolist()


def everywhere(value: float = 1.0) -> np.ndarray:
    return np.full((160, 160), value)


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    out = np.zeros((160, 160))
    out[rows, columns] = 1
    return out


@pytest.mark.parametrize(
    ('gap_m', 'expected'),
    [
        (0.0, [25600, 25600, 0, 0]),
        (0.95 * TOLERANCE_M, [25600, 25600, 0, 0]),
        (-0.95 * TOLERANCE_M, [25600, 25600, 0, 0]),
        (1.05 * TOLERANCE_M, [25600, 0, 0, 25600]),
        (-1.05 * TOLERANCE_M, [25600, 0, 25600, 0]),
    ],
)
def test_each_kind_of_pixel(gap_m, expected):
    assert count([crop(everywhere(gap_m), everywhere(), everywhere())]) == [expected]


def test_a_mixed_crop_is_counted_pixel_by_pixel():
    drawn = rectangle(slice(20, 120), slice(30, 130))  # 100 x 100
    valid = 1 - rectangle(slice(20, 30), slice(0, 160))  # 10 rows without depth
    gap = 0.03 * rectangle(slice(0, 160), slice(30, 50)) - 0.03 * rectangle(
        slice(100, 160), slice(50, 160)
    )
    behind = 90 * 20  # columns 30..49, rows 30..119
    in_front = 20 * 80  # rows 100..119, columns 50..129
    agreeing = 90 * 100 - behind - in_front
    assert count([crop(gap, drawn, valid)]) == [[10000, agreeing, in_front, behind]]


def test_what_lies_outside_the_rendered_object_does_not_matter():
    drawn = rectangle(slice(0, 10), slice(0, 10))
    clutter = 0.03 * (1 - drawn)
    assert count([crop(clutter, drawn, everywhere())]) == [[100, 100, 0, 0]]


def test_missing_depth_says_nothing():
    assert count([crop(everywhere(0.0), everywhere(), everywhere(0.0))]) == [[25600, 0, 0, 0]]


def test_nothing_rendered_gives_no_evidence():
    assert count([crop(everywhere(0.0), everywhere(0.0), everywhere())]) == [[0, 0, 0, 0]]


@pytest.mark.parametrize(('gap_m', 'kind'), [(0.3, 3), (-0.3, 2), (20.0, 3)])
def test_a_surface_many_radii_away_speaks_as_well(gap_m, kind):
    """The network input zeroes it; a pose that hangs before a far wall is contradicted anyway."""
    expected = [25600, 0, 0, 0]
    expected[kind] = 25600
    assert count([crop(everywhere(gap_m), everywhere(), everywhere())]) == [expected]


def test_black_objects_count_as_rendered():
    rendered, observed = crop(everywhere(0.0), everywhere(), everywhere())
    rendered[:, :3] = 0
    assert count([(rendered, observed)]) == [[25600, 25600, 0, 0]]


@pytest.mark.parametrize(
    ('radius_m', 'depth_m', 'tolerance_m'),
    [
        (0.05, 0.5, 0.007),  # 6 mm + 4 mm * 0.25
        (0.05, 2.0, 0.022),  # 6 mm + 16 mm
        (0.4, 0.5, 0.032),  # 4 % of the diameter of 0.8 m
    ],
)
def test_tolerance_grows_with_distance_and_size(radius_m, depth_m, tolerance_m):
    pairs = [
        crop(everywhere(share * tolerance_m), everywhere(), everywhere(), radius_m, depth_m)
        for share in (0.97, 1.03)
    ]
    changes = {
        'translations': torch.tensor([[0.0, 0.0, depth_m]]).repeat(2, 1),
        'radius_m': torch.tensor([radius_m]),
    }
    assert count(pairs, **changes) == [[25600, 25600, 0, 0], [25600, 0, 0, 25600]]


def test_each_pose_is_counted_alone():
    pairs = [crop(everywhere(gap), everywhere(), everywhere()) for gap in (0.0, 0.02, -0.02, 0.0)]
    radius = torch.tensor([RADIUS_M, RADIUS_M, RADIUS_M, RADIUS_M])
    expected = [[25600, 25600, 0, 0], [25600, 0, 0, 25600], [25600, 0, 25600, 0]]
    assert count(pairs, radius_m=radius) == [*expected, expected[0]]


def test_half_precision_crops_count_the_same():
    gap = np.linspace(-0.03, 0.03, 160)[:, None].repeat(160, 1)
    pair = crop(gap, everywhere(), everywhere())
    full, half = count([pair])[0], count([(pair[0].half(), pair[1])])[0]
    assert sum(full[1:]) > 20000
    np.testing.assert_allclose(half, full, atol=0.01 * 25600)


@pytest.mark.parametrize(
    ('counts', 'agreement', 'visible'),
    [
        ((100, 60, 10, 20), 60 / 80, 0.6),
        ((100, 0, 100, 0), 0.0, 0.0),
        ((0, 0, 0, 0), 0.0, 0.0),
        ((50, 50, 0, 0), 1.0, 1.0),
    ],
)
def test_shares_of_the_counts(counts, agreement, visible):
    """An occluder lowers the visible share, but does not contradict."""
    quality = PoseQuality(*counts)
    assert quality.agreement == pytest.approx(agreement)
    assert quality.visible == pytest.approx(visible)


def test_what_depth_confirms_of_a_pose():
    """Agreeing over rendered, what should hide others counted twice; of nothing, nothing."""
    counts = torch.tensor([[100, 100, 0, 0], [100, 50, 50, 0], [100, 50, 0, 50], [0, 0, 0, 0]])
    torch.testing.assert_close(confirmed(counts), torch.tensor([1.0, 0.5, 1 / 3, 0.0]))
