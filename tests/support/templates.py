"""Great Expectations' templates, compiled once a process.

For each page of its data docs the library makes an environment of Jinja's, which compiles the same fifty templates again: a quarter of
the time of a validation. Here they share what is compiled.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from jinja2 import BytecodeCache, ChoiceLoader, Environment, PackageLoader

if TYPE_CHECKING:
    from types import CodeType

    from jinja2.bccache import Bucket

__all__ = ["compile_once"]


class _Kept(BytecodeCache):
    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._codes.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        if bucket.code is not None:
            self._codes[bucket.key, bucket.checksum] = bucket.code


def compile_once() -> None:
    """From now on, in this process."""
    kept, begin = _Kept(), Environment.__init__

    @functools.wraps(begin)
    def keeping(self: Environment, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        loaders = self.loader.loaders if isinstance(self.loader, ChoiceLoader) else ()
        if any(isinstance(one, PackageLoader) and one.package_name == "great_expectations" for one in loaders):
            self.bytecode_cache = kept

    Environment.__init__ = keeping  # type: ignore[method-assign]
