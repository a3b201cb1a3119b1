"""Which process runs which test, where several share them: the dearest files first, and together what shares a session's fixtures. And
which files `make test-fast` leaves out.

A file is run whole by one process. What costs minutes comes first, so that no process works long after the others have ended. The
figures stand beside this file, seconds by file; a whole run writes them anew where ``SCALR_TEST_SECONDS`` says::

    SCALR_TEST_SECONDS=tests/support/seconds.json make test
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ByGroup", "Seconds", "dearest_first", "group_of", "mark_slow"]

FIGURES = Path(__file__).with_name("seconds.json")
#: What begins like one of these shares what takes as long as a few of its tests: a Dask cluster, an undisturbed run and a Triton server;
#: a project with runs in every state, and a browser; a Triton server to attack; a project with something to forget; projects
#: to build training sets from; a PostgreSQL.
TOGETHER = (
    ("tests/faults/",),
    ("tests/integration/test_report.py", "tests/integration/test_ui.py"),
    ("tests/integration/test_triton_control.py", "tests/integration/test_triton_fuzz.py"),
    ("tests/integration/test_forgetting",),
    ("tests/integration/test_training_set",),
    tuple(f"tests/integration/test_{name}" for name in ("ledger_postgres", "ingest_sql", "shared_stores", "feast_postgres")),
)
#: A file whose tests take longer than this, on average, is slow as a whole: many such files make minutes.
FAST_S = 0.3
#: Of a file that nobody has measured: of each test that is marked slow, and of each other.
UNKNOWN = (5.0, 0.1)
#: Of each test that is marked long: `make test`, which measures, has none.
LONG_S = 10.0


def group_of(nodeid: str) -> str:
    """What one process runs whole: a file, or those that stay together, by the first of them."""
    file = nodeid.partition("::")[0]
    return next((together[0] for together in TOGETHER if file.startswith(together)), file)


def dearest_first(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The groups of these tests by their seconds, most first; within a group they keep their order."""
    listed, known = list(items), json.loads(FIGURES.read_text())
    seconds: defaultdict[str, float] = defaultdict(float)
    by_day = [item for item in listed if item.get_closest_marker("long") is None]
    files = {item.nodeid.partition("::")[0] for item in by_day}
    for file in files & known.keys():
        seconds[group_of(file)] += known[file]
    for item in by_day:
        if item.nodeid.partition("::")[0] not in known:
            seconds[group_of(item.nodeid)] += UNKNOWN[item.get_closest_marker("slow") is None]
    for item in listed:
        if item.get_closest_marker("long") is not None:
            seconds[group_of(item.nodeid)] += LONG_S
    return sorted(listed, key=lambda item: (-seconds[group_of(item.nodeid)], group_of(item.nodeid)))


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Mark what is slow by the seconds of its file; its fixtures' are among them, so that a file is in or out as a whole."""
    by_day = [item for item in items if not any(map(item.get_closest_marker, ("nightly", "long")))]
    known, tests = json.loads(FIGURES.read_text()), Counter(item.nodeid.partition("::")[0] for item in by_day)
    for item in by_day:
        file = item.nodeid.partition("::")[0]
        if known.get(file, 0) > FAST_S * tests[file]:
            item.add_marker(pytest.mark.slow)


class ByGroup(LoadFileScheduling):
    """``--dist loadfile``, with files that stay together, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False  # xdist would put first whichever has the most tests
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


class Seconds:
    """Counts each file's seconds, its fixtures' included, and writes them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_file: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's setup, call or teardown, wherever it ran."""
        self.by_file[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        """The dearest first; what takes less than a second is left out."""
        dearest = sorted(self.by_file.items(), key=lambda found: -found[1])
        found = {file: round(seconds, 1) for file, seconds in dearest if seconds >= 1}
        self.path.write_text(json.dumps(found, indent=1) + "\n")
