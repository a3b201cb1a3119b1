"""Parts appear whole or not at all, and a manifest vouches for nothing else than its own part."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest

from scalr_prod.generation.part_files import (
    manifest_path,
    open_part_writer,
    part_path,
    read_manifest,
    remove_stale_parts,
    write_manifest,
)

ROWS = pa.table({"n": [1, 2, 3]})


def make(path, **facts):
    with open_part_writer(path, ROWS.schema) as write:
        write(ROWS)
        write(ROWS.slice(1))
    return write_manifest(path, facts)


def test_a_finished_part_is_found_again_with_its_facts(tmp_path):
    path = part_path(tmp_path / "parts", 7)
    manifest = make(path, run_id="run", partition=7, rows=5)
    assert path.name == "part-00007.parquet"
    assert manifest["path"] == path.name
    assert read_manifest(path, run_id="run", partition=7) == manifest
    assert pd.read_parquet(path.parent)["n"].tolist() == [1, 2, 3, 2, 3]


def test_a_part_of_another_run_or_cut_is_not_taken(tmp_path):
    path = part_path(tmp_path, 0)
    make(path, run_id="run", partitions=4)
    assert read_manifest(path, run_id="other") is None
    assert read_manifest(path, run_id="run", partitions=8) is None
    assert read_manifest(path, run_id="run", unheard_of=1) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no manifest", "half a manifest", "no object"])
def test_a_damaged_part_is_not_taken(tmp_path, damage):
    path = part_path(tmp_path, 0)
    make(path, run_id="run")
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "changed":
        path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    elif damage == "gone":
        path.unlink()
    elif damage == "no manifest":
        manifest_path(path).unlink()
    elif damage == "half a manifest":
        manifest_path(path).write_text(manifest_path(path).read_text()[:-5])
    else:
        manifest_path(path).write_text("[]")
    assert read_manifest(path, run_id="run") is None


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = part_path(tmp_path, 0)
    manifest = make(path, run_id="run")

    def interrupted() -> None:
        with open_part_writer(path, ROWS.schema) as write:
            write(ROWS)
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        interrupted()
    assert read_manifest(path, run_id="run") == manifest
    assert sorted(file.name for file in tmp_path.iterdir()) == ["_part-00000.json", "part-00000.parquet"]


def test_what_belongs_to_no_part_of_the_cut_is_removed(tmp_path):
    for number in range(3):
        make(part_path(tmp_path, number), run_id="run")
    (tmp_path / ".part-00001.parquet.abc.tmp").write_bytes(b"half")
    remove_stale_parts(tmp_path, 2)
    names = ["_part-00000.json", "_part-00001.json", "part-00000.parquet", "part-00001.parquet"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
