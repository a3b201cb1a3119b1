"""Other users of the machine: what they cannot read of a home, and the folder for temporary rows that they cannot take over."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.core.file_modes import make_private_folder, umask_of
from scalr_prod.errors import LakeError
from scalr_prod.features import DeltaOfflineStoreConfig
from scalr_prod.ledger import Ledger


@pytest.fixture
def umask():
    """Set the process's umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The mode of a folder and of everything below it."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize(
    ("own", "home", "made"),
    [
        (0o022, None, 0o600),
        (0o022, 0o700, 0o600),
        (0o022, 0o755, 0o644),
        (0o002, 0o2770, 0o660),
        (0o002, 0o750, 0o640),
        (0o077, 0o755, 0o600),
    ],
)
def test_files_are_as_private_as_the_home(tmp_path, umask, own, home, made):
    umask(own)
    folder = tmp_path / "home"
    if home is not None:
        folder.mkdir()
        folder.chmod(home)
    with umask_of(folder):
        (tmp_path / "file").touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == made
    assert umask(own) == own


def test_a_home_that_the_library_makes_can_be_entered_by_its_user_alone(settings, umask):
    umask(0o022)
    with Ledger.open(settings):
        pass
    assert modes(settings.home)["."] == 0o700


def test_nothing_that_the_command_line_makes_can_be_read_by_others(settings, umask):
    umask(0o022)
    for command in ("ingest", "histories", "status"):
        done = CliRunner().invoke(app, [command, "--config", str(settings.base / "scalr.toml"), "--json"])
        assert done.exit_code == 0, done.output
    found = modes(settings.home)
    assert "ledger.db" in found
    assert any(name.startswith("lake/") and name.endswith(".parquet") for name in found)
    assert not {name: oct(mode) for name, mode in found.items() if mode & 0o077}
    assert umask(0o022) == 0o022, "the caller's umask is restored"


def test_a_home_that_a_group_shares_stays_shared(settings, umask):
    umask(0o002)
    settings.home.mkdir()
    settings.home.chmod(0o2770)
    done = CliRunner().invoke(app, ["ingest", "--config", str(settings.base / "scalr.toml")])
    assert done.exit_code == 0, done.output
    found = modes(settings.home)
    assert found["."] == 0o2770
    assert {mode for name, mode in found.items() if name.endswith(".parquet")} == {0o660}
    assert not any(mode & 0o007 for mode in found.values())


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's temporary folder, which every user can write to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("getpass.getuser", lambda: "joe")
    return tmp_path


def test_spilled_rows_lie_in_a_folder_that_others_cannot_enter(temporary, umask):
    umask(0o022)
    (temporary / "scalr-feast-joe").mkdir()  # as an earlier version made it
    with DeltaOfflineStoreConfig(memory_mb=64, threads=1).open_session():
        assert modes(temporary / "scalr-feast-joe")["."] == 0o700


@pytest.mark.parametrize("taken", ["folder of another user", "link", "file"])
def test_a_folder_that_another_user_made_is_not_used(temporary, tmp_path_factory, monkeypatch, taken):
    planted, theirs = temporary / "scalr-feast-joe", tmp_path_factory.mktemp("theirs")
    if taken == "link":
        planted.symlink_to(theirs)
    elif taken == "file":
        planted.touch()
    else:
        planted.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: planted.lstat().st_uid + 1)
    with (
        pytest.raises(LakeError, match="not a folder of this user") as caught,
        DeltaOfflineStoreConfig(memory_mb=64, threads=1).open_session(),
    ):
        pass
    assert caught.value.where == str(planted)
    assert "TMPDIR" in str(caught.value.next_step)
    assert not list(theirs.iterdir())


def test_a_private_folder_is_made_once(tmp_path):
    for _ in range(2):
        make_private_folder(tmp_path / "a" / "b")
    assert modes(tmp_path / "a" / "b") == {".": 0o700}
