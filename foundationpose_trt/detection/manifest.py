"""What a detector is: `detector.json` beside its files, the only place that knows its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..datatypes import require
from ..runtime.engine_manifest import sha256_of, write_atomically

FORMAT = 1
FILE = 'detector.json'
RESIZE = 'stretch, bilinear, half-pixel centres, no antialias'  # preprocess.py, the only rule
KINDS = ('onnx', 'torchscript')
DYNAMIC = 'dynamic'
SHIPPED_FOLDER = Path(__file__).parents[1] / 'weights'
SHIPPED = 'demo_detector'  # knows the objects of synthesis.cast


@dataclass(frozen=True)
class ModelFile:
    """One file of the network. kind: of KINDS. precision: 'fp32' | 'fp16', of the input.

    batch: a number, or 'dynamic'. device: 'cpu' | 'cuda' for TorchScript, which is traced for one
    of them; '' for ONNX.
    """

    file: str
    sha256: str
    kind: str
    precision: str
    batch: int | str
    device: str = ''


@dataclass(frozen=True)
class DetectorManifest:
    """What a detector's files take and give.

    classes: the name of each column of the logits, None for columns that mean nothing (unused
    numbers, background). resolution: height and width of the input. mean, deviation: of R, G, B
    in 0..1. queries: of the network, per image. select: how many of the best (query, class) pairs
    are results. boxes, logits, masks: names of the outputs; masks is '' where there are none,
    mask_size their height and width else. source: where the weights come from.
    """

    name: str
    variant: str
    classes: tuple[str | None, ...]
    resolution: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    queries: int
    select: int
    files: tuple[ModelFile, ...]
    input: str = 'input'
    boxes: str = 'dets'
    logits: str = 'labels'
    masks: str = ''
    mask_size: tuple[int, int] = (0, 0)
    resize: str = RESIZE
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = self.class_names
        require(
            len(names) > 0 and len(set(names)) == len(names),
            f'classes of {self.name} are {self.classes}: at least one must have a name, and no two'
            ' the same',
        )
        require(
            min(*self.resolution, self.queries, self.select) > 0,
            f'{self.name}: resolution is {self.resolution}, queries {self.queries} and select'
            f' {self.select}, all must be positive',
        )
        require(
            self.resize == RESIZE,
            f'{self.name} was made for the resize rule "{self.resize}", this program knows'
            f' "{RESIZE}"; export it again',
        )
        require(
            len(self.mean) == len(self.deviation) == 3 and min(self.deviation) > 0,
            f'{self.name}: mean is {self.mean} and deviation {self.deviation}: three numbers each,'
            ' the deviations positive',
        )

    @property
    def class_names(self) -> list[str]:
        """The classes it tells apart."""
        return [name for name in self.classes if name is not None]

    def columns_of(self, names: tuple[str, ...] | list[str]) -> list[int]:
        """Columns of the logits of some classes, in their order.

        Raises ValueError for a name it does not know, with the names it does.
        """
        unknown = [name for name in names if name not in self.class_names]
        require(
            not unknown,
            f'{self.name} knows no class {", ".join(map(repr, unknown))}; it knows'
            f' {", ".join(self.class_names)}',
        )
        return [self.classes.index(name) for name in names]

    def find(self, kind: str, precision: str, device: str = '') -> ModelFile | None:
        """The file of this kind, precision and (TorchScript) device, or None."""
        wanted = (kind, precision, device)
        found = (f for f in self.files if (f.kind, f.precision, f.device) == wanted)
        return next(found, None)


def write_manifest(manifest: DetectorManifest, folder: Path) -> None:
    """Write folder/detector.json, whole or not at all."""
    content = {'format': FORMAT, **asdict(manifest)}
    text = json.dumps(content, indent=2) + '\n'
    write_atomically(folder / FILE, text.encode())


def add_file(manifest: DetectorManifest, file: ModelFile) -> DetectorManifest:
    """Return the manifest with a file, in the place of one of its kind, precision and device."""
    key = (file.kind, file.precision, file.device)
    kept = [f for f in manifest.files if (f.kind, f.precision, f.device) != key]
    return replace(manifest, files=(*kept, file))


def detector_folder(name_or_dir: str) -> Path:
    """Return the folder of a detector: of the one that ships, by its name, or the path given."""
    if name_or_dir == SHIPPED:
        return SHIPPED_FOLDER / SHIPPED
    return Path(name_or_dir).expanduser()


def read_manifest(folder: Path) -> DetectorManifest:
    """Read folder/detector.json; raises ValueError naming what is wrong and what writes one."""
    path = folder / FILE
    require(
        path.is_file(),
        f'{folder} holds no {FILE}: make a detector of a checkpoint with `foundationpose-trt'
        f' export detector --weights FILE --size nano --out {folder}`',
    )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        require(content.pop('format') == FORMAT, f'format is not {FORMAT}')
        for name in ('classes', 'resolution', 'mean', 'deviation', 'mask_size'):
            content[name] = tuple(content[name])
        content['files'] = tuple(ModelFile(**entry) for entry in content['files'])
        return DetectorManifest(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is no detector manifest of this program ({type(error).__name__}: {error});'
            ' export the detector again'
        ) from error


def checked_path(folder: Path, file: ModelFile) -> Path:
    """Return the path of a file whose SHA-256 is the manifest's; raises ValueError else."""
    path = folder / file.file
    require(path.is_file(), f'{path} is missing, though the {FILE} beside it lists it')
    actual = sha256_of(path)
    require(
        actual == file.sha256,
        f'{path}: sha256 is {actual}, its {FILE} says {file.sha256}: the file was changed or cut'
        ' short; export the detector again',
    )
    return path
