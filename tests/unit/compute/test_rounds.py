"""Works whose tasks come in rounds: which tasks run together, what each work receives, and what an error leaves."""

from __future__ import annotations

import pytest

from scalr_prod.compute import TaskRound, rows_per_task, run_rounds, task_size


class ReversedExecutor:
    """Runs tasks in this process, the last one first, and remembers the rounds."""

    is_local = True

    def __init__(self):
        self.rounds = []

    def map(self, task, arguments):
        calls = list(arguments)
        self.rounds.append(len(calls))
        return (task(None, *each) for each in reversed(calls))


def add(_, *numbers):
    return sum(numbers)


def fail(_, *numbers):
    raise ValueError(numbers)


def sum_of_sums(first, second):
    sums = yield TaskRound(add, first)
    return (yield TaskRound(add, [(*sums, number) for number in second]))


def nothing():
    return "done"
    yield


def test_rounds_of_several_works_run_together_and_each_work_receives_its_own_results():
    executor, told = ReversedExecutor(), []

    def single():
        return (yield TaskRound(add, [(5,)], told.append))

    outcomes = run_rounds(executor, [sum_of_sums([(1, 2), (3, 4)], [10, 20]), nothing(), single()])
    assert outcomes == [[30, 20], "done", [5]]
    assert executor.rounds == [3, 2]
    assert told == [5]


def test_a_round_without_tasks_is_a_round():
    assert run_rounds(ReversedExecutor(), [sum_of_sums([], [])]) == [[]]
    assert run_rounds(ReversedExecutor(), []) == []
    assert run_rounds(ReversedExecutor(), [nothing()]) == ["done"]


@pytest.mark.parametrize("fails", ["task", "work"])
def test_an_error_of_one_work_closes_the_others(fails):
    closed = []

    def failing():
        yield TaskRound(fail if fails == "task" else add, [(1,)])
        raise ValueError(1)

    def other():
        try:
            yield TaskRound(add, [(2,)])
            yield TaskRound(add, [(3,)])
        finally:
            closed.append(True)

    with pytest.raises(ValueError, match="1"):
        run_rounds(ReversedExecutor(), [other(), failing()])
    assert closed == [True]


def test_a_task_does_a_64th_of_a_round_within_its_limits():
    assert task_size(640.0, least=1.0, most=20.0) == 10.0
    assert task_size(3.0, least=1.0, most=20.0) == 1.0
    assert task_size(6_400.0, least=1.0, most=20.0) == 20.0
    assert rows_per_task(64_000_000, 2_000_000) == 1_000_000
    assert rows_per_task(1_000, 2_000_000) == 250_000
    assert rows_per_task(1_000, 100) == 100
