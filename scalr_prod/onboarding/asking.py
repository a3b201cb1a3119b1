# SPDX-License-Identifier: Apache-2.0
"""A guess, shown and corrected in one line at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import InputError, SettingsError
from scalr_prod.onboarding.names import ROLES
from scalr_prod.onboarding.start import understand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from scalr_prod.onboarding.guess import Asked
    from scalr_prod.onboarding.start import Beginning

__all__ = ["corrected", "until_right"]

_HELP: Final = "Enter: right. Else a correction, such as source.user=customer or timezone=Europe/Paris"


def corrected(asked: Sequence[Asked], corrections: Iterable[str]) -> list[Asked]:
    """What is asked, with corrections: ``PLACE.ROLE=COLUMN``, ``timezone=ZONE`` of both logs, ``PLACE.timezone=ZONE`` of one.

    Args:
        asked: Source and target.
        corrections: As the user writes them; the place is source or target, the role user, item or timestamp.

    Raises:
        SettingsError: One is no correction.
    """
    found = {one.place: one for one in asked}
    for correction in corrections:
        key, sign, value = (part.strip() for part in correction.partition("="))
        place, _, role = key.partition(".")
        if sign and value and key == "timezone":
            found = {name: replace(one, timezone=value) for name, one in found.items()}
        elif sign and value and place in found and role == "timezone":
            found[place] = replace(found[place], timezone=value)
        elif sign and value and place in found and role in ROLES:
            found[place] = replace(found[place], columns={**found[place].columns, role: value})
        else:
            raise SettingsError(
                f"{correction!r} is no correction",
                where="--column",
                next_step="write PLACE.ROLE=COLUMN, for example source.user=customer; "
                f"a place is {' or '.join(found)}, a role {', '.join(ROLES)} or timezone",
            )
    return list(found.values())


def until_right(
    config: Path,
    asked: Sequence[Asked],
    *,
    items: Mapping[str, str],
    names: Mapping[str, str],
    show: Callable[[Beginning | InputError | SettingsError], None],
    ask: Callable[[str], str],
) -> Beginning:
    """Show what is understood, and take corrections, until there are none.

    Args:
        config: See `understand`, as for the next three.
        asked: Source and target.
        items: Place → item file.
        names: Place → name.
        show: Shows a guess, or why there is none.
        ask: Asks one question, and gives the answer; empty: the guess is right.

    Raises:
        InputError: There is no guess, and the user has no correction.
        SettingsError: Likewise.
    """
    answer = ""
    while True:
        found: Beginning | InputError | SettingsError
        try:
            asked = corrected(asked, [answer] if answer else [])
            found = understand(config, asked, items=items, names=names)
        except (InputError, SettingsError) as error:
            found = error
        show(found)
        answer = ask(_HELP).strip()
        if not answer:
            if isinstance(found, Exception):
                raise found
            return found
