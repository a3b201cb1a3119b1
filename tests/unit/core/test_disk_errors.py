"""A disk that is full or cannot be written to is one clear error, whichever library writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.warm import run
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.core.disk_errors import translate_disk_errors
from scalr_prod.errors import LakeError, LedgerError

#: Files of this process hold 50 kB at most, as a full disk would end them.
_FULL = """
import resource, signal, sys
from pathlib import Path
import pyarrow as pa
from scalr_prod.core.disk_errors import translate_disk_errors
from scalr_prod.errors import LakeError

folder = Path(sys.argv[1])

def safetensors():
    import torch
    from safetensors.torch import save_file
    save_file({"a": torch.zeros(100_000)}, folder / "a.safetensors")

def parquet():
    import pyarrow.parquet as pq
    pq.write_table(pa.table({"a": list(range(200_000))}), folder / "a.parquet")

def delta():
    import deltalake
    deltalake.write_deltalake(str(folder / "table"), pa.table({"a": list(range(200_000))}))

def plain():
    (folder / "a").write_bytes(bytes(100_000))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for write in (safetensors, parquet, delta, plain):
    try:
        with translate_disk_errors(folder):
            write()
    except LakeError as error:
        print(write.__name__, error.found)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_every_writer_s_error_of_a_full_disk_is_ours(tmp_path):
    done = run([sys.executable, "-c", _FULL, str(tmp_path)], check=True)
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(found) == {"safetensors", "parquet", "delta", "plain"}
    assert all(text.startswith("cannot be written to: ") and "File too large" in text for text in found.values())


@pytest.mark.parametrize(
    "error", [ValueError("os error 2"), OSError(2, "no such file"), RuntimeError("odd"), LedgerError("full (os error 28)")]
)
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as caught, translate_disk_errors("here"):
        raise error
    assert caught.value is error


def test_an_error_of_a_library_in_rust_names_the_folder():
    with pytest.raises(LakeError, match="No space left on device") as caught, translate_disk_errors("here"):
        raise RuntimeError("Generic LocalFileSystem error: No space left on device (os error 28)")
    assert caught.value.where == "here"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no file system in which nobody can create a folder")
@pytest.mark.parametrize("command", ["ingest", "run", "runs list", "doctor"])
def test_a_home_where_no_folder_can_be_created_is_an_error(settings_with, command):
    config = settings_with('[project]\nhome = "/proc/scalr"\n')
    done = CliRunner().invoke(app, [*command.split(), "--config", str(config), "--json"])
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    told = json.loads(done.stdout)
    assert "no folder can be created here" in json.dumps(told)
