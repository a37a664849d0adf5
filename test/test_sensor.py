"""What the simulated camera may do to an image, kind by kind, against its stated limits."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from raster_rig import on_devices
from scipy.stats import kstest

from foundationpose_trt.synthesis.sensor import (
    ColorNoise,
    DepthNoise,
    degrade_color,
    degrade_depth,
    uniform,
)

SIZE = (60, 80)
NO_COLOR_NOISE, NO_DEPTH_NOISE = ColorNoise().scaled(0), DepthNoise().scaled(0)
GREY_LEVEL = 1 / 255
TENTH_MM = 1e-4  # depth is never finer than this


def generator(seed: int = 0, device: str = 'cpu') -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def wall(depth_m: float = 1.0, images: int = 40) -> torch.Tensor:
    return torch.full((images, *SIZE), depth_m)


def step_scene(images: int = 40) -> torch.Tensor:
    """Left half at 0.6 m, right half at 0.9 m, a frame without depth around."""
    depth = torch.zeros(images, *SIZE)
    depth[:, 5:-5, 5:-5] = 0.6
    depth[:, 5:-5, 40:-5] = 0.9
    return depth


def picture(images: int = 40) -> torch.Tensor:
    return torch.rand(images, *SIZE, 3, generator=generator(9)) * 0.6 + 0.2


def only(kind: type, **limits: float) -> ColorNoise | DepthNoise:
    return replace(NO_COLOR_NOISE if kind is ColorNoise else NO_DEPTH_NOISE, **limits)


def degraded(depth: torch.Tensor, limits: DepthNoise, seed: int = 0, facing=None) -> np.ndarray:
    return degrade_depth(depth, facing, generator(seed), limits).numpy()


# --- what holds for every kind -------------------------------------------------------------------
@on_devices
def test_the_same_seed_gives_the_same_image(device):
    depth, color = step_scene().to(device), picture().to(device)
    facing = torch.rand(depth.shape, generator=generator(1)).to(device)
    runs = []
    for seed in (5, 5, 6):
        g = generator(seed, device)
        runs.append((degrade_color(color, g), degrade_depth(depth, facing, g)))
    for first, same, other in zip(*runs, strict=True):
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert first.device.type == device
        assert first.dtype == torch.float32
        assert first.is_contiguous()


def test_inputs_are_left_as_they_are():
    depth, color, facing = step_scene(), picture(), torch.rand(40, *SIZE)
    kept = [tensor.clone() for tensor in (depth, color, facing)]
    degrade_depth(depth, facing, generator())
    degrade_color(color, generator())
    assert all(torch.equal(*pair) for pair in zip((depth, color, facing), kept, strict=True))


def test_nothing_becomes_depth_where_there_was_none():
    limits = replace(DepthNoise(), shift_px=0)
    for seed in range(5):
        out = degraded(step_scene(), limits, seed)
        assert (out[step_scene().numpy() == 0] == 0).all()
        assert np.isfinite(out).all() and (out >= 0).all()
    assert (degraded(torch.zeros(3, *SIZE), DepthNoise()) == 0).all()


def test_far_away_noise_is_not_negative_depth():
    out = degraded(wall(500.0), only(DepthNoise, quadratic=0.02))
    assert (out >= 0).all() and out.max() > 500


@pytest.mark.parametrize('kind', [ColorNoise, DepthNoise])
def test_limits_are_scaled(kind):
    whole, half, none = kind(), kind().scaled(0.5), kind().scaled(0.0)
    for field in fields(kind):
        values = [getattr(limits, field.name) for limits in (whole, half, none)]
        if field.name == 'edge_m':
            assert values == [values[0]] * 3
        else:
            assert values[1] == type(values[0])(values[0] / 2)
            assert values[2] == 0
            assert type(values[1]) is type(values[0])


def test_without_noise_only_the_quantisation_is_left():
    color, depth = picture(), step_scene()
    clean = degrade_color(color, generator(), NO_COLOR_NOISE).numpy()
    np.testing.assert_allclose(clean, color, atol=GREY_LEVEL / 2 + 1e-6)
    np.testing.assert_allclose(degraded(depth, NO_DEPTH_NOISE), depth, atol=TENTH_MM / 2 + 1e-7)


# --- depth ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('depth_m', [0.5, 1.0, 2.0])
def test_noise_grows_with_the_square_of_the_distance(depth_m):
    limit = 0.02
    out = degraded(wall(depth_m, 300), only(DepthNoise, quadratic=limit))
    sigma = (out - depth_m).std(axis=(1, 2)) / depth_m**2
    # the white and the patchy part share sigma <= limit; patches vary from image to image
    assert sigma.max() < 1.5 * limit
    assert 0.5 * limit < np.quantile(sigma, 0.95)
    assert abs((out - depth_m).mean()) < 0.1 * limit * depth_m**2


def test_scale_error_is_one_factor_per_image_within_its_limit():
    depth = torch.rand(200, *SIZE, generator=generator(2)) + 0.5
    out = degraded(depth, only(DepthNoise, offset=0.01, edge_m=10.0))
    ratios = out / depth.numpy()
    factor = ratios.mean(axis=(1, 2))
    assert np.abs(ratios - factor[:, None, None]).max() < 2 * TENTH_MM / 0.5
    assert kstest(factor, 'uniform', (0.99, 0.02)).pvalue > 0.01


def test_quantisation_steps_stay_below_their_limit():
    depth = wall(1.0, 60) + torch.linspace(0, 0.01, SIZE[1])
    out = degraded(depth, only(DepthNoise, quantum=0.004))
    error = np.abs(out - depth.numpy()).max(axis=(1, 2))
    assert error.max() <= 0.004 * 1.01**2 / 2 + 1e-6
    assert error.max() > 0.0012


@pytest.mark.parametrize(('kind', 'limit'), [('dropout', 0.3), ('patches', 0.5)])
def test_losses_stay_below_their_share(kind, limit):
    lost = (degraded(wall(1.0, 400), only(DepthNoise, **{kind: limit})) == 0).mean(axis=(1, 2))
    assert lost.mean() < limit / 2  # most images lose little
    assert np.quantile(lost, 0.97) > 0.4 * limit
    # patches are few and large, so their share scatters around the drawn one
    assert lost.max() < limit * (1.05 if kind == 'dropout' else 1.7)


def lonely_share(lost: np.ndarray) -> float:
    """Share of lost pixels whose left neighbour is not lost."""
    return (lost[..., 1:] & ~lost[..., :-1]).sum() / lost[..., 1:].sum()


def test_patches_hang_together_and_dropout_does_not():
    patches, dropout = (
        degraded(wall(1.0, 100), only(DepthNoise, **{kind: 0.3})) == 0
        for kind in ('patches', 'dropout')
    )
    assert lonely_share(patches) < 0.2
    assert lonely_share(dropout) > 0.7


def test_only_surfaces_at_grazing_angles_are_lost_for_that():
    facing = torch.linspace(0, 1, SIZE[1]).expand(100, *SIZE)
    lost = degraded(wall(1.0, 100), only(DepthNoise, grazing=0.3), facing=facing) == 0
    assert not lost[..., facing[0, 0] >= 0.3].any()
    limits = lost.any(axis=1).sum(axis=1) / SIZE[1]
    assert limits.max() > 0.2
    # one limit per image: everything below it is lost, nothing above
    assert (np.diff(lost.astype(int), axis=-1) <= 0).all()
    assert not (degraded(wall(1.0, 100), only(DepthNoise, grazing=0.3)) == 0).any()


def test_jumps_make_holes_and_flying_pixels_and_nothing_else_does():
    depth = step_scene(200)
    out = degraded(depth, only(DepthNoise, edges=0.6))
    source = depth.numpy()
    changed = np.abs(out - source) > TENTH_MM
    expected = np.zeros(SIZE, bool)
    expected[5:-5, [5, 39, 40, -6]] = expected[[5, -6], 5:-5] = True
    np.testing.assert_array_equal(changed.any(axis=0), expected)
    seam = out[:, 8:-8, 39:41]
    flying = (seam > 0.601) & (seam < 0.899)
    assert flying.mean() > 0.03 and (seam == 0).mean() > 0.03
    assert (seam[seam > 0] >= 0.6 - TENTH_MM).all() and (seam <= 0.9 + TENTH_MM).all()
    failed = changed[:, 8:-8, 39:41].mean(axis=(1, 2))
    assert failed.max() < 0.75 and 0.2 < failed.mean() < 0.4


def test_slopes_below_the_jump_are_untouched():
    slope = wall(1.0, 50) + torch.arange(SIZE[1]) * 0.009
    out = degraded(slope, only(DepthNoise, edges=0.6))
    np.testing.assert_allclose(out, slope, atol=TENTH_MM)


def test_shift_moves_whole_images_by_whole_pixels():
    depth = torch.rand(80, *SIZE, generator=generator(3)) + 1
    out = degraded(depth, only(DepthNoise, shift_px=2, edges=0.0))
    moves = set()
    for before, after in zip(depth.numpy(), out, strict=True):
        found = [
            (row, column)
            for row in range(-2, 3)
            for column in range(-2, 3)
            if np.allclose(np.roll(before, (row, column), (0, 1)), after, atol=TENTH_MM)
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) > 15


def test_a_share_of_the_depth_images_lags_by_more_pixels():
    depth = torch.rand(400, *SIZE, generator=generator(3)) + 1
    limits = only(DepthNoise, shift_px=0, lag_px=6, lag_share=0.25, edges=0.0)
    out = degraded(depth, limits)
    still = np.isclose(depth.numpy(), out, atol=TENTH_MM).all((1, 2))
    assert still.mean() == pytest.approx(0.75, abs=0.08)
    moved = np.flatnonzero(~still)[:30]
    reach = [
        max(abs(row), abs(column))
        for index in moved
        for row in range(-6, 7)
        for column in range(-6, 7)
        if np.allclose(np.roll(depth[index], (row, column), (0, 1)), out[index], atol=TENTH_MM)
    ]
    assert len(reach) == len(moved) and max(reach) == 6


# --- colour --------------------------------------------------------------------------------------
def test_colours_stay_in_range_and_on_grey_levels():
    out = degrade_color(torch.rand(20, *SIZE, 3, generator=generator(4)) * 1.2, generator())
    levels = out.numpy() * 255
    assert levels.min() >= 0 and levels.max() <= 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)


def flat_answer(limits: ColorNoise, color: tuple[float, ...] = (0.5, 0.4, 0.3)) -> np.ndarray:
    """Colours (300, 3) that 300 flat images of one colour turn into."""
    flat = torch.tensor(color).expand(300, 8, 8, 3)
    out = degrade_color(flat, generator(), limits).numpy()
    assert np.ptp(out, axis=(1, 2)).max() == 0
    return out[:, 0, 0]


def test_gain_is_one_factor_and_tint_is_one_per_channel():
    color = np.array([0.5, 0.4, 0.3])
    gain = flat_answer(only(ColorNoise, gain=0.3)) / color
    tint = flat_answer(only(ColorNoise, tint=0.1)) / color
    rounding = GREY_LEVEL / 2 / 0.3
    assert np.abs(gain - gain.mean(1, keepdims=True)).max() < 2 * rounding
    assert np.abs(gain - 1).max() < 0.3 + rounding
    assert np.abs(tint - 1).max() < 0.1 + rounding
    assert gain.std() == pytest.approx(0.6 / 12**0.5, rel=0.15)
    assert tint.std() == pytest.approx(0.2 / 12**0.5, rel=0.15)
    assert np.abs(np.corrcoef(tint.T)[np.triu_indices(3, 1)]).max() < 0.2


def test_bias_gamma_and_saturation_stay_within_their_limits():
    color, rounding = np.array([0.5, 0.4, 0.3]), GREY_LEVEL / 2 + 1e-6
    assert np.abs(flat_answer(only(ColorNoise, bias=0.06)) - color).max() < 0.06 + rounding
    curved = flat_answer(only(ColorNoise, gamma=0.3))
    assert (curved >= color ** np.exp(0.3) - rounding).all()
    assert (curved <= color ** np.exp(-0.3) + rounding).all()
    assert np.ptp(curved[:, 1]) > 0.8 * (0.4 ** np.exp(-0.3) - 0.4 ** np.exp(0.3))
    spread = np.ptp(flat_answer(only(ColorNoise, saturation=0.5)), axis=1) / 0.2
    assert spread.min() > 0.5 - 0.03 and spread.max() < 1.2 + 0.03
    np.testing.assert_allclose(
        flat_answer(only(ColorNoise, saturation=0.5)).mean(1), 0.4, atol=rounding
    )


def test_white_noise_is_white_and_bounded():
    flat = torch.full((200, *SIZE, 3), 0.5)
    error = degrade_color(flat, generator(), only(ColorNoise, white=0.05)).numpy() - 0.5
    sigma = error.std(axis=(1, 2, 3))
    assert sigma.max() < 0.053 and np.quantile(sigma, 0.98) > 0.03
    noisy = error[sigma > 0.02]
    for shifted in (noisy[:, 1:], noisy[:, :, 1:]):
        partner = noisy[:, : shifted.shape[1], : shifted.shape[2]]
        assert abs(np.corrcoef(partner.ravel(), shifted.ravel())[0, 1]) < 0.01


def test_blur_keeps_the_mean_and_flattens():
    noise = torch.rand(60, *SIZE, 3, generator=generator(6)) * 0.6 + 0.2
    out = degrade_color(noise, generator(), only(ColorNoise, blur=1.0)).numpy()
    np.testing.assert_allclose(out.mean((1, 2)), noise.mean((1, 2)), atol=0.01)
    ratio = out.std((1, 2, 3)) / noise.numpy().std((1, 2, 3))
    assert ratio.max() < 1.01 and ratio.min() < 0.4


def test_only_the_first_quarter_is_blurred_by_motion():
    noise = torch.rand(40, *SIZE, 3, generator=generator(7)) * 0.6 + 0.2
    out = degrade_color(noise, generator(), only(ColorNoise, motion_px=4)).numpy()
    ratio = out.std((1, 2, 3)) / noise.numpy().std((1, 2, 3))
    np.testing.assert_allclose(ratio[10:], 1, atol=0.01)
    assert np.median(ratio[:10]) < 0.7


def test_a_single_image_is_degraded_too():
    out = degrade_color(picture(1), generator())
    assert out.shape == (1, *SIZE, 3)
    assert degrade_depth(wall(1.0, 1), None, generator()).shape == (1, *SIZE)


def test_uniform_numbers_fill_their_interval():
    values = uniform((5000,), -2.0, 3.0, generator()).numpy()
    assert kstest(values, 'uniform', (-2, 5)).pvalue > 0.01
