"""Where log lines go in a process that is somebody else's."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest

from scalr_prod.core.logging import configure_logging


@contextmanager
def as_in_a_fresh_process(*at_the_root: logging.Handler):
    """The package's logger; the root has these handlers."""
    ours, root = logging.getLogger("scalr_prod"), logging.getLogger()
    with pytest.MonkeyPatch.context() as patch:
        for logger, handlers in ((ours, []), (root, [*at_the_root])):
            patch.setattr(logger, "handlers", handlers)
            patch.setattr(logger, "propagate", True)
        level = ours.level
        yield ours
        ours.setLevel(level)


def test_a_worker_that_nobody_set_up_writes_the_packages_lines_and_no_others(capfd):
    with as_in_a_fresh_process():
        configure_logging("text", "info", logger="scalr_prod")
        configure_logging("text", "info", logger="scalr_prod")
        logging.getLogger("scalr_prod.there").info("ours")
        logging.getLogger("of_others").info("theirs")
    err = capfd.readouterr().err
    assert err.count("scalr_prod.there: ours") == 1
    assert "of_others" not in err


def test_an_application_that_has_workers_in_its_own_process_keeps_its_lines(capfd, caplog):
    """Its handler is at the root, and lines reach it as before."""
    with as_in_a_fresh_process(caplog.handler) as ours:
        ours.setLevel("INFO")
        configure_logging("text", "warning", logger="scalr_prod")
        logging.getLogger("scalr_prod.there").info("ours")
    assert [record.getMessage() for record in caplog.records] == ["ours"]
    assert capfd.readouterr().err == ""
