"""Settings of a project that goes through the whole pipeline in seconds, on a log of a few dozen users."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LOCAL", "lean"]

#: One worker that scores by itself, and a gate that lets through what so few users come to. Ends with ``[quality]``.
LOCAL = """
[serving]
scorer = "local"
threads = 1
[compute]
workers = 1
[quality]
max_bucket_distance = 1.0
min_information = 0
"""
_LEAN = 'threads = 1\nestimators = ["popularity", "frequency", "linear"]'


def lean(config: Path) -> Path:
    """The scalr.toml of `conftest.write_toml`, now with the three estimators that train in a second, on one thread."""
    text = config.read_text()
    assert "threads = 2" in text
    config.write_text(text.replace("threads = 2", _LEAN))
    return config
