"""What tests of a real Triton share: contexts to ask about, a copy of the trained home, the processes of a server."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import psutil

from scalr_prod.config.settings import Settings, load_settings
from scalr_prod.translator.data.contexts import Contexts

if TYPE_CHECKING:
    from pathlib import Path

JULY = 1_719_792_000_000_000


def contexts(rows: int, *, exclude: int = 3, length: int = 50, seed: int = 0) -> Contexts:
    rng = np.random.default_rng(seed)
    time = JULY + rng.integers(0, 10**12, rows)
    return Contexts(
        history_items=rng.integers(0, 100, (rows, length), dtype=np.int32),
        history_ages=rng.random((rows, length), dtype=np.float32) * 50,
        history_end=time - rng.integers(0, 10**11, rows),
        event_time=time,
        fold=rng.integers(-1, 2, rows, dtype=np.int32),
        noise_key=rng.integers(-(2**62), 2**62, rows),
        exclude=rng.integers(-1, 100, (rows, exclude), dtype=np.int32),
    )


def project(folder: Path, trained: Path, **serving) -> Settings:
    """The trained home, copied, with these serving settings."""
    if not folder.exists():
        shutil.copytree(trained.parent, folder)
    return load_settings(folder / trained.name, serving={"threads": 1, **serving})


def family(name: str) -> list[int]:
    """Processes that carry a server's name."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if any(name in part for part in p.info["cmdline"] or ())]
