"""The cluster's own promises: few tasks in flight, errors in one sentence, workers that tell how far they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from scalr_prod.compute.cluster import open_cluster, progress_channel
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ComputeError, ScalrError

#: Starts a cluster of its own and kills it; test_generation.py loses a worker and goes on.
long = pytest.mark.long


@pytest.fixture
def settings_at(project):
    return lambda dask: load_settings(project, compute={"dask": dask, "workers": 1})


def test_all_results_come_and_few_tasks_are_in_flight(settings_at, here):
    taken, ahead = [], []

    def arguments():
        for number in range(40):
            taken.append(number)
            yield (number,)

    with open_cluster(settings_at(here), tasks=40) as cluster:
        assert cluster.threads == 2
        results = []
        for result in cluster.map(lambda number: number * number, arguments()):
            results.append(result)
            ahead.append(len(taken) - len(results))
    assert sorted(results) == [number * number for number in range(40)]
    assert max(ahead) <= 4


_TWO_CLUSTERS = """
import json, os, sys
from scalr_prod.compute.cluster import open_cluster
from scalr_prod.config.settings import load_settings

def what_is_there(_):
    return os.getpid(), os.getppid(), "feast" in sys.modules, "torch" in sys.modules, os.environ.get("OPENBLAS_NUM_THREADS")

settings, found = load_settings(sys.argv[1], compute={"dask": "local", "workers": 2}), []
for _ in range(2):
    with open_cluster(settings, tasks=2) as cluster:
        found += list(cluster.map(what_is_there, [(number,) for number in range(8)]))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_local_workers_are_forked_from_one_process_that_has_imported_what_tasks_need(project):
    """In a process of its own: in this one, other tests may have started a process to fork from, with other imports."""
    command = [sys.executable, "-c", _TWO_CLUSTERS, str(project)]
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    workers, parents, feast, torch, threads = map(set, zip(*json.loads(done.stdout), strict=True))
    assert len(workers) > 1
    assert len(parents) == 1, "the second cluster's workers come from the same process"
    assert (feast, torch, threads) == ({True}, {False}, {"1"})


def test_an_error_of_ours_arrives_as_it_was_raised(settings_at, here):
    def fail(_: int) -> None:
        raise ScalrError("this went wrong", where="here", next_step="do that").add_context(stage="generate")

    with open_cluster(settings_at(here), tasks=1) as cluster, pytest.raises(ScalrError) as caught:
        list(cluster.map(fail, [(1,)]))
    assert type(caught.value) is ScalrError
    assert (caught.value.found, caught.value.where, caught.value.next_step) == ("this went wrong", "here", "do that")
    assert caught.value.stage == "generate"


def test_any_other_error_becomes_one_sentence(settings_at, here):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with (
        open_cluster(settings_at(here), tasks=1, resume="run: scalr histories") as cluster,
        pytest.raises(ComputeError, match=r"OSError: .*No space left on device") as caught,
    ):
        list(cluster.map(fail, [(1,)]))
    assert here in caught.value.where
    assert caught.value.next_step == "fix the cause, then run: scalr histories"


def test_an_error_ends_the_work_that_waits(settings_at, here):
    def work(number: int) -> int:
        if number == 0:
            raise ScalrError("no")
        time.sleep(0.05)
        return number

    taken = []

    def arguments():
        for number in range(1000):
            taken.append(number)
            yield (number,)

    with open_cluster(settings_at(here), tasks=1000) as cluster, pytest.raises(ScalrError):
        list(cluster.map(work, arguments()))
    assert len(taken) < 50


def test_workers_tell_how_far_they_are(settings_at, here):
    def work(number: int) -> int:
        with progress_channel("done") as count:
            for _ in range(1000):
                count(number)
        return number

    told = []
    with open_cluster(settings_at(here), tasks=3) as cluster:
        cluster.subscribe("done", told.append)
        list(cluster.map(work, [(1,), (2,), (3,)]))
        deadline = time.monotonic() + 10
        while sum(told) < 6000 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert sum(told) == 6000
    assert len(told) < 100, "a message for each count"


def test_what_a_task_that_fails_had_counted_is_told(settings_at, here):
    def work() -> None:
        with progress_channel("done") as count:
            count(7)
            raise ScalrError("no")

    told = []
    with open_cluster(settings_at(here), tasks=1) as cluster:
        cluster.subscribe("done", told.append)
        with pytest.raises(ScalrError):
            list(cluster.map(work, [()]))
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told == [7]


@long
@pytest.mark.slow
def test_workers_that_die_again_and_again_are_an_error_not_a_loop(settings_at):
    def die(_: int) -> None:
        os._exit(1)

    with (
        open_cluster(settings_at("local"), tasks=1) as cluster,
        pytest.raises(ComputeError, match="died repeatedly on the same task") as caught,
    ):
        list(cluster.map(die, [(1,)]))
    assert caught.value.next_step == "lower [compute] workers, then run the command again"


def test_an_error_of_the_closing_is_logged_and_fails_nothing(caplog):
    from scalr_prod.compute.cluster import _closing

    class Unruly:
        def close(self):
            raise AssertionError("can only join a started process")

    with pytest.raises(ComputeError, match="the task failed"), _closing(Unruly()):
        raise ComputeError("the task failed")
    with _closing(Unruly()):
        done = True
    assert done
    assert caplog.text.count("can only join a started process") == 2
