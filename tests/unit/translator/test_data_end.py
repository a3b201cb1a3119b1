"""The end of the data: the first time by which every event has happened and is known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from scalr_prod.errors import TranslatorError
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, table_schema
from scalr_prod.translator import data_end

T0 = datetime(2024, 1, 1, tzinfo=UTC)
TABLES = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)
SCHEMAS = {table: table_schema(table, user="string", item="int64") for table in TABLES}


@pytest.fixture
def lake(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    for table in TABLES:
        lake.create(table, SCHEMAS[table])
    return lake


def append(lake: Lake, table: Table, **created: timedelta) -> None:
    """One event of the first day for each user, known so much later."""
    for user, after in created.items():
        event = {"user_id": user, "item_id": 1, "event_timestamp": T0, "created_timestamp": T0 + after, "weight": 1.0}
        lake.append(table, pa.Table.from_pylist([event], SCHEMAS[table]), key=user)


def test_it_is_a_microsecond_after_the_last_event_that_became_known(lake):
    append(lake, Table.TARGET_EVENTS, u=timedelta(0))
    assert data_end(lake) == T0 + timedelta(microseconds=1)
    append(lake, Table.SOURCE_EVENTS, v=timedelta(days=3, microseconds=123_457), w=timedelta(days=1))
    assert data_end(lake) == T0 + timedelta(days=3, microseconds=123_458)


def test_without_events_there_is_none(lake):
    with pytest.raises(TranslatorError, match="no events"):
        data_end(lake)
