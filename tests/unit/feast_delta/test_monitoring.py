"""Feast's data-quality monitoring over our offline store: the figures of its own computation, kept and found by its own service."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from feast.monitoring.metrics_calculator import MetricsCalculator
from feast.monitoring.monitoring_service import MonitoringService
from support.meter_tables import METER, READINGS, RENAMED, hours, readings, source_of, store_in, view_of

from feast_delta import DeltaStoreError

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental.*:RuntimeWarning")


@pytest.fixture
def store(tmp_path):
    return store_in(tmp_path)


def test_equals_feasts_own_computation(store, tmp_path):
    rng = np.random.default_rng(3)
    count = 2_000
    rows = pa.table(
        {
            "meter_no": [f"m{n % 7}" for n in range(count)],
            "read_at": hours(*rng.uniform(0, 9, count)),
            "stored_at": hours(*rng.uniform(0, 9, count)),
            "kwh_total": pa.array(rng.normal(size=count), mask=rng.random(count) < 0.1),
            "phase": pa.array(rng.choice(["x", "y", "z"], count, p=[0.5, 0.3, 0.2]), mask=rng.random(count) < 0.2),
        }
    )
    write_deltalake(str(tmp_path / "readings"), rows)
    source, limits = source_of(tmp_path / "readings"), {"start_date": hours(2)[0], "end_date": hours(7)[0]}
    features = [("phase", "categorical"), ("kwh", "numeric")]
    offline = store._get_provider().offline_store
    found = offline.compute_monitoring_metrics(store.config, source, features, "at", **limits, histogram_bins=9, top_n=2)
    at = rows["read_at"].to_numpy()
    inside = (at >= np.datetime64("2024-01-01T02")) & (at <= np.datetime64("2024-01-01T07"))
    same = rows.filter(pa.array(inside)).rename_columns([RENAMED.get(name, name) for name in rows.column_names])
    expected = MetricsCalculator(histogram_bins=9, top_n=2).compute_all(same, features)
    assert [metric.keys() for metric in found] == [metric.keys() | {"feature_name"} for metric in expected]
    for ours, theirs in zip(found, expected, strict=True):
        histogram = theirs.pop("histogram")
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), name
        for part, value in histogram.items():
            assert ours["histogram"][part] == (value if part == "values" else pytest.approx(value))
    assert offline.get_monitoring_max_timestamp(store.config, source, "at") == max(rows["read_at"].to_pylist())


def test_without_rows_and_with_values_that_are_no_numbers(store, tmp_path):
    rows = {**READINGS, "kwh_total": [float("nan"), float("inf"), 5.0, None], "phase": pa.nulls(4, pa.string())}
    write_deltalake(str(tmp_path / "readings"), pa.table(rows))
    offline, source = store._get_provider().offline_store, source_of(tmp_path / "readings")
    features = [("kwh", "numeric"), ("phase", "categorical")]
    number, text = offline.compute_monitoring_metrics(store.config, source, features, "at")
    assert (number["row_count"], number["null_count"], number["mean"], number["max_val"]) == (4, 1, 5.0, 5.0)
    assert sum(number["histogram"]["counts"]) == 1
    assert (text["row_count"], text["null_rate"], text["histogram"]) == (4, 1.0, None)
    late = {"start_date": hours(99)[0]}
    assert {m["row_count"] for m in offline.compute_monitoring_metrics(store.config, source, features, "at", **late)} == {0}


def test_feasts_service_keeps_and_finds_metrics(store, tmp_path):
    store.apply([METER, view_of(readings(tmp_path))])
    service, day = MonitoringService(store), hours(0)[0].date()
    for start in (day, day, day + timedelta(days=1)):
        service.compute_metrics("meters", "power", start_date=start, end_date=start, set_baseline=True)
    metric, later = [m for m in service.get_feature_metrics("meters", feature_view_name="power") if m["feature_name"] == "kwh"]
    assert (metric["row_count"], metric["p50"], metric["metric_date"]) == (4, 22.5, "2024-01-01")
    assert (later["row_count"], later["metric_date"]) == (0, "2024-01-02")
    assert {m["metric_date"] for m in service.get_baseline("meters", "power")} == {"2024-01-02"}, "one baseline at a time"
    assert service.get_feature_metrics("others", feature_view_name="power") == []
    assert len(service.get_feature_view_metrics("meters", feature_view_name="power")) == 2
    assert service.get_feature_metrics("meters", start_date=day + timedelta(days=2)) == []
    assert service.get_job(service.submit_job("meters", "compute", "power"))["feature_view_name"] == "power"


def test_a_filter_that_is_no_column(store):
    offline = store._get_provider().offline_store
    with pytest.raises(DeltaStoreError, match="no column"):
        offline.query_monitoring_metrics(store.config, "meters", "feature", filters={"1=1; --": "x"})
