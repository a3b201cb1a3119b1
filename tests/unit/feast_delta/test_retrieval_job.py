"""What a job gives besides rows: its query as SQL, and files in a staging folder. And spines that are larger than memory."""

from __future__ import annotations

import gc
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from deltalake.fs import DeltaStorageHandler
from feast import Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64
from pyarrow.fs import PyFileSystem
from support.meter_tables import METER, hours, readings, store_in, view_of
from support.object_store import BUCKET, running_store

from feast_delta import DeltaStoreError, SpillError, spines

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental.*:RuntimeWarning")
MICROS = 3_600_000_000


@pytest.fixture
def store(tmp_path):
    store = store_in(tmp_path, knowledge_time="event", writable=None)
    store.apply([METER, view_of(readings(tmp_path))])
    return store


def spine(*rows: tuple[str, float]) -> pd.DataFrame:
    return pd.DataFrame({"meter": [meter for meter, _ in rows], "event_timestamp": hours(*(hour for _, hour in rows))})


def in_another_session(sql: str, entity_df: pd.DataFrame | None = None) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(sql).to_arrow_table()


class TestSql:
    def test_of_a_data_frame_it_names_the_variable(self, store):
        rows = spine(("m1", 3), ("m2", 2), ("m1", 1.5), ("m1", 3))
        job = store.get_historical_features(rows, ["power:kwh", "power:phase"])
        found = in_another_session(job.to_sql(), rows)
        assert found["kwh"].to_pylist() == [25.0, None, 10.0, 25.0]
        assert found.to_pylist() == job.to_arrow().to_pylist()
        with pytest.raises(duckdb.CatalogException, match="entity_df"):
            duckdb.sql(job.to_sql())

    def test_of_a_query_over_views_it_is_whole(self, store):
        query = (
            "SELECT meter_no AS meter, read_at + INTERVAL 1 HOUR AS event_timestamp FROM power WHERE phase <> 'z' ORDER BY ALL;"
        )
        job = store.get_historical_features(query, ["power:kwh"])
        assert in_another_session(job.to_sql()).to_pylist() == job.to_arrow().to_pylist()
        assert job.to_arrow()["kwh"].to_pylist() == [25.0, 25.0, 30.0]

    def test_of_a_window_and_of_what_feast_pulls(self, store):
        window = store.get_historical_features(features=["power:kwh"], start_date=hours(2)[0], end_date=hours(3)[0])
        source, offline = store.get_feature_view("power").batch_source, store._get_provider().offline_store
        asked = (["meter_no"], ["kwh_total"], "read_at", "stored_at", hours(0)[0], hours(9)[0])
        latest = offline.pull_latest_from_table_or_query(store.config, source, *asked)
        every = offline.pull_all_from_table_or_query(store.config, source, *asked)
        for job, values in ((window, [20.0, 25.0, 30.0]), (latest, [25.0, 30.0]), (every, [10.0, 20.0, 25.0, 30.0])):
            found, name = in_another_session(job.to_sql()), "kwh" if job is window else "kwh_total"
            assert sorted(found[name].to_pylist()) == values
            assert sorted(map(str, found.to_pylist())) == sorted(map(str, job.to_arrow().to_pylist()))

    def test_a_table_that_was_copied_into_the_session_has_none(self, store, monkeypatch):
        job = store.get_historical_features(spine(("m1", 3)), ["power:kwh"])
        monkeypatch.setattr("feast_delta.scan.duckdb_readable_files", lambda _: None)
        with pytest.raises(DeltaStoreError, match="Parquet files on a local disk") as caught:
            job.to_sql()
        assert "stream" in caught.value.next_step

    def test_nor_have_several_views_without_a_spine(self, store):
        store.apply([view_of(store.get_feature_view("power").batch_source, name="twin")])
        times = {"start_date": hours(1)[0], "end_date": hours(9)[0]}
        job = store.get_historical_features(features=["power:kwh", "twin:phase"], **times)
        with pytest.raises(DeltaStoreError, match="no single statement"):
            job.to_sql()


class TestRemoteStorage:
    def test_without_a_place_it_is_not_supported(self, store):
        job = store.get_historical_features(spine(("m1", 3)), ["power:kwh"])
        assert not job.supports_remote_storage_export()
        with pytest.raises(DeltaStoreError, match="staging_location in offline_store"):
            job.to_remote_storage()

    def test_files_of_at_most_so_many_rows_in_a_new_folder_each_time(self, store, tmp_path, monkeypatch):
        monkeypatch.setattr("feast_delta.retrieval_job._FILE_ROWS", 2)  # they are ended in any order
        store.config.offline_store.staging_location = "staged"
        job = store.get_historical_features(spine(("m1", 3), ("m2", 3), ("m1", 1), ("m3", 1), ("m1", 60)), ["power:kwh"])
        assert job.supports_remote_storage_export()
        first, second = job.to_remote_storage(), job.to_remote_storage()
        assert [pq.read_metadata(path).num_rows for path in first] == [2, 2, 1]
        assert pa.concat_tables(map(pq.read_table, first)).equals(job.to_arrow().combine_chunks())
        assert {Path(path).parent.parent for path in [*first, *second]} == {tmp_path / "staged"}, "from the repository on"
        assert not set(first) & set(second)
        nobody = store.get_historical_features(spine(("m1", 1)).iloc[:0], ["power:kwh"])
        assert sum(pq.read_metadata(path).num_rows for path in nobody.to_remote_storage()) == 0

    def test_files_in_an_object_store(self, store):
        with running_store(honours_conditions=True) as remote:
            settings = store.config.offline_store
            settings.staging_location, settings.storage_options = f"s3://{BUCKET}/staged/", remote.options
            job = store.get_historical_features(spine(("m1", 3), ("m2", 3)), ["power:kwh"])
            (file,) = job.to_remote_storage()
            objects = remote.keys()
            assert file.removeprefix(f"s3://{BUCKET}/") in objects
            folder, _, name = file.rpartition("/")
            files = PyFileSystem(DeltaStorageHandler(folder, remote.options))
            assert pq.read_table(name, filesystem=files)["kwh"].to_pylist() == [25.0, 30.0]

    def test_what_feast_pulls_and_on_demand_features_too(self, store, tmp_path):
        store.config.offline_store.staging_location = str(tmp_path / "staged")
        power = store.get_feature_view("power")

        @on_demand_feature_view(sources=[power], schema=[Field(name="half", dtype=Float64)])
        def halved(inputs: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame({"half": inputs["kwh"] / 2})

        store.apply([halved])
        (file,) = store.get_historical_features(spine(("m1", 3)), ["halved:half"]).to_remote_storage()
        assert pq.read_table(file)["half"].to_pylist() == [12.5]
        offline = store._get_provider().offline_store
        asked = (["meter_no"], ["kwh_total"], "read_at", "stored_at", hours(0)[0], hours(9)[0])
        (file,) = offline.pull_latest_from_table_or_query(store.config, power.batch_source, *asked).to_remote_storage()
        assert sorted(pq.read_table(file)["kwh_total"].to_pylist()) == [25.0, 30.0]

    def test_nothing_is_left_of_an_export_that_fails(self, store, tmp_path, monkeypatch):
        monkeypatch.setattr("feast_delta.retrieval_job._FILE_ROWS", 1)
        monkeypatch.setattr(spines, "_block_rows", lambda *_: 10)
        store.config.offline_store.staging_location = str(tmp_path / "staged")
        job = store.get_historical_features(spine(*[("m1", 3)] * 55), ["power:kwh"])
        register, begun = spines.register_spine, []

        def last_block_fails(connection, block, time):
            begun.append(sum(1 for _ in (tmp_path / "staged").glob("*/*.parquet")))
            if block.num_rows == 5:
                raise OSError(5, "the disk went away")
            register(connection, block, time)

        monkeypatch.setattr("feast_delta.retrieval.register_spine", last_block_fails)
        with pytest.raises(OSError, match="went away"):
            job.to_remote_storage()
        assert max(begun) > 0, "files had been written"
        assert not list((tmp_path / "staged").iterdir())


class TestLargeSpines:
    """The settings allow 128 MiB: a block of narrow rows is a million rows."""

    ROWS = 40

    def meters(self, tmp_path, count: int) -> None:
        """One reading an hour of one meter, whose value is the hour."""
        times = hours(*range(count))
        rows = {"meter_no": ["m1"] * count, "read_at": times, "stored_at": times, "kwh_total": np.arange(count) * 1.0}
        write_deltalake(str(tmp_path / "readings"), pa.table(rows | {"phase": ["x"] * count}), mode="overwrite")

    def stream(self, rows: int, batch: int) -> pa.RecordBatchReader:
        """Rows of one meter, at half past each of a hundred hours in turn, made when they are read."""
        schema = pa.schema({"meter": pa.string(), "event_timestamp": pa.timestamp("us", tz="UTC"), "number": pa.int64()})
        begin = int(hours(0)[0].timestamp() * 1e6)

        def batches():
            for start in range(0, rows, batch):
                number = np.arange(start, min(start + batch, rows))
                meter = pa.DictionaryArray.from_arrays(np.zeros(len(number), np.int32), ["m1"]).cast(pa.string())
                times = pa.array(begin + (number % 100) * MICROS + MICROS // 2).cast(schema.field(1).type)
                yield pa.record_batch([meter, times, pa.array(number)], schema=schema)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def test_a_stream_is_spilled_once_and_joined_in_its_order(self, store, tmp_path, monkeypatch):
        self.meters(tmp_path, 100)
        monkeypatch.setattr(spines, "_block_rows", lambda *_: 7)
        store.config.offline_store.spill = str(tmp_path / "spill")
        job = store.get_historical_features(self.stream(self.ROWS, 3), ["power:kwh"])
        (folder,) = (tmp_path / "spill").iterdir()
        assert [file.name for file in folder.iterdir()] == ["spine.arrows"]
        assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (hours(0.5)[0], hours(39.5)[0])
        for _ in range(2):
            found = job.to_arrow()
            assert found["number"].to_pylist() == list(range(self.ROWS))
            assert found["kwh"].to_pylist() == list(range(self.ROWS))
        del job
        gc.collect()
        assert not list((tmp_path / "spill").iterdir()), "the file goes with the job"

    def test_withheld_values_of_all_blocks_are_told_once(self, store, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(spines, "_block_rows", lambda *_: 1)
        store.config.offline_store.knowledge_time = "created"
        times = hours(1, 2)
        rows = {
            "meter_no": ["m1"] * 2,
            "read_at": times,
            "stored_at": hours(90, 90),
            "kwh_total": [1.0, 2.0],
            "phase": ["x"] * 2,
        }
        write_deltalake(str(tmp_path / "readings"), pa.table(rows), mode="overwrite")
        found = store.get_historical_features(spine(("m1", 3), ("m1", 91), ("m1", 4)), ["power:kwh"]).to_arrow()
        assert found["kwh"].to_pylist() == [None, 2.0, None]
        (said,) = [record.getMessage() for record in caplog.records if "get no value" in record.getMessage()]
        assert said.startswith("power: 2 spine rows")

    def test_a_disk_that_is_full(self, store, tmp_path, monkeypatch):
        monkeypatch.setattr(spines, "_block_rows", lambda *_: 1)
        store.config.offline_store.spill = str(tmp_path / "spill")

        class Full:
            def write_table(self, *_args, **_options):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(pa.ipc, "new_stream", lambda *_: Full())
        with pytest.raises(SpillError, match="No space left"):
            store.get_historical_features(self.stream(5, 2), ["power:kwh"])
        gc.collect()
        assert not list((tmp_path / "spill").iterdir())

    def test_a_query_as_spine_is_read_in_blocks_too(self, store, tmp_path, monkeypatch):
        self.meters(tmp_path, 30)
        monkeypatch.setattr(spines, "_block_rows", lambda *_: 4)
        query = "SELECT meter_no AS meter, read_at AS event_timestamp FROM power ORDER BY read_at"
        assert store.get_historical_features(query, ["power:kwh"]).to_df()["kwh"].tolist() == list(range(30))
        with pytest.raises(DeltaStoreError, match="query failed"):
            store.get_historical_features(query.replace("meter_no", "error('broken')"), ["power:kwh"])

    @pytest.mark.slow
    @pytest.mark.long  # a quarter of a minute; the blocks themselves are above
    def test_memory_of_ten_million_rows_is_that_of_a_block(self, store, tmp_path):
        self.meters(tmp_path, 100)
        job = store.get_historical_features(self.stream(10_000_000, 100_000), ["power:kwh"])
        before, total, rows = pa.total_allocated_bytes(), 0.0, 0
        most = 0
        with job.stream() as batches:
            for batch in batches:
                rows, total = rows + batch.num_rows, total + pc.sum(batch["kwh"]).as_py()
                most = max(most, pa.total_allocated_bytes() - before)
        assert (rows, total) == (10_000_000, 99 * 50 * 100_000.0)
        assert most < 128 * 2**20
