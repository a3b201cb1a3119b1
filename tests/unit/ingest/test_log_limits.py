"""The contract of a log of events, case by case: what is taken, changed, counted, left out and refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import pytest
from support.examples import sweep
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import BadValue, CommitFailed, EmptyInput, ScalrError, SettingsError
from scalr_prod.histories import build_histories
from scalr_prod.ingest import append, ingest
from scalr_prod.lake import Lake
from scalr_prod.lake.corrections import Correction, corrections_since
from scalr_prod.schemas import Table
from scalr_prod.workspace.suppression_list import SuppressedId, SuppressionList

DAY = pd.Timestamp("2024-03-01T12:00:00Z")
TARGET = [("u0", "t1", 0), ("u1", "t2", 1)]


def log(rows: list[tuple], **more: list) -> pd.DataFrame:
    """Rows (user, item, days after DAY); ``more`` are further columns."""
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "day"])
    frame["timestamp"] = (DAY + pd.to_timedelta(frame.pop("day"), unit="D")).astype("datetime64[us, UTC]")
    return frame.assign(**more)


def plain(count: int = 20) -> list[tuple]:
    """Different rows of ten users, one a user and day."""
    return [(f"u{n % 10}", f"s{n}", n // 10) for n in range(count)]


@dataclass
class Case:
    """A source log, its settings, and what must come of it.

    Attributes:
        logs: Read one after the other.
        toml: Lines of ``[domains.source]``.
        columns: Further mapped columns.
        says: Fields of the last report.
        weights: By item, what the lake holds in the end.
        rows: Rows that the lake holds in the end.
        refused: What the error of the last ingest says, in place of a report; the lake is as before.
    """

    name: str
    logs: list[pd.DataFrame]
    toml: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    says: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] | None = None
    rows: int | None = None
    refused: str | None = None


IDS = {"event_id": "id"}
TYPES = {"event_type": "kind"}
WEIGHED = 'types = { view = 0.25, purchase = 1.0 }\nweights_for = "downstream"\n'
FUTURE = pd.Timestamp.now("UTC") + pd.Timedelta(days=900)
late = (FUTURE - DAY) / pd.Timedelta(days=1)
bot = [("u0", f"b{n}", n / 1000) for n in range(30)]
same_ids = [f"e{n}" for n in range(20)]


def kinds(*given: str) -> list[str]:
    return list(given) + ["purchase"] * (20 - len(given))


CASES = [
    # --- event ids
    Case(
        "the same ids again add nothing",
        [log(plain(), id=same_ids)] * 2,
        "",
        IDS,
        {"rows_added": 0, "rows_updated": 0},
        rows=20,
    ),
    Case(
        "an id with another item changes its event",
        [log(plain(), id=same_ids), log([("u0", "changed", 5), *plain()[1:]], id=same_ids)],
        "",
        IDS,
        {"rows_added": 0, "rows_updated": 1, "rows": 20},
        rows=20,
    ),
    Case(
        "changed and new events come in one ingest",
        [log(plain(), id=same_ids), log([("u0", "s0", 9), ("u1", "new", 9)], id=["e0", "e99"])],
        "",
        IDS,
        {"rows_added": 1, "rows_updated": 1},
        rows=21,
    ),
    Case(
        "of two rows with one id the last counts",
        [log([*plain(), ("u0", "again", 0)], id=[*same_ids, "e0"])],
        "",
        IDS,
        {"duplicates": 1, "rows_read": 21, "rows_added": 20},
        weights={"again": 1.0},
        rows=20,
    ),
    Case("two events that differ in their ids alone are two", [log([("u0", "s0", 0)] * 2, id=["a", "b"])], "", IDS, rows=2),
    Case("ids may be integers", [log(plain(), id=list(range(20)))] * 2, "", IDS, {"rows_added": 0}, rows=20),
    Case("a null id", [log(plain(), id=[None, *same_ids[1:]])], "", IDS, refused="null or empty event id"),
    Case("an empty id", [log(plain(), id=["", *same_ids[1:]])], "", IDS, refused="null or empty event id"),
    Case(
        "an older state of an event does not come back",
        [
            log(plain(), id=same_ids, known=[DAY + pd.Timedelta(days=9)] * 20),
            log([("u0", "older", 0)], id=["e0"], known=[DAY + pd.Timedelta(days=3)]),
        ],
        "",
        {**IDS, "created": "known"},
        {"rows_updated": 0, "rows_added": 0},
        rows=20,
    ),
    Case(
        "an event whose type becomes one that is left out is removed",
        [log(plain(), id=same_ids, kind=kinds()), log(plain(), id=same_ids, kind=kinds("cancelled"))],
        WEIGHED + 'unknown_types = "drop"',
        {**IDS, **TYPES},
        {"rows_removed": 1, "rows_updated": 0, "rows_added": 0, "left_out": {"unknown_type": 1}},
        rows=19,
    ),
    Case(
        "an event that comes back is added again",
        [log(plain(), id=same_ids, kind=kinds(kind)) for kind in ("view", "cancelled", "purchase")],
        WEIGHED + 'unknown_types = "drop"',
        {**IDS, **TYPES},
        {"rows_added": 1, "rows_removed": 0},
        weights={"s0": 1.0},
        rows=20,
    ),
    Case(
        "one is removed, one changed and one added in one ingest",
        [
            log(plain(), id=same_ids, kind=kinds()),
            log(
                [("u0", "s0", 0), ("u1", "changed", 0), ("u1", "new", 3), *plain()[3:]],
                id=["e0", "e1", "e99", *same_ids[3:]],
                kind=kinds("cancelled"),
            ),
        ],
        WEIGHED + 'unknown_types = "drop"',
        {**IDS, **TYPES},
        {"rows_removed": 1, "rows_updated": 1, "rows_added": 1},
        weights={"changed": 1.0, "new": 1.0},
        rows=20,
    ),
    Case(
        "an event whose last row in one log is left out is left out",
        [log([*plain(), ("u0", "s0", 0)], id=[*same_ids, "e0"], kind=[*kinds(), "cancelled"])],
        WEIGHED + 'unknown_types = "drop"',
        {**IDS, **TYPES},
        {"rows_read": 21, "duplicates": 1, "left_out": {"unknown_type": 1}},
        rows=19,
    ),
    Case(
        "an older row that is left out removes nothing",
        [
            log(plain(), id=same_ids, kind=kinds(), known=[DAY + pd.Timedelta(days=9)] * 20),
            log(plain(), id=same_ids, kind=kinds("cancelled"), known=[DAY + pd.Timedelta(days=3)] * 20),
        ],
        WEIGHED + 'unknown_types = "drop"',
        {**IDS, **TYPES, "created": "known"},
        {"rows_removed": 0},
        rows=20,
    ),
    Case(
        "an event that loses its item is removed",
        [log(plain(), id=same_ids), log([("u0", None, 0), *plain()[1:]], id=same_ids)],
        'bad_ids = "drop"',
        IDS,
        {"rows_removed": 1, "left_out": {"no_item_id": 1}},
        rows=19,
    ),
    Case(
        "a row with an impossible time does not change its event",
        [log(plain(), id=same_ids), log([("u0", "s0", late), *plain()[1:]], id=same_ids)],
        'bad_times = "drop"',
        IDS,
        {"rows_removed": 0, "rows_updated": 0},
        rows=20,
    ),
    Case(
        "a log of nothing but events that are left out is refused",
        [log(plain() * 2, id=same_ids * 2, kind=["purchase"] * 20 + ["cancelled"] * 20)],
        WEIGHED + 'unknown_types = "drop"\nmax_left_out = 1.0',
        {**IDS, **TYPES},
        refused="contains only events that are left out",
    ),
    # --- event types
    Case(
        "types weigh",
        [log(plain(), kind=kinds("view", "purchase"))],
        WEIGHED,
        TYPES,
        weights={"s0": 0.25, "s1": 1.0},
        rows=20,
    ),
    Case(
        "a type's weight multiplies the event's own",
        [log(plain(), kind=kinds("view"), worth=[2.0] * 20)],
        WEIGHED,
        {**TYPES, "weight": "worth"},
        weights={"s0": 0.5, "s1": 2.0},
    ),
    Case(
        "an unknown type is refused",
        [log(plain(), kind=kinds("view", "clik"))],
        WEIGHED,
        TYPES,
        refused="'clik' is not a known",
    ),
    Case(
        "an unknown type is left out and counted",
        [log(plain(), kind=kinds("clik"))],
        WEIGHED + 'unknown_types = "drop"',
        TYPES,
        {"left_out": {"unknown_type": 1}, "rows_read": 20, "rows_added": 19},
        rows=19,
    ),
    Case(
        "too many unknown types are refused",
        [log(plain(), kind=kinds("clik", "clik"))],
        WEIGHED + 'unknown_types = "drop"',
        TYPES,
        refused="2 of 20 rows would be left out (2 unknown type): more than max_left_out = 0.05",
    ),
    Case("a missing type is refused", [log(plain(), kind=[None, *kinds()[1:]])], WEIGHED, TYPES, refused="no event type"),
    Case("types without weights are kept", [log(plain(), kind=kinds("any"))], "", TYPES, weights={"s0": 1.0}, rows=20),
    # --- times
    Case(
        "a time in the future is refused",
        [log([*plain(), ("u0", "s99", late)])],
        refused="lies in the future",
    ),
    Case(
        "a time in the future is left out and counted",
        [log([*plain(), ("u0", "s99", late)])],
        'bad_times = "drop"',
        says={"left_out": {"in_the_future": 1}, "rows_read": 21},
        rows=20,
    ),
    Case(
        "a time before the earliest is left out and counted",
        [log([*plain(), ("u0", "s99", -30)])],
        'bad_times = "drop"\nearliest = 2024-02-20T00:00:00Z',
        says={"left_out": {"before_earliest": 1}},
        rows=20,
    ),
    Case(
        "too many of all reasons together are refused",
        [log([*plain(), ("u0", "s98", late), ("u0", "s99", -30)])],
        'bad_times = "drop"\nearliest = 2024-02-20T00:00:00Z',
        refused="1 before earliest, 1 in the future",
    ),
    # --- ids
    Case("a missing id is refused", [log([*plain(), (None, "s99", 1)])], refused="1 null or empty id, the first one here"),
    Case(
        "missing ids are left out and counted",
        [log([*plain(98), (None, "s98", 1), ("u1", " ", 1)])],
        'bad_ids = "drop"',
        says={"left_out": {"no_item_id": 1, "no_user_id": 1}, "rows_read": 100},
        rows=98,
    ),
    Case(
        "too many missing ids are refused",
        [log([*plain(), (None, "s98", 1), (None, "s99", 1)])],
        'bad_ids = "drop"',
        refused="2 of 22 rows would be left out (2 no user id): more than max_left_out = 0.05",
    ),
    # --- bots
    Case("a bot passes where no limit is set", [log([*plain(), *bot])], says={"left_out": {}}, rows=50),
    Case("a bot with half of all events is refused", [log([*plain(), *bot])], "max_user_day = 10", refused="31 over user day"),
    Case(
        "a bot's day is left out and counted",
        [log([*plain(), *bot])],
        "max_user_day = 10\nmax_left_out = 0.7",
        says={"left_out": {"over_user_day": 31}, "rows_read": 50},
        rows=19,
    ),
    Case(
        "a bot's day is capped at its first events",
        [log([*plain(), *bot])],
        'max_user_day = 10\nmax_left_out = 0.7\nover_user_day = "cap"',
        says={"left_out": {"over_user_day": 21}},
        weights={"b0": 1.0},
        rows=29,
    ),
    # --- repeated rows
    Case("a repeated row is kept and counted", [log([*plain(), plain()[0]])], says={"duplicates": 1}, rows=21),
    Case("a log that is there twice is refused", [log(plain() * 2)], refused="the log seems to be duplicated"),
    Case(
        "a log that the lake holds is refused when it comes twice",
        [log(plain()), log([*plain() * 2, ("u0", "new", 3)])],
        refused="20 rows are already in the lake, and the log has one more copy of each",
    ),
    Case("it is taken where that is meant", [log(plain() * 2)], 'duplicates = "keep"', says={"duplicates": 20}, rows=40),
    Case("or each row once", [log(plain() * 2)], 'duplicates = "drop"', says={"duplicates": 20, "rows_read": 40}, rows=20),
    # --- columns and items
    Case(
        "columns that nothing uses are named",
        [log(plain(), price=[1.5] * 20, kind=["x"] * 20)],
        says={"unused_columns": ["kind", "price"]},
        rows=20,
    ),
    Case("a value is kept", [log(plain(), price=[1.5] * 20)], "", {"value": "price"}, {"unused_columns": []}, rows=20),
    Case("an infinite value is refused", [log(plain(), price=[float("inf")] * 20)], "", {"value": "price"}, refused="infinite"),
    Case(
        "items that the item file does not name are counted",
        [log(plain())],
        'items = "items.csv"',
        says={"items_not_in_file": 18},
        rows=20,
    ),
]


@pytest.fixture
def project(tmp_path):
    """Write both logs and a scalr.toml; gives the settings."""
    log(TARGET).to_parquet(tmp_path / "target.parquet", index=False)
    (tmp_path / "items.csv").write_text("item_id,title\ns0,First\ns1,Second\nother,Other\n")

    def make(source: pd.DataFrame, toml: str = "", columns: dict[str, str] | None = None):
        source.to_parquet(tmp_path / "source.parquet", index=False)
        mapped = ", ".join(f'{key} = "{name}"' for key, name in (columns or {}).items())
        (tmp_path / "scalr.toml").write_text(
            f'[domains.source]\nname = "source"\nevents = "source.parquet"\ncolumns = {{ {mapped} }}\n{toml}\n'
            '[domains.target]\nname = "target"\nevents = "target.parquet"\n'
        )
        return load_settings(tmp_path / "scalr.toml")

    return make


def held(settings) -> list[dict[str, Any]]:
    return Lake.open(settings).read(Table.SOURCE_EVENTS).to_pylist()


@pytest.mark.parametrize("case", sweep(CASES[::2] + CASES[1::2], keep=len(CASES) // 4), ids=lambda case: case.name)
def test_the_contract(project, case):
    *earlier, last = case.logs
    for one in earlier:
        ingest(project(one, case.toml, case.columns))
    settings = project(last, case.toml, case.columns)
    if case.refused is not None:
        before = held(settings) if earlier else []
        with pytest.raises((BadValue, EmptyInput)) as caught:
            ingest(settings)
        assert case.refused in caught.value.found
        assert caught.value.where
        assert caught.value.next_step
        assert (held(settings) if earlier else []) == before
        return
    report = ingest(settings).domains["source"]
    assert {name: getattr(report, name) for name in case.says} == case.says
    rows = held(settings)
    assert report.rows == len(rows)
    if case.rows is not None:
        assert len(rows) == case.rows
    for item, weight in (case.weights or {}).items():
        assert [row["weight"] for row in rows if row["item_id"] == item] == [weight]


def test_what_an_event_says_besides_is_in_the_lake(project):
    more = {"id": same_ids, "kind": kinds("view"), "price": [2.5, *[None] * 19]}
    mapped = {**IDS, **TYPES, "value": "price"}
    ingest(project(log(plain(), **more), WEIGHED, mapped))
    settings = project(log(plain(), **more | {"kind": kinds("purchase")}), WEIGHED, mapped)
    assert ingest(settings).domains["source"].rows_updated == 1
    (row,) = [row for row in held(settings) if row["event_id"] == "e0"]
    assert (row["event_type"], row["value"], row["weight"]) == ("purchase", 2.5, 1.0)
    target = Lake.open(settings).schema(Table.TARGET_EVENTS).names
    assert not {"event_id", "event_type", "value"} & set(target), "where no log maps them, there is no such column"


def test_a_changed_event_changes_the_histories(project):
    ingest(project(log(plain(), id=same_ids), "", IDS))
    settings = project(log([("u0", "changed", 0), *plain()[1:]], id=same_ids), "", IDS)
    build_histories(settings)
    ingest(settings)
    build_histories(settings)
    items = Lake.open(settings).read(Table.SOURCE_USER_HISTORY).to_pandas()["item_ids"].explode()
    assert "changed" in set(items)
    assert "s0" not in set(items)


def test_an_item_that_a_changed_event_left_is_in_the_catalogue_no_more(project):
    ingest(project(log(plain(), id=same_ids), "", IDS))
    settings = project(log([("u0", "changed", 0), *plain()[1:]], id=same_ids), "", IDS)
    report = ingest(settings).domains["source"]
    items = Lake.open(settings).read(Table.SOURCE_ITEMS)["item_id"].to_pylist()
    assert sorted(items) == sorted(["changed", *(f"s{n}" for n in range(1, 20))])
    assert report.catalogue == len(items)


@pytest.mark.parametrize(
    ("changed", "since"),
    [
        ([("u0", "changed", 0), *plain()[1:]], DAY),
        (
            [*plain()[:-1], ("u9", "s19", 5)],
            DAY + pd.Timedelta(days=1),
        ),  # a later time: the former one is the first that differs
        ([*plain()[:-1], ("u9", "s19", 0.5)], DAY + pd.Timedelta(days=0.5)),
    ],
    ids=["another item", "a later time", "an earlier time"],
)
def test_a_changed_event_counts_as_replaced_from_the_earlier_of_both_times_on(project, changed, since):
    settings = project(log(plain(), id=same_ids), "", IDS)
    ingest(settings)
    before = Lake.open(settings).version(Table.SOURCE_EVENTS)
    ingest(project(log([*plain(), ("u0", "s0", 9)], id=[*same_ids, "e20"]), "", IDS))
    assert corrections_since(Lake.open(settings), Table.SOURCE_EVENTS, before) == []  # one that only comes replaces nothing
    ingest(project(log([*changed, ("u1", "s1", 9)], id=[*same_ids, "e21"]), "", IDS))
    assert corrections_since(Lake.open(settings), Table.SOURCE_EVENTS, before) == [Correction(since.to_pydatetime(), 1, 1)]


def test_a_removed_event_counts_as_replaced_and_its_item_leaves_histories_and_catalogue(project):
    toml, columns = WEIGHED + 'unknown_types = "drop"', {**IDS, **TYPES}
    settings = project(log(plain(), id=same_ids, kind=kinds()), toml, columns)
    ingest(settings)
    build_histories(settings)
    before = Lake.open(settings).version(Table.SOURCE_EVENTS)
    gone = ["purchase"] * 19 + ["cancelled"]
    ingest(project(log(plain(), id=same_ids, kind=gone), toml, columns))
    since = (DAY + pd.Timedelta(days=1)).to_pydatetime()
    assert corrections_since(Lake.open(settings), Table.SOURCE_EVENTS, before) == [Correction(since, 1, 0)]
    build_histories(settings)
    items = Lake.open(settings).read(Table.SOURCE_USER_HISTORY).to_pandas()["item_ids"].explode()
    assert "s19" not in set(items)
    assert "s19" not in Lake.open(settings).read(Table.SOURCE_ITEMS)["item_id"].to_pylist()
    version = Lake.open(settings).version(Table.SOURCE_EVENTS)
    ingest(settings)
    assert Lake.open(settings).version(Table.SOURCE_EVENTS) == version, "a repeated ingest commits nothing"


def test_an_event_that_becomes_one_of_an_erased_user_is_removed(project):
    settings = project(log(plain(), id=same_ids), "", IDS)
    ingest(settings)
    with SuppressionList.open_for_update(settings) as erased:
        erased.update([SuppressedId(erased.digest("gone"), datetime.now(UTC))])
    report = ingest(project(log([("gone", "s0", 0), *plain()[1:]], id=same_ids), "", IDS)).domains["source"]
    assert (report.rows_removed, report.rows_forgotten, report.rows) == (1, 1, 19)


def test_ids_mapped_later_are_refused_where_events_would_count_twice(project):
    settings = project(log(plain()))
    ingest(settings)
    with pytest.raises(BadValue, match="20 of 20 events are in the lake already without an event_id"):
        ingest(project(log(plain(), id=same_ids), "", IDS))
    assert len(held(settings)) == 20
    report = ingest(project(log([("u5", "new", 5)], id=["e50"]), "", IDS)).domains["source"]
    assert (report.rows_added, report.rows) == (1, 21)
    assert [row["event_id"] for row in held(settings)].count(None) == 20


def test_another_weight_of_a_type_is_refused_where_events_would_count_twice(project):
    frame = log(plain(), kind=kinds(*["view"] * 12))
    ingest(project(frame, WEIGHED, TYPES))
    with pytest.raises(BadValue, match="12 of 20 events are in the lake already with another"):
        ingest(project(frame, WEIGHED.replace("0.25", "0.5"), TYPES))


def test_another_weight_is_refused_though_most_of_the_log_is_new(project):
    rows = [(f"u{n}", "s0", n) for n in range(150)]
    ingest(project(log(rows, kind=lambda frame: ["view"] * len(frame)), WEIGHED, TYPES))
    grown = log([*rows, *((user, "s1", day) for user, _, day in rows * 2)], kind=lambda frame: ["view"] * len(frame))
    with pytest.raises(BadValue, match="150 of 450 events are in the lake already with another"):
        ingest(project(grown, WEIGHED.replace("0.25", "0.5"), TYPES))


def test_the_same_ids_of_two_source_domains_are_different_events(tmp_path):
    for name in ("a", "b"):
        log(plain(), id=same_ids).to_parquet(tmp_path / f"{name}.parquet", index=False)
    log(TARGET).to_parquet(tmp_path / "t.parquet", index=False)
    (tmp_path / "scalr.toml").write_text(
        "".join(
            f'[domains.sources.{name}]\nevents = "{name}.parquet"\ncolumns = {{ event_id = "id" }}\n' for name in ("a", "b")
        )
        + '[domains.target]\nname = "t"\nevents = "t.parquet"\n'
    )
    settings = load_settings(tmp_path / "scalr.toml")
    for added in (20, 0):
        reports = ingest(settings).domains
        assert [reports[f"sources.{name}"].rows_added for name in ("a", "b")] == [added, added]
    assert len(held(settings)) == 40
    log([("u0", "changed", 0), *plain()[1:]], id=same_ids).to_parquet(tmp_path / "a.parquet", index=False)
    assert ingest(settings).domains["sources.a"].rows_updated == 1
    assert sorted(row["item_id"] for row in held(settings)) == sorted(
        ["a:changed", *(f"a:s{n}" for n in range(1, 20)), *(f"b:s{n}" for n in range(20))]
    )


def test_tables_with_changed_events_can_be_filtered_by_text(project):
    """Files that Delta's own merge leaves cannot: `evaluate` and DuckDB filter tables so."""
    ingest(project(log(plain(), id=same_ids), "", IDS))
    settings = project(log([("u0", "changed", 0), *plain()[1:]], id=same_ids), "", IDS)
    ingest(settings)
    rows = Lake.open(settings).read(Table.SOURCE_EVENTS, where=~ds.field("user_id").isin(["u0", "u1"]))
    assert set(rows["user_id"].to_pylist()) == {row["user_id"] for row in held(settings)} - {"u0", "u1"}


@pytest.mark.parametrize(
    ("toml", "columns", "found"),
    [
        ("types = { view = 0.1 }", TYPES, "weights_for"),
        ("types = { view = 1.0 }", {}, "no column of event types"),
        (WEIGHED.replace("0.25", "0"), TYPES, "greater than or equal to 0.000000001"),
        ('over_user_day = "ban"', {}, "over_user_day"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(project, toml, columns, found):
    with pytest.raises(SettingsError, match=found):
        project(log(plain()), toml, columns)


def test_the_report_is_printed_and_an_error_is_one_line_of_json(project, tmp_path):
    project(log([*plain(), plain()[0]], price=[1.0] * 21))
    shown = CliRunner().invoke(app, ["ingest", "--config", str(tmp_path / "scalr.toml")])
    assert shown.exit_code == 0, shown.output
    assert "unused_columns" in shown.stdout
    assert "price" in shown.stdout


def test_the_errors_are_the_projects_own(project):
    with pytest.raises(ScalrError) as caught:
        ingest(project(log(plain() * 2)))
    assert 'duplicates = "drop" or "keep"' in caught.value.next_step


def test_a_user_who_is_erased_while_a_commit_is_made_again_does_not_return(project, monkeypatch):
    """An erasure commits to the table, so that the attempt under way fails, and the next one looks at the list again."""
    settings = project(log(plain()))
    ingest(settings)
    write = append.AppendMissing._write_files

    def erase_first(self, *arguments):
        monkeypatch.undo()
        with SuppressionList.open_for_update(settings) as erased:
            erased.update([SuppressedId(erased.digest("late"), datetime.now(UTC))])
        self.lake.set_description(self.table, "{}", key="erasure")
        return write(self, *arguments)

    monkeypatch.setattr(append.AppendMissing, "_write_files", erase_first)
    with pytest.raises(CommitFailed, match="erased while the logs were read"):
        ingest(project(log([*plain(), ("late", "s1", 3)])))
    assert "late" not in {row["user_id"] for row in held(settings)}


LOST = "6 events, and the lake has 20 of this log"


@pytest.mark.parametrize(
    ("rows", "warned"),
    [(plain(6), True), (plain()[14:], False), (plain(), False)],
    ids=["a log that was cut off", "a log of the last days", "the same log"],
)
def test_a_log_that_lost_rows_is_warned_about(project, caplog, rows, warned):
    ingest(project(log(plain())))
    assert ingest(project(log(rows))).domains["source"].rows == 20
    assert (LOST in caplog.text) == warned
    assert ("scalr ingest --domain source --replace 2024-03-01" in caplog.text) == warned
