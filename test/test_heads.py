"""What comes behind a trunk, by torch and Warp: the arithmetic of attention and heads."""

from __future__ import annotations

import network_rig as rig
import pytest
import torch
import warp as wp

from foundationpose_trt.pose import heads as heads_module
from foundationpose_trt.pose.head_kernels import head_kernels
from foundationpose_trt.pose.heads import ExtractorHead, PositionalCode, RefinerHeads
from foundationpose_trt.pose.networks import RefineNet, ScoreNet

WIDTHS = (0.0625, 0.25)
TOLERANCES = {torch.float32: 2e-6, torch.float16: 4e-3}  # of the largest value
cases = pytest.mark.parametrize('dtype', TOLERANCES)
widths = pytest.mark.parametrize('width', WIDTHS)


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


def states(kind: str, width: float) -> rig.State:
    return rig.random_state(kind, width, seed=7)


def made(kind: str, width: float, device: str) -> RefineNet | ScoreNet:
    network = {'refiner': RefineNet, 'scorer': ScoreNet}[kind](width).eval()
    network.load_state_dict(states(kind, width))
    return network.to(device)


def image_of(count: int, width: float, layout: torch.memory_format) -> torch.Tensor:
    g = torch.Generator().manual_seed(count)
    image = torch.randn(count, int(512 * width), 20, 20, generator=g).relu()
    return image.contiguous(memory_format=layout)


def tokens_of(state: rig.State, image: torch.Tensor) -> torch.Tensor:
    """Token 20 * row + column, one by one, and the code of its place."""
    tokens = torch.stack([image[:, :, k // 20, k % 20] for k in range(400)], 1).float()
    return tokens + state['pos_embed.pe']


def outputs(count: int, *sizes: int, device: str) -> list[torch.Tensor]:
    return [torch.full((count, size), torch.nan, device=device) for size in sizes]


def assert_near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert (found.cpu() - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(heads_module, 'MOST_CROPS', 3)


@cases
@widths
@pytest.mark.parametrize('count', [1, 3, 7])  # the last in three parts
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format])
def test_both_heads_of_a_refiner(device, dtype, width, count, layout):
    state, network = states('refiner', width), made('refiner', width, device)
    image = image_of(count, width, layout).to(dtype)
    heads = RefinerHeads(network, dtype)
    found = outputs(count, 3, 3, device=device)
    heads(image.to(device), *found)
    for value, name in zip(found, ('trans_head', 'rot_head'), strict=True):
        assert_near(value, rig.head(state, name, tokens_of(state, image)), TOLERANCES[dtype])


@cases
@widths
def test_the_end_of_the_extractor(device, dtype, width):
    state, network = states('scorer', width), made('scorer', width, device)
    image = image_of(7, width, torch.channels_last).to(dtype)
    (found,) = outputs(7, int(512 * width), device=device)
    ExtractorHead(network, dtype)(image.to(device), found)
    wanted = rig.attention(state, 'att', tokens_of(state, image)).mean(1)
    assert_near(found, wanted, TOLERANCES[dtype])


@cases
@widths
def test_the_code_is_added_as_torch_adds_it_and_the_trunk_stays(device, dtype, width):
    network = made('scorer', width, device)
    image = image_of(3, width, torch.channels_last).to(device, dtype)
    kept, code = image.clone(), network.pos_embed.pe[0].to(dtype)
    for _ in range(2):
        found = PositionalCode(network.pos_embed, dtype)(image)
        wanted = image.permute(0, 2, 3, 1).reshape(3, 400, -1) + code
        assert found.dtype == dtype and torch.equal(found, wanted)
    assert torch.equal(image, kept)


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_what_is_not_finite_comes_out_of_its_own_crop_and_of_no_other(value):
    """So that the outcome is NOT_FINITE, and no pose."""
    image = image_of(3, WIDTHS[0], torch.channels_last)
    image[1, 5, 10, 10] = value
    found = outputs(3, 3, 3, device='cpu')
    RefinerHeads(made('refiner', WIDTHS[0], 'cpu'), torch.float32)(image, *found)
    for output in found:
        assert output.isnan().any(1).tolist() == [False, True, False]


def test_values_of_a_hidden_layer_that_are_not_finite_are_not_rectified_away():
    network = made('refiner', WIDTHS[0], 'cpu')
    network.rot_head[0].linear1.bias.detach()[3] = torch.nan
    trans, rot = outputs(2, 3, 3, device='cpu')
    image = image_of(2, WIDTHS[0], torch.channels_last)
    RefinerHeads(network, torch.float32)(image, trans, rot)
    assert rot.isnan().all() and trans.isfinite().all()


@pytest.mark.parametrize(('channels', 'lanes'), [(512, 32), (320, 16), (192, 16), (96, 8), (4, 1)])
def test_lanes_share_the_channels_of_every_width(channels, lanes):
    assert head_kernels(channels, True, True).lanes == lanes
    assert head_kernels(channels, True, False).lanes == 1


def test_channels_that_do_not_come_in_fours_are_refused():
    with pytest.raises(ValueError, match='6 channels cannot be taken four at a time'):
        head_kernels(6, True, True)


@pytest.mark.parametrize('channels', [32, 192, 512])
def test_the_kernels_compile_for_a_gpu_and_keep_rows_in_registers(tmp_path, channels):
    """Also where there is none: sums over the lanes are made by shuffles, nothing spills."""
    kernels = head_kernels(channels, True, True)
    for name in ('add_code', 'add_norm', 'norm_sums', 'add_relu', 'last'):
        module = getattr(kernels, name).module
        wp.compile_aot_module(module, arch=80, module_dir=tmp_path / name, use_ptx=True)
        (file,) = (tmp_path / name).glob('*.ptx')
        code = file.read_text(errors='replace')
        assert ('shfl.sync' in code) == (name not in ('add_code', 'add_relu'))
        assert 'activemask' not in code, 'it tells who happens to run together'
        assert 'ld.global.u64' in code or name == 'last'
        assert 'ld.local' not in code and 'st.local' not in code


def test_norms_that_differ_are_refused():
    network = made('refiner', WIDTHS[0], 'cpu')
    network.rot_head[0].norm2.eps = 1e-3
    with pytest.raises(ValueError, match=r'differ in eps: \[1e-05, 0.001\]'):
        RefinerHeads(network, torch.float32)


@pytest.mark.gpu
def test_replays_of_a_graph_give_the_same_to_the_last_bit():
    heads = RefinerHeads(made('refiner', WIDTHS[1], 'cuda'), torch.float16)
    image = image_of(8, WIDTHS[1], torch.channels_last).half().cuda()
    found, side = outputs(8, 3, 3, device='cuda'), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        heads(image, *found)
    side.synchronize()
    wanted = [value.clone() for value in found]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        heads(image, *found)
    for _ in range(20):
        graph.replay()
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
