"""The door: exit codes, one JSON object, errors on stderr."""

from __future__ import annotations

import json
import sys

import pytest
from support.ingest_project import TARGET, project_in
from typer.testing import CliRunner

from scalr_prod import __version__
from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.core.console import format_lines
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

runner = CliRunner()

COMMANDS = [
    "run",
    "ingest",
    "histories",
    "generate",
    "validate",
    "publish",
    "doctor",
    "translator train",
    "translator evaluate",
    "translator promote",
    "translator rollback",
    "translator list",
    "triton start",
    "triton stop",
    "triton status",
    "dataset build",
    "evaluate",
    "runs list",
    "runs show",
    "runs resume",
    "runs rollback",
    "experiment",
    "experiment power",
    "explain",
    "publication disable",
    "publication enable",
    "quality check",
    "quality export-contract",
    "init",
    "scout",
    "config show",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_config_and_gives_json(command):
    shown = runner.invoke(app, [*command.split(), "--help"])
    assert shown.exit_code == 0
    assert "--config" in shown.stdout
    assert "--json" in shown.stdout


def test_version():
    assert runner.invoke(app, ["--version"]).stdout.strip() == __version__


def test_a_long_cell_widens_no_other_row():
    rows = [{"rule": "a", "says": "x" * 90, "failed": 1}, {"rule": "b", "says": "y", "failed": 2}]
    lines = format_lines({"rules": rows, "replaced": {}, "waiting": []})
    assert lines[2:4] == [f"  a     {'x' * 90}  1", f"  b     y{' ' * 59}  2"]
    assert lines[4:] == ["replaced  -", "waiting   -"]


def test_what_the_first_row_of_a_table_lacks_is_shown():
    rows = [{"arm": "real", "NE": 0.7, "tried": [1]}, {"arm": "ours", "NE": 0.6, "NE all %": "-6.1", "tried": [2]}]
    assert format_lines({"arms": rows})[1:] == ["  arm   NE   NE all %", "  real  0.7  -", "  ours  0.6  -6.1"]


def test_wrong_usage_exits_with_2():
    assert runner.invoke(app, ["ingest", "--domain", "sideways"]).exit_code == 2
    assert runner.invoke(app, ["validate"]).exit_code == 2
    assert runner.invoke(app, ["fly"]).exit_code == 2
    assert "rows.csv" in runner.invoke(app, ["dataset", "export", "rows.xlsx"]).output


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("rnu", "'run'"),
        ("dataset biuld", "'build'"),
        ("translator evalute", "'evaluate'"),
        ("run --confg scalr.toml", "--config"),
        ("init --sorce a.csv", "--source"),
        ("ingest --domain sorce", "source"),
    ],
)
def test_a_wrong_command_line_suggests_the_right_one(wrong, right):
    done = runner.invoke(app, wrong.split())
    assert done.exit_code == 2
    assert right in done.output.splitlines()[-1], done.output


def test_a_file_of_ids_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"\xff\xfe\n")
    done = runner.invoke(app, ["forget", "--file", str(tmp_path / "ids.txt"), "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["error"], told["where"]) == ("ForgettingError", str(tmp_path / "ids.txt"))


def test_a_file_of_ids_may_begin_with_a_byte_order_mark(project, tmp_path):
    config = ["--config", str(project), "--json"]
    assert runner.invoke(app, ["ingest", *config]).exit_code == 0
    user = Lake.open(load_settings(project)).read(Table.TARGET_EVENTS)["user_id"][0].as_py()
    (tmp_path / "ids.txt").write_text(f"{user}\n", encoding="utf-8-sig")
    done = runner.invoke(app, ["forget", "--file", str(tmp_path / "ids.txt"), *config])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["removed"]["target_events"] > 0


def test_an_error_is_one_json_object_and_exit_code_1(tmp_path):
    result = runner.invoke(app, ["ingest", "--config", str(tmp_path / "none.toml"), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "SettingsError"
    assert "next:" in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_input_names_it_and_writes_nothing(tmp_path, two_domains, settings):
    two_domains.source.unlink()
    result = runner.invoke(app, ["ingest", "--config", str(two_domains.folder / "scalr.toml")])
    assert result.exit_code == 1
    assert str(two_domains.source) in result.stderr
    assert not (settings.home / "lake").exists()


def test_reports_are_printed_for_people_and_for_machines(two_domains, settings):
    config = ["--config", str(two_domains.folder / "scalr.toml")]
    text = runner.invoke(app, ["ingest", *config])
    assert text.exit_code == 0, text.output
    assert "rows_added" in text.stdout
    again = runner.invoke(app, ["ingest", *config, "--json"])
    assert json.loads(again.stdout)
    listed = runner.invoke(app, ["runs", "list", *config, "--json"])
    assert json.loads(listed.stdout) == {"runs": []}


def test_an_unknown_run_is_a_clear_error(two_domains, settings):
    config = ["--config", str(two_domains.folder / "scalr.toml")]
    for command in (["runs", "show"], ["runs", "resume"], ["runs", "rollback"], ["validate"], ["publish"]):
        result = runner.invoke(app, [*command, "run_0123456789abcdef", *config, "--json"])
        assert result.exit_code == 1, command
        assert json.loads(result.stdout)["error"] == "RunNotFound", command


def test_evaluate_names_the_arms_that_there_are(two_domains, settings):
    config = str(two_domains.folder / "scalr.toml")
    result = runner.invoke(app, ["evaluate", "--arm", "magic", "--config", config, "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["error"] == "EvaluationError"
    assert "real+scalr" in found["found"]
    assert runner.invoke(app, ["evaluate", "--cold-fraction", "2", "--config", config]).exit_code == 2
    for more in (["--full"], ["--cutoffs", "2"], ["--arm", "real"]):
        assert runner.invoke(app, ["evaluate", "--quick", *more, "--config", config]).exit_code == 2


def test_runs_are_listed_with_their_window_and_what_they_published(settings, two_domains):
    from support.ledger_runs import make_spec

    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        spec = ledger.runs.begin(make_spec()).spec
    result = runner.invoke(app, ["runs", "list", "--config", str(two_domains.folder / "scalr.toml")])
    assert result.exit_code == 0, result.output
    header, line = (text.split() for text in result.stdout.splitlines()[1:3])
    assert header == ["run_id", "state", "start", "end", "mode", "translator", "rows", "in_view", "updated"]
    assert line[:4] == [spec.run_id, "planned", spec.start.isoformat(), spec.end.isoformat()]
    assert line[6:8] == ["-", "-"]


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("import sys\nsys.exit(0)\n", "cannot be imported: SystemExit"),
        ("import sys\nclass Reader:\n    def read(self, source): sys.exit(0)\n", "sys.exit(0) ended the command"),
    ],
)
def test_a_plug_in_that_exits_is_an_error_not_success(settings_with, monkeypatch, module, found):
    config = settings_with()
    (config.parent / "quitter.py").write_text(module)
    config.write_text(config.read_text().replace("[domains.source]", '[domains.source]\nformat = "quitter:Reader"'))
    monkeypatch.syspath_prepend(str(config.parent))
    monkeypatch.delitem(sys.modules, "quitter", raising=False)
    done = runner.invoke(app, ["ingest", "--config", str(config), "--json"])
    assert done.exit_code == 1
    assert found in json.loads(done.stdout)["found"]


def test_titles_do_not_stand_in_for_common_users(tmp_path):
    items = 'items = "items.csv"'
    (tmp_path / "items.csv").write_text("item_id,title\ns1,green tea\ns2,tea pot\nt1,green tea\nt2,tea pot\n")
    others = TARGET.assign(user_id="other-" + TARGET["user_id"])
    settings = project_in(tmp_path)(target=others, source_toml=items, target_toml=items)
    done = runner.invoke(app, ["ingest", "--config", str(tmp_path / "scalr.toml")])
    assert done.exit_code == 1
    assert "share no user" in done.stderr
    assert "'other-" in done.stderr
    assert "[users] map" in done.stderr
    assert not any(Lake.open(settings).exists(table) for table in Table)
