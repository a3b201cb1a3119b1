"""The store as a repository of somebody else has it: Feast's semantics, its own errors, and nothing of the package above."""

from __future__ import annotations

import pickle
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, WriterProperties, write_deltalake
from feast.repo_config import get_offline_config_from_type
from support.meter_tables import METER, READINGS, hours, readings, skip_unless_feast_has, source_of, store_in, view_of

import feast_delta
from feast_delta import (
    DataFileDamaged,
    DataFileMissing,
    DeltaOfflineStoreConfig,
    DeltaStoreError,
    SpillError,
    TableMissing,
    TableNotWritable,
    WriteFailed,
)
from feast_delta.delta_log import FilePart
from feast_delta.writes import DeltaTableWriter


@pytest.fixture
def store(tmp_path):
    return store_in(tmp_path, knowledge_time="event", writable=None)


def kwh(store, *asked: tuple[str, float], **options) -> list[float]:
    skip_unless_feast_has(*options)
    rows = pd.DataFrame({"meter": [meter for meter, _ in asked], "event_timestamp": hours(*(hour for _, hour in asked))})
    return store.get_historical_features(rows, ["power:kwh"], **options).to_df()["kwh"].tolist()


def test_the_settings_file_names_the_class_by_its_package():
    config = get_offline_config_from_type("feast_delta.DeltaOfflineStore")()
    assert type(config) is DeltaOfflineStoreConfig
    assert (config.type, config.knowledge_time, config.writable) == ("feast_delta.DeltaOfflineStore", "event", None)


class TestClock:
    """The second reading of the first meter, 20, was corrected to 25 after two days."""

    def test_a_creation_time_breaks_ties_alone_by_default(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        assert kwh(store, ("m1", 1.5), ("m1", 3), ("m1", 60)) == [10.0, 25.0, 25.0]
        assert kwh(store, ("m1", 3), ("m1", 60), filter_by_created_timestamp=True) == [20.0, 25.0]

    @pytest.mark.parametrize("place", ["view", "source"])
    def test_a_tag_asks_for_the_strict_clock(self, store, tmp_path, place):
        tags = {"knowledge_time": "created"}
        source = readings(tmp_path, **(tags if place == "source" else {}))
        store.apply([METER, view_of(source, tags=tags if place == "view" else {})])
        assert kwh(store, ("m1", 3), ("m1", 60)) == [20.0, 25.0]

    def test_a_fixed_knowledge_time_counts_unless_a_tag_says_that_creation_times_are_load_times(self, store, tmp_path):
        source = readings(tmp_path)
        store.apply([METER, view_of(source), view_of(source, name="loaded", tags={"knowledge_time": "event"})])
        store.config.offline_store.known_by = hours(40)[0]
        assert kwh(store, ("m1", 60)) == [20.0]
        rows = pd.DataFrame({"meter": ["m1"], "event_timestamp": hours(60)})
        assert store.get_historical_features(rows, ["loaded:kwh"]).to_df()["kwh"].tolist() == [25.0]


class TestWrites:
    def rows(self) -> pd.DataFrame:
        rows = pd.DataFrame({"meter_no": ["m9"], "read_at": hours(9), "stored_at": hours(9), "kwh_total": [1.0]})
        return rows.assign(phase="x")

    def test_any_table_is_writable_by_default(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        for _ in range(2):
            store.write_to_offline_store("power", self.rows())
        assert DeltaTable(str(tmp_path / "readings")).to_pyarrow_table().num_rows == len(READINGS["phase"]) + 1
        assert kwh(store, ("m9", 9)) == [1.0]

    def test_or_those_that_the_settings_name(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        store.config.offline_store.writable = [str(tmp_path / "others")]
        with pytest.raises(TableNotWritable, match="writable in offline_store"):
            store.write_to_offline_store("power", self.rows())
        store.config.offline_store.writable.append(f"file://{tmp_path}/others/../readings/")
        store.write_to_offline_store("power", self.rows())

    def test_rows_without_an_event_time_are_written_once(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        rows = self.rows().assign(read_at=pd.Series([None], dtype="datetime64[us, UTC]"))
        for _ in range(2):
            store.write_to_offline_store("power", rows)
        assert DeltaTable(str(tmp_path / "readings")).to_pyarrow_table().num_rows == len(READINGS["phase"]) + 1

    def test_rows_that_were_compared_with_another_version_are_not_written(self, tmp_path):
        readings(tmp_path)
        writer = DeltaTableWriter(str(tmp_path / "readings"), {})
        rows = writer.open_table().to_pyarrow_table()
        writer.append(rows, key="a", version=0)
        with pytest.raises(WriteFailed, match="at version 1, the rows were compared with 0"):
            writer.append(rows, key="b", version=0)
        assert writer.open_table().version() == 1


@pytest.mark.parametrize("form", ["polars", "arrow table", "arrow stream", "sql"])
def test_a_spine_is_of_any_form(store, tmp_path, form):
    import polars as pl

    store.apply([METER, view_of(readings(tmp_path))])
    rows = pa.table({"meter": ["m2", "m1", "m1", "none"], "event_timestamp": hours(3, 1, 3, 3), "number": [1, 2, 3, 4]})
    forms = {
        "polars": pl.from_arrow(rows),
        "arrow table": rows,
        "arrow stream": rows.to_reader(),
        "sql": "SELECT meter, TIMESTAMPTZ '2024-01-01 00:00:00Z' + INTERVAL (hour) HOUR AS event_timestamp, number"
        " FROM (VALUES ('m2', 3, 1), ('m1', 1, 2), ('m1', 3, 3), ('none', 3, 4)) v (meter, hour, number) ORDER BY number",
    }
    found = store.get_historical_features(forms[form], ["power:kwh"]).to_arrow()
    assert found["kwh"].to_pylist() == [30.0, 10.0, 25.0, None]
    assert found["number"].to_pylist() == [1, 2, 3, 4]


def test_what_is_no_spine(store, tmp_path):
    store.apply([METER, view_of(readings(tmp_path))])
    with pytest.raises(DeltaStoreError, match="not list"):
        store.get_historical_features([{"meter": "m1"}], ["power:kwh"])


def test_a_table_that_gained_a_column_is_read_whole(store, tmp_path):
    source = readings(tmp_path)
    store.apply([METER, view_of(source)])
    before = kwh(store, ("m1", 3), ("m2", 3))
    later = {
        "read_at": hours(4),
        "stored_at": hours(4),
        "kwh_total": [7.0],
        "meter_no": ["m1"],
        "phase": ["z"],
        "tariff": ["t"],
    }
    write_deltalake(source.path, pa.table(later), mode="append", schema_mode="merge")
    assert kwh(store, ("m1", 3), ("m2", 3), ("m1", 5)) == [*before, 7.0]


def test_files_in_folders_of_the_table_are_read(store, tmp_path):
    """Some writers put files into folders of random names, without partitions."""
    source = readings(tmp_path)
    store.apply([METER, view_of(source)])
    before = kwh(store, ("m1", 3), ("m2", 3))
    table = DeltaTable(source.path)
    (name,) = table.get_add_actions()["path"].to_pylist()
    (Path(source.path) / "k3").mkdir()
    (Path(source.path) / name).rename(Path(source.path) / "k3" / name)
    log = Path(source.path) / "_delta_log" / "00000000000000000000.json"
    log.write_text(log.read_text().replace(f'"{name}"', f'"k3/{name}"'))
    assert kwh(store, ("m1", 3), ("m2", 3)) == before


def test_a_version_is_pinned_by_full_path_or_last_part(store, tmp_path):
    source = readings(tmp_path)
    later = {"read_at": hours(2.5), "stored_at": hours(2.5), "kwh_total": [99.0], "meter_no": ["m1"], "phase": ["z"]}
    write_deltalake(source.path, pa.table(later), mode="append")
    store.apply([METER, view_of(source)])
    assert kwh(store, ("m1", 3)) == [99.0]
    for key in ("readings", source.path):
        store.config.offline_store.versions = {key: 0}
        assert kwh(store, ("m1", 3)) == [25.0]
    store.config.offline_store.versions = {"elsewhere/readings": 0}
    assert kwh(store, ("m1", 3)) == [99.0]


def test_a_window_is_read_part_by_part_of_its_files(store, tmp_path):
    """Each row by one reader, as in the whole window: whole files, and row groups of one."""
    source = readings(tmp_path)
    count = 40
    more = {"read_at": hours(*range(count)), "stored_at": hours(*range(count)), "kwh_total": [float(n) for n in range(count)]}
    more |= {"meter_no": ["m3"] * count, "phase": ["z"] * count}
    before = {file["path"] for file in pa.table(DeltaTable(source.path).get_add_actions()).to_pylist()}
    write_deltalake(source.path, pa.table(more), mode="append", writer_properties=WriterProperties(max_row_group_size=10))
    (added,) = {file["path"] for file in pa.table(DeltaTable(source.path).get_add_actions()).to_pylist()} - before
    store.apply([METER, view_of(source)])

    def window(part: FilePart | None) -> list[tuple]:
        store.config.offline_store.files = {} if part is None else {"readings": part}
        times = {"start_date": hours(1)[0], "end_date": hours(30)[0]}
        found = store.get_historical_features(features=["power:kwh"], **times).to_arrow()
        return sorted(zip(*(found[name].to_pylist() for name in ("meter", "event_timestamp", "kwh")), strict=True))

    whole, parts = window(None), [FilePart(tuple(before)), *(FilePart((added,), part, 4) for part in range(4))]
    found = [window(part) for part in parts]
    assert [len(rows) for rows in found[1:]] == [9, 10, 10, 1], "row groups of ten hours"
    assert sorted(row for rows in found for row in rows) == whole
    assert window(FilePart(())) == []


class TestErrors:
    def test_they_name_no_command_of_another_package(self):
        texts = [path.read_text(encoding="utf-8") for path in Path(feast_delta.__file__).parent.rglob("*.py")]
        assert len(texts) > 10
        assert not [text for text in texts if "scalr" in text.lower()]

    def test_a_table_that_is_not_there(self, store, tmp_path):
        store.apply([METER, view_of(source_of(tmp_path / "readings"))])
        with pytest.raises(TableMissing) as caught:
            kwh(store, ("m1", 3))
        assert caught.value.where == str(tmp_path / "readings")

    def test_a_file_that_is_gone(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        next((tmp_path / "readings").glob("*.parquet")).unlink()
        with pytest.raises(DataFileMissing, match="is missing, though the table's log names it"):
            kwh(store, ("m1", 3))

    def test_a_file_that_was_cut_off(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        file = next((tmp_path / "readings").glob("*.parquet"))
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(DataFileDamaged, match="has 100 bytes of the"):
            kwh(store, ("m1", 3))

    def test_they_cross_processes_whole(self):
        error = pickle.loads(pickle.dumps(WriteFailed("found", where="here", next_step="that")))  # noqa: S301 - made here
        assert (type(error), error.found, error.where, error.next_step) == (WriteFailed, "found", "here", "that")
        assert str(error) == "here: found\n  next: that"
        assert str(DeltaStoreError("found")) == "found"


class TestSpillFolder:
    def test_no_other_user_can_enter_it_and_it_is_removed(self, tmp_path):
        with DeltaOfflineStoreConfig(spill=str(tmp_path / "spill"), memory_mb=64).open_session() as connection:
            (folder,) = (tmp_path / "spill").iterdir()
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            connection.execute("CREATE TEMP TABLE big AS SELECT md5(range::VARCHAR) AS a FROM range(2_000_000)")
            assert list(folder.iterdir())
        assert not list((tmp_path / "spill").iterdir())

    def test_where_none_can_be_made(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
        for spill in (None, str(tmp_path / "file")):
            with (
                pytest.raises(SpillError, match="TMPDIR") as caught,
                DeltaOfflineStoreConfig(spill=spill).open_session(),
            ):
                pass
            assert caught.value.where == str(tmp_path / "file")


def test_its_import_is_cheap_and_brings_nothing_of_the_package_above():
    program = """
import sys
import feast_delta
first = set(sys.modules)
from feast_delta import DeltaOfflineStore
assert not first & {"feast", "pyarrow", "duckdb", "deltalake", "numpy"}
assert "feast" in sys.modules
assert not any(name.partition(".")[0] == "scalr_prod" for name in sys.modules)
try:
    feast_delta.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'feast_delta' has no attribute 'nothing'\n"
