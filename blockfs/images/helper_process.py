"""Runs a helper program on files that may be hostile, confined to these files and with limits.

:mod:`siterig.blockfs.images.confined` confines it.

Fault contract: the program ends when this process ends in any way, when the call is cancelled, when it prints too much, and
when it neither reads, writes nor computes for a while.  It gets descriptors, never names, so a file that is swapped
meanwhile is not read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.images import confined

OUTPUT_BYTES_MAX = 1 << 20
ERROR_BYTES_MAX = 64 << 10
IDLE_S_MAX = 300.0
MEMORY_BYTES_MAX = 2 << 30
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class HelperLimits:
    """Limits of one run: CPU time in seconds, and the size of the files that it writes."""

    cpu_s: int
    file_bytes: int


@dataclass(slots=True)
class HelperResult:
    """The result of a run; ``stopped`` is None, or why the program was killed before its end."""

    status: int = 0
    out: bytes = b""
    err: bytes = b""
    stopped: str | None = None


async def run(
    command: Sequence[str],
    *,
    limits: HelperLimits,
    reads: Sequence[int] = (),
    writes: Sequence[int] = (),
    on_output: Callable[[bytes], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> HelperResult:
    """Run a program to its end; if the call is cancelled, the program is killed.

    Args:
        command: absolute path and arguments of the program.
        limits: limits of the run.
        reads: descriptors that the program may read, as ``/dev/fd/N``.
        writes: descriptors that it may write, as ``/dev/fd/N``.
        on_output: called with each piece of its output; without it, all output is in the result.
        clock: the time for the limit of idle time.
    """
    result = HelperResult()
    started = _start(command, limits, reads, writes)
    process, out, err = started
    pidfd = os.pidfd_open(process.pid)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_out, process, out, result, on_output)
            nursery.start_soon(_read_err, err, result)
            nursery.start_soon(_watch, process, pidfd, result, clock)
    except BaseException:
        process.kill()
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(pidfd)
            result.status = process.wait()
            await out.aclose()
            await err.aclose()
        os.close(pidfd)
    return result


def _start(
    command: Sequence[str], limits: HelperLimits, reads: Sequence[int], writes: Sequence[int]
) -> tuple[subprocess.Popen[bytes], trio.lowlevel.FdStream, trio.lowlevel.FdStream]:
    spec = json.dumps(
        {
            "reads": list(reads),
            "writes": list(writes),
            "cpu_s": limits.cpu_s,
            "file_bytes": limits.file_bytes,
            "memory_bytes": MEMORY_BYTES_MAX,
        }
    )
    # Not trio.run_process: it forks in a worker thread, and a parent-death signal fires when the forking *thread* ends.
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-I", str(Path(confined.__file__)), spec, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        pass_fds=[*reads, *writes],
        cwd="/",
        start_new_session=True,
    )
    out, err = process.stdout, process.stderr
    assert out is not None  # noqa: S101 (for the type checker)
    assert err is not None  # noqa: S101
    streams = [trio.lowlevel.FdStream(os.dup(pipe.fileno())) for pipe in (out, err)]
    out.close()
    err.close()
    return process, streams[0], streams[1]


def _environment() -> dict[str, str]:
    """Return an environment without secrets, and with few memory arenas, because the address space is limited."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "MALLOC_ARENA_MAX": "2"}


async def _read_out(
    process: subprocess.Popen[bytes],
    stream: trio.lowlevel.FdStream,
    result: HelperResult,
    on_output: Callable[[bytes], None] | None,
) -> None:
    async for piece in stream:
        if on_output is not None:
            on_output(bytes(piece))
        else:
            result.out += piece
            if len(result.out) > OUTPUT_BYTES_MAX:
                result.stopped = f"it printed more than {OUTPUT_BYTES_MAX} bytes"
                process.kill()
                return


async def _read_err(stream: trio.lowlevel.FdStream, result: HelperResult) -> None:
    async for piece in stream:
        result.err += piece[: ERROR_BYTES_MAX - len(result.err)]


async def _watch(process: subprocess.Popen[bytes], pidfd: int, result: HelperResult, clock: Clock) -> None:
    """Kill a program that makes no progress.  The kernel has no event for that, so its work is checked at intervals."""
    seen, since = b"", clock.trio_time_s()
    while True:
        with clock.move_on_after(_LOOK_S):
            await trio.lowlevel.wait_readable(pidfd)
            return
        now = _work_of(process.pid)
        if now != seen:
            seen, since = now, clock.trio_time_s()
        elif clock.trio_time_s() - since >= IDLE_S_MAX:
            result.stopped = f"it made no progress for {IDLE_S_MAX:g} s"
            process.kill()


def _work_of(pid: int) -> bytes:
    """Return bytes that change whenever the process reads, writes or computes."""
    found = b""
    for name in ("io", "schedstat"):
        try:
            found += Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError:
            continue  # this process may not read it, or the program ended
    return found
