# SPDX-License-Identifier: Apache-2.0
"""Parsers of single columns: raw input values → the lake's types. Errors name file, column and row."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scalr_prod.errors import BadValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.ingest.sources.protocol import Batch
    from scalr_prod.schemas import IdType


logger = logging.getLogger(__name__)

#: Longest id in bytes. A longer value means a wrongly mapped column, or an attempt to exhaust memory.
_LONGEST_ID = 1024
_MISSING_ID_STEP = (
    'remove these rows or give them an id; rows are never dropped silently (a log\'s bad_ids = "drop" counts them)'
)
#: Spellings of a missing value in text files of databases and tools.
_NULL_WORDS = ["NULL", "Null", "null", "NaN", "nan", "NA", "N/A", "<NA>", "None", "none", "nil", "\\N"]
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_INT64_TEXT = r"^(0|-?[1-9][0-9]{0,18})$"
#: An integer as a float column prints it.
_FLOAT_TEXT = r"^(0|-?[1-9][0-9]{0,14})\.0$"


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
                f"contains {ids.declared_type} {what} ids, but {holder} contains {kind} ones",
                where=f"{ids.declared_at.file}, column '{ids.declared_at.column}'",
                next_step=next_step,
            )
        if kind == "int64" and ids.first_non_integer is not None and not ids.all_integral_floats:
            text, place = ids.first_non_integer
            raise place.bad_value(
                f"'{text}' is not an int64, but {holder} contains int64 {what} ids", at=0, next_step=next_step
            )
    return kind


@dataclass(frozen=True)
class CellOrigin:
    """Origin of a batch of one column, for error messages.

    Attributes:
        file: The file, or the database and query.
        column: The column's name there.
        row: Number of rows that precede the batch in the file.
    """

    file: str
    column: str
    row: int = 0

    def bad_value(self, finding: str, *, at: int | None = None, next_step: str) -> BadValue:
        """Return the error for a cell (``at``: its position in the batch) or for the whole column."""
        row = "" if at is None else f", row {self.row + at + 1}"
        return BadValue(finding, where=f"{self.file}, column '{self.column}'{row}", next_step=next_step)


def select_column(batch: Batch, name: str) -> tuple[pa.Array, CellOrigin]:
    """Return a column of a batch, and its origin."""
    return batch.rows.column(name), CellOrigin(batch.origin, name, batch.row)


@dataclass
class IdParser:
    """Parse an id column batch by batch and infer its type.

    Text files carry no types. Their id column is int64 if every value is a canonical int64 ('7', not '007'), unless the column that
    it must match holds strings. If every value is an integer with a decimal point ('7.0', as tools print integers stored as floats), it
    follows the type of that column. Typed inputs keep their type; narrower integers are widened.

    Attributes:
        drops_missing: Whether rows without an id are left out; untyped words for a missing value then count as missing.
        declared_type: Type of a typed input.
        declared_at: Where that type was first seen.
        text_origin: Where untyped text was first seen.
        first_non_integer: The first text that is not a canonical int64, and its origin.
        all_integral_floats: Whether every text so far is an integer with a decimal point.
        null_count: Null or blank ids so far.
        first_null: Origin of the first one.
        first_null_word: The first text that spells a missing value (NULL, NaN, …), and its origin.
        null_word_count: Number of such texts.
        others_are_integers: Whether every other text is a canonical int64.
    """

    drops_missing: bool = False
    declared_type: IdType | None = None
    declared_at: CellOrigin | None = None
    text_origin: CellOrigin | None = None
    first_non_integer: tuple[str, CellOrigin] | None = None
    all_integral_floats: bool = True
    null_count: int = 0
    first_null: CellOrigin | None = None
    first_null_word: tuple[str, CellOrigin] | None = None
    null_word_count: int = 0
    others_are_integers: bool = True

    def parse(self, values: pa.Array, origin: CellOrigin, *, untyped: bool) -> pa.Array:
        """Parse a batch to int64 or string; null or blank ids become null.

        Raises:
            BadValue: The column's type cannot be an id or changes between files, or a value is out of range.
        """
        values = decode_dictionary(values)
        if pa.types.is_null(values.type):
            ids = values.cast(pa.string())
        elif is_text_type(values.type):
            ids = self._text(values, origin, untyped=untyped)
        elif pa.types.is_integer(values.type) or (pa.types.is_decimal(values.type) and values.type.scale == 0):
            ids = self._integers(values, origin)
        else:
            raise origin.bad_value(
                f"contains {values.type}, which cannot be an id",
                next_step="map a column of integers or strings, or cast this one before (ids are never guessed from floats)",
            )
        self._count_nulls(ids, origin)
        return ids

    def _text(self, values: pa.Array, origin: CellOrigin, *, untyped: bool) -> pa.Array:
        ids = _as_text(values, origin)
        at = first_true_index(pc.greater(pc.binary_length(ids), _LONGEST_ID))
        if at is not None:
            raise origin.bad_value(
                f"an id of {len(ids[at].as_py())} characters, '{ids[at].as_py()[:20]}…'; the longest may take {_LONGEST_ID} bytes",
                at=at,
                next_step="map the column that has the ids, or hash long ones before",
            )
        blank = pc.equal(pc.utf8_trim_whitespace(ids), "")
        ids = pc.if_else(blank, None, ids)
        if not untyped:
            self._keep_type("string", origin)
            return ids
        if self.drops_missing:
            ids = pc.if_else(pc.is_in(ids, value_set=pa.array(_NULL_WORDS)), None, ids)
        self.text_origin = self.text_origin or origin
        self.all_integral_floats = (
            self.all_integral_floats and first_true_index(pc.invert(pc.match_substring_regex(ids, _FLOAT_TEXT))) is None
        )
        if self.first_non_integer is None:
            at = first_true_index(pc.invert(_canonical(ids)))
            if at is not None:
                self.first_non_integer = ids[at].as_py(), CellOrigin(origin.file, origin.column, origin.row + at)
        self._count_words(ids, origin)
        return ids

    def _count_words(self, ids: pa.Array, origin: CellOrigin) -> None:
        if self.first_non_integer is None:
            return
        words = pc.is_in(ids, value_set=pa.array(_NULL_WORDS))
        total = pc.sum(words).as_py() or 0
        self.others_are_integers = (
            self.others_are_integers and first_true_index(pc.invert(pc.or_(words, _canonical(ids)))) is None
        )
        if total and self.first_null_word is None:
            at = first_true_index(words) or 0
            self.first_null_word = ids[at].as_py(), CellOrigin(origin.file, origin.column, origin.row + at)
        self.null_word_count += total

    def _integers(self, values: pa.Array, origin: CellOrigin) -> pa.Array:
        self._keep_type("int64", origin)
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise origin.bad_value(
                f"contains integers that do not fit 64 signed bits ({error})", next_step="cast the column to strings before"
            ) from error

    def _keep_type(self, kind: IdType, origin: CellOrigin) -> None:
        if self.declared_type is None:
            self.declared_type, self.declared_at = kind, origin
        elif self.declared_type != kind and self.declared_at is not None:
            raise origin.bad_value(
                f"contains {kind} ids, but {self.declared_at.file} contains {self.declared_type} ids",
                next_step="write all files of a domain with one type of id",
            )

    def _count_nulls(self, ids: pa.Array, origin: CellOrigin) -> None:
        if ids.null_count:
            if self.first_null is None:
                at = first_true_index(pc.is_null(ids)) or 0
                self.first_null = CellOrigin(origin.file, origin.column, origin.row + at)
            self.null_count += ids.null_count

    def add(self, later: IdParser) -> None:
        """Add what another parser found in the rows that follow.

        Raises:
            BadValue: The column's type changes between files.
        """
        if later.declared_type is not None and later.declared_at is not None:
            self._keep_type(later.declared_type, later.declared_at)
        self.text_origin = self.text_origin or later.text_origin
        self.first_non_integer = self.first_non_integer or later.first_non_integer
        self.all_integral_floats = self.all_integral_floats and later.all_integral_floats
        self.first_null = self.first_null or later.first_null
        self.null_count += later.null_count
        self.first_null_word = self.first_null_word or later.first_null_word
        self.null_word_count += later.null_word_count
        self.others_are_integers = self.others_are_integers and later.others_are_integers

    def ensure_no_nulls(self) -> None:
        """Raise if there were missing ids; call after the last batch.

        A missing-value word among other texts may be a real id, so it is only logged as a warning. Nothing is raised if rows without an
        id are left out.

        Raises:
            BadValue: There were null or blank ids, or missing-value words among integers; says how many, and where the first one is.
        """
        if self.first_null_word is not None:
            word, origin = self.first_null_word
            if self.others_are_integers:
                raise origin.bad_value(
                    f"{self.null_word_count} ids are {word!r} or another word for a missing value, and all others are integers; the "
                    "first one here",
                    at=0,
                    next_step=_MISSING_ID_STEP,
                )
            logger.warning(
                "%s, column '%s', row %d: %r is used as an id; %d ids are words that often mean a missing value: remove these rows "
                "if they do",
                *(origin.file, origin.column, origin.row + 1, word, self.null_word_count),
            )
        if self.first_null is not None and not self.drops_missing:
            raise self.first_null.bad_value(
                f"{self.null_count} null or empty id{'s' if self.null_count > 1 else ''}, the first one here",
                at=0,
                next_step=_MISSING_ID_STEP,
            )


def parse_numbers(values: pa.Array, origin: CellOrigin) -> pa.Array:
    """Parse numbers, or text of numbers, to float64; nulls stay null.

    Raises:
        BadValue: Not a number.
    """
    values = decode_dictionary(values)
    if is_text_type(values.type):
        text = pc.utf8_trim_whitespace(values.cast(pa.string()))
        text = pc.if_else(pc.equal(text, ""), None, text)
        try:
            return text.cast(pa.float64())
        except pa.ArrowInvalid:
            at = first_cast_failure(text, pa.float64())
            raise origin.bad_value(
                f"'{text[at].as_py()[:100]}' is not a number", at=at, next_step="correct the value"
            ) from None
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        return values.cast(pa.float64(), safe=False)
    if pa.types.is_null(values.type):
        return values.cast(pa.float64())
    raise origin.bad_value(f"contains {values.type}, expected numbers", next_step="map a numeric column")


def parse_booleans(values: pa.Array, origin: CellOrigin) -> pa.Array:
    """Parse booleans, 0 and 1, or text such as true, no or 1; nulls and blank text stay null.

    Raises:
        BadValue: Another value.
    """
    values = decode_dictionary(values)
    if pa.types.is_boolean(values.type) or pa.types.is_null(values.type):
        return values.cast(pa.bool_())
    if not (is_text_type(values.type) or pa.types.is_integer(values.type)):
        raise origin.bad_value(f"contains {values.type}, expected true and false", next_step="map a column of booleans")
    words = pc.utf8_lower(pc.utf8_trim_whitespace(_as_text(values, origin)))
    words = pc.if_else(pc.equal(words, ""), None, words)
    is_true = pc.is_in(words, value_set=pa.array(_TRUE))
    known = pc.if_else(pc.or_(is_true, pc.is_in(words, value_set=pa.array(_FALSE))), is_true, None)
    at = first_true_index(pc.and_(pc.is_valid(words), pc.is_null(known)))
    if at is not None:
        raise origin.bad_value(f"'{words[at].as_py()[:100]}' is neither true nor false", at=at, next_step="correct the value")
    return known


def parse_texts(values: pa.Array, origin: CellOrigin) -> pa.Array:
    """Convert values to text; blank text becomes null.

    Raises:
        BadValue: Lists, structures or bytes, or text that is not UTF-8.
    """
    values = decode_dictionary(values)
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        raise origin.bad_value(
            f"contains {values.type}, expected text", next_step="map a column of text, or join its parts before"
        )
    text = _as_text(values, origin)
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), None, text)


def _as_text(values: pa.Array, origin: CellOrigin) -> pa.Array:
    """Cast plain values to text.

    Raises:
        BadValue: The text is not UTF-8.
    """
    text = values.cast(pa.string())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        raise origin.bad_value(
            f"contains text that is not UTF-8 ({error})", next_step="write the file again as UTF-8"
        ) from error
    return text


def decode_dictionary(values: pa.Array) -> pa.Array:
    """Decode a dictionary-encoded array; other arrays are returned as they are."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def is_text_type(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is one of the string types."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def first_true_index(mask: Any) -> int | None:
    """Return the position of the first true value, or None; null counts as false."""
    at = pc.index(mask, pa.scalar(value=True)).as_py()
    return None if at < 0 else int(at)


def _canonical(ids: pa.Array) -> pa.Array:
    """Return for each text whether it is the shortest spelling of an int64."""
    shaped = pc.match_substring_regex(ids, _INT64_TEXT)
    long = pc.and_(shaped, pc.greater_equal(pc.utf8_length(ids), 19))
    if not pc.any(long).as_py():
        return shaped
    fits = np.array([text is not None and _fits(text) for text in ids.to_pylist()])
    return pc.and_(shaped, pa.array(fits))


def _fits(text: str) -> bool:
    try:
        return -(2**63) <= int(text) < 2**63
    except ValueError:
        return False


def first_cast_failure(text: pa.Array, kind: pa.DataType) -> int:
    """Find the position of the first value that a cast rejects, by bisection."""
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            text.slice(low, middle - low).cast(kind)
        except pa.ArrowInvalid:
            high = middle
        else:
            low = middle
    return low
