"""Read scenes in BOP format: one folder of RGB-D images with camera and ground truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..datatypes import CameraIntrinsics, Frame, require
from ..geometry import transform
from .bop_writer import MM_PER_M, BopWriter

__all__ = ['BopScene', 'BopWriter']

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff')
MODEL_SUFFIXES = ('.ply', '.obj', '.glb')
COLOR_FOLDERS = ('rgb', 'gray')  # the monochrome BOP sets (ITODD) have gray/ instead of rgb/


@dataclass(frozen=True)
class BopScene:
    """One scene folder, opened with `BopScene.open`; images are read when asked for.

    frame_ids: the images scene_camera.json lists, ascending. Lengths come out in metres: BOP
    stores poses in millimetres and depth in units of depth_scale millimetres.
    """

    folder: Path
    models_dir: Path
    frame_ids: list[int]
    _cameras: dict[int, dict[str, Any]] = field(repr=False)
    _truths: dict[int, list[dict[str, Any]]] = field(repr=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        models_dir: str | Path | None = None,
        frame_range: tuple[int | None, int | None] = (None, None),
    ) -> BopScene:
        """Open a scene and check that every frame has its images.

        models_dir: folder of obj_*.ply, default `folder`/models. frame_range: first frame id and
        the id after the last one, None = open end. scene_gt.json may be absent (then there is no
        ground truth). Raises FileNotFoundError or ValueError naming the file and the remedy.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f'{folder} is no folder: give a scene of a BOP data set, e.g. DATASET/test/000001'
            )
        cameras = _by_frame_id(_read_json(folder / 'scene_camera.json'))
        truth_path = folder / 'scene_gt.json'
        truths = _by_frame_id(_read_json(truth_path)) if truth_path.exists() else {}
        _check_cameras(folder / 'scene_camera.json', cameras)
        _check_truths(truth_path, truths)
        first, end = frame_range
        ids = [i for i in cameras if (first is None or i >= first) and (end is None or i < end)]
        require(bool(ids), f'{folder}: no frame id from {first} to before {end}; {_span(cameras)}')
        models = Path(models_dir) if models_dir is not None else folder / 'models'
        scene = cls(folder, models, sorted(ids), cameras, truths)
        scene._require_images()
        return scene

    @property
    def object_ids(self) -> list[int]:
        """Ids of the objects that scene_gt.json names in the opened frames, ascending."""
        found = {int(t['obj_id']) for i in self.frame_ids for t in self._truths.get(i, [])}
        return sorted(found)

    def frame(self, frame_id: int) -> Frame:
        """Read one image; raises ValueError when a file is unreadable or the sizes disagree."""
        camera = self._camera(frame_id)
        rgb = cv2.cvtColor(
            _read_image(self._image_path(COLOR_FOLDERS, frame_id), cv2.IMREAD_COLOR),
            cv2.COLOR_BGR2RGB,
        )
        depth_path = self._image_path(('depth',), frame_id)
        depth = _read_image(depth_path, cv2.IMREAD_UNCHANGED)
        require(
            depth.ndim == 2 and depth.dtype in (np.uint16, np.float32),
            f'{depth_path} is {depth.dtype} {depth.shape}, must be one 16 bit channel: was it'
            ' converted by an image tool?',
        )
        require(
            depth.shape == rgb.shape[:2],
            f'{depth_path} is {depth.shape[1]}x{depth.shape[0]}, its colour image'
            f' {rgb.shape[1]}x{rgb.shape[0]}: depth must be registered to colour, pixel by pixel',
        )
        k = np.array(camera['cam_K'], dtype=np.float64)
        intrinsics = CameraIntrinsics.from_matrix(k, rgb.shape[1], rgb.shape[0])
        depth_m = depth.astype(np.float32) * np.float32(camera['depth_scale'] / MM_PER_M)
        return Frame(rgb, depth_m, intrinsics)

    def mask(self, frame_id: int, object_id: int, instance: int = 0) -> np.ndarray | None:
        """Return the visible mask, (H, W) bool, or None where the scene has none.

        instance: which of several instances of the object in this frame, in scene_gt.json's order.
        """
        index = self._truth_index(frame_id, object_id, instance)
        if index is None:
            return None
        path = self.folder / 'mask_visib' / f'{frame_id:06d}_{index:06d}.png'
        if not path.exists():
            return None
        return _read_image(path, cv2.IMREAD_GRAYSCALE) > 0

    def camera_from_object(
        self, frame_id: int, object_id: int, instance: int = 0
    ) -> np.ndarray | None:
        """Return the true pose, (4, 4) float64, metres, or None where scene_gt.json has none."""
        index = self._truth_index(frame_id, object_id, instance)
        if index is None:
            return None
        truth = self._truths[frame_id][index]
        rotation = np.array(truth['cam_R_m2c'], dtype=np.float64).reshape(3, 3)
        return transform(rotation, np.array(truth['cam_t_m2c'], dtype=np.float64) / MM_PER_M)

    def model_path(self, object_id: int) -> Path:
        """Return the mesh file of an object (ply, obj or glb, in that order)."""
        candidates = [self.models_dir / f'obj_{object_id:06d}{s}' for s in MODEL_SUFFIXES]
        for path in candidates:
            if path.exists():
                return path
        raise FileNotFoundError(
            f'{candidates[0]} is missing (nor .obj, .glb): give the folder with the models'
            f' (--models DIR; in a BOP data set DATASET/models). It {_models_in(self.models_dir)}'
        )

    def _camera(self, frame_id: int) -> dict[str, Any]:
        path = self.folder / 'scene_camera.json'
        require(
            frame_id in self._cameras, f'{path} has no frame {frame_id}; {_span(self._cameras)}'
        )
        return self._cameras[frame_id]

    def _truth_index(self, frame_id: int, object_id: int, instance: int) -> int | None:
        truths = self._truths.get(frame_id, [])
        indices = [k for k, truth in enumerate(truths) if int(truth['obj_id']) == object_id]
        return indices[instance] if instance < len(indices) else None

    def _image_path(self, folders: Sequence[str], frame_id: int) -> Path:
        for folder in folders:
            for suffix in IMAGE_SUFFIXES:
                path = self.folder / folder / f'{frame_id:06d}{suffix}'
                if path.exists():
                    return path
        raise FileNotFoundError(_missing(self.folder / folders[0] / f'{frame_id:06d}.png', 1))

    def _require_images(self) -> None:
        for folders in (COLOR_FOLDERS, ('depth',)):
            present = {
                path.stem
                for folder in folders
                for path in (self.folder / folder).glob('*')
                if path.suffix in IMAGE_SUFFIXES
            }
            missing = [i for i in self.frame_ids if f'{i:06d}' not in present]
            if missing:
                path = self.folder / folders[0] / f'{missing[0]:06d}.png'
                raise FileNotFoundError(_missing(path, len(missing)))


def _missing(path: Path, count: int) -> str:
    others = f' and {count - 1} more of {path.parent.name}/' if count > 1 else ''
    return (
        f'{path} is missing{others}, though scene_camera.json lists the frame: complete the'
        ' download, select frames that are there (--frames A:B) or take the entry out'
    )


def _span(cameras: dict[int, Any]) -> str:
    return f'there are {len(cameras)} frames, {min(cameras)}..{max(cameras)}'


def _check_cameras(path: Path, cameras: dict[int, dict[str, Any]]) -> None:
    for frame_id, camera in cameras.items():
        require(
            len(camera.get('cam_K', [])) == 9,
            f'{path}: frame {frame_id} has no cam_K of 9 numbers; only pinhole cameras are'
            ' supported: rectify the images',
        )
        require(
            camera.get('depth_scale', 0) > 0,
            f'{path}: frame {frame_id} has no positive depth_scale: add it, in millimetres per'
            ' unit of the depth images (1.0 where these hold millimetres)',
        )


def _check_truths(path: Path, truths: dict[int, list[dict[str, Any]]]) -> None:
    for frame_id, entries in truths.items():
        for truth in entries:
            sizes = [len(truth.get(key, [])) for key in ('cam_R_m2c', 'cam_t_m2c')]
            require(
                sizes == [9, 3] and 'obj_id' in truth,
                f'{path}: frame {frame_id} has an entry without obj_id, cam_R_m2c (9 numbers) or'
                f' cam_t_m2c (3 numbers, mm): {truth}',
            )


def _models_in(folder: Path) -> str:
    if not folder.is_dir():
        return 'does not exist'
    names = sorted(p.name for p in folder.glob('obj_*') if p.suffix in MODEL_SUFFIXES)
    return 'holds ' + (', '.join(names[:20]) or 'no obj_* model')


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{path} is missing: a BOP scene folder holds rgb/, depth/ and scene_camera.json'
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is no JSON ({error}): was the download cut off?') from error
    require(isinstance(content, dict) and bool(content), f'{path} lists no frame')
    return content


def _by_frame_id(content: dict[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in content.items()}


def _read_image(path: Path, flags: int) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise ValueError(f'{path} is no readable image: was the download cut off?')
    return image
