"""Feast entities, sources, views and services over the lake's tables.

`lake.json` in this folder, written when the repository is created, contains the lake's location, the types of its ids, and what
`[feast]` of scalr.toml says about the definitions.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

from feast import ConflictPolicy, Entity, FeatureService, FeatureView, Field, FileSource, LabelView, Project, ValueType
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.permissions.action import READ, AuthzedAction
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy
from feast.types import Array, Float32, Int64, String, UnixTimestamp

LAKE = json.loads((Path(__file__).parent / "lake.json").read_text(encoding="utf-8"))
OWNER, TAGS = LAKE["owner"], LAKE["tags"]
TYPES = {"int64": Int64, "string": String}
USER, SOURCE_ITEM, TARGET_ITEM = (TYPES[LAKE[name]] for name in ("user", "source_item", "target_item"))

project = Project(name=LAKE["project"], description=LAKE["description"], owner=OWNER, tags=TAGS)

user = Entity(
    name="user",
    join_keys=["user_id"],
    value_type=ValueType.INT64 if LAKE["user"] == "int64" else ValueType.STRING,
    description="A person, known in both domains by one id.",
    owner=OWNER,
    tags=TAGS,
)
item = Entity(
    name="item",
    join_keys=["item_id"],
    value_type=ValueType.INT64 if LAKE["target_item"] == "int64" else ValueType.STRING,
    description="An item of the target domain.",
    owner=OWNER,
    tags=TAGS,
)
synthetic_event = Entity(
    name="synthetic_event",
    join_keys=["event_id"],
    value_type=ValueType.STRING,
    description="A synthetic target event.",
    owner=OWNER,
    tags=TAGS,
)


def table(name: str) -> FileSource:
    """Return the source of a Delta table with its event time and its knowledge time."""
    return FileSource(
        name=name,
        path=f"{LAKE['root']}/{name}",
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
        owner=OWNER,
        tags=TAGS,
    )


def view(name: str, entity: Entity, key: Field, fields: list[Field], description: str, *, online: bool = True) -> FeatureView:
    """Return a feature view over the table of the same name; its rows never expire."""
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


def history(name: str, item_type: object, description: str) -> FeatureView:
    """Return the view of users' last events as of each of their events."""
    fields = [
        Field(name="item_ids", dtype=Array(item_type)),
        Field(name="event_timestamps", dtype=Array(UnixTimestamp)),
        Field(name="event_count", dtype=Int64),
    ]
    return view(name, user, Field(name="user_id", dtype=USER), fields, description)


def events(name: str, item_type: object, description: str) -> FeatureView:
    """Return the view of a log of real events; it is read by window, so it is not in the online store."""
    fields = [Field(name="item_id", dtype=item_type), Field(name="weight", dtype=Float32)]
    if LAKE.get("typed") == name:
        fields.append(Field(name="event_type", dtype=String))
    if LAKE.get("recommended") == name:
        fields.append(Field(name="recommended_by", dtype=String))
    return view(name, user, Field(name="user_id", dtype=USER), fields, description, online=False)


source_events = events("source_events", SOURCE_ITEM, "Real events of the source domains.")
target_events = events("target_events", TARGET_ITEM, "Real events of the target domain.")
source_user_history = history("source_user_history", SOURCE_ITEM, "A user's last source events.")
target_user_history = history("target_user_history", TARGET_ITEM, "A user's last target events.")
target_item_stats = view(
    "target_item_stats",
    item,
    Field(name="item_id", dtype=TARGET_ITEM),
    [
        Field(name="first_seen", dtype=UnixTimestamp),
        Field(name="event_count", dtype=Int64),
        Field(name="trailing_event_count", dtype=Int64),
    ],
    "When a target item was first seen, and how often since and lately.",
)
synthetic_target_events = view(
    "synthetic_target_events",
    user,
    Field(name="user_id", dtype=USER),
    [
        Field(name="event_id", dtype=String),
        Field(name="item_id", dtype=TARGET_ITEM),
        Field(name="probability", dtype=Float32),
        Field(name="weight", dtype=Float32),
        Field(name="source_domain", dtype=String),
        Field(name="translator_version", dtype=Int64),
        Field(name="run_id", dtype=String),
    ],
    "Published synthetic target events, translated from source events.",
)
synthetic_event_provenance = view(
    "synthetic_event_provenance",
    synthetic_event,
    Field(name="event_id", dtype=String),
    [
        Field(name="user_id", dtype=USER),
        Field(name="source_domain", dtype=String),
        Field(name="source_item_id", dtype=TYPES[LAKE["source_item_id"]]),
        Field(name="source_event_timestamp", dtype=UnixTimestamp),
        Field(name="run_id", dtype=String),
    ],
    "Source events of synthetic target events, for operators: readers of the target domain have no need of it.",
    online=False,
)

if LAKE["label_view"]:
    synthetic_target_labels = LabelView(
        name="synthetic_target_labels",
        entities=[user, item],
        schema=[
            Field(name="user_id", dtype=USER),
            Field(name="item_id", dtype=TARGET_ITEM),
            Field(name="weight", dtype=Float32),
            Field(name="probability", dtype=Float32),
            Field(name="event_id", dtype=String),
            Field(name="run_id", dtype=String),
        ],
        source=synthetic_target_events.batch_source,
        online=False,
        labeler_field="run_id",
        # Real labels come first: whoever joins both names them first in the order of labelers, which Feast keeps in no definition.
        conflict_policy=ConflictPolicy.LABELER_PRIORITY,
        reference_feature_view="synthetic_target_events",
        description="Synthetic target events as labels of a user and an item; weight is the confidence in a positive label.",
        owner=OWNER,
        tags=TAGS
        | {
            "feast.io/field-role:weight": "label",
            **{f"feast.io/field-role:{name}": "metadata" for name in ("probability", "event_id", "run_id")},
        },
    )

translator_inputs_v1 = FeatureService(
    name="translator_inputs_v1",
    features=[source_user_history, target_user_history],
    description="What the translator learns from and translates.",
    owner=OWNER,
    tags=TAGS,
)
target_training_v1 = FeatureService(
    name="target_training_v1",
    features=[target_user_history, target_item_stats],
    description="Features of a training set; none tells a synthetic row from a real one, and none is of the source domain.",
    owner=OWNER,
    tags=TAGS,
)
downstream_training_v1 = FeatureService(
    name="downstream_training_v1",
    features=[source_user_history, target_user_history, target_item_stats],
    description="Features of a training set with source histories; none of them tells a synthetic row from a real one.",
    owner=OWNER,
    tags=TAGS,
)

# Feast's servers grant what any permission grants, and refuse what no permission matches. Without any permission they grant everything.
if LAKE["operator_roles"]:
    operators = Permission(name="scalr_operators", policy=RoleBasedPolicy(LAKE["operator_roles"]), tags=TAGS)
if LAKE["reader_roles"]:
    readers = Permission(
        name="scalr_readers",
        types=[Project, Entity, DataSource, FeatureView, LabelView, FeatureService],
        name_patterns=[
            re.escape(LAKE["project"]),
            "user|item",
            "target_events|target_user_history|target_item_stats|synthetic_target_events|synthetic_target_labels",
            "target_training_v1",
        ],
        actions=[AuthzedAction.DESCRIBE, *READ],
        policy=RoleBasedPolicy(LAKE["reader_roles"]),
        tags=TAGS,
    )
