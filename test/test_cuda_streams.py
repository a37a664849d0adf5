"""The current stream, by torch's raw handle where there is one and without it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foundationpose_trt import cuda_streams


@pytest.fixture
def handles(monkeypatch):
    """Handles of the current streams by device; notes how often torch itself is asked."""
    known, asked = {0: 0, 1: 640}, []

    def slowly(device):
        index = torch.cuda.current_device() if device.index is None else device.index
        asked.append(index)
        return SimpleNamespace(cuda_stream=known[index], index=index)

    monkeypatch.setattr(cuda_streams, '_streams', {})
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'current_stream', slowly)
    return SimpleNamespace(known=known, asked=asked)


def test_a_stream_is_asked_for_once(handles, monkeypatch):
    monkeypatch.setattr(cuda_streams, '_raw', handles.known.__getitem__)
    device = torch.device('cuda', 0)
    first = cuda_streams.current_stream(device)
    assert cuda_streams.current_stream(device) is first and handles.asked == [0]
    handles.known[0] = 512
    other = cuda_streams.current_stream(device)
    assert (other.cuda_stream, handles.asked) == (512, [0, 0])
    handles.known[0] = 0
    assert cuda_streams.current_stream(device) is first and handles.asked == [0, 0]


@pytest.mark.parametrize('quick', [True, False])
def test_a_device_without_a_number_is_the_current_one(handles, monkeypatch, quick):
    monkeypatch.setattr(cuda_streams, '_raw', handles.known.__getitem__ if quick else None)
    device = torch.device('cuda')
    assert cuda_streams.current_stream(device).index == 1
    assert cuda_streams.handle_of_current_stream(device) == 640
