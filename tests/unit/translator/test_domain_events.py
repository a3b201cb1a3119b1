# SPDX-License-Identifier: Apache-2.0
"""Events are read in batches, and sorted some users at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from support.examples import sweep

from scalr_prod.core.hashing import stable_hash
from scalr_prod.translator.data import domain_events
from scalr_prod.translator.data.domain_events import EventWeighting, distinct_ids, load_events

MANY = 3_000


def log() -> pa.Table:
    """Few users and items, equal times, and one user with a third of all events."""
    rng = np.random.default_rng(5)
    user = np.where(rng.random(MANY) < 0.3, 3, rng.integers(0, 40, MANY))
    return pa.table(
        {
            "user_id": pa.array([f"u{number}" for number in user]),
            "item_id": pa.array([f"i{number}" for number in rng.integers(0, 30, MANY)]),
            "event_timestamp": pa.array(rng.integers(0, 9, MANY) * 1_000_000, pa.timestamp("us", "UTC")),
            "created_timestamp": pa.array(rng.integers(9, 12, MANY) * 1_000_000, pa.timestamp("us", "UTC")),
            "event_type": pa.array(rng.choice(["view", "buy", None], MANY)),
        }
    )


@pytest.mark.parametrize("at_a_time", sweep([100, 1, 500_000], keep=1))
@pytest.mark.parametrize("weights", [{}, {"view": 0.5, "buy": 2.0}])
def test_events_are_sorted_by_user_time_and_item_hash(weights, at_a_time, monkeypatch, tmp_path):
    monkeypatch.setattr(domain_events, "_ROWS_AT_ONCE", at_a_time)
    monkeypatch.setattr(domain_events, "_MAX_PASSES", MANY)
    table = log()
    users, ids = distinct_ids(table.select(["user_id", "item_id"]).to_reader(70))
    assert users.to_pylist() == sorted(set(table["user_id"].to_pylist()))
    assert ids.to_pylist() == sorted(set(table["item_id"].to_pylist()))
    found, known = load_events(table.to_reader(70), users, ids, EventWeighting(weights), tmp_path)
    plain = table.to_pandas()
    plain["hash"] = stable_hash(table["item_id"])
    plain = plain.sort_values(["user_id", "event_timestamp", "hash", "created_timestamp"], kind="stable")
    assert [users[number].as_py() for number in found.user] == plain["user_id"].tolist()
    assert [ids[number].as_py() for number in found.item] == plain["item_id"].tolist()
    assert found.time.tolist() == plain["event_timestamp"].astype("int64").tolist()
    assert known.tolist() == plain["created_timestamp"].astype("int64").tolist()
    if weights:
        assert found.weight.tolist() == plain["event_type"].map(weights).fillna(1).tolist()
    else:
        assert found.weight is None
    assert not list(tmp_path.iterdir())


def test_the_indexes_of_known_ids_are_built_once_whatever_the_number_of_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(domain_events, "_ROWS_AT_ONCE", 100)
    built, index = [], domain_events.IdIndex
    monkeypatch.setattr(domain_events, "IdIndex", lambda known: built.append(len(known)) or index(known))
    users, ids = distinct_ids(log().select(["user_id", "item_id"]).to_reader(70))
    load_events(log().to_reader(70), users, ids, EventWeighting(), tmp_path)
    assert built == [len(users), len(ids)]


def test_empty_input_keeps_the_column_types(tmp_path):
    nothing = log()[:0]
    users, ids = distinct_ids(nothing.select(["user_id", "item_id"]).to_reader())
    assert (len(users), len(ids), users.type) == (0, 0, pa.string())
    found, known = load_events(nothing.to_reader(), users, ids, EventWeighting(), tmp_path)
    assert len(found) == len(known) == 0
