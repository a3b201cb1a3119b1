# SPDX-License-Identifier: Apache-2.0
"""Type of the user or item ids, agreed between several inputs and the lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.errors import BadValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.contracts import IdType
    from scalr_prod.ingest.cells import Ids

__all__ = ["agreed_type"]


def agreed_type(what: str, inputs: Sequence[Ids], *, kept: tuple[IdType, str] | None = None) -> IdType:
    """Return the common type of several id columns.

    The lake's type decides, then the type of a typed input; untyped text follows. If all inputs are untyped text, the type is int64 if
    every value is a canonical int64, else string. A column of values such as '7.0' follows the other columns.

    Args:
        what: ``user`` or ``item``, for the error.
        inputs: The columns, fully read.
        kept: The type in the lake, and the table that has it.

    Raises:
        BadValue: Two columns have incompatible types; names both.
    """
    fixed = kept or next(((ids.typed, ids.typed_at.file) for ids in inputs if ids.typed and ids.typed_at), None)
    if fixed is None:
        odd = [ids for ids in inputs if ids.odd_text]
        followed = len(odd) < len(inputs) and all(ids.floats for ids in odd)
        return "int64" if followed or not odd else "string"
    kind, holder = fixed
    next_step = f"give the {what} ids of both as {kind}, or cast one of them before"
    if kept:
        next_step = f"write the log with {kind} {what} ids as before, or start a new project home"
    for ids in inputs:
        if ids.typed_at is not None and ids.typed != kind:
            raise BadValue(
                f"holds {ids.typed} {what} ids, but {holder} holds {kind} ones",
                where=f"{ids.typed_at.file}, column '{ids.typed_at.column}'",
                next_step=next_step,
            )
        if kind == "int64" and ids.odd_text is not None and not ids.floats:
            text, place = ids.odd_text
            raise place.bad(f"'{text}' is not an int64, but {holder} holds int64 {what} ids", at=0, next_step=next_step)
    return kind
