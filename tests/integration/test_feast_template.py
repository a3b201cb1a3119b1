"""`scalr feast template`: a repository that runs by itself, with Feast's own commands and SDK."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from support import warm
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.errors import FeatureStoreError, ForeignFiles
from scalr_prod.features import write_template

#: Everything in one process, since each import of Feast takes seconds: the events are made, Feast's commands run, and both retrievals.
PROGRAM = """
import json, os, runpy, sys
from click.testing import CliRunner
from feast.cli.cli import cli
os.chdir(sys.argv[1])
runpy.run_path("make_events.py", run_name="__main__")
for command in json.loads(sys.argv[2]):
    done = CliRunner().invoke(cli, command.split()[1:])
    if done.exit_code:
        raise SystemExit(f"{command}: {done.output}") from done.exception
found = runpy.run_path("retrieve.py", run_name="__main__")
print(json.dumps({
    "rows": found["rows"].assign(event_timestamp=found["rows"]["event_timestamp"].astype(str)).to_dict("records"),
    "served": found["served"],
    "log": [{**event, "event_timestamp": str(event["event_timestamp"]), "created_timestamp": str(event["created_timestamp"])}
            for event in runpy.run_path("make_events.py")["make_events"]()],
    "ours": [name for name in sys.modules if name.startswith("scalr_prod")],
}, default=lambda value: value.tolist()))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "my shop-2"
    done = CliRunner().invoke(app, ["feast", "template", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["path"], said["project"]) == (str(folder), "my_shop_2")
    assert sorted(path.name for path in folder.iterdir()) == sorted(said["files"])
    assert list(folder.parent.iterdir()) == [folder]
    return folder


@pytest.mark.slow
def test_it_runs_as_its_readme_says(repository):
    readme = (repository / "README.md").read_text()
    commands = re.findall(r"^\$ (.*)$", readme, flags=re.MULTILINE)
    assert (commands[0], commands[-1]) == ("python make_events.py", "python retrieve.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SCALR_")}
    program = [sys.executable, "-c", PROGRAM, str(repository), json.dumps(commands[1:-1])]
    done = warm.run(program, cwd=repository, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"] == [], "feast-delta is all that it needs"
    log = found["log"]
    assert len(found["rows"]) == len(log) == 1000

    def known_before(row: dict, key: str) -> list[dict]:
        return [event for event in log if event[key] == row[key] and event["created_timestamp"] <= row["event_timestamp"]]

    for row in found["rows"][::97]:
        own, of_item = known_before(row, "user_id"), known_before(row, "item_id")
        if own:
            assert row["user_history__event_count"] == len(own)
            assert row["user_history__item_ids"] == [event["item_id"] for event in own][-5:]
        if of_item:
            assert row["item_popularity__event_count"] == len(of_item)
    counts = [sum(event["user_id"] == user for event in log) for user in (1, 2)]
    assert found["served"]["user_history__event_count"] == counts
    assert found["served"]["item_popularity__event_count"] == [
        sum(event["item_id"] == item for event in log) for item in (4, 5)
    ]


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.py").write_text("MINE = 1\n")
    with pytest.raises(ForeignFiles, match="nothing was written"):
        write_template(tmp_path)
    with pytest.raises(ForeignFiles):
        write_template(tmp_path / "mine.py")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    (tmp_path / "empty").mkdir()
    assert write_template(tmp_path / "empty").project == "empty"
    assert write_template(tmp_path / "2").project == "recommender"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureStoreError, match="cannot be written to"):
        write_template(tmp_path / "file" / "repository")
