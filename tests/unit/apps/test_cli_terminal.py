"""What a person at a terminal sees: an example under every help, tables and boxes that fit, times in their own zone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support.ledger_runs import make_spec
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.ledger import Ledger

#: Commands at a real terminal, each a process from nothing.
long = pytest.mark.long

SCALR = str(Path(sys.executable).with_name("scalr"))
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def paths(group, names=()):
    yield names
    for name, command in getattr(group, "commands", {}).items():
        yield from paths(command, (*names, name))


COMMANDS = sorted(paths(typer.main.get_command(app)))


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_of_that_command(names):
    shown = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert re.search(rf"Example: .*{' '.join(('scalr', *names))}\b", shown.stdout), shown.stdout


def test_the_shell_completes_commands():
    environment = os.environ | {"_SCALR_COMPLETE": "complete_bash", "COMP_WORDS": "scalr runs ro", "COMP_CWORD": "2"}
    found = subprocess.run([SCALR], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout.split() == ["rollback"]


def at_a_terminal(*command, cwd, columns=60, zone="Asia/Tokyo"):
    """Lines that a terminal of this width shows, with and without its escapes; and the exit code."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TZ": zone, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            more = os.read(ours, 65_536)
        except OSError:  # Linux says so where the other end is closed
            break
        if not more:
            break
        shown += more
    os.close(ours)
    text = shown.decode()
    return [ESCAPE.sub("", line).rstrip() for line in text.splitlines()], text, process.wait(60)


@long
@pytest.mark.slow
def test_runs_are_a_table_that_fits_with_times_of_the_readers_zone(settings_with):
    spec, config = make_spec(), settings_with()
    with Ledger.open(load_settings(config)) as ledger:
        ledger.runs.begin(spec, cause="planned")
    lines, text, code = at_a_terminal(SCALR, "runs", "list", cwd=config.parent, columns=100)
    assert code == 0
    assert max(map(len, lines)) <= 100
    table = "\n".join(lines)
    assert spec.run_id in table
    assert "JST" in table
    assert "\x1b[33mplanned" in text
    lines, _, _ = at_a_terminal(SCALR, "runs", "list", cwd=config.parent, columns=44)
    assert max(map(len, lines)) <= 44


def test_an_error_is_in_a_box_that_says_what_where_and_next(two_domains):
    (two_domains.folder / "scalr.toml").write_text('[domains.source]\nname = "books"\nevents = "a[1].csv"\nevent = 1\n')
    lines, text, code = at_a_terminal(SCALR, "ingest", cwd=two_domains.folder)
    assert code == 1
    assert lines[0].startswith("╭─ SettingsError")
    assert {len(line) for line in lines if line} == {60}
    inner = " ".join(line.strip("│ ") for line in lines)
    assert "where" in inner
    assert "next" in inner
    assert "\x1b[31m" in text


@long
def test_without_a_terminal_lines_are_plain(two_domains):
    found = subprocess.run([SCALR, "ingest"], cwd=two_domains.folder, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith("error: ")
    assert "╭" not in found.stderr
    assert "\x1b" not in found.stderr
