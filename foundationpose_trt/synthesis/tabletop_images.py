"""Renders composed scenes into RGB-D frames with exact poses and masks, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..datatypes import Frame
from ..pose.mesh_bank import MeshBank
from ..pose.rasterizer import Light, Rasterizer, Rendered
from .sensor import ColorNoise, DepthNoise, degrade_color, degrade_depth
from .tabletop import TabletopScene

SENSOR_RANGE_M = 5.0  # beyond it the depth image is empty, as with the usual RGB-D cameras


@dataclass(frozen=True)
class SensorNoise:
    """Limits of the camera's errors; None = a perfect camera."""

    color: ColorNoise | None = ColorNoise()
    depth: DepthNoise | None = DepthNoise()

    @classmethod
    def none(cls) -> SensorNoise:
        """Return a perfect camera."""
        return cls(None, None)

    @classmethod
    def video(cls) -> SensorNoise:
        """Return what varies from frame to frame of one camera in one room.

        The defaults are drawn per image: at their full width a sequence would flicker.
        """
        return cls(
            ColorNoise(
                gain=0.03, tint=0.015, gamma=0.03, saturation=0.05, bias=0.01, white=0.025,
                blur=0.5, motion_px=1,
            ),
            DepthNoise(
                quadratic=0.003, offset=0.001, quantum=0.002, patches=0.02, dropout=0.02,
                shift_px=0,
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class TabletopImage:
    """One rendered view with its ground truth.

    mask: (H, W) bool, the target's visible pixels, exact. visible_share: of the target's pixels
    inside the image, 0..1. camera_from_object: (4, 4) float64, metres.
    """

    frame: Frame
    mask: np.ndarray
    visible_share: float
    camera_from_object: np.ndarray


class TabletopRenderer:
    """Draws the views of one scene on one device, `batch` at a time."""

    def __init__(
        self, scene: TabletopScene, device: str | torch.device = 'cpu', batch: int = 8
    ) -> None:
        self.scene = scene
        self.device = torch.device(device)
        self.batch = min(batch, len(scene))
        bank = MeshBank(scene.meshes, self.device, extra_textures=scene.textures)
        size = (scene.intrinsics.height, scene.intrinsics.width)
        self._all = Rasterizer(bank, self.batch, *size, slots=len(scene.meshes))
        self._alone = Rasterizer(bank, self.batch, *size, slots=1)
        textures = np.tile(bank.default_texture, (len(scene), 1))
        own = int((bank.default_texture >= 0).sum())
        textures[:, scene.table_slot] = own + scene.texture_of_view
        meshes = np.where(scene.drawn, np.arange(len(scene.meshes)), -1)
        self._textures, self._meshes = self._put(textures, 'i4'), self._put(meshes, 'i4')
        self._poses = self._put(scene.camera_from_centered, 'f4')
        self._toward = self._put(scene.toward_light, 'f4')
        self._strengths = self._put(scene.light_strengths, 'f4')
        k = scene.intrinsics
        self._intrinsics = self._put(np.tile([k.fx, k.fy, k.cx, k.cy], (len(scene), 1)), 'f4')

    def _put(self, values: np.ndarray, code: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=code)).to(self.device)

    def images(self, seed: int, noise: SensorNoise = SensorNoise()) -> Iterator[TabletopImage]:
        """Yield the views in order; the same seed on the same device gives the same noise."""
        generator = torch.Generator(self.device).manual_seed(seed)
        poses = self.scene.camera_from_target()
        for start in range(0, len(self.scene), self.batch):
            part = slice(start, min(start + self.batch, len(self.scene)))
            whole = self._alone_pixels(part)
            color, depth, masks = self._degraded(self._render(part), generator, noise)
            for k, view in enumerate(range(part.start, part.stop)):
                frame = Frame(color[k], depth[k], self.scene.intrinsics)
                share = float(masks[k].sum() / max(1, whole[k]))
                yield TabletopImage(frame, masks[k], share, poses[view])

    def _render(self, part: slice) -> Rendered:
        self._all.draw(
            self._meshes[part], self._poses[part], self._intrinsics[part], self._textures[part]
        )
        return self._all.shade(Light(self._toward[part], self._strengths[part]))

    def _alone_pixels(self, part: slice) -> np.ndarray:
        """Count the target's pixels without anything in front of it."""
        self._alone.draw(self._meshes[part, :1], self._poses[part, :1], self._intrinsics[part])
        slot = self._alone.shade().slot
        return (slot == 0).sum((1, 2)).cpu().numpy()

    def _degraded(
        self, rendered: Rendered, generator: torch.Generator, noise: SensorNoise
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        color, depth = rendered.color, rendered.depth_m
        if noise.color is not None:
            color = degrade_color(color, generator, noise.color)
        if noise.depth is not None:
            depth = degrade_depth(depth, rendered.facing, generator, noise.depth)
        depth = torch.where(depth <= SENSOR_RANGE_M, depth, torch.zeros_like(depth))
        pixels = (color.clamp(0, 1) * 255).round().to(torch.uint8)
        mask = rendered.slot == 0
        return pixels.cpu().numpy(), depth.cpu().numpy(), mask.cpu().numpy()
