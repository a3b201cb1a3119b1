"""What is said of a database that cannot be used: clear, and without a secret."""

from __future__ import annotations

import pytest

from scalr_prod.errors import UnreadableInput
from scalr_prod.ingest.column_mapping import ColumnSelection
from scalr_prod.ingest.sources.sql import read_query


def said(url: str) -> str:
    with pytest.raises(UnreadableInput) as caught:
        next(read_query(url, "SELECT 1 AS user_id", ColumnSelection(("user_id",), "domains.source.columns")))
    return str(caught.value)


@pytest.mark.parametrize("password", ["p", "o", "port", "127", "server"])
def test_a_short_password_does_not_eat_the_message(password):
    text = said(f"postgresql+psycopg://joe:{password}@127.0.0.1:1/shop")
    for word in ("connection", "failed"):
        assert word in text
    if len(password) == 1:
        assert "port" in text


@pytest.mark.parametrize(
    ("password", "value"), [("p", "p"), ("hunter22", "bogus_hunter22"), ("a%40b", "a%40b"), ("hunter22", "xhunter22x")]
)
def test_a_secret_that_the_driver_repeats_is_masked(password, value):
    text = said(f"postgresql+psycopg://joe:{password}@127.0.0.1:1/shop?sslmode={value}")
    assert "invalid sslmode value" in text
    assert "***" in text
    assert "hunter22" not in text
    assert "a@b" not in text
    assert '"p"' not in text


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("snowflake://joe:s3cr%40t@account/db", "snowflake-sqlalchemy"),
        ("bigquery://project/dataset", "sqlalchemy-bigquery"),
        ("redshift+redshift_connector://joe:s3cr%40t@host/db", "sqlalchemy-redshift"),
        ("nonsense://joe:s3cr%40t@host/db", "nonsense"),
    ],
)
def test_a_driver_that_is_missing_is_named(url, package):
    text = said(url)
    assert "not installed" in text
    assert package in text
    assert "s3cr" not in text


def test_what_is_no_url_is_called_so():
    text = said("s3cr@t")
    assert "not a SQLAlchemy URL" in text
    assert "s3cr" not in text


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_postgresqls_driver_is_the_one_that_the_package_installs(scheme):
    """SQLAlchemy's own default is psycopg2, which no extra brings."""
    text = said(f"{scheme}://joe:secret@127.0.0.1:1/shop")
    assert "the query failed" in text
    assert "psycopg2" not in text
    assert "secret" not in text
