# SPDX-License-Identifier: Apache-2.0
"""Logging as text or JSON, with the project, run, stage and partition of each line where they are known."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

from scalr_prod.core.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")


#: Context fields of a log line.
CONTEXT_FIELDS: Final = ("project", "run_id", "stage", "partition")

_facts: ContextVar[Mapping[str, Any]] = ContextVar("scalr_log_facts")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s%(about)s"
#: Loggers whose warnings address the libraries' own developers, again and again; only their errors are shown.
_NOISY: Final = ("py.warnings", "great_expectations", "feast", "alembic", "botocore", "fsspec")


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Add fields to every log line within the block, in addition to those of enclosing blocks.

    Args:
        fields: Any of `CONTEXT_FIELDS`; None: not known.
    """
    token = _facts.set(current_log_context() | {name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _facts.reset(token)


def current_log_context() -> dict[str, Any]:
    """Return the log context in force here."""
    return dict(_facts.get({}))


def bind_log_context(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function for another thread, so that its log lines keep the context in force here."""
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)

    return run


def configure_logging(
    log_format: Literal["text", "json"], level: str, *, logger: str | None = None, secrets: Iterable[str] = ()
) -> None:
    """Log to stderr; replaces the handler of an earlier call.

    Does nothing if other code has installed handlers: a scheduler's task runner, or an application that runs Dask workers in its own
    process.

    Args:
        log_format: One line of text or one JSON object per message.
        level: Lowest level of the package's own lines: ``debug``, ``info``, ``warning`` or ``error``. Lines of other libraries are
            shown from ``warning`` on.
        logger: Install on this logger instead of the root, for a process that is not ours.
        secrets: Texts to replace by ``***`` in every line, whichever library writes it.
    """
    root = logging.getLogger(logger)
    ours = [handler for handler in root.handlers if isinstance(handler, _Stderr)]
    if len(ours) < len(root.handlers) or (logger is not None and logging.getLogger().handlers):
        return
    for handler in ours:
        root.removeHandler(handler)
    root.addHandler(_Stderr(log_format, tuple(secrets)))
    logging.getLogger("scalr_prod").setLevel(level.upper())
    if logger is not None:
        root.propagate = False
        return
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING if level == "debug" else logging.ERROR)
    sys.excepthook = _log_crash if log_format == "json" else sys.__excepthook__


def log_error(text: str, fields: Mapping[str, Any]) -> None:
    """Write an error to stderr: as text, or as a log line where logs are JSON.

    Args:
        text: The text for people.
        fields: The fields for machines.
    """
    if not is_json_logging():
        print(text, file=sys.stderr)  # noqa: T201 - the other form of the line below
        return
    present = {name: value for name, value in fields.items() if value is not None}
    with log_context(**{name: present.pop(name) for name in CONTEXT_FIELDS if name in present}):
        logging.getLogger("scalr_prod").error(present.pop("found", text), extra=present)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to the stderr of the moment: it may be replaced after the handler is made."""

    def __init__(self, form: Literal["text", "json"], secrets: tuple[str, ...]) -> None:
        logging.Handler.__init__(self)
        self.form = form
        self.secrets = secrets
        self.addFilter(_add_facts)
        self.setFormatter(_json_formatter() if form == "json" else logging.Formatter(_TEXT))

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self.secrets)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # StreamHandler keeps the stream it was made with
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
    known = current_log_context()
    for name, value in known.items():
        setattr(record, name, value)
    shown = " ".join(f"{name}={known[name]}" for name in CONTEXT_FIELDS if name in known)
    record.about = f" [{shown}]" if shown else ""
    return True


def is_json_logging() -> bool:
    """Return whether log lines on stderr are JSON."""
    return any(isinstance(handler, _Stderr) and handler.form == "json" for handler in logging.getLogger().handlers)


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("scalr_prod").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))
