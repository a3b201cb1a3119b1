# SPDX-License-Identifier: Apache-2.0
"""Folders of templates and constraints: beside the package in a checkout, inside it when installed from a wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from scalr_prod.errors import ScalrError

_PACKAGE = Path(__file__).resolve().parents[1]


def asset_folder(name: Literal["feature_repo", "triton_models", "airflow_dags", "constraints"]) -> Path:
    """Return the path of a folder that ships with the package.

    Raises:
        ScalrError: It is neither in the checkout nor in the installed package.
    """
    # The wheel's copy first: an unrelated folder of the same name may stand beside an installed package.
    places = (_PACKAGE / "_assets" / name, _PACKAGE.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise ScalrError(
        f"the folder {name!r} of the package is missing",
        where=str(places[0]),
        next_step="install the package again (pip install --force-reinstall scalr-prod), or run from a checkout",
    )
