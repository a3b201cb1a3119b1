# SPDX-License-Identifier: Apache-2.0
"""What a project holds open: lake, ledger, feature store and scorers, each from when it is asked for until the project is closed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from feast import FeatureStore

    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger
    from scalr_prod.scoring import Scorer
    from scalr_prod.settings import Settings

__all__ = ["Holding"]


class Holding:
    """The part of `Project` that is opened and closed.

    Args:
        settings: The project's settings.
        progress: Show progress bars on stderr.
    """

    def __init__(self, settings: Settings, *, progress: bool = False) -> None:
        self.settings = settings
        self.progress = progress
        self._opened = ExitStack()
        self._lake: Lake | None = None
        self._ledger: Ledger | None = None
        self._feature_store: FeatureStore | None = None
        self._scorers: dict[int, Scorer] = {}

    @classmethod
    def open(
        cls,
        source: Settings | str | Path | Mapping[str, Any] = "scalr.toml",
        *,
        progress: bool = False,
        **overrides: Mapping[str, Any],
    ) -> Self:
        """Open a project.

        Args:
            source: The path of a scalr.toml, its content as a dictionary, or settings that were loaded before. Relative paths
                start from the file's folder, or from the current one.
            progress: Show progress bars on stderr.
            overrides: Whole sections, merged over those of a file: ``generation={"mode": "causal"}``.

        Returns:
            The project; nothing is read or written before it is asked for something. Use it in a ``with`` statement, or `close` it.

        Raises:
            SettingsError: No such file, an unknown key, or an impossible value; names the key.
        """
        from scalr_prod.settings import Settings, load_settings, make_settings

        if isinstance(source, str | Path):
            return cls(load_settings(source, **overrides), progress=progress)
        settings = source if isinstance(source, Settings) else make_settings(source)
        return cls(settings.with_sections(**overrides) if overrides else settings, progress=progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open. A closed project opens again what it is asked for."""
        try:
            self._opened.close()
        finally:
            self._ledger, self._feature_store = None, None
            self._scorers.clear()

    @property
    def lake(self) -> Lake:
        """Its Delta tables."""
        from scalr_prod.lake import Lake

        self._lake = self._lake or Lake.open(self.settings)
        return self._lake

    @property
    def ledger(self) -> Ledger:
        """What every run, publication, translator version and training set came to."""
        from scalr_prod.ledger import Ledger

        if self._ledger is None:
            self._ledger = self._opened.enter_context(Ledger.open(self.settings))
        return self._ledger

    @property
    def feature_store(self) -> FeatureStore:
        """Feast's own store: any method of Feast's SDK works on it.

        Raises:
            FeatureStoreError: There is no feature repository yet.
        """
        from scalr_prod.feast_store import open_feature_store

        self._feature_store = self._feature_store or open_feature_store(self.settings)
        return self._feature_store

    def scorer(self, version: int | None = None) -> Scorer:
        """What answers for a translator version: Triton, started where it is local, or the module in this process.

        Args:
            version: Default: the latest trained.

        Returns:
            A client that draws and scores for that version; the project closes it.

        Raises:
            TranslatorNotFound: No such version.
            ServingError: Triton cannot be started.
        """
        from scalr_prod.scoring import open_scorer
        from scalr_prod.serving import guarded_serving
        from scalr_prod.translator import named_version

        version = named_version(self.settings, version).version
        if version not in self._scorers:
            self._opened.enter_context(guarded_serving(self.settings, version))
            self._scorers[version] = self._opened.enter_context(open_scorer(self.settings, version, guarded=True))
        return self._scorers[version]
