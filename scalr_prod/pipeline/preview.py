# SPDX-License-Identifier: Apache-2.0
"""A dry run: what a walk over the graph would do, and about how long it would take. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import EmptyWindow
from scalr_prod.pipeline.context import OF_RUN
from scalr_prod.pipeline.runner import required_stages, stage_states
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.generation import RunPreview
    from scalr_prod.ledger import Ledger, Run
    from scalr_prod.pipeline.context import Stage

__all__ = ["DryRun", "dry_run"]

#: Former runs that rates are taken from.
_RUNS_CONSIDERED: Final = 10
#: Stages of a run, by the states between which the ledger has their time.
_TIMED_TRANSITIONS: Final = {
    "generate": ("generating", "generated"),
    "validate": ("generated", "validated"),
    "publish": ("validated", "published"),
}


@dataclass(frozen=True)
class DryRun:
    """What would be done.

    Attributes:
        run: The window, contexts and users; None: not known before the logs are read.
        why: Why it is not known.
        stages: Each stage that takes time. ``make``: it would be done. ``look``: what it makes is there, and it would look for what is
            new, rows of a log or other settings, and make that; only the stage itself can tell. ``leave out``: λ is 0 for all users.
        seconds: Estimated for stages that would be done, where former runs of the project were measured.
        measured: What the estimate rests on, in words.
        not_generated: Why no event would be generated; None: events would be.
    """

    run: RunPreview | None
    why: str | None
    stages: Mapping[str, str]
    seconds: Mapping[str, float]
    measured: str
    not_generated: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        run = {"window": self.why} if self.run is None else self.run.to_json()
        missing = [name for name, would in self.stages.items() if would == "make" and name not in self.seconds]
        return {
            **({"not_generated": self.not_generated} if self.not_generated else {}),
            **run,
            "stages": dict(self.stages),
            "seconds": dict(self.seconds),
            "seconds_in_all": None if missing else round(sum(self.seconds.values()), 1),
            "not_measured": missing,
            "measured": self.measured,
        }


def dry_run(settings: Settings, graph: Iterable[Stage], *, whole: bool = False) -> DryRun:
    """Look at what a walk would find.

    Args:
        settings: The project's settings.
        graph: The stages.
        whole: They are those of a whole run, which generates no event where λ is 0 for all users.

    Raises:
        ScalrError: The lake or the ledger is there, and cannot be read.
    """
    from scalr_prod.generation import apply_policy, why_not_generated

    settings, _ = apply_policy(settings)
    if whole and (not_generated := why_not_generated(settings)):
        found = _dry_run(settings, [stage for stage in graph if stage.name not in OF_RUN], plan=False)
        left_out = {stage.name: "leave out" for stage in graph if stage.name in OF_RUN and not stage.light}
        would = {stage.name: (dict(found.stages) | left_out)[stage.name] for stage in graph if not stage.light}
        return replace(found, run=None, why=not_generated, stages=would, not_generated=not_generated)
    return _dry_run(settings, graph)


def _dry_run(settings: Settings, graph: Iterable[Stage], *, plan: bool = True) -> DryRun:
    graph = [stage for stage in graph if not stage.light]
    found, why = _preview_run(settings) if plan else (None, None)
    if not _has_ledger(settings):
        done = {
            stage.name: not _needs_ledger(stage.name) and settings.home.is_dir() and stage.is_done(settings) for stage in graph
        }
        would = {name: "look" if there else "make" for name, there in done.items()}
        return DryRun(found, why, would, {}, "no former run of this project: no time can be told")
    from scalr_prod.ledger import Ledger

    done = {state.stage: state.done for state in stage_states(settings)}
    with Ledger.open(settings) as ledger:
        runs = ledger.runs.find(limit=_RUNS_CONSIDERED)
        if plan and (found is None or not runs or not found.matches(settings, runs[0].spec)):  # another run would be planned
            done |= dict.fromkeys((name for name in done if name == "plan" or "plan" in required_stages(name)), False)
        rates = _rates(ledger, runs)
    would = {stage.name: "look" if done[stage.name] else "make" for stage in graph}
    seconds = {} if found is None else {name: round(rate * found.contexts, 1) for name, rate in rates.items()}
    seconds |= {name: took for name, took in _last_durations(settings).items() if name not in seconds}
    seconds = {name: took for name, took in seconds.items() if would.get(name) == "make"}
    return DryRun(found, why, would, seconds, _describe_measurement(rates, seconds))


def _preview_run(settings: Settings) -> tuple[RunPreview | None, str | None]:
    from scalr_prod.generation import preview_run
    from scalr_prod.lake import Lake

    lake = Lake.open(settings)
    if not all(lake.exists(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY)):
        return None, "not known before the logs are read: scalr ingest, scalr histories"
    try:
        return preview_run(settings), None
    except EmptyWindow as error:
        return None, error.found


def _has_ledger(settings: Settings) -> bool:
    """Whether there is a ledger: opening one that is not there makes it."""
    import sqlalchemy as sa

    url = sa.make_url(settings.ledger_url)
    return url.get_backend_name() != "sqlite" or Path(url.database or "").is_file()


def _needs_ledger(name: str) -> bool:
    return name == "translator" or "translator" in required_stages(name)


def _rates(ledger: Ledger, runs: list[Run]) -> dict[str, float]:
    """Seconds a context, by stage: the least of the runs, since a run may have waited for somebody between two stages."""
    found: dict[str, float] = {}
    for run in runs:
        contexts = sum(int(part.manifest.get("contexts", 0)) for part in ledger.runs.partitions(run.run_id))
        changes = ledger.runs.transitions(run.run_id)
        if not contexts:
            continue
        entered: dict[str, datetime] = {}
        for change in changes:
            for stage, (before, after) in _TIMED_TRANSITIONS.items():
                if change.to_state.value == after and change.from_state is not None and change.from_state.value == before:
                    rate = (change.at - entered[before]).total_seconds() / contexts
                    found[stage] = min(rate, found.get(stage, rate))
            entered[change.to_state.value] = change.at
    return found


def _last_durations(settings: Settings) -> dict[str, float]:
    """How long stages took the last time, where ``[metrics]`` keeps it."""
    from scalr_prod.pipeline.stage_outcomes import read_stage_outcomes

    return {
        name: round(ended["seconds"], 1) for name, ended in read_stage_outcomes(settings).items() if ended["outcome"] == "done"
    }


def _describe_measurement(rates: Mapping[str, float], seconds: Mapping[str, float]) -> str:
    if not seconds and not rates:
        return "no former run of this project was measured: no time can be told"
    rate = f"{1 / rates['generate']:.0f} contexts a second in former runs" if rates.get("generate") else "former runs"
    return f"{rate}; stages other than generate, validate and publish are measured where [metrics] is on"
