# SPDX-License-Identifier: Apache-2.0
"""Feature stores that can be sent to workers: the settings, and the registry's content in place of its address."""

from __future__ import annotations

import copy
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from feast import FeatureStore
from feast.infra.registry.registry_store import RegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry

from scalr_prod.features.client import read_registries_uncached, translate_feast_errors

if TYPE_CHECKING:
    from pathlib import Path

    from feast.repo_config import RepoConfig


_REGISTRY_STORE: Final = f"{__name__}.SnapshotRegistryStore"


@dataclass(frozen=True)
class StoreSnapshot:
    """A feature store's settings and definitions at one time. It can be pickled, and opened even if its repository cannot be read.

    Attributes:
        config: Feast's settings; the registry's content is its path, in base64.
        repo_path: The repository, from which relative paths start.
    """

    config: RepoConfig = field(repr=False)
    repo_path: str

    @classmethod
    def from_store(cls, store: FeatureStore) -> Self:
        """Copy a store's settings and read its registry.

        Raises:
            FeatureStoreError: The registry cannot be reached.
        """
        with translate_feast_errors(store):
            content = store.registry.proto().SerializeToString()
        config = copy.deepcopy(store.config)
        config.registry.registry_type, config.registry.registry_store_type = "file", _REGISTRY_STORE
        config.registry.path = b64encode(content).decode()
        config.registry.cache_ttl_seconds = 0  # never read again
        return cls(config, str(store.repo_path))

    def open(self) -> FeatureStore:
        """Open the store. Its registry cannot be changed."""
        read_registries_uncached()
        return FeatureStore(config=copy.deepcopy(self.config), repo_path=self.repo_path)


class SnapshotRegistryStore(RegistryStore):
    """Feast's access to the content of a `StoreSnapshot`."""

    def __init__(self, registry_config: Any, repo_path: Path) -> None:  # noqa: ARG002 - Feast's signature
        self._content = b64decode(registry_config.path)

    def get_registry_proto(self) -> Registry:
        """Return the registry's content."""
        content = Registry()
        content.ParseFromString(self._content)
        return content

    def update_registry_proto(self, registry_proto: Registry) -> None:
        """Do nothing: a snapshot cannot be changed."""

    def teardown(self) -> None:
        """Do nothing: a snapshot cannot be changed."""
