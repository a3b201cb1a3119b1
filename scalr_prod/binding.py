"""A lake's tables belong to the pair of domains that they were made for, whatever settings point at them later.

The events table of each domain bears its name, as the table's description in its own log, where every reader of the lake sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import Table
from scalr_prod.errors import DomainsMixed

if TYPE_CHECKING:
    from scalr_prod.contracts import Domain
    from scalr_prod.lake import Lake
    from scalr_prod.settings import Settings

__all__ = ["bound_domain", "check_domains", "description_of"]

_PREFIX: Final = "Domain: "
_OTHER: Final[dict[Domain, Domain]] = {"source": "target", "target": "source"}


def description_of(settings: Settings, domain: Domain) -> str:
    """The description that binds a table to a domain of the settings."""
    return f"{_PREFIX}{settings.domains[domain].name}"


def bound_domain(lake: Lake, domain: Domain) -> str | None:
    """The name of the domain that the events table is bound to; None: there is no table, or it is bound to none yet."""
    table = Table.events(domain)
    described = lake.description(table) if lake.exists(table) else ""
    return described.removeprefix(_PREFIX) if described.startswith(_PREFIX) else None


def check_domains(settings: Settings, lake: Lake) -> None:
    """Make sure that the settings name the domains that the lake's tables are bound to.

    A domain may bear a new name where its former one is given as ``formerly``; the next ingest binds the table anew.

    Raises:
        DomainsMixed: They name other domains, or the same two swapped. Nothing was written.
    """
    bound: dict[Domain, str | None] = {domain: bound_domain(lake, domain) for domain in _OTHER}
    named = {domain: settings.domains[domain].name for domain in _OTHER}
    differing = [domain for domain, name in bound.items() if name is not None and name != named[domain]]
    crossed = [
        domain for domain in differing if bound[domain] == named[_OTHER[domain]] or named[domain] == bound[_OTHER[domain]]
    ]
    if not crossed and all(settings.domains[domain].formerly == bound[domain] for domain in differing):
        return
    swapped = bool(crossed) and all(bound[domain] in {None, named[_OTHER[domain]]} for domain in _OTHER)
    pair = "source {} and target {}".format(*(_quoted(bound[domain]) for domain in _OTHER))
    raise DomainsMixed(
        f"the tables were made for {pair}; the settings name source '{named['source']}' and target '{named['target']}'"
        + (": the two are swapped" if swapped else ""),
        where=lake.root,
        next_step=_next_step(swapped=swapped, renamed={} if crossed else {one: bound[one] for one in differing}),
    )


def _next_step(*, swapped: bool, renamed: dict[Domain, str | None]) -> str:
    if swapped:
        return "swap them back under [domains], or name another [project] home (and lake) for the other direction"
    advice = "name another [project] home (and lake) for another pair of domains"
    if renamed:
        lines = " and ".join(f'[domains.{domain}] formerly = "{name}"' for domain, name in renamed.items())
        advice += f"; if the same logs only bear a new name, set {lines}, and run: scalr ingest"
    return advice


def _quoted(name: str | None) -> str:
    return "(none yet)" if name is None else f"'{name}'"
