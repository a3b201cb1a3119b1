"""The point-in-time join against an oracle that looks at every pair of rows."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples

from feast_delta import point_in_time, queries, spines

T0 = datetime(2024, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")
NAMES = itertools.count()
#: Every user (one has no rows, one is null) at every minute, some of them twice, and a time that is null.
SPINE = [*itertools.product([None, 0, 1, 2, 9], range(-1, 13)), *itertools.product([0, 1], [3, 3, 8]), (0, None)]


def at(minute: int | None) -> datetime | None:
    return None if minute is None else T0 + timedelta(minutes=minute)


def spine_from(first: int, rows):
    """The rows from a minute on: what lies before all of them is reduced on a way of its own."""
    return [(user, time) for user, time in rows if time is None or time >= first]


@st.composite
def cases(draw):
    """Few users and few minutes, so that ties, late rows and rows not yet known are common."""
    users = st.sampled_from([0, 1, 2])
    value = st.one_of(st.none(), st.integers(0, 3))
    row = st.tuples(users, st.integers(0, 8), st.one_of(st.none(), st.integers(-2, 7)), value)
    # The number of rows is drawn by itself: left alone, hypothesis draws mostly short lists, in which little can go wrong.
    count = draw(st.integers(0, 25))
    asked = draw(st.sampled_from([{None, 0, 1, 2, 9}, {None, 0, 1, 2, 9}, {1}, {0, 1}, {2, 9}]))
    return {
        "text": draw(st.booleans()),
        "rows": draw(st.lists(row, min_size=count, max_size=count)),
        "spine": [
            (user, time)
            for user, time in spine_from(draw(st.sampled_from([-1, -1, 4, 7])), draw(st.permutations(SPINE)))
            if user in asked
        ],
        "by_user": draw(st.booleans()),
        "ttl": draw(st.sampled_from([0, 0, 2, 5])),
        "known_by": draw(st.one_of(st.none(), st.integers(-1, 12))),
        "clock": draw(st.sampled_from(["created", "created", "event"])),
        "files": draw(st.integers(1, 3)),
        "narrow": draw(st.booleans()),
        "held": draw(st.booleans()),
        "categories": draw(st.booleans()),
        "block": draw(st.sampled_from([None, None, 1, 9])),
        "stream": draw(st.booleans()),
    }


def oracle(case) -> list[int | None]:
    """For each spine row the value that counts; -1 where no feature row is visible."""
    answers = []
    for user, time in case["spine"]:
        best = None
        for owner, event, delay, value in case["rows"]:
            created = event if delay is None else event + delay
            if user is None or time is None or owner != user or event > time:
                continue
            limit = time if case["clock"] == "created" else None
            limit = limit if case["known_by"] is None else case["known_by"]
            if limit is not None and created > limit:
                continue
            # Between rows with both clocks equal, the greatest value counts, and null is the greatest.
            rank = (event, created, value is None, value or 0)
            if best is None or rank > best[0]:
                best = (rank, event, value)
        stale = best is not None and case["ttl"] and best[1] < time - case["ttl"]
        answers.append(-1 if best is None or stale else best[2])
    return answers


class Empty:
    """A registry without on-demand views, which is all that a retrieval asks of it."""

    @staticmethod
    def list_on_demand_feature_views(*_args, **_kwargs):
        return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lake")


def feature_view(path, *, text: bool, ttl: int):
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.data_format import DeltaFormat
    from feast.types import Array, Int64, String

    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING if text else ValueType.INT64)
    source = FileSource(path=str(path), file_format=DeltaFormat(), timestamp_field="happened", created_timestamp_column="known")
    schema = [Field(name="user_id", dtype=String if text else Int64)]
    schema += [Field(name="value", dtype=Int64), Field(name="values", dtype=Array(Int64)), Field(name="there", dtype=Int64)]
    return FeatureView(name="view", entities=[user], ttl=timedelta(minutes=ttl), schema=schema, source=source)


def run_sql(sql: str, entity_df: pa.Table) -> pa.Table:
    """The result of a statement in a session of its own, which finds the spine in a variable of its name."""
    import duckdb

    from feast_delta.retrieval_job import normalize_schema

    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.sql(sql).to_arrow_table()
    return rows.cast(normalize_schema(rows.schema))


def write(path, case) -> None:
    """The rows in one to three commits: so that a tie can span files, or so that a file holds consecutive users."""
    from deltalake import DeltaTable, write_deltalake

    key = pa.string() if case["text"] else pa.int64()
    columns = {"user_id": key, "happened": STAMP, "known": STAMP}
    columns |= {"value": pa.int64(), "values": pa.list_(pa.int64()), "there": pa.int64()}
    schema = pa.schema(list(columns.items()))
    DeltaTable.create(str(path), schema=schema, mode="ignore")
    size = -(-len(case["rows"]) // case["files"])
    for part in range(case["files"]):
        rows = case["rows"][part :: case["files"]]
        if case.get("by_user"):
            rows = sorted(case["rows"], key=lambda row: row[0])[part * size : (part + 1) * size]
        columns = [
            [name(user, case) for user, *_ in rows],
            [at(event) for _, event, _, _ in rows],
            [None if delay is None else at(event + delay) for _, event, delay, _ in rows],
            [value for *_, value in rows],
            [[value, value] for *_, value in rows],
            [1] * len(rows),
        ]
        if rows:
            write_deltalake(str(path), pa.table(columns, schema=schema), mode="append")


def name(user, case):
    return f"u{user}" if case["text"] and user is not None else user


def ask(view, case, spine, columns=("value", "values", "there"), **options) -> pa.Table:
    return job_of(view, case, spine, columns, **options).to_arrow()


def job_of(view, case, spine, columns, **options):
    from feast.repo_config import RepoConfig

    from feast_delta import DeltaOfflineStore, DeltaOfflineStoreConfig

    clock = case.get("clock", "created")
    store = DeltaOfflineStoreConfig(threads=1, known_by=at(case["known_by"]), knowledge_time=clock, **options)
    config = RepoConfig(project="p", provider="local", registry="none.db", offline_store=store, online_store=None)
    references = [f"view:{column}" for column in columns]
    return DeltaOfflineStore.get_historical_features(config, [view], references, spine, Empty, "p", full_feature_names=True)


@given(case=cases())
@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_equals_the_oracle(folder, case):
    path = folder / f"table_{next(NAMES)}"
    write(path, case)
    key = pa.string() if case["text"] else pa.int64()
    spine = pa.table(
        {
            "user_id": pa.array([name(user, case) for user, _ in case["spine"]], key),
            "event_timestamp": pa.array([at(time) for _, time in case["spine"]], STAMP),
            "number": pa.array(range(len(case["spine"])), pa.int32()),
        }
    )
    if case["text"] and case["categories"]:
        spine = spine.set_column(0, "user_id", spine["user_id"].dictionary_encode())
    # Narrow features go through the join with their rows, and a list is looked up afterwards.
    columns = ("value", "there") if case["narrow"] else ("value", "values", "there")
    with pytest.MonkeyPatch.context() as patch:
        # What finds a row is held in the session where it lies in several files, unless there is too much of it.
        patch.setattr(point_in_time, "_HELD", point_in_time._HELD if case["held"] else 0)
        # A spine that does not fit in memory is joined block by block, and a stream is spilled first.
        if case["block"]:
            patch.setattr(spines, "_block_rows", lambda *_: case["block"])
        rows = spine.to_reader(max_chunksize=4) if case["stream"] else spine
        job = job_of(feature_view(path, text=case["text"], ttl=case["ttl"]), case, rows, columns)
        found = job.to_arrow()
        with job.stream() as batches:
            assert batches.read_all().equals(found), "a job can be read twice"
    if case["rows"]:
        assert run_sql(job.to_sql(), spine).equals(found), "the statement takes no shortcuts, and finds the same rows"

    # What had categories comes back as text.
    expected = spine.set_column(0, "user_id", spine["user_id"].cast(key))
    there = found.select(spine.column_names)
    assert there.set_column(0, "user_id", there["user_id"].cast(key)).equals(expected), "every row survives, in its order"
    values, there = (found[f"view__{column}"].to_pylist() for column in ("value", "there"))
    assert [value if seen else -1 for value, seen in zip(values, there, strict=True)] == oracle(case)
    if not case["narrow"]:
        lists = found["view__values"].to_pylist()
        assert lists == [[value, value] if seen else None for value, seen in zip(values, there, strict=True)]


@given(case=cases(), asked=st.lists(st.sampled_from([0, 1, 2, 9]), unique=True), end=st.integers(-1, 12))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_latest_rows_of_some_are_those_that_they_have_among_all(folder, case, asked, end):
    """Some are looked for in the newest files first."""
    path = folder / f"table_{next(NAMES)}"
    write(path, case)
    key = pa.string() if case["text"] else pa.int64()
    entities = pa.table({"user_id": pa.array([name(user, case) for user in asked], key)})
    source = feature_view(path, text=case["text"], ttl=0).batch_source
    whole, some = (latest(source, case, at(end), chosen) for chosen in ({}, {str(path): entities}))
    wanted = set(entities["user_id"].to_pylist())
    assert some == [row for row in whole if row["user_id"] in wanted]


def latest(source, case, end, entities):
    from feast.repo_config import RepoConfig

    from feast_delta import DeltaOfflineStore, DeltaOfflineStoreConfig

    store = DeltaOfflineStoreConfig(threads=1, known_by=at(case["known_by"]))
    store.entities = entities
    config = RepoConfig(project="p", provider="local", registry="none.db", offline_store=store, online_store=None)
    clocks = source.timestamp_field, source.created_timestamp_column
    job = DeltaOfflineStore.pull_latest_from_table_or_query(
        config, source, ["user_id"], ["value", "values"], *clocks, datetime(1970, 1, 1, tzinfo=UTC), end
    )
    return sorted(job.to_arrow().to_pylist(), key=lambda row: str(row["user_id"]))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("place", ["in_place", "copied"])
def test_only_files_and_rows_that_may_hold_the_spines_keys_are_read(folder, monkeypatch, text, place):
    """If each join of consecutive users opened all files, their number would grow with the square of the table."""
    path = folder / f"by_user_{place}_{text}"
    for user in range(6):
        write(path, {"text": text, "files": 1, "by_user": True, "rows": [(user, 1, None, user)]})
    opened, scan_delta = [], queries.scan_delta

    def counted(*args, **more):
        scan = scan_delta(*args, **more)
        opened.append((scan.files, args[0].sql(f"SELECT count(*) FROM {scan.relation}").fetchall()[0][0]))
        return scan

    monkeypatch.setattr(queries, "scan_delta", counted)
    if place == "copied":  # as from an object store
        monkeypatch.setattr("feast_delta.scan.duckdb_readable_files", lambda _: None)
    case = {"text": text, "known_by": None}
    for users, files in (([2, 3], 2), ([7, 9], 0)):
        key = pa.array([name(user, case) for user in users], pa.string() if text else pa.int64())
        spine = pa.table({"user_id": key, "event_timestamp": pa.array([at(5)] * 2, STAMP)})
        found = ask(feature_view(path, text=text, ttl=0), case, spine)
        assert found["view__value"].to_pylist() == ([2, 3] if files else [None, None])
        assert opened.pop() == (files if place == "in_place" else 0, files)
    assert not opened


def test_a_row_that_is_not_known_yet_hides_no_older_one(folder):
    path = folder / "hidden"
    case = {"text": False, "rows": [(1, 0, None, 10), (1, 5, 100, 20), (1, 2, 6, 30)], "files": 1, "ttl": 0, "known_by": None}
    write(path, case)
    times = [4, 6, 8, 104, 105]
    spine = pa.table({"user_id": [1] * 5, "event_timestamp": pa.array([at(time) for time in times], STAMP)})
    found = ask(feature_view(path, text=False, ttl=0), case, spine)
    assert found["view__value"].to_pylist() == [10, 10, 30, 30, 20]


def test_a_spine_of_few_users_and_one_of_many_agree(folder):
    """A small spine takes another way: rows of users that it does not name are left out first."""
    path = folder / "few"
    rows = [(user, event, delay, user * 10 + event) for user in range(40) for event in range(8) for delay in (None, 3)]
    case = {"text": True, "rows": rows, "files": 2, "ttl": 0, "known_by": None}
    write(path, case)
    view = feature_view(path, text=True, ttl=0)
    spine = pa.table(
        {
            "user_id": [f"u{user}" for user in range(40) for _ in range(9)],
            "event_timestamp": pa.array([at(time) for _ in range(40) for time in range(9)], STAMP),
        }
    )
    whole = ask(view, case, spine)
    assert spine.num_rows * 8 > len(rows)
    for start in range(0, spine.num_rows, 120):
        assert ask(view, case, spine.slice(start, 4)).equals(whole.slice(start, 4).combine_chunks())


@pytest.mark.parametrize("text", [True, False])
def test_what_lies_beyond_the_spines_entities_is_not_read(folder, text):
    """Histories lie by user: of a file of others, nothing but what it says of itself is read."""
    path = folder / f"beyond_{text}"
    rows = [(user, event, None, 10 * user + event) for user in (1, 2, 8, 9) for event in range(3)]
    case = {"text": text, "rows": [], "files": 1, "ttl": 0, "known_by": None}
    for few in (rows[:6], rows[6:]):
        before = set(path.glob("*.parquet"))
        write(path, case | {"rows": few})
    (other,) = set(path.glob("*.parquet")) - before
    damaged = bytearray(other.read_bytes())
    footer = int.from_bytes(damaged[-8:-4], "little") + 8
    damaged[4:-footer] = bytes(len(damaged) - footer - 4)
    other.write_bytes(damaged)
    spine = pa.table({"user_id": [name(1, case), name(2, case)], "event_timestamp": pa.array([at(1), at(9)], STAMP)})
    view = feature_view(path, text=text, ttl=0)
    for columns in (("value",), ("values",)):
        found = ask(view, case, spine, columns)
        assert found[f"view__{columns[0]}"].to_pylist() == ([11, 22] if columns == ("value",) else [[11, 11], [22, 22]])
    with pytest.raises(Exception, match=r"(?i)invalid data|parquet|corrupt"):
        ask(view, case, spine.set_column(0, "user_id", pa.array([name(1, case), name(9, case)])), ("value",))
