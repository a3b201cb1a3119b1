"""The process that `support.warm` forks commands from; a program of its own, which imports nothing of the package's.

Arguments are the modules to import. Each line on stdin is a command as JSON; the answers are its process id and its exit code.
It ends when stdin does.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

#: Feast sets them when it is imported, which here is before the command begins; what it made them for is in this process.
_OF_FEAST = ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR")


def main(modules: list[str]) -> None:
    """Import, then fork a process for each command, one after the other."""
    sys.path.pop(0)  # this program's folder
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries have to say while they are imported is no answer
    gc.disable()  # it would look through all that was imported, again and again
    for name in modules:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            os.close(answers)
            _become(command)
        os.write(answers, b"%d\n" % child)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become(command: dict[str, Any]) -> NoReturn:
    """Run the command and end as Python does."""
    code = 1
    try:
        _enter(command)
        code = _run(command["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _enter(command: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(os.open(command["outputs"][descriptor - 1], os.O_WRONLY | os.O_APPEND), descriptor)
    kept = {name: os.environ[name] for name in _OF_FEAST if name in os.environ}
    os.environ.clear()
    os.environ.update(kept | command["environment"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    os.chdir(command["folder"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]


def _run(arguments: list[str]) -> int:
    """As the interpreter would: ``-c PROGRAM``, ``-m MODULE`` or the path of a file, and what follows."""
    try:
        if arguments[0] == "-c":
            main = types.ModuleType("__main__")
            sys.modules["__main__"] = main
            sys.path.insert(0, "")
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)  # noqa: S102 - a test's own program
        elif arguments[0] == "-m":
            sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as the interpreter does
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, os.path.dirname(arguments[0]))  # noqa: PTH120 - as above
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
