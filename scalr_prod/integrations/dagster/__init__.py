# SPDX-License-Identifier: Apache-2.0
"""Dagster: the pipeline's stages as an asset graph."""

from __future__ import annotations

from scalr_prod.integrations.dagster.definitions import scalr_definitions

__all__ = ["scalr_definitions"]
