"""What several unit tests start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scalr_prod.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a ledger that is not there yet."""
    return f"sqlite:///{tmp_path / 'folder' / 'ledger.db'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """An empty one."""
    with Ledger(url) as opened:
        yield opened
