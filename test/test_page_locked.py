"""Images that the GPU reads in place: which are, and that nothing but the way changes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warp as wp
from raster_rig import on_devices
from scene_rig import STARTS, THINGS, TRUTH, scene_of
from test_track_pass import DIAMETERS_M, MESHES, ORDER, centered, rows_of, tensor, track_of

from foundationpose_trt.datatypes import Frame
from foundationpose_trt.pose import track_kernels as kernels
from foundationpose_trt.pose.bus_kernels import fetch_in_place
from foundationpose_trt.pose.estimator import PoseEstimator
from foundationpose_trt.pose.page_locked import device_address, page_locked_empty
from foundationpose_trt.pose.patch import Patch, neighbourhood
from foundationpose_trt.pose.track_pass import TrackPass
from foundationpose_trt.pose.weights import load_networks
from foundationpose_trt.warp_launch import as_warp, launch

IN_PLACE = {'neither': (), 'colours': ('rgb',), 'depth': ('depth_m',), 'both': ('rgb', 'depth_m')}


def frame_with(frame: Frame, names: tuple[str, ...], empty: Any = page_locked_empty) -> Frame:
    """The same frame with some of its images in page-locked memory."""
    images = {name: getattr(frame, name).copy() for name in ('rgb', 'depth_m')}
    for name in names:
        ordinary, images[name] = images[name], empty(images[name].shape, images[name].dtype)
        images[name][...] = ordinary
    return Frame(**images, intrinsics=frame.intrinsics)


@pytest.fixture(scope='module')
def frame() -> Frame:
    frame, _ = scene_of(THINGS, TRUTH)
    rng = np.random.default_rng(3)
    depth = frame.depth_m + rng.normal(0, 4e-4, frame.depth_m.shape).astype(np.float32)
    return Frame(rng.integers(0, 256, frame.rgb.shape, np.uint8), depth, frame.intrinsics)


@pytest.mark.parametrize('image', [np.zeros((4, 6), np.float32), np.zeros((4, 6, 3), np.uint8)])
def test_ordinary_arrays_have_no_address_for_a_device(image):
    tensor = torch.from_numpy(image.copy())  # what torch owns is not page-locked for that
    for given in (image, image[1:], np.asarray(tensor), image.T):
        assert device_address(given) == 0


@pytest.mark.gpu
def test_only_a_whole_page_locked_array_has_an_address():
    image = page_locked_empty((480, 640, 3), np.uint8)
    assert image.shape == (480, 640, 3) and image.dtype == np.uint8
    assert device_address(image) == image.ctypes.data
    assert device_address(np.asarray(image, np.uint8)) == image.ctypes.data
    owner = torch.zeros(4, 8, pin_memory=True)
    assert device_address(owner.numpy()) == owner.data_ptr()
    for part in (image[:, :320], image[8:], image.reshape(-1), owner.t().numpy()):
        assert device_address(part) == 0
    assert device_address(torch.zeros(9, pin_memory=True)[1:].numpy()) == 0  # not a whole word
    assert device_address(page_locked_empty((2, 8), np.float32)) % 8 == 0


def test_without_cuda_it_says_so():
    if torch.cuda.is_available():
        pytest.skip('there is CUDA')
    with pytest.raises(RuntimeError):
        page_locked_empty((4, 4), np.float32)


@pytest.mark.parametrize(
    ('x', 'width', 'expected'),
    [(0, 8, (0, 8)), (5, 3, (0, 8)), (8, 9, (8, 16)), (15, 2, (8, 16)), (7, 633, (0, 640))],
)
def test_a_patch_in_whole_steps_holds_the_patch(x, width, expected):
    patch = Patch(x, 3, width, 5).in_steps(8)
    assert (patch.x, patch.width, patch.y, patch.height) == (*expected, 3, 5)


@pytest.mark.parametrize('names', IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize('patch', [Patch(16, 5, 24, 9), Patch(0, 0, 64, 40), Patch(56, 39, 8, 1)])
def test_the_kernel_copies_the_patch_row_by_row(names, patch):
    """On a CPU every address is a device's."""
    rng = np.random.default_rng(4)
    images = {
        'rgb': rng.integers(0, 256, (40, 64, 3), np.uint8),
        'depth_m': rng.random((40, 64), np.float32),
    }
    sources = [image.ctypes.data for image in images.values()]
    tracked = kernels.Tracked()
    tracked.sources = wp.array(sources, dtype=wp.uint64, device='cpu')
    tracked.patch = wp.array(
        [[patch.x, patch.y, patch.width, patch.height]], dtype=wp.vec4i, device='cpu'
    )
    tracked.camera = wp.array([1, 1, 1, 1, 64, 40], dtype=float, device='cpu')
    size = patch.pixels, patch.pixels + 16  # what lies behind must stay
    found = {'rgb': np.full(3 * size[1], 7, np.uint8), 'depth_m': np.full(size[1], 7, np.float32)}
    for place, (name, words) in enumerate({'rgb': 3, 'depth_m': 4}.items()):
        given = as_warp(torch.from_numpy(found[name].view(np.int64)), wp.uint64)
        threads = (words * patch.pixels // 8 + 5,)
        if name in names:
            launch(fetch_in_place, threads, [tracked, place, words, given], torch.device('cpu'))
    for name, image in images.items():
        here = found[name].reshape(size[1], *image.shape[2:])
        wanted = patch.of(image).reshape(size[0], *image.shape[2:]) if name in names else 7
        np.testing.assert_array_equal(here[: size[0]], wanted)
        assert (here[size[0] :] == 7).all()


def crops_and_results(track: TrackPass, frame: Frame) -> list[np.ndarray]:
    """All that a pass gives of a frame and the starts, after one move."""
    track.begin(frame, rows_of(centered(STARTS)), ORDER)
    crops = [half.cpu().numpy().copy() for half in track.write(3).chunk(2)]
    device = track._device.type
    move = {name: tensor(np.full((3, 3), 0.1), device) for name in ('trans', 'rot')}
    track.move(move, 3)
    return [*crops, *track.end(3)]


@pytest.mark.gpu
@pytest.mark.parametrize('names', IN_PLACE.values(), ids=IN_PLACE)
def test_a_pass_gives_the_same_whatever_the_memory(frame, names):
    track = track_of('cuda', frame.depth_m.shape)
    plain = crops_and_results(track_of('cuda', frame.depth_m.shape), frame)
    for _ in range(20):
        other = Frame(255 - frame.rgb, frame.depth_m[::-1].copy(), frame.intrinsics)
        crops_and_results(track, frame_with(other, names[:1]))  # what came before is gone
        for found, wanted in zip(
            crops_and_results(track, frame_with(frame, names)), plain, strict=True
        ):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.gpu
def test_an_image_whose_rows_are_no_whole_words_is_packed(frame):
    rgb, depth = (np.ascontiguousarray(i[:, :-3]) for i in (frame.rgb, frame.depth_m))
    k = frame.intrinsics
    narrow = Frame(rgb, depth, type(k)(k.fx, k.fy, k.cx, k.cy, k.width - 3, k.height))
    results = [
        crops_and_results(track_of('cuda', depth.shape), frame_with(narrow, names))
        for names in (IN_PLACE['neither'], IN_PLACE['both'])
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def begun_alone(device: str, frame: Frame) -> tuple[TrackPass, list[np.ndarray], weakref.ref]:
    """A pass begun with a frame that it alone holds; what a whole one gives of it; the frame."""
    empty = page_locked_empty if device == 'cuda' else np.empty
    track = track_of(device, frame.depth_m.shape)
    plain = crops_and_results(track, frame)
    given = frame_with(frame, IN_PLACE['both'], empty)
    track.begin(given, rows_of(centered(STARTS)), ORDER)
    return track, plain, weakref.ref(given)


def has_let_go(kept: weakref.ref) -> bool:
    """Not told under compute-sanitizer: it keeps Python's stack of calls, and what stood in it."""
    return kept() is None or 'libsanitizer' in Path('/proc/self/maps').read_text()


@on_devices
def test_a_pass_keeps_its_frame_until_it_ends(device, frame):
    """What only it holds is not given to somebody else, who would write into it meanwhile."""
    track, plain, kept = begun_alone(device, frame)
    assert kept() is not None, 'it has let go of its frame'
    empty = page_locked_empty if device == 'cuda' else np.empty
    for like in (frame.rgb, frame.depth_m):
        empty(like.shape, like.dtype)[...] = 77
    crops = [half.cpu().numpy().copy() for half in track.write(3).chunk(2)]
    track.move({name: tensor(np.full((3, 3), 0.1), device) for name in ('trans', 'rot')}, 3)
    for found, wanted in zip([*crops, *track.end(3)], plain, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert has_let_go(kept), 'it still holds the frame'


@on_devices
def test_a_pass_that_came_to_no_end_keeps_its_frame_until_the_next(device, frame):
    track, plain, kept = begun_alone(device, frame)
    assert kept() is not None, 'it has let go of its frame'
    for found, wanted in zip(crops_and_results(track, frame), plain, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert has_let_go(kept), 'it still holds the frame'


@pytest.mark.gpu
def test_an_estimator_makes_room_that_it_reads_in_place():
    estimator = PoseEstimator(MESHES, load_networks('small', 'cuda'))
    assert device_address(estimator.empty_image((480, 640), np.float32)) != 0


def test_an_estimator_on_a_cpu_makes_ordinary_room():
    room = PoseEstimator(MESHES, load_networks('small')).empty_image((48, 64, 3), np.uint8)
    assert room.shape == (48, 64, 3) and room.dtype == np.uint8 and room.base is None


def test_the_neighbourhood_in_steps_stays_in_the_image(frame):
    rng, k = np.random.default_rng(5), frame.intrinsics
    assert k.width % 8 == 0
    for _ in range(200):
        pose = np.eye(4)
        pose[:3, 3] = rng.uniform((-0.6, -0.6, 0.2), (0.6, 0.6, 1.5))
        patch = neighbourhood(rows_of(pose[None]), k, DIAMETERS_M[:1])
        wider = patch.in_steps(8)
        assert 0 <= wider.x <= patch.x
        assert patch.x + patch.width <= wider.x + wider.width <= k.width
