"""The rendered world a network is trained or judged in: objects, planes and backgrounds."""

from __future__ import annotations

import numpy as np
import torch

from ..pose.mesh import ObjectMesh
from ..synthesis.objects import make_objects
from ..synthesis.textures import make_background_texture
from .scenes import TrainingWorld

PLANE_SIDES_M = (0.7, 1.5, 3.0)
PLANE_CELLS = 24  # small cells, since a triangle that reaches behind the camera is not drawn


def square(side_m: float, repeats: float) -> ObjectMesh:
    """Build a textured square in the xy plane, normal -z, texture repeated along each side."""
    steps = np.linspace(0.0, 1.0, PLANE_CELLS + 1)
    u, v = (a.ravel() for a in np.meshgrid(steps, steps))
    corner = (np.arange(PLANE_CELLS)[:, None] * (PLANE_CELLS + 1) + np.arange(PLANE_CELLS)).ravel()
    lower = np.stack([corner, corner + PLANE_CELLS + 1, corner + 1], 1)
    upper = np.stack([corner + 1, corner + PLANE_CELLS + 1, corner + PLANE_CELLS + 2], 1)
    vertices = np.stack([(u - 0.5) * side_m, (v - 0.5) * side_m, np.zeros_like(u)], 1)
    return ObjectMesh(
        name=f'square_{side_m}m',
        vertices=vertices.astype(np.float32),
        faces=np.concatenate([lower, upper]).astype(np.int32),
        normals=np.tile(np.array([0, 0, -1], np.float32), (len(vertices), 1)),
        colors=np.full((len(vertices), 3), 0.5, np.float32),
        uv=np.stack([u, v], 1).astype(np.float32) * repeats,
        texture=None,
        center_m=np.zeros(3),
        diameter_m=float(side_m * np.sqrt(2)),
    )


def make_world(
    object_seeds: range, backgrounds: int, device: torch.device, progress: bool = True
) -> TrainingWorld:
    """Make the objects of the seeds in parallel processes and upload everything."""
    objects = make_objects(object_seeds, progress=progress)
    planes = [square(side, repeats) for side in PLANE_SIDES_M for repeats in (0.6, 2.5)]
    textures = [make_background_texture(seed) for seed in range(backgrounds)]
    return TrainingWorld.build(objects, planes, textures, device)
