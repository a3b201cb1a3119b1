"""Two trained projects on one ledger, as a deployment has them: each trains, serves and plans with versions of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import Settings, load_settings
from scalr_prod.core.directory_marker import read_marker
from scalr_prod.errors import TranslatorNotFound
from scalr_prod.features import apply_feature_repo
from scalr_prod.generation import plan_run
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.schemas import Table
from scalr_prod.serving import promote, served_version
from scalr_prod.translator import train

#: Trains two projects on one ledger; unit/ledger/test_tenancy.py and test_shared_stores.py share one without a translator.
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def two(trained_home: Path, tmp_path: Path) -> tuple[Settings, Settings]:
    """Project dee with version 1, and project ee with versions 1 and 2, on one SQLite ledger."""
    former = read_marker(trained_home.parent / ".scalr").project
    made = []
    for name, seeds in (("dee", (0,)), ("ee", (0, 1))):
        folder = tmp_path / name
        shutil.copytree(trained_home.parent, folder)
        shutil.rmtree(folder / ".scalr" / "models")
        toml = (folder / trained_home.name).read_text()
        shared = f'[project]\nname = "{name}"\nformerly = "{former}"\n[ledger]\nurl = "sqlite:///{tmp_path / "shared.db"}"\n'
        (folder / "scalr.toml").write_text(f'{shared}[serving]\nscorer = "local"\n{toml}')
        for seed in seeds:
            settings = load_settings(
                folder / "scalr.toml", translator={"estimators": ["popularity"], "threads": 1, "seed": seed}
            )
            apply_feature_repo(settings)
            train(settings)
        made.append(load_settings(folder / "scalr.toml"))
    return made[0], made[1]


def test_each_numbers_serves_and_plans_its_own(two):
    dee, ee = two
    with Ledger.open(dee) as ledger:
        assert [(found.version, found.path.split("/")[-5]) for found in ledger.models.find()] == [(1, "dee")]
    promote(ee, 2)
    assert (served_version(dee), served_version(ee)) == (None, 2)
    assert plan_run(ee).translator_version == 2
    assert plan_run(dee).translator_version == 1, "it has no version 2, whatever others have trained"


def test_a_version_of_another_is_not_pinned_and_its_run_not_rolled_back(two, tmp_path):
    dee, ee = two
    run_id = plan_run(ee).run_id
    before, versions = _rows(tmp_path / "shared.db"), _versions(dee, ee)
    for pin in (lambda: plan_run(dee, version=2), lambda: promote(dee, 2)):
        with pytest.raises(TranslatorNotFound, match="there is one of project 'ee'"):
            pin()
    done = CliRunner().invoke(app, ["runs", "rollback", run_id, "-c", str(dee.base / "scalr.toml"), "--json"])
    assert done.exit_code == 1
    assert "a run of project 'ee'" in json.loads(done.stdout)["found"]
    assert _rows(tmp_path / "shared.db") == before
    assert _versions(dee, ee) == versions


def _rows(path: Path) -> list[str]:
    import sqlite3

    with sqlite3.connect(path) as ledger:
        return list(ledger.iterdump())


def _versions(*projects: Settings) -> list[int]:
    return [Lake.open(settings).version(table) for settings in projects for table in Table]
