# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["whole", "write_json"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, in the file's folder, which is made; what lies there at the block's end takes the file's place.

    Where the block fails, the file stays as it was. Of several writers at once, the last one stays.

    Raises:
        OSError: The folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees all of it or the file as it was."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
