"""Reading mesh files into plain arrays: geometry, normals and appearance, every fault by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.grouping import unique_rows
from trimesh.resolvers import FilePathResolver
from trimesh.visual.color import linear_to_srgb, srgb_to_linear
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from ..datatypes import require
from .mesh_surface import TriangleSoup

SUFFIXES = ('.obj', '.ply', '.glb', '.stl')
GREY = 0.5
# Grey levels that trimesh fills in where a file names no colour, also when it writes glb files.
UNSPECIFIED = (100, 102)


@dataclass(frozen=True)
class Piece:
    """Triangles of one material.

    The soup's values are (V, 8): unit normal, colour 0..1, texture u right and v down.
    Without a texture (h, w, 3) uint8 the colour counts.
    """

    soup: TriangleSoup
    texture: np.ndarray | None


def read_pieces(path: Path) -> list[Piece]:
    """Return the triangles of an obj, ply, glb or stl file in the file's unit.

    Raises FileNotFoundError without the file, ValueError where it cannot be used.
    """
    if not path.is_file():
        raise FileNotFoundError(f'mesh file {path} does not exist')
    require(
        path.suffix.lower() in SUFFIXES,
        f'mesh file {path} ends in {path.suffix!r}, readable are {", ".join(SUFFIXES)}:'
        ' export the mesh to one of these',
    )
    _require_appearance_files(path)
    try:
        scene = trimesh.load_scene(str(path), process=False, resolver=_resolver(path))
        meshes = list(_placed(scene))
    except Exception as error:
        raise ValueError(f'mesh file {path} cannot be read, is it damaged? {error!r}') from error
    return pieces_of(f'mesh file {path}', meshes)


def _placed(scene: trimesh.Scene) -> Iterable[trimesh.Trimesh]:
    """Yield the scene's meshes where they stand; unlike scene.dump this keeps their normals."""
    for node in scene.graph.nodes_geometry:
        placement, name = scene.graph[node]
        mesh = scene.geometry[name]
        if isinstance(mesh, trimesh.Trimesh):
            mesh = mesh.copy(include_cache=True)
            mesh.apply_transform(placement)
            yield mesh


def pieces_of(source: str, meshes: Iterable[trimesh.Trimesh]) -> list[Piece]:
    """Return the triangles of trimesh objects; `source` names them in errors (ValueError)."""
    filled = [mesh for mesh in meshes if len(mesh.faces)]
    require(
        len(filled) > 0,
        f'{source} holds no triangles: a surface is needed, not points or lines,'
        ' and an empty or truncated file has none',
    )
    pieces = [piece for mesh in filled if (piece := _piece(source, mesh)) is not None]
    require(len(pieces) > 0, f'{source} has only triangles without area: check its export scale')
    return pieces


def _resolver(path: Path) -> FilePathResolver:
    """Let trimesh read materials and textures wherever they are named, as it did before 5."""
    try:
        return FilePathResolver(str(path), allow_anywhere=True)
    except TypeError:
        return FilePathResolver(str(path))


def _require_appearance_files(path: Path) -> None:
    """Refuse a mesh whose material or texture file is missing: trimesh would turn it grey."""
    if path.suffix.lower() == '.obj':
        named = list(_named_files(path, b'mtllib'))
        for library in [_found(path, name) for name in named]:
            images = list(_named_files(library, b'map_kd'))
            missing = [name for name in images if not _found(path, name).is_file()]
            _require_plain(library, missing)
            named += missing
    elif path.suffix.lower() == '.ply':
        named = list(_named_files(path, b'comment texturefile'))
    else:
        named = []
    for name in named:
        require(
            _found(path, name).is_file(),
            f'mesh file {path} needs {path.parent / name}, which does not exist: put it there, or'
            ' remove the line that names it to use the mesh without texture',
        )


def _found(path: Path, name: Path) -> Path:
    """Where trimesh looks for a file: as it is named from the mesh, or for its last part there."""
    file = path.parent / name
    return file if file.is_file() else path.parent / name.name


def _require_plain(path: Path, names: Iterable[Path]) -> None:
    """Refuse how a material may name its texture, and trimesh does not read."""
    for name in names:
        text = str(name)
        require(
            not text.startswith('-') and not any(sign in text for sign in '"#\\'),
            f'{path} names its texture as {text}, which is read as no file: write map_Kd and the'
            ' name alone, with / between folders',
        )


def _named_files(path: Path, key: bytes) -> Iterable[Path]:
    if not path.is_file():
        return
    with path.open('rb') as stream:
        for line in stream:
            words = line.strip()
            if words[: len(key) + 1].lower() == key + b' ':
                yield Path(words[len(key) :].strip().decode(errors='replace'))
            if words == b'end_header':
                return


def _piece(source: str, mesh: trimesh.Trimesh) -> Piece | None:
    vertices, faces = np.asarray(mesh.vertices, dtype=float), np.asarray(mesh.faces)
    finite = np.isfinite(vertices).all(axis=1)
    require(
        bool(finite.all()),
        f'{source}: vertex {int(np.argmin(finite))} is {vertices[np.argmin(finite)].tolist()},'
        ' all coordinates must be finite: repair the mesh',
    )
    colors, uv, texture = _appearance(source, mesh)
    normals = _normals(mesh, uv if texture is not None else None)
    faces = faces[_has_area(vertices, faces)]
    if len(faces) == 0:
        return None
    if len(colors) == len(mesh.faces) and mesh.visual.kind == 'face':
        return Piece(_exploded(mesh, normals, colors), None)
    values = np.column_stack([normals, colors, uv])
    return Piece(compacted(TriangleSoup(vertices, values, faces)), texture)


def _has_area(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    corners = vertices[faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    extent = np.ptp(vertices, axis=0).max()
    return np.linalg.norm(areas, axis=1) > 1e-12 * extent**2


def _exploded(mesh: trimesh.Trimesh, normals: np.ndarray, colors: np.ndarray) -> TriangleSoup:
    """Return faces of one colour each, with vertices of their own."""
    kept = _has_area(mesh.vertices, mesh.faces)
    faces = mesh.faces[kept]
    corner_colors = np.repeat(colors[kept], 3, axis=0)
    values = np.column_stack(
        [normals[faces.ravel()], corner_colors, np.zeros((len(corner_colors), 2))]
    )
    fresh = np.arange(len(corner_colors)).reshape(-1, 3)
    return TriangleSoup(mesh.vertices[faces.ravel()], values, fresh)


def compacted(soup: TriangleSoup) -> TriangleSoup:
    """Return the soup without unused and repeated vertices."""
    used = np.unique(soup.faces)
    extent = max(float(np.ptp(soup.vertices[used], axis=0).max()), 1e-30)
    rows = np.column_stack([soup.vertices[used] / extent * 1e7, soup.values[used] * 1e4])
    first, inverse = unique_rows(np.rint(rows).astype(np.int64))
    lookup = np.zeros(len(soup.vertices), dtype=np.int64)
    lookup[used] = inverse
    kept = used[first]
    return TriangleSoup(soup.vertices[kept], soup.values[kept], lookup[soup.faces])


def _normals(mesh: trimesh.Trimesh, uv: np.ndarray | None) -> np.ndarray:
    """Return the file's unit normals (V, 3), or those of the surface where it has none.

    Faces are joined where they share a place and, on textured meshes, a texture coordinate.
    """
    extent = max(float(mesh.extents.max()), 1e-30)
    rows = mesh.vertices / extent * 1e7
    if uv is not None:
        rows = np.column_stack([rows, uv * 1e4])
    first, inverse = unique_rows(np.rint(rows).astype(np.int64))
    welded = trimesh.Trimesh(mesh.vertices[first], inverse[mesh.faces], process=False)
    normals = np.array(welded.vertex_normals[inverse])
    if 'vertex_normals' in mesh._cache:
        stored = np.asarray(mesh.vertex_normals, dtype=float)
        length = np.linalg.norm(stored, axis=1)
        usable = np.isfinite(length) & (length > 1e-6)
        normals[usable] = stored[usable] / length[usable, None]
    return normals


def _appearance(
    source: str, mesh: trimesh.Trimesh
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return colours (V or F, 3) 0..1, uv (V, 2) v down, and the texture if there is one."""
    count, visual = len(mesh.vertices), mesh.visual
    no_uv = np.zeros((count, 2))
    if not isinstance(visual, TextureVisuals):
        if visual.kind not in ('face', 'vertex'):
            return np.full((count, 3), GREY), no_uv, None
        table = visual.face_colors if visual.kind == 'face' else visual.vertex_colors
        return np.asarray(table)[:, :3] / 255.0, no_uv, None
    texture, color = _material(source, visual.material)
    has_uv = visual.uv is not None and len(visual.uv) == count
    if texture is None or not has_uv:
        return np.broadcast_to(color, (count, 3)), no_uv, None
    uv = np.asarray(visual.uv, dtype=float)[:, :2]
    require(bool(np.isfinite(uv).all()), f'{source}: texture coordinates are not all finite')
    return np.broadcast_to(color, (count, 3)), uv * (1, -1) + (0, 1), texture


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Return (h, w, 3) uint8; of 16 bits the upper ones, which PIL would cut off instead."""
    if image.mode == 'I' or image.mode.startswith('I;16'):  # which one, depends on Pillow
        grey = np.asarray(image).clip(0, 0xFFFF).astype(np.uint32) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert('RGB'))


def _material(source: str, material: object) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the texture (h, w, 3) uint8 or None, and the colour (3,) 0..1 to use without it."""
    is_pbr = isinstance(material, PBRMaterial)
    image = getattr(material, 'baseColorTexture' if is_pbr else 'image', None)
    paint = getattr(material, 'baseColorFactor' if is_pbr else 'diffuse', None)
    is_painted = paint is not None and not _is_unspecified(paint[:3])
    color = np.asarray(paint, dtype=float)[:3] / 255 if is_painted else np.full(3, GREY)
    if is_painted and is_pbr:
        color = linear_to_srgb(color)
    if image is None:
        return None, color
    try:
        texture = _eight_bits(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f'{source}: its texture cannot be decoded: {error!r}') from error
    if is_painted and is_pbr:
        texture = _tinted(texture, np.asarray(paint, dtype=float)[:3] / 255)
    if (texture == texture[0, 0]).all():
        blank = _is_unspecified(texture[0, 0])
        return None, np.full(3, GREY) if blank else texture[0, 0] / 255.0
    return texture, color


def _is_unspecified(color: np.ndarray) -> bool:
    return any(np.array_equal(color, (grey, grey, grey)) for grey in UNSPECIFIED)


def _tinted(texture: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return a texture times a linear factor (3,) as glTF defines it: in linear light."""
    levels = srgb_to_linear(np.arange(256) / 255.0)
    table = np.rint(linear_to_srgb(levels[:, None] * factor) * 255).astype(np.uint8)
    return np.stack([table[texture[..., c], c] for c in range(3)], axis=2)
