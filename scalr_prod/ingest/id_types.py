# SPDX-License-Identifier: Apache-2.0
"""Type of the user or item ids, agreed between several inputs and the lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.errors import BadValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.ingest.column_parsers import IdParser
    from scalr_prod.schemas import IdType


def common_id_type(what: str, inputs: Sequence[IdParser], *, lake_type: tuple[IdType, str] | None = None) -> IdType:
    """Return the common type of several id columns.

    The lake's type decides, then the type of a typed input; untyped text follows. If all inputs are untyped text, the type is int64 if
    every value is a canonical int64, else string. A column of values such as '7.0' follows the other columns.

    Args:
        what: ``user`` or ``item``, for the error.
        inputs: The columns, fully read.
        lake_type: The type in the lake, and the table that has it.

    Raises:
        BadValue: Two columns have incompatible types; names both.
    """
    fixed = lake_type or next(
        ((ids.declared_type, ids.declared_at.file) for ids in inputs if ids.declared_type and ids.declared_at), None
    )
    if fixed is None:
        odd = [ids for ids in inputs if ids.first_non_integer]
        followed = len(odd) < len(inputs) and all(ids.all_integral_floats for ids in odd)
        return "int64" if followed or not odd else "string"
    kind, holder = fixed
    next_step = f"give the {what} ids of both as {kind}, or cast one of them before"
    if lake_type:
        next_step = f"write the log with {kind} {what} ids as before, or start a new project home"
    for ids in inputs:
        if ids.declared_at is not None and ids.declared_type != kind:
            raise BadValue(
                f"holds {ids.declared_type} {what} ids, but {holder} holds {kind} ones",
                where=f"{ids.declared_at.file}, column '{ids.declared_at.column}'",
                next_step=next_step,
            )
        if kind == "int64" and ids.first_non_integer is not None and not ids.all_integral_floats:
            text, place = ids.first_non_integer
            raise place.bad_value(f"'{text}' is not an int64, but {holder} holds int64 {what} ids", at=0, next_step=next_step)
    return kind
