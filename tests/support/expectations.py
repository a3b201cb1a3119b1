"""Great Expectations' configuration of an expectation, made once for each question.

For each argument of an expectation that the library looks up it makes the expectation's whole configuration again, thousands of times in
a validation: a fifth of its time. Here one look at the arguments shares what is made.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any

__all__ = ["configure_once"]

_LIBRARY = "great_expectations.expectations.expectation"
_asked = threading.local()


def configure_once() -> None:
    """From now on, in this process; nothing where the library is not imported yet, or where this is done."""
    library = sys.modules.get(_LIBRARY)
    kind = getattr(library, "Expectation", None)  # None: it is being imported
    if kind is None or hasattr(kind, "_configured_once"):
        return
    make, look_up = kind.configuration.fget, kind._get_runtime_kwargs

    def configuration(self: Any) -> Any:
        expectation, made = getattr(_asked, "now", (None, None))
        return made if expectation is self else make(self)

    @functools.wraps(look_up)
    def looking_up(self: Any, *arguments: Any, **options: Any) -> Any:
        before = getattr(_asked, "now", (None, None))
        _asked.now = self, make(self)
        try:
            return look_up(self, *arguments, **options)
        finally:
            _asked.now = before

    kind.configuration, kind._get_runtime_kwargs, kind._configured_once = property(configuration), looking_up, True
