# SPDX-License-Identifier: Apache-2.0
"""Ties a lake to one project and to the domains for which its tables were made, so that other settings cannot mix data into it.

The description in a table's Delta log holds the binding: the quarantine table names the project, each events table names its domains. With
one source domain, items keep their own ids; with several, ids carry the domain's name. A lake of one kind cannot turn into the other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import DomainsMixed, ProjectsMixed
from scalr_prod.schemas import Table
from scalr_prod.workspace import ProjectIdentity

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from scalr_prod.config import Domains, DomainSettings, Settings
    from scalr_prod.lake.tables import Lake
    from scalr_prod.schemas import Domain


#: The table whose description names the project: no run and no training set depends on its versions.
PROJECT_MARKED_TABLE: Final = Table.SYNTHETIC_QUARANTINE
#: A lake outside its project's home also records that home.
_PROJECT: Final = re.compile(r"Project: ([a-z0-9_]+)(?:, home (.+) \(([0-9a-f]*)\))?")

_PREFIX: Final = "Domain: "
#: With several source domains.
_SEVERAL: Final = "Domains: "
_OTHER: Final[dict[Domain, Domain]] = {"source": "target", "target": "source"}


def project_description(settings: Settings, current: str = "") -> str:
    """Return the description that binds a lake to the project of the settings.

    Args:
        settings: The project's settings.
        current: The lake's current description; kept as it is where it already means this project.
    """
    project, match = ProjectIdentity.from_settings(settings), _PROJECT.fullmatch(current)
    bound = f"Project: {project.name}"
    if project.is_lake_in_home:
        return bound
    if match is not None and match[1] == project.name and project.is_home(match[2], match[3]):
        return current
    return f"{bound}, home {project.home} ({project.home_id or ''})"


def domain_description(settings: Settings, domain: Domain) -> str:
    """Return the description that binds a table to the domains of the settings."""
    if domain == "source" and settings.domains.has_several_sources:
        return f"{_SEVERAL}{', '.join(sorted(settings.domains.source_names))}"
    return f"{_PREFIX}{_named(settings.domains, domain).name}"


def open_project_lake(settings: Settings) -> Lake:
    """Open the lake of the settings after checking that it belongs to this project and these domains.

    Raises:
        ProjectsMixed: It belongs to another project.
        DomainsMixed: Its tables were made for other domains.
    """
    from scalr_prod.lake.tables import Lake

    lake = Lake.open(settings)
    check_domains(settings, lake)
    return lake


def check_domains(settings: Settings, lake: Lake) -> dict[Table, DeltaTable]:
    """Check that the settings name the project and the domains to which the lake is bound.

    A domain may have a new name if ``formerly`` gives the old one, and domains may be added to several source domains; the next ingest
    updates the binding.

    Returns:
        The existing events tables and `PROJECT_MARKED_TABLE`, opened.

    Raises:
        ProjectsMixed: The settings name another project. Nothing was written.
        DomainsMixed: The settings name other domains, swap the two, or name several sources where there was one. Nothing was written.
    """
    tables = {domain: Table.events(domain) for domain in _OTHER}
    opened = lake.find_tables([PROJECT_MARKED_TABLE, *tables.values()])
    _check_project(settings, lake, opened.get(PROJECT_MARKED_TABLE))
    described = {
        domain: lake.description(table, opened=opened[table]) if table in opened else None for domain, table in tables.items()
    }
    if settings.domains.has_several_sources or (described["source"] or "").startswith(_SEVERAL):
        _check_several(settings.domains, lake, described)
    else:
        _check_pair(settings.domains, lake, {domain: _bound(text) for domain, text in described.items()})
    return opened


def _check_project(settings: Settings, lake: Lake, marked: DeltaTable | None) -> None:
    match = None if marked is None else _PROJECT.fullmatch(lake.description(PROJECT_MARKED_TABLE, opened=marked))
    if match is None:
        return
    project = ProjectIdentity.from_settings(settings)
    bound, home, home_id = match.groups()
    if bound not in {project.name, project.formerly}:
        raise ProjectsMixed(
            f"the lake belongs to project '{bound}'; the settings name project '{project.name}'",
            where=lake.root,
            next_step=f"name another [project] home (and lake) for '{project.name}'; if it is the same project under a new name, set "
            f'[project] formerly = "{bound}"',
        )
    if (
        home is not None
        and not project.is_lake_in_home
        and not project.is_home(home, home_id)
        and not project.was_moved_from(home)
    ):
        raise ProjectsMixed(
            f"project '{bound}' works on this lake from home {home}; the settings name home {project.home} for it",
            where=lake.root,
            next_step=f'name that home, or another lake; if the home was moved, set [project] moved_from = "{home}"',
        )


def _check_several(domains: Domains, lake: Lake, described: dict[Domain, str | None]) -> None:
    """Check the domains if the settings or the tables name several source domains; see `check_domains`."""
    source, target = described["source"], _bound(described["target"])
    several = source is not None and source.startswith(_SEVERAL)
    bound = set(source.removeprefix(_SEVERAL).split(", ")) if source is not None and several else set()
    gone = sorted(bound - set(domains.source_names))
    advice = "name another [project] home (and lake), and ingest all logs again"
    if source is not None and several != domains.has_several_sources:
        known = "several source domains" if several else f"one source domain, {_quoted(_bound(source))}"
        finding = f"the tables were made for {known}; the settings name {', '.join(map(_quoted, domains.source_names))}"
    elif gone:
        finding = (
            f"the tables contain events of {', '.join(map(_quoted, gone))}, which the settings do not name as a source domain"
        )
        advice = f"name it again under [domains.sources], or {advice}"
    elif target is not None and (
        target in domains.source_names or target not in {domains.target.name, domains.target.formerly}
    ):
        finding = f"the tables were made for target {_quoted(target)}; the settings name target {_quoted(domains.target.name)}"
        if target not in domains.source_names:
            advice += (
                f'; if the same log only has a new name, set [domains.target] formerly = "{target}", and run: scalr ingest'
            )
    else:
        return
    raise DomainsMixed(finding, where=lake.root, next_step=advice)


def _check_pair(domains: Domains, lake: Lake, bound: dict[Domain, str | None]) -> None:
    """Check the domains if there is one source domain; see `check_domains`."""
    named = {domain: _named(domains, domain).name for domain in _OTHER}
    differing = [domain for domain, name in bound.items() if name is not None and name != named[domain]]
    crossed = [
        domain for domain in differing if bound[domain] == named[_OTHER[domain]] or named[domain] == bound[_OTHER[domain]]
    ]
    if not crossed and all(_named(domains, domain).formerly == bound[domain] for domain in differing):
        return
    swapped = bool(crossed) and all(bound[domain] in {None, named[_OTHER[domain]]} for domain in _OTHER)
    pair = "source {} and target {}".format(*(_quoted(bound[domain]) for domain in _OTHER))
    raise DomainsMixed(
        f"the tables were made for {pair}; the settings name source '{named['source']}' and target '{named['target']}'"
        + (": the two are swapped" if swapped else ""),
        where=lake.root,
        next_step=_next_step(swapped=swapped, renamed={} if crossed else {domain: bound[domain] for domain in differing}),
    )


def _next_step(*, swapped: bool, renamed: dict[Domain, str | None]) -> str:
    if swapped:
        return "swap them back under [domains], or name another [project] home (and lake) for the other direction"
    advice = "name another [project] home (and lake) for another pair of domains"
    if renamed:
        lines = " and ".join(f'[domains.{domain}] formerly = "{name}"' for domain, name in renamed.items())
        advice += f"; if the same logs only have new names, set {lines}, and run: scalr ingest"
    return advice


def _bound(described: str | None) -> str | None:
    """Return the single domain that a description names; None: no table, or not bound yet."""
    return described.removeprefix(_PREFIX) if described is not None and described.startswith(_PREFIX) else None


def _named(domains: Domains, domain: Domain) -> DomainSettings:
    """Return the settings of a side that has one domain."""
    return domains[domains.log_keys(domain)[0]]


def _quoted(name: str | None) -> str:
    return "(none yet)" if name is None else f"'{name}'"
