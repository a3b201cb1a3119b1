"""Promises of SECURITY.md that can be read off the code, or off what a run leaves behind."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

import pytest
import typer
from support.warm import run

import scalr_prod
from scalr_prod.apps.cli import app

PACKAGE = Path(scalr_prod.__file__).parent
ROOT = PACKAGE.parent
FOLDERS = (PACKAGE, ROOT / "packages", ROOT / "triton_models", ROOT / "feature_repo")
SOURCES = [path for folder in FOLDERS for path in folder.rglob("*.py")]

#: Modules and functions that run code they are given, or read pickles.
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.jit.load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.load",
}


#: The source of an estimator of another package; see unit/translator/test_plugins for when it may run.
CARRIED = (PACKAGE / "translator" / "estimators" / "bundled_source.py", "exec")
#: What workers of a training read: the driver tells them the checksum; unit/translator/test_dask_pool changes such a file.
CHECKED = PACKAGE / "translator" / "object_files.py"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_nothing_is_unpickled_or_evaluated():
    for path in SOURCES:
        if path == CHECKED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & LOADERS, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in LOADERS, path
            if isinstance(node, ast.Call):
                assert dotted(node.func) not in CALLS or (path, dotted(node.func)) == CARRIED or without_pickle(node), path


def without_pickle(call):
    """Whether it is numpy's reader, told to refuse pickled objects."""
    told = {keyword.arg: keyword.value for keyword in call.keywords}
    return dotted(call.func) == "np.load" and ast.unparse(told.get("allow_pickle", ast.Constant(None))) == "False"


def test_a_model_that_is_a_pickle_is_refused(tmp_path):
    """A file that would run code when unpickled is not even opened as a pickle."""
    import hashlib
    import json
    import pickle

    from scalr_prod.errors import ScalrError
    from scalr_prod.translator.module import TranslatorModule

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "translator.safetensors").write_bytes(pickle.dumps(Bomb()))
    sha256 = hashlib.sha256((tmp_path / "translator.safetensors").read_bytes()).hexdigest()
    manifest = {"version": 1, "sha256": sha256, "trained_until": "2024-01-01T00:00:00+00:00", "folds": 2, "n_target": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ScalrError):
        TranslatorModule.load(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_the_ledger_makes_no_sql_of_text():
    """Other rooms read files in DuckDB with names of their own in the text; the ledger has no reason to."""
    for path in (PACKAGE / "ledger").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                assert not re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE|DROP)\b", text), path


#: Secrets in user info, query and options, each at an address where nothing listens.
UNREACHABLE = {
    "SCALR_LEDGER__URL": "postgresql://PLANTED-user:PLANTED-ledger@127.0.0.1:9/ledger?password=PLANTED-ledger-query&sslpassword=PLANTED-tls",
    "SCALR_FEAST__REGISTRY": "postgresql://feast:PLANTED-registry@127.0.0.1:9/registry?sslpassword=PLANTED-registry-query",
    "SCALR_FEAST__REDIS": "127.0.0.1:9,password=PLANTED-redis",
    "SCALR_PROJECT__STORAGE_OPTIONS": '{"AWS_SECRET_ACCESS_KEY": "PLANTED-lake"}',
    "SCALR_DOMAINS__SOURCE__URL": "postgresql+psycopg://log:PLANTED-log@127.0.0.1:9/log?sslpassword=PLANTED-query",
    "SCALR_DOMAINS__TARGET__STORAGE_OPTIONS": '{"key": "PLANTED-key", "secret": "PLANTED-target"}',
    "SCALR_SERVING__HEADER": "scalr=PLANTED-header",
    "SCALR_METRICS__PUSH": "http://push:PLANTED-push@127.0.0.1:9/?token=PLANTED-push-query",
    "SCALR_LINEAGE__URL": "http://lineage:PLANTED-lineage@127.0.0.1:9/?key=PLANTED-lineage-query",
    "SCALR_LINEAGE__API_KEY": "PLANTED-api-key",
}
#: The ledger is local, so that commands go on to the other addresses: a registry, Redis, and signed URLs of logs.
LOCAL_LEDGER = {
    name: value for name, value in UNREACHABLE.items() if name not in {"SCALR_LEDGER__URL", "SCALR_DOMAINS__SOURCE__URL"}
}
SIGNED = 'events = "http://log:PLANTED-log@127.0.0.1:9/s.parquet?signature=PLANTED-signature"'
OF_SQL = 'query = "SELECT * FROM log"'
OF_FILES = 'events = "{folder}/s.parquet"'
TOML = """
[domains.source]
name = "a"
{source}
[domains.target]
name = "b"
events = "{folder}/t.parquet"
[feast]
online_store = "redis"
[serving]
url = "127.0.0.1:9"
deadline_s = 1
"""
RUN = "run_0123456789abcdef"
#: Every command but those in UNTRIED.
COMMANDS = [
    "init --yes --force --source postgresql+psycopg://log:PLANTED-log@127.0.0.1:9/log?sslpassword=PLANTED-query --target t.parquet",
    "init --yes --force --source http://log:PLANTED-log@127.0.0.1:9/s.parquet?signature=PLANTED-signature --target t.parquet",
    "scout --force --log a=postgresql+psycopg://log:PLANTED-log@127.0.0.1:9/log?sslpassword=PLANTED-query --log b=t.parquet",
    "scout --force --log a=http://log:PLANTED-log@127.0.0.1:9/s.parquet?signature=PLANTED-signature",
    "ingest",
    "run",
    "run --dry-run",
    "histories",
    "translator train",
    "translator list",
    "translator promote",
    "translator rollback",
    "translator evaluate",
    "triton status",
    "triton start",
    "triton stop",
    "serving install --dry-run",
    "generate",
    f"validate {RUN}",
    "evaluate --quick",
    "runs list",
    f"runs show {RUN}",
    f"runs resume {RUN}",
    f"runs rollback {RUN}",
    f"publish {RUN}",
    "publication disable",
    "publication enable",
    f"publication widen {RUN}",
    f"publication withdraw {RUN}",
    "dataset build",
    "dataset export rows.csv",
    "dataset register-model ranker 1",
    "dataset models",
    "feast export view.py",
    "quality check rows.csv",
    "quality export-contract source contract.yaml",
    "explain 0123456789abcdef",
    "experiment",
    "experiment power --holdout 0.1",
    "forget u1",
    "maintain",
    "doctor",
    "doctor --deep",
    "status",
    "config show",
    "config show --named",
    "report",
    "privacy",
]
#: They wait for requests, read a call of the scheduler's, and take no settings.
UNTRIED = {"ui", "task", "quality init-suite", "quality import-contract", "feast template"}


def command_names(group, *names):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from command_names(command, *names, name)
        else:
            yield " ".join([*names, name])


def test_secrets_are_looked_for_in_the_output_of_every_command():
    names = set(command_names(typer.main.get_command(app)))
    tried = {name for name in names if any(f"{command} ".startswith(f"{name} ") for command in COMMANDS)}
    assert names - tried == UNTRIED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "source", "lake", "failing"),
    [
        pytest.param(UNREACHABLE, OF_SQL, "", 9, id="nothing can be reached", marks=pytest.mark.long),
        pytest.param(LOCAL_LEDGER, OF_FILES, "", 5, id="local ledger", marks=pytest.mark.long),
        pytest.param(LOCAL_LEDGER, SIGNED, "s3://bucket/lake", 5, id="signed URL", marks=pytest.mark.long),
    ],
)
def test_planted_secrets_are_nowhere(tmp_path, planted, source, lake, failing):
    """Most commands fail, each at another place that knows a secret: none is printed, logged or written down."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("s", "t"):
        times = pa.array([1_700_000_000, 1_700_100_000], pa.timestamp("s", "UTC"))
        pq.write_table(
            pa.table({"user_id": ["u1", "u2"], "item_id": [name, name], "timestamp": times}), tmp_path / f"{name}.parquet"
        )
    text = TOML.format(source=source.format(folder=tmp_path), folder=tmp_path)
    (tmp_path / "scalr.toml").write_text(text + (f'[project]\nlake = "{lake}"\n' if lake else ""))
    program = (
        "import logging, sys\nfrom typer.testing import CliRunner\nfrom scalr_prod.apps.cli import app\n"
        "logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n"
        "logging.getLogger('fsspec').setLevel(logging.INFO)  # told to, it logs the URLs that it asks for\n"
        "for words in sys.argv[2:]:\n"
        "    for json in ([], ['--json']):\n"
        "        done = CliRunner().invoke(app, [*words.split(), '--config', sys.argv[1], *json])\n"
        "        print(words.split()[:2], done.exit_code, done.output, repr(done.exception))\n"
        "from scalr_prod.config.settings import load_settings\nprint(repr(load_settings(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "scalr.toml", *COMMANDS]
    done = run(command, cwd=tmp_path, env={**os.environ, **planted}, check=True)
    said = done.stdout + done.stderr
    assert said.count("SystemExit(1)") >= 2 * failing, said[-3000:]
    assert not re.findall(".*PLANTED.*", said)
    assert "SystemExit(2)" not in said, "each command is used as it is meant to be"
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "scalr.toml"]
    assert not [path for path in files if b"PLANTED" in path.read_bytes()]


def test_servers_are_on_loopback():
    """What the package starts, and what its compose file starts, can be reached from this machine alone."""
    import yaml

    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for path in PACKAGE.rglob("*.py"):
        assert "0.0.0.0" not in path.read_text(encoding="utf-8"), path  # noqa: S104 - looked for, not bound to


def test_the_container_keeps_triton_s_control_to_itself():
    """As the local server does; and nothing of HTTP but its health is open, from inside of the container alone."""
    from scalr_prod.serving.client.security import CONTROL_PROTOCOLS

    command = (ROOT / "deploy" / "triton.Dockerfile").read_text().partition("\nCMD")[2]
    assert f"--grpc-restricted-protocol={','.join(CONTROL_PROTOCOLS)}:scalr=${{SCALR_TRITON_SECRET:?}}" in command
    assert "--http-address=127.0.0.1" in command
    open_to_all = {"health", "metadata", "inference", "model-config", *CONTROL_PROTOCOLS}
    restricted = re.search(r"--http-restricted-api=([a-z,-]+):scalr=", command)
    assert open_to_all - set(restricted[1].split(",")) == {"health"}


def test_every_package_is_pinned():
    for path in (ROOT / "constraints").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert lines
        assert all(re.match(r"^[A-Za-z0-9_.\[\]-]+==[^=\s]+", line) for line in lines), path
