"""A log in many heaps ends in the lake as one in a single heap does, and is judged alike."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.examples import sweep

from scalr_prod.config.settings import Settings
from scalr_prod.core import partitioned
from scalr_prod.core.delta_log import file_names
from scalr_prod.errors import BadValue
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

START = datetime(2024, 1, 1, tzinfo=UTC)
KEY = ("event_timestamp", "user_id", "item_id", "created_timestamp", "event_type")
TABLES = (Table.SOURCE_EVENTS, Table.SOURCE_USER_HISTORY, Table.TARGET_ITEM_STATS)


def events(rows: int, *, seed: int = 0) -> pa.Table:
    """Some of the same instant, some the same, types that are missing, and some known late."""
    draw = random.Random(seed)  # noqa: S311 - made data
    found = []
    for _ in range(rows):
        happened = START + timedelta(hours=draw.randrange(200))
        known = happened + timedelta(hours=draw.choice((0, 0, 0, 50)))
        found.append((f"u{draw.randrange(30)}", f"i{draw.randrange(9)}", happened, known, draw.choice(("view", "buy", None))))
    columns = zip(*found, strict=True)
    times = pa.timestamp("us", "UTC")
    kinds = (pa.string(), pa.string(), times, times, pa.string())
    names = ("user_id", "item_id", "timestamp", "known", "kind")
    return pa.table({name: pa.array(column, kind) for name, column, kind in zip(names, columns, kinds, strict=True)})


def project(folder, source: pa.Table, **chosen) -> Settings:
    folder.mkdir(exist_ok=True)
    pq.write_table(source, folder / "s.parquet")
    pq.write_table(events(200, seed=1), folder / "t.parquet")
    columns = {"created": "known", "event_type": "kind"}
    domains = {
        "source": {"name": "a", "events": str(folder / "s.parquet"), "columns": columns, "duplicates": "keep"} | chosen,
        "target": {"name": "b", "events": str(folder / "t.parquet"), "columns": columns, "duplicates": "keep"},
    }
    return Settings(domains=domains, base=folder)


def rows_of(settings: Settings) -> dict[Table, pa.Table]:
    lake = Lake.open(settings)
    return {table: lake.read(table) for table in TABLES}


def rows_of_commits(settings: Settings) -> list[list[dict]]:
    """The rows that each commit added, as they lie in its files, in the order of their names."""
    lake, found = Lake.open(settings), []
    there: set[str] = set()
    for version in range(lake.version(Table.SOURCE_EVENTS) + 1):
        named = file_names(lake.open_table(Table.SOURCE_EVENTS, version=version))
        added = [pq.read_table(f"{lake.uri(Table.SOURCE_EVENTS)}/{name}") for name in sorted(named - there)]
        found.append([row for table in added for row in table.to_pylist()])
        there |= named
    return found


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("duplicates", sweep(["drop", "keep"], keep=1))
def test_heaps_of_few_rows_change_nothing(tmp_path, monkeypatch, duplicates):
    log, reports, found, files = events(2_000), [], [], []
    for name, size in (("one", 500_000), ("many", 100)):
        monkeypatch.setattr(partitioned, "PARTITION_ROWS", size)
        first = project(tmp_path / name, log.slice(0, 1_200), duplicates=duplicates)
        reports.append([ingest(first).to_json()["source"]])
        grown = project(tmp_path / name, log, duplicates=duplicates)
        reports[-1] += [ingest(grown).to_json()["source"], ingest(grown).to_json()["source"]]
        build_histories(grown)
        found.append(rows_of(grown))
        files.append(rows_of_commits(grown))
    assert reports[0] == reports[1]
    first, second, again = reports[0]
    assert first["duplicates"] > 0
    assert second["rows"] == len(log) - (second["duplicates"] if duplicates == "drop" else 0) > first["rows"]
    assert again["rows_added"] == 0
    for table in TABLES:
        order = [(name, "ascending") for name in KEY if name in found[0][table].column_names]
        assert found[0][table].sort_by(order).equals(found[1][table].sort_by(order)), table
    assert files[0] == files[1]
    assert [bool(rows) for rows in files[0]] == [False, True, True], "the table, and two commits that added rows"


@pytest.mark.parametrize("size", sweep([100, 500_000], keep=1))
def test_a_log_that_is_there_twice_is_refused_whatever_the_heaps(tmp_path, monkeypatch, size):
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", size)
    log = events(500)
    with pytest.raises(BadValue, match="each row occurs more than once"):
        ingest(project(tmp_path, pa.concat_tables([log, log]), duplicates="notice"))
    # One row that is there once is enough for another verdict.
    ingest(project(tmp_path, pa.concat_tables([log, log, events(1, seed=9)]), duplicates="notice"))


@pytest.mark.parametrize("size", sweep([100, 500_000], keep=1))
def test_a_log_with_other_known_times_is_refused_whatever_the_heaps(tmp_path, monkeypatch, size):
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", size)
    log = events(500)
    ingest(project(tmp_path, log))
    with pytest.raises(BadValue, match="in the lake already with another created_timestamp"):
        ingest(
            project(
                tmp_path, log.set_column(3, "known", pa.array([START + timedelta(days=90)] * 500, pa.timestamp("us", "UTC")))
            )
        )
