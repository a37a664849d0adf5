"""Warp among threads and streams: one runtime, one object for each stream."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import warp as wp

from foundationpose_trt import warp_launch


@wp.kernel
def add_first(out: wp.array(dtype=float), value: wp.array(dtype=float)):
    i = wp.tid()
    out[i] = out[i] + value[0]


RACE = """
import threading, torch
from warp._src import context
from foundationpose_trt.warp_launch import as_warp

made, original = [], context.Runtime.__init__

def counting(self, *arguments, **options):
    made.append(1)
    original(self, *arguments, **options)

context.Runtime.__init__ = counting
start = threading.Barrier(4)

def go():
    start.wait()
    as_warp(torch.zeros(8))

threads = [threading.Thread(target=go) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(made))
"""


def test_threads_that_begin_at_once_share_one_runtime():
    """In a process of its own: here it runs already."""
    result = subprocess.run(
        [sys.executable, '-c', RACE], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ['1']


@pytest.mark.parametrize('version', ['1.14.2', '1.9.0', '0.99.1'])
def test_a_warp_that_draws_nothing_is_refused(monkeypatch, version):
    monkeypatch.setattr(wp, '__version__', version)
    with pytest.raises(RuntimeError, match=rf'Warp is {version}, must be 1\.15 or later: pip'):
        warp_launch._initialise()


@pytest.mark.parametrize('version', ['1.15.0', '1.20.0.dev3', '2.0.0'])
def test_a_later_warp_is_taken(monkeypatch, version):
    monkeypatch.setattr(wp, '__version__', version)
    warp_launch._initialise()


def test_the_oldest_warp_is_the_one_that_setup_demands():
    setup = (Path(__file__).parents[1] / 'setup.py').read_text()
    least = '.'.join(map(str, warp_launch.LEAST_WARP))
    assert f"'warp-lang>={least}'" in setup


class Streams:
    """Stands for Warp on CUDA: notes the streams it makes and what is launched on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.launched, self.current = [], [], {}
        monkeypatch.setattr(warp_launch, '_streams', {})
        monkeypatch.setattr(warp_launch.wp, 'device_from_torch', str)
        monkeypatch.setattr(warp_launch.wp, 'Stream', self._make)
        monkeypatch.setattr(warp_launch.wp, 'stream_from_torch', lambda s: self._make(
            str(s.device), cuda_stream=s.cuda_stream), raising=False)  # fmt: skip
        monkeypatch.setattr(
            warp_launch.wp, 'launch', lambda *_, stream: self.launched.append(stream)
        )
        monkeypatch.setattr(torch.cuda, 'current_stream', self.current.get)

    def _make(self, device: str, cuda_stream: int) -> object:
        self.made.append((device, cuda_stream))
        return SimpleNamespace()

    def launch_on(self, index: int, handle: int) -> object:
        device = torch.device('cuda', index)
        self.current[device] = SimpleNamespace(device=device, cuda_stream=handle)
        warp_launch.launch(None, 1, [], device)
        return self.launched[-1]


def test_a_stream_has_one_object_of_warp_that_lives_on(monkeypatch):
    streams = Streams(monkeypatch)
    first = streams.launch_on(0, 0)
    other = streams.launch_on(0, 512)
    elsewhere = streams.launch_on(1, 512)
    assert len({id(stream) for stream in (first, other, elsewhere)}) == 3
    for _ in range(3):
        assert streams.launch_on(0, 512) is other and streams.launch_on(0, 0) is first
    assert streams.made == [('cuda:0', 0), ('cuda:0', 512), ('cuda:1', 512)]


def test_threads_on_one_stream_share_its_object(monkeypatch):
    streams = Streams(monkeypatch)
    start = threading.Barrier(8)

    def go() -> None:
        start.wait()
        streams.launch_on(0, 64)

    threads = [threading.Thread(target=go) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(streams.made) == 1


@pytest.mark.gpu
def test_launches_run_on_the_current_stream_of_torch():
    """A copy behind them on that stream finds what they wrote."""
    from foundationpose_trt.detection.images import ColorImage
    from foundationpose_trt.detection.preprocess import make_preprocessor

    from detector_rig import manifest_of, sample_image  # isort: skip

    preprocess = make_preprocessor(manifest_of(), torch.device('cuda'))
    image = ColorImage.of_array(sample_image(120, 160))
    results = []
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            out = torch.zeros(1, 3, 384, 384, device='cuda')
            preprocess.upload(image)
            preprocess.write(out)
            results.append(out.cpu())
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].std() > 0.1


@pytest.mark.parametrize('given', ['cuda', 'cuda:1'])
def test_cuda_without_a_number_is_the_current_device(given, monkeypatch):
    """Torch allows it everywhere; Warp looks its devices up by number."""
    asked = []
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    monkeypatch.setattr(warp_launch.wp, 'device_from_torch', asked.append)
    warp_launch._warp_device(torch.device(given))
    assert asked == [torch.device('cuda', 1)]


def test_a_recorded_launch_repeats_with_other_sizes_and_arguments():
    one, other = torch.zeros(8), torch.zeros(8)
    count = torch.full((1,), 3.0)
    arguments = [warp_launch.as_warp(one), warp_launch.as_warp(count)]
    recorded = warp_launch.RecordedLaunch(add_first, (8,), arguments, torch.device('cpu'))
    assert (one == 0).all(), 'recording runs nothing'
    recorded((8,), None)
    recorded((2,), None)
    recorded.replace(0, warp_launch.as_warp(other))
    count.fill_(5.0)  # what is behind an argument is read at each launch
    recorded((2,), None)
    assert one.tolist() == [6.0] * 2 + [3.0] * 6 and other.tolist() == [5.0] * 2 + [0.0] * 6
