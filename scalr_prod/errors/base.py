# SPDX-License-Identifier: Apache-2.0
"""Base of all errors: what was found, where, in which stage and run, and the next step."""

from __future__ import annotations


class ScalrError(Exception):
    """Base of the package's errors: what was found, where, and what to do next.

    Args:
        found: What was found, in one sentence.
        where: The file, column, row, table, key or address where it was found.
        next_step: The command or change that solves it in this case.

    Attributes:
        cure: What to do about any error of this class, for docs/reference/errors.md.
    """

    cure = "Do what the message says under `next`."

    exit_code = 1

    def __init__(self, found: str, *, where: str | None = None, next_step: str | None = None) -> None:
        super().__init__(found)
        self.found = found
        self.where = where
        self.next_step = next_step
        self.run_id: str | None = None
        self.stage: str | None = None

    def __str__(self) -> str:
        origin = ", ".join(
            part
            for part in (
                self.where,
                f"stage {self.stage}" if self.stage else None,
                f"run {self.run_id}" if self.run_id else None,
            )
            if part
        )
        head = f"{origin}: {self.found}" if origin else self.found
        return f"{head}\n  next: {self.next_step}" if self.next_step else head

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (Dask workers): rebuild with the keyword arguments kept.
        return _rebuild, (type(self), self.found, self.where, self.next_step, self.run_id, self.stage)

    def add_context(self, *, stage: str | None = None, run_id: str | None = None) -> ScalrError:
        """Add the stage and run where not known yet.

        Args:
            stage: Name of the stage.
            run_id: Id of the run.

        Returns:
            The error itself.
        """
        self.stage = self.stage or stage
        self.run_id = self.run_id or run_id
        return self

    def to_json(self) -> dict[str, str | None]:
        """Return the same fields as one JSON object, for ``--json``."""
        return {
            "error": type(self).__name__,
            "found": self.found,
            "where": self.where,
            "next_step": self.next_step,
            "stage": self.stage,
            "run_id": self.run_id,
        }


def _rebuild(
    kind: type[ScalrError], found: str, where: str | None, next_step: str | None, run_id: str | None, stage: str | None
) -> ScalrError:
    return kind(found, where=where, next_step=next_step).add_context(stage=stage, run_id=run_id)
