"""What Feast expects of any offline store, on data of our own: names, types, times, writes, logs, and the rules that may be stricter."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import PushMode
from feast.errors import RequestDataNotFoundInEntityDfException, SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from support.examples import sweep
from support.meter_tables import METER, READINGS, SCHEMA, hours, readings, skip_unless_feast_has, source_of, store_in, view_of
from support.shown import difference, example

from feast_delta import DeltaStoreError

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental.*:RuntimeWarning")


@pytest.fixture
def store(tmp_path):
    return store_in(tmp_path)


def spine(*rows: tuple[str, float]) -> pd.DataFrame:
    return pd.DataFrame({"meter": [meter for meter, _ in rows], "event_timestamp": hours(*(hour for _, hour in rows))})


def kwh(store: FeatureStore, rows: pd.DataFrame, **options) -> list:
    skip_unless_feast_has(*options)
    found = store.get_historical_features(rows, ["power:kwh"], **options).to_df()["kwh"]
    return [None if np.isnan(value) else value for value in found]


class TestMappedNames:
    def test_joined_and_read_by_window(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        assert kwh(store, spine(("m1", 1.5), ("m1", 3), ("m1", 60), ("m2", 2))) == [10.0, 20.0, 25.0, None]
        window = {"start_date": hours(2)[0], "end_date": hours(3)[0]}
        found = store.get_historical_features(features=["power:kwh"], **window).to_df()
        assert sorted(found["kwh"]) == [20.0, 25.0, 30.0], "each row of a key, not its latest alone"
        assert {"meter", "event_timestamp", "known"} <= set(found.columns)
        skip_unless_feast_has("filter_by_created_timestamp")
        found = store.get_historical_features(features=["power:kwh"], filter_by_created_timestamp=True, **window).to_df()
        assert sorted(found["kwh"]) == [20.0, 30.0]

    @pytest.mark.parametrize("latest", [True, False])
    def test_online_equals_offline(self, store, tmp_path, latest):
        store.config.materialization_config.pull_latest_features = latest
        store.apply([METER, view_of(readings(tmp_path))])
        store.materialize(hours(0)[0], hours(90)[0])
        rows = [{"meter": "m1"}, {"meter": "m2"}, {"meter": "m3"}]
        online = store.get_online_features(["power:kwh", "power:phase"], rows).to_dict()
        assert online["kwh"] == [25.0, 30.0, None]
        assert online["kwh"] == kwh(store, spine(("m1", 90), ("m2", 90), ("m3", 90)))

    def test_written_and_read_again(self, store, tmp_path):
        """In any order of columns, one batch after the other, and by a push."""
        source = readings(tmp_path)
        store.apply([METER, view_of(PushSource(name="pushed", batch_source=source))])
        rows = pd.DataFrame({"phase": ["y", "y"], "kwh_total": [40.0, 50.0], "stored_at": hours(4, 5)})
        rows = rows.assign(meter_no=["m1", "m2"], read_at=hours(4, 5))
        store.write_to_offline_store("power", rows.iloc[:1])
        store.write_to_offline_store("power", rows.iloc[1:])
        store.write_to_offline_store("power", rows)
        store.push("pushed", rows.assign(kwh_total=[60.0, 70.0], read_at=hours(6, 7)), to=PushMode.OFFLINE)
        asked = spine(("m1", 4), ("m2", 5), ("m1", 8), ("m2", 8))
        assert kwh(store, asked) == [40.0, 50.0, 60.0, 70.0]
        assert DeltaTable(source.path).to_pyarrow_table().num_rows == len(READINGS["phase"]) + 4
        with pytest.raises(ValueError, match="missing_expected_columns"):
            store.write_to_offline_store("power", rows.drop(columns="phase"))

    def test_names_of_the_table_itself(self, store, tmp_path):
        """``timestamp_field`` may be the column's own name, where the mapping leaves it alone."""
        write_deltalake(str(tmp_path / "plain"), pa.table(READINGS))
        source = FileSource(path=str(tmp_path / "plain"), file_format=DeltaFormat(), timestamp_field="read_at")
        source.field_mapping = {"meter_no": "meter", "kwh_total": "kwh"}
        store.apply([METER, view_of(source)])
        assert kwh(store, spine(("m1", 1.5), ("m2", 3))) == [10.0, 30.0]


class TestKnowledgeTime:
    def test_a_filter_by_creation_holds_beside_a_fixed_knowledge_time(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        store.config.offline_store.known_by = datetime(2100, 1, 1, tzinfo=UTC)
        rows = spine(("m1", 3), ("m1", 60))
        assert kwh(store, rows) == [25.0, 25.0]
        assert kwh(store, rows, filter_by_created_timestamp=True) == [20.0, 25.0]
        store.config.offline_store.known_by = hours(40)[0]
        assert kwh(store, rows, filter_by_created_timestamp=True) == [20.0, 20.0], "the earlier of the two counts"

    def test_values_withheld_are_counted(self, store, tmp_path, caplog):
        """A creation time that is a load time: everything lies in the future of the spine."""
        write_deltalake(str(tmp_path / "readings"), pa.table({**READINGS, "stored_at": hours(90, 90, 90, 90)}))
        store.apply([METER, view_of(source_of(tmp_path / "readings"), timedelta(hours=5))])
        with caplog.at_level(logging.WARNING):
            assert kwh(store, spine(("m1", 1), ("m1", 4), ("m2", 4), ("m2", 1), ("m3", 4), ("m1", 9))) == [None] * 6
        (said,) = [record.getMessage() for record in caplog.records if "get no value" in record.getMessage()]
        assert said.startswith("power: 3 spine rows"), "not those that nothing had happened to, or too long ago"
        assert "knowledge_time = 'event'" in said
        (shown,) = example("docs/guides/feast.md")
        assert difference(shown.replace("loaded", "stored_at"), said) == ""

    def test_nothing_is_said_where_nothing_is_withheld(self, store, tmp_path, caplog):
        store.apply([METER, view_of(readings(tmp_path))])
        with caplog.at_level(logging.WARNING):
            kwh(store, spine(("m1", 3), ("m3", 3)))
        assert not [record for record in caplog.records if "get no value" in record.getMessage()]

    @pytest.mark.parametrize("place", ["view", "source"])
    def test_a_view_chooses(self, store, tmp_path, place):
        tags = {"knowledge_time": "event"}
        source = readings(tmp_path, **(tags if place == "source" else {}))
        store.apply([METER, view_of(source, tags=tags if place == "view" else {})])
        rows = spine(("m1", 1.5), ("m1", 3))
        assert kwh(store, rows) == [10.0, 25.0], "creation breaks the tie, and limits nothing"
        assert kwh(store, rows, filter_by_created_timestamp=True) == [10.0, 20.0]

    def test_an_unknown_choice(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path), tags={"knowledge_time": "load"})])
        with pytest.raises(DeltaStoreError, match="one of: created, event"):
            kwh(store, spine(("m1", 3)))

    def test_ties_do_not_depend_on_what_is_asked_for(self, store, tmp_path):
        rows = {"meter_no": ["m1", "m1"], "read_at": hours(1, 1), "stored_at": hours(1, 1)}
        write_deltalake(str(tmp_path / "readings"), pa.table({**rows, "kwh_total": [9.0, 1.0], "phase": ["a", "b"]}))
        store.apply([METER, view_of(source_of(tmp_path / "readings"))])
        for features in (["power:phase"], ["power:kwh", "power:phase"], ["power:phase", "power:kwh"]):
            found = store.get_historical_features(spine(("m1", 2)), features).to_df()
            assert found["phase"].tolist() == ["a"]
        store.config.materialization_config.pull_latest_features = True
        store.materialize(hours(0)[0], hours(9)[0])
        assert store.get_online_features(["power:phase"], [{"meter": "m1"}]).to_dict()["phase"] == ["a"]


class TestRetrieval:
    def test_one_source_for_two_views_and_full_names(self, store, tmp_path):
        source = readings(tmp_path)
        twin = FeatureView(name="phases", entities=[METER], schema=[SCHEMA[0], SCHEMA[2]], source=source, ttl=timedelta(0))
        store.apply([METER, view_of(source), twin])
        features = ["power:kwh", "phases:phase", "power:phase"]
        found = store.get_historical_features(spine(("m1", 3)), features, full_feature_names=True).to_df()
        assert found[["power__kwh", "phases__phase", "power__phase"]].to_numpy().tolist() == [[20.0, "y", "y"]]

    @pytest.mark.parametrize(("ttl", "expected"), [(timedelta(0), [20.0, 20.0]), (timedelta(hours=2), [20.0, None])])
    def test_age(self, store, tmp_path, ttl, expected):
        store.apply([METER, view_of(readings(tmp_path), ttl)])
        assert kwh(store, spine(("m1", 4), ("m1", 4.1))) == expected

    def test_request_data_and_a_transformation(self, store, tmp_path):
        power = view_of(readings(tmp_path))
        price = RequestSource(name="price", schema=[Field(name="price", dtype=Float64)])

        @on_demand_feature_view(
            sources=[power, price], schema=[Field(name="cost", dtype=Float64), Field(name="half", dtype=Float64)]
        )
        def bill(inputs: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame({"cost": inputs["kwh"] * inputs["price"], "half": inputs["kwh"] / 2})

        store.apply([METER, power, bill])
        found = store.get_historical_features(spine(("m1", 3)).assign(price=2.0), ["bill:cost", "power:phase"]).to_df()
        assert found["cost"].tolist() == [40.0]
        assert "half" not in found.columns
        with pytest.raises(RequestDataNotFoundInEntityDfException):
            store.get_historical_features(spine(("m1", 3)), ["bill:cost"]).to_df()

    @pytest.mark.parametrize("form", [ParquetFormat(), DeltaFormat()], ids=["parquet", "delta"])
    def test_a_result_that_is_kept(self, store, tmp_path, form):
        store.apply([METER, view_of(readings(tmp_path))])
        storage = SavedDatasetFileStorage(str(tmp_path / "kept"), file_format=form)
        store.create_saved_dataset(store.get_historical_features(spine(("m1", 3)), ["power:kwh"]), "kept", storage)
        assert store.get_saved_dataset("kept").to_df()["kwh"].tolist() == [20.0]
        job = store.get_historical_features(spine(("m1", 3)), ["power:kwh"])
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(storage)
        job.persist(storage, allow_overwrite=True)
        assert store.get_saved_dataset("kept").to_df()["kwh"].tolist() == [20.0]

    def test_a_kept_result_stays_where_another_one_fails(self, store, tmp_path, monkeypatch):
        """A disk that is full, say: neither half of the new rows nor none of the former ones."""
        store.apply([METER, view_of(readings(tmp_path))])
        file = tmp_path / "kept.parquet"
        storage = SavedDatasetFileStorage(str(file), file_format=ParquetFormat())
        store.get_historical_features(spine(("m1", 3)), ["power:kwh"]).persist(storage)
        before = file.read_bytes()

        def full(*_args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(OSError, match="No space"):
            store.get_historical_features(spine(("m1", 4)), ["power:kwh"]).persist(storage, allow_overwrite=True)
        assert file.read_bytes() == before
        assert [path.name for path in tmp_path.glob(".kept*")] == []

    def test_a_kept_result_takes_no_other_files_place(self, store, tmp_path):
        store.apply([METER, view_of(readings(tmp_path))])
        folder = tmp_path / "kept"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "mine.txt").write_text("mine")
        storage = SavedDatasetFileStorage(str(folder), file_format=ParquetFormat())
        job = store.get_historical_features(spine(("m1", 3)), ["power:kwh"])
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(storage, allow_overwrite=True)
        assert (folder / "sub" / "mine.txt").read_text() == "mine"

    @pytest.mark.parametrize("as_path", [True, False])
    def test_logged_features(self, store, tmp_path, as_path):
        from feast.feature_logging import LoggingConfig

        destination = FileLoggingDestination(path=str(tmp_path / "log"))
        service = FeatureService(
            name="bills", features=[view_of(readings(tmp_path))], logging_config=LoggingConfig(destination=destination)
        )
        store.apply([METER, view_of(source_of(tmp_path / "readings")), service])
        logged = pa.table({"meter": ["m1"], "power__kwh": [1.0], "power__phase": ["x"], "__request_id": ["r"]})
        rows = logged
        if as_path:
            rows = tmp_path / "chunk"
            rows.mkdir()
            pa.parquet.write_table(logged, rows / "0.parquet")
        for _ in range(2):
            store.write_logged_features(rows, service)
        assert pa.parquet.read_table(tmp_path / "log").num_rows == 2


KINDS = {
    "int32": (Int32, pa.int32(), [1, 2, 3, 4]),
    "int64": (Int64, pa.int64(), [1, 2**40, 3, 4]),
    "float": (Float32, pa.float32(), [1.0, None, 3.5, 4.0]),
    "string": (String, pa.string(), ["1", None, "é", ""]),
    "bool": (Bool, pa.bool_(), [True, None, False, True]),
    "time": (UnixTimestamp, pa.timestamp("us", tz="UTC"), [*hours(1), None, *hours(3, 4)]),
}


@pytest.mark.parametrize("shape", ["single", "list", "list_with_an_empty_one"])
@pytest.mark.parametrize("kind", sweep(KINDS, keep=3))
def test_types(store, tmp_path, kind, shape):
    """Values come back in the type that they were stored in, from the join and from the online store."""
    dtype, arrow, values = KINDS[kind]
    if shape != "single":
        values = [[value, value] for value in values if value is not None][:3]
        values = [*values, [] if shape == "list_with_an_empty_one" else values[0]]
        dtype, arrow = Array(dtype), pa.list_(arrow)
    values = [values[index % len(values)] for index in range(4)]
    rows = pa.table({"meter": [f"m{n}" for n in range(4)], "at": pa.array(hours(1, 1, 1, 1)), "value": pa.array(values, arrow)})
    write_deltalake(str(tmp_path / "typed"), rows)
    source = FileSource(path=str(tmp_path / "typed"), file_format=DeltaFormat(), timestamp_field="at")
    schema = [Field(name="meter", dtype=String), Field(name="value", dtype=dtype)]
    store.apply([METER, FeatureView(name="typed", entities=[METER], schema=schema, source=source, ttl=timedelta(0))])
    found = store.get_historical_features(spine(*((f"m{n}", 2) for n in range(4))), ["typed:value"]).to_arrow()
    assert found.schema.field("value").type == arrow
    assert found["value"].to_pylist() == values
    store.materialize(hours(0)[0], hours(2)[0])
    online = store.get_online_features(["typed:value"], [{"meter": f"m{n}"} for n in range(4)]).to_dict()["value"]
    # Feast gives an empty list back as null.
    assert [value or [] if shape != "single" else value for value in online] == values


@pytest.mark.parametrize(
    ("declared", "ids"), [(ValueType.INT32, [1, 2]), (ValueType.INT64, [1, 2]), (ValueType.STRING, ["1", "2"])]
)
def test_types_of_keys(store, tmp_path, declared, ids):
    write_deltalake(str(tmp_path / "keyed"), pa.table({"place": ids, "at": hours(1, 1), "value": [10, 20]}))
    place = Entity(name="place", join_keys=["place"], value_type=declared)
    source = FileSource(path=str(tmp_path / "keyed"), file_format=DeltaFormat(), timestamp_field="at")
    view = FeatureView(name="keyed", entities=[place], schema=[Field(name="value", dtype=Int64)], source=source)
    store.apply([place, view])
    rows = pd.DataFrame({"place": ids, "event_timestamp": hours(2, 2)})
    assert store.get_historical_features(rows, ["keyed:value"]).to_df()["value"].tolist() == [10, 20]
    store.materialize(hours(0)[0], hours(2)[0])
    assert store.get_online_features(["keyed:value"], [{"place": ids[1]}]).to_dict()["value"] == [20]
