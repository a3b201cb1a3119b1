# SPDX-License-Identifier: Apache-2.0
"""Interactive prompts of `scalr init`: show a guess, take corrections one line at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from scalr_prod.apps.onboarding.init import plan_init
from scalr_prod.apps.onboarding.names import EVENT_ROLES
from scalr_prod.errors import InputError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from scalr_prod.apps.onboarding.init import InitPlan
    from scalr_prod.apps.onboarding.log_request import LogRequest


_HELP: Final = "Press Enter to accept, or type a correction such as source.user=customer or timezone=Europe/Paris"


def apply_corrections(requests: Sequence[LogRequest], corrections: Iterable[str]) -> list[LogRequest]:
    """Apply corrections to the requests: ``DOMAIN.ROLE=COLUMN``, ``timezone=ZONE`` for all logs, ``DOMAIN.timezone=ZONE`` for one.

    Args:
        requests: Requests for sources and target.
        corrections: As the user writes them; the domain is that of a request, the role user, item or timestamp.

    Raises:
        SettingsError: A correction is malformed.
    """
    found = {request.place: request for request in requests}
    for correction in corrections:
        key, sign, value = (part.strip() for part in correction.partition("="))
        place, _, role = key.rpartition(".")
        if sign and value and key == "timezone":
            found = {name: replace(request, timezone=value) for name, request in found.items()}
        elif sign and value and place in found and role == "timezone":
            found[place] = replace(found[place], timezone=value)
        elif sign and value and place in found and role in EVENT_ROLES:
            found[place] = replace(found[place], columns={**found[place].columns, role: value})
        else:
            raise SettingsError(
                f"{correction!r} is not a correction",
                where="--column",
                next_step=f"write DOMAIN.ROLE=COLUMN, for example {next(iter(found))}.user=customer; "
                f"a domain is {' or '.join(found)}, a role {', '.join(EVENT_ROLES)} or timezone",
            )
    return list(found.values())


def confirm_interactively(
    config: Path,
    requests: Sequence[LogRequest],
    *,
    items: Mapping[str, str],
    names: Mapping[str, str],
    show: Callable[[InitPlan | InputError | SettingsError], None],
    ask: Callable[[str], str],
) -> InitPlan:
    """Show the guess and take corrections until the user confirms it.

    Args:
        config: Path of the scalr.toml; see `plan_init`.
        requests: Requests for sources and target.
        items: Place → item file.
        names: Place → domain name.
        show: Shows a guess, or the error that prevented one.
        ask: Asks a question and returns the answer; empty: the guess is right.

    Raises:
        InputError: A log cannot be understood, and the user gives no correction.
        SettingsError: A name, zone or correction is invalid, and the user gives no correction.
    """
    answer = ""
    while True:
        found: InitPlan | InputError | SettingsError
        try:
            requests = apply_corrections(requests, [answer] if answer else [])
            found = plan_init(config, requests, items=items, names=names, decisive=False)
        except (InputError, SettingsError) as error:
            found = error
        show(found)
        answer = ask(_HELP).strip()
        if not answer:
            if isinstance(found, Exception):
                raise found
            return found
