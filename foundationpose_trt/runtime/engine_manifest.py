"""The manifest beside an engine: built from what, for and with what, and does it fit here."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..datatypes import require
from .specs import BATCH, TensorSpec

FORMAT = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Platform:
    """What runs an engine. backend and version: of TensorRT; without a GPU the rest is None."""

    backend: str
    version: str
    gpu: str | None = None
    compute_capability: str | None = None


@dataclass(frozen=True)
class EngineManifest:
    """What `<engine>.json` says.

    gpu: None for an engine that any GPU of compute_capabilities runs ('8.9', or '12.0+' for
    that one and later). precision: fp32, tf32, fp16 or int8 as built. batches: those tuned for,
    rising (see profile_ranges); of a fixed batch that one. tolerance: measured afterwards against
    the reference, free form.
    """

    onnx: str
    onnx_sha256: str
    plan_sha256: str
    backend: str
    version: str
    version_compatible: bool
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batches: tuple[int, ...]
    build_seconds: float
    tolerance: dict[str, Any] = field(default_factory=dict)

    @property
    def any_batch(self) -> bool:
        """Whether batches from 1 to the largest run, and not one alone."""
        return any(spec.shape[:1] == (BATCH,) for spec in self.inputs)

    def profile_of(self, batch: int) -> int | None:
        """Index of the optimization profile that runs a batch; None where none does."""
        if not self.any_batch:
            return 0 if batch in self.batches else None
        ranges = profile_ranges(self.batches)
        fits = [k for k, (low, high) in enumerate(ranges) if low <= batch <= high]
        return fits[-1] if fits else None


def profile_ranges(batches: Sequence[int]) -> list[tuple[int, int]]:
    """Smallest and largest batch of each optimization profile, tuned for the largest.

    One per tuned size, from the size before it, and one more for the last size alone, at which
    registering runs: without a range its kernels are 3 % faster (refiner, TensorRT 8.6, H100).
    """
    ranges = [(low + 1, high) for low, high in zip((0, *batches[:-1]), batches, strict=True)]
    alone = (batches[-1], batches[-1])
    return ranges if ranges[-1] == alone else [*ranges, alone]


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: Any) -> None:
    """Write bytes so that the file is there whole or, whatever happens, as it was before."""
    # containers that share a folder may share process numbers as well
    partial = path.with_name(f'.{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part')
    try:
        with partial.open('xb') as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def beside(plan: Path, suffix: str) -> Path:
    """A file that belongs to an engine: `<engine>.<suffix>`."""
    return plan.with_name(f'{plan.name}.{suffix}')


def write_manifest(manifest: EngineManifest, plan: Path) -> None:
    """Write `<engine>.json`."""
    content = {'format': FORMAT, **asdict(manifest)}
    for side in ('inputs', 'outputs'):
        content[side] = [_spec_to_json(spec) for spec in getattr(manifest, side)]
    text = json.dumps(content, indent=2, sort_keys=True) + '\n'
    write_atomically(beside(plan, 'json'), text.encode())


def record_tolerance(plan: Path, tolerance: Mapping[str, Any]) -> EngineManifest:
    """Add what was measured against the reference to an engine's manifest."""
    manifest = read_manifest(plan)
    manifest = replace(manifest, tolerance={**manifest.tolerance, **tolerance})
    write_manifest(manifest, plan)
    return manifest


def keep_tolerance(plan: Path, tolerance: Mapping[str, Any]) -> None:
    """As record_tolerance, but only warn where the manifest cannot be written."""
    try:
        record_tolerance(plan, tolerance)
    except OSError as error:
        logger.warning('%s: %s; it is compared at every start', plan, error)


def read_manifest(plan: Path, remedy: str = '') -> EngineManifest:
    """Read `<engine>.json`.

    remedy: what makes the engine, for the ValueError when it is missing or no manifest; by
    default the command that builds one.
    """
    path, remedy = beside(plan, 'json'), remedy or _build_command(plan, None, 'auto')
    require(
        path.is_file(),
        f'{plan} has no {path.name} beside it, so nothing tells whether it fits this machine'
        f' (a build that was killed, or an engine of another program); build it: {remedy}',
    )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        require(content.pop('format') == FORMAT, f'format is not {FORMAT}')
        for side in ('inputs', 'outputs'):
            content[side] = tuple(_spec_from_json(entry) for entry in content[side])
        for name in ('compute_capabilities', 'batches'):
            content[name] = tuple(content[name])
        return EngineManifest(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is not a manifest of this program ({type(error).__name__}: {error});'
            f' build it: {remedy}'
        ) from error


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    dtype = str(spec.dtype).removeprefix('torch.')
    return {'name': spec.name, 'shape': list(spec.shape), 'dtype': dtype}


def _spec_from_json(entry: Mapping[str, Any]) -> TensorSpec:
    dtype = getattr(torch, entry['dtype'])
    require(isinstance(dtype, torch.dtype), f'dtype is "{entry["dtype"]}"')
    return TensorSpec(entry['name'], tuple(entry['shape']), dtype)


def check_engine(
    plan: Path, platform: Platform, onnx: Path | None = None, remedy: str = ''
) -> EngineManifest:
    """Return the manifest of an engine that fits.

    onnx: the file it must have been built from; by default the one its manifest names, if that
    is still there. Raises ValueError, with the remedy (by default the command that builds the
    engine again), for an engine that is missing, damaged, or made for another TensorRT, GPU or
    ONNX file.
    """
    command = remedy or _build_command(plan, onnx, platform.backend)
    require(plan.is_file(), f'{plan}: there is no such engine; build it: {command}')
    manifest = read_manifest(plan, command)
    fault = _fault(plan, manifest, platform, onnx)
    command = remedy or rebuild_command(plan, manifest, platform.backend, onnx)
    require(not fault, f'{plan} {fault}; build it again: {command}')
    return manifest


def _fault(plan: Path, built: EngineManifest, platform: Platform, onnx: Path | None) -> str:
    """What keeps an engine from running here, or ''. Quick checks come first."""
    if not _same_tensorrt(built, platform):
        return (
            f'was built with {built.backend} {built.version}, here runs {platform.backend}'
            f' {platform.version}'
        )
    if foreign := _foreign(built, platform):
        return foreign
    source = onnx or Path(built.onnx)
    if onnx is not None or source.is_file():
        require(source.is_file(), f'{source}: there is no such ONNX file')
        if sha256_of(source) != built.onnx_sha256:
            return f'was built from another version of {source}'
    if (actual := sha256_of(plan)) != built.plan_sha256:
        return (
            f'has sha256 {actual}, its manifest says {built.plan_sha256}: it was changed, cut'
            ' short, or its build was killed'
        )
    return ''


def _same_tensorrt(built: EngineManifest, platform: Platform) -> bool:
    if not built.version_compatible:
        return (built.backend, built.version) == (platform.backend, platform.version)
    then, now = (_numbers(version) for version in (built.version, platform.version))
    same_kind = platform.backend.removesuffix('_lean') == built.backend
    return same_kind and now[0] == then[0] and now >= then


def _numbers(version: str) -> tuple[int, ...]:
    """Compare versions by number: 10.13 comes after 10.2."""
    words = version.split('.')
    return tuple(int(''.join(c for c in word if c.isdigit()) or 0) for word in words)


def runs_on(built: EngineManifest, platform: Platform) -> bool:
    """Whether the platform's GPU, if it has one, is of those the engine was built for."""
    return not _foreign(built, platform)


def fits_platform(built: EngineManifest, platform: Platform) -> bool:
    """Whether TensorRT and GPU are those that the engine was built for."""
    return _same_tensorrt(built, platform) and not _foreign(built, platform)


def _foreign(built: EngineManifest, platform: Platform) -> str:
    if platform.compute_capability is None:
        return ''
    here = f'here is {platform.gpu} ({platform.compute_capability})'
    if not covers(built.compute_capabilities, platform.compute_capability):
        return f'runs on compute capability {", ".join(built.compute_capabilities)}, {here}'
    if built.gpu not in (None, platform.gpu):
        return f'was built for {built.gpu}, {here}'
    return ''


def covers(targets: Sequence[str], capability: str) -> bool:
    """Whether a compute capability ('9.0') is one of those built for ('8.9', '12.0+')."""
    here = _numbers(capability)
    return any(
        here >= _numbers(entry) if entry.endswith('+') else here == _numbers(entry)
        for entry in targets
    )


def rebuild_command(
    plan: Path, built: EngineManifest, backend: str, onnx: Path | None = None
) -> str:
    """Return the command line that builds an engine like this one with a back end."""
    words = ['--precision', built.precision]
    if built.any_batch:
        words += ['--batches', *map(str, built.batches)]
    if built.version_compatible:
        words.append('--version-compatible')
    return _command(plan, onnx or Path(built.onnx), backend, words)


def _build_command(plan: Path, onnx: Path | None, backend: str) -> str:
    """Return the command that builds an engine of which nothing is known but where it belongs."""
    # An exported file lies with its engine, or one folder up when each back end has its folder.
    places = [plan.with_suffix('.onnx'), plan.parent.with_name(f'{plan.stem}.onnx')]
    onnx = onnx or next((place for place in places if place.is_file()), places[0])
    return _command(plan, onnx, backend, [])


def _command(plan: Path, onnx: Path, backend: str, words: list[str]) -> str:
    backend = backend.removesuffix('_lean')  # which cannot build
    start = ['foundationpose-trt', 'build', '--onnx', str(onnx), '--out', str(plan.parent)]
    return shlex.join([*start, '--backend', backend, *words])
