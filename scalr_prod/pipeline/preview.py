# SPDX-License-Identifier: Apache-2.0
"""A dry run: what a walk over the graph would do, and about how long it would take. Nothing is written."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import EmptyWindow, ScalrError
from scalr_prod.pipeline.context import SKIPPED_WITHOUT_EVENTS
from scalr_prod.pipeline.graph import GRAPH
from scalr_prod.pipeline.runner import required_stages, stage_states
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.generation import RunPreview
    from scalr_prod.ledger import Ledger, Run
    from scalr_prod.pipeline.context import Stage


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
        stages: Each stage that takes time. ``run``: it would be done. ``check``: what it makes is there, and nothing new was seen; where
            a log is a query or a table, only the stage itself can tell. ``skip``: λ is 0 for all users, or the run was rolled back.
        reasons: Why stages would be done again, or are skipped, by stage.
        seconds: Estimated for stages that would be done, if earlier runs of the project were measured.
        measured: What the estimate rests on, in words.
        translator: Which version is kept, and when the next training is due; None: none is, or the translator's inputs are the same.
        not_generated: Why no event would be generated; None: events would be.
    """

    run: RunPreview | None
    why: str | None
    stages: Mapping[str, str]
    seconds: Mapping[str, float]
    measured: str
    reasons: Mapping[str, str] = field(default_factory=dict)
    translator: str | None = None
    not_generated: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        run = {"window": self.why} if self.run is None else self.run.to_json()
        missing = [name for name, would in self.stages.items() if would == "run" and name not in self.seconds]
        return {
            **({"not_generated": self.not_generated} if self.not_generated else {}),
            **run,
            "stages": dict(self.stages),
            **({"translator": self.translator} if self.translator else {}),
            **({"reasons": dict(self.reasons)} if self.reasons else {}),
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

    not_generated = why_not_generated(settings)
    settings, _ = apply_policy(settings)
    if whole and not_generated:
        found = _dry_run(settings, [stage for stage in graph if stage.name not in SKIPPED_WITHOUT_EVENTS], plan=False)
        skipped = {stage.name: "skip" for stage in graph if stage.name in SKIPPED_WITHOUT_EVENTS and not stage.light}
        would = {stage.name: (dict(found.stages) | skipped)[stage.name] for stage in graph if not stage.light}
        reasons = {name: reason for name, reason in found.reasons.items() if would[name] == "run"}
        return replace(found, run=None, why=not_generated, stages=would, reasons=reasons, not_generated=not_generated)
    return _dry_run(settings, graph)


def _dry_run(settings: Settings, graph: Iterable[Stage], *, plan: bool = True) -> DryRun:
    graph = [stage for stage in graph if not stage.light]
    found, why = _preview_run(settings) if plan else (None, None)
    if not _has_ledger(settings):
        done = {
            stage.name: "translator" not in {stage.name, *required_stages(stage.name)}  # from there on, stages need the ledger
            and settings.home.is_dir()
            and stage.is_done(settings)
            for stage in graph
        }
        reasons = _changed_logs(settings) if settings.home.is_dir() else {}
        if len(graph) > 1:
            _add_dependent(reasons)
        would = {name: "check" if there and name not in reasons else "run" for name, there in done.items()}
        reasons = {name: reason for name, reason in reasons.items() if done.get(name)}
        return DryRun(found, why, would, {}, "no earlier run of this project: no duration can be estimated", reasons)
    from scalr_prod.ledger import Ledger

    states = {state.stage: state for state in stage_states(settings)}
    asked = {stage.name for stage in graph}
    reasons = _new_inputs(settings, {name: state for name, state in states.items() if name in asked and state.done})
    reasons |= {name: state.stale for name, state in states.items() if state.stale}
    kept = states["translator"].kept if "translator" in asked and "translator" not in reasons else None
    if len(graph) > 1:  # a single stage reads what is there
        _add_dependent(reasons)
    if kept:  # new events alone do not make a training due
        reasons.pop("translator", None)
    with Ledger.open(settings) as ledger:
        runs = ledger.runs.find(limit=_RUNS_CONSIDERED)
        differences = found.differences(settings, runs[0].spec) if found is not None and runs else []
        same_run = found is not None and bool(runs) and not differences
        if plan and differences:
            reasons = dict.fromkeys(_of_run(states), f"another run: {', '.join(differences)} changed") | reasons
        rates = _rates(ledger, runs)
    done = {
        name: state.done and name not in reasons and not (plan and not same_run and name in _of_run(states))
        for name, state in states.items()
    }
    would = {stage.name: "check" if done[stage.name] else "run" for stage in graph}
    if same_run and not reasons.keys() & {"plan", "generate"} and (rolled_back := states["publish"].rolled_back):
        for name in would.keys() & {"generate", "validate", "publish"}:
            would[name], reasons[name] = "skip", rolled_back
    reasons = {name: reasons[name] for name in would if name in reasons and would[name] != "check"}
    seconds = {} if found is None else {name: round(rate * found.contexts, 1) for name, rate in rates.items()}
    seconds |= {name: took for name, took in _last_durations(settings).items() if name not in seconds}
    seconds = {name: took for name, took in seconds.items() if would.get(name) == "run"}
    return DryRun(found, why, would, seconds, _describe_measurement(rates, seconds), reasons, kept)


def _new_inputs(settings: Settings, done: Collection[str]) -> dict[str, str]:
    """Return why stages whose output exists would make it again: new rows, other settings, or another version of the package."""
    from scalr_prod.training_set import rebuild_reason
    from scalr_prod.translator import retraining_reason

    reasons = _changed_logs(settings) if "ingest" in done else {}
    with suppress(ScalrError):  # the stage itself says what is wrong
        if "translator" in done and (retraining := retraining_reason(settings)):
            reasons["translator"] = retraining.text
    with suppress(ScalrError):
        if "dataset" in done and (rebuilding := rebuild_reason(settings)):
            reasons["dataset"] = rebuilding
    return reasons


def _changed_logs(settings: Settings) -> dict[str, str]:
    from scalr_prod.ingest import changed_inputs

    changed = changed_inputs(settings)
    return {"ingest": "; ".join(f"{place}: {reason}" for place, reason in changed.items())} if changed else {}


def _add_dependent(reasons: dict[str, str]) -> None:
    """Add the stages that read what a stage with a reason makes."""
    for stage in GRAPH:
        changed = [name for name in stage.needs if name in reasons]
        if changed and stage.name not in reasons:
            former = reasons[changed[0]]
            reasons[stage.name] = former if former.startswith("after ") else f"after {changed[0]}"


def _of_run(names: Iterable[str]) -> list[str]:
    return [name for name in names if name == "plan" or "plan" in required_stages(name)]


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


def _rates(ledger: Ledger, runs: list[Run]) -> dict[str, float]:
    """Seconds per context, by stage: the minimum over runs, since a run may have waited for a person between two stages."""
    found: dict[str, float] = {}
    for run in runs:
        contexts = sum(int(part.manifest.get("contexts", 0)) for part in ledger.runs.partitions(run.run_id))
        if not contexts:
            continue
        entered: dict[str, datetime] = {}
        for change in ledger.changes.find(run.run_id, subject="run"):
            for stage, (before, after) in _TIMED_TRANSITIONS.items():
                if (change.from_state, change.to_state) == (before, after):
                    rate = (change.at - entered[before]).total_seconds() / contexts
                    found[stage] = min(rate, found.get(stage, rate))
            entered[change.to_state] = change.at
    return found


def _last_durations(settings: Settings) -> dict[str, float]:
    """How long stages took the last time, where ``[metrics]`` keeps it."""
    from scalr_prod.pipeline.stage_outcomes import read_stage_outcomes

    return {
        name: round(ended["seconds"], 1) for name, ended in read_stage_outcomes(settings).items() if ended["outcome"] == "done"
    }


def _describe_measurement(rates: Mapping[str, float], seconds: Mapping[str, float]) -> str:
    if not seconds and not rates:
        return "no earlier run of this project was measured: no duration can be estimated"
    rate = f"{1 / rates['generate']:.0f} contexts per second in earlier runs" if rates.get("generate") else "earlier runs"
    return f"{rate}; stages other than generate, validate and publish are measured where [metrics] is on"
