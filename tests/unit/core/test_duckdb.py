from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.training_set_folder import write_ids_of_all

from scalr_prod.config.settings import Settings
from scalr_prod.errors import LakeError
from scalr_prod.features import DeltaOfflineStoreConfig
from scalr_prod.workspace.duckdb import escape_glob, move_into_place, open_duckdb, staging_folder, temporary_folder


def project(folder, **compute) -> Settings:
    domains = {"source": {"name": "a", "events": "a"}, "target": {"name": "b", "events": "b"}}
    return Settings(domains=domains, compute=compute, base=folder)


def test_staging_is_removed_whatever_happens(tmp_path):
    settings = project(tmp_path)

    def work():
        with staging_folder(settings, "test") as folder:
            (folder / "file").write_text("x")
            raise KeyError("made up")

    with pytest.raises(KeyError, match="made up"):
        work()
    assert not list((settings.home / "staging").iterdir())


def test_a_home_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / ".scalr").write_text("a file, not a folder")
    with pytest.raises(LakeError) as caught, staging_folder(project(tmp_path), "test"):
        pass
    assert str(tmp_path / ".scalr") in str(caught.value)
    assert "[project] home" in str(caught.value)


def test_a_refused_connection_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(ConnectionRefusedError), staging_folder(project(tmp_path), "test"):
        raise ConnectionRefusedError(111, os.strerror(111))


def test_time_is_utc_whatever_the_machine_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with open_duckdb(project(tmp_path), tmp_path) as db:
        assert str(db.sql("SELECT to_timestamp(0)").to_arrow_table().schema.types[0]) == "timestamp[us, tz=UTC]"
        assert db.sql("SELECT CAST(to_timestamp(0) AS VARCHAR)").fetchall() == [("1970-01-01 00:00:00+00",)]


def test_what_does_not_fit_in_memory_is_spilled_and_removed(tmp_path):
    settings = project(tmp_path, memory_mb=64)
    with staging_folder(settings, "test") as folder, open_duckdb(settings, folder) as db:
        reader = db.sql("SELECT md5(range::VARCHAR) AS a, range AS b FROM range(1500000) ORDER BY a").to_arrow_reader(65536)
        last, rows = "", 0
        spilled = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for batch in reader:
            assert last <= batch.column("a")[0].as_py()
            last, rows = batch.column("a")[-1].as_py(), rows + batch.num_rows
    assert rows == 1_500_000
    assert spilled > 10_000_000
    assert not folder.exists()


def test_what_fits_nowhere_is_told(tmp_path):
    settings = project(tmp_path, memory_mb=64)
    with pytest.raises(LakeError, match="memory_mb") as caught, open_duckdb(settings, tmp_path) as db:
        db.sql("SELECT list(md5(range::VARCHAR)) AS one FROM range(5000000)").fetchall()
    assert "DuckDB failed" in str(caught.value)


def test_what_a_killed_process_left_is_swept_and_a_living_one_s_is_not(tmp_path):
    settings = project(tmp_path)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom scalr_prod.workspace.duckdb import temporary_folder\n"
        "with temporary_folder(Path(sys.argv[1]), 'other-') as folder:\n    print(folder, flush=True)\n    time.sleep(60)\n"
    )
    root = settings.home / "staging"
    other = subprocess.Popen([sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE, text=True)
    left = Path(other.stdout.readline().strip())
    with staging_folder(settings, "test") as mine:
        assert left.is_dir()
        with staging_folder(settings, "nested"):
            assert mine.is_dir(), "another folder of the same process"
    other.kill()
    other.wait()
    other.stdout.close()
    assert left.is_dir()
    with staging_folder(settings, "test"):
        assert not left.exists()


def test_what_others_keep_in_a_folder_for_spilling_stays(tmp_path):
    (tmp_path / "my_project").mkdir()
    (tmp_path / "my_project" / "thesis.txt").write_text("mine")
    (tmp_path / "data-2024").mkdir()
    with DeltaOfflineStoreConfig(memory_mb=100, threads=1, spill=str(tmp_path)).open_session() as stores:
        stores.execute("SELECT 1")
    with temporary_folder(tmp_path, "other-"):
        assert (tmp_path / "my_project" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "data-2024").is_dir()


def test_a_staged_folder_appears_whole_on_another_file_system_too(tmp_path, monkeypatch):
    staged, final = tmp_path / "staging" / "version", tmp_path / "datasets" / "v1"
    (staged / "part").mkdir(parents=True)
    (staged / "manifest.json").write_text("{}")
    (staged / "part" / "0.parquet").write_bytes(b"rows")
    final.parent.mkdir()
    rename = Path.rename

    def across(self, target):
        if self == staged:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(self), None, str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    move_into_place(staged, final)
    assert sorted(path.relative_to(final).as_posix() for path in final.rglob("*")) == [
        "manifest.json",
        "part",
        "part/0.parquet",
    ]
    assert (final / "part" / "0.parquet").read_bytes() == b"rows"
    assert not list((final.parent / ".partial").iterdir())


@pytest.mark.parametrize("name", ["part[1].parquet", "part*.parquet", "part?.parquet", "part[!2].parquet", "pa{r,t}1.parquet"])
@pytest.mark.parametrize("folder", ["v1", "v[1]"])
def test_a_path_is_that_file_alone(folder, name, tmp_path):
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in {tmp_path / "v1" / "part1.parquet", tmp_path / "v1" / name, tmp_path / folder / name}:
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"path": [str(path)]}), path)
    asked = tmp_path / folder / name
    found = duckdb.execute("SELECT path FROM read_parquet($files)", {"files": [escape_glob(asked)]}).fetchall()
    assert found == [(str(asked),)]


def test_every_read_of_parquet_files_by_name_is_of_those_files_alone(tmp_path):
    """A home that holds a pattern, beside the one that it would match."""
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow.fs import LocalFileSystem

    from scalr_prod.compute import ShuffleFolder
    from scalr_prod.features.datasets import _facts
    from scalr_prod.ingest.rows import staged_rows_sql
    from scalr_prod.quality.range_audit import RangeJob, TimeRange, judge_range
    from scalr_prod.quality.rule_protocol import RowRule
    from scalr_prod.training_set.reader import TrainingSet
    from scalr_prod.training_set.vocabulary import write_ids
    from scalr_prod.workspace import parquet_sql

    times = pa.array([1, 2], pa.timestamp("us", tz="UTC"))
    for folder, item in (("v1", 1), ("v[1]", 7)):
        (tmp_path / folder).mkdir()
        columns = {"user_id": [item, item], "item_id": [item, item], "event_timestamp": times.take(pa.array([item % 2] * 2))}
        columns |= {"label": [1, 1], "is_synthetic": [False, False]}
        histories = {"target_user_history__item_ids": [[item]] * 2, "source_user_history__item_ids": [[item]] * 2}
        pq.write_table(pa.table(columns | histories), tmp_path / folder / "p.parquet")
        write_ids(pa.table(columns | histories), str(tmp_path / folder / "ids.parquet"), LocalFileSystem())
    mine = tmp_path / "v[1]" / "p.parquet"
    connection = duckdb.connect()
    types = {"user_id": "int64", "item_id": "int64"}
    assert connection.sql(f"SELECT DISTINCT item_id FROM ({staged_rows_sql([mine], types)})").fetchall() == [(7,)]
    assert connection.sql(f"SELECT DISTINCT item_id FROM {parquet_sql(mine)}").fetchall() == [(7,)]
    write_ids_of_all(mine.parent, ["ids.parquet"])
    for folder in ("v1", "v[1]"):
        (tmp_path / folder / "rows").mkdir()
        shutil.copyfile(tmp_path / folder / "p.parquet", tmp_path / folder / "rows" / "p.parquet")
    opened = TrainingSet(tmp_path / "v[1]", {"files": ["rows/p.parquet"]})
    assert opened.to_polars(["item_id"])["item_id"].to_list() == [7, 7]
    assert pq.read_table(tmp_path / "v[1]" / "vocabulary" / "users.parquet").column(0).to_pylist() == [7]
    rules = [RowRule("is_seven", "is 7", "r.item_id = 7")]
    job = RangeJob(rules, "false", ShuffleFolder(str(mine.parent)))
    assert judge_range(connection, job, TimeRange(None, None, ["p.parquet"], [])).accepted == 2
    assert _facts(tmp_path / "v[1]" / "rows")[1:] == _facts(tmp_path / "v[1]" / "rows" / "p.parquet")[1:]
    assert _facts(tmp_path / "v[1]" / "rows")[1].microsecond == 2


def test_an_asof_join_of_arrow_data_sets_compares_no_row_with_every_other_one(tmp_path):
    """DuckDB does not know how long a data set is: it took it for a handful of rows, and 8 000 took nine times as long as 2 000."""
    rows = pa.table({"user_id": ["a", "b"] * 500, "at": range(1000)})
    pq.write_table(rows, tmp_path / "rows.parquet")
    with (
        open_duckdb(project(tmp_path), tmp_path) as ours,
        DeltaOfflineStoreConfig(memory_mb=100, threads=1, spill=str(tmp_path)).open_session() as stores,
    ):
        for connection in (ours, stores):
            for name in ("few", "many"):
                connection.register(name, ds.dataset(tmp_path / "rows.parquet"))
            asked = "EXPLAIN SELECT count(*) FROM few ASOF LEFT JOIN many ON few.user_id = many.user_id AND few.at >= many.at"
            plan = connection.execute(asked).fetchall()[0][-1]
            assert "Asof Join" in plan
            assert "Nested Loop" not in plan
