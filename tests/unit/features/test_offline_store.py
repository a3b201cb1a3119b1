"""The Delta offline store as a project's feature_store.yaml names it."""

from __future__ import annotations

import pandas as pd
import pytest
from feast.repo_config import get_offline_config_from_type
from support.feast_project import hours
from support.meter_tables import METER, readings, source_of, store_in, view_of

import feast_delta
from scalr_prod.errors import FeatureStoreError, LakeError
from scalr_prod.features import DeltaOfflineStore, DeltaOfflineStoreConfig


@pytest.mark.parametrize("place", ["scalr_prod.features.offline_store", "scalr_prod.feast_store.offline_store"])
def test_settings_files_of_any_version_name_the_strict_clock(place):
    """A file that names no clock had ``knowledge_time: created``."""
    config = get_offline_config_from_type(f"{place}.DeltaOfflineStore")()
    assert type(config) is DeltaOfflineStoreConfig
    assert (config.knowledge_time, config.writable, config.lake) == ("created", [], None)
    assert DeltaOfflineStore is feast_delta.DeltaOfflineStore


def test_the_store_raises_errors_of_the_package(tmp_path):
    store = store_in(tmp_path, DeltaOfflineStoreConfig)
    assert isinstance(store.config.offline_store, DeltaOfflineStoreConfig)
    store.apply([METER, view_of(source_of(tmp_path / "readings"))])
    rows = pd.DataFrame({"meter": ["m1"], "event_timestamp": hours(3)})
    job = store.get_historical_features(rows, ["power:kwh"])
    with pytest.raises(FeatureStoreError, match="scalr ingest"):
        job.to_df()
    with pytest.raises(FeatureStoreError, match="cannot be stored as NoneType"):
        job.persist(None)
    written = pd.DataFrame({"meter_no": ["m1"], "read_at": hours(3), "stored_at": hours(3), "kwh_total": [1.0], "phase": ["x"]})
    with pytest.raises(FeatureStoreError, match="scalr ingest"):
        store.write_to_offline_store("power", written, allow_registry_cache=False)
    readings(tmp_path)
    with pytest.raises(FeatureStoreError, match="lacks the join key"):
        store.get_historical_features(rows.rename(columns={"meter": "place"}), ["power:kwh"]).to_df()
    assert job.to_df()["kwh"].tolist() == [20.0]
    next((tmp_path / "readings").glob("*.parquet")).unlink()
    with pytest.raises(LakeError, match="scalr run"):
        job.to_df()
