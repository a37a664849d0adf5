"""Procedural textured objects, one per seed, that stand in for real things in training."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from ..pose.mesh import ObjectMesh, sample_texture
from ..pose.mesh_surface import (
    TriangleSoup,
    crease_normals,
    largest_distance,
    longest_edge,
    split_long_edges,
)
from .assemblies import ASSEMBLIES
from .families import FAMILIES, Draft, Source
from .shapes import Surface
from .textures import make_plain_texture, make_texture

HELD_OUT_FROM_SEED = 1_000_000
TEXTURE_PX = 256
MAX_FACES = 8000
MAX_EDGE_FRACTION = 1 / 14
CREASE_RAD = math.radians(40)
DETAILS = (1.0, 0.75, 0.5, 0.35)
DIAMETER_RANGE_M = (0.04, 0.35)

_TABLE: dict[str, tuple[float, Callable[[Source], Draft]]] = {**FAMILIES, **ASSEMBLIES}


def is_held_out(seed: int) -> bool:
    """Return whether the object of this seed is kept from training."""
    return seed >= HELD_OUT_FROM_SEED


def object_family(seed: int) -> str:
    """Return the name of the family that the seed's object comes from."""
    weights = np.array([weight for weight, _ in _TABLE.values()])
    rng = np.random.default_rng([seed, 1])
    return list(_TABLE)[int(rng.choice(len(weights), p=weights / weights.sum()))]


def make_object(seed: int) -> ObjectMesh:
    """Return the object of a seed: metres, textured, at most 8000 faces, the same every time."""
    draft, soup = _drafted(seed)
    rng = np.random.default_rng([seed, 3])
    size = largest_distance(soup.vertices)
    texture, uv = _textured(seed, draft, soup.values, size)
    shape = _warped(soup.vertices / size, rng)
    source, normals, faces = crease_normals(shape, soup.faces, CREASE_RAD)
    uv = uv[source].astype(np.float32)
    low, high = shape.min(axis=0), shape.max(axis=0)
    diameter_m = float(np.exp(rng.uniform(*np.log(DIAMETER_RANGE_M))))
    scale = diameter_m / largest_distance(shape)
    return ObjectMesh(
        name=f'{object_family(seed)}_{seed}',
        vertices=((shape[source] - (low + high) / 2) * scale).astype(np.float32),
        faces=faces.astype(np.int32),
        normals=normals.astype(np.float32),
        colors=sample_texture(texture, uv),
        uv=uv,
        texture=texture,
        center_m=np.zeros(3),
        diameter_m=diameter_m,
    )


def _drafted(seed: int) -> tuple[Draft, TriangleSoup]:
    """Return the draft and its joined triangles; the values are u, v and the part's number."""
    make = _TABLE[object_family(seed)][1]
    for detail in DETAILS:
        draft = make(Source(np.random.default_rng([seed, 2]), detail))
        coarse = _joined(_laid_out(seed, draft))
        edge = MAX_EDGE_FRACTION * largest_distance(coarse.vertices)
        soup = split_long_edges(coarse, edge, MAX_FACES)
        if len(soup.faces) <= MAX_FACES and longest_edge(soup) <= 1.2 * edge:
            break
    if len(soup.faces) > MAX_FACES:
        raise RuntimeError(f'object seed {seed}: {len(soup.faces)} faces at the coarsest detail')
    return draft, soup


def _laid_out(seed: int, draft: Draft) -> list[Surface]:
    """Return surfaces whose texture starts elsewhere on each, some turned by a right angle."""
    rng = np.random.default_rng([seed, 5])
    if any(surface.part for surface in draft.surfaces) or rng.random() < 0.15:
        return draft.surfaces
    laid = []
    for surface in draft.surfaces:
        uv = surface.uv + rng.uniform(0, 10, 2)
        if draft.period is None and rng.random() < 0.2:
            uv = uv[:, ::-1] * (1, -1)
        laid.append(replace(surface, uv=uv))
    return laid


def _joined(surfaces: list[Surface]) -> TriangleSoup:
    starts = np.cumsum([0] + [len(surface.vertices) for surface in surfaces])
    marked = [np.column_stack([s.uv, np.full(len(s.uv), float(s.part))]) for s in surfaces]
    return TriangleSoup(
        np.concatenate([surface.vertices for surface in surfaces]),
        np.concatenate(marked),
        np.concatenate([s.faces + start for s, start in zip(surfaces, starts[:-1], strict=True)]),
    )


def _warped(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return points of unit diameter after a random turn of the frame and smooth distortions."""
    points = points @ _frame_turn(rng).T
    if rng.random() < 0.2:
        points = points * (1 + rng.uniform(-0.6, 0.6) * points[:, rng.permutation(3)[:1]])
    if rng.random() < 0.15:
        angle = rng.uniform(-1.5, 1.5) * points[:, 2]
        cosine, sine = np.cos(angle), np.sin(angle)
        x, y, z = points.T
        points = np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=1)
    if rng.random() < 0.35:
        waves, phase = rng.normal(0, 3.0, (3, 3)), rng.uniform(0, 2 * np.pi, 3)
        points = points + rng.uniform(0.005, 0.03) * np.sin(points @ waves + phase)
    return points


def _frame_turn(rng: np.random.Generator) -> np.ndarray:
    """Return the turn of the object in its file's frame: most models stand along an axis."""
    if rng.random() < 0.3:
        return Rotation.from_quat(rng.normal(size=4)).as_matrix()
    return Rotation.create_group('O').as_matrix()[int(rng.integers(24))]


def _textured(
    seed: int, draft: Draft, values: np.ndarray, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the texture and the coordinates (V, 2) for values (V, 3): u, v, part."""
    rng = np.random.default_rng([seed, 4])
    lengths, parts = values[:, :2], np.rint(values[:, 2]).astype(int)
    if parts.max() > 0 and rng.random() < 0.75:
        return _atlas(seed, rng, lengths, parts)
    repeats = float(np.exp(rng.uniform(np.log(0.6), np.log(1.8)))) / size
    if draft.period is not None and rng.random() < 0.7:
        repeats = max(1, round(repeats * draft.period)) / draft.period
    return make_texture(seed, TEXTURE_PX), lengths * repeats


def _atlas(
    seed: int, rng: np.random.Generator, lengths: np.ndarray, parts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a texture with one tile per part and coordinates that fit each part into its tile."""
    count = int(parts.max()) + 1
    columns, rows = 2, (count + 1) // 2
    width, height = TEXTURE_PX // columns, TEXTURE_PX // rows
    texture = np.zeros((TEXTURE_PX, TEXTURE_PX, 3), np.uint8)
    uv = np.empty_like(lengths)
    for number in range(count):
        paint = make_plain_texture if rng.random() < 0.5 else make_texture
        whole = paint(seed * 8 + number, TEXTURE_PX)
        tile = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        left, top = number % columns * width, number // columns * height
        texture[top : top + height, left : left + width] = tile
        own = parts == number
        if not own.any():
            continue
        local = lengths[own] - lengths[own].min(axis=0)
        local = local / max(float(local.max()), 1e-9)
        inset = (left + 2, top + 2) + local * (width - 4, height - 4)
        uv[own] = inset / TEXTURE_PX
    return texture, uv


def make_objects(
    seeds: Sequence[int], processes: int | None = None, progress: bool = True
) -> list[ObjectMesh]:
    """Return the objects of the seeds, in order, made on several processes (None: all cores)."""
    workers = min(processes or os.cpu_count() or 1, max(1, len(seeds) // 8))
    bar = {'total': len(seeds), 'desc': 'objects', 'unit': 'mesh', 'disable': not progress}
    if workers == 1:
        return list(tqdm(map(make_object, seeds), **bar))
    with spawned_pool(workers) as pool:
        return list(tqdm(pool.map(make_object, seeds, chunksize=8), **bar))


def spawned_pool(workers: int) -> ProcessPoolExecutor:
    """Return processes for making objects and scenes, of one thread each.

    They are spawned: they neither inherit nor start a CUDA context.
    """
    spawn = multiprocessing.get_context('spawn')
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_use_one_thread)


def _use_one_thread() -> None:
    cv2.setNumThreads(1)
