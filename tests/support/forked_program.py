"""A fork of a process that has loaded modules becomes a program, as if it had been started with ``python -m``.

A rig that such a program starts does not load its modules again either: :func:`start_module` takes the place of
:func:`siterig.supervisor.process.start_module` in it, so that the supervisor is a fork of the command, and the fork
server is a fork of the supervisor.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import inspect
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DESCRIPTORS_MAX = 8
_HIGH = 1000
"""Descriptors are moved above this number first, so that none is overwritten before it is moved to its place."""


@contextmanager
def loading() -> Iterator[None]:
    """Keep the garbage collector from all objects that the block makes, now and later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load(module: str) -> None:
    """Import a module; the garbage collector never examines it."""
    if module not in sys.modules:
        with loading():
            importlib.import_module(module)


@dataclass
class Program:
    """A program, and the surroundings of its process.

    ``keeps`` are descriptors that it inherits beside its three streams.  ``loads`` are modules that are loaded before
    the fork.
    """

    module: str
    words: list[str]
    environment: dict[str, str]
    folder: str
    new_session: bool
    keeps: list[int] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def fork(self, descriptors: Sequence[int]) -> int:
        """Start the program with standard input, output and errors and those that it keeps; return its process id."""
        if pid := os.fork():
            return pid
        status = 1
        try:
            self._become(descriptors)
            status = status_of(self.module)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _become(self, descriptors: Sequence[int]) -> None:
        if self.new_session:
            os.setsid()
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH) for descriptor in descriptors]
        wanted = [0, 1, 2, *self.keeps]
        for each in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 (numbers, not paths)
            if each not in high:
                try:
                    os.close(each)
                except OSError:
                    continue  # the one by which the folder was read
        for descriptor, number in zip(high, wanted, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _leave_event_loop()
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv = ["siterig", *self.words]
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        _start_rigs_as_forks()
        _show_command_line(self.module, self.words)


def _leave_event_loop() -> None:
    """Forget the event loop and the signal handlers of the process that forked, whose code does not continue here."""
    sys.set_asyncgen_hooks(None, None)
    if "trio" in sys.modules:
        import sniffio
        from trio._core import _run

        vars(_run.GLOBAL_RUN_CONTEXT).clear()
        sniffio.thread_local.name = None
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _show_command_line(module: str, words: Sequence[str]) -> None:
    from siterig.cext import linux

    start = [sys.executable, "-m", module.removesuffix(".__main__")]
    if module.startswith("siterig.supervisor."):
        from siterig.core import quick_start

        start = quick_start.command(module)
    linux.set_command_line([*start, *words])


def _start_rigs_as_forks() -> None:
    from siterig.supervisor import process

    process.start_module = start_module


def status_of(module: str) -> int:
    """Run ``main()`` of a module, and return the exit status that it would have as a process.

    An exception that it does not handle is printed, as Python does at the end of a process.
    """
    try:
        importlib.import_module(module).main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


_OPTIONS = inspect.signature(getattr(subprocess.Popen, "_execute_child"))  # noqa: B009 (its type does not name it)


def program_of(popen: subprocess.Popen[Any], module: str, words: list[str], *given: Any) -> tuple[Program, list[int]]:
    """Return the program, and its descriptors, for the arguments of ``Popen._execute_child`` (CPython 3.11 to 3.13)."""
    options = _OPTIONS.bind(popen, words, *given).arguments
    ends = [options["p2cread"], options["c2pwrite"], options["errwrite"]]
    keeps = sorted(options["pass_fds"])
    program = Program(
        module=module,
        words=list(words),
        environment=dict(options["env"]),
        folder=str(options["cwd"]),
        new_session=bool(options["start_new_session"]),
        keeps=keeps,
    )
    return program, [*(number if end == -1 else end for number, end in enumerate(ends)), *keeps]


def close_ends(popen: subprocess.Popen[Any], words: list[str], *given: Any) -> None:
    """Close the child's ends of the pipes, as ``Popen._execute_child`` does."""
    options = _OPTIONS.bind(popen, words, *given).arguments
    names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    getattr(popen, "_close_pipe_fds")(*(options[name] for name in names))  # noqa: B009 (its type does not name it)


class _Forked(subprocess.Popen[bytes]):
    """A child of this process that is a fork of it."""

    def __init__(self, module: str, words: Sequence[str], **options: Any) -> None:
        self._module = module
        super().__init__(list(words), **options)

    def _execute_child(self, words: list[str], *given: Any) -> None:
        program, descriptors = program_of(self, self._module, words, *given)
        self.pid = program.fork(descriptors)
        self._child_created = True
        close_ends(self, words, *given)


def start_module(
    module: str,
    words: Sequence[str],
    *,
    log: Path,
    fd: int,
    stdin: int = subprocess.DEVNULL,
    variables: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program of a rig as a fork; the arguments are those of :func:`siterig.supervisor.process.start_module`."""
    from siterig.supervisor.process import open_log

    with open_log(log) as output:
        return _Forked(module, words, **options_of_module(output.fileno(), fd, stdin, variables))


def options_of_module(output: int, fd: int, stdin: int, variables: dict[str, str] | None) -> dict[str, Any]:
    """Return the options of ``Popen`` for a program of a rig."""
    return {
        "stdin": stdin,
        "stdout": output,
        "stderr": output,
        "pass_fds": [fd],
        "start_new_session": True,
        "cwd": "/",
        "env": os.environ | (variables or {}),
    }
