"""Write a CycloneDX SBOM of a wheel: what it needs, in the releases that are installed here.

Usage: python scripts/sbom.py WHEEL [OUTPUT]

`make dist` writes one beside each wheel. Components are the wheel's requirements and theirs, as this environment resolves them; those
of extras alone have the scope "optional". The same wheel, environment and SOURCE_DATE_EPOCH give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import uuid
import zipfile
from collections import deque
from datetime import UTC, datetime
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from email.message import Message

SPEC = "1.6"
#: Longer texts in the metadata field License are a licence's wording, not its name.
_NAME_LENGTH = 80


def sbom(wheel: Path, *, epoch: int) -> dict[str, Any]:
    """Return the bill of materials of a wheel.

    Args:
        wheel: The wheel.
        epoch: Time of the document, seconds since 1970.
    """
    about = _wheel_metadata(wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    subject = _component(about) | {"type": "library", "hashes": [{"alg": "SHA-256", "content": digest}]}
    wanted = about.get_all("Requires-Dist", [])
    extras = about.get_all("Provides-Extra", [])
    # An extra that gathers others names the wheel itself.
    roots, optional = (
        {name: asked for name, asked in _needed(wanted, some).items() if name != subject["name"]} for some in ((), extras)
    )
    required, everything = _closure(roots), _closure(optional)
    graph = {subject["name"]: set(optional)} | {name: set(needs) for name, needs in everything.items()}
    components = [
        _component(_distribution(name).metadata) | {"type": "library", "scope": "required" if name in required else "optional"}
        for name in sorted(everything)
    ]
    references = {one["name"]: one["bom-ref"] for one in (subject, *components)}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{subject['purl']}#sha256={digest}").urn,
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": subject,
            "properties": [
                {
                    "name": "scalr:resolved-for",
                    "value": f"Python {sys.version_info.major}.{sys.version_info.minor}, {sys.platform}",
                }
            ],
        },
        "components": components,
        "dependencies": [
            {"ref": references[name], "dependsOn": sorted(references[need] for need in needs)}
            for name, needs in sorted(graph.items())
        ],
    }


def _wheel_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def _needed(lines: Iterable[str], extras: Iterable[str]) -> dict[str, set[str]]:
    """Return the requirements that apply here: name → its requested extras."""
    found: dict[str, set[str]] = {}
    for requirement in map(Requirement, lines):
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        if applies:
            found.setdefault(canonicalize_name(requirement.name), set()).update(requirement.extras)
    return found


def _closure(roots: Mapping[str, set[str]]) -> dict[str, dict[str, set[str]]]:
    """Return every package that the roots lead to → what it needs itself."""
    extras: dict[str, set[str]] = {}
    found: dict[str, dict[str, set[str]]] = {}
    queue = deque(roots.items())
    while queue:
        name, asked = queue.popleft()
        if name in found and asked <= extras[name]:
            continue
        extras[name] = extras.get(name, set()) | asked
        found[name] = _needed(_distribution(name).requires or (), sorted(extras[name]))
        queue.extend(found[name].items())
    return found


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        sys.exit(f"{name} is not installed, so its release is unknown; run: make setup")


def _component(about: Message) -> dict[str, Any]:
    """Return name, version, package URL and licence of a distribution's metadata."""
    name = canonicalize_name(about["Name"])
    version = Version(about["Version"]).public  # a local build tag ("+cpu") is no release
    purl = f"pkg:pypi/{name}@{version}"
    licence = _licence(about)
    return {"bom-ref": purl, "name": name, "version": version, "purl": purl} | ({"licenses": [licence]} if licence else {})


def _licence(about: Message) -> dict[str, Any] | None:
    if expression := about.get("License-Expression"):
        return {"expression": expression}
    text = (about.get("License") or "").strip()
    if text and "\n" not in text and len(text) <= _NAME_LENGTH and text.upper() != "UNKNOWN":
        return {"license": {"name": text}}
    classifiers = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if re.match(r"License :: .+ :: ", line)
    ]
    return {"license": {"name": ", ".join(sorted(classifiers))}} if classifiers else None


def write_sbom(wheel: Path, output: Path, *, epoch: int) -> None:
    """Write the bill of materials of a wheel."""
    output.write_text(json.dumps(sbom(wheel, epoch=epoch), indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3} or sys.argv[1] == "--help":
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".cdx.json")  # noqa: PLR2004 - two arguments
    write_sbom(source, target, epoch=int(os.environ.get("SOURCE_DATE_EPOCH") or source.stat().st_mtime))
