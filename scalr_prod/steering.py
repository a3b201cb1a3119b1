# SPDX-License-Identifier: Apache-2.0
"""What a project does about what it holds: switch publication, measure its effect, explain or show it, hand it on, forget, tidy up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scalr_prod.canary import CanaryReport
    from scalr_prod.experiment import ExperimentReport
    from scalr_prod.explain import Explanation
    from scalr_prod.feast_store import ExportFormat, FeastExport
    from scalr_prod.forgetting import ForgetReport
    from scalr_prod.operations import UpkeepReport
    from scalr_prod.settings import Settings
    from scalr_prod.switch import SwitchReport

__all__ = ["Steered"]


class Steered:
    """The part of `Project` that looks after what was published and kept."""

    settings: Settings

    def publication_state(self) -> SwitchReport:
        """Whether the project publishes, and what the feature view holds, or holds back."""
        from scalr_prod.switch import publication_state

        return publication_state(self.settings)

    def disable_publication(self) -> SwitchReport:
        """Let the feature view read as empty, in one commit; nothing is published until it is enabled again.

        Raises:
            TableNotFound: There is no view yet.
        """
        from scalr_prod.switch import disable

        return disable(self.settings)

    def enable_publication(self) -> SwitchReport:
        """Let the feature view hold what it held before: the same files, in one commit.

        Raises:
            PublicationError: Somebody has written rows to the view while it was off.
            LakeError: Files of the rows are gone.
        """
        from scalr_prod.switch import enable

        return enable(self.settings)

    def widen_publication(self, *runs: str, share: float | None = None) -> CanaryReport:
        """Publish for everybody what is published for a share of users (``[experiment] canary``), in one commit a run.

        Args:
            *runs: Ids; default: all that are published for a share of users.
            share: For this share of users, not for everybody.

        Returns:
            What was done run by run, and the runs that are still published for a share of users.

        Raises:
            PublicationError: A run is not published for a share of users, or for a larger one; or publication is switched off.
        """
        from scalr_prod.canary import widen

        return widen(self.settings, runs, share=share)

    def withdraw_publication(self, *runs: str) -> CanaryReport:
        """Take out what is published for a share of users, and bring back what it had replaced, in one commit a run.

        Args:
            *runs: Ids; default: all that are published for a share of users.

        Returns:
            What was done run by run, and the runs that are still published for a share of users.

        Raises:
            PublicationError: A run is not published for a share of users; or publication is switched off.
        """
        from scalr_prod.canary import withdraw

        return withdraw(self.settings, runs)

    def explain(self, event_id: str) -> Explanation:
        """Why a synthetic event is there: source event, history as it was, what each part of the translator said, run and versions.

        Args:
            event_id: Of the event, as the feature view has it.

        Returns:
            The event, what it translates, and its probability taken apart.

        Raises:
            EventNotFound: The feature view has no such event.
            TranslatorNotFound: Its translator version is no longer there.
            LakeError: A table is no longer there as the run read it.
        """
        from scalr_prod.explain import explain

        return explain(self.settings, event_id)

    def ui(self, *, port: int | None = None, started: Callable[[str], None]) -> None:
        """Serve a page over the project on 127.0.0.1, until Ctrl-C or SIGTERM.

        Args:
            port: 0: any that is free; default: ``[ui] port``.
            started: Called with the page's address once it can be opened; whoever has it can read all that the project knows.

        Raises:
            ReportError: The port is taken.
        """
        from scalr_prod.ui import serve

        serve(self.settings, port=port, started=started)

    def experiment(self, *, outcomes: str | None = None, out: str | Path | None = None) -> ExperimentReport:
        """Who is held out; with outcomes, the effect of synthetic events, with a 95 % interval.

        Args:
            outcomes: Path or URL of a table ``user_id``, ``value`` and, where there is one, ``pre_value``: one row a user.
            out: Write every user's side there: ``.parquet`` or ``.csv``.

        Returns:
            Users of each side; with outcomes, the effect and its interval.

        Raises:
            SettingsError: Nobody is held out.
            InputError: The outcomes cannot be read, lack a column, or hold a user twice.
            EvaluationError: There are too few users on a side; or the file's name ends otherwise, or it cannot be written.
        """
        from scalr_prod.experiment import experiment

        return experiment(self.settings, outcomes=outcomes, out=Path(out) if out is not None else None)

    def export_feast(self, folder: str | Path, form: ExportFormat | None = None) -> FeastExport:
        """Write Feast definitions of published events and source histories into a feature repository of your own.

        Args:
            folder: A folder of the repository.
            form: ``delta``: the lake's tables as they are; ``parquet``: copies of their rows, for Feast's file and DuckDB stores.
                Default: by the offline store of the repository's ``feature_store.yaml``.

        Returns:
            The file, its feature views, and the rows and Delta version of each as of now.

        Raises:
            TableNotFound: Nothing was published yet.
            ForeignFiles: A file or folder of that name lies there that this command did not make.
            FeatureStoreError: There is no ``feature_store.yaml`` to tell the format from, or nothing can be written there.
        """
        from scalr_prod.feast_store import export_definitions

        return export_definitions(self.settings, Path(folder), form)

    def forget(self, users: Sequence[int | str]) -> ForgetReport:
        """Remove users from all that the project keeps, and keep logs and runs from bringing them back.

        Args:
            users: Ids as the log has them, to the letter.

        Returns:
            What was removed, by where it was, and translators that are to be trained again.

        Raises:
            ForgettingError: No user is named; an id is not of the lake's type; or another process is at it.
            LeaseHeld: A run is at work. What was done so far stays done.
        """
        from scalr_prod.forgetting import forget
        from scalr_prod.stages import at_stage

        with at_stage("forget"):
            return forget(self.settings, users)

    def forget_items(self, items: Sequence[int | str]) -> ForgetReport:
        """Remove items of the target domain likewise; a translator that knows them is not let propose them.

        Args:
            items: Ids as the log has them, to the letter.

        Returns:
            What was removed, by where it was.

        Raises:
            ForgettingError: No item is named; an id is not of the lake's type; or another process is at it.
            LeaseHeld: A run is at work. What was done so far stays done.
        """
        from scalr_prod.forgetting import forget_items
        from scalr_prod.stages import at_stage

        with at_stage("forget"):
            return forget_items(self.settings, items)

    def maintain(self, *, dry_run: bool = False) -> UpkeepReport:
        """Remove what ``[retention]`` no longer keeps; never what a published window, a served translator or a run at work needs.

        Args:
            dry_run: Only say what would go.

        Returns:
            What was removed, or would be, by kind.
        """
        from scalr_prod.operations import maintain
        from scalr_prod.stages import at_stage

        with at_stage("maintain"):
            return maintain(self.settings, dry_run=dry_run)
