"""The DAGs of scalr_prod, for Airflow to find: of the projects that SCALR_PROJECTS lists, else of the one that a run names."""

from __future__ import annotations

import os

from airflow.sdk import dag  # noqa: F401 - Airflow reads a file only if it names both

from scalr_prod.dags import make_dags

make_dags(os.environ.get("SCALR_PROJECTS"))
