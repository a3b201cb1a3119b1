"""Write the pages of docs that are made from the code: commands, errors, settings and the list of decisions.

Usage: python scripts/reference.py [--check]. With ``--check`` nothing is written; a page that is not up to date is exit code 1.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import typer.main

from scalr_prod import errors
from scalr_prod.apps.cli import app
from scalr_prod.config.settings_reference import render_reference

DOCS = Path(__file__).resolve().parent.parent / "docs"
INTRODUCTION = """# Commands

Every command with its arguments and options. This page is generated from the code by `make docs`. Commands of a project take
`--config scalr.toml`; `--json` prints one JSON object on stdout. Logs and progress go to stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an error; the message names the next step |
| 2 | wrong usage |
| 3 | the quality gate rejected the run, or a check the data set; or no pair of domains is worth joining (`scalr scout`) |
| 130, 143 | stopped by Ctrl-C or SIGTERM |

## scalr

"""


def commands() -> str:
    """Every command with its arguments and options."""
    return INTRODUCTION + "\n".join(_command(typer.main.get_command(app), "scalr"))


def _command(command: Any, name: str) -> list[str]:
    lines = []
    if name != "scalr":
        text, _, example = inspect.cleandoc(command.help or "").replace("\n", " ").partition("Example: ")
        lines += [f"## {name}", "", text.strip(), ""]
        if example:
            lines += [f"Example: `{example}`", ""]
    rows = [_parameter(one) for one in command.params if one.name != "help" and not getattr(one, "hidden", False)]
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    for child in getattr(command, "commands", {}).values():
        lines += _command(child, f"{name} {child.name}")
    return lines


def _parameter(one: Any) -> str:
    label = " ".join(f"`{part}`" for part in one.opts) if one.param_type_name == "option" else f"`{one.name.upper()}`"
    default = one.default
    plain = (
        default is not None and not callable(default) and default not in (False, [], ()) and "default" not in (one.help or "")
    )
    said = (one.help or "").strip() + (f" Default: `{default}`." if plain else "")
    return f"| {label} | {said.replace('|', chr(92) + '|').strip()} |"


def found_errors() -> str:
    """The tree of errors, and each with what it means and what to do about it."""
    tree = re.sub(r"^.*?\n\n", "", inspect.getdoc(errors) or "", count=1, flags=re.DOTALL)
    lines = [
        "# Errors",
        "",
        "Every error of the package, with its meaning and remedy. Each message names what was found, where, and the next step; `--json`",
        "prints them as `error`, `found`, `where` and `next_step`, with the stage and the run if there is one.",
        "",
        "```",
        tree.strip(),
        "```",
        "",
        "| error | meaning | what to do | exit code |",
        "|---|---|---|---|",
    ]
    for name in errors.__all__:
        kind = getattr(errors, name)
        meaning = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| `{name}` | {meaning} | {kind.cure} | {kind.exit_code} |")
    return "\n".join(lines) + "\n"


def decisions() -> str:
    """Every decision record with its rooms, in order of number."""
    lines = [
        "# Decisions",
        "",
        "Each record is one decision that is in force: the problem, the options with what was measured, the decision, and its",
        "consequences. Records are in the order of the flow. The last line of a record names the former records that were folded into",
        "it. Older commits use the former numbers.",
        "",
        "| decision | rooms |",
        "|---|---|",
    ]
    for path in sorted((DOCS / "adr").glob("0*.md")):
        text = path.read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix("# ")
        rooms = re.search(r"^Room: ([^.\n]*(?:\.\w[^.\n]*)*)\.", text, flags=re.MULTILINE)
        lines.append(f"| [{title}]({path.name}) | {rooms[1] if rooms else ''} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write them, or compare."""
    stale = []
    made = {
        "reference/commands.md": commands(),
        "reference/errors.md": found_errors(),
        "adr/index.md": decisions(),
        "reference/settings.md": render_reference(),
    }
    for name, text in made.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"not up to date: {', '.join(stale)}; run: make docs")


if __name__ == "__main__":
    main()
