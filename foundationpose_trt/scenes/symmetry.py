"""Does an object look the same after a turn? Then no image tells its poses apart."""

from __future__ import annotations

import numpy as np
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from ..pose.mesh import ObjectMesh, sample_texture

STEP_DEG = 3  # divides the turns of 3, 4, 5, 6 and 8-sided shapes
SMALLEST_TURN_DEG = 42  # smaller turns move the surface too little to tell
# Distances are shares of the diameter; full contrast counts like a fifth of the diameter.
COLOR_WEIGHT = 0.2
TOLERANCE = 0.02


def symmetry_residual(mesh: ObjectMesh) -> float:
    """Return how little the mesh changes under its best turn about x, y or z; 0 = symmetric.

    Mean distance from turned surface points to the nearest unturned ones in position and colour
    together, as a share of the diameter, less the same for no turn at all (the sampling's own
    floor). Only turns about the file's axes through the box centre are tried: enough for
    modelled objects, not for scans that lie askew.
    """
    dense, queries = _features(mesh, 6000, seed=1), _features(mesh, 250, seed=2)
    tree = cKDTree(dense)
    floor = float(tree.query(queries)[0].mean())
    turned = []
    for axis in np.eye(3):
        for angle in range(SMALLEST_TURN_DEG // STEP_DEG + 1, 180 // STEP_DEG + 1):
            rotation = Rotation.from_rotvec(np.radians(angle * STEP_DEG) * axis).as_matrix()
            turned.append(np.hstack([queries[:, :3] @ rotation.T, queries[:, 3:]]))
    distances, _ = tree.query(np.concatenate(turned))
    return float(distances.reshape(len(turned), -1).mean(axis=1).min()) - floor


def is_symmetric(mesh: ObjectMesh) -> bool:
    """Tell whether some turn leaves shape and colour nearly as they are."""
    return symmetry_residual(mesh) < TOLERANCE


def _features(mesh: ObjectMesh, count: int, seed: int) -> np.ndarray:
    """Sample (count, 6): position over diameter, weighted colour."""
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    points, index = trimesh.sample.sample_surface(surface, count, seed=seed)
    weights = trimesh.triangles.points_to_barycentric(surface.triangles[index], points)
    corners = mesh.faces[index]
    if mesh.texture is not None and mesh.uv is not None:
        colors = sample_texture(mesh.texture, (mesh.uv[corners] * weights[..., None]).sum(axis=1))
    else:
        colors = (mesh.colors[corners] * weights[..., None]).sum(axis=1)
    return np.hstack([points / mesh.diameter_m, COLOR_WEIGHT * colors])
