# SPDX-License-Identifier: Apache-2.0
"""SCALR: synthetic cross-domain augmentation and learning for recommendation.

>>> from scalr_prod import Project  # doctest: +SKIP
>>> with Project.open("scalr.toml") as project:
...     project.run()
...     rows = project.training_set().to_pandas()

Importing this package is cheap: every heavy library is imported inside the room that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from scalr_prod.config import Settings, load_settings
    from scalr_prod.errors import ScalrError
    from scalr_prod.evaluation import DownstreamModel, EvaluationReport, Interactions
    from scalr_prod.ingest import LogReader
    from scalr_prod.pipeline import PipelineReport, StageState
    from scalr_prod.project import Project
    from scalr_prod.quality import GateRule
    from scalr_prod.training_set import TrainingSet
    from scalr_prod.translator import Estimator

__all__ = [
    "DownstreamModel",
    "Estimator",
    "EvaluationReport",
    "GateRule",
    "Interactions",
    "LogReader",
    "PipelineReport",
    "Project",
    "ScalrError",
    "Settings",
    "StageState",
    "TrainingSet",
    "__version__",
    "load_settings",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DownstreamModel": "evaluation",
        "Estimator": "translator",
        "EvaluationReport": "evaluation",
        "GateRule": "quality",
        "Interactions": "evaluation",
        "LogReader": "ingest",
        "PipelineReport": "pipeline",
        "Project": "project",
        "ScalrError": "errors",
        "Settings": "config",
        "StageState": "pipeline",
        "TrainingSet": "training_set",
        "load_settings": "config",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
