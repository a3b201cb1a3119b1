# SPDX-License-Identifier: Apache-2.0
"""What a project does about its published events: switch them off and on, measure their effect, explain one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalr_prod.experiment import ExperimentReport
    from scalr_prod.explain import Explanation
    from scalr_prod.settings import Settings
    from scalr_prod.switch import SwitchReport

__all__ = ["Steered"]


class Steered:
    """The part of `Project` that looks after published events."""

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

    def explain(self, event_id: str) -> Explanation:
        """Why a synthetic event is there: source event, history as it was, what each part of the translator said, run and versions.

        Raises:
            EventNotFound: The feature view has no such event.
            TranslatorNotFound: Its translator version is no longer there.
            LakeError: A table is no longer there as the run read it.
        """
        from scalr_prod.explain import explain

        return explain(self.settings, event_id)

    def experiment(self, *, outcomes: str | None = None, out: str | Path | None = None) -> ExperimentReport:
        """Who is held out; with outcomes, the effect of synthetic events, with a 95 % interval.

        Args:
            outcomes: Path or URL of a table ``user_id``, ``value`` and, where there is one, ``pre_value``: one row a user.
            out: Write every user's side there: ``.parquet`` or ``.csv``.

        Raises:
            SettingsError: Nobody is held out.
            InputError: The outcomes cannot be read, lack a column, or hold a user twice.
            EvaluationError: There are too few users on a side.
        """
        from scalr_prod.experiment import experiment

        return experiment(self.settings, outcomes=outcomes, out=Path(out) if out is not None else None)
