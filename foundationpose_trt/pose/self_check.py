"""Does an engine compute what the network does? Asked once, before it moves anything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datatypes import require
from ..geometry import exp_so3
from ..runtime.agreement import relative_deviation
from ..runtime.engine import Engine
from ..runtime.engine_manifest import EngineManifest
from ..runtime.session import Session
from .crop_blocks import in_blocks
from .crops import CROP_PX, PAIR, REFINER_CROP, ObservedImages, pairs_spec
from .export import OUTPUTS, inputs_of, scales_of
from .mesh import ObjectMesh
from .mesh_bank import MeshBank
from .quantized_networks import quantized_stage
from .rasterizer import Rasterizer
from .views import ViewWriter
from .weights import PoseNetworks

Crops = tuple[torch.Tensor, torch.Tensor]  # the rendered and the observed halves

CROPS = 8
RENDERED_CROPS = 'rendered_crops_relative'
COARSE_PX = 5
# Rounding to half stays below a tenth (test_self_check.py holds it there); a network that is built
# wrong, or NaN, is far beyond.
LARGEST_DEVIATION = 0.25


def reference_of(networks: PoseNetworks, kind: str) -> Callable[..., Any]:
    """Return one network ('refiner' | 'extractor') in float32, run by torch where it is.

    Of int8 with its convolutions rounded: what that does to poses is not for an engine to tell.
    """
    if kind == 'refiner':
        refiner = copy.deepcopy(networks.refiner).float()
        if networks.int8:
            stage = quantized_stage(refiner.encodeAB, scales_of(networks))
            refiner.encodeAB = stage.to(networks.device)
        return refiner
    return copy.deepcopy(networks.scorer).float().extract


def require_ports(plan: Path, manifest: EngineManifest, remedy: str) -> None:
    """Raise ValueError where a trunk's engine takes or gives something else than those of today.

    plan: <kind>.engine.
    """
    sides = (
        ('takes', manifest.inputs, inputs_of(plan.stem)),
        ('gives', manifest.outputs, OUTPUTS[plan.stem]),
    )
    for does, specs, wanted in sides:
        found = tuple(spec.name for spec in specs)
        require(
            found == wanted,
            f'{plan} {does} {", ".join(found)}, not {", ".join(wanted)}: it was built by another'
            f' version; build it again: {remedy}',
        )


def random_crops(seed: int = 0) -> Crops:
    """Pairs of crops, half of them noise, half shapes, (CROPS, 6, 160, 160) float32 on the CPU.

    Shapes are smooth blobs on black, and nearly the same ones a little off, as a rendering and
    what the camera sees of it are.
    """
    g, half = torch.Generator().manual_seed(seed), CROPS // 2
    noise = torch.rand(2, half, 6, CROP_PX, CROP_PX, generator=g) * 2 - 1
    coarse = torch.randn(half, 6, COARSE_PX, COARSE_PX, generator=g)
    smooth = torch.nn.functional.interpolate(
        coarse, (CROP_PX, CROP_PX), mode='bicubic', align_corners=False
    ).clamp(-1, 1)
    shapes = smooth * (smooth[:, :1] > 0)
    pairs = torch.stack([shapes, shapes.roll((3, -5), (2, 3))])
    rendered, observed = torch.cat([noise, pairs], 1)
    return rendered, observed


def rendered_crops(device: torch.device, seed: int = 0) -> Crops:
    """Pairs of crops as tracking makes them, (CROPS, 6, 160, 160) float32 on the device.

    The first half drawn at a pose some degrees and millimetres off the one that a camera sees.
    """
    size, mesh = (240, 320), _test_object()
    camera = torch.tensor([[300.0, 300.0, 160.0, 120.0]], device=device)
    truth = _poses(seed, device)
    bank = MeshBank([mesh], device)
    camera_view = Rasterizer(bank, 1, *size)
    writer = ViewWriter(mesh, 1, pairs_spec(torch.float32), device)
    index = torch.zeros(1, 1, dtype=torch.int32, device=device)
    pairs = []
    for seen, believed in zip(truth.split(1), _moved(truth, seed).split(1), strict=True):
        camera_view.draw(index, seen[:, None], camera)
        image = camera_view.shade()
        observed = ObservedImages((image.color * 255).to(torch.uint8), image.depth_m, camera)
        pairs.append(writer.write(believed, observed, REFINER_CROP, size).clone().chunk(PAIR))
    rendered, observed_half = (torch.cat(half) for half in zip(*pairs, strict=True))
    return rendered, observed_half


def _test_object() -> ObjectMesh:
    """An egg of 12 cm with coloured patches, from a grid of angles."""
    across, up = np.meshgrid(np.linspace(0, 2 * np.pi, 49), np.linspace(0, np.pi, 25))
    unit = np.stack([np.sin(up) * np.cos(across), np.sin(up) * np.sin(across), np.cos(up)], -1)
    points = (unit * (0.04, 0.05, 0.06)).reshape(-1, 3)
    corner = (np.arange(24)[:, None] * 49 + np.arange(48)).reshape(-1, 1)
    faces = np.concatenate([corner + (0, 49, 1), corner + (1, 49, 50)])
    patches = [np.floor(angle * 2) % 2 for angle in (across, up, across + up)]
    return ObjectMesh(
        name='self-check', vertices=points.astype(np.float32), faces=faces.astype(np.int32),
        normals=unit.reshape(-1, 3).astype(np.float32),
        colors=(0.2 + 0.6 * np.stack(patches, -1)).reshape(-1, 3).astype(np.float32),
        uv=None, texture=None, center_m=np.zeros(3), diameter_m=0.12,
    )  # fmt: skip


def _poses(seed: int, device: torch.device) -> torch.Tensor:
    """camera_from_centered (CROPS, 4, 4) in sight of the camera."""
    g = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(CROPS, 1, 1)
    poses[:, :3, :3] = exp_so3(torch.rand(CROPS, 3, generator=g) * 4 - 2)
    spread = torch.tensor([0.08, 0.05, 0.15])
    poses[:, :3, 3] = (torch.rand(CROPS, 3, generator=g) * 2 - 1) * spread
    poses[:, 2, 3] += 0.5
    return poses.to(device)


def _moved(poses: torch.Tensor, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed + 1)
    turn = exp_so3(torch.randn(len(poses), 3, generator=g) * 0.1).to(poses.device)
    shift_m = torch.randn(len(poses), 3, generator=g) * 0.004
    out = poses.clone()
    out[:, :3, :3] = turn @ poses[:, :3, :3]
    out[:, :3, 3] += shift_m.to(poses.device)
    return out


@torch.inference_mode()
def deviations(
    engine: Engine, reference: Callable[..., Any], batch: int, crops: Crops
) -> dict[str, float]:
    """Largest difference of each output from the reference over the output's own size (rms).

    batch: pairs of crops in one run, which the engine must take. NaN counts as infinite.
    """
    pair = [half.to(engine.device) for half in crops]
    names = [spec.name for spec in engine.outputs]
    # float32 to the last bit: by default torch's convolutions round to TF32
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted = _outputs([reference(*pair)], names)
    places = [
        torch.arange(start, start + batch).clamp_max(CROPS - 1)  # the last run is filled up
        for start in range(0, CROPS, batch)
    ]
    with Session(engine, None) as session:
        (spec,) = engine.inputs

        def run(*halves: torch.Tensor) -> Mapping[str, torch.Tensor]:
            both = torch.cat(halves)
            if both.shape[1:] != spec.shape[1:]:
                both = in_blocks(both)
            both = both.to(spec.dtype).contiguous(memory_format=spec.layout)
            return session.run({spec.name: both}, clone=True)

        results = [run(*(half[at.to(half.device)] for half in pair)) for at in places]
        given = _outputs(results, names)
    return {name: relative_deviation(given[name], wanted[name]) for name in names}


def measured_tolerance(
    engine: Engine, reference: Callable[..., Any], batch: int
) -> dict[str, dict[str, float]]:
    """Deviations on random and on rendered crops, as an engine's manifest keeps them."""
    return {
        'random_crops_relative': deviations(engine, reference, batch, random_crops()),
        RENDERED_CROPS: deviations(engine, reference, batch, rendered_crops(engine.device)),
    }


def _outputs(results: Sequence[Any], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Join the outputs of runs over all crops, by name; a network of one output gives a tensor."""
    mappings = [r if isinstance(r, Mapping) else dict.fromkeys(names, r) for r in results]
    return {name: torch.cat([m[name] for m in mappings])[:CROPS].float() for name in names}


def require_agreement(name: str, found: Mapping[str, Mapping[str, float]], remedy: str) -> None:
    """Raise ValueError when an output is further from the reference than rounding explains.

    found: deviations by output, by what they were measured on.
    """
    for crops, values in found.items():
        for output, value in values.items():
            require(
                value <= LARGEST_DEVIATION,
                f'{name}: output {output} is off by {value:.3g} times its size on'
                f' {crops.split("_")[0]} crops, at most {LARGEST_DEVIATION} is rounding: the'
                f' engine computes something else; {remedy}',
            )
