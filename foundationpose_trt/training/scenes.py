"""Random observed scenes for training: a target among clutter, seen by a bad camera, on the GPU.

Every scene is one square patch of an image around the target, at the camera's pixel pitch (or
the crop's when that is coarser), so that the crops of any nearby pose can be cut from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..geometry import exp_so3, random_rotations
from ..pose.crops import (
    CropGeometry,
    CropSpec,
    ObservedImages,
    crop_windows,
    observed_grid,
    rendered_intrinsics,
    write_observed_input,
)
from ..pose.depth import DepthFilter
from ..pose.mesh import ObjectMesh
from ..pose.mesh_bank import MeshBank
from ..pose.rasterizer import Light, Rasterizer, Rendered
from ..synthesis.sensor import ColorNoise, DepthNoise, degrade_color, degrade_depth, uniform

PATCH_PX = 232
PATCH_OVER_CROP = 1.45  # the patch reaches beyond the crop, so that shifted crops stay inside
SLOTS = 6  # target, occluder, two or three clutter objects, support plane, wall
LAG_SHARE = 0.12  # hand-held cameras whose depth comes from an earlier moment than the colour
UNPRINTED_SHARE = 0.15  # of the targets have one colour: their shape alone must do
IMAGE_SIZES = ((640, 480), (1280, 720), (848, 480))


@dataclass(frozen=True)
class TrainingWorld:
    """Meshes and textures on the device; the last `planes` meshes are textured squares."""

    bank: MeshBank
    diameters: torch.Tensor  # (M,) float32 metres
    points: torch.Tensor  # (M, P, 3) float32 metres, surface samples for pose errors
    objects: int
    object_textures: int
    background_textures: int
    plain_textures: torch.Tensor  # (K,) int64, object textures that show hardly anything

    @classmethod
    def build(
        cls,
        objects: Sequence[ObjectMesh],
        planes: Sequence[ObjectMesh],
        backgrounds: Sequence[np.ndarray],
        device: torch.device,
    ) -> TrainingWorld:
        """Upload objects, square planes and background textures."""
        meshes = [*objects, *planes]
        bank = MeshBank(meshes, device, backgrounds)
        generator = np.random.default_rng(0)
        textures = [m.texture for m in meshes if m.texture is not None]
        points = [m.vertices[generator.integers(0, len(m.vertices), 128)] for m in meshes]
        return cls(
            bank,
            torch.tensor([m.diameter_m for m in meshes], dtype=torch.float32, device=device),
            torch.from_numpy(np.stack(points)).float().to(device),
            len(objects),
            int((bank.default_texture >= 0).sum()),
            len(backgrounds),
            torch.tensor(_plainest(textures), device=device),
        )


def _plainest(textures: Sequence[np.ndarray]) -> list[int]:
    """Indices of the tenth of the textures whose colours vary least."""
    spread = [float(texture.reshape(-1, 3).std(0).sum()) for texture in textures]
    return np.argsort(spread)[: max(1, len(spread) // 10)].tolist()


@dataclass(frozen=True)
class SceneBatch:
    """N observed scenes. Poses are camera_from_centered of the target, (N, 4, 4) float32.

    images: patches and their intrinsics; camera: (N, 4) intrinsics of the whole image; patch:
    (N, 3) x start, y start, pitch of the patch in image pixels; size: (N, 2) image width, height.
    visible: (N,) share of the target that is seen.
    """

    mesh: torch.Tensor
    texture: torch.Tensor
    camera_from_centered: torch.Tensor
    images: ObservedImages
    camera: torch.Tensor
    patch: torch.Tensor
    size: torch.Tensor
    visible: torch.Tensor


class SceneSampler:
    """Draws SceneBatches of a fixed size; owns its rasterizer and depth filter."""

    def __init__(self, world: TrainingWorld, count: int, generator: torch.Generator) -> None:
        self.world = world
        self.count = count
        self.g = generator
        self.device = generator.device
        self._raster = Rasterizer(world.bank, count, PATCH_PX, PATCH_PX, SLOTS)
        self._filter = DepthFilter(count, PATCH_PX, PATCH_PX, self.device)
        self._sizes = torch.tensor(IMAGE_SIZES, dtype=torch.float32, device=self.device)

    def sample(self, difficulty: float = 1.0) -> SceneBatch:
        """Draw, render and degrade one batch of scenes.

        difficulty 0..1 scales clutter, occlusion and every camera error: a young network finds
        the way sooner in clean scenes.
        """
        mesh, texture = self._choose_objects(difficulty)
        camera, size, translation, crop_px = self._choose_camera(mesh[:, 0])
        poses = self._choose_poses(mesh, translation)
        patch = self._patches(camera, translation, crop_px)
        intrinsics = self._patch_intrinsics(camera, patch)
        alone = mesh.clone()
        alone[:, 1:] = -1
        self._raster.draw(alone, poses, intrinsics, texture)
        whole = self._raster.coverage().sum((1, 2))
        self._raster.draw(mesh, self._imperfect(poses), intrinsics, texture)
        seen = self._raster.shade(self._choose_light())
        visible = (seen.slot == 0).sum((1, 2)) / whole.clamp_min(1)
        rgb, depth = self._expose(seen, patch, size, difficulty)
        images = ObservedImages(rgb, depth, intrinsics)
        return SceneBatch(
            mesh[:, 0], texture[:, 0], poses[:, 0].contiguous(), images, camera, patch, size,
            visible,
        )  # fmt: skip

    def _integers(self, shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.g, device=self.device)

    def _choose_objects(self, difficulty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mesh and texture of every slot; the textures are swapped between objects at random."""
        n, w = self.count, self.world
        mesh = self._integers((n, SLOTS), 0, w.objects)
        chance = torch.rand(n, SLOTS, generator=self.g, device=self.device)
        absent = torch.tensor([0.0, 0.45, 0.35, 0.5, 0.2, 0.35], device=self.device)
        planes = len(w.diameters) - w.objects
        absent[1:4] = 1 - (1 - absent[1:4]) * difficulty
        mesh[:, 4:] = w.objects + self._integers((n, 2), 0, planes)
        texture = w.bank.default_texture_device[mesh].long()
        swapped = self._integers((n, SLOTS), 0, w.object_textures)
        swap = torch.rand(n, SLOTS, generator=self.g, device=self.device) < 0.4
        texture = torch.where(swap, swapped, texture)
        unprinted = torch.rand(n, generator=self.g, device=self.device) < UNPRINTED_SHARE
        choice = self._integers((n,), 0, len(w.plain_textures))
        texture[:, 0] = torch.where(unprinted, w.plain_textures[choice], texture[:, 0])
        texture[:, 4:] = w.object_textures + self._integers((n, 2), 0, w.background_textures)
        return torch.where(chance < absent, -1, mesh).int(), texture.int()

    def _choose_camera(self, mesh: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Intrinsics, image size, target translation and crop side in pixels."""
        n, g = self.count, self.g
        diameter = self.world.diameters[mesh.long()]
        size = self._sizes[self._integers((n,), 0, len(IMAGE_SIZES))]
        focal = size[:, 0] * uniform((n,), np.log(0.8), np.log(1.9), g).exp()
        camera = torch.stack(
            [
                focal,
                focal * uniform((n,), 0.99, 1.01, g),
                size[:, 0] * uniform((n,), 0.46, 0.54, g),
                size[:, 1] * uniform((n,), 0.46, 0.54, g),
            ],
            dim=1,
        )
        crop_px = uniform((n,), np.log(45.0), np.log(420.0), g).exp()
        z = (1.2 * diameter * focal / crop_px).clamp(0.25, 2.5)
        crop_px = 1.2 * diameter * focal / z
        reach = uniform((n, 1), 0.0, 1.0, g) < 0.12  # these may be cut off by the image border
        margin = torch.where(reach, 0.0, crop_px[:, None] * 0.45).clamp_max(size * 0.45)
        pixel = margin + (size - 2 * margin) * uniform((n, 2), 0, 1, g)
        xy = (pixel - camera[:, 2:]) / camera[:, :2] * z[:, None]
        return camera, size, torch.cat([xy, z[:, None]], 1), crop_px

    def _choose_poses(self, mesh: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
        """camera_from_centered (N, SLOTS, 4, 4) of target, occluder, clutter, plane and wall."""
        n, g = self.count, self.g
        poses = torch.eye(4, device=self.device).repeat(n, SLOTS, 1, 1)
        poses[..., :3, :3] = random_rotations(n * SLOTS, g).view(n, SLOTS, 3, 3)
        diameters = self.world.diameters[mesh.clamp_min(0).long()]
        reach = (diameters + diameters[:, :1]) / 2
        away = torch.randn(n, SLOTS, 3, generator=g, device=self.device)
        away = torch.nn.functional.normalize(away, dim=-1)
        away = away * (reach * uniform((n, SLOTS), 0.55, 1.1, g))[..., None]
        sideways = torch.nn.functional.normalize(away[:, 1, :2], dim=-1)
        away[:, 1, :2] = sideways * (reach[:, 1] * uniform((n,), 0.3, 0.85, g))[:, None]
        away[:, 1, 2] = -reach[:, 1] * uniform((n,), 0.5, 1.3, g)  # the occluder is in front
        poses[..., :3, 3] = translation[:, None] + away
        poses[:, 0, :3, 3] = translation
        self._place_planes(poses, translation, diameters[:, 0])
        return poses

    def _place_planes(
        self, poses: torch.Tensor, translation: torch.Tensor, diameter: torch.Tensor
    ) -> None:
        """Slot 4: a table under the target, tilted; slot 5: a wall behind. Normals face us."""
        n, g = self.count, self.g
        tilt = torch.zeros(n, 2, 3, device=self.device)
        tilt[:, 0, 0] = uniform((n,), 0.2, 1.4, g)  # 0 = facing us, pi/2 = edge-on
        tilt[:, 1, :2] = uniform((n, 2), -0.5, 0.5, g)
        roll = torch.zeros(n, 2, 3, device=self.device)
        roll[:, :, 2] = uniform((n, 2), -1.2, 1.2, g)
        rotation = exp_so3(roll) @ exp_so3(tilt)
        depth = diameter[:, None] * uniform((n, 2), 0.15, 0.55, g)
        depth[:, 1] = depth[:, 1] + uniform((n,), 0.15, 1.5, g)
        poses[:, 4:, :3, :3] = rotation
        poses[:, 4:, :3, 3] = translation[:, None] + rotation[..., 2] * depth[..., None]

    def _imperfect(self, poses: torch.Tensor) -> torch.Tensor:
        """The real object is not its CAD model: stretch each axis by up to 1.5 %."""
        stretch = 1 + uniform((*poses.shape[:2], 1, 3), -0.015, 0.015, self.g)
        out = poses.clone()
        out[..., :3, :3] = poses[..., :3, :3] * stretch
        return out

    def _patches(
        self, camera: torch.Tensor, translation: torch.Tensor, crop_px: torch.Tensor
    ) -> torch.Tensor:
        """x start, y start and pitch of the patches around the target, (N, 3), image pixels."""
        center = translation[:, :2] / translation[:, 2:] * camera[:, :2] + camera[:, 2:]
        pitch = (crop_px * PATCH_OVER_CROP / PATCH_PX).clamp_min(1.0)
        start = (center - pitch[:, None] * PATCH_PX / 2).round()
        return torch.cat([start, pitch[:, None]], 1)

    @staticmethod
    def _patch_intrinsics(camera: torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
        focal = camera[:, :2] / patch[:, 2:]
        return torch.cat([focal, (camera[:, 2:] - patch[:, :2]) / patch[:, 2:]], 1)

    def _choose_light(self) -> Light:
        n, g = self.count, self.g
        toward = torch.randn(n, 3, generator=g, device=self.device)
        toward[:, 2] = -toward[:, 2].abs() - 0.2
        ambient = uniform((n, 1), 0.25, 0.9, g)
        diffuse = (1.15 - ambient) * uniform((n, 1), 0.4, 1.1, g)
        shiny = uniform((n, 1), 0, 1, g) < 0.4
        specular = torch.where(shiny, uniform((n, 1), 0.0, 0.6, g), 0.0)
        exponent = uniform((n, 1), np.log(4.0), np.log(80.0), g).exp()
        strengths = torch.cat([ambient, diffuse, specular, exponent], 1)
        return Light(torch.nn.functional.normalize(toward, dim=1), strengths)

    def _expose(
        self, seen: Rendered, patch: torch.Tensor, size: torch.Tensor, difficulty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Camera errors, then nothing beyond the image border, then the pipeline's filter."""
        n = self.count
        void = uniform((n, 1, 1, 3), 0, 1, self.g)
        color = torch.where(seen.slot[..., None] >= 0, seen.color, void)
        rgb = degrade_color(color, self.g, ColorNoise().scaled(difficulty))
        limits = DepthNoise(lag_share=LAG_SHARE).scaled(difficulty)
        depth = degrade_depth(seen.depth_m, seen.facing, self.g, limits)
        at = torch.arange(PATCH_PX, device=self.device)
        x = patch[:, :1] + at * patch[:, 2:]
        y = patch[:, 1:2] + at * patch[:, 2:]
        in_x = (x >= -0.5) & (x <= size[:, :1] - 0.5)
        in_y = (y >= -0.5) & (y <= size[:, 1:] - 0.5)
        inside = in_y[:, :, None] & in_x[:, None, :]
        filtered = self._filter((depth * inside).contiguous())
        return rgb * inside[..., None], filtered * inside


class CropWriter:
    """Writes both network inputs of poses in a SceneBatch; owns the rasterizer of "A".

    Poses are camera_from_centered (N * L, 4, 4), L per scene, scene-major.
    """

    def __init__(self, world: TrainingWorld, crops: int, spec: CropSpec) -> None:
        self.world = world
        self.spec = spec
        self._raster = Rasterizer(world.bank, crops)
        device = world.bank.device
        self.rendered = torch.empty(crops, 6, 160, 160, device=device)
        self.observed = torch.empty(crops, 6, 160, 160, device=device)

    def write(self, scenes: SceneBatch, poses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (A, B), each (N * L, 6, 160, 160) float32, views of the writer's buffers."""
        times = len(poses) // len(scenes.mesh)
        rendered, observed = self.rendered[: len(poses)], self.observed[: len(poses)]
        mesh = scenes.mesh.repeat_interleave(times)
        camera = scenes.camera.repeat_interleave(times, 0)
        translations = poses[:, :3, 3].contiguous()
        diameters = self.world.diameters[mesh.long()]
        windows = crop_windows(translations, camera, diameters, self.spec.ratio)
        texture = scenes.texture.repeat_interleave(times)[:, None]
        self._raster.draw(
            mesh[:, None], poses[:, None], rendered_intrinsics(windows, camera), texture
        )
        self._raster.write_network_input(rendered, 2 / self.world.diameters, self.spec.near_m)
        grid = self._patch_grid(scenes, windows, times)
        geometry = CropGeometry(windows, grid, translations, 2 / diameters)
        spec = CropSpec(self.spec.ratio, self.spec.near_m, two_step=False)
        write_observed_input(observed, scenes.images, geometry, spec)
        return rendered, observed

    @staticmethod
    def _patch_grid(scenes: SceneBatch, windows: torch.Tensor, times: int) -> torch.Tensor:
        """The observed grid in patch pixels instead of image pixels."""
        width, height = scenes.size.repeat_interleave(times, 0).unbind(1)
        grid = observed_grid(windows, width.double(), height.double())
        patch = scenes.patch.repeat_interleave(times, 0)
        origin = (grid[:, :2] - patch[:, :2]) / patch[:, 2:]
        return torch.cat([origin, grid[:, 2:] / patch[:, 2:]], 1).float()
