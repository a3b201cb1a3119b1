"""Through the commands: a model is registered, its user forgotten, its retraining due, then done; on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from support.erasure_project import TEXT, gone, make
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def test_a_model_on_a_forgotten_users_rows_is_due_until_it_is_retrained(database, request, filled, tmp_path):
    if database == "sqlite":
        shutil.copytree(filled[0].parent, tmp_path / "logs")
        config = tmp_path / "logs" / "scalr.toml"
    else:
        url = request.getfixturevalue("url")
        config, _ = make(tmp_path / "logs", TEXT, f'[ledger]\nurl = "{url}"\n')
    config.write_text(config.read_text() + '[lineage]\nfile = "lineage.jsonl"\n')
    settings = load_settings(config)

    def scalr(*arguments, code=0):
        done = CliRunner().invoke(app, [*arguments, "--config", str(config), "--json"])
        assert done.exit_code == code, done.output
        assert TEXT not in done.output
        return json.loads(done.stdout)

    registered = scalr("dataset", "register-model", "ranker", "2024-05")
    assert (registered["dataset_version"], registered["created"]) == (1, True)
    assert scalr("dataset", "register-model", "ranker", "2024-05", "--version", "1")["created"] is False
    assert (
        "has no version 7; there are 1" in scalr("dataset", "register-model", "ranker", "1", "--version", "7", code=1)["found"]
    )
    assert [one["model_version"] for one in scalr("dataset", "models")["models"]] == ["2024-05"]
    (event,) = [json.loads(line) for line in (config.parent / "lineage.jsonl").read_text().splitlines()]
    assert (event["eventType"], event["job"]["name"].partition(".")[2]) == ("COMPLETE", "models.ranker")
    assert [one["name"] for one in event["inputs"]] == [str(settings.home / "datasets" / settings.training_set.name)]
    assert event["inputs"][0]["facets"]["version"]["datasetVersion"] == "1"
    assert event["outputs"] == []
    assert event["run"]["facets"]["tags"]["tags"][0]["value"] == "2024-05"
    assert scalr("status")["models_to_retrain"] == []

    forgotten = scalr("forget", TEXT)
    (model,) = forgotten["models"]
    assert (model["model"], model["version"], model["users"], model["retrained_as"]) == ("ranker", "2024-05", 1, None)
    left = datetime.fromisoformat(model["retrain_by"]) - datetime.now(UTC)
    assert timedelta(days=29) < left < timedelta(days=30)
    (proof,) = forgotten["proof"]
    assert proof["datasets"] == {settings.training_set.name: [1]}
    with Project(settings) as project:
        (change,) = project.ledger.changes.find(subject="forgotten")
    assert change.key == proof["digest"]
    assert json.loads(change.cause)["datasets"] == proof["datasets"]
    gone(settings, TEXT)

    scalr("dataset", "register-model", "reranker", "1", "--version", "1")  # the job ended after the erasure
    assert [one["model"] for one in scalr("status")["models_to_retrain"]] == ["ranker", "reranker"]
    assert "2024-05" in CliRunner().invoke(app, ["status", "--config", str(config)]).stdout

    assert scalr("dataset", "build")["version"] == 2
    scalr("dataset", "register-model", "ranker", "2024-06")
    assert [one["model"] for one in scalr("status")["models_to_retrain"]] == ["reranker"]
    assert [one["retrained_as"] for one in scalr("forget", TEXT)["models"]] == ["2024-06", None]
    gone(settings, TEXT)
