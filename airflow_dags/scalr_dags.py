"""DAGs of scalr_prod for Airflow: of the projects listed in SCALR_PROJECTS, else of the project that each run names."""

from __future__ import annotations

import os

from airflow.sdk import dag  # noqa: F401 - Airflow only parses files that contain "dag" and "airflow"

from scalr_prod.integrations.airflow.dags import make_dags

make_dags(os.environ.get("SCALR_PROJECTS"))
