"""What several unit tests start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.feast_project import make_project
from support.ledger_runs import one

from scalr_prod.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scalr_prod.config.settings import Settings


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a ledger that is not there yet."""
    return f"sqlite:///{tmp_path / 'folder' / 'ledger.db'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """An empty one."""
    with Ledger(url, one()) as opened:
        yield opened


@pytest.fixture(scope="module")
def feast_project(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A feature repository for all tests of a module that only read."""
    return make_project(tmp_path_factory.mktemp("feast"))


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """One that a test may change."""
    return make_project(tmp_path)


@pytest.fixture
def whole_rows(monkeypatch) -> list[int]:
    """Numbers of rows whose distributions were worked out as a whole, by the plain code."""
    from scalr_prod.translator.mixture import Mixture

    rows, distributions = [], Mixture.distributions

    def count(self, summary, **how):
        rows.append(len(summary.batch.time))
        return distributions(self, summary, **how)

    monkeypatch.setattr(Mixture, "distributions", count)
    return rows
