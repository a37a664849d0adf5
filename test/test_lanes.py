"""Threads of a warp that count together: what reaches memory is counted once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import warp as wp

from foundationpose_trt.pose import track_kernels
from foundationpose_trt.pose.lanes import LANES, is_first_lane, lanes_sum
from foundationpose_trt.warp_launch import launch

ALL = wp.constant(LANES)


@wp.kernel(module='unique', enable_backward=False)
def count_odd(values: wp.array(dtype=int), total: wp.array(dtype=float)):
    together = lanes_sum(float(values[wp.tid()] % 2), ALL)
    if is_first_lane():
        wp.atomic_add(total, 0, together)


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
@pytest.mark.parametrize('warps', [1, 3, 200])
def test_each_thread_is_counted_once(device, warps):
    values = np.random.default_rng(warps).integers(0, 100, LANES * warps).astype(np.int32)
    total = wp.zeros(1, dtype=float, device=device)
    read = wp.array(values, dtype=int, device=device)
    launch(count_odd, len(values), [read, total], torch.device(device))
    assert total.numpy()[0] == (values % 2).sum()


def test_a_warp_that_counts_evidence_has_pixels_of_one_pose_alone():
    side, run = int(track_kernels.CROP_PX), int(track_kernels.RUN_PX)
    assert side % run == 0 and side * side // run % LANES == 0


def test_evidence_is_added_up_by_shuffles_on_a_gpu(tmp_path):
    """Also where there is none: compiled for one, it has an addition for a warp's sum alone."""
    module = track_kernels.count_evidence.module
    wp.compile_aot_module(module, arch=80, module_dir=tmp_path, use_ptx=True)
    (file,) = tmp_path.glob('*.ptx')
    _, _, code = file.read_text(errors='replace').partition('.entry count_evidence')
    code, _, _ = code.partition('.entry')
    assert code.count('shfl.sync') >= 5 and 'activemask' not in code
