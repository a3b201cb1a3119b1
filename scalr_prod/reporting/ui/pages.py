# SPDX-License-Identifier: Apache-2.0
"""Pages of the local web UI, one method per address. All but `Pages.draw` are read-only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import EventNotFound, InputError, RunNotFound, ScalrError, TranslatorNotFound
from scalr_prod.ledger import Ledger
from scalr_prod.reporting.charts import require_charts
from scalr_prod.reporting.evaluation_verdict import verdict_section
from scalr_prod.reporting.page import describe_domains, recent_runs, run_page, template_environment
from scalr_prod.reporting.report_data import collect_run_data
from scalr_prod.reporting.ui.search import events_by_day, search
from scalr_prod.reporting.ui.users import pick_users, read_user_history, with_other_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.reporting.ui.drawing import SamplingThread


#: Settings of ``[generation]`` that a draw may change.
CHANGEABLE_SETTINGS: Final = ("temperature", "events_per_source_event", "min_lift")
#: Seconds between two reloads of the list while a run is active.
_REFRESH_S: Final = 5
#: Most runs to choose from.
_MAX_RUNS: Final = 50
_MAX_ID_LENGTH: Final = 2_000
_SERVER_ERROR: Final = 500
_NOT_FOUND_ERRORS: Final = (RunNotFound, EventNotFound, TranslatorNotFound)


@dataclass(frozen=True)
class Page:
    """HTML, its HTTP status, and the seconds after which the browser reloads it."""

    html: str
    status: int = 200
    refresh_s: int | None = None


class Pages:
    """The pages of a project.

    Args:
        settings: The project's settings.
        sampler: Samples the events.
        root: Prefix of all addresses, with ``/`` at its end.
    """

    def __init__(self, settings: Settings, sampler: SamplingThread, root: str) -> None:
        self._settings, self._sampler, self._root = settings, sampler, root
        self._templates = template_environment("scalr_prod.reporting.ui")
        self._templates.globals |= {"root": root, "project": settings.project_name, "domains": describe_domains(settings)}

    def runs(self, *, paused: bool) -> Page:
        """List all runs with their states, and what is published; reloads while a run is active, unless ``still``."""
        from scalr_prod.pipeline import stage_states
        from scalr_prod.publication import publication_state

        with Ledger.open(self._settings) as ledger:
            rows = recent_runs(self._settings, ledger, self._run_url)
            active = {
                run_id: self._describe_progress(ledger, run_id, owner) for run_id, owner in ledger.leases.active().items()
            }
        refresh = _REFRESH_S if active and not paused else None
        publication = publication_state(self._settings)
        days = events_by_day(self._settings) if publication.rows else []
        content = {
            "runs": rows,
            "helps": verdict_section(self._settings, details=False),
            "work": active,
            "still": paused,
            "refresh_s": refresh,
            "publication": publication,
            "days": days,
            "most_events": max((day.events for day in days), default=1),
            "stages": [] if rows else stage_states(self._settings),
        }
        return Page(self._render("ui_runs.html.j2", content), refresh_s=refresh)

    def run(self, run_id: str) -> Page:
        """Show a run's report.

        Raises:
            RunNotFound: The project has no such run.
            ReportError: The chart library is not installed.
        """
        require_charts()
        with Ledger.open(self._settings) as ledger:
            facts = collect_run_data(self._settings, ledger, run_id)
            owner = ledger.leases.active().get(run_id)
            notice = self._describe_progress(ledger, run_id, owner) if owner else None
        templates = self._templates.overlay()
        templates.globals = self._templates.globals | {"nav": self._nav_links(run_id), "notice": notice}
        return Page(run_page(self._settings, facts, templates, index=self._root, docs=self._docs_url(facts.gate.get("docs"))))

    def search(self, text: str) -> Page:
        """Show the user with an id, and items by id or by a part of their title.

        Raises:
            InputError: The text is too long.
            LakeError: Nothing was ingested yet.
        """
        _check_length(text, "q")
        found = search(self._settings, text) if text else None
        return Page(self._render("ui_search.html.j2", {"text": text, "found": found}))

    def user(self, run_id: str, user: str, options: Mapping[str, str]) -> Page:
        """Let the reader choose a user, and show what a run knew of that user; arguments as for `draw`."""
        return self._user_page(run_id, user, None, options, sample=False)

    def draw(self, run_id: str, user: str, before: str, options: Mapping[str, str]) -> Page:
        """Show what the run samples for a user, and why.

        Args:
            run_id: The run; empty: the latest.
            user: The id as text.
            before: ISO 8601; only earlier contexts are translated. Empty: all.
            options: Settings of ``[generation]`` to use instead of the run's, as text; empty: the run's.

        Raises:
            ScalrError: Nothing can be sampled.
        """
        try:
            instant = datetime.fromisoformat(before) if before else None
        except ValueError as error:
            raise InputError(
                f"{before[:40]!r} is not a timestamp", where="before", next_step="go back and try again"
            ) from error
        if instant is not None and instant.tzinfo is None:
            raise InputError(f"{before[:40]!r} has no time zone", where="before", next_step="go back and try again")
        return self._user_page(run_id, user, instant, options, sample=True)

    def error(self, error: ScalrError) -> Page:
        """Show an error and what to do next."""
        status = 404 if isinstance(error, _NOT_FOUND_ERRORS) else 400 if isinstance(error, InputError) else 500
        return Page(self._render("ui_error.html.j2", {"error": error.to_json()}), status)

    def http_error(self, status: int) -> Page:
        """Show the page for an unknown address, or for a fault of this package whose details are in the log."""
        if status < _SERVER_ERROR:
            error = ScalrError("there is nothing at this address", where="scalr ui", next_step="go to the list of runs")
        else:
            error = ScalrError("this page could not be created", where="scalr ui", next_step="report the output of scalr ui")
        return Page(self._render("ui_error.html.j2", {"error": error.to_json()}), status)

    def _user_page(self, run_id: str, user: str, before: datetime | None, options: Mapping[str, str], *, sample: bool) -> Page:
        spec, choices = self._select_run(run_id)
        _check_length(user, "user")
        changed = {name: value for name, value in options.items() if value}
        spec = with_other_settings(spec, changed)
        content: dict[str, Any] = {
            "spec": spec,
            "choices": choices,
            "user": user,
            "options": options,
            "changed": changed,
            "generation": spec.settings["generation"],
            "past": read_user_history(self._settings, spec, user) if user else None,
            "some": [] if user else pick_users(self._settings, spec),
            "found": None,
            "scorer": self._settings.serving.scorer,
        }
        past = content["past"]
        if sample and past is not None and past.events and not past.held_out:
            content["found"] = self._sampler.translate(spec, past.user, before)
        known = not user or bool(past.events)
        return Page(self._render("ui_user.html.j2", content), 200 if known else 404)

    def _select_run(self, run_id: str) -> tuple[RunSpec, list[str]]:
        """Return the named run, else the latest published, else the latest, else the run that `scalr run` would plan; and the choices."""
        from scalr_prod.generation import resolve_run_spec

        with Ledger.open(self._settings) as ledger:
            runs = ledger.runs.find(limit=_MAX_RUNS)
            if run_id:
                spec = ledger.runs.get(run_id).spec
                return spec, list(dict.fromkeys([spec.run_id, *(run.run_id for run in runs)]))
        if not runs:
            return resolve_run_spec(self._settings), []
        latest = next((run for run in runs if run.state == "published"), runs[0])
        return latest.spec, [run.run_id for run in runs]

    def _describe_progress(self, ledger: Ledger, run_id: str, owner: str) -> str:
        finished = len(ledger.runs.partitions(run_id))
        return f"{' process '.join(owner.split(':')[:2])} works on it; {finished:,} parts are finished."

    def _nav_links(self, run_id: str | None = None) -> list[tuple[str, str]]:
        query = f"?run={run_id}" if run_id else ""
        links = [
            ("Runs", self._root),
            ("Search", f"{self._root}search"),
            ("Translate a user", f"{self._root}translate{query}"),
        ]
        if docs := self._docs_url(str(self._settings.home / "data_docs" / "index.html")):
            links.append(("Data docs", docs))
        ui = self._settings.ui
        return links + [(label, address) for label, address in (("Dask", ui.dask), ("Airflow", ui.airflow)) if address]

    def _run_url(self, run_id: str) -> str:
        return f"{self._root}runs/{run_id}"

    def _docs_url(self, index: str | None) -> str | None:
        return f"{self._root}data_docs/index.html" if index and Path(index).exists() else None

    def _render(self, template: str, content: dict[str, Any]) -> str:
        return self._templates.get_template(template).render(nav=self._nav_links(), **content)


def _check_length(text: str, where: str) -> None:
    if len(text) > _MAX_ID_LENGTH:
        raise InputError(
            f"too long: over {_MAX_ID_LENGTH:,} characters", where=where, next_step="enter an id as in the event log"
        )
