"""Feast definitions of a small recommendation log: its events, users and items.

make_events.py writes the tables. Replace them with your own, under the same or other names.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, Project, ValueType
from feast.data_format import DeltaFormat
from feast.types import Array, Float32, Int64

OWNER = ""
TAGS = {"example": "true"}

project = Project(name="$project", description="Features of a recommender.", owner=OWNER, tags=TAGS)
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64, description="Whom items are recommended to.")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64, description="What is recommended.")


def table(name: str) -> FileSource:
    """Return the source of a Delta table in data/."""
    return FileSource(
        name=name,
        path=f"data/{name}",
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )


def view(name: str, entity: Entity, fields: list[Field], description: str, *, online: bool = True) -> FeatureView:
    """Return a feature view over the table of the same name; its rows never expire."""
    key = Field(name=entity.join_key, dtype=Int64)
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=[key, *fields],
        source=table(name),
        online=online,
        description=description,
        owner=OWNER,
        tags=TAGS,
    )


events = view(
    "events",
    user,
    [Field(name="item_id", dtype=Int64), Field(name="weight", dtype=Float32)],
    "What users did; read by time, so it is not served online.",
    online=False,
)
user_history = view(
    "user_history",
    user,
    [Field(name="item_ids", dtype=Array(Int64)), Field(name="event_count", dtype=Int64)],
    "A user's last items and number of events, as of each event.",
)
item_popularity = view("item_popularity", item, [Field(name="event_count", dtype=Int64)], "How often an item was taken so far.")

ranking = FeatureService(
    name="ranking",
    features=[user_history, item_popularity],
    description="Features of a user and an item as of the time of a label.",
    owner=OWNER,
    tags=TAGS,
)
