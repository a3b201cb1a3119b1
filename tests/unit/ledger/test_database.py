"""The database under the ledger: its schema and migrations, addresses that cannot be used, several processes at once."""

from __future__ import annotations

import sqlite3
import tarfile
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import OperationalError
from support.ledger_runs import make_spec, one
from support.small_project import in_processes

from scalr_prod.errors import LedgerError
from scalr_prod.ledger import Ledger, RunState
from scalr_prod.ledger.migrations import HEAD
from scalr_prod.ledger.orm_tables import Base

#: A home that version 0.1 made.
HOME = Path(__file__).resolve().parents[2] / "data" / "home_0_1.tar.gz"


def test_the_schema_is_the_models(ledger):
    with ledger.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == HEAD


def test_a_ledger_of_a_newer_package_is_refused(url):
    with Ledger(url, one()) as ledger, ledger.database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="its schema is 9999") as caught:
        Ledger(url, one())
    assert "upgrade scalr-prod" in caught.value.next_step


@pytest.mark.parametrize("schema", ["0001", "0003"])
def test_a_ledger_of_before_the_first_release_is_refused_and_stays_as_it_is(url, schema):
    with Ledger(url, one()) as ledger, ledger.database.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{schema}'"))
    for _ in range(2):
        with pytest.raises(LedgerError, match=f"its schema {schema} is of before version 0.1.0") as caught:
            Ledger(url, one())
    assert "open it once with scalr-prod 0.1.0" in caught.value.next_step


def test_a_ledger_of_the_first_release_gets_the_schema_of_a_new_one(tmp_path):
    with tarfile.open(HOME) as archive:
        archive.extract("home/ledger.db", tmp_path, filter="data")
    home = tmp_path / "home"
    with Ledger(f"sqlite:///{home / 'ledger.db'}", one()) as ledger:
        test_the_schema_is_the_models(ledger)
        with ledger.database.engine.connect() as connection:
            assert connection.scalar(sa.text("SELECT count(*) FROM runs")) == 1


def test_a_ledger_of_the_first_schema_gets_the_later_tables(url):
    with Ledger(url, one()) as ledger:
        run_id = ledger.runs.begin(make_spec()).run_id
        with ledger.database.engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE dataset_uses"))
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '0004'"))
    with Ledger(url, one()) as ledger:
        test_the_schema_is_the_models(ledger)
        assert ledger.runs.get(run_id).state is RunState.PLANNED


def test_a_table_of_somebody_else_is_not_taken_for_the_ledgers(url):
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg") if url.startswith("postgresql") else url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE runs (theirs INTEGER)"))
    with pytest.raises(LedgerError, match="runs"):
        Ledger(url, one())
    assert sa.inspect(engine).get_table_names() == ["runs"]
    engine.dispose()


def test_opening_again_keeps_what_is_there(url):
    with Ledger(url, one()) as ledger:
        run_id = ledger.runs.begin(make_spec()).run_id
    with Ledger(url, one()) as ledger:
        assert ledger.runs.get(run_id).state is RunState.PLANNED


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("not a url", "invalid database URL"),
        ("mysql://root:secret@host/db", "cannot be kept in mysql"),
        ("sqlite://", "would be lost"),
        ("nosuch://x:secret@y", "cannot be kept in nosuch"),
    ],
)
def test_an_impossible_address_is_refused_without_repeating_its_password(url, says):
    with pytest.raises(LedgerError, match=says) as caught:
        Ledger(url, one())
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_answer_is_told_without_its_password():
    with pytest.raises(LedgerError, match="cannot be reached") as caught:
        Ledger("postgresql://someone:secret@127.0.0.1:1/none", one())
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError):
        Ledger(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}", one())


def test_a_file_that_is_no_database_is_told(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_text("this is no database, but long enough to be looked at" * 100)
    with pytest.raises(LedgerError):
        Ledger(f"sqlite:///{path}", one())


def _begin(url: str, seeds: range, barrier: object) -> int:
    barrier.wait()
    with Ledger(url, one()) as ledger:
        return sum(ledger.runs.begin(make_spec(seed=seed)).created for seed in seeds)


@pytest.mark.long
def test_processes_that_open_and_write_a_new_ledger_at_once_lose_nothing(url):
    created = in_processes(_begin, [(url, range(10))] * 3)
    assert sum(created) == 10, "each run was created by exactly one of them"
    with Ledger(url, one()) as ledger:
        assert len(ledger.runs.find()) == 10


def test_a_writer_waits_for_another_and_readers_do_not(url):
    with Ledger(url, one()) as ledger:
        ledger.runs.begin(make_spec())
        path = url.removeprefix("sqlite:///")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert len(ledger.runs.find()) == 1
        assert time.monotonic() - started < 5
        done = threading.Thread(target=ledger.runs.begin, args=(make_spec(seed=1),))
        done.start()
        time.sleep(0.3)
        assert done.is_alive()
        other.execute("COMMIT")
        other.close()
        done.join(20)
        assert len(ledger.runs.find()) == 2


def test_an_error_below_is_told_in_our_words(ledger, monkeypatch):
    def failing(*_args, **_options):
        raise OperationalError("SELECT secret", {}, Exception("disk I/O error"))

    monkeypatch.setattr("sqlalchemy.orm.Session.scalars", failing)
    with pytest.raises(LedgerError, match="cannot be reached: disk I/O error") as caught:
        ledger.runs.find()
    assert "SELECT" not in str(caught.value)
