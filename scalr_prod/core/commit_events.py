# SPDX-License-Identifier: Apache-2.0
"""Commit events: every commit to the lake and every new training set is added to the list of the enclosing `with` block."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class CommitEvent:
    """A new version of a table or a training set.

    Attributes:
        uri: Its folder, as an absolute path or a URL.
        version: The new version.
    """

    uri: str
    version: int


_listening: ContextVar[list[CommitEvent] | None] = ContextVar("scalr_written", default=None)


def emit_commit(uri: str, version: int) -> None:
    """Report a new version to the listening block, if any."""
    collected = _listening.get()
    if collected is not None:
        collected.append(CommitEvent(uri, version))


@contextmanager
def collect_commits() -> Iterator[list[CommitEvent]]:
    """Collect the versions written within the block in a list; a nested block collects its own alone."""
    collected: list[CommitEvent] = []
    token = _listening.set(collected)
    try:
        yield collected
    finally:
        _listening.reset(token)
