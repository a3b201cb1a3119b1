# SPDX-License-Identifier: Apache-2.0
"""Environment variables that set settings: which variable sets a key, and errors for variables that match no setting."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin

from scalr_prod.errors import SettingsError

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings
    from pydantic_settings import SettingsError as SourceError


ENV_PREFIX: Final = "SCALR_"


def check_environment(settings: type[BaseSettings]) -> None:
    """Reject variables that match no setting, which pydantic-settings ignores silently.

    A name without ``__`` may belong to another program; it is rejected only where it clearly means one of our settings.

    Args:
        settings: The model of all settings.

    Raises:
        SettingsError: A variable matches no setting; names it and the closest match.
    """
    for variable in sorted(os.environ):
        if not variable.upper().startswith(ENV_PREFIX):
            continue
        keys = variable[len(ENV_PREFIX) :].lower().split("__")
        if len(keys) == 1:
            keys = _meant(settings, keys[0])
            if keys:
                raise _no_setting(settings, variable, keys, len(keys) - 1)
        for depth, key in enumerate(keys):
            known = known_keys(settings, keys[:depth])
            if known and key not in known:
                raise _no_setting(settings, variable, keys, depth)


def _meant(settings: type[BaseSettings], name: str) -> list[str]:
    """Return section and key of a name like ``generation_mode``, which lacks an underscore; empty for any other name."""
    for section in known_keys(settings, []):
        key = name.removeprefix(f"{section}_")
        if key != name and key in known_keys(settings, [section]):
            return [section, key]
    return ["base"] if name == "base" else []


def _no_setting(settings: type[BaseSettings], variable: str, keys: list[str], depth: int) -> SettingsError:
    """Return the error for a variable whose key at this depth does not exist."""
    known = known_keys(settings, keys[:depth])
    close = difflib.get_close_matches(keys[depth], known, n=1)
    meant = [*keys[:depth], *close, *keys[depth + 1 :]]
    hint = f"did you mean {_variable(meant)}?" if close else f"known here: {', '.join(known)}"
    return SettingsError("matches no setting", where=f"environment variable {variable}", next_step=hint)


def known_keys(settings: type[BaseSettings], keys: list[str]) -> list[str]:
    """List the keys of a section; empty for free-form tables and plain values."""
    model: Any = settings
    for key in keys:
        named = _fields(model)
        # In a table by name, such as [domains.sources], all values have one type; an optional section counts as the section.
        model = named[key].annotation if key in named else get_args(model)[1] if get_origin(model) is dict else None
        if get_origin(model) is not dict:
            model = next((argument for argument in get_args(model) if _fields(argument)), model)
    return sorted(name for name in _fields(model) if name != "base")


def _fields(model: Any) -> dict[str, Any]:
    return getattr(model, "model_fields", {})


def variable_for(keys: list[str]) -> str | None:
    """Return the environment variable that sets a key or a section around it."""
    variables = {name.upper(): name for name in os.environ}
    return next((variables[name] for depth in range(len(keys), 0, -1) if (name := _variable(keys[:depth])) in variables), None)


def variables_below(keys: list[str]) -> str | None:
    """Return the environment variables that set entries of a table, such as storage_options."""
    above = _variable([*keys, ""])
    return ", ".join(sorted(name for name in os.environ if name.upper().startswith(above))) or None


def _variable(keys: list[str]) -> str:
    return ENV_PREFIX + "__".join(keys).upper()


def invalid_json_error(error: SourceError) -> SettingsError:
    """Return the error for a section or list that is not valid JSON. Its text may be a secret and is not repeated."""
    field = re.search(r'field "(\w+)"', str(error))
    section = _variable([field[1]]) if field else ENV_PREFIX
    names = [name for name in sorted(os.environ) if name.upper() == section or name.upper().startswith(f"{section}__")]
    return SettingsError(
        "cannot be read as JSON, in which sections and lists are written",
        where=f"environment variable {', '.join(names)}",
        next_step=f'set one key of the section with {section}__KEY=value, or write a list as \'["a", "b"]\' (JSON)',
    )
