"""Crops in blocks: where their pixels go, what convolutions on them compute, who writes them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from raster_rig import on_devices
from scene_rig import STARTS, THINGS, TRUTH, scene_of
from test_track_pass import MESHES, ORDER, centered, rows_of, tensor
from torch import nn

from foundationpose_trt.datatypes import Frame
from foundationpose_trt.pose.crop_blocks import (
    BlockConvolution,
    in_blocks,
    is_crop_shape,
    stage_on_blocks,
)
from foundationpose_trt.pose.crops import (
    REFINER_CROP,
    SCORER_CROP,
    CropSpec,
    ObservedImages,
    pairs_spec,
)
from foundationpose_trt.pose.mesh_bank import MeshBank
from foundationpose_trt.pose.networks import RefineNet, fold_batch_norm
from foundationpose_trt.pose.rasterizer import Rasterizer
from foundationpose_trt.pose.views import ViewWriter
from foundationpose_trt.runtime.specs import BATCH, TensorSpec

LAYOUTS = {'by pixels': torch.channels_last, 'by channels': torch.contiguous_format}


@pytest.fixture(scope='module')
def frame() -> Frame:
    frame, _ = scene_of(THINGS, TRUTH)
    rgb = np.random.default_rng(3).integers(0, 256, frame.rgb.shape, np.uint8)
    return Frame(rgb, frame.depth_m, frame.intrinsics)


def test_a_blocks_channels_are_its_pixels_row_by_row():
    image = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    blocks = in_blocks(image)
    assert blocks.shape == (2, 48, 2, 3)
    assert blocks.is_contiguous(memory_format=torch.channels_last)
    for y, x in np.ndindex(8, 12):
        pixel = (y % 4 * 4 + x % 4) * 3
        assert torch.equal(blocks[:, pixel : pixel + 3, y // 4, x // 4], image[:, :, y, x])


@pytest.mark.parametrize(
    ('size', 'stride', 'pad', 'side'),
    [(7, 2, 3, 4), (3, 2, 1, 2), (3, 1, 1, 2), (5, 1, 2, 4), (7, 2, 3, 2), (3, 2, 1, 4)],
)
def test_a_convolution_on_blocks_is_the_convolution_in_blocks(size, stride, pad, side):
    torch.manual_seed(size + side)
    conv = nn.Conv2d(3, 5, size, stride, pad).double()
    image = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    with torch.inference_mode():
        found = BlockConvolution(conv, side)(in_blocks(image, side))
        wanted = in_blocks(conv(image), side // stride)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv2d(4, 4, 3, 2, 1, groups=2),
        nn.Conv2d(4, 4, 3, 3, 1),  # steps over no whole block
        nn.Conv2d(4, 4, (3, 5), 2, 1),
        nn.Conv2d(4, 4, 3, (1, 2), 1),
        nn.Conv2d(4, 4, 3, 2, 1, dilation=2),
        nn.Conv2d(4, 4, 3, 2, 1, bias=False),
        nn.Conv2d(4, 4, 3, 2, 1, padding_mode='reflect'),
    ],
)
def test_a_convolution_of_another_kind_is_refused(conv):
    with pytest.raises(ValueError, match=r'Conv2d.* cannot be written for blocks of 4x4 pixels'):
        BlockConvolution(conv, 4)


def test_the_stage_of_one_crop_computes_the_same_on_blocks():
    torch.manual_seed(2)
    network = RefineNet(0.0625).eval().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    fold_batch_norm(network)
    crops = torch.randn(2, 6, 160, 160, dtype=torch.float64)
    with torch.inference_mode():
        wanted = network.encodeA(crops)
        found = stage_on_blocks(copy.deepcopy(network.encodeA))(in_blocks(crops))
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_a_stage_that_steps_over_no_block_is_refused():
    network = RefineNet(0.0625).eval()
    fold_batch_norm(network)
    network.encodeA[1].net[0].stride = (1, 1)
    with pytest.raises(ValueError, match='leave blocks of 2x2 pixels'):
        stage_on_blocks(network.encodeA)


@pytest.mark.parametrize(
    ('shape', 'holds'),
    [
        ((3, 6, 8, 12), True),
        ((3, 96, 2, 3), True),
        ((2, 6, 8, 12), False),
        ((3, 96, 8, 12), False),
        ((3, 6, 2, 3), False),
        ((3, 96, 3, 2), False),
        ((3, 6, 8), False),
    ],
)
def test_the_shapes_of_crops_of_a_size(shape, holds):
    assert is_crop_shape(shape, 3, (8, 12)) == holds
    assert not is_crop_shape((3, 96, 2, 3), 3, (8, 14)), 'a block is cut'


def blocks_spec(dtype: torch.dtype, layout: torch.memory_format) -> TensorSpec:
    return TensorSpec('crops', (BATCH, 96, 40, 40), dtype, layout)


@on_devices
@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('spec', [REFINER_CROP, SCORER_CROP], ids=['refiner', 'scorer'])
def test_views_are_written_in_blocks(device, frame, layout, dtype, spec: CropSpec):
    where, k = torch.device(device), frame.intrinsics
    images = ObservedImages(
        torch.from_numpy(frame.rgb)[None].to(where),
        torch.from_numpy(frame.depth_m)[None].to(where),
        torch.tensor([[k.fx, k.fy, k.cx, k.cy]], device=where),
    )
    poses = tensor(centered(STARTS), device)
    objects = torch.tensor(ORDER, dtype=torch.int32, device=where)
    plain, blocks = (
        ViewWriter(MESHES, 4, each, where).write(  # room for one more
            poses, images, spec, images.size, objects
        )
        for each in (pairs_spec(dtype), blocks_spec(dtype, layout))
    )
    assert blocks.shape == (6, 96, 40, 40) and blocks.is_contiguous(memory_format=layout)
    assert plain.abs().float().mean() > 0.02
    torch.testing.assert_close(blocks, in_blocks(plain), atol=0, rtol=0)


@on_devices
@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_tracked_crops_are_written_in_blocks(device, frame, layout, dtype):
    """Of all poses and of some of them, in turn: the observed halves lie elsewhere then."""
    results = []
    for spec in (pairs_spec(dtype), blocks_spec(dtype, layout)):
        writer = ViewWriter(MESHES, len(ORDER), spec, torch.device(device))
        track = writer.track_pass(frame.depth_m.shape, len(ORDER))
        track.begin(frame, rows_of(centered(STARTS)), ORDER)
        crops = []
        for count in (3, 1, 2, 3):
            crops.append(track.write(count).clone())
            nothing = {name: torch.zeros(3, 3, device=device) for name in ('trans', 'rot')}
            track.move(nothing, 3)
        results.append(crops)
    whole = results[0][0].view(2, 3, 6, 160, 160)
    assert all(half.abs().float().mean() > 0.02 for half in whole.flatten(0, 1))
    for plain, blocks in zip(*results, strict=True):
        # where it was, but for rounding: a pose that is moved by nothing stays
        wanted = whole[:, : len(plain) // 2].flatten(0, 1)
        torch.testing.assert_close(plain, wanted, atol=2e-3, rtol=0)
        torch.testing.assert_close(blocks, in_blocks(plain), atol=0, rtol=0)


def test_crops_of_another_shape_are_refused(frame):
    spec = TensorSpec('crops', (BATCH, 96, 160, 160), torch.float32)
    writer = ViewWriter(MESHES, 1, spec, torch.device('cpu'))
    images = ObservedImages(torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8), torch.ones(1, 4))
    with pytest.raises(ValueError, match=r'out is \(1, 96, 160, 160\), must be \(1, 6, 160, 160'):
        writer.write(torch.eye(4)[None], images, REFINER_CROP, (8, 8))


@on_devices
def test_drawings_of_another_size_are_written_in_blocks(device):
    bank = MeshBank(MESHES, torch.device(device))
    raster = Rasterizer(bank, 2, 40, 64)
    index = torch.tensor([[0], [1]], dtype=torch.int32, device=device)
    poses = tensor(np.stack([np.eye(4)] * 2), device)
    poses[:, 2, 3] = 0.5
    raster.draw(index, poses[:, None], torch.tensor([[70.0, 60, 35, 18]] * 2, device=device))
    inverse = torch.tensor([2 / mesh.diameter_m for mesh in MESHES], device=device).float()
    plain, blocks = (
        torch.zeros(2, *shape, device=device) for shape in ((6, 40, 64), (96, 10, 16))
    )
    for out in (plain, blocks):
        raster.write_network_input(out, inverse, 0.001)
    assert (plain[:, 5] != 0).float().mean() > 0.02
    torch.testing.assert_close(blocks, in_blocks(plain), atol=0, rtol=0)
