"""Bad input is refused whole: one clear error that names file, column and row, and nothing in the lake."""

from __future__ import annotations

import gzip
import json
import lzma
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import BadValue, ColumnNotFound, EmptyInput, InputError, NoCommonUsers, ScalrError, UnreadableInput
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

HEAD = "user_id,item_id,timestamp\n"
ROW = "u1,i1,2024-05-01T12:00:00Z\n"
LINE = '{"user_id": "u1", "item_id": "i1", "timestamp": "2024-05-01T12:00:00Z"}\n'


@dataclass(frozen=True)
class Case:
    """What is wrong with the target log (or its items), and what the error has to say.

    Attributes:
        file: Name of the log.
        content: Its text, its bytes, or its Arrow table.
        error: The error's class.
        says: Parts of its message.
        toml: Further settings of the domain.
        items: Whether the file is the item file instead.
    """

    file: str
    content: object
    error: type[ScalrError]
    says: tuple[str, ...]
    toml: str = ""
    items: bool = False


def parquet(**columns) -> pa.Table:
    return pa.table(columns)


def typed(user=("u1",), item=("i1",), timestamp=None, **more) -> pa.Table:
    size = len(user)
    timestamp = pa.array([0] * size, pa.timestamp("us", "UTC")) if timestamp is None else timestamp
    return pa.table({"user_id": user, "item_id": item, "timestamp": timestamp, **more})


def zst(text: str) -> bytes:
    return pa.compress(text.encode(), "zstd", asbytes=True)


def truncated() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(typed(user=["u1"] * 1000, item=["i"] * 1000), sink)
    whole = sink.getvalue().to_pybytes()
    return whole[: len(whole) // 2]


CREATED = 'columns = { created = "known" }'
WEIGHT = 'columns = { weight = "w" }'
CASES = {
    "no such file": Case("missing.parquet", None, UnreadableInput, ("t/missing.parquet", "no such file", "[domains]")),
    "no match": Case("t/none-*.parquet", None, UnreadableInput, ("no file matches",)),
    "empty folder": Case("folder", "dir", UnreadableInput, ("folder contains no file", ".parquet, .csv", "[domains]")),
    "zero bytes csv": Case("t.csv", "", EmptyInput, ("t.csv", "has no rows", "[domains.target]")),
    "header only csv": Case("t.csv", HEAD, EmptyInput, ("t.csv", "has no rows")),
    "zero bytes jsonl": Case("t.jsonl", "", EmptyInput, ("t.jsonl", "has no rows")),
    "zero rows parquet": Case("t.parquet", typed().slice(0, 0), EmptyInput, ("t.parquet", "has no rows")),
    "zero bytes parquet": Case("t.parquet", b"", UnreadableInput, ("t.parquet", "cannot be read as parquet")),
    "truncated parquet": Case(
        "t.parquet", truncated(), UnreadableInput, ("t.parquet", "cannot be read as parquet", "complete")
    ),
    "csv named parquet": Case(
        "t.parquet",
        HEAD + ROW,
        UnreadableInput,
        ("t.parquet", "cannot be read as parquet", "ending of its format: .parquet, .csv"),
    ),
    "csv set as parquet": Case(
        "t.csv", HEAD + ROW, UnreadableInput, ("t.csv", "complete, and of this format"), 'format = "parquet"'
    ),
    "truncated gzip": Case("t.csv.gz", gzip.compress((HEAD + ROW * 5000).encode())[:-20], UnreadableInput, ("t.csv.gz",)),
    "truncated zst csv": Case("t.csv.zst", zst(HEAD + ROW * 5000)[:-20], UnreadableInput, ("t.csv.zst", "complete")),
    "truncated zst jsonl": Case("t.jsonl.zst", zst(LINE * 5000)[:-20], UnreadableInput, ("t.jsonl.zst", "complete")),
    "not zst": Case("t.csv.zst", HEAD + ROW, UnreadableInput, ("t.csv.zst", "complete")),
    "damaged xz": Case("t.csv.xz", lzma.compress((HEAD + ROW).encode())[:30] + bytes(99), UnreadableInput, ("t.csv.xz",)),
    "not xz": Case("t.csv.xz", HEAD + ROW, UnreadableInput, ("t.csv.xz", "complete")),
    "not gzip": Case("t.csv.gz", HEAD + ROW, UnreadableInput, ("t.csv.gz",)),
    "unknown format": Case("t.xlsx", "PK", UnreadableInput, ("t.xlsx", "format")),
    "short row of a csv": Case(
        "t.csv", HEAD + ROW + "u1,i1\n", UnreadableInput, ("t.csv, row 2", "has 2 values", "names 3: 'u1,i1'", "complete")
    ),
    "long row of a csv": Case("t.csv", HEAD + ROW + "u," + ROW, UnreadableInput, ("t.csv, row 2", "has 4 values", "quote")),
    "binary csv": Case("t.csv", gzip.compress(HEAD.encode()), UnreadableInput, ("t.csv", "not text", "zero bytes", ".csv.gz")),
    "csv of latin-1": Case(
        "t.csv", (HEAD + ROW + "jos\xe9,i,2024-05-01T12:00:00Z\n").encode("latin-1"), InputError, ("t.csv", "UTF")
    ),
    "not json": Case(
        "t.jsonl", json.dumps({"user_id": 1}) + "\n{oops\n", UnreadableInput, ("t.jsonl, row 2", "not valid JSON")
    ),
    "json list": Case("t.jsonl", "[1, 2]\n", UnreadableInput, ("t.jsonl, row 1", "list", "one JSON object per line")),
    "missing column": Case(
        "t.csv",
        "user,item_id,timestamp\n" + ROW,
        ColumnNotFound,
        ("'user_id'", "there are: 'user', 'item_id'", "did you mean 'user'", "[domains.target.columns]"),
    ),
    "missing mapped column": Case("t.csv", HEAD + ROW, ColumnNotFound, ("'known'", "'timestamp'"), CREATED),
    "column twice": Case("t.csv", "user_id,user_id,item_id,timestamp\nu1," + ROW, BadValue, ("'user_id'", "2 times")),
    "null user": Case(
        "t.parquet",
        typed(["u1", None, None], ["i"] * 3),
        BadValue,
        ("t.parquet, column 'user_id', row 2", "2 null or empty ids", "never dropped"),
    ),
    "blank item": Case(
        "t.csv", HEAD + ROW + "u1,  ,2024-05-01T12:00:00Z\n", BadValue, ("t.csv, column 'item_id', row 2", "1 null or empty id")
    ),
    "the word for nothing among numbers": Case(
        "t.csv",
        HEAD + "7,1,2024-05-01T12:00:00Z\n8,NULL,2024-05-01T12:00:00Z\n9,nan,2024-05-01T12:00:00Z\n",
        BadValue,
        ("t.csv, column 'item_id', row 2", "2 ids are 'NULL'", "all others are integers"),
    ),
    "all users null": Case(
        "t.parquet", typed(pa.nulls(2), ["i"] * 2), BadValue, ("column 'user_id', row 1", "2 null or empty ids")
    ),
    "float ids": Case("t.parquet", typed([1.0]), BadValue, ("column 'user_id'", "double", "never guessed from floats")),
    "boolean ids": Case("t.parquet", typed([True]), BadValue, ("column 'user_id'", "bool")),
    "list ids": Case("t.parquet", typed(["u1"], [["a"]]), BadValue, ("column 'item_id'", "list")),
    "ids past int64": Case("t.parquet", typed(pa.array([2**63], pa.uint64())), BadValue, ("column 'user_id'", "64")),
    "mixed json ids": Case(
        "t.jsonl",
        "".join(
            json.dumps({"user_id": "u1", "item_id": item, "timestamp": "2024-05-01T12:00:00Z"}) + "\n" for item in (1, "x")
        ),
        BadValue,
        ("column 'item_id'", "several types"),
    ),
    "int users, string users": Case(
        "t.parquet", typed([1]), BadValue, ("t.parquet, column 'user_id'", "int64 user ids", "s.parquet", "string")
    ),
    "naive parquet": Case(
        "t.parquet",
        typed(timestamp=pa.array([0], pa.timestamp("us"))),
        BadValue,
        ("column 'timestamp', row 1", "naive", "[domains.target] timezone"),
    ),
    "naive csv": Case(
        "t.csv", HEAD + ROW + "u1,i1,2024-05-01 12:00\n", BadValue, ("t.csv, column 'timestamp', row 2", "naive", "timezone")
    ),
    "date csv": Case("t.csv", HEAD + "u1,i1,2024-05-01\n", BadValue, ("row 1", "naive", "timezone")),
    "no timestamp": Case(
        "t.csv", HEAD + ROW + "u1,i1,yesterday\n", BadValue, ("t.csv, column 'timestamp', row 2", "'yesterday'", "ISO 8601")
    ),
    "impossible date": Case("t.csv", HEAD + "u1,i1,2024-02-30T00:00:00Z\n", BadValue, ("row 1", "2024-02-30")),
    "epoch numbers and ISO": Case(
        "t.csv",
        HEAD + "u1,i1,1714564800\n" + ROW,
        BadValue,
        ("row 1", "epoch numbers are mixed with ISO 8601 texts: '1714564800' here", "in row 2", "in one form"),
    ),
    "epoch numbers and a word": Case(
        "t.csv", HEAD + "u1,i1,1714564800\nu1,i1,unknown\n", BadValue, ("row 2", "'unknown' is not a timestamp")
    ),
    "empty timestamp": Case("t.csv", HEAD + ROW + "u1,i1,\n", BadValue, ("t.csv, column 'timestamp', row 2",)),
    "null timestamp": Case(
        "t.parquet", typed(timestamp=pa.nulls(1, pa.timestamp("us", "UTC"))), BadValue, ("row 1", "null timestamp")
    ),
    "epoch of unclear unit": Case("t.csv", HEAD + "u1,i1,12345\n", BadValue, ("row 1", "unclear unit")),
    "epoch units mixed": Case("t.csv", HEAD + "u1,i1,1714564800\nu1,i1,1714564800000\n", BadValue, ("unclear unit",)),
    "year 2099": Case(
        "t.csv", HEAD + ROW + "u1,i1,2099-01-01T00:00:00Z\n", BadValue, ("row 2", "2099-01-01", "future", "[domains.target]")
    ),
    "known in 2099": Case(
        "t.csv",
        "user_id,item_id,timestamp,known\nu1,i1,2024-05-01T12:00:00Z,2099-01-01T00:00:00Z\n",
        BadValue,
        ("'known', row 1", "2099-01-01", "future"),
        CREATED,
    ),
    "epoch zero where there is a floor": Case(
        "t.csv",
        HEAD + ROW + "u1,i1,1970-01-01T00:00:00Z\n",
        BadValue,
        ("row 2", "1970-01-01", "before 2000-01-01", "earliest"),
        "earliest = 2000-01-01T00:00:00Z",
    ),
    "year 2500": Case("t.csv", HEAD + ROW + "u1,i1,2500-01-01T00:00:00Z\n", BadValue, ("row 2", "2500", "1678 to 2261")),
    "date of a database's infinity": Case(
        "t.parquet",
        typed(["u1"] * 2, ["i1"] * 2, pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32())),
        BadValue,
        ("t.parquet, column 'timestamp', row 2", "out of range"),
        'timezone = "UTC"',
    ),
    "unsigned epoch number past 64 signed bits": Case(
        "t.parquet",
        typed(["u1"] * 2, ["i1"] * 2, pa.array([2**62, 2**63], pa.uint64())),
        BadValue,
        ("t.parquet, column 'timestamp', row 2", "out of range"),
    ),
    "boolean timestamp": Case("t.parquet", typed(timestamp=[True]), BadValue, ("column 'timestamp'", "bool")),
    "null created": Case(
        "t.csv", "user_id,item_id,timestamp,known\n" + ROW.strip() + ",\n", BadValue, ("column 'known', row 1",), CREATED
    ),
    "negative weight": Case("t.parquet", typed(w=[-1.0]), BadValue, ("column 'w', row 1", "weight -1.0", "at least 0"), WEIGHT),
    "infinite weight": Case("t.parquet", typed(w=[float("inf")]), BadValue, ("column 'w', row 1", "weight inf"), WEIGHT),
    "nan weight": Case("t.parquet", typed(w=[float("nan")]), BadValue, ("column 'w', row 1", "weight nan"), WEIGHT),
    "weight past float32": Case("t.parquet", typed(w=[1e39]), BadValue, ("column 'w', row 1", "weight 1e+39"), WEIGHT),
    "weight past float32 with its type": Case(
        "t.parquet",
        typed(w=[3e38], kind=["buy"]),
        BadValue,
        ("column 'w', row 1", "weight 3e+38, times 1000 for its type, would be stored as inf", "1e30"),
        'columns = { weight = "w", event_type = "kind" }\ntypes = { buy = 1000 }',
    ),
    "weight below float32": Case(
        "t.parquet", typed(w=[1e-50]), BadValue, ("column 'w', row 1", "weight 1e-50", "stored as 0"), WEIGHT
    ),
    "null weight": Case(
        "t.parquet", typed(w=pa.nulls(1, pa.float64())), BadValue, ("column 'w', row 1", "null weight"), WEIGHT
    ),
    "text weight": Case(
        "t.csv", "user_id,item_id,timestamp,w\n" + ROW.strip() + ",heavy\n", BadValue, ("column 'w', row 1", "'heavy'"), WEIGHT
    ),
    "no common users": Case("t.csv", HEAD + "v1,i1,2024-05-01T12:00:00Z\n", NoCommonUsers, ("share no user", "'u1'", "'v1'")),
    "no item file": Case("i.csv", None, UnreadableInput, ("i.csv", "no such file"), items=True),
    "empty item file": Case("i.csv", "item_id,title\n", EmptyInput, ("i.csv", "items"), items=True),
    "item file without ids": Case(
        "i.csv", "sku,title\n1,a\n", ColumnNotFound, ("'item_id'", "[domains.target.item_columns]"), items=True
    ),
    "mapped item column missing": Case(
        "i.csv", "item_id,name\ni1,a\n", ColumnNotFound, ("'price'", "'name'"), 'item_columns = { value = "price" }', items=True
    ),
    "null item id": Case("i.csv", "item_id,title\ni1,a\n,b\n", BadValue, ("i.csv, column 'item_id', row 2",), items=True),
    "text value": Case("i.csv", "item_id,value\ni1,cheap\n", BadValue, ("column 'value', row 1", "'cheap'"), items=True),
    "infinite value": Case("i.csv", "item_id,value\ni1,inf\n", BadValue, ("column 'value', row 1", "infinite"), items=True),
    "list title": Case(
        "i.parquet", parquet(item_id=["i1"], title=[["a", "b"]]), BadValue, ("column 'title'", "list"), items=True
    ),
    "int items, string items": Case(
        "i.parquet", parquet(item_id=[1]), BadValue, ("i.parquet, column 'item_id'", "int64 item ids", "t.parquet"), items=True
    ),
}


def write(path: Path, content: object) -> None:
    if content is None:
        return
    if content == "dir":
        path.mkdir()
    elif isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(str(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "t").mkdir()
    source = pd.DataFrame({"user_id": ["u1"], "item_id": ["s1"], "timestamp": pd.to_datetime(["2024-05-01T00:00:00Z"])})
    source.to_parquet(tmp_path / "s.parquet")
    return tmp_path


def settings_for(folder: Path, case: Case):
    events = "t.parquet" if case.items else f"t/{case.file}" if case.content is None and "/" not in case.file else case.file
    lines = [f'events = "{events}"', case.toml]
    if case.items:
        pq.write_table(typed(), folder / "t.parquet")
        lines.append(f'items = "{case.file}"')
    write(folder / case.file, case.content)
    text = '[domains.source]\nname = "a"\nevents = "s.parquet"\n[domains.target]\nname = "b"\n' + "\n".join(lines)
    (folder / "scalr.toml").write_text(text)
    return load_settings(folder / "scalr.toml")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input_is_refused_whole(folder, case):
    settings = settings_for(folder, case)
    with pytest.raises(case.error) as caught:
        ingest(settings)
    message = str(caught.value)
    for part in case.says:
        assert part in message
    assert caught.value.next_step
    lake = Lake.open(settings)
    assert not any(lake.exists(table) for table in Table)
    assert not list(settings.home.glob("staging/*"))
    # Cells are looked at one by one, in the home; whether there are any is told before there is one.
    assert case.error in {BadValue, InputError, NoCommonUsers} or not settings.home.exists()


def test_the_future_is_let_in_where_the_settings_say_so(folder):
    text = HEAD + ROW + "u1,i1,2099-01-01T00:00:00Z\n"
    settings = settings_for(folder, Case("t.csv", text, EmptyInput, (), "ahead_days = 40000"))
    ingest(settings)
    times = Lake.open(settings).read(Table.TARGET_EVENTS)["event_timestamp"].to_pylist()
    assert [time.year for time in times] == [2024, 2099]


@pytest.mark.parametrize("name", ["null user", "naive csv", "truncated parquet"])
def test_a_good_lake_stays_as_it_was(folder, name):
    settings = settings_for(folder, Case("t.csv", HEAD + ROW, EmptyInput, ()))
    ingest(settings)
    lake = Lake.open(settings)
    versions = {table: lake.version(table) for table in Table}
    rows = lake.read(Table.TARGET_EVENTS)
    with pytest.raises(CASES[name].error):
        ingest(settings_for(folder, CASES[name]))
    assert {table: lake.version(table) for table in Table} == versions
    assert lake.read(Table.TARGET_EVENTS) == rows


@pytest.mark.parametrize(
    ("user", "item", "says"),
    [
        (["9"], ["x1"], ("int64", "table source_events", "as before, or start a new project home")),
        (["u1", "v"], ["x1", "x1"], ("'u1'", "int64")),
    ],
    ids=["typed strings", "more strings"],
)
def test_ids_of_another_type_than_before_are_refused(folder, user, item, says):
    first = pd.DataFrame({"user_id": [1], "item_id": ["x1"], "timestamp": pd.to_datetime(["2024-05-01T00:00:00Z"])})
    first.to_parquet(folder / "s.parquet")
    first.to_parquet(folder / "t.parquet")
    text = '[domains.source]\nname = "a"\nevents = "{}"\n[domains.target]\nname = "b"\nevents = "t.parquet"\n'
    (folder / "scalr.toml").write_text(text.format("s.parquet"))
    settings = load_settings(folder / "scalr.toml")
    ingest(settings)
    changed = pd.DataFrame({"user_id": user, "item_id": item, "timestamp": ["2024-05-02T00:00:00Z"] * len(user)})
    if len(user) == 1:
        changed.assign(timestamp=pd.to_datetime(changed["timestamp"])).to_parquet(folder / "s.parquet")
    else:
        changed.to_csv(folder / "s.csv", index=False)
        (folder / "scalr.toml").write_text(text.format("s.csv"))
        settings = load_settings(folder / "scalr.toml")
    with pytest.raises(BadValue) as caught:
        ingest(settings)
    for part in says:
        assert part in str(caught.value)
    assert Lake.open(settings).dataset(Table.SOURCE_EVENTS).count_rows() == 1


def test_one_bad_file_of_many_is_named(folder):
    (folder / "t" / "1.csv").write_text(HEAD + ROW)
    (folder / "t" / "2.csv").write_text(HEAD + ROW + "u1,i1,soon\n")
    settings = settings_for(folder, Case("t/*.csv", None, BadValue, ()))
    with pytest.raises(BadValue, match=r"t/2\.csv, column 'timestamp', row 2"):
        ingest(settings)
