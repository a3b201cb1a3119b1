"""Which projects a list names."""

from __future__ import annotations

import os
import shutil

import pytest

pytest.importorskip("airflow.sdk")

from scalr_prod.errors import SettingsError
from scalr_prod.integrations.airflow.dags import DAILY_STAGES, WEEKLY_STAGES, list_projects


def test_tasks_are_the_stages_of_the_graph_that_take_time():
    assert DAILY_STAGES == ("ingest", "histories", "generate", "validate", "publish", "late")
    assert WEEKLY_STAGES == ("ingest", "histories", "translator")


def test_a_list_is_of_files_and_folders(settings, tmp_path):
    config = settings.base / "scalr.toml"
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        text = f'[project]\nname = "{name}"\n' + config.read_text()
        (tmp_path / "all" / name / "scalr.toml").write_text(text)
    found = list_projects(os.pathsep.join([str(tmp_path / "all"), str(config)]))
    assert [project.name for project in found] == ["a", "b", settings.project_name]
    assert [project.error for project in found] == [None] * 3


def test_a_file_that_cannot_be_read_says_why_and_stops_no_other(settings, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("[domains")
    first, second = list_projects(os.pathsep.join([str(bad), str(settings.base / "scalr.toml")]))
    assert "cannot be read as TOML" in first.error
    assert second.error is None


def test_two_files_of_one_project_are_refused(settings, tmp_path):
    copy = shutil.copy(settings.base / "scalr.toml", tmp_path / "copy.toml")
    with pytest.raises(SettingsError, match="are of one project") as caught:
        list_projects(os.pathsep.join([str(settings.base / "scalr.toml"), str(copy)]))
    assert str(copy) in caught.value.found


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="no settings file"):
        list_projects(str(tmp_path))
