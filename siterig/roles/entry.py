"""The common part of every role's process: clock, readiness, health checks, the end on SIGTERM or with its parent."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
import trio

from siterig.blockfs.clocks.controlled_clock import ControlledClock
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.waits import RoleHealth, Wait, Waits
from siterig.blockfs.files.json_text import json_text
from siterig.core.failures import unwrap_rig_error
from siterig.core.hosts import join_boot
from siterig.core.paths import PRIVATE_UMASK, Layout
from siterig.core.process_setup import (
    MemoryTrimmer,
    allow_many_files,
    die_with_parent,
    forbid_core_dumps,
    limit_free_memory,
)
from siterig.rpc.client import WATCH
from siterig.supervisor.process import HealthAnswer, Readiness
from siterig.supervisor.process_log import log_to_stderr


class Health(RoleHealth):
    """The health of a role: the waits that it registers, and the use of file descriptors.

    ``probe`` asks a process that the role serves, if there is one, and raises ``RigError`` if it does not answer.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.waits = Waits(clock)
        self.probe: Callable[[], Awaitable[None]] | None = None

    async def report(self) -> list[Wait]:
        if self.probe is not None:
            await self.probe()
        self._check_descriptors()
        return self.waits.list()

    def _check_descriptors(self) -> None:
        try:
            os.close(os.dup(2))
        except OSError as error:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self.waits.set(
                "descriptors", "DescriptorsExhausted", f"all {soft} file descriptors are in use ({error.strerror})"
            )
        else:
            self.waits.clear("descriptors")


class RoleWork(Protocol):
    """The work of a role: it runs until cancelled; ``started`` means that it answers calls."""

    async def __call__(
        self, layout: Layout, *, clock: Clock, health: Health, task_status: trio.TaskStatus[None]
    ) -> None: ...


async def run_until_signal(work: RoleWork, layout: Layout, clock: ControlledClock, channel_fd: int) -> None:
    """Run ``work`` until SIGTERM or SIGINT; report readiness, then answer health checks."""
    health = Health(clock)
    WATCH.set(health.waits)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(end_on_signal)
            await nursery.start(clock.run)
            await nursery.start(partial(work, layout, clock=clock, health=health))
            report(channel_fd, Readiness())
            await answer_checks(health, channel_fd)


async def answer_checks(health: RoleHealth, channel_fd: int) -> None:
    """Answer the parent's health checks (:mod:`siterig.supervisor.process`) until cancelled, then close the channel.

    They come every few seconds, also while the role does nothing; so this is the place to return memory that is not used.
    """
    with MemoryTrimmer() as trimmer:
        async with trio.lowlevel.FdStream(channel_fd) as channel:
            async for questions in channel:
                for _ in range(questions.count(b"\n")):
                    try:
                        answer = HealthAnswer(waits=await health.report())
                    except RigError as error:
                        answer = HealthAnswer(problem=error.message)
                    await channel.send_all(json_text(answer).encode() + b"\n")
                trimmer.trim()
            await trio.sleep_forever()  # the parent has ended, and this process ends with it


def report(fd: int, readiness: Readiness) -> None:
    """Write the first line to the parent: ready, or the error."""
    os.write(fd, json_text(readiness).encode() + b"\n")


def run_role(role: str, work: RoleWork, *, holds_keys: bool = False, reuses_memory: bool = False) -> None:
    """Run a role with the arguments ``DIR [OPTION ...] CHANNEL_FD PARENT_PID`` of this process.

    Args:
        role: its name.
        work: its work.
        holds_keys: the process has a secret in its memory.
        reuses_memory: it takes and frees large blocks all the time.
    """
    folder, channel_fd, parent_pid = Path(sys.argv[1]), int(sys.argv[-2]), int(sys.argv[-1])
    die_with_parent(parent_pid)
    forbid_core_dumps(holds_keys=holds_keys)
    limit_free_memory(reuse=reuses_memory)
    os.set_inheritable(channel_fd, False)
    os.umask(PRIVATE_UMASK)
    layout = Layout(folder)
    log_to_stderr(layout.log("").parent)
    try:
        allow_many_files(sys.argv)
        join_boot(layout, role)
        clock = ControlledClock(layout.clock, role)  # mapped to the end of the process: threads of the core read it
        clock.attach_core()
        log_to_stderr(layout.log("").parent, clock)
        trio.run(run_until_signal, work, layout, clock, channel_fd)
    except (RigError, ExceptionGroup) as error:
        failure = unwrap_rig_error(error)
        if failure is None:
            raise
        structlog.get_logger().error("role_failed", code=failure.code, reason=failure.message)
        # If the role was ready before, the channel is closed.
        with contextlib.suppress(OSError):
            report(channel_fd, Readiness(code=failure.code, message=failure.message, recoverable=failure.recoverable))
        sys.exit(1)
