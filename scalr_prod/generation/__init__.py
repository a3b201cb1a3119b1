# SPDX-License-Identifier: Apache-2.0
"""Generation of synthetic target events: plan, tasks, popularity matching and the runner."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalr_prod.generation.generation_report import GenerationReport
    from scalr_prod.generation.plan import plan_run
    from scalr_prod.generation.preview import RunPreview, preview_run
    from scalr_prod.generation.runner import generate

__all__ = ["GenerationReport", "RunPreview", "generate", "plan_run", "preview_run"]

_HOMES = {
    "Foreseen": "foresight",
    "GenerationReport": "report",
    "foresee_run": "foresight",
    "generate": "driver",
    "plan_run": "plan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
