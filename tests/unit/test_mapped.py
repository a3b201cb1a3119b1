# SPDX-License-Identifier: Apache-2.0
"""Arrays on disk: what is read is what was written, and what was read can go."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from scalr_prod.mapped import Rows, let_go, on_disk

#: Whatever is written to it, there is no space left.
FULL = Path("/dev/full")


def held_kb() -> int:
    """What this process holds of files, memory that is shared among them."""
    return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def test_parts_become_arrays_of_their_types_and_leave_no_file(tmp_path):
    parts = [(np.arange(3), np.array([0.5, 1, 2])), (np.arange(0), np.empty(0)), (np.array([7]), np.array([9]))]
    whole, halves = on_disk(iter(parts), [np.int32, np.float32], tmp_path)
    assert (whole.dtype, halves.dtype) == (np.int32, np.float32)
    assert whole.tolist() == [0, 1, 2, 7]
    assert halves.tolist() == [0.5, 1, 2, 9]
    assert not list(tmp_path.iterdir())
    let_go()
    assert whole.tolist() == [0, 1, 2, 7]
    with pytest.raises(ValueError, match="read-only"):
        whole[0] = 1


def test_nothing_is_an_array_too(tmp_path):
    (nothing,) = on_disk([], [np.int64], tmp_path)
    assert nothing.dtype == np.int64
    assert len(nothing) == 0


def test_what_fails_on_the_way_leaves_no_file(tmp_path):
    def parts():
        yield (np.arange(3),)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        on_disk(parts(), [np.int32], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much is held")
def test_what_was_read_is_let_go_of(tmp_path):
    (large,) = on_disk(((np.full(1 << 20, number),) for number in range(8)), [np.int64], tmp_path)
    assert large.sum() == (1 << 20) * sum(range(8))
    before = held_kb()
    let_go()
    assert before - held_kb() > 48 << 10, "of 64 MB"
    assert large[-1] == 7


@pytest.mark.skipif(not FULL.exists(), reason="a device that is always full")
def test_a_full_disk_is_told_when_the_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: FULL.open("w+b"))
    with pytest.raises(OSError, match="No space left"):
        on_disk([(np.arange(1 << 20),)], [np.int64], tmp_path)


def test_rows_are_zeros_until_they_are_written(tmp_path):
    with Rows(5, 3, np.float32, tmp_path) as rows:
        rows.write(1, np.ones((2, 3)))
        assert rows.read(0, 4).tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]]
        found = rows.read(1, 2)
        found[:] = 9
        assert rows.read(1, 2).tolist() == [[1, 1, 1]]
        assert rows.read(2, 2).shape == (0, 3)
        rows.write(5, np.empty((0, 3)))
    assert not list(tmp_path.iterdir())
