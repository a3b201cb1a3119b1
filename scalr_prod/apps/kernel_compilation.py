# SPDX-License-Identifier: Apache-2.0
"""Compile the translator's kernels in both environments, so that the first run does not wait for it.

A translator of made-up events is trained in this environment, and loaded in the serving one. numba keeps the code of each environment in
this user's cache (`scalr_prod.translator.kernels.compile_cache`).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.timestamps import DAY_US

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa


logger = logging.getLogger(__name__)

_EVENTS: Final = 4_000
_USERS, _ITEMS, _DAYS = 200, 40, 120
_LOAD_SCRIPT: Final = (
    "import sys, pathlib; from scalr_prod.translator.module import TranslatorModule; "
    "TranslatorModule.load(pathlib.Path(sys.argv[1]), trusted=True).warm_up()"
)
_SETTINGS: Final = """
[domains.source]
name = "source"
events = "source.parquet"
[domains.target]
name = "target"
events = "target.parquet"
"""


def compile_kernels(serving_environment: Path | None) -> None:
    """Compile everything that a training and a run compile with default settings. A failure is logged: the first run compiles then.

    Args:
        serving_environment: Folder of the serving environment; None: there is none.
    """
    from scalr_prod.project import Project

    logger.info("compiling the translator's kernels, which takes about 20 seconds")
    with _without_settings_variables(), tempfile.TemporaryDirectory(prefix="scalr-kernels-") as scratch:
        folder = Path(scratch)
        _write_project(folder)
        try:
            with Project.open(folder / "scalr.toml") as project:
                project.ingest()
                project.histories()
                project.train()
                path = project.translator().path
            if serving_environment is not None:
                command = [str(serving_environment / "bin" / "python"), "-c", _LOAD_SCRIPT, str(path)]
                subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - the environment's interpreter
        except Exception as error:
            output = getattr(error, "stderr", None) or error
            logger.warning("the translator's kernels could not be compiled; the first run will try again: %s", output)


@contextmanager
def _without_settings_variables() -> Iterator[None]:
    """Remove the variables that override settings for the duration of the block: they name another project's ledger and lake."""
    removed = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SCALR_")}
    try:
        yield
    finally:
        os.environ.update(removed)


def _write_project(folder: Path) -> None:
    """Write logs in which each user chooses target items near the source items that they chose."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    taste = rng.integers(0, _ITEMS, _USERS)
    for name in ("source", "target"):
        pq.write_table(_events(rng, taste), folder / f"{name}.parquet")
    (folder / "scalr.toml").write_text(_SETTINGS, encoding="utf-8")


def _events(rng: np.random.Generator, taste: np.ndarray) -> pa.Table:
    import pyarrow as pa

    user = rng.integers(0, _USERS, _EVENTS)
    item = (taste[user] + rng.integers(0, 4, _EVENTS)) % _ITEMS
    times = 1_700_000_000_000_000 + np.sort(rng.integers(0, _DAYS * DAY_US, _EVENTS))
    return pa.table(
        {
            "user_id": [f"user {number}" for number in user],
            "item_id": [f"item {number}" for number in item],
            "timestamp": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )


if __name__ == "__main__":  # make setup
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    compile_kernels(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
