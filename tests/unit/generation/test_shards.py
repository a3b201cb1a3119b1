"""What a run asks, laid out for its tasks: every context once, of whole users, beside a look at the rows themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from support.examples import sweep
from support.small_project import Handmade, hour

from scalr_prod.errors import GenerationError
from scalr_prod.generation import shards
from scalr_prod.generation.part_files import part_path
from scalr_prod.generation.shards import read_shards, remove_shards, write_shards
from scalr_prod.ledger import run_folder
from scalr_prod.schemas import Table

KEYS = ["user_id", "event_timestamp", "item_id"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Users of 1 to 60 events, with repetitions, some outside of the window or known too late; targets of most of them, and of others."""
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(1, 12, 60).tolist(), 60]
    source = [
        (f"u{user:02}", f"s{rng.integers(9)}", float(rng.integers(40, 110)), float(rng.choice([0, 500], p=[0.9, 0.1])))
        for user, size in enumerate(sizes)
        for _ in range(size)
    ]
    source = [(user, item, at, at + late) for user, item, at, late in source]
    target = [(f"u{rng.integers(90):02}", f"t{rng.integers(5)}", at := float(rng.integers(120)), at) for _ in range(300)]
    return Handmade(tmp_path_factory.mktemp("slices"), source=source + source[::7], target=target)


def expected(made, spec):
    """Contexts and consumed items, by pandas."""
    source, target = (made.lake.read(table).to_pandas() for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS))
    within = (source["event_timestamp"] >= spec.start) & (source["event_timestamp"] < spec.end)
    asked = source[within & (source["created_timestamp"] <= spec.as_of)].drop_duplicates(KEYS)
    asked["source_event_timestamp"] = asked["event_timestamp"]
    if spec.settings["generation"].get("contexts") == "users":
        asked = asked.sort_values(["event_timestamp", "item_id"], ascending=[False, True]).drop_duplicates("user_id")
        asked["event_timestamp"] = pd.Timestamp(spec.end) - pd.Timedelta("1us")
    had = target[(target["event_timestamp"] < spec.end) & target["user_id"].isin(asked["user_id"])]
    had = had.groupby(["user_id", "item_id"], as_index=False)["event_timestamp"].min()
    asked["newcomer"] = ~asked["user_id"].isin(target[target["created_timestamp"] <= spec.as_of]["user_id"])
    return asked.sort_values(KEYS), had.sort_values(KEYS)


@pytest.mark.parametrize("contexts", ["events", "users"])
@pytest.mark.parametrize(
    ("count", "heap"), sweep([(7, 500_000), (200, 100), (1, 500_000), (200, 500_000), (1, 40), (7, 1)], keep=2)
)
def test_all_tasks_together_read_each_context_once_and_no_user_twice(made, count, heap, contexts, monkeypatch):
    """Also with more tasks than users, with a user of more contexts than a slice, and with events that are put in order in parts."""
    monkeypatch.setattr(shards, "_SHARD_CONTEXTS", 10)
    monkeypatch.setattr(shards, "PARTITION_ROWS", heap)
    spec = made.run(contexts=contexts, generated=False)
    asked, had = expected(made, spec)
    assert write_shards(made.settings, spec, count) == len(asked)
    tasks = [list(read_shards(made.settings.home, spec, number, count)) for number in range(count)]
    read = [(rows.to_pandas(), consumed.to_pandas()) for task in tasks for rows, consumed in task]
    columns = [*KEYS, "source_event_timestamp", "newcomer"]
    for column in columns:
        found = [value for rows, _ in read for value in rows[column]]
        assert found == asked[column].to_list()
    assert [row for _, one in read for row in one[KEYS].itertuples(index=False)] == list(had[KEYS].itertuples(index=False))
    assert len({key for rows, _ in read for key in rows["noise_key"]}) == len(asked)
    assert asked["newcomer"].nunique() == 2
    users = [set(rows["user_id"]) for rows, _ in read]
    assert sum(map(len, users)) == asked["user_id"].nunique()
    assert all(set(one["user_id"]) <= own for own, (_, one) in zip(users, read, strict=True))
    # What is counted for a user counts repetitions, too.
    most = made.lake.read(Table.SOURCE_EVENTS).to_pandas().groupby("user_id").size().max()
    assert max(len(rows) for rows, _ in read) < 10 + most
    assert max(sum(len(rows) for rows, _ in task) for task in tasks) < 1.3 * len(asked) / count + most
    remove_shards(made.settings.home, spec)
    assert not (run_folder(made.settings.home, spec.run_id) / "shards").exists()


def test_contexts_of_a_partition_are_made_from_its_events_alone(made, monkeypatch):
    """If each partition read all users, the time would grow with the square of the log."""
    monkeypatch.setattr(shards, "_SHARD_CONTEXTS", 10)
    monkeypatch.setattr(shards, "PARTITION_ROWS", 40)
    plans, chosen_user_contexts = [], shards.chosen_user_contexts

    def explained(*args, **more):
        relation = chosen_user_contexts(*args, **more)
        plans.append(relation.explain())
        return relation

    monkeypatch.setattr(shards, "chosen_user_contexts", explained)
    write_shards(made.settings, made.run(seed=7, generated=False), 3)
    assert len(plans) > 3
    assert all("partition_rows" in plan and "chosen_users" not in plan for plan in plans)


def test_what_is_whole_is_used_again_and_what_is_not_is_written_anew(made):
    spec = made.run(seed=5, generated=False)
    folder = run_folder(made.settings.home, spec.run_id) / "shards"
    with pytest.raises(GenerationError, match="missing or damaged"):
        list(read_shards(made.settings.home, spec, 0, 3))
    write_shards(made.settings, spec, 3)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")}
    assert len(written) == 6
    write_shards(made.settings, spec, 3)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")} == written
    damaged = part_path(folder / "consumed", 1)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert list(read_shards(made.settings.home, spec, 0, 3))
    with pytest.raises(GenerationError, match="missing or damaged") as caught:
        list(read_shards(made.settings.home, spec, 1, 3))
    assert caught.value.where == str(damaged)
    assert "scalr runs resume" in caught.value.next_step
    rows = write_shards(made.settings, spec, 3)
    assert list(read_shards(made.settings.home, spec, 1, 3))
    # Another cut leaves nothing of the former one.
    assert write_shards(made.settings, spec, 2) == rows
    assert len(list(folder.rglob("part-*.parquet"))) == 4
    with pytest.raises(GenerationError):
        list(read_shards(made.settings.home, spec, 0, 3))


def test_a_run_that_may_propose_consumed_items_lays_out_contexts_alone(made):
    spec = made.run(exclude_consumed=False, generated=False)
    write_shards(made.settings, spec, 2)
    assert all(consumed is None for _, consumed in read_shards(made.settings.home, spec, 0, 2))
    assert not (run_folder(made.settings.home, spec.run_id) / "shards" / "consumed").exists()


def test_a_window_without_contexts_gives_tasks_without_slices(made):
    spec = made.run(start=2000, end=2001, generated=False)
    assert spec.start == hour(2000)
    assert write_shards(made.settings, spec, 2) == 0
    assert [list(read_shards(made.settings.home, spec, number, 2)) for number in range(2)] == [[], []]
