"""Files that builds leave: whole, whoever else writes them."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from foundationpose_trt.runtime import engine_manifest
from foundationpose_trt.runtime.engine_manifest import write_atomically


def test_two_who_write_one_file_at_once_both_succeed(tmp_path, monkeypatch):
    both, flush = threading.Barrier(2, timeout=20), os.fsync

    def meet(number: int) -> None:
        flush(number)
        both.wait()

    monkeypatch.setattr(engine_manifest.os, 'fsync', meet)
    path, contents = tmp_path / 'net.engine', [b'a' * 300_000, b'b' * 200_000]
    with ThreadPoolExecutor(2) as pool:
        for written in [pool.submit(write_atomically, path, content) for content in contents]:
            written.result()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'net.engine'
    write_atomically(path, b'old')

    def full(number: int) -> None:
        raise OSError('disk full')

    monkeypatch.setattr(engine_manifest.os, 'fsync', full)
    with pytest.raises(OSError, match='disk full'):
        write_atomically(path, b'new')
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]
