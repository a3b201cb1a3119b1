# SPDX-License-Identifier: Apache-2.0
"""Log lines, as text or as JSON: each says which project, run, stage and partition it is about, where that is known."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["FACTS", "about", "facts", "in_context", "log_error", "logs_are_json", "start_logging"]

#: What a line can be about.
FACTS: Final = ("project", "run_id", "stage", "partition")

_facts: ContextVar[Mapping[str, Any]] = ContextVar("scalr_log_facts")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s%(about)s"
#: Their warnings are told to developers of those libraries, again and again; their errors are shown.
_NOISY: Final = ("py.warnings", "great_expectations", "feast", "alembic", "botocore", "fsspec")


@contextmanager
def about(**known: Any) -> Iterator[None]:
    """Have every line within the block carry these facts, beside those of the blocks around it.

    Args:
        known: Any of `FACTS`; None: not known.
    """
    token = _facts.set(facts() | {name: value for name, value in known.items() if value is not None})
    try:
        yield
    finally:
        _facts.reset(token)


def facts() -> dict[str, Any]:
    """What is known here."""
    return dict(_facts.get({}))


def in_context(work: Callable[P, R]) -> Callable[P, R]:
    """The same function for another thread: its lines carry what is known here."""
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(work, *args, **kwargs)

    return run


def start_logging(form: Literal["text", "json"], level: str, *, logger: str | None = None) -> None:
    """Write log lines to stderr, in place of the lines of an earlier call.

    Nothing is installed where somebody else has installed handlers: a scheduler's task runner, or an application, whose own process
    may have Dask's workers in it.

    Args:
        form: One line of text, or one JSON object, a message.
        level: From which on the package's own lines are shown: ``debug``, ``info``, ``warning`` or ``error``. Other libraries' lines
            are shown from ``warning`` on.
        logger: Install at this logger, and not at the root: in a process that is somebody else's.
    """
    root = logging.getLogger(logger)
    ours = [handler for handler in root.handlers if isinstance(handler, _Stderr)]
    if len(ours) < len(root.handlers) or (logger is not None and logging.getLogger().handlers):
        return
    for handler in ours:
        root.removeHandler(handler)
    root.addHandler(_Stderr(form))
    logging.getLogger("scalr_prod").setLevel(level.upper())
    if logger is not None:
        root.propagate = False
        return
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING if level == "debug" else logging.ERROR)
    sys.excepthook = _log_crash if form == "json" else sys.__excepthook__


def log_error(text: str, facts: Mapping[str, Any]) -> None:
    """Tell an error on stderr: as it stands, or, where lines are JSON, as one of them.

    Args:
        text: For people.
        facts: For machines.
    """
    if not logs_are_json():
        print(text, file=sys.stderr)  # noqa: T201 - the other form of the line below
        return
    found = {name: value for name, value in facts.items() if value is not None}
    with about(**{name: found.pop(name) for name in FACTS if name in found}):
        logging.getLogger("scalr_prod").error(found.pop("found", text), extra=found)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is when a line is written."""

    def __init__(self, form: Literal["text", "json"]) -> None:
        logging.Handler.__init__(self)
        self.form = form
        self.addFilter(_add_facts)
        self.setFormatter(_json_formatter() if form == "json" else logging.Formatter(_TEXT))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # StreamHandler keeps the one of its making
        return sys.stderr


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    renamed = {"levelname": "level", "name": "logger", "exc_info": "exception"}
    formatter: logging.Formatter = JsonFormatter(
        ["levelname", "name", "message"], rename_fields=renamed, timestamp="time", reserved_attrs=[*_RESERVED, "about"]
    )
    return formatter


_RESERVED: Final = (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName")


def _add_facts(record: logging.LogRecord) -> bool:
    known = facts()
    for name, value in known.items():
        setattr(record, name, value)
    shown = " ".join(f"{name}={known[name]}" for name in FACTS if name in known)
    record.about = f" [{shown}]" if shown else ""
    return True


def logs_are_json() -> bool:
    """Whether log lines on stderr are JSON."""
    return any(isinstance(handler, _Stderr) and handler.form == "json" for handler in logging.getLogger().handlers)


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("scalr_prod").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))
