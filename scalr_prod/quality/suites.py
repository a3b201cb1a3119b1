# SPDX-License-Identifier: Apache-2.0
"""User-editable suites: Great Expectations suites in YAML or JSON, with a few extra keys in ``meta``."""

from __future__ import annotations

import difflib
import json
import re
from copy import deepcopy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import QualityError, SettingsError
from scalr_prod.quality.new_file import write_new_file
from scalr_prod.schemas import CREATED_TIMESTAMP, SPLIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


#: Default column names of the built-in suites.
DEFAULT_COLUMNS: Final = {
    "user": "user_id",
    "item": "item_id",
    "timestamp": "event_timestamp",
    "label": "label",
    "weight": "weight",
    "synthetic": "is_synthetic",
    "created": CREATED_TIMESTAMP,
    "split": SPLIT,
}
_BUILT_IN: Final = {name: Path(__file__).with_name(f"{name}.yaml") for name in ("training", "leaks")}
#: Folder that is searched first for a suite given by name.
_FOLDER: Final = "quality"
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_SEVERITIES: Final = ("critical", "warning", "info")
_TIMES: Final = ("TIMESTAMP", "DATE")
_NUMBERS: Final = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    *("FLOAT", "DOUBLE", "DECIMAL"),
)
#: meta.each.kind → whether it includes a DuckDB type.
_KINDS: Final[Mapping[str, Callable[[str], bool]]] = {
    "any": lambda _: True,
    "time": lambda name: name.startswith(_TIMES) and not name.endswith("]"),
    "times": lambda name: name.startswith(_TIMES) and name.endswith("]"),
    "number": lambda name: name.startswith(_NUMBERS) and not name.endswith("]"),
    "text": lambda name: name == "VARCHAR",
}
#: Column names that can be written into a suite's text.
_PLAIN: Final = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Suite:
    """A suite as read from its file.

    Attributes:
        name: Its name in data docs.
        file: The file, or ``built in``.
        entries: Its expectations, unchanged.
    """

    name: str
    file: str
    entries: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SuiteRule:
    """An expectation for the columns of one data set.

    Attributes:
        name: Its name in the verdict, unique in the suite.
        description: The requirement, in a sentence.
        type: Great Expectations' type name.
        kwargs: Its arguments.
        severity: ``critical``, ``warning`` or ``info``.
        columns: Columns named by its arguments.
        missing: Needed columns that the data set lacks; if any, the rule is skipped.
    """

    name: str
    description: str
    type: str
    kwargs: Mapping[str, Any]
    severity: str
    columns: tuple[str, ...]
    missing: tuple[str, ...] = ()


def write_suite(path: Path, columns: Mapping[str, str] | None = None, *, name: str = "training") -> str:
    """Write a built-in suite, with comments, for editing.

    Args:
        path: A file that does not exist yet.
        columns: Other names of the columns ``user``, ``item``, ``timestamp``, ``label``, ``weight``, ``synthetic``, ``created`` and
            ``split``.
        name: ``training``, or ``leaks``.

    Returns:
        The path.

    Raises:
        QualityError: The file exists, or is not writable, or a column name needs escaping; nothing was written.
    """
    import yaml

    for role, column in (columns or {}).items():
        if not _PLAIN.fullmatch(column) or yaml.safe_load(column) != column:  # YAML does not read yes, off or null as text
            raise QualityError(
                f"the name {column!r} cannot be written into a suite as it is",
                where=f"--{role}",
                next_step="write the suite without it, then edit the name in the file",
            )
    write_new_file(path, _render(name, columns or {}), if_exists="edit it, or name another file")
    return str(path)


def read_suite(name_or_path: str, base: Path) -> Suite:
    """Read a suite by path or name.

    Args:
        name_or_path: A YAML or JSON file; or a name, for ``quality/<name>.yaml`` (``.yml``, ``.json``) below ``base``, else for a built-in
            suite (``training``, ``leaks``).
        base: Base of relative paths.

    Raises:
        SettingsError: There is no such suite, or the file is invalid; the error names the expectation and the key.
    """
    path = base / Path(name_or_path).expanduser()
    if not path.is_file() and Path(name_or_path).suffix not in _SUFFIXES:
        candidates = [base / _FOLDER / f"{name_or_path}{suffix}" for suffix in _SUFFIXES]
        path = next((file for file in candidates if file.is_file()), path)
        if not path.is_file() and name_or_path in _BUILT_IN:
            return _suite(_parsed(_render(name_or_path, {}), name_or_path), "built in", name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"there is no suite {name_or_path!r}: {_reason(error)}",
            where=str(path),
            next_step=f"write one to edit: scalr quality init-suite {_FOLDER}/training.yaml",
        ) from error
    return _suite(_parsed(text, str(path)), str(path), path.stem)


def resolve_rules(suite: Suite, columns: Mapping[str, str], *, measured: bool = False) -> list[SuiteRule]:
    """Resolve the suite's expectations for a data set; ``meta.each`` gives one per matching column.

    Args:
        suite: The suite.
        columns: Column → DuckDB type.
        measured: Whether an evaluation chose the weight of synthetic rows; ``meta.where_measured`` is then the severity.

    Raises:
        SettingsError: An entry is not an expectation; the error names it.
    """
    rules: dict[str, SuiteRule] = {}
    for number, entry in enumerate(suite.entries, 1):
        for rule in _rules(entry, columns, _place(suite.file, number, entry), measured=measured):
            numbered = (f"{rule.name}_{again}" for again in count(2))
            name = next(name for name in chain([rule.name], numbered) if name not in rules)
            rules[name] = replace(rule, name=name)
    return list(rules.values())


def _rules(entry: Mapping[str, Any], columns: Mapping[str, str], where: str, *, measured: bool) -> Iterator[SuiteRule]:
    meta = dict(entry.get("meta") or {})
    severity = (measured and meta.get("where_measured")) or entry.get("severity") or "critical"
    kwargs = dict(entry.get("kwargs") or {})
    needs = meta.get("needs") or []
    if any(name in columns for name in meta.get("unless") or []):
        return
    if severity not in _SEVERITIES:
        raise _bad(where, f"severity is {severity!r}", f"one of {', '.join(_SEVERITIES)}")
    named = [kwargs.get(key) for key in ("column", "column_A", "column_B")] + list(kwargs.get("column_list") or [])
    rule = SuiteRule(
        str(meta.get("rule") or _default_name(entry["type"], named)),
        str(entry.get("description") or entry["type"].replace("_", " ")),
        entry["type"],
        kwargs,
        severity,
        tuple(str(name) for name in named if name is not None and name != "{column}"),
        tuple(name for name in needs if name not in columns),
    )
    each = meta.get("each")
    if each is None:
        yield rule
        return
    matching = _matching(each, columns)
    if rule.missing or not matching:
        missing = rule.missing or tuple(map(str, each["columns"]))
        plain = rule.description.replace("{column}", "a feature")
        yield SuiteRule(rule.name, plain, rule.type, rule.kwargs, rule.severity, (), missing)
    for column in [] if rule.missing else matching:
        if column not in needs:
            yield SuiteRule(
                f"{column}_{rule.name}",
                rule.description.replace("{column}", column),
                rule.type,
                _substitute(kwargs, column),
                rule.severity,
                (*rule.columns, column),
            )


def _matching(each: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    has_kind = _KINDS[each.get("kind", "any")]
    return [
        name
        for name, type_ in columns.items()
        if any(fnmatchcase(name, pattern) for pattern in each["columns"])
        and name not in each.get("except", [])
        and has_kind(type_)
    ]


def _substitute(value: Any, column: str) -> Any:
    """Substitute the column's name for ``{column}`` in the arguments; quoted inside a query."""
    if isinstance(value, str):
        quoted = '"' + column.replace('"', '""').replace("{", "{{").replace("}", "}}") + '"'
        return column if value == "{column}" else value.replace("{column}", quoted)
    if isinstance(value, dict):
        return {key: _substitute(inner, column) for key, inner in value.items()}
    return [_substitute(inner, column) for inner in value] if isinstance(value, list) else value


def _render(name: str, columns: Mapping[str, str]) -> str:
    text = _BUILT_IN[name].read_text(encoding="utf-8")
    for role, column in (DEFAULT_COLUMNS | dict(columns)).items():
        text = text.replace(f'"<{role}>"', '"' + column.replace('"', '""') + '"').replace(f"<{role}>", column)
    return text


def _parsed(text: str, where: str) -> Any:
    import yaml

    try:
        return json.loads(text) if where.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"cannot be read as a suite: {error}", where=where, next_step="correct the file") from error


def _suite(content: Any, file: str, name: str) -> Suite:
    entries = content.get("expectations") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise _bad(file, "has no list of expectations", "expectations: [{type: …, kwargs: {…}}]")
    entries = deepcopy(entries)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise _bad(f"{file}, expectation {number}", "has no type", "type: expect_column_to_exist")
        _check(entry, _place(file, number, entry))
        kwargs = entry.get("kwargs") or {}
        if "unexpected_rows_query" in kwargs:  # Great Expectations embeds it in a query
            kwargs["unexpected_rows_query"] = kwargs["unexpected_rows_query"].rstrip("; \t\r\n\v\f")
    return Suite(str(content.get("name") or name), file, entries)


def _place(file: str, number: int, entry: Mapping[str, Any]) -> str:
    meta = entry.get("meta")
    return f"{file}, expectation {number} ({(meta.get('rule') if isinstance(meta, dict) else None) or entry['type']})"


def _check(entry: Mapping[str, Any], where: str) -> None:
    """Check the keys that this module reads; Great Expectations checks the other arguments.

    Raises:
        SettingsError: A key is invalid; the error names it.
    """
    for key in ("kwargs", "meta"):
        if not isinstance(entry.get(key) or {}, dict):
            raise _bad(where, f"{key} is not a mapping", f"{key}: {{…}}")
    kwargs, meta = entry.get("kwargs") or {}, entry.get("meta") or {}
    for key in ("column", "column_A", "column_B", "unexpected_rows_query"):
        if key in kwargs and not isinstance(kwargs[key], str):
            raise _bad(where, f"kwargs.{key} is {kwargs[key]!r}, not text", f"{key}: …, in quotes where it looks like a number")
    for key, names in (
        ("kwargs.column_list", kwargs.get("column_list", [""])),
        ("meta.needs", meta.get("needs") or []),
        ("meta.unless", meta.get("unless") or []),
    ):
        _check_names(key, names, where)
    each = meta.get("each")
    if each is None:
        return
    if not isinstance(each, dict) or not {"columns"} <= each.keys() <= {"columns", "kind", "except"}:
        raise _bad(where, "meta.each lacks columns, or has an unknown key", "{columns: ['*__*'], kind: time}")
    _check_names("meta.each.columns", each["columns"] or None, where)
    _check_names("meta.each.except", each.get("except", []), where)
    kind = each.get("kind", "any")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise _bad(where, f"meta.each.kind is {kind!r}", f"one of {', '.join(_KINDS)}")


def check_expectation_type(name: str, known: Sequence[str], where: str) -> None:
    """Check that Great Expectations has an expectation type.

    Raises:
        SettingsError: It has not; the error suggests the closest name.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise _bad(where, f"there is no expectation {name!r}", f"{close[0]}" if close else "expect_column_to_exist")


def _default_name(kind: str, columns: Sequence[Any]) -> str:
    return "_".join([kind.removeprefix("expect_"), *(str(name) for name in columns if name and name != "{column}")])


def _check_names(key: str, value: Any, where: str) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _bad(where, f"{key} is {value!r}, not a list of names", "[user_id, item_id]")


def _bad(where: str, found: str, example: str) -> SettingsError:
    return SettingsError(found, where=where, next_step=f"write it as: {example}; see docs/guides/quality.md")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
