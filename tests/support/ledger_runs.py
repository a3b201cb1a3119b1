"""Runs for tests of the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from scalr_prod.ledger import Ledger, RunSpec, RunState, RunWindow, TranslatorPin
from scalr_prod.ledger.dto import ALLOWED_TRANSITIONS
from scalr_prod.workspace.identity import ProjectIdentity

T0 = datetime(2024, 1, 1, tzinfo=UTC)


def one(name: str = "one", **changes: str | None) -> ProjectIdentity:
    """A project that has its own lake and home."""
    return ProjectIdentity(**{"name": name, "lake": f"/lakes/{name}", "home": f"/homes/{name}", **changes})


def make_spec(seed: int = 0, **changes: object) -> RunSpec:
    fields = {
        "mode": "backfill",
        "start": T0,
        "end": T0 + timedelta(days=1),
        "as_of": T0 + timedelta(days=1),
        "seed": seed,
        "translator_version": 1,
        "translator_sha256": "ab",
        "translator_trained_until": T0,
        "table_versions": {"source_events": 3},
        "settings": {"generation": {"temperature": 1.0}},
    }
    fields |= changes
    window = RunWindow(*(fields.pop(name) for name in ("start", "end", "as_of")))
    translator = TranslatorPin(*(fields.pop(f"translator_{name}") for name in ("version", "sha256", "trained_until")))
    return RunSpec.create(window=window, translator=translator, **fields)


def to_state(ledger: Ledger, run_id: str, state: RunState, *, begin: RunState = RunState.PLANNED) -> None:
    """Bring a run to a state by a way that the transitions allow."""
    path = {begin: []}
    waiting = [begin]
    while waiting:
        at = waiting.pop(0)
        for following in sorted(ALLOWED_TRANSITIONS[at]):
            if following not in path:
                path[following] = [*path[at], following]
                waiting.append(following)
    for step in path[state]:
        ledger.runs.set_state(run_id, step, cause="test")


def validated(ledger: Ledger, seed: int = 0, **changes: object) -> str:
    run_id = ledger.runs.begin(make_spec(seed=seed, **changes)).run_id
    to_state(ledger, run_id, RunState.VALIDATED)
    return run_id
