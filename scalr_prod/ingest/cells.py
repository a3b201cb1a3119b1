# SPDX-License-Identifier: Apache-2.0
"""One column of foreign cells → the type that the lake holds. A cell that cannot be taken is named by its row."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scalr_prod.errors import BadValue

if TYPE_CHECKING:
    from scalr_prod.contracts import IdType
    from scalr_prod.ingest.protocol import Batch

__all__ = ["Ids", "Place", "column_of", "decoded", "first_failure", "first_true", "is_text", "numbers", "texts"]

logger = logging.getLogger(__name__)

#: No id is longer than this; what is, is another column, or an attempt to fill memory and messages.
_LONGEST_ID = 1024
#: What databases and tools write into text files where there is no value.
_NOTHING = ["NULL", "Null", "null", "NaN", "nan", "NA", "N/A", "<NA>", "None", "none", "nil", "\\N"]
_INT64_TEXT = r"^(0|-?[1-9][0-9]{0,18})$"
#: A whole number as a column of floats is written.
_FLOAT_TEXT = r"^(0|-?[1-9][0-9]{0,14})\.0$"


@dataclass(frozen=True)
class Place:
    """Where a batch of one column comes from.

    Attributes:
        file: The file, or the database and query.
        column: The column's name there.
        row: Number of rows of the file before the batch.
    """

    file: str
    column: str
    row: int = 0

    def bad(self, found: str, *, at: int | None = None, next_step: str) -> BadValue:
        """The error for a cell (``at``: position in the batch) or for the whole column."""
        row = "" if at is None else f", row {self.row + at + 1}"
        return BadValue(found, where=f"{self.file}, column '{self.column}'{row}", next_step=next_step)


def column_of(batch: Batch, name: str) -> tuple[pa.Array, Place]:
    """A column of a batch, and where it comes from."""
    return batch.rows.column(name), Place(batch.origin, name, batch.row)


@dataclass
class Ids:
    """Reads an id column batch by batch and learns its type.

    Text files carry no types, so an id column of theirs is int64 where every value is a canonical int64 ('7', not '007'),
    unless what it must match holds strings. Where every value is a whole number with a point ('7.0', as tools write integers that
    they hold as floats), it is int64 if what it must match is. Typed inputs keep their type; narrower integers are widened.

    Attributes:
        typed: The type that a typed input came with.
        typed_at: Where that was.
        odd_text: The first text that is not a canonical int64, and where it was.
        floats: Whether every text so far is a whole number with a point.
        nulls: Null or blank ids so far.
        first_null: Where the first one was.
        first_word: The first text that databases and tools write where there is nothing (NULL, NaN, …), and where it was.
        words: How many of those there were.
        whole: Whether every other text is a canonical int64.
    """

    typed: IdType | None = None
    typed_at: Place | None = None
    text_at: Place | None = None
    odd_text: tuple[str, Place] | None = None
    floats: bool = True
    nulls: int = 0
    first_null: Place | None = None
    first_word: tuple[str, Place] | None = None
    words: int = 0
    whole: bool = True

    def read(self, values: pa.Array, place: Place, *, untyped: bool) -> pa.Array:
        """A batch as int64 or string, null where the id is null or blank.

        Raises:
            BadValue: The column's type can be no id, it changes between files, or a value does not fit.
        """
        values = decoded(values)
        if pa.types.is_null(values.type):
            ids = values.cast(pa.string())
        elif is_text(values.type):
            ids = self._text(values, place, untyped=untyped)
        elif pa.types.is_integer(values.type) or (pa.types.is_decimal(values.type) and values.type.scale == 0):
            ids = self._integers(values, place)
        else:
            raise place.bad(
                f"holds {values.type}, which cannot be an id",
                next_step="map a column of integers or strings, or cast this one before (ids are never guessed from floats)",
            )
        self._count_nulls(ids, place)
        return ids

    def _text(self, values: pa.Array, place: Place, *, untyped: bool) -> pa.Array:
        ids = _as_text(values, place)
        at = first_true(pc.greater(pc.binary_length(ids), _LONGEST_ID))
        if at is not None:
            raise place.bad(
                f"an id of {len(ids[at].as_py())} characters, '{ids[at].as_py()[:20]}…'; the longest may take {_LONGEST_ID} bytes",
                at=at,
                next_step="map the column that holds the ids, or hash long ones before",
            )
        blank = pc.equal(pc.utf8_trim_whitespace(ids), "")
        ids = pc.if_else(blank, None, ids)
        if not untyped:
            self._keep_type("string", place)
            return ids
        self.text_at = self.text_at or place
        self.floats = self.floats and first_true(pc.invert(pc.match_substring_regex(ids, _FLOAT_TEXT))) is None
        if self.odd_text is None:
            at = first_true(pc.invert(_canonical(ids)))
            if at is not None:
                self.odd_text = ids[at].as_py(), Place(place.file, place.column, place.row + at)
        self._count_words(ids, place)
        return ids

    def _count_words(self, ids: pa.Array, place: Place) -> None:
        if self.odd_text is None:
            return
        words = pc.is_in(ids, value_set=pa.array(_NOTHING))
        found = pc.sum(words).as_py() or 0
        self.whole = self.whole and first_true(pc.invert(pc.or_(words, _canonical(ids)))) is None
        if found and self.first_word is None:
            at = first_true(words) or 0
            self.first_word = ids[at].as_py(), Place(place.file, place.column, place.row + at)
        self.words += found

    def _integers(self, values: pa.Array, place: Place) -> pa.Array:
        self._keep_type("int64", place)
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise place.bad(
                f"holds integers that do not fit 64 signed bits ({error})", next_step="cast the column to strings before"
            ) from error

    def _keep_type(self, kind: IdType, place: Place) -> None:
        if self.typed is None:
            self.typed, self.typed_at = kind, place
        elif self.typed != kind and self.typed_at is not None:
            raise place.bad(
                f"holds {kind} ids, but {self.typed_at.file} holds {self.typed} ids",
                next_step="write all files of a domain with one type of id",
            )

    def _count_nulls(self, ids: pa.Array, place: Place) -> None:
        if ids.null_count:
            if self.first_null is None:
                at = first_true(pc.is_null(ids)) or 0
                self.first_null = Place(place.file, place.column, place.row + at)
            self.nulls += ids.null_count

    def refuse_nulls(self) -> None:
        """Call after the last batch. Of a word that stands for nothing among other texts, which may be an id, a warning is logged.

        Raises:
            BadValue: There were null or blank ids, or such words among whole numbers; says how many and where the first one is.
        """
        if self.first_word is not None:
            word, place = self.first_word
            if self.whole:
                raise place.bad(
                    f"{self.words} ids are the text {word!r}, or another that stands for nothing, and all others are whole numbers; the "
                    "first one here",
                    at=0,
                    next_step="remove these rows or give them an id; rows are never dropped silently",
                )
            logger.warning(
                "%s, column '%s', row %d: %r is taken for an id; so are %d texts that often stand for nothing: remove these rows "
                "where they do",
                *(place.file, place.column, place.row + 1, word, self.words),
            )
        if self.first_null is not None:
            raise self.first_null.bad(
                f"{self.nulls} null or empty id{'s' if self.nulls > 1 else ''}, the first one here",
                at=0,
                next_step="remove these rows or give them an id; rows are never dropped silently",
            )


def numbers(values: pa.Array, place: Place) -> pa.Array:
    """Numbers or their text as float64; nulls stay.

    Raises:
        BadValue: Not a number.
    """
    values = decoded(values)
    if is_text(values.type):
        text = pc.utf8_trim_whitespace(values.cast(pa.string()))
        text = pc.if_else(pc.equal(text, ""), None, text)
        try:
            return text.cast(pa.float64())
        except pa.ArrowInvalid:
            at = first_failure(text, pa.float64())
            raise place.bad(f"'{text[at].as_py()[:100]}' is not a number", at=at, next_step="correct the value") from None
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        return values.cast(pa.float64(), safe=False)
    if pa.types.is_null(values.type):
        return values.cast(pa.float64())
    raise place.bad(f"holds {values.type}, expected numbers", next_step="map a numeric column")


def texts(values: pa.Array, place: Place) -> pa.Array:
    """Text, or plain values as text; blank becomes null.

    Raises:
        BadValue: Lists, structures or bytes, or text that is not UTF-8.
    """
    values = decoded(values)
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        raise place.bad(f"holds {values.type}, expected text", next_step="map a column of text, or join its parts before")
    text = _as_text(values, place)
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), None, text)


def _as_text(values: pa.Array, place: Place) -> pa.Array:
    """Plain values as text.

    Raises:
        BadValue: They are text that is not UTF-8.
    """
    text = values.cast(pa.string())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        raise place.bad(f"holds text that is not UTF-8 ({error})", next_step="write the file again as UTF-8") from error
    return text


def decoded(values: pa.Array) -> pa.Array:
    """The values themselves, where they are given by the numbers of a dictionary."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of the string types."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def first_true(mask: Any) -> int | None:
    """Position of the first true cell; null counts as false."""
    at = pc.index(mask, pa.scalar(value=True)).as_py()
    return None if at < 0 else int(at)


def _canonical(ids: pa.Array) -> pa.Array:
    """Whether text is the shortest spelling of an int64."""
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


def first_failure(text: pa.Array, kind: pa.DataType) -> int:
    """Position of the first cell that a cast refuses, by bisection."""
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
