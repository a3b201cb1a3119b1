# SPDX-License-Identifier: Apache-2.0
"""Plan of `scalr scout`: from the logs of several domains to settings that read them all, and to a scalr.toml for the best pair."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.apps.onboarding.databases import resolve_log
from scalr_prod.apps.onboarding.guess import LogGuess, guess_logs
from scalr_prod.apps.onboarding.init import InitPlan, build_settings, plan_init
from scalr_prod.errors import SettingsError, UnreadableInput
from scalr_prod.ingest import has_known_format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.apps.onboarding.log_request import LogRequest
    from scalr_prod.config import Settings
    from scalr_prod.evaluation import ScoutReport


_LEAST_LOGS: Final = 2


@dataclass(frozen=True)
class FolderLogs:
    """Logs found in a folder.

    Attributes:
        locations: Name of the domain → path of its log.
        left_out: Names of what was left out, because their names do not tell that they are logs.
    """

    locations: Mapping[str, str]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class ScoutPlan:
    """How the logs are read.

    Attributes:
        settings: Settings that name all logs; which of them is the target there has no meaning.
        requests: Name of the domain → request for its log.
        guesses: Name of the domain → guess of how to read its log.
    """

    settings: Settings
    requests: Mapping[str, LogRequest]
    guesses: Mapping[str, LogGuess]

    @property
    def notes(self) -> list[str]:
        """Choices between several possibilities."""
        return [note for guess in self.guesses.values() for note in guess.notes]

    def plan_config(self, config: Path, report: ScoutReport) -> InitPlan | None:
        """Plan the scalr.toml for the best pair; None: there is no pair that a run is expected to help.

        Args:
            config: Path of the file; nothing is written.
            report: What was measured.
        """
        best = report.best
        if best is None:
            return None
        places = {"source": best.source} if len(report.sources) == 1 else {f"sources.{name}": name for name in report.sources}
        places["target"] = best.target
        requests = [
            replace(self.requests[name], place=place, columns=self.guesses[name].columns) for place, name in places.items()
        ]
        names = {place: name for place, name in places.items() if not place.startswith("sources.")}
        plan = plan_init(config, requests, names=names)
        gain = best.expected_gain_pct or 0.0
        head = (
            f"# Best of {len(report.pairs)} pairs by `scalr scout`: {best.source} → {best.target}, expected gain {gain:+z.0f} %.\n"
            "# It is measured by a quick translator without a recommender: `scalr evaluate` measures it with one.\n"
        )
        return replace(plan, text=head + plan.text.replace("`scalr init`", "`scalr scout`", 1))


@dataclass(frozen=True)
class ScoutOutcome:
    """Result of `scalr scout`.

    Attributes:
        report: What was measured.
        notes: Choices between several possibilities, and files that were left out.
        config: The scalr.toml for the best pair; None: there is no pair that a run is expected to help.
        page: The page with the heat map.
    """

    report: ScoutReport
    notes: tuple[str, ...]
    config: Path | None
    page: Path

    def to_summary(self) -> dict[str, Any]:
        """Return the result for display."""
        report = self.report
        shown: dict[str, Any] = {"domains": [vars(domain) for domain in report.domains], "pairs": report.rows()}
        for number, note in enumerate(self.notes, 1):
            shown[f"note {number}"] = note
        shown["page"] = str(self.page)
        if report.best is None or self.config is None:
            return shown | {"best": "none: no run is expected to help; see each pair's reason"}
        for one in report.further:
            adds = "too few events" if one.information is None else f"{one.information.describe()} nats"
            shown[f"adding {one.name}"] = f"{adds}: {'taken' if one.taken else 'not taken'}"
        shown["best"] = f"{', '.join(report.sources)} → {report.best.target}"
        following = f"scalr evaluate --quick --config {self.config} (does it help a recommender?)"
        return shown | {"settings": str(self.config), "next": following}

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON."""
        config = None if self.config is None else str(self.config)
        return {**self.report.to_json(), "notes": list(self.notes), "config": config, "page": str(self.page)}


def find_logs(folder: Path) -> FolderLogs:
    """Find the logs in a folder: files of a known format, and folders of such files or of a table, each one domain's log.

    Raises:
        UnreadableInput: It is no folder, or cannot be read.
        SettingsError: Two logs would have the same name.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
        logs = [path for path in entries if (_holds_log(path) if path.is_dir() else has_known_format(path.name))]
    except OSError as error:
        raise UnreadableInput(
            f"the folder of logs cannot be read: {error.strerror}",
            where=str(folder),
            next_step="name a folder with a log for each domain, or each log: --log NAME=LOG",
        ) from error
    found: dict[str, str] = {}
    for path in logs:
        name = domain_key(path.name.split(".")[0])
        if name in found:
            raise SettingsError(
                f"{Path(found[name]).name} and {path.name} would both be called {name}",
                where=str(folder),
                next_step="rename one of them, or name each log: --log NAME=LOG",
            )
        found[name] = str(path)
    return FolderLogs(found, tuple(path.name for path in entries if path not in logs))


def domain_key(text: str) -> str:
    """Return a domain's name that is valid as a key of ``[domains.sources]``: lower case, letters, digits and ``_``."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()[:60] or "log"
    return f"log_{name}" if name[0].isdigit() else name


def plan_scout(requests: Sequence[LogRequest]) -> ScoutPlan:
    """Guess how to read logs, as `scalr init` does.

    Args:
        requests: Requests for the logs; a place is ``logs.<name>``.

    Raises:
        InputError: A log does not exist, cannot be read, or has no matching column; lists the existing columns, and the option to give.
        SettingsError: There are fewer than two logs, or a time zone is invalid.
    """
    if len(requests) < _LEAST_LOGS:
        raise SettingsError(
            "no log was found" if not requests else "one log is no pair of domains",
            where=requests[0].place.partition(".")[2] if requests else "the folder of logs",
            next_step="name at least two: a folder with a log for each domain, or --log NAME=LOG for each",
        )
    base = Path.cwd()
    resolved = [resolve_log(request) for request in requests]
    names = [request.place.partition(".")[2] for request in resolved]
    # Settings without a log: they fix the base folder of paths and validate the time zone.
    blank = [{"events": "none", "timezone": request.timezone} for request in resolved]
    guesses = guess_logs(_settings(names, blank, base), resolved, decisive=True)
    sections = []
    for request in resolved:
        guess = guesses[request.place]
        log = {"events": request.location} if request.query is None else {"url": request.location, "query": request.query}
        sections.append({**log, "columns": dict(guess.columns), **guess.settings})
    return ScoutPlan(
        _settings(names, sections, base),
        dict(zip(names, resolved, strict=True)),
        {name: guesses[request.place] for name, request in zip(names, resolved, strict=True)},
    )


def _settings(names: Sequence[str], sections: Sequence[Mapping[str, Any]], base: Path) -> Settings:
    """Build settings that name all logs: the last one has the target's place."""
    by_name = {name: {"name": name, **section} for name, section in zip(names, sections, strict=True)}
    *sources, target = names
    domains = {"sources": {name: by_name[name] for name in sources}, "target": by_name[target]}
    return build_settings({"domains": domains}, base, option="--timezone, --log")


def _holds_log(folder: Path) -> bool:
    is_table = (folder / "_delta_log").is_dir() or (folder / "metadata").is_dir()
    return is_table or any(has_known_format(path.name) for path in folder.iterdir())
