# SPDX-License-Identifier: Apache-2.0
"""Rules of the Open Data Contract Standard as expectations of Great Expectations."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.quality.contract_terms import ENGINE, SEVERITIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Names that the standard's version 3.0 had for metrics.
_FORMER: Final = {"nullCheck": "nullValues", "duplicateCount": "duplicateValues"}
#: Option of a logical type → expectation and argument.
_OPTIONS: Final = {
    "minimum": ("expect_column_values_to_be_between", "min_value"),
    "maximum": ("expect_column_values_to_be_between", "max_value"),
    "minLength": ("expect_column_value_lengths_to_be_between", "min_value"),
    "maxLength": ("expect_column_value_lengths_to_be_between", "max_value"),
}
#: Operator of the standard → SQL.
_COMPARED: Final = {
    "mustBe": "=",
    "mustNotBe": "<>",
    "mustBeGreaterThan": ">",
    "mustBeGreaterOrEqualTo": ">=",
    "mustBeLessThan": "<",
    "mustBeLessOrEqualTo": "<=",
}
#: Options that say how a value is stored, not which values are valid.
_FORM: Final = {"timezone", "defaultTimezone"}
#: Bound of a time → SQL.
_BOUNDS: Final = {"min_value": ">", "max_value": "<"}


def type_entries(
    column: str, options: Mapping[str, Any], *, required: bool, unique: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the expectations of a column's type.

    Args:
        column: The column.
        options: Its ``logicalTypeOptions``.
        required: Whether it has no null.
        unique: Whether no value occurs twice.

    Returns:
        The expectations, and the options that have none.
    """
    entries = []
    if required:
        entries.append(_entry("expect_column_values_to_not_be_null", {"column": column}))
    if unique:
        entries.append(_entry("expect_column_values_to_be_unique", {"column": column}))
    kwargs: dict[str, dict[str, Any]] = {}
    unknown = []
    for key, value, exclusive in _plain_options(options):
        kind, argument = _OPTIONS.get(key, ("", ""))
        if kind and isinstance(value, str | date):
            sign = _BOUNDS[argument] + ("" if exclusive else "=")
            moments = f"CAST({_name(column)} AS TIMESTAMPTZ) {sign} CAST({_literal(value)} AS TIMESTAMPTZ)"
            entries.append(_query_entry(f"NOT {moments}"))
        elif kind:
            asked = kwargs.setdefault(kind, {"column": column})
            asked[argument] = value
            if exclusive:
                asked["strict_min" if argument == "min_value" else "strict_max"] = True
        elif key == "pattern":
            entries.append(_pattern_entry(column, str(value)))
        elif key not in _FORM:
            unknown.append(key)
    return [*entries, *(_entry(kind, asked) for kind, asked in kwargs.items())], unknown


def _plain_options(options: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yield each option without ``exclusive`` in its key, its value, and whether that value is excluded.

    Before version 3.1 of the standard, ``exclusiveMaximum`` is not a bound, but says whether ``maximum`` is excluded.
    """
    for key, value in options.items():
        if not key.startswith("exclusive"):
            yield key, value, options.get(f"exclusive{key.capitalize()}") is True
        elif not isinstance(value, bool):
            yield key.removeprefix("exclusive").lower(), value, True


def suite_entry(rule: Mapping[str, Any], column: str | None, *, share: float | None) -> dict[str, Any] | None:
    """Return a quality rule as an expectation; None: there is none for it.

    Args:
        rule: A rule of the standard.
        column: The column that it stands at; None: the object.
        share: Share of the rows that may break it; None: the rule has another form.
    """
    severity = SEVERITIES.get(str(rule.get("severity", "error")), "critical")
    about = {"description": rule["description"]} if isinstance(rule.get("description"), str) else {}
    entry = _plain_entry(rule, column, share)
    if entry is None:
        return None
    return entry | about | ({"severity": severity} if severity != "critical" else {})


def _plain_entry(rule: Mapping[str, Any], column: str | None, share: float | None) -> dict[str, Any] | None:
    """Return the expectation without its description and severity."""
    if rule.get("type") == "custom":
        return _custom_entry(rule)
    if rule.get("type") == "sql":
        return _sql_entry(rule, column)
    metric = str(rule.get("metric") or rule.get("rule"))
    metric = _FORMER.get(metric, metric)
    if metric == "rowCount" and column is None:
        return _row_count_entry(rule)
    make = _METRICS.get(metric)
    if make is None or share is None:
        return None
    arguments = rule.get("arguments")
    return make(
        column, arguments if isinstance(arguments, dict) else {}, {} if share == 0 else {"mostly": round(1 - share, 12)}
    )


def _custom_entry(rule: Mapping[str, Any]) -> dict[str, Any] | None:
    engine = re.sub(r"[^a-z]", "", str(rule.get("engine")).lower())
    found = rule.get("implementation")
    is_expectation = isinstance(found, dict) and isinstance(found.get("type"), str)
    return dict(found) if isinstance(found, dict) and is_expectation and engine == ENGINE.replace("-", "") else None


def _null_entry(column: str | None, _arguments: Mapping[str, Any], most: Mapping[str, float]) -> dict[str, Any] | None:
    return None if column is None else _entry("expect_column_values_to_not_be_null", {"column": column} | dict(most))


def _duplicate_entry(column: str | None, arguments: Mapping[str, Any], most: Mapping[str, float]) -> dict[str, Any] | None:
    names = arguments.get("properties")
    if most:
        return None
    if column is not None:
        return _entry("expect_column_values_to_be_unique", {"column": column})
    return _entry("expect_compound_columns_to_be_unique", {"column_list": names}) if isinstance(names, list) else None


def _valid_entry(column: str | None, arguments: Mapping[str, Any], most: Mapping[str, float]) -> dict[str, Any] | None:
    valid, pattern = arguments.get("validValues"), arguments.get("pattern")
    if column is None or (valid is None) == (pattern is None):
        return None
    if isinstance(valid, list):
        return _entry("expect_column_values_to_be_in_set", {"column": column, "value_set": valid} | dict(most))
    return _pattern_entry(column, pattern) if isinstance(pattern, str) and not most else None


def _missing_entry(column: str | None, arguments: Mapping[str, Any], most: Mapping[str, float]) -> dict[str, Any] | None:
    missing = arguments.get("missingValues")
    if column is None or not isinstance(missing, list) or most:
        return None
    texts = ", ".join(_literal(value) for value in missing if isinstance(value, str))
    numbers = ", ".join(_literal(value) for value in missing if value is not None and not isinstance(value, str))
    # A text such as 'N/A' is no value of a column of numbers, and the other way round.
    conditions = [f"CAST({_name(column)} AS VARCHAR) IN ({texts})"] if texts else []
    conditions += [f"TRY_CAST({_name(column)} AS DOUBLE) IN ({numbers})"] if numbers else []
    conditions += [f"{_name(column)} IS NULL"] if None in missing else []
    return _query_entry(" OR ".join(conditions)) if conditions else None


def _row_count_entry(rule: Mapping[str, Any]) -> dict[str, Any] | None:
    low = rule.get("mustBeGreaterOrEqualTo", rule.get("mustBe"))
    high = rule.get("mustBeLessOrEqualTo", rule.get("mustBe"))
    if isinstance(above := rule.get("mustBeGreaterThan"), int):
        low = above + 1
    if isinstance(below := rule.get("mustBeLessThan"), int):
        high = below - 1
    if isinstance(both := rule.get("mustBeBetween"), list) and len(both) == 2:  # noqa: PLR2004 - two bounds
        low, high = both
    if low is None and high is None:
        return None
    bounds = {"min_value": low, "max_value": high}
    return _entry("expect_table_row_count_to_be_between", {key: value for key, value in bounds.items() if value is not None})


def _sql_entry(rule: Mapping[str, Any], column: str | None) -> dict[str, Any] | None:
    """A query whose single value is compared: the row is unexpected if the comparison fails."""
    operators = [(sign, rule[key]) for key, sign in _COMPARED.items() if isinstance(rule.get(key), int | float)]
    query = rule.get("query")
    if len(operators) != 1 or not isinstance(query, str):
        return None
    known = {"table": "{batch}", "object": "{batch}"} | ({"column": _name(column), "property": _name(column)} if column else {})
    pieces = re.split(r"\$\{(\w+)\}", query.strip().rstrip(";"))
    if any(name not in known for name in pieces[1::2]):
        return None
    pieces[::2] = [text.replace("{", "{{").replace("}", "}}") for text in pieces[::2]]
    pieces[1::2] = [known[name] for name in pieces[1::2]]
    (sign, value) = operators[0]
    asked = f"SELECT * FROM ({''.join(pieces)}) AS measured(value) WHERE value IS NULL OR NOT value {sign} {value}"
    return _entry("unexpected_rows_expectation", {"unexpected_rows_query": asked})


def _pattern_entry(column: str, pattern: str) -> dict[str, Any]:
    """Great Expectations has no SQL form of regular expressions for DuckDB."""
    return _query_entry(f"NOT regexp_matches(CAST({_name(column)} AS VARCHAR), {_literal(pattern)})")


def _query_entry(condition: str) -> dict[str, Any]:
    return _entry("unexpected_rows_expectation", {"unexpected_rows_query": f"SELECT * FROM {{batch}} WHERE {condition}"})


def _entry(kind: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": kind, "kwargs": dict(kwargs)}


def _name(column: str) -> str:
    """Quote a column for a query; its braces are doubled, since the query is formatted."""
    return '"' + column.replace('"', '""').replace("{", "{{").replace("}", "}}") + '"'


def _literal(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return "'" + str(value).replace("'", "''").replace("{", "{{").replace("}", "}}") + "'"


#: Metric of the standard → what makes an expectation of its column, arguments and ``mostly``.
_METRICS: Final = {
    "nullValues": _null_entry,
    "duplicateValues": _duplicate_entry,
    "invalidValues": _valid_entry,
    "missingValues": _missing_entry,
}
