"""Runs trio code from a synchronous test, whatever event loop the test's own thread has."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar, cast

import trio

from siterig.blockfs.core.errors import RigError
from siterig.core.failures import unwrap_rig_error

T = TypeVar("T")


def run_in_thread(work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work`` in a trio run of its own, in another thread, and return its result; a Ctrl-C cancels it.

    Raises:
        RigError: the failure of ``work``, also out of a group of exceptions.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    started: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            started.append((trio.lowlevel.current_trio_token(), scope))
            results.append(await work())

    def thread() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # it is raised in the thread of the caller
            failures.append(error)

    runner = threading.Thread(target=thread, name="siterig", daemon=True)
    runner.start()
    try:
        runner.join()
    except BaseException:
        for token, scope in started:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)
        runner.join()
        raise
    for failure in failures:
        found = unwrap_rig_error(cast(Exception, failure)) if isinstance(failure, RigError | ExceptionGroup) else None
        raise found or failure
    return results[0]
