"""The patch in two parts: what the first crops read, and the rest while the device refines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scene_rig import STARTS, THINGS, TRUTH, scene_of
from test_track_pass import DIAMETERS_M, ORDER, centered, rows_of, tensor, track_of

from foundationpose_trt.datatypes import Frame
from foundationpose_trt.pose.patch import Patch, first_read, neighbourhood
from foundationpose_trt.pose.track_pass import TrackPass

POSES = rows_of(centered(STARTS))
SOME_M = [DIAMETERS_M[index] for index in ORDER]


@pytest.fixture(scope='module')
def frame() -> Frame:
    frame, _ = scene_of(THINGS, TRUTH)
    rng = np.random.default_rng(5)
    depth = frame.depth_m + rng.normal(0, 4e-4, frame.depth_m.shape).astype(np.float32)
    return Frame(rng.integers(0, 256, frame.rgb.shape, np.uint8), depth, frame.intrinsics)


class Beside:
    """Stands for the other stream where there is none: notes what is asked of it."""

    stream = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def mark(self) -> None:
        self.asked.append('mark')

    def begin(self) -> None:
        self.asked.append('begin')

    def join(self) -> None:
        self.asked.append('join')


def in_two_parts(frame: Frame) -> tuple[TrackPass, Beside]:
    track, beside = track_of('cpu', frame.depth_m.shape), Beside()
    track._transfer._beside = beside  # type: ignore[assignment]
    return track, beside


def move_by(value: float, device: str = 'cpu') -> dict[str, torch.Tensor]:
    return {name: tensor(np.full((3, 3), value), device) for name in ('trans', 'rot')}


def first_part(frame: Frame, number: int = 3) -> Patch:
    patch = neighbourhood(POSES[:number], frame.intrinsics, SOME_M[:number])
    return first_read(POSES[:number], frame.intrinsics, SOME_M[:number], 1.2).cut_to(patch)


def with_noise_outside(frame: Frame, kept: Patch) -> Frame:
    """The same frame within a patch, anything around it."""
    rng = np.random.default_rng(6)
    rgb = rng.integers(0, 256, frame.rgb.shape, np.uint8)
    depth = rng.uniform(0.1, 2.0, frame.depth_m.shape).astype(np.float32)
    for noise, image in ((rgb, frame.rgb), (depth, frame.depth_m)):
        kept.of(noise)[...] = kept.of(image)
    return Frame(rgb, depth, frame.intrinsics)


def results(track: TrackPass, frame: Frame, later: Frame | None = None) -> list[Any]:
    """First crops, crops after a move and what comes of another; `later` appears in between."""
    frame = Frame(frame.rgb.copy(), frame.depth_m.copy(), frame.intrinsics)
    track.begin(frame, POSES, ORDER)
    found: list[Any] = [track.write(3).clone()]
    if later is not None:
        frame.rgb[...], frame.depth_m[...] = later.rgb, later.depth_m
    track.move(move_by(0.1), 3)
    found.append(track.write(3).clone())
    track.move(move_by(0.1), 3)
    return [*found, *track.end(3)]


@pytest.mark.parametrize('number', [1, 3])
def test_the_first_crops_read_nothing_else(frame, number):
    part = first_part(frame, number)
    crops = []
    for given in (frame, with_noise_outside(frame, part)):
        track = track_of('cpu', frame.depth_m.shape)
        track.begin(given, POSES[:number], ORDER[:number])
        crops.append(track.write(number).clone())
    assert crops[0].abs().mean() > 0.02
    torch.testing.assert_close(crops[1], crops[0], atol=0, rtol=0)


def test_all_else_is_packed_after_the_first_crops(frame):
    track, beside = in_two_parts(frame)
    wanted = results(track_of('cpu', frame.depth_m.shape), frame)
    for _ in range(2):  # what the frame before left does not matter
        found = results(track, with_noise_outside(frame, first_part(frame)), later=frame)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    assert beside.asked == ['mark', 'begin', 'join'] * 2


def test_where_nothing_is_refined_it_comes_before_the_counts(frame):
    track, beside = in_two_parts(frame)
    plain = track_of('cpu', frame.depth_m.shape)
    found = []
    for each in (track, plain):
        each.begin(frame, POSES, ORDER)
        found.append(each.end(3).rows)
    np.testing.assert_array_equal(*found)
    assert beside.asked == ['mark', 'begin', 'join']


def test_where_little_would_be_left_all_is_packed_at_once(frame):
    """Close by, the windows of both sizes fill the image."""
    near = centered(STARTS)[:1].copy()
    near[0, :3, 3] = (0, 0, 0.12)
    track, beside = in_two_parts(frame)
    track.begin(frame, rows_of(near), ORDER[:1])
    track.write(1)
    track.move(move_by(0.0), 1)
    track.end(1)
    assert beside.asked == []


def test_a_pass_given_up_halfway_leaves_nothing_to_bring(frame):
    track, beside = in_two_parts(frame)
    track.begin(frame, POSES, ORDER)
    track.write(3)
    beside.asked.clear()
    wanted = results(track_of('cpu', frame.depth_m.shape), frame)
    for one, other in zip(results(track, frame), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert beside.asked == ['mark', 'begin', 'join']


@pytest.mark.gpu
def test_on_two_streams_it_is_the_same_as_at_once(frame, monkeypatch):
    whole = track_of('cuda', frame.depth_m.shape)
    monkeypatch.setattr(whole._transfer, '_bring_packed', at_once(whole))
    halves = track_of('cuda', frame.depth_m.shape)
    other = Frame(255 - frame.rgb, frame.depth_m[::-1].copy(), frame.intrinsics)
    for _ in range(20):
        on_cuda(halves, other)  # what came before is gone
        for one, two in zip(on_cuda(halves, frame), on_cuda(whole, frame), strict=True):
            np.testing.assert_array_equal(one, two)


def at_once(track: TrackPass) -> Any:
    """Packing the whole patch before the first crops."""
    packed = track._transfer._bring_packed
    return lambda frame, patch, near, sources, n: packed(frame, patch, patch, sources, n)


def on_cuda(track: TrackPass, frame: Frame) -> list[np.ndarray]:
    track.begin(frame, POSES, ORDER)
    crops = []
    for _ in range(2):
        crops.append(track.write(3).cpu().numpy())
        track.move(move_by(0.1, 'cuda'), 3)
    return [*crops, *track.end(3)]
