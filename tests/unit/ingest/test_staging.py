"""A log that is parsed in parts is judged as one that is parsed at once; its files are divided by their size alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr_prod.compute import ShuffleFolder
from scalr_prod.config import DomainSettings
from scalr_prod.errors import BadValue
from scalr_prod.ingest import Batch, ColumnSelection, EventParser, LogSource
from scalr_prod.ingest.sources import files
from scalr_prod.ingest.sources.files import FilesReader

SECTION = DomainSettings(
    name="a", events="a.csv", timezone="UTC", bad_ids="drop", max_left_out=1.0, columns={"created": "known", "event_id": "id"}
)


def batch(users: list[str | None], times: list[str], file: str, *, untyped: bool = True) -> Batch:
    ids = pa.array(users, pa.string())
    columns = {
        "user_id": ids,
        "item_id": ids,
        "timestamp": times,
        "known": times,
        "id": [f"{file}{n}" for n in range(len(ids))],
    }
    return Batch(file, 0, pa.RecordBatch.from_pydict(columns), untyped)


BATCHES = [
    batch(["1", "2"], ["2024-01-01T00:00:00Z"] * 2, "a"),
    batch(["7.0", None], ["2024-01-02T00:00:00Z", "2024-01-02T00:00:00"], "b"),
    batch(["NULL", "x"], ["2024-01-03T00:00:00"] * 2, "c"),
    batch(["", "3"], ["2024-01-03T00:00:00Z"] * 2, "d"),
]


def parsed(parts: list[list[Batch]]) -> dict:
    cells = EventParser(SECTION, "source")
    for part in parts:
        one = EventParser(SECTION, "source")
        for each in part:
            one.parse(each)
        cells.add(one.parsed())
    return {
        name: value if isinstance(value, Counter | int) else asdict(value) for name, value in cells.parsed()._asdict().items()
    }


@pytest.mark.parametrize("cuts", [[1], [2], [3], [1, 2, 3], [0, 2]])
def test_parts_of_a_log_add_up_to_what_is_found_at_once(cuts):
    edges = [0, *cuts, len(BATCHES)]
    parts = [BATCHES[since:until] for since, until in pairwise(edges)]
    found = parsed(parts)
    assert found == parsed([BATCHES])
    assert found["left_out"]["no_user_id"] == 3
    assert found["user_ids"]["first_non_integer"] is not None
    assert found["happened"]["first_without"] is not None


def test_a_part_of_another_type_or_unit_is_refused_as_in_one_log():
    typed = batch(["1"], ["2024-01-01T00:00:00Z"], "typed", untyped=False)
    numbers = Batch("numbers", 0, typed.rows.set_column(0, "user_id", pa.array([1])), untyped=False)
    seconds, millis = (batch(["1"], [text], text) for text in ("1704067200", "1704067200000"))
    for first, second, finding in (
        (typed, numbers, "contains int64 ids, but typed contains string ids"),
        (seconds, millis, "epoch numbers change from s to ms"),
    ):
        found = []
        for parts in ([[first, second]], [[first], [second]]):
            with pytest.raises(BadValue, match=finding) as caught:
                parsed(parts)
            found.append(str(caught.value))
        assert found[0] == found[1]


def test_files_are_divided_by_their_size_and_every_row_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SECONDS_PER_BYTE", {"parquet": 1.0, "csv": 1.0})
    log, elsewhere, rows = tmp_path / "log", tmp_path / "elsewhere", [f"u{number}" for number in range(400)]
    log.mkdir()
    elsewhere.mkdir()
    for name, some, size in (("a", rows[:300], 50), ("b", rows[300:310], 50), ("c", rows[310:320], 50)):
        pq.write_table(pa.table({"user_id": some}), log / f"{name}.parquet", row_group_size=size)
    (log / "d.csv").write_text("user_id\n" + "\n".join(rows[320:]) + "\n")
    small = (log / "b.parquet").stat().st_size
    for size in ("_LEAST_TASK_S", "_MOST_TASK_S"):
        monkeypatch.setattr(files, size, 2.5 * small)
    source, reader = LogSource(str(log), ColumnSelection(("user_id",), "x")), FilesReader()
    planned = reader.plan(source)
    shapes = [[(file.url.rpartition("/")[2], file.row, file.groups) for file in task.files] for task in planned]
    assert shapes[-2:] == [[("b.parquet", 0, None), ("c.parquet", 0, None)], [("d.csv", 0, None)]]
    large = [file for task in planned for file in task.files if file.groups is not None]
    assert [file.row for file in large] == [50 * file.groups.start for file in large]
    assert [group for file in large for group in file.groups] == list(range(6))
    assert len(large) > 1
    size = (log / "a.parquet").stat().st_size
    assert sum(file.work_s for file in large) == pytest.approx(size)
    folder = ShuffleFolder(str(elsewhere))
    for shared in (False, True):
        found = []
        for task in planned:
            for each in reader.read_files(source, task.share(folder) if shared else task, folder):
                found += [(each.origin, each.row + at, user) for at, user in enumerate(each.rows.column(0).to_pylist())]
        assert sorted(user for *_, user in found) == sorted(rows)
        whole = [
            (each.origin, each.row + at, user)
            for each in reader.read(source)
            for at, user in enumerate(each.rows[0].to_pylist())
        ]
        assert sorted(found) == sorted(whole)


def test_tasks_are_in_the_order_of_the_files_names(tmp_path, monkeypatch):
    """The last version of an event without a creation time wins, so that a later file may not be read before an earlier one."""
    monkeypatch.setattr(files, "_SECONDS_PER_BYTE", {"parquet": 1.0})
    for name, rows in (("a", 10), ("b", 300), ("c", 10)):
        pq.write_table(
            pa.table({"user_id": [f"u{number}" for number in range(rows)]}), tmp_path / f"{name}.parquet", row_group_size=50
        )
    for size in ("_LEAST_TASK_S", "_MOST_TASK_S"):
        monkeypatch.setattr(files, size, 2.5 * (tmp_path / "a.parquet").stat().st_size)
    planned = FilesReader().plan(LogSource(str(tmp_path), ColumnSelection(("user_id",), "x")))
    names = [file.url.rpartition("/")[2] for task in planned for file in task.files]
    assert names == sorted(names)
    assert names.count("b.parquet") > 1
