"""What other tests stand on: a warm command is one of its own, and the dearest files come first."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support import order, warm


@pytest.mark.slow
def test_a_warm_command_has_its_own_arguments_environment_folder_and_end(tmp_path):
    program = (
        "import json, os, sys, torch\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get('HERE'), __name__, os.getpid()]))\n"
        "print('to be seen', file=sys.stderr)\nraise SystemExit(3)"
    )
    before = dict(os.environ)
    runs = [warm.run([sys.executable, "-c", program, "a b"], cwd=tmp_path, env={**before, "HERE": "there"}) for _ in range(2)]
    said = [json.loads(run.stdout) for run in runs]
    assert [one[:4] for one in said] == [[["a b"], str(tmp_path), "there", "__main__"]] * 2
    assert len({os.getpid(), *(one[4] for one in said)}) == 3, "each in a process of its own"
    assert {(run.returncode, run.stderr) for run in runs} == {(3, "to be seen\n")}
    assert dict(os.environ) == before


@pytest.mark.slow
def test_what_is_the_projects_own_is_imported_anew():
    program = "import sys; print([name for name in sys.modules if name.partition('.')[0] == 'scalr_prod'])"
    assert warm.run([sys.executable, "-c", program], check=True).stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "code", "says"),
    [
        ("import os; os._exit(77)", 77, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("raise SystemExit('no')", 1, "no\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_however_a_warm_command_ends_it_is_told_and_the_next_one_runs(program, code, says):
    run = warm.run([sys.executable, "-c", program])
    assert run.returncode == code
    assert says in run.stderr
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    assert warm.run([sys.executable, "-m", "this"], check=True).stdout.startswith("The Zen")


@pytest.mark.slow
def test_a_test_that_is_cut_off_leaves_no_command_behind_and_its_answer_to_nobody():
    own = warm.Warm(("json",))
    assert own.run([sys.executable, "-c", "print(1)"]).stdout == "1\n"
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            own.run([sys.executable, "-c", "import time; time.sleep(60)"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert own.run([sys.executable, "-c", "print(2)"]).stdout == "2\n"
    own.close()


def test_the_dearest_files_come_first_whole_and_the_fault_suite_together(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "FIGURES", tmp_path / "seconds.json")
    order.FIGURES.write_text('{"tests/b.py": 9, "tests/faults/x.py": 6, "tests/faults/y.py": 6}')
    names = ["a.py::1", "faults/x.py::1", "b.py::1", "new.py::slow", "faults/y.py::1", "b.py::2"]
    items = [
        SimpleNamespace(nodeid=f"tests/{name}", get_closest_marker=lambda mark, name=name: name.endswith(mark) or None)
        for name in names
    ]
    found = [item.nodeid.removeprefix("tests/") for item in order.dearest_first(items)]
    assert found == ["faults/x.py::1", "faults/y.py::1", "b.py::1", "b.py::2", "new.py::slow", "a.py::1"]
    assert order.group_of("tests/faults/x.py::1") == order.group_of("tests/faults/y.py::2") != order.group_of("tests/b.py::1")
    marked = []
    for item in items:
        item.add_marker = lambda mark, item=item: marked.append((item.nodeid.removeprefix("tests/"), mark.name))
    order.FIGURES.write_text('{"tests/b.py": 0.7, "tests/a.py": 0.2, "tests/faults/x.py": 6}')
    order.mark_slow(items)
    assert marked == [(name, "slow") for name in ("faults/x.py::1", "b.py::1", "b.py::2")]
    assert len({order.group_of(f"tests/integration/test_{name}.py::1") for name in ("report", "ui")}) == 1
    assert len({order.group_of(f"tests/integration/test_triton_{name}.py::1") for name in ("control", "fuzz")}) == 1


def test_the_figures_name_files_that_are_there():
    root = order.FIGURES.parents[2]
    assert [name for name in json.loads(order.FIGURES.read_text()) if not (root / name).is_file()] == []


def test_a_test_that_is_marked_long_counts_for_itself(monkeypatch, tmp_path):
    """What has been measured is `make test`, which has none of them."""
    monkeypatch.setattr(order, "FIGURES", tmp_path / "seconds.json")
    order.FIGURES.write_text('{"tests/a.py": 14, "tests/b.py": 12}')
    items = [
        SimpleNamespace(nodeid=f"tests/{name}", get_closest_marker=lambda mark, name=name: name.endswith(mark) or None)
        for name in ("a.py::long", "b.py::1", "b.py::long", "c.py::1-long", "c.py::2-long")
    ]
    found = [item.nodeid.removeprefix("tests/").partition("::")[0] for item in order.dearest_first(items)]
    assert found == ["b.py", "b.py", "c.py", "c.py", "a.py"]


@pytest.mark.slow
def test_an_expectation_is_configured_once_for_a_look_at_its_arguments(monkeypatch):
    import great_expectations.expectations as library
    from great_expectations.expectations import expectation
    from support.expectations import configure_once

    configure_once()
    made, make = [], expectation.ExpectationConfiguration
    monkeypatch.setattr(expectation, "ExpectationConfiguration", lambda **given: made.append(given) or make(**given))
    asked = library.ExpectColumnValuesToBeInSet(column="a", value_set=[1])
    found = asked._get_runtime_kwargs()
    assert (found["column"], found["value_set"], len(made)) == ("a", [1], 1)
    asked.value_set = [2]
    assert (asked._get_runtime_kwargs()["value_set"], asked.configuration.kwargs["value_set"], len(made)) == ([2], [2], 3)


@pytest.mark.slow
def test_pages_share_compiled_templates_of_one_text(monkeypatch):
    from jinja2 import ChoiceLoader, DictLoader, Environment, PackageLoader

    library = PackageLoader("great_expectations", "render/view/templates")
    compiled, compiling = [], Environment.compile
    monkeypatch.setattr(Environment, "compile", lambda *given: compiled.append(given) or compiling(*given))

    def page(text, *loaders):
        found = Environment(loader=ChoiceLoader([DictLoader({"a page of tests": text}), *loaders]), autoescape=True)
        return found.get_template("a page of tests").render(name="<x>")

    assert [page("hi {{ name }}", library) for _ in range(2)] == ["hi &lt;x&gt;"] * 2
    assert page("by {{ name }}", library) == "by &lt;x&gt;"
    assert len(compiled) == 2
    assert [page("hi {{ name }}") for _ in range(2)] == ["hi &lt;x&gt;"] * 2
    assert len(compiled) == 4, "other environments are left as they are"


def test_sqlite_waits_for_no_disk_and_says_what_it_said_of_a_damaged_file(tmp_path):
    with sqlite3.connect(tmp_path / "any.db") as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (0,)
    connection.close()
    (tmp_path / "damaged.db").write_bytes(b"no database" * 100)
    damaged = sqlite3.connect(tmp_path / "damaged.db")
    with pytest.raises(sqlite3.DatabaseError, match="file is not a database"):
        damaged.execute("SELECT * FROM sqlite_master")
    damaged.close()
