# SPDX-License-Identifier: Apache-2.0
"""What is written, told to whoever listens: every commit to the lake, and every training set."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Written", "collected", "note_written"]


@dataclass(frozen=True)
class Written:
    """A version of a table, or of a training set.

    Attributes:
        uri: Its folder, as an absolute path or a URL.
        version: The version that was made.
    """

    uri: str
    version: int


_listening: ContextVar[list[Written] | None] = ContextVar("scalr_written", default=None)


def note_written(uri: str, version: int) -> None:
    """Something was written."""
    found = _listening.get()
    if found is not None:
        found.append(Written(uri, version))


@contextmanager
def collected() -> Iterator[list[Written]]:
    """The list that what is written in the block is added to; within another such block, to this one alone."""
    found: list[Written] = []
    token = _listening.set(found)
    try:
        yield found
    finally:
        _listening.reset(token)
