"""Build wheels and source archives of both distributions, the same to the byte from the same commit, and an SBOM of each wheel.

Usage: python scripts/dist.py [FOLDER]

Writes them and their SHA256SUMS to FOLDER (default: dist). Their times are those of the last commit, or SOURCE_DATE_EPOCH. An SBOM
(CycloneDX, .cdx.json) has the releases of this environment: see scripts/sbom.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sbom import write_sbom

ROOT = Path(__file__).resolve().parent.parent
#: The lower one first.
DISTRIBUTIONS = (ROOT / "packages" / "feast-delta", ROOT)


def main(folder: Path) -> None:
    """Build everything anew and print the checksums."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _commit_time()
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]))
    if uv is None:
        sys.exit("uv was not found; run: make setup")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        for source in DISTRIBUTIONS:
            command = [uv, "build", "--quiet", "--out-dir", made, source]
            subprocess.run(command, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": epoch})
        for wheel in Path(made).glob("*.whl"):
            write_sbom(wheel, wheel.with_suffix(".cdx.json"), epoch=int(epoch))
        built = sorted(path for path in Path(made).iterdir() if path.suffix in {".whl", ".gz", ".json"})
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in built]
        for path in built:
            path.replace(folder / path.name)
    (folder / "SHA256SUMS").write_text("".join(lines))
    print("".join(lines), end="")


def _commit_time() -> str:
    """Seconds since 1970 of the last commit."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        sys.exit("this is no git checkout; set SOURCE_DATE_EPOCH to the seconds since 1970 of the release")
    return done.stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) > 2 or sys.argv[1:2] == ["--help"]:  # noqa: PLR2004 - one argument
        sys.exit(__doc__)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
