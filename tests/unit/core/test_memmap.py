# SPDX-License-Identifier: Apache-2.0
"""Arrays on disk: what is read is what was written, and what was read can go."""

from __future__ import annotations

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scalr_prod.core.memmap import DiskMatrix, drop_pages, spill_arrays
from scalr_prod.errors import LakeError

#: Whatever is written to it, there is no space left.
FULL = Path("/dev/full")


def held_kb() -> int:
    """What this process holds of files, those on tmpfs among them."""
    status = Path("/proc/self/status").read_text()
    return sum(int(re.search(rf"{name}:\s+(\d+)", status).group(1)) for name in ("RssFile", "RssShmem"))


def test_parts_become_arrays_of_their_types_and_leave_no_file(tmp_path):
    parts = [(np.arange(3), np.array([0.5, 1, 2])), (np.arange(0), np.empty(0)), (np.array([7]), np.array([9]))]
    whole, halves = spill_arrays(iter(parts), [np.int32, np.float32], tmp_path)
    assert (whole.dtype, halves.dtype) == (np.int32, np.float32)
    assert whole.tolist() == [0, 1, 2, 7]
    assert halves.tolist() == [0.5, 1, 2, 9]
    assert not list(tmp_path.iterdir())
    drop_pages()
    assert whole.tolist() == [0, 1, 2, 7]
    with pytest.raises(ValueError, match="read-only"):
        whole[0] = 1


def test_nothing_is_an_array_too(tmp_path):
    (nothing,) = spill_arrays([], [np.int64], tmp_path)
    assert nothing.dtype == np.int64
    assert len(nothing) == 0


def test_what_fails_on_the_way_leaves_no_file(tmp_path):
    def parts():
        yield (np.arange(3),)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        spill_arrays(parts(), [np.int32], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much is held")
def test_what_was_read_is_let_go_of(tmp_path):
    (large,) = spill_arrays(((np.full(1 << 20, number),) for number in range(8)), [np.int64], tmp_path)
    assert large.sum() == (1 << 20) * sum(range(8))
    before = held_kb()
    drop_pages()
    assert before - held_kb() > 48 << 10, "of 64 MB"
    assert large[-1] == 7


@pytest.mark.skipif(not FULL.exists(), reason="a device that is always full")
def test_a_full_disk_is_told_when_the_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: FULL.open("w+b"))
    with pytest.raises(LakeError, match=r"(?s)No space left.*free some space") as told:
        spill_arrays([(np.arange(1 << 20),)], [np.int64], tmp_path)
    assert str(tmp_path) in str(told.value)


def test_what_fails_while_parts_are_made_is_not_blamed_on_the_disk(tmp_path):
    def parts():
        yield (np.arange(3),)
        raise PermissionError(13, "Permission denied", "somebody's file")

    with pytest.raises(PermissionError, match="somebody's file"):
        spill_arrays(parts(), [np.int32], tmp_path)


def test_arrays_come_and_go_in_some_threads_while_others_let_go(tmp_path):
    """Of a set that others change, a pass would fail sooner or later."""
    stop, failed = time.monotonic() + 1.5, []

    def work(step):
        try:
            while time.monotonic() < stop:
                step()
        except BaseException as error:
            failed.append(error)
            raise

    def make():
        spill_arrays([(np.arange(9),)], [np.int64], tmp_path)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for step in (make, drop_pages, make, drop_pages):
                pool.submit(work, step)
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_rows_are_zeros_until_they_are_written(tmp_path):
    with DiskMatrix(5, 3, np.float32, tmp_path) as rows:
        rows.write(1, np.ones((2, 3)))
        assert rows.read(0, 4).tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]]
        found = rows.read(1, 2)
        found[:] = 9
        assert rows.read(1, 2).tolist() == [[1, 1, 1]]
        assert rows.read(2, 2).shape == (0, 3)
        rows.write(5, np.empty((0, 3)))
        with pytest.raises(IndexError, match="beyond the last"):
            rows.read(4, 6)
    assert not list(tmp_path.iterdir())
