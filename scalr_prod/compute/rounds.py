# SPDX-License-Identifier: Apache-2.0
"""Rounds of tasks: work whose next tasks depend on what the previous ones returned, several such works at a time."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from duckdb import DuckDBPyConnection

    from scalr_prod.compute.executor import Executor

T = TypeVar("T")

#: Tasks of a round over all rows, unless they would be too small or too large: four for each of 16 workers.
_ROUND_TASKS: Final = 64
#: Rows that a task reads at least: a tenth of a second of work.
_LEAST_ROWS: Final = 250_000


class TaskRound(NamedTuple):
    """Tasks that do not depend on each other.

    Attributes:
        task: A function of a DuckDB connection and of values that can be pickled.
        arguments: The arguments of each call.
        on_result: Called with each result as soon as it is there.
    """

    task: Callable[..., Any]
    arguments: Iterable[tuple[Any, ...]]
    on_result: Callable[[Any], object] = lambda _: None


def task_size(total: float, *, least: float, most: float) -> float:
    """Return how much of a round's work one task does, so that many workers are busy. It depends on the data alone.

    Args:
        total: The work of the round, in any unit.
        least: Smaller tasks would take more time around them.
        most: Larger tasks would need too much memory or disk.
    """
    return min(max(total / _ROUND_TASKS, least), most)


def rows_per_task(rows: int, most: int) -> int:
    """Return how many rows a task reads, about; see `task_size`.

    Args:
        rows: Rows of the round.
        most: Rows that a task reads at most.
    """
    return round(task_size(rows, least=_LEAST_ROWS, most=most))


def run_rounds(executor: Executor, works: Sequence[Generator[TaskRound, list[Any], T]]) -> list[T]:
    """Run works that yield rounds of tasks; the next rounds of all works run at the same time, so that small ones leave no worker idle.

    Args:
        executor: Runs the tasks.
        works: Each yields its rounds, receives the results of a round in the order in which they completed, and returns its outcome.

    Returns:
        The outcomes, in the order of the works.
    """
    outcomes: dict[int, T] = {}
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(closing(work))  # an error of one work ends the others
        received: dict[int, list[Any] | None] = dict.fromkeys(range(len(works)))
        while received:
            rounds: dict[int, TaskRound] = {}
            for number, results in received.items():
                try:
                    rounds[number] = next(works[number]) if results is None else works[number].send(results)
                except StopIteration as stop:
                    outcomes[number] = stop.value
            found: dict[int, list[Any]] = {number: [] for number in rounds}
            for number, result in executor.map(_run_numbered, _iter_calls(rounds)) if rounds else ():
                found[number].append(result)
                rounds[number].on_result(result)
            received = dict(found)
    return [outcomes[number] for number in range(len(works))]


def _iter_calls(rounds: dict[int, TaskRound]) -> Iterator[tuple[Any, ...]]:
    return ((number, each.task, *arguments) for number, each in rounds.items() for arguments in each.arguments)


def _run_numbered(connection: DuckDBPyConnection, number: int, task: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """Task: call a task of the work with this number."""
    return number, task(connection, *arguments)
