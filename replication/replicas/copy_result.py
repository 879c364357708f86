"""The result of an ordered copy, for those that wait for it."""

from __future__ import annotations

import trio

from siterig.blockfs.core.errors import RigError


class CopyResult:
    """The result of an ordered copy, for the callers that wait for it."""

    def __init__(self) -> None:
        self._resolved = trio.Event()
        self._error: RigError | None = None

    @property
    def is_resolved(self) -> bool:
        """True once there is a result."""
        return self._resolved.is_set()

    def resolve(self, error: RigError | None = None) -> None:
        """Set the result, unless there is one: success, or an error."""
        if not self._resolved.is_set():
            self._error = error
            self._resolved.set()

    async def wait(self) -> None:
        """Wait for the result; raise its error."""
        await self._resolved.wait()
        if self._error is not None:
            raise RigError(self._error.code, self._error.message, recoverable=self._error.recoverable)
