"""`scalr forget`: ids are the log's, to the letter."""

from __future__ import annotations

import pandas as pd
import pytest
from typer.testing import CliRunner

from scalr_prod.cli import app
from scalr_prod.contracts import Table
from scalr_prod.errors import ForgettingError
from scalr_prod.forgetting import forget
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.settings import load_settings


@pytest.fixture
def settings(tmp_path):
    """A lake in which 'ada' and 'ada ' are two people, and ' bob' has no namesake."""
    times = pd.date_range("2024-01-01", periods=4, tz="UTC").as_unit("us")
    for name in ("source", "target"):
        rows = {"user_id": ["ada", "ada ", " bob", "cleo"], "item_id": ["a", "b", "c", "d"], "timestamp": times}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "scalr.toml").write_text(
        '[project]\nname = "blanks"\n[domains.source]\nname = "shop"\nevents = "source.parquet"\n'
        '[domains.target]\nname = "films"\nevents = "target.parquet"\n'
    )
    found = load_settings(tmp_path / "scalr.toml")
    ingest(found)
    return found


def users(settings) -> set[str]:
    return set(Lake.open(settings).read(Table.SOURCE_EVENTS).column("user_id").to_pylist())


def test_an_id_with_blanks_is_its_own(settings):
    assert forget(settings, ["ada "]).removed["source_events"] == 1
    assert users(settings) == {"ada", " bob", "cleo"}
    again = forget(settings, ["ada "])  # the lake has no such user any more, and yet the id is known
    assert again.known == 1
    assert users(settings) == {"ada", " bob", "cleo"}


def test_an_id_with_blanks_that_nobody_has_is_refused(settings):
    """In place of success, or of another user's removal."""
    with pytest.raises(ForgettingError, match=r"no such user: 'cleo ' \(1 in all\)"):
        forget(settings, ["cleo ", " bob"])
    assert users(settings) == {"ada", "ada ", " bob", "cleo"}


def test_a_file_of_ids_is_taken_to_the_letter(settings, tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"ada \r\n\r\n   \r\n bob\r\n")
    done = CliRunner().invoke(
        app, ["forget", "--config", str(tmp_path / "scalr.toml"), "--file", str(tmp_path / "ids.txt"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert users(settings) == {"ada", "cleo"}
