"""Rigid transforms and pinhole geometry; batched torch on any device, no vision."""

from __future__ import annotations

import numpy as np
import torch


def skew(vectors: torch.Tensor) -> torch.Tensor:
    """Return the cross-product matrices [v]x, (..., 3, 3), of vectors (..., 3)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).reshape(*vectors.shape[:-1], 3, 3)


def exp_so3(rotation_vectors: torch.Tensor) -> torch.Tensor:
    """Rodrigues' formula: (..., 3) radians -> rotation matrices (..., 3, 3); no host sync."""
    squared = (rotation_vectors * rotation_vectors).sum(-1)[..., None, None]
    small = squared < 1e-8
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    cosine = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / (angle * angle))
    k = skew(rotation_vectors)
    identity = torch.eye(3, dtype=k.dtype, device=k.device)
    return identity + sine * k + cosine * (k @ k)


def log_so3(rotations: torch.Tensor) -> torch.Tensor:
    """Rotation vectors (..., 3), radians, of rotation matrices (..., 3, 3); angle below pi."""
    vee = torch.stack(
        [
            rotations[..., 2, 1] - rotations[..., 1, 2],
            rotations[..., 0, 2] - rotations[..., 2, 0],
            rotations[..., 1, 0] - rotations[..., 0, 1],
        ],
        dim=-1,
    )
    sine2 = vee.norm(dim=-1)
    cosine2 = rotations.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    angle = torch.atan2(sine2, cosine2)
    factor = torch.where(sine2 < 1e-6, torch.full_like(sine2, 0.5), angle / sine2.clamp_min(1e-6))
    return vee * factor[..., None]


def rotation_angle(rotation_a: torch.Tensor, rotation_b: torch.Tensor) -> torch.Tensor:
    """Geodesic distance, radians, between rotation matrices (..., 3, 3)."""
    relative = rotation_a.transpose(-1, -2) @ rotation_b
    vee = relative - relative.transpose(-1, -2)
    sine2 = torch.stack([vee[..., 2, 1], vee[..., 0, 2], vee[..., 1, 0]], -1).norm(dim=-1)
    cosine2 = relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    return torch.atan2(sine2, cosine2)


def random_rotations(count: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform rotations (N, 3, 3) float32 on the generator's device."""
    # The direction of a four-dimensional Gaussian is a uniform unit quaternion.
    q = torch.randn(count, 4, generator=generator, device=generator.device)
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(count, 3, 3)


def transform(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Build one homogeneous (4, 4) float64 matrix from (3, 3) and (3,)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def invert_transform(matrix: np.ndarray) -> np.ndarray:
    """Invert a rigid (4, 4) matrix: b_from_a of a_from_b."""
    rotation = matrix[:3, :3].T
    return transform(rotation, -rotation @ matrix[:3, 3])


def quaternion_xyzw(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion (x, y, z, w) float64 of a rotation matrix, w >= 0 (Shepperd's method)."""
    r = np.asarray(rotation, dtype=np.float64)
    squares = np.array([r[0, 0], r[1, 1], r[2, 2], np.trace(r)])
    k = int(np.argmax(squares))
    if k == 3:
        q = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], 1 + squares[3]])
    else:
        i, j, m = k, (k + 1) % 3, (k + 2) % 3
        q = np.zeros(4)
        q[i] = 1 + 2 * r[i, i] - squares[3]
        q[j], q[m] = r[j, i] + r[i, j], r[m, i] + r[i, m]
        q[3] = r[m, j] - r[j, m]
    q /= np.linalg.norm(q)
    return -q if q[3] < 0 else q
