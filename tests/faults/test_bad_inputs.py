"""Hostile and broken input, all of it: one clear error each, no traceback, and not a byte of the project changed."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from ingest.test_bad_input import HEAD, typed, write
from support.bad_inputs import COMMANDS, DOMAINS, FILES, LOGS, REQUESTS, SETTINGS, SPINES, SQL, Case, tensors
from support.fault_harness import files_of
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ScalrError

#: Three hundred commands on bad input; unit/ingest/test_bad_input.py has the same logs, one call each.
pytestmark = pytest.mark.long

#: A hostile input must not come back as a hostile message.
LONGEST_MESSAGE = 30_000


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """The scalr.toml of a project that has ingested two good logs; its home must stay as it is."""
    from scalr_prod.features import apply_feature_repo
    from scalr_prod.histories import build_histories
    from scalr_prod.ingest import ingest
    from scalr_prod.ledger import Ledger

    folder = tmp_path_factory.mktemp("good")
    source = pd.DataFrame({"user_id": ["u1"], "item_id": ["s1"], "timestamp": pd.to_datetime(["2024-05-01T00:00:00Z"])})
    source.to_parquet(folder / "s.parquet")
    pq.write_table(typed(), folder / "t.parquet")
    (folder / "scalr.toml").write_text(DOMAINS)
    settings = load_settings(folder / "scalr.toml")
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    Ledger.open(settings).close()
    return folder / "scalr.toml"


@pytest.fixture
def unchanged(good):
    home = good.parent / ".scalr"
    before = files_of(home)
    yield home
    assert files_of(home) == before


@pytest.fixture
def scalr(unchanged):
    """Run a command in this process; it must end in one clear error."""

    def call(*arguments: str, code: int = 1) -> str:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == code, result.output[:2000]
        assert "Traceback" not in result.output
        assert len(result.output) < LONGEST_MESSAGE
        if code == 1:
            error = json.loads(result.stdout.splitlines()[0])
            assert error["found"]
            assert error["next_step"]
            assert "hunter2" not in result.output
        return result.output

    return call


def project(folder: Path, home: Path, case: Case) -> Path:
    """A scalr.toml with the bad log (or item file) as its target, and the good project's home."""
    events = "t.parquet" if case.items else case.file
    (folder / "t").mkdir()
    write(folder / "s.parquet", typed())
    if case.items:
        write(folder / "t.parquet", typed())
    if case.content is not None:
        write(folder / case.file, case.content)
    items = f'items = "{case.file}"\n' if case.items else ""
    path = folder / "scalr.toml"
    path.write_text(
        f'[project]\nhome = "{home}"\n[domains.source]\nname = "a"\nevents = "s.parquet"\n'
        f'[domains.target]\nname = "b"\nevents = "{events}"\n{items}{case.toml}\n'
    )
    return path


# In a home that has the good logs, users in common are found in the lake.
@pytest.mark.parametrize("name", [*(name for name in LOGS if name != "no common users"), *FILES])
def test_logs(tmp_path, unchanged, scalr, name):
    case = (LOGS | FILES)[name]
    if case.content is None and name == "no such file":
        case = Case(f"t/{case.file}", None, case.error, case.says)
    output = scalr("ingest", "--config", str(project(tmp_path, unchanged, case)))
    # Here the lake is asked before the source log is.
    same = {"int users, string users": ("table source_events",), "int items, string items": ("table target_events",)}
    for part in same.get(name, case.says):
        assert json.dumps(part)[1:-1] in output or part in output, output[:2000]
    assert not list((unchanged / "staging").iterdir())


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(tmp_path, scalr, name):
    content = SETTINGS[name]
    path = tmp_path / "scalr.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert '"SettingsError"' in scalr("runs", "list", "--config", str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["scalr.toml"]


@pytest.mark.parametrize("path", ["absent.toml", ".", "/dev/null", "/etc/hostname", "x" * 250])
def test_settings_that_are_no_file(tmp_path, scalr, path):
    scalr("runs", "list", "--config", str(tmp_path / path) if "/" not in path else path)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_lines(good, scalr, name):
    arguments, code = COMMANDS[name]
    if arguments[-1] == "--config":
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, "Traceback" in result.output) == (code, False)
    else:
        scalr(*arguments, "--config", str(good), code=code)


@pytest.mark.parametrize("name", SQL)
def test_sql(tmp_path, unchanged, scalr, name):
    url, query = SQL[name]
    log = tmp_path / "log.db"
    with sqlite3.connect(log) as connection:
        connection.execute("CREATE TABLE log (user_id TEXT, item_id TEXT, timestamp TEXT)")
        connection.execute("INSERT INTO log VALUES ('u1', 'i1', '2024-05-01T12:00:00Z')")
    connection.close()
    rows = log.read_bytes()
    write(tmp_path / "s.parquet", typed())
    path = tmp_path / "scalr.toml"
    path.write_text(
        f'[project]\nhome = "{unchanged}"\n[domains.source]\nname = "a"\nevents = "s.parquet"\n[domains.target]\nname = "b"\n'
        f"url = {json.dumps(url.format(log=log, here=tmp_path))}\nquery = {json.dumps(query)}\n"
    )
    scalr("ingest", "--config", str(path))
    assert log.read_bytes() == rows, "a query of a log never changes it"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "not a url",
        "mysql://root:hunter2@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////dev/null/ledger.db",
        "sqlite:////etc/hostname",
        "postgresql://u:hunter2@127.0.0.1:9/db",
        "postgresql://u:hunter2@host:port/db",
        "nosuch://u:hunter2@host/db",
    ],
)
def test_ledgers(tmp_path, unchanged, scalr, url, monkeypatch):
    path = tmp_path / "scalr.toml"
    path.write_text(DOMAINS + f'[project]\nhome = "{unchanged}"\n[ledger]\nurl = {json.dumps(url)}\n')
    if url:
        scalr("runs", "list", "--config", str(path))
    else:
        monkeypatch.setenv("SCALR_LEDGER__URL", " ")
        scalr("runs", "list", "--config", str(path))


@pytest.mark.parametrize("name", SPINES)
def test_spines(good, unchanged, name):
    from scalr_prod.features import join_point_in_time, open_feature_store

    spine, features = SPINES[name]
    with pytest.raises(ScalrError) as caught:
        join_point_in_time(open_feature_store(load_settings(good)), spine, features)
    assert caught.value.next_step
    assert len(str(caught.value)) < LONGEST_MESSAGE


@pytest.fixture(scope="module")
def door(trained_home):
    """The server's side of a request, with a trained translator."""
    from scalr_prod.serving.client.wire import ModelIdentity, answer_requests
    from scalr_prod.translator import load_version
    from scalr_prod.translator.module import TranslatorModule

    version = load_version(load_settings(trained_home), 1)
    module = TranslatorModule.load(version.path)
    identity = ModelIdentity(1, 7, version.manifest["n_target"])
    return lambda *requests: answer_requests(module, identity, requests)


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUESTS)
def test_requests(door, name):
    before, bad, after = door(tensors(), REQUESTS[name], tensors())
    assert isinstance(bad, ValueError), "an error, not an answer"
    assert str(bad)
    assert len(str(bad)) < LONGEST_MESSAGE
    (alone,) = door(tensors())
    for neighbour in (before, after):
        assert all((neighbour[output] == alone[output]).all() for output in ("items", "model_version"))


def test_the_table_is_long_enough():
    assert sum(map(len, (LOGS, FILES, SETTINGS, COMMANDS, SQL, REQUESTS, SPINES))) >= 250
    assert HEAD
