# SPDX-License-Identifier: Apache-2.0
"""Airflow: the DAGs, their schedule, and the tasks that they run."""
