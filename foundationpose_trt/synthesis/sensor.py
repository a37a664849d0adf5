"""What a real RGB-D camera does to a perfect image: batched torch, any device.

The kinds of error follow structured-light and active-stereo cameras: noise growing with the
square of the distance, quantised disparity, holes at grazing angles and depth edges, flying
pixels, patches without return, colour and depth misaligned by a pixel or two. The ranges are
choices of ours, drawn per image; they cover the two real data sets in use, not one sensor.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
import torch.nn.functional as nnf

Limits = TypeVar('Limits', 'ColorNoise', 'DepthNoise')


@dataclass(frozen=True)
class ColorNoise:
    """Upper limits of the per-image colour errors (factors of the 0..1 range)."""

    gain: float = 0.3  # exposure, 1 +- gain
    tint: float = 0.12  # white balance per channel
    gamma: float = 0.3  # exponent exp(+-gamma)
    saturation: float = 0.5  # down to 1 - saturation, up to 1 + 0.4 saturation
    bias: float = 0.06
    white: float = 0.03  # standard deviation of pixel noise
    blur: float = 1.0  # mix with the 3x3 mean, twice
    motion_px: int = 4  # length of motion blur in the first quarter of the batch

    def scaled(self, factor: float) -> ColorNoise:
        """Return the same limits times a factor."""
        return _scaled(self, factor)


@dataclass(frozen=True)
class DepthNoise:
    """Upper limits of the per-image depth errors."""

    quadratic: float = 0.004  # noise standard deviation at 1 m, metres, grows with z^2
    offset: float = 0.004  # scale error of the whole image
    quantum: float = 0.003  # quantisation step at 1 m, metres, grows with z^2
    grazing: float = 0.3  # below this |cos| the surface returns nothing
    patches: float = 0.25  # share of the image lost in patches
    dropout: float = 0.05  # share of single pixels lost
    edges: float = 0.6  # share of pixels at jumps that fail, as holes or flying pixels
    edge_m: float = 0.02  # what counts as a jump
    shift_px: int = 2  # misalignment to colour
    lag_px: int = 8  # misalignment where depth lags behind colour and the camera moves
    lag_share: float = 0.0  # of the images

    def scaled(self, factor: float) -> DepthNoise:
        """Return the same limits times a factor; the jump that makes an edge stays."""
        return replace(_scaled(self, factor), edge_m=self.edge_m)


def _scaled(limits: Limits, factor: float) -> Limits:
    values = {f.name: getattr(limits, f.name) for f in fields(limits)}
    return replace(limits, **{k: type(v)(v * factor) for k, v in values.items()})


def uniform(shape: tuple[int, ...], low: float, high: float, g: torch.Generator) -> torch.Tensor:
    """Uniform float32 numbers on the generator's device."""
    return torch.rand(shape, generator=g, device=g.device) * (high - low) + low


def _box(images: torch.Tensor) -> torch.Tensor:
    """3x3 mean of (N, C, H, W), replicated at the border."""
    return nnf.avg_pool2d(nnf.pad(images, (1, 1, 1, 1), mode='replicate'), 3, 1)


def _patches(count: int, size: tuple[int, int], cells: int, g: torch.Generator) -> torch.Tensor:
    """Smooth noise (N, H, W), zero mean, about unit variance, with blobs of size/cells pixels."""
    coarse = torch.randn(count, 1, cells, cells, generator=g, device=g.device)
    return nnf.interpolate(coarse, size, mode='bicubic', align_corners=False)[:, 0]


def _shifted(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Move each of (N, C, H, W) by its own whole pixels (N, 2) rows, columns; wraps around."""
    n, c, h, w = images.shape
    rows = (torch.arange(h, device=images.device)[None] - offsets[:, :1]) % h
    columns = (torch.arange(w, device=images.device)[None] - offsets[:, 1:]) % w
    moved = images.gather(2, rows[:, None, :, None].expand(n, c, h, w))
    return moved.gather(3, columns[:, None, None, :].expand(n, c, h, w))


def _random_offsets(count: int, reach_px: int, g: torch.Generator) -> torch.Tensor:
    return torch.randint(-reach_px, reach_px + 1, (count, 2), generator=g, device=g.device)


def _motion_blur(images: torch.Tensor, reach_px: int, g: torch.Generator) -> torch.Tensor:
    """Average the first quarter of the images along one direction each."""
    moving = images[: len(images) // 4]
    offsets = _random_offsets(len(moving), reach_px, g)
    steps = [torch.round(offsets * k / 3).long() for k in range(4)]
    blurred = torch.stack([_shifted(moving, step) for step in steps]).mean(0)
    return torch.cat([blurred, images[len(moving) :]])


def degrade_color(
    color: torch.Tensor, g: torch.Generator, limits: ColorNoise = ColorNoise()
) -> torch.Tensor:
    """Return (N, H, W, 3) float32 0..1 with camera errors; `color` is left as it is."""
    n = len(color)
    images = color.permute(0, 3, 1, 2)

    def draw(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return uniform((n, channels, 1, 1), low, high, g)

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * draw(1 - limits.saturation, 1 + 0.4 * limits.saturation)
    images = images.clamp(0, 1) ** draw(-limits.gamma, limits.gamma).exp()
    images = images * draw(1 - limits.gain, 1 + limits.gain)
    images = images * draw(1 - limits.tint, 1 + limits.tint, 3)
    images = images + draw(-limits.bias, limits.bias, 3)
    for _ in range(2):
        images = torch.lerp(images, _box(images), draw(0, limits.blur))
    images = _motion_blur(images, limits.motion_px, g)
    noise = torch.randn(images.shape, generator=g, device=g.device)
    images = images + noise * draw(0, 1) ** 2 * limits.white
    quantised = (images.clamp(0, 1) * 255).round() / 255
    return quantised.permute(0, 2, 3, 1).contiguous()


def _edge_errors(depth: torch.Tensor, limits: DepthNoise, g: torch.Generator) -> torch.Tensor:
    """Turn pixels at depth jumps into flying pixels (mixed depth) or holes."""
    padded = nnf.pad(depth[:, None], (1, 1, 1, 1), mode='replicate')
    high = nnf.max_pool2d(padded, 3, 1)[:, 0]
    low = -nnf.max_pool2d(-padded, 3, 1)[:, 0]
    chance = torch.rand(depth.shape, generator=g, device=g.device)
    strength = uniform((len(depth), 1, 1), 0, limits.edges, g)
    at_edge = ((high - low) > limits.edge_m) & (chance < strength)
    flying = low + (high - low) * torch.rand(depth.shape, generator=g, device=g.device)
    kept = (chance < strength * 0.4) & (low > 0)
    return torch.where(at_edge, torch.where(kept, flying, torch.zeros_like(depth)), depth)


def _noise(depth: torch.Tensor, limits: DepthNoise, g: torch.Generator) -> torch.Tensor:
    """Scale error, white and patchy noise, and quantisation, growing with z squared."""
    n = len(depth)
    squared = depth * depth
    white = torch.randn(depth.shape, generator=g, device=g.device)
    smooth = _patches(n, (depth.shape[1], depth.shape[2]), 24, g)
    sigma = uniform((n, 1, 1), 0, 1, g) ** 2 * limits.quadratic
    share = uniform((n, 1, 1), 0, 1, g)
    out = depth * (1 + uniform((n, 1, 1), -limits.offset, limits.offset, g))
    out = out + squared * sigma * (white * share + smooth * (1 - share))
    step = (squared * uniform((n, 1, 1), 0, 1, g) ** 2 * limits.quantum).clamp_min(1e-4)
    return ((out / step).round() * step).clamp_min(0)


def _holes(
    depth: torch.Tensor, facing: torch.Tensor | None, limits: DepthNoise, g: torch.Generator
) -> torch.Tensor:
    """Boolean (N, H, W): where the sensor returns nothing."""
    n = len(depth)
    lost = torch.rand(depth.shape, generator=g, device=g.device) < (
        uniform((n, 1, 1), 0, 1, g) ** 2 * limits.dropout
    )
    share = uniform((n, 1, 1), 0, 1, g) ** 3 * limits.patches
    # the quantile of a standard normal that leaves `share` of it above
    threshold = torch.erfinv(1 - 2 * share) * 2**0.5
    lost |= _patches(n, (depth.shape[1], depth.shape[2]), 10, g) > threshold
    if facing is not None:
        lost |= facing < uniform((n, 1, 1), 0, 1, g) ** 2 * limits.grazing
    return lost


def degrade_depth(
    depth_m: torch.Tensor,
    facing: torch.Tensor | None,
    g: torch.Generator,
    limits: DepthNoise = DepthNoise(),
) -> torch.Tensor:
    """Return (N, H, W) float32 metres with sensor errors, 0 = invalid.

    facing: (N, H, W) |cosine| between surface normal and ray (rasterizer.Rendered), or None.
    """
    depth = _edge_errors(depth_m, limits, g)
    valid = (depth > 0) & ~_holes(depth, facing, limits, g)
    depth = torch.where(valid, _noise(depth, limits, g), torch.zeros_like(depth))
    return _misaligned(depth, limits, g)


def _misaligned(depth: torch.Tensor, limits: DepthNoise, g: torch.Generator) -> torch.Tensor:
    offsets = _random_offsets(len(depth), limits.shift_px, g)
    if limits.lag_share > 0:
        far = _random_offsets(len(depth), limits.lag_px, g)
        lags = torch.rand(len(depth), 1, generator=g, device=g.device) < limits.lag_share
        offsets = torch.where(lags, far, offsets)
    return _shifted(depth[:, None], offsets)[:, 0].contiguous()
