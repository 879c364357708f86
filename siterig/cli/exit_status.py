"""The end of a command: it reports a failure and exits with the status of its error code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from siterig.blockfs.core.errors import ExitStatus
from siterig.cli import output
from siterig.core.failures import unwrap_rig_error
from siterig.core.interruption import interrupted, listen

T = TypeVar("T")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run a command's work in trio's event loop; failures are reported as :func:`reporting` does it."""
    import trio  # it and the RPC client take longer to load than a command that only reads has in all

    from siterig.rpc.client import GUIDE
    from siterig.rpc.role_guide import RoleGuide

    async def main() -> T:
        GUIDE.set(lambda sockets: RoleGuide(sockets, output.notice))
        return await work()

    with reporting():
        return trio.run(main)


def of_health(states: Iterable[str]) -> ExitStatus:
    """Return the exit status of the worst health (``replicationHealth``) of these."""
    worst = set(states)
    if "Critical" in worst:
        return ExitStatus.CRITICAL
    return ExitStatus.WARNING if "Warning" in worst else ExitStatus.OK


@contextmanager
def reporting() -> Iterator[None]:
    """Report an expected failure in one line on stderr and exit with its status; Ctrl-C exits with 130.

    Anything else is a bug and passes through, to show its traceback.
    """
    listen()
    try:
        yield
    except BaseException as error:
        if interrupted(error):
            output.interrupted()
            raise SystemExit(ExitStatus.INTERRUPTED) from None
        failure = unwrap_rig_error(error)
        if failure is None:
            raise
        output.error(failure)
        raise SystemExit(failure.code.exit_status) from None
