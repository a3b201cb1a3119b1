"""Logs that come from a query, on a real SQLite and a real PostgreSQL."""

from __future__ import annotations

import sqlite3
import uuid
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from scalr_prod.config.settings import Settings
from scalr_prod.errors import BadValue, ColumnNotFound, EmptyInput, UnreadableInput
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, id_type_of

START = datetime(2024, 5, 1, tzinfo=UTC)
USERS = 50
ROWS = 45_000  # more than two of the batches that a cursor gives


@pytest.fixture
def sqlite(tmp_path):
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE orders (customer INTEGER, sku TEXT, at TEXT, known TEXT, amount REAL)")
        rows = ((n % USERS, f"s{n % 7}", f"2024-05-0{n % 9 + 1} 10:00:00", "2024-05-20 00:00:00", n % 4) for n in range(1000))
        db.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", rows)
    db.close()
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def shop(postgres):
    database = postgres.database("shop")
    engine = sa.create_engine(database)
    with engine.connect().execution_options(no_parameters=True) as connection, connection.begin():
        connection.exec_driver_sql(
            "CREATE TABLE clicks AS SELECT (n % 50)::int AS customer, n % 11 AS item, "
            "timestamptz '2024-05-01 00:00:00+00' + n * interval '1 minute' AS at, 1.5::numeric(6, 2) AS amount, "
            f"timestamp '2024-05-01 00:00:00' AS local, md5(n::text)::uuid AS session FROM generate_series(0, {ROWS - 1}) AS n"
        )
        connection.exec_driver_sql("CREATE TABLE empty AS SELECT * FROM clicks LIMIT 0")
    engine.dispose()
    return database.render_as_string(hide_password=False)


def project(folder, source: dict, target: dict) -> Settings:
    domains = {"source": {"name": "a", **source}, "target": {"name": "b", **target}}
    return Settings(domains=domains, base=folder)


def orders(url: str, **more) -> dict:
    mapped = {"user": "customer", "item": "sku", "timestamp": "at", "created": "known", "weight": "amount"}
    return {"url": url, "query": "SELECT * FROM orders", "columns": mapped, "timezone": "UTC", **more}


def clicks(url: str, query: str = "SELECT * FROM clicks", **columns) -> dict:
    return {"url": url, "query": query, "columns": {"user": "customer", "item": "item", "timestamp": "at", **columns}}


def test_both_databases_arrive_whole(tmp_path, sqlite, shop):
    settings = project(tmp_path, orders(sqlite), clicks(shop, weight="amount"))
    report = ingest(settings)
    assert report.common_users == USERS
    assert [report.domains[domain].rows for domain in ("source", "target")] == [1000, ROWS]
    lake = Lake.open(settings)
    found = lake.read(Table.TARGET_EVENTS).to_pandas()
    assert id_type_of(lake.schema(Table.TARGET_EVENTS), "item_id") == "int64"
    assert id_type_of(lake.schema(Table.SOURCE_EVENTS), "item_id") == "string"
    assert found["event_timestamp"].min() == START
    assert found["event_timestamp"].is_unique
    assert (found["weight"] == 1.5).all()
    ours = lake.read(Table.SOURCE_EVENTS).to_pylist()
    assert {row["created_timestamp"] for row in ours} == {datetime(2024, 5, 20, tzinfo=UTC)}
    assert sum(row["weight"] for row in ours) == sum(n % 4 for n in range(1000))
    assert [part.rows_added for part in ingest(settings).domains.values()] == [0, 0]


def test_uuids_and_a_query_with_signs_of_its_own(tmp_path, sqlite, shop):
    query = "SELECT session AS item, 'x:y %' AS label, customer, at FROM clicks WHERE customer::text LIKE '4%'"
    settings = project(tmp_path, orders(sqlite), clicks(shop, query))
    ingest(settings)
    item = Lake.open(settings).read(Table.TARGET_EVENTS)["item_id"][0].as_py()
    assert str(uuid.UUID(item)) == item


def test_a_query_that_changes_nothing_but_the_order_adds_nothing(tmp_path, sqlite, shop):
    ingest(project(tmp_path, orders(sqlite), clicks(shop)))
    again = project(tmp_path, orders(sqlite), clicks(shop, "SELECT * FROM clicks ORDER BY random()"))
    assert ingest(again).domains["target"].rows_added == 0


@pytest.mark.parametrize(
    ("query", "columns", "error", "says"),
    [
        ("SELECT * FROM nowhere", {}, UnreadableInput, ("postgresql://", "nowhere", "does not exist")),
        ("SELECT FROM WHERE", {}, UnreadableInput, ("syntax error",)),
        ("SELECT * FROM empty", {}, EmptyInput, ("the query of [domains.target]", "has no rows")),
        ("SELECT customer, at FROM clicks", {}, ColumnNotFound, ("'item'", "there are: 'customer', 'at'")),
        ("SELECT *, item AS item FROM clicks", {}, BadValue, ("'item'", "2 times")),
        ("SELECT * FROM clicks", {"timestamp": "local"}, BadValue, ("'local', row 1", "naive", "[domains.target] timezone")),
        (
            "SELECT CASE WHEN item < 10 THEN customer END AS customer, item, at FROM clicks ORDER BY at",
            {},
            BadValue,
            ("'customer', row 11", f"{sum(n % 11 == 10 for n in range(ROWS))} null or empty ids"),
        ),
        (
            "SELECT customer, item, CASE WHEN customer = 7 THEN 1 / 0 ELSE 1 END, at FROM clicks",
            {},
            UnreadableInput,
            ("division",),
        ),
    ],
    ids=["no table", "syntax", "no rows", "no column", "column twice", "naive", "null ids", "fails on the way"],
)
def test_what_a_database_cannot_give_is_told(tmp_path, sqlite, shop, query, columns, error, says):
    settings = project(tmp_path, orders(sqlite), clicks(shop, query, **columns))
    with pytest.raises(error) as caught:
        ingest(settings)
    for part in says:
        assert part in str(caught.value)
    assert caught.value.next_step
    assert not Lake.open(settings).exists(Table.SOURCE_EVENTS)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql+psycopg://joe:s3cr%40t@127.0.0.1:1/shop", "postgresql://127.0.0.1:1/shop"),
        ("sqlite:////no/such/folder/shop.db", "no such file"),
        ("nonsense://joe:s3cr%40t@host/db", "SQLAlchemy URL"),
        ("s3cr@t", "SQLAlchemy URL"),
    ],
    ids=["nothing listens", "no file", "no such dialect", "no url"],
)
def test_a_database_that_cannot_be_reached_is_told_without_its_password(tmp_path, sqlite, url, says):
    settings = project(tmp_path, orders(sqlite), {"url": url, "query": "SELECT 1 AS user_id, 2 AS item_id, 3 AS timestamp"})
    with pytest.raises(UnreadableInput) as caught:
        ingest(settings)
    assert says in str(caught.value)
    shown = f"{caught.value} {caught.value.__cause__} {settings!r}"
    assert "s3cr" not in shown
