from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalr_prod.duck import appear, open_duckdb, staging_folder
from scalr_prod.errors import LakeError
from scalr_prod.settings import Settings


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
    assert "DuckDB gave up" in str(caught.value)


def test_what_a_killed_process_left_is_swept_and_a_living_one_s_is_not(tmp_path):
    settings = project(tmp_path)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom scalr_prod.duck import temporary_folder\n"
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
    appear(staged, final)
    assert sorted(path.relative_to(final).as_posix() for path in final.rglob("*")) == [
        "manifest.json",
        "part",
        "part/0.parquet",
    ]
    assert (final / "part" / "0.parquet").read_bytes() == b"rows"
    assert not list((final.parent / ".partial").iterdir())
