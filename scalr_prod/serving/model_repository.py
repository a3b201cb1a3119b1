# SPDX-License-Identifier: Apache-2.0
"""Model repository: one folder per version, and a configuration that lists the versions to load.

It is an ordinary Triton repository, which NVIDIA's own container can load as it is.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.core import assets
from scalr_prod.core.atomic_io import atomic_path
from scalr_prod.errors import ServingError
from scalr_prod.workspace import bind_to_project, claim_directory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scalr_prod.config import Settings
    from scalr_prod.translator import TranslatorVersion


_VERSION_POLICY_LINE: Final = re.compile(r"^version_policy .*$", re.MULTILINE)
_INSTANCE_COUNT: Final = re.compile(r"(?<=count: )\d+")
#: Whether a process builds the shortlist blocks when it loads a version; otherwise the first request that needs them waits.
_SHORTLISTS_FLAG: Final = re.compile(r'(?<=key: "shortlists" value: { string_value: ")no')
#: Up to this size of weights a local server holds two copies: while one answers, receives or waits, the other one computes.
_TWICE: Final = 256 << 20


def model_folder(settings: Settings) -> Path:
    """Return the model's folder in the repository."""
    return settings.model_repository / settings.served_model


def install_version(settings: Settings, version: TranslatorVersion) -> Path:
    """Install a version in the repository atomically; one that is there already stays as it is.

    Raises:
        ServingError: The repository cannot be written.
    """
    _claim_model_folder(settings)
    folder = model_folder(settings) / str(version.version)
    program = assets.asset_folder("triton_models") / "translator" / "1" / "model.py"
    manifest = version.path / "manifest.json"
    try:
        if _has_same_content(folder / "manifest.json", manifest) and _has_same_content(folder / "model.py", program):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
            staged = Path(scratch) / "version"
            staged.mkdir()
            for file in version.path.iterdir():
                _link_or_copy(file, staged / file.name)
            shutil.copyfile(program, staged / "model.py")
            _share(settings, staged, *staged.iterdir())
            if folder.exists():
                folder.rename(Path(scratch) / "former")
            staged.rename(folder)
    except OSError as error:
        raise _unwritable_error(settings, error) from error
    return folder


def configured_versions(settings: Settings) -> list[int]:
    """Return the configured versions, in ascending order; none if there is no configuration yet."""
    policy = _VERSION_POLICY_LINE.search(_config(settings))
    return sorted(int(number) for number in re.findall(r"\d+", policy.group())) if policy else []


def configured_instances(settings: Settings) -> int:
    """Return the configured number of processes per version; 0 if there is no configuration yet."""
    count = _INSTANCE_COUNT.search(_config(settings))
    return int(count.group()) if count else 0


def _config(settings: Settings) -> str:
    """Return the configuration; empty if there is none yet."""
    try:
        return (model_folder(settings) / "config.pbtxt").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def write_config(settings: Settings, versions: Iterable[int]) -> None:
    """Configure the versions to load, among those in the repository.

    Raises:
        ServingError: The repository cannot be written.
    """
    _claim_model_folder(settings)
    folder = model_folder(settings)
    there = sorted(version for version in set(versions) if (folder / str(version) / "model.py").is_file())
    template = (assets.asset_folder("triton_models") / "translator" / "config.pbtxt").read_text(encoding="utf-8")
    policy = f"version_policy {{ specific {{ versions: [ {', '.join(map(str, there))} ] }} }}"
    text, replaced = _VERSION_POLICY_LINE.subn(policy, template)
    text, counted = _INSTANCE_COUNT.subn(str(_instances(settings, [folder / str(version) for version in there])), text)
    text, said = _SHORTLISTS_FLAG.subn("no" if settings.generation.shortlist is None else "yes", text)
    if (replaced, counted, said) != (1, 1, 1):
        raise ServingError(
            "the template lacks the version policy, the number of instances or the shortlists flag",
            where="config.pbtxt",
            next_step="install the package again, or restore the file",
        )
    target = folder / "config.pbtxt"
    try:
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            return
        with atomic_path(target) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
            _share(settings, unfinished)
    except OSError as error:
        raise _unwritable_error(settings, error) from error


def _instances(settings: Settings, versions: Iterable[Path]) -> int:
    """Return the number of processes per version."""
    serving = settings.serving
    if serving.instances is not None:
        return serving.instances
    files = (file for version in versions for file in version.glob("*.safetensors"))
    small = all(file.stat().st_size <= _TWICE for file in files)
    return 2 if small and serving.url is None and serving.threads > 1 else 1


def _claim_model_folder(settings: Settings) -> None:
    """Check that the model's folder belongs to this project, and mark it.

    Raises:
        ProjectsMixed: The model there under this name belongs to another project.
        ForeignFiles: The model there under this name was not written by this package.
        ServingError: The repository cannot be written.
    """
    setting = "[serving] model_name, or another repository,"
    folder = model_folder(settings)
    created = [path for path in (folder.parent, folder) if not path.exists()]
    try:
        claim_directory(folder, "model", setting=setting, names=None)
        bind_to_project(settings, folder, setting)
        _share(settings, *created)
    except OSError as error:
        raise _unwritable_error(settings, error) from error


def _has_same_content(left: Path, right: Path) -> bool:
    return left.is_file() and left.read_bytes() == right.read_bytes()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _share(settings: Settings, *paths: Path) -> None:
    """Let other users read what a server that this package did not start reads: in NVIDIA's container it runs as another user."""
    if settings.serving.url is not None:
        for path in paths:
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


def _unwritable_error(settings: Settings, error: OSError) -> ServingError:
    return ServingError(
        f"the model repository cannot be written: {error}",
        where=str(settings.model_repository),
        next_step="check its permissions and the disk, or set [serving] repository",
    )
