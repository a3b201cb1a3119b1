# SPDX-License-Identifier: Apache-2.0
"""Reference of all settings, and the values in force with their origin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from scalr_prod.config.settings import Settings
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.redaction import redact_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo


_HEAD: Final = """# Settings

Every key of `scalr.toml` with its type, default and meaning. This page is generated from the code by `make docs`.

Environment variables override the file: `SCALR_GENERATION__MODE=causal` sets `[generation] mode`; lists and sections are written as
JSON. An unknown key is an error. `scalr config show` lists the values in force and where each came from.
"""


@dataclass(frozen=True)
class SettingKey:
    """A key of scalr.toml.

    Attributes:
        section: Its TOML table: ``generation``, ``domains.<domain>.columns``.
        name: Its name in that table.
        type: Type of its value, for people.
        default: As TOML; None: no default, or one that depends on the machine or on other keys.
        description: Its description.
    """

    section: str
    name: str
    type: str
    default: str | None
    description: str


@dataclass(frozen=True)
class EffectiveSetting(Jsonable):
    """A value in force.

    Attributes:
        key: ``[generation] mode``.
        value: The value; ``***`` for a secret.
        source: ``default``, ``file``, ``override``, or ``environment`` with the variable's name.
        says: The key's description.
    """

    key: str
    value: Any
    source: str
    says: str


def list_setting_keys() -> list[SettingKey]:
    """List all keys in the order of the sections; the keys of a domain appear once for all places."""
    return [
        SettingKey(
            _place(path[:-1]),
            path[-1],
            _type(field.annotation),
            None if field.default is PydanticUndefined or field.default is None else _toml(field.default),
            field.description or "",
        )
        for path, field in _walk(Settings, ())
    ]


def effective_settings(settings: Settings) -> list[EffectiveSetting]:
    """List every value in force with its origin, in the order of the sections; secrets are masked."""
    effective = []
    for path, field, value in _values(settings, ()):
        secret = not field.repr and value != field.get_default(call_default_factory=True)
        shown = _shown(value, secret=secret)
        effective.append(
            EffectiveSetting(f"[{'.'.join(path[:-1])}] {path[-1]}", shown, settings.origin(path), field.description or "")
        )
    return effective


def render_reference() -> str:
    """Render docs/reference/settings.md: a table for each section."""
    sections: dict[str, list[SettingKey]] = {}
    for key in list_setting_keys():
        sections.setdefault(key.section, []).append(key)
    lines = [_HEAD]
    for section, keys in sections.items():
        lines += [f"## `[{section}]`", "| key | type | default | meaning |", "|---|---|---|---|"]
        for key in keys:
            says = key.description.replace("|", "\\|").replace("<", "&lt;")
            default = "" if key.default is None else f"`{key.default}`"
            lines.append(f"| `{key.name}` | {key.type} | {default} | {says} |")
        lines.append("")
    return "\n".join(lines)


def _walk(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in model.model_fields.items():
        if field.exclude or (path == ("domains",) and name != "source"):
            continue
        below = _model(field.annotation)
        if below is not None:
            yield from _walk(below, (*path, name))
        else:
            yield (*path, name), field


def _values(model: BaseModel, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo, Any]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _values(value, (*path, name))
        elif isinstance(value, dict) and path == ("domains",):
            for key, section in value.items():
                yield from _values(section, (*path, name, key))
        elif not field.exclude and not (value is None and _model(field.annotation)):
            yield (*path, name), field, value


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the section model that a field holds, or None if it holds a plain value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and get_origin(annotation) is not dict:
            return kind
    return None


def _place(path: tuple[str, ...]) -> str:
    return ".".join(path).replace("domains.source", "domains.<domain>")


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), [kind for kind in get_args(annotation) if kind is not type(None)]
    if origin is Literal:
        return ", ".join(f"`{_toml(choice)}`" for choice in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        if inner[-1] is datetime:
            return "table of times"
        return "table of text" if inner[-1] is str or get_origin(inner[-1]) is Literal else "table of numbers"
    if inner:  # a union or Annotated
        return _type(inner[0])
    return {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "true, false",
        "datetime": "time with a zone",
        "AwareDatetime": "time with a zone",
    }[annotation.__name__]


def _toml(value: Any) -> str:
    import json

    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _shown(value: Any, *, secret: bool) -> Any:
    if value is None or value in ({}, ()):
        return None
    if secret:
        return "***"
    if isinstance(value, str):
        return redact_url(value)
    if isinstance(value, tuple):
        return [_shown(entry, secret=False) for entry in value]
    if isinstance(value, dict):
        return {key: _shown(entry, secret=False) for key, entry in value.items()}
    return value if isinstance(value, bool | int | float) else value.isoformat()
