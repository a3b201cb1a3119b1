# SPDX-License-Identifier: Apache-2.0
"""Parser of timestamp columns: input values → UTC microseconds. Naive timestamps are rejected unless the settings name their zone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from scalr_prod.ingest.column_parsers import CellOrigin, decode_dictionary, first_cast_failure, first_true_index, is_text_type

if TYPE_CHECKING:
    from scalr_prod.errors import BadValue


logger = logging.getLogger(__name__)

UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")
_NAIVE = pa.timestamp("us")

_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2}(\.\d+)?)?)?(Z|[+-]\d{2}(:?\d{2})?)?)?$"
_ZONED = r"[T ]\d{2}.*(Z|[+-]\d{2}(:?\d{2})?)$"
_NUMBER = r"^-?\d+(\.\d*)?([eE]\+?\d+)?$"

#: Magnitudes of epoch numbers; each range spans 1973 to 5138. Below it, days and seconds cannot be told apart.
_UNITS = (("s", 1e8, 1_000_000.0), ("ms", 1e11, 1_000.0), ("us", 1e14, 1.0), ("ns", 1e17, 1e-3))
_TOP = 1e20

#: Range of pandas (and so Feast) at nanosecond resolution.
_EARLIEST, _LATEST = -9_214_560_000_000_000, 9_214_560_000_000_000


@dataclass
class TimestampParser:
    """Parse a timestamp column batch by batch.

    Attributes:
        zone: IANA zone of naive timestamps, or None to reject them.
        settings_key: The setting that names the zone, for the error.
        unit: Unit of epoch numbers, once seen; it may not change.
        first_epoch: Origin of the first of these.
        with_offset: Number of times with a UTC offset or zone so far.
        without_offset: Number of times without one.
        first_without: Origin of the first of these.
        format: `strptime` format of local times, given as text or integers, that are not ISO 8601.
    """

    zone: str | None
    settings_key: str
    unit: str | None = None
    format: str | None = None
    with_offset: int = 0
    without_offset: int = 0
    first_without: CellOrigin | None = None
    first_epoch: CellOrigin | None = None

    def parse(self, values: pa.Array, origin: CellOrigin) -> pa.Array:
        """Parse a batch to ``timestamp[us, UTC]``; finer resolution is truncated.

        Local times that are ambiguous or do not exist (daylight saving changes) become the later instant, so that nothing is known
        before it happened.

        Raises:
            BadValue: Null, unparsable, naive without a zone, an epoch number of unclear unit, or outside the years 1678 to 2261.
        """
        values = decode_dictionary(values)
        at = first_true_index(pc.is_null(values, nan_is_null=True))
        if at is not None:
            raise origin.bad_value("null timestamp", at=at, next_step="remove the row or give it a time")
        kind = values.type
        if pa.types.is_timestamp(kind):
            self.with_offset += len(values) if kind.tz else 0
            instants = _to_us(values, origin) if kind.tz else self._localise(_to_us(values, origin), origin)
        elif pa.types.is_date(kind):
            instants = self._localise(_to_us(values.cast(pa.timestamp("s")), origin), origin)
        elif self.format is not None and (is_text_type(kind) or pa.types.is_integer(kind)):
            instants = self._localise(self._formatted(pc.utf8_trim_whitespace(values.cast(pa.string())), origin), origin)
        elif is_text_type(kind):
            instants = self._parse(pc.utf8_trim_whitespace(values.cast(pa.string())), origin)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            instants = self._from_epoch(values, origin)
        else:
            raise origin.bad_value(
                f"contains {kind}, which is not a timestamp", next_step="map a column of timestamps, dates or epoch numbers"
            )
        micros = instants.cast(pa.int64())
        at = first_true_index(pc.or_(pc.less(micros, _EARLIEST), pc.greater(micros, _LATEST)))
        if at is not None:
            raise origin.bad_value(
                f"{values[at].as_py()} is outside the years 1678 to 2261",
                at=at,
                next_step="correct the value, or leave the row out",
            )
        return instants

    def add(self, later: TimestampParser) -> None:
        """Add what another parser found in the rows that follow.

        Raises:
            BadValue: The unit of epoch numbers changes.
        """
        if later.unit is not None and later.first_epoch is not None:
            self._keep_unit(later.unit, later.first_epoch)
        self.with_offset += later.with_offset
        self.without_offset += later.without_offset
        self.first_without = self.first_without or later.first_without

    def _keep_unit(self, unit: str, origin: CellOrigin) -> None:
        if self.unit is None:
            self.unit, self.first_epoch = unit, origin
        elif self.unit != unit:
            raise origin.bad_value(
                f"epoch numbers change from {self.unit} to {unit}", at=0, next_step="give all of the column in one unit"
            )

    def warn_on_mixed_times(self) -> None:
        """Log a warning if there were times both with and without a UTC offset; call after the last batch."""
        if self.with_offset and self.first_without is not None:
            logger.warning(
                "%s, column '%s', row %d: the column has %d times with a UTC offset and %d without, the first one here; those without "
                "are read as %s: check that they are local times",
                *(self.first_without.file, self.first_without.column, self.first_without.row + 1),
                *(self.with_offset, self.without_offset, self.zone),
            )

    def _localise(self, naive: pa.Array, origin: CellOrigin) -> pa.Array:
        if self.zone is None:
            raise self._naive(f"({naive[0].as_py() if len(naive) else 'no zone'})", 0, origin)
        local = len(naive) - naive.null_count
        if local and self.first_without is None:
            at = first_true_index(naive.is_valid()) or 0
            self.first_without = CellOrigin(origin.file, origin.column, origin.row + at)
        self.without_offset += local
        if self.zone.upper() in {"UTC", "ETC/UTC"}:
            return naive.cast(UTC_MICROSECONDS)
        try:
            return pc.assume_timezone(naive, self.zone, ambiguous="latest", nonexistent="latest").cast(UTC_MICROSECONDS)
        except (pa.ArrowInvalid, OSError) as error:
            raise origin.bad_value(
                f"cannot be localised in {self.zone}: {error}", next_step="install the system's time zone data (tzdata)"
            ) from error

    def _naive(self, text: str, at: int, origin: CellOrigin) -> BadValue:
        next_step = f'set {self.settings_key}, for example {self.settings_key} = "UTC"'
        return origin.bad_value(f"naive timestamp {text}: its time zone is not known", at=at, next_step=next_step)

    def _parse(self, text: pa.Array, origin: CellOrigin) -> pa.Array:
        if not len(text):
            return text.cast(UTC_MICROSECONDS)
        numbers = pc.match_substring_regex(text, _NUMBER)
        if (other_at := first_true_index(pc.invert(numbers))) is None:
            fraction = pc.any(pc.match_substring_regex(text, r"[.eE]")).as_py()
            kind = pa.float64() if fraction else pa.int64()
            return self._from_epoch(_cast(text, kind, origin), origin)
        text = pc.replace_substring_regex(text, r"\s*(UTC|GMT)$", "Z")
        text = pc.replace_substring_regex(text, r"\s+([+-]\d{2}(:?\d{2})?)$", r"\1")
        text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
        is_iso = pc.match_substring_regex(text, _ISO)
        at = first_true_index(pc.invert(is_iso))
        if at is not None and numbers[at].as_py() and is_iso[other_at].as_py():
            raise origin.bad_value(
                f"epoch numbers are mixed with ISO 8601 texts: '{text[at].as_py()}' here, '{text[other_at].as_py()}' in row "
                f"{origin.row + other_at + 1}",
                at=at,
                next_step="give all of the column in one form",
            )
        if at is not None:
            raise _unparsable(text, other_at if numbers[at].as_py() else at, origin)
        zoned = pc.match_substring_regex(text, _ZONED)
        self.with_offset += pc.sum(zoned).as_py() or 0
        naive_at = first_true_index(pc.invert(zoned))
        if naive_at is None:
            return _cast(text, UTC_MICROSECONDS, origin)
        if self.zone is None:
            raise self._naive(f"'{text[naive_at].as_py()[:100]}'", naive_at, origin)
        aware = _cast(pc.if_else(zoned, text, None), UTC_MICROSECONDS, origin)
        local = self._localise(_cast(pc.if_else(zoned, None, text), _NAIVE, origin), origin)
        return pc.coalesce(aware, local)

    def _formatted(self, text: pa.Array, origin: CellOrigin) -> pa.Array:
        naive = pc.strptime(text, format=self.format, unit="s", error_is_null=True)
        # strptime turns 31 February into 2 March: the parsed value must format back to the input.
        formatted = _unpadded(pc.strftime(naive, format=self.format, locale="C"))
        at = first_true_index(pc.invert(pc.fill_null(pc.equal(formatted, _unpadded(text)), fill_value=False)))
        if at is not None:
            raise origin.bad_value(
                f"'{text[at].as_py()[:100]}' is not a timestamp of the form {self.format}",
                at=at,
                next_step="correct the value, or timestamp_format under [domains] in scalr.toml",
            )
        return naive.cast(_NAIVE)

    def _from_epoch(self, values: pa.Array, origin: CellOrigin) -> pa.Array:
        size = pc.abs(values.cast(pa.float64(), safe=False))
        fitting = [
            (unit, factor)
            for unit, least, factor in _UNITS
            if first_true_index(pc.or_(pc.less(size, least), pc.greater_equal(size, least * 1000))) is None
        ]
        if not fitting:
            low, high = pc.min_max(size).as_py().values()
            at = first_true_index(pc.or_(pc.less(size, _UNITS[0][1]), pc.greater_equal(size, _TOP)))
            raise origin.bad_value(
                f"epoch numbers of unclear unit (magnitudes {low:g} to {high:g})",
                at=at,
                next_step="give ISO timestamps, or epoch numbers in one unit from 1973 on",
            )
        unit, factor = fitting[0]
        if len(values):
            self._keep_unit(unit, origin)
        if pa.types.is_integer(values.type):
            integers = _cast_times(values, pa.int64(), origin)
            micros = pc.divide(integers, 1000) if unit == "ns" else pc.multiply(integers, int(factor))
        else:
            micros = pc.round(pc.multiply(values.cast(pa.float64(), safe=False), factor)).cast(pa.int64())
        return micros.cast(UTC_MICROSECONDS)


def _unpadded(text: pa.Array) -> pa.Array:
    """Return text in lower case, without leading zeros of numbers."""
    return pc.replace_substring_regex(pc.utf8_lower(text), r"\b0+(\d)", r"\1")


def _to_us(values: pa.Array, origin: CellOrigin) -> pa.Array:
    target = pa.timestamp("us", tz=values.type.tz)
    micros = values.cast(target, safe=False) if values.type.unit == "ns" else _cast_times(values, target, origin)
    return micros.cast(UTC_MICROSECONDS) if values.type.tz else micros


def _cast_times(values: pa.Array, kind: pa.DataType, origin: CellOrigin) -> pa.Array:
    try:
        return values.cast(kind)
    except pa.ArrowInvalid as error:
        raise origin.bad_value(
            f"timestamp out of range ({error})",
            at=first_cast_failure(values, kind),
            next_step="correct the value, or leave the row out",
        ) from error


def _cast(text: pa.Array, kind: pa.DataType, origin: CellOrigin) -> pa.Array:
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        raise _unparsable(text, first_cast_failure(text, kind), origin) from None


def _unparsable(text: pa.Array, at: int, origin: CellOrigin) -> BadValue:
    return origin.bad_value(
        f"'{text[at].as_py()[:100]}' is not a timestamp",
        at=at,
        next_step="give ISO 8601 (2024-05-01T12:30:00Z), dates, or epoch seconds, milliseconds or microseconds",
    )
