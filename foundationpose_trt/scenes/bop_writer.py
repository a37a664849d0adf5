"""Write scenes in BOP format: images, masks, camera, ground truth and models in millimetres."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from ..datatypes import Frame, require
from ..pose.mesh import ObjectMesh

MM_PER_M = 1000.0
FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 2]  # a third of the time for a tenth more bytes
Column = tuple[str, str, np.ndarray]  # name, PLY type, one value per vertex
Annotation = tuple[int, np.ndarray, 'np.ndarray | None']


class BopWriter:
    """Writes one scene folder; use as a context manager, the JSON files are written at its end.

    depth_scale: millimetres per unit of the 16 bit depth images (0.1 reaches 6.5 m). Refuses a
    folder that already holds a scene.
    """

    def __init__(self, folder: str | Path, depth_scale: float = 0.1) -> None:
        self.folder = Path(folder)
        require(
            not (self.folder / 'scene_camera.json').exists(),
            f'{self.folder} already holds a scene: give a new folder or remove that one',
        )
        require(depth_scale > 0, f'depth_scale is {depth_scale} mm, must be positive')
        self.depth_scale = float(depth_scale)
        self._cameras: dict[str, Any] = {}
        self._truths: dict[str, Any] = {}
        self._models: dict[str, Any] = {}
        for name in ('rgb', 'depth', 'mask_visib', 'models'):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> BopWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def close(self) -> None:
        """Write scene_camera.json, scene_gt.json and models/models_info.json."""
        for name, content in (
            ('scene_camera.json', self._cameras),
            ('scene_gt.json', self._truths),
            ('models/models_info.json', self._models),
        ):
            lines = ',\n'.join(f'  {json.dumps(k)}: {json.dumps(v)}' for k, v in content.items())
            (self.folder / name).write_text('{\n' + lines + '\n}\n')

    def add_model(self, object_id: int, mesh: ObjectMesh) -> None:
        """Write models/obj_*.ply (and .png for its texture) in mm, in the mesh file's own frame.

        Annotated poses refer to this frame, camera_from_object, not to the centred mesh.
        """
        path = self.folder / 'models' / f'obj_{object_id:06d}.ply'
        write_ply_mm(path, mesh)
        corners = (mesh.vertices + mesh.center_m) * MM_PER_M
        low, size = corners.min(0), np.ptp(corners, axis=0)
        self._models[str(object_id)] = {
            'diameter': mesh.diameter_m * MM_PER_M,
            **{f'min_{axis}': float(value) for axis, value in zip('xyz', low, strict=True)},
            **{f'size_{axis}': float(value) for axis, value in zip('xyz', size, strict=True)},
        }

    def add_frame(self, frame_id: int, frame: Frame, annotations: Sequence[Annotation]) -> None:
        """Write one image and its annotations (object_id, camera_from_object, visible mask).

        camera_from_object: (4, 4), metres; the mask, (H, W) bool, may be None. Raises ValueError
        when a depth does not fit 16 bits at depth_scale.
        """
        key = f'{frame_id:06d}'
        depth_m = frame.valid_depth_m
        units = np.rint(depth_m * (MM_PER_M / self.depth_scale))
        require(
            float(units.max(initial=0)) <= np.iinfo(np.uint16).max,
            f'frame {frame_id}: depth reaches {depth_m.max():.2f} m, 16 bits at depth_scale'
            f' {self.depth_scale} mm hold {65.535 * self.depth_scale:.2f} m: use a larger scale',
        )
        bgr = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)
        _write_image(self.folder / 'rgb' / f'{key}.png', bgr)
        _write_image(self.folder / 'depth' / f'{key}.png', units.astype(np.uint16))
        for index, (_, _, mask) in enumerate(annotations):
            if mask is not None:
                pixels = np.where(mask, 255, 0).astype(np.uint8)
                _write_image(self.folder / 'mask_visib' / f'{key}_{index:06d}.png', pixels)
        k = frame.intrinsics.matrix().reshape(-1).tolist()
        self._cameras[str(frame_id)] = {'cam_K': k, 'depth_scale': self.depth_scale}
        self._truths[str(frame_id)] = [
            {
                'cam_R_m2c': np.asarray(pose)[:3, :3].reshape(-1).tolist(),
                'cam_t_m2c': (np.asarray(pose)[:3, 3] * MM_PER_M).tolist(),
                'obj_id': int(object_id),
            }
            for object_id, pose, _ in annotations
        ]


def write_ply_mm(path: Path, mesh: ObjectMesh) -> None:
    """Write a binary PLY in millimetres; a texture goes beside it as PNG, named in a comment.

    This is the layout of the BOP data sets (texture_u, texture_v per vertex, v up).
    """
    positions = (mesh.vertices.astype(np.float64) + mesh.center_m) * MM_PER_M
    columns = _columns('float', ('x', 'y', 'z'), positions)
    columns += _columns('float', ('nx', 'ny', 'nz'), mesh.normals)
    comments = ['comment millimetres']
    if mesh.texture is not None and mesh.uv is not None:
        texture_path = path.with_suffix('.png')
        _write_image(texture_path, cv2.cvtColor(mesh.texture, cv2.COLOR_RGB2BGR))
        comments.append(f'comment TextureFile {texture_path.name}')
        u, v_up = mesh.uv[:, 0], 1 - mesh.uv[:, 1]
        columns += [('texture_u', 'float', u), ('texture_v', 'float', v_up)]
    else:
        rgb = np.rint(mesh.colors * 255).astype(np.uint8)
        columns += _columns('uchar', ('red', 'green', 'blue'), rgb)
    path.write_bytes(_ply_header(comments, columns, len(mesh.faces)) + _ply_body(columns, mesh))


def _columns(kind: str, names: Sequence[str], values: np.ndarray) -> list[Column]:
    return [(name, kind, column) for name, column in zip(names, values.T, strict=True)]


def _ply_header(comments: list[str], columns: list[Column], faces: int) -> bytes:
    lines = ['ply', 'format binary_little_endian 1.0', *comments]
    lines += [f'element vertex {len(columns[0][2])}']
    lines += [f'property {kind} {name}' for name, kind, _ in columns]
    lines += [f'element face {faces}', 'property list uchar int vertex_indices', 'end_header', '']
    return '\n'.join(lines).encode('ascii')


def _ply_body(columns: list[Column], mesh: ObjectMesh) -> bytes:
    types = {'float': '<f4', 'uchar': 'u1'}
    vertices = np.empty(len(mesh.vertices), [(name, types[kind]) for name, kind, _ in columns])
    for name, _, values in columns:
        vertices[name] = values
    faces = np.empty(len(mesh.faces), [('count', 'u1'), ('corners', '<i4', 3)])
    faces['count'], faces['corners'] = 3, mesh.faces
    return vertices.tobytes() + faces.tobytes()


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image, FAST_PNG):
        raise OSError(f'{path} could not be written: is the disk full?')
