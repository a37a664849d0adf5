"""A target object on a cluttered table: composition of sequences and of single views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from ..datatypes import CameraIntrinsics, require
from ..pose.mesh import ObjectMesh
from . import furniture
from .camera_path import HandHeld, MotionLimits, Orbits, drive, held_target


class NoRoomError(RuntimeError):
    """The objects drawn for a table do not fit on it beside one another."""


@dataclass(frozen=True)
class SceneSettings:
    """What a composed scene looks like.

    distance_diameters: range of the camera's distance in target diameters, kept within
    distance_m. occluder_cover: how much of the target's apparent height the occluder reaches
    over, 0..1. table_texture: (N, N, 3) uint8, None = drawn per arrangement.
    """

    width: int = 640
    height: int = 480
    focal_px: float = 600.0
    distance_diameters: tuple[float, float] = (3.0, 5.5)
    distance_m: tuple[float, float] = (0.35, 1.5)
    occluder_cover: float = 0.6
    texture_px: int = 1024
    table_texture: np.ndarray | None = None

    def intrinsics(self) -> CameraIntrinsics:
        """Return a camera with square pixels and the principal point near the middle."""
        return CameraIntrinsics(
            self.focal_px, self.focal_px, self.width / 2 - 0.7, self.height / 2 + 1.3,
            self.width, self.height,
        )  # fmt: skip


@dataclass(frozen=True)
class Motion:
    """How a sequence moves. held: the target moves through the air instead of lying there."""

    limits: MotionLimits = MotionLimits()
    held: bool = False


@dataclass(frozen=True)
class TabletopScene:
    """Everything a renderer needs, T views of S slots; slot 0 is the target.

    meshes: S of them, one per slot. drawn: (T, S) bool, which slots are there.
    camera_from_centered: (T, S, 4, 4) float64, metres. toward_light: (T, 3) unit vectors in the
    camera frame; light_strengths: (T, 4) as in rasterizer.Light. textures: those of slot
    `table_slot`, texture_of_view: (T,) index into them.
    """

    meshes: list[ObjectMesh]
    drawn: np.ndarray
    camera_from_centered: np.ndarray
    toward_light: np.ndarray
    light_strengths: np.ndarray
    textures: list[np.ndarray]
    texture_of_view: np.ndarray
    table_slot: int
    intrinsics: CameraIntrinsics

    def __len__(self) -> int:
        return len(self.drawn)

    def camera_from_target(self) -> np.ndarray:
        """Return the target's poses in its mesh file's frame, (T, 4, 4) float64, metres."""
        return self.camera_from_centered[:, 0] @ self.meshes[0].centered_from_object


@dataclass(frozen=True)
class _Arrangement:
    """One table full of objects: world_from_centered (S, 4, 4), the light, the table's texture."""

    world_from_centered: np.ndarray
    toward_light: np.ndarray
    table_texture: np.ndarray

    @property
    def target_m(self) -> np.ndarray:
        """Return where the target's centre rests in the world, (3,)."""
        return self.world_from_centered[0, :3, 3]


@dataclass(frozen=True)
class _Stage:
    """The meshes of a scene, in slot order: target, clutter, occluder, table, floor, walls.

    sides: of target and clutter, as furniture.resting_sides.
    """

    meshes: list[ObjectMesh]
    sides: list[tuple[np.ndarray, np.ndarray]]
    half_m: float

    @property
    def clutter(self) -> int:
        """Return how many objects lie around the target."""
        return len(self.sides) - 1

    @property
    def occluder_slot(self) -> int:
        """Return the slot of what passes in front of the target."""
        return 1 + self.clutter

    @property
    def table_slot(self) -> int:
        """Return the first slot of the room: table, floor, walls."""
        return 2 + self.clutter


def compose_sequence(
    target: ObjectMesh,
    others: Sequence[ObjectMesh],
    frames: int,
    rng: np.random.Generator,
    settings: SceneSettings = SceneSettings(),
    motion: Motion = Motion(),
) -> TabletopScene:
    """Compose a sequence: a hand-held camera around the table, an occluder in the middle third.

    others: clutter, the last of them is the occluder; they are scaled to suit the target. Raises
    ValueError for fewer than two others.
    """
    stage = _set_stage(target, others, rng, settings)
    distance = _draw_distance(target, rng, settings)
    path = HandHeld.draw(rng, distance, target_moves=motion.held)
    casting = np.arange(1 + stage.clutter) >= (1 if motion.held else 0)
    free_side = None if motion.held else path.start_azimuth
    arrangement = _arrange(stage, rng, settings, casting, free_side)
    rest = arrangement.target_m
    phases = drive(path, rest, frames, motion.limits)
    camera_from_world = path.cameras(phases).camera_from_world(rest)
    world_from_centered = np.tile(arrangement.world_from_centered, (frames, 1, 1, 1))
    world_from_centered[:, 0] = held_target(path, phases, rest) @ world_from_centered[:, 0]
    drawn = np.ones((frames, len(stage.meshes)), bool)
    drawn[:, stage.occluder_slot] = False
    camera_from_centered = camera_from_world[:, None] @ world_from_centered
    middle = np.arange(frames // 3, frames - frames // 3)
    drawn[middle, stage.occluder_slot] = True
    camera_from_centered[middle, stage.occluder_slot] = _sweep(
        stage, camera_from_centered[middle, 0], rng, settings
    )
    return TabletopScene(
        stage.meshes,
        drawn,
        camera_from_centered,
        camera_from_world[:, :3, :3] @ arrangement.toward_light,
        np.tile(_light_strengths(rng), (frames, 1)),
        [arrangement.table_texture],
        np.zeros(frames, np.int64),
        stage.table_slot,
        settings.intrinsics(),
    )


def compose_views(
    target: ObjectMesh,
    others: Sequence[ObjectMesh],
    views: int,
    rng: np.random.Generator,
    settings: SceneSettings = SceneSettings(),
) -> TabletopScene:
    """Compose unrelated single views: each its own arrangement, camera and, half of the time,
    an occluder in front. Raises ValueError for fewer than two others.
    """
    stage = _set_stage(target, others, rng, settings)
    drawn = _random_presence(stage, views, rng)
    arrangements = [
        _arrange(stage, rng, settings, present[: 1 + stage.clutter], any_pose=True)
        for present in drawn
    ]
    poses, lights = [], []
    for arrangement in arrangements:
        camera_from_world = _random_camera(arrangement.target_m, target, rng, settings)
        camera_from_centered = camera_from_world @ arrangement.world_from_centered
        camera_from_centered[stage.occluder_slot] = _in_front(
            stage, camera_from_centered[0], rng.uniform(-1.3, 1.3), rng, settings
        )
        poses.append(camera_from_centered)
        lights.append(camera_from_world[:3, :3] @ arrangement.toward_light)
    return TabletopScene(
        stage.meshes,
        drawn,
        np.array(poses),
        np.array(lights),
        np.array([_light_strengths(rng) for _ in range(views)]),
        [arrangement.table_texture for arrangement in arrangements],
        np.arange(views),
        stage.table_slot,
        settings.intrinsics(),
    )


def _random_presence(stage: _Stage, views: int, rng: np.random.Generator) -> np.ndarray:
    """Which slots are drawn, (views, S) bool: target and room always, the others by chance."""
    drawn = np.ones((views, len(stage.meshes)), bool)
    crowd = rng.uniform(0.3, 1, (views, 1))
    drawn[:, 1 : 1 + stage.clutter] = rng.random((views, stage.clutter)) < crowd
    drawn[:, stage.occluder_slot] = rng.random(views) < 0.5
    return drawn


def scaled(mesh: ObjectMesh, factor: float) -> ObjectMesh:
    """Return the mesh grown by a factor."""
    return replace(
        mesh,
        vertices=mesh.vertices * np.float32(factor),
        center_m=mesh.center_m * factor,
        diameter_m=mesh.diameter_m * factor,
    )


def _set_stage(
    target: ObjectMesh,
    others: Sequence[ObjectMesh],
    rng: np.random.Generator,
    settings: SceneSettings,
) -> _Stage:
    require(len(others) >= 2, f'{len(others)} other objects, need clutter and an occluder')
    meshes = [
        scaled(mesh, target.diameter_m * rng.uniform(0.5, 1.3) / mesh.diameter_m)
        for mesh in others
    ]
    half = 5 * target.diameter_m + 0.15
    seeds = rng.integers(0, 2**31, 3)
    blank = np.zeros((1, 1, 3), np.uint8)
    room = [
        furniture.table(half, blank),
        furniture.floor(2.0, furniture.backdrop_texture(int(seeds[0]), 512, 0.6)),
        furniture.walls(2.0, furniture.backdrop_texture(int(seeds[1]), 512, 0.6)),
    ]
    sides = [furniture.resting_sides(mesh) for mesh in (target, *meshes[:-1])]
    return _Stage([target, *meshes, *room], sides, half)


def _draw_distance(target: ObjectMesh, rng: np.random.Generator, settings: SceneSettings) -> float:
    distance = target.diameter_m * rng.uniform(*settings.distance_diameters)
    return float(np.clip(distance, *settings.distance_m))


def _arrange(
    stage: _Stage,
    rng: np.random.Generator,
    settings: SceneSettings,
    casting: np.ndarray,
    free_azimuth: float | None = None,
    any_pose: bool = False,
) -> _Arrangement:
    """Lay target and clutter on the table without overlap.

    casting: (1 + clutter,) bool, which of them throw a shadow. free_azimuth: the side from which
    nothing may stand in front of the target. any_pose: the target leans at random instead of
    resting, so that every side of it is seen.
    """
    placed = [_rest(stage, 0, rng, any_pose)]
    discs = [(np.zeros(2), _radius(stage.meshes[0], placed[0]))]
    for slot in range(1, 1 + stage.clutter):
        pose = _rest(stage, slot, rng, False)
        radius = _radius(stage.meshes[slot], pose)
        place = _free_place(discs, radius, rng, free_azimuth)
        pose[:2, 3] += place
        discs.append((place, radius))
        placed.append(pose)
    toward_light = _random_light(rng)
    room = [mesh.object_from_centered for mesh in stage.meshes[stage.table_slot :]]
    texture = settings.table_texture
    if texture is None:
        seed = int(rng.integers(2**31))
        texture = furniture.backdrop_texture(seed, settings.texture_px, rng.uniform(0.3, 1))
    points = [
        mesh.vertices[::3] @ pose[:3, :3].T + pose[:3, 3]
        for mesh, pose, cast in zip(stage.meshes[: len(placed)], placed, casting, strict=True)
        if cast
    ]
    return _Arrangement(
        np.array([*placed, np.eye(4), *room]),
        toward_light,
        furniture.shadowed(texture, stage.half_m, points, toward_light),
    )


def _rest(stage: _Stage, slot: int, rng: np.random.Generator, any_pose: bool) -> np.ndarray:
    """Pose of an object that lies in the table's middle, or leans there in any way."""
    if any_pose and rng.random() < 0.6:
        rotation = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    else:
        normals, shares = stage.sides[slot]
        turn = Rotation.from_rotvec([0, 0, rng.uniform(0, 2 * np.pi)]).as_matrix()
        rotation = turn @ furniture.turned_down(normals[rng.choice(len(normals), p=shares)])
    return furniture.placed(stage.meshes[slot], rotation, np.zeros(2))


def _radius(mesh: ObjectMesh, pose: np.ndarray) -> float:
    return float(np.linalg.norm((mesh.vertices @ pose[:3, :3].T)[:, :2], axis=1).max())


def _free_place(
    discs: list[tuple[np.ndarray, float]],
    radius: float,
    rng: np.random.Generator,
    free_azimuth: float | None,
) -> np.ndarray:
    reach = discs[0][1] + radius
    for attempt in range(400):
        if free_azimuth is None:
            angle = rng.uniform(-np.pi, np.pi)
        else:  # the camera swings 40 degrees each way
            angle = free_azimuth + np.pi + rng.uniform(-0.62, 0.62) * np.pi
        distance = reach * (1.03 + 0.005 * attempt * rng.random())
        place = distance * np.array([np.cos(angle), np.sin(angle)])
        if all(np.linalg.norm(place - other) > radius + r for other, r in discs):
            return place
    raise NoRoomError(f'no room for a clutter object of radius {radius:.3f} m: use less clutter')


def _random_light(rng: np.random.Generator) -> np.ndarray:
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(np.radians(45), np.radians(75))
    plan = np.cos(elevation)
    return np.array([plan * np.cos(azimuth), plan * np.sin(azimuth), np.sin(elevation)])


def _light_strengths(rng: np.random.Generator) -> np.ndarray:
    """Ambient, diffuse, specular and exponent of an ordinary room."""
    ambient = rng.uniform(0.35, 0.55)
    return np.array([ambient, 0.95 - ambient, rng.uniform(0, 0.25), rng.uniform(8, 40)])


def _random_camera(
    center_m: np.ndarray, target: ObjectMesh, rng: np.random.Generator, settings: SceneSettings
) -> np.ndarray:
    distance = _draw_distance(target, rng, settings)
    orbit = Orbits(
        azimuth=rng.uniform(-np.pi, np.pi, 1),
        elevation=np.arcsin(rng.uniform(np.sin(np.radians(20)), np.sin(np.radians(80)), 1)),
        distance_m=np.array([distance]),
        look_offset_m=rng.uniform(-0.15, 0.15, (1, 3)) * distance,
        roll=rng.normal(0, 0.15, 1),
    )
    return orbit.camera_from_world(center_m)[0]


def _sweep(
    stage: _Stage,
    camera_from_target: np.ndarray,
    rng: np.random.Generator,
    settings: SceneSettings,
) -> np.ndarray:
    """Poses (T, 4, 4) of the occluder passing in front of the target, lingering half-way."""
    s = np.linspace(-1, 1, len(camera_from_target))
    across = 3.2 * (0.3 * s + 0.7 * s**3) * rng.choice([-1, 1])
    seed = rng.integers(2**31)
    return np.array(
        [
            _in_front(stage, pose, float(a), np.random.default_rng(seed), settings)
            for pose, a in zip(camera_from_target, across, strict=True)
        ]
    )


def _in_front(
    stage: _Stage,
    camera_from_target: np.ndarray,
    across: float,
    rng: np.random.Generator,
    settings: SceneSettings,
) -> np.ndarray:
    """Pose of the occluder on the way to the target, in the camera frame.

    across: sideways offset in apparent target diameters. Up or down it is placed so that its edge
    covers occluder_cover of the target's height.
    """
    near = rng.uniform(0.55, 0.7)
    target, occluder = stage.meshes[0], stage.meshes[stage.occluder_slot]
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    side = rng.choice([-1, 1])  # from below or from above
    height = near * side * (target.vertices @ camera_from_target[1, :3])
    edge = height.max() - settings.occluder_cover * np.ptp(height)
    reach = edge - (side * (occluder.vertices @ pose[1, :3])).min()
    offset = np.array([across * target.diameter_m * near, side * reach, 0.0])
    pose[:3, 3] = near * camera_from_target[:3, 3] + offset
    return pose
