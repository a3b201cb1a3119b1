"""Read features for training, as of the time of each label, and for serving, as of now."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import FeatureStore

if __name__ == "__main__":
    store = FeatureStore(repo_path=str(Path(__file__).parent))
    january = {"start_date": datetime(2024, 1, 1, tzinfo=UTC), "end_date": datetime(2024, 2, 1, tzinfo=UTC)}
    labels = store.get_historical_features(features=["events:item_id"], **january).to_df()
    # A label's own event must not be among its features: ask as of just before it.
    labels["event_timestamp"] -= timedelta(microseconds=1)
    rows = store.get_historical_features(
        entity_df=labels[["user_id", "item_id", "event_timestamp"]],
        features=store.get_feature_service("ranking"),
        full_feature_names=True,
    ).to_df()
    print(rows.tail(3).to_string(index=False))
    served = store.get_online_features(
        features=store.get_feature_service("ranking"),
        entity_rows=[{"user_id": 1, "item_id": 4}, {"user_id": 2, "item_id": 5}],
        full_feature_names=True,
    ).to_dict()
    print(served)
