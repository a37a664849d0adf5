"""A registration's refinements and evidence: against the torch statements of each rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import warp as wp
from raster_rig import on_devices
from scene_rig import STARTS
from scipy.spatial.transform import Rotation
from test_track_pass import MESHES, ORDER, Plain, centered, frame, same_crops

from foundationpose_trt.datatypes import Frame
from foundationpose_trt.pose.crops import pairs_spec
from foundationpose_trt.pose.observation import Uploader
from foundationpose_trt.pose.raster_kernels import make_empty
from foundationpose_trt.pose.register_pass import RegisterPass
from foundationpose_trt.pose.update import apply_update
from foundationpose_trt.pose.views import ViewWriter
from foundationpose_trt.warp_launch import as_warp, launch

__all__ = ['frame']  # a fixture
MESH, COUNT = ORDER[1], 5


def hypotheses(device: str) -> torch.Tensor:
    """Poses (5, 4, 4) of one object near where it is."""
    rng = np.random.default_rng(6)
    poses = np.tile(centered(STARTS)[1], (COUNT, 1, 1))
    for pose in poses:
        pose[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.3, 3)).as_matrix() @ pose[:3, :3]
        pose[:3, 3] += rng.normal(0, 0.01, 3)
    return torch.tensor(poses, dtype=torch.float32, device=device)


def pass_of(frame: Frame, device: str, capacity: int) -> tuple[RegisterPass, ViewWriter]:
    height, width = frame.depth_m.shape
    uploader = Uploader(height, width, torch.device(device))
    observed = uploader.upload(frame, None, None)
    uploader.filtered_depth(observed)
    writer = ViewWriter(MESHES, capacity, pairs_spec(torch.float32), torch.device(device))
    found = writer.register_pass(uploader.images)
    found.look(observed.intrinsics[0])
    return found, writer


class Answers:
    """Stands in for the refiner: keeps the crops, answers its updates in turn."""

    def __init__(self, updates: list[dict[str, torch.Tensor]]) -> None:
        self._updates, self.crops = list(updates), []

    def __call__(self, pairs: torch.Tensor) -> dict:
        self.crops.append(pairs.clone().chunk(2))
        return self._updates[len(self.crops) - 1]


def random_update(rng: np.random.Generator, count: int, device: str) -> dict[str, torch.Tensor]:
    values = {name: rng.normal(0, 0.2, (count, 3)) for name in ('trans', 'rot')}
    return {name: torch.tensor(v, device=device).float() for name, v in values.items()}


@on_devices
def test_every_refinement_sees_and_moves_the_poses_by_the_rules(device, frame):
    plain, poses = Plain(frame, device, (MESH,) * COUNT), hypotheses(device)
    found, _ = pass_of(frame, device, COUNT)
    rng = np.random.default_rng(7)
    updates = [random_update(rng, COUNT, device) for _ in range(3)]
    refiner = Answers(updates)
    refined = found.refined(poses, MESH, 3, refiner)
    at = poses
    for crops, update in zip(refiner.crops, updates, strict=True):
        same_crops(crops, plain.crops(at))
        at = apply_update(at, update, plain.radius)
    torch.testing.assert_close(refined, at, atol=2e-6, rtol=0)


@on_devices
def test_evidence_is_counted_by_the_rule(device, frame):
    plain, poses = Plain(frame, device, (MESH,) * COUNT), hypotheses(device)
    found, _ = pass_of(frame, device, COUNT)
    counted = found.evidence(poses, MESH)
    assert counted.shape == (COUNT, 4)
    assert counted[:, 1].max() > 1000 and counted[:, [0, 2, 3]].min() > 1000
    # a pixel on the border of the tolerance may be rounded to either side
    assert (counted - plain.evidence(poses)).abs().max() <= 12


@on_devices
@pytest.mark.parametrize('capacity', [1, 2, 3])
def test_chunks_change_nothing(device, frame, capacity):
    poses, rng = hypotheses(device), np.random.default_rng(9)
    update = random_update(rng, COUNT, device)
    whole, _ = pass_of(frame, device, COUNT)
    expected = whole.refined(poses, MESH, 1, Answers([update]))
    counts = whole.evidence(expected, MESH)
    found, _ = pass_of(frame, device, capacity)
    parts = [
        {name: values[first : first + capacity] for name, values in update.items()}
        for first in range(0, COUNT, capacity)
    ]
    refined = found.refined(poses, MESH, 1, Answers(parts))
    torch.testing.assert_close(refined, expected, atol=0, rtol=0)
    torch.testing.assert_close(found.evidence(refined, MESH), counts, atol=0, rtol=0)


@on_devices
def test_what_others_drew_in_between_is_not_seen(device, frame):
    """The scorer's crops are drawn into the same buffer."""
    poses = hypotheses(device)
    found, writer = pass_of(frame, device, COUNT)
    before = found.evidence(poses, MESH)
    writer._raster.visibility.zero_()  # the nearest of all faces, everywhere
    torch.testing.assert_close(found.evidence(poses, MESH), before, atol=0, rtol=0)


@wp.kernel(module='unique', enable_backward=False)
def emptying(visibility: wp.array3d(dtype=wp.uint64), of_row: int):
    n, thread = wp.tid()
    make_empty(visibility, n, thread, of_row)


@on_devices
@pytest.mark.parametrize('of_row', [1, 7, 32])
def test_threads_that_share_rows_empty_all_of_them_and_no_other_pose_s(device, of_row):
    visibility = torch.zeros(3, 20, 50, dtype=torch.int64, device=device)
    seen = as_warp(visibility, wp.uint64)
    launch(emptying, (2, 20 * of_row), [seen, of_row], torch.device(device))
    assert (visibility[:2] == -1).all() and (visibility[2] == 0).all()


@on_devices
def test_without_refinements_poses_stay(device, frame):
    poses = hypotheses(device)
    found, _ = pass_of(frame, device, COUNT)
    kept = found.refined(poses, MESH, 0, Answers([]))
    assert torch.equal(kept, poses) and kept.data_ptr() != poses.data_ptr()


@on_devices
def test_meshes_may_change_between_calls(device, frame):
    poses = hypotheses(device)
    found, _ = pass_of(frame, device, COUNT)
    first = found.evidence(poses, MESH)
    other = found.evidence(poses, ORDER[0])
    assert not torch.equal(first, other)
    torch.testing.assert_close(found.evidence(poses, MESH), first, atol=0, rtol=0)
