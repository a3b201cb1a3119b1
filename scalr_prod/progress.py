"""One progress line on stderr for work that counts rows, events or parts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["counting"]


@contextmanager
def counting(label: str, *, show: bool, total: int | None = None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Show how far a stage is; gives a function to call with the number of units done since the last call.

    Args:
        label: What is being done.
        show: False shows nothing.
        total: Units in all, where known.
        unit: What is counted.
    """
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} " + unit), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)
