"""Training images of a detector: the cast and strangers on tables, drawn anew for every step.

Arrangements are composed beforehand by several processes; camera, light and camera errors change
with every draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from tqdm import tqdm

from ..datatypes import require
from ..geometry import exp_so3
from ..pose.mesh import ObjectMesh
from ..pose.mesh_bank import MeshBank
from ..pose.rasterizer import Light, Rasterizer
from ..synthesis.cast import CAST, cast_objects
from ..synthesis.objects import HELD_OUT_FROM_SEED, TEXTURE_PX, make_object, spawned_pool
from ..synthesis.sensor import ColorNoise, degrade_color
from ..synthesis.tabletop import NoRoomError, SceneSettings, TabletopScene, compose_views
from . import processes

STRANGERS = 4  # other objects per stage, the last of them passes in front
TRAINING_SEEDS = 3000  # of strangers
HELD_OUT_STRANGERS = HELD_OUT_FROM_SEED + 200_000  # evaluation of poses uses those before
STRANGER_IN_THE_MIDDLE = 0.15  # of the stages
ATTEMPTS = 8  # at a stage: now and then a set does not fit
NONE = -1
ALL_NOISE = ColorNoise()
MIN_VISIBLE_SHARE = 0.2
MIN_VISIBLE_PX = 120  # of a VGA image
COVERAGE_SCALE = 4  # whole objects are counted in images this much smaller
MOST_TEXELS = 2**31 // 3  # of a MeshBank
ROOM_TEXELS = 2 * 512**2 + 1  # floor, walls, and the table's own, which no view shows


@dataclass(frozen=True)
class Stage:
    """Some views of one set of objects. classes: (S,) index into CAST or NONE, by slot."""

    scene: TabletopScene
    classes: np.ndarray


def compose_stage(seed: int, views: int, settings: SceneSettings, held_out: bool) -> Stage:
    """Compose a stage; held-out ones have strangers that no training sees.

    Raises NoRoomError when ATTEMPTS sets of objects in a row do not fit on their tables.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, 12 if held_out else 11, attempt])
        try:
            return _compose(rng, views, settings, held_out)
        except NoRoomError as error:
            last = error
    raise last


def _compose(
    rng: np.random.Generator, views: int, settings: SceneSettings, held_out: bool
) -> Stage:
    first = HELD_OUT_STRANGERS if held_out else 0
    strangers = [
        (NONE, make_object(int(first + k))) for k in rng.integers(0, TRAINING_SEEDS, STRANGERS)
    ]
    known = list(enumerate(_cast()))
    if rng.random() < STRANGER_IN_THE_MIDDLE:
        middle = strangers.pop(0)
    else:
        middle = known.pop(int(rng.integers(len(known))))
    occluder = strangers.pop()
    beside = [*known, *strangers]
    others = [beside[k] for k in rng.permutation(len(beside))] + [occluder]
    scene = compose_views(middle[1], [mesh for _, mesh in others], views, rng, settings)
    classes = np.full(len(scene.meshes), NONE)
    classes[: 1 + len(others)] = [kind for kind, _ in (middle, *others)]
    return Stage(scene, classes)


@lru_cache(maxsize=1)
def _cast() -> list[ObjectMesh]:
    return cast_objects()


def compose_stages(
    seeds: Sequence[int], views: int, settings: SceneSettings, held_out: bool = False
) -> list[Stage]:
    """Compose stages on all cores, or this process's share of them.

    Raises ValueError for more than a DetectionWorld holds.
    """
    texels = texels_of_stage(views, settings)
    require(
        len(seeds) * texels < MOST_TEXELS,
        f'{len(seeds)} stages of {views} views have {len(seeds) * texels / 1e6:.0f} megapixels of'
        f' textures, at most {MOST_TEXELS / 1e6:.0f} fit: take {(MOST_TEXELS - 1) // texels}'
        ' stages, or fewer views',
    )
    make = partial(compose_stage, views=views, settings=settings, held_out=held_out)
    silent = processes.rank() > 0
    bar = {'total': len(seeds), 'desc': 'stages', 'unit': 'stage', 'disable': silent}
    workers = min(processes.cores(), len(seeds))
    if workers == 1:
        return list(tqdm(map(make, seeds), **bar))
    with spawned_pool(workers) as pool:
        return list(tqdm(pool.map(make, seeds), **bar))


def texels_of_stage(views: int, settings: SceneSettings) -> int:
    """Texels of one stage: of its objects, its room and one table for each view."""
    objects, tables = len(CAST) + STRANGERS, views
    return objects * TEXTURE_PX**2 + tables * settings.texture_px**2 + ROOM_TEXELS


@dataclass(frozen=True)
class DetectionWorld:
    """All views of some stages on one device, V views of S slots.

    meshes, textures: (V, S) int32, of the bank; classes: (V, S) int64, NONE for what is not to be
    found; poses: (V, S, 4, 4) float32 camera_from_centered, metres; toward_light: (V, 3).
    """

    bank: MeshBank
    meshes: torch.Tensor
    textures: torch.Tensor
    classes: torch.Tensor
    poses: torch.Tensor
    toward_light: torch.Tensor
    settings: SceneSettings

    @classmethod
    def build(
        cls, stages: Sequence[Stage], settings: SceneSettings, device: torch.device
    ) -> DetectionWorld:
        """Upload the stages; all must have as many slots."""
        scenes = [stage.scene for stage in stages]
        meshes = [mesh for scene in scenes for mesh in scene.meshes]
        extra = [texture for scene in scenes for texture in scene.textures]
        bank = MeshBank(meshes, device, extra_textures=extra)
        own = int((bank.default_texture >= 0).sum())
        rows: list[list[np.ndarray]] = [[], [], []]
        first_mesh = first_texture = 0
        for stage in stages:
            scene, slots = stage.scene, len(stage.scene.meshes)
            index = np.where(scene.drawn, first_mesh + np.arange(slots), -1)
            texture = bank.default_texture[first_mesh : first_mesh + slots]
            texture = np.tile(texture, (len(scene), 1))
            texture[:, scene.table_slot] = own + first_texture + scene.texture_of_view
            rows[0].append(index)
            rows[1].append(texture)
            rows[2].append(np.where(scene.drawn, stage.classes, NONE))
            first_mesh, first_texture = first_mesh + slots, first_texture + len(scene.textures)

        def put(values: Sequence[np.ndarray], code: str) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(values).astype(code)).to(device)

        poses = put([scene.camera_from_centered for scene in scenes], 'f4')
        toward = put([scene.toward_light for scene in scenes], 'f4')
        return cls(
            bank, put(rows[0], 'i4'), put(rows[1], 'i4'), put(rows[2], 'i8'), poses, toward,
            settings,
        )  # fmt: skip


@dataclass(frozen=True)
class DetectionBatch:
    """N images (N, H, W, 3) float32 0..1 and their objects.

    classes: (N, S) int64, NONE where a slot holds nothing to be found. boxes: (N, S, 4) float32,
    centre and size of the visible part in 0..1 of the image.
    """

    images: torch.Tensor
    classes: torch.Tensor
    boxes: torch.Tensor

    def targets(self) -> list[dict[str, torch.Tensor]]:
        """Labels and boxes of each image, as RF-DETR's criterion takes them."""
        found = self.classes != NONE
        counts = found.sum(1).tolist()  # one wait for the device, not two for each image
        labels, boxes = (values[found].split(counts) for values in (self.classes, self.boxes))
        return [{'labels': k, 'boxes': b} for k, b in zip(labels, boxes, strict=True)]


class DetectionSampler:
    """Draws DetectionBatches of a fixed size.

    moves: how far cameras leave their composed pose; noise: limits of the camera's errors.
    """

    def __init__(
        self,
        world: DetectionWorld,
        count: int,
        generator: torch.Generator,
        noise: ColorNoise | None = ALL_NOISE,
        moves: bool = True,
    ) -> None:
        self.world, self.count, self.g = world, count, generator
        self._noise, self._moves = noise, moves
        s, slots = world.settings, world.meshes.shape[1]
        self._raster = Rasterizer(world.bank, count, s.height, s.width, slots)
        small = (s.height // COVERAGE_SCALE, s.width // COVERAGE_SCALE)
        self._alone = Rasterizer(world.bank, count * slots, *small)
        k = s.intrinsics()
        values = torch.tensor([k.fx, k.fy, k.cx, k.cy], device=generator.device)
        self._intrinsics = values.repeat(count, 1)
        self._small_intrinsics = (values / COVERAGE_SCALE).repeat(count * slots, 1)

    def sample(self) -> DetectionBatch:
        """Draw one batch of random views."""
        views = torch.randint(
            len(self.world.meshes), (self.count,), generator=self.g, device=self.g.device
        )
        return self.draw(views)

    @torch.no_grad()
    def draw(self, views: torch.Tensor) -> DetectionBatch:
        """Draw these views, (count,) int64."""
        world = self.world
        meshes, textures = world.meshes[views], world.textures[views]
        turn = self._camera_turn() if self._moves else torch.eye(4, device=self.g.device)[None]
        poses = turn[:, None] @ world.poses[views]
        self._raster.draw(meshes, poses, self._intrinsics, textures)
        toward = (turn[:, :3, :3] @ world.toward_light[views][..., None])[..., 0]
        seen = self._raster.shade(Light(toward, self._light_strengths()))
        images = seen.color.clamp(0, 1)
        if self._noise is not None:
            images = degrade_color(images, self.g, self._noise)
        whole = self._whole_px(meshes, poses)
        classes, boxes = visible_boxes(seen.slot, world.classes[views], whole)
        return DetectionBatch(images, classes, boxes)

    def _uniform(self, low: float, high: float, columns: int) -> torch.Tensor:
        drawn = torch.rand(self.count, columns, generator=self.g, device=self.g.device)
        return low + (high - low) * drawn

    def _camera_turn(self) -> torch.Tensor:
        """(N, 4, 4): a camera near the composed one; rolled, turned, nearer or farther."""
        angles = torch.cat([self._uniform(-0.15, 0.15, 2), self._uniform(-0.4, 0.4, 1)], 1)
        turn = torch.eye(4, device=self.g.device).repeat(self.count, 1, 1)
        turn[:, :3, :3] = exp_so3(angles)
        turn[:, :3, 3] = self._uniform(-0.08, 0.08, 3)
        return turn

    def _light_strengths(self) -> torch.Tensor:
        """Ambient, diffuse, specular and exponent, (N, 4)."""
        ambient = self._uniform(0.3, 0.7, 1)
        diffuse = (1.0 - ambient) * self._uniform(0.6, 1.1, 1)
        shine = torch.cat([self._uniform(0, 0.35, 1), self._uniform(6, 50, 1)], 1)
        return torch.cat([ambient, diffuse, shine], 1)

    def _whole_px(self, meshes: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
        """How many pixels each slot would fill if nothing else were there, (N, S)."""
        self._alone.draw(meshes.reshape(-1, 1), poses.reshape(-1, 1, 4, 4), self._small_intrinsics)
        return self._alone.coverage().sum((1, 2)).view(meshes.shape) * COVERAGE_SCALE**2


def visible_boxes(
    slot_map: torch.Tensor, classes: torch.Tensor, whole_px: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return classes (N, S), NONE for what is hardly seen, and boxes (N, S, 4) of what is seen.

    slot_map: (N, H, W), which slot each pixel shows; whole_px: (N, S), of each slot without the
    others.
    """
    height, width = slot_map.shape[1:]
    slots = torch.arange(classes.shape[1], device=classes.device)
    visible = torch.zeros(classes.shape, dtype=torch.int64, device=classes.device)
    boxes = torch.zeros(*classes.shape, 4, device=classes.device)
    for slot in slots[(classes != NONE).any(0)].tolist():
        mask = slot_map == slot
        visible[:, slot] = mask.sum((1, 2))
        x0, x1 = _extent(mask.any(1))
        y0, y1 = _extent(mask.any(2))
        corners = [(x0 + x1) / (2 * width), (y0 + y1) / (2 * height)]
        sides = [(x1 - x0) / width, (y1 - y0) / height]
        boxes[:, slot] = torch.stack([*corners, *sides], 1)
    scale = height * width / (480 * 640)
    enough = (visible >= MIN_VISIBLE_SHARE * whole_px) & (visible >= MIN_VISIBLE_PX * scale)
    return torch.where(enough, classes, NONE), boxes


def _extent(hit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and one past the last True of each row (N, L); of an empty row 0 and 0."""
    at = torch.arange(hit.shape[1], device=hit.device)
    last = torch.where(hit, at + 1, 0).amax(1)
    first = torch.where(hit, at, hit.shape[1]).amin(1)
    return torch.minimum(first, last).float(), last.float()
