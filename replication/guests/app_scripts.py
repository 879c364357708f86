"""Calls the scripts of VMs with ``--pre`` before an application-consistent cut, and with ``--post`` after it.

Fault contract: before ``--pre`` is called, a file ``VM.json`` is durable in the folder of this module.  It is deleted after
the call with ``--post`` has ended.  So a call with ``--post`` follows each call with ``--pre``: by the guard process
(:mod:`siterig.blockfs.guests.script_guard`) also when the agent is killed, by the agent when the guard is killed, and by the
next agent when the host was switched off.  After such a loss ``--post`` may be called twice, or without ``--pre``.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import structlog
import trio
from pydantic import ValidationError

from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.small_file import FileTooLongError, read_small_file
from siterig.blockfs.guests import script_guard

HOLD_S_MAX = 20.0
"""The time after the call with ``--pre`` in which the cut has to be made; then ``--post`` is called in any case."""
RUNS = "AppScriptRuns"
"""The code of the wait while a script runs."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE_S = 10.0
"""The time beyond the limits in which the guard has to answer, on a slow host."""
_RECORD_BYTES_MAX = 64 << 10
_QUOTED_CHARS = 200
_FORBIDDEN = stat.S_IWGRP | stat.S_IWOTH

_log = structlog.get_logger(__name__)


class _ScriptCall(WireModel):
    format: int
    vm: str
    point: str
    script: AppScript


def check_script(vm: str, script: AppScript) -> None:
    """Check that a file can be called, and that only its owner can change it.

    Raises:
        RigError: ``AppScriptUnusable``.
    """
    what = f"the script of VM {vm!r}, {script.path}"
    try:
        found = Path(script.path).stat()
    except OSError as error:
        raise RigError(Code.AppScriptUnusable, f"{what}: {error.strerror}; allowed: an executable file") from error
    if not stat.S_ISREG(found.st_mode) or not os.access(script.path, os.X_OK):
        raise RigError(Code.AppScriptUnusable, f"{what}: is not executable; allowed: an executable file")
    if found.st_mode & _FORBIDDEN:
        raise RigError(
            Code.AppScriptUnusable,
            f"{what}: has mode {stat.S_IMODE(found.st_mode):o}; allowed: no right to write for group and others, because "
            "the agent runs it as its own user",
        )


class AppScripts:
    """The calls of the scripts of one host; one at a time for each VM, which its caller ensures."""

    def __init__(self, folder: Path, waits: Waits) -> None:
        """Use ``folder`` for the records of calls in progress; a script that runs is one of ``waits``."""
        self._folder = folder
        self._waits = waits
        self._after: dict[str, RigError] = {}

    async def finish_all(self) -> None:
        """Call every script with ``--post`` whose call was interrupted by the end of the former agent."""
        for record in sorted(self._folder.glob("*.json")):
            await self._finish(record)

    @asynccontextmanager
    async def prepared(self, vm: str, point: str, script: AppScript) -> AsyncIterator[int]:
        """Call the script with ``--pre``, and with ``--post`` at the end of the block or after a time limit.

        Yields:
            The time on CLOCK_MONOTONIC, in ns, after which the block is too late.

        Raises:
            RigError: ``AppScriptUnusable``, ``AppScriptFailed``, ``AppScriptTimedOut``; a call with ``--post`` that fails is
                left to :meth:`failed_after`.
        """
        self._after.pop(vm, None)
        record = self._folder / f"{vm}.json"
        await self._finish(record)
        await trio.to_thread.run_sync(check_script, vm, script)
        safe_files.make_folder(self._folder)
        content = _ScriptCall(format=1, vm=vm, point=point, script=script)
        write_atomically(record, content.model_dump_json(indent=1).encode())
        guard = await self._spawn(record, content, "both")
        assert guard.stdin is not None  # noqa: S101 (for the type checker)
        lines = _Lines(guard)
        limit_s = script.time_limit_s + script_guard.END_S * 3 + _GRACE_S
        hold = None
        try:
            with trio.move_on_after(limit_s), self._shown(content, "pre"):
                self._raise_for(content, await lines.next())
                hold = await lines.next()
            if hold is None:
                text = f"{_named(content)}: --pre: its guard does not answer"
                raise RigError(Code.AppScriptTimedOut, text, recoverable=True)
            yield int(hold["until_ns"])
        finally:
            with trio.CancelScope(shield=True):
                await guard.stdin.aclose()
                with trio.move_on_after(limit_s), self._shown(content, "post"):
                    await self._note_post(content, lines)
                    await guard.wait()
                await lines.close()
                await self._finish(record)

    @contextmanager
    def _shown(self, record: _ScriptCall, step: str) -> Iterator[None]:
        """Show during the block that the script runs."""
        text = f"{_named(record)}: --{step} has not ended; its time limit is {record.script.time_limit_s:g} s"
        self._waits.set("app script", RUNS, text, vm=record.vm)
        try:
            yield
        finally:
            self._waits.clear("app script", vm=record.vm)

    def failed_after(self, vm: str) -> RigError | None:
        """Return the error of the last call with ``--post`` for a VM, once; None if it succeeded."""
        return self._after.pop(vm, None)

    async def _note_post(self, record: _ScriptCall, lines: _Lines) -> None:
        while (line := await lines.next_or_none()) is not None:
            if line.get("step") == "post":
                try:
                    self._raise_for(record, line)
                except RigError as error:
                    self._after[record.vm] = error
                return

    async def _finish(self, path: Path) -> None:
        """Call a script with ``--post`` if its record exists, after the guard that may still be at work."""
        try:
            data = await trio.to_thread.run_sync(read_small_file, path, _RECORD_BYTES_MAX)
            record = _ScriptCall.model_validate_json(data)
        except FileNotFoundError:
            return
        except (OSError, FileTooLongError, ValidationError) as error:
            _log.error("app_script_record_unreadable", path=str(path), reason=str(error))
            path.unlink(missing_ok=True)
            return
        _log.warning("app_script_interrupted", vm=record.vm, point=record.point, script=record.script.path)
        guard = await self._spawn(path, record, "post")
        assert guard.stdin is not None  # noqa: S101 (for the type checker)
        lines = _Lines(guard)
        with trio.CancelScope(shield=True):
            with (
                trio.move_on_after(3 * record.script.time_limit_s + HOLD_S_MAX + _GRACE_S),
                self._shown(record, "post"),
            ):
                await self._note_post(record, lines)
                await guard.wait()
            await guard.stdin.aclose()
            await lines.close()

    async def _spawn(self, path: Path, record: _ScriptCall, mode: str) -> trio.Process:
        environment = child_environment()
        environment |= {"PATH": PATH, "LANG": "C.UTF-8", "SITERIG_VM": record.vm, "SITERIG_POINT": record.point}
        script = record.script
        return await trio.lowlevel.open_process(
            [
                *(sys.executable, "-P", "-m", "siterig.blockfs.guests.script_guard"),
                *(str(path), script.path, str(script.time_limit_s), str(HOLD_S_MAX), mode),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env=environment,
        )

    def _raise_for(self, record: _ScriptCall, line: dict[str, Any]) -> None:
        """Log a call of the script, and raise its error."""
        step, status, output = line["step"], line["status"], str(line["output"]).strip()
        values = {"vm": record.vm, "step": step, "status": status, "output": output, "more_bytes": line["more_bytes"]}
        if not line["timed_out"] and status == 0:
            _log.info("app_script_called", script=record.script.path, **values)
            return
        _log.warning("app_script_failed", script=record.script.path, timed_out=line["timed_out"], **values)
        quoted = f": {output[:_QUOTED_CHARS]}" if output else ""
        if line["timed_out"]:
            text = f"{_named(record)}: --{step} ran longer than {record.script.time_limit_s:g} s and was ended{quoted}"
            raise RigError(Code.AppScriptTimedOut, text, recoverable=True)
        raise RigError(
            Code.AppScriptFailed, f"{_named(record)}: --{step} ended with status {status}{quoted}", recoverable=True
        )


class _Lines:
    """The lines of JSON that a guard writes."""

    def __init__(self, guard: trio.Process) -> None:
        assert guard.stdout is not None  # noqa: S101 (for the type checker)
        self._stream = guard.stdout
        self._data = b""

    async def next_or_none(self) -> dict[str, Any] | None:
        while b"\n" not in self._data:
            more = await self._stream.receive_some()
            if not more:
                return None
            self._data += more
        line, self._data = self._data.split(b"\n", 1)
        return dict(json.loads(line))

    async def next(self) -> dict[str, Any]:
        line = await self.next_or_none()
        if line is None:
            raise RigError(Code.AppScriptFailed, "the guard of the script was killed", recoverable=True)
        return line

    async def close(self) -> None:
        await self._stream.aclose()


def _named(record: _ScriptCall) -> str:
    return f"script {record.script.path} of VM {record.vm!r}"
